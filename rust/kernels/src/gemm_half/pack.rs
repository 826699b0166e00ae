//! Packing of weights (B) into panels.

use super::kernels::GemmHalf;
use crate::aligned::AlignedBytes;
use crate::error::KernelError;

const FAMILY: &str = "gemm_half";

/// A `[k, n]` matrix rounded to 16-bit floats, in the order its kernel reads it: panels of `nr` columns, each `[k /
/// group][nr][group]`, padded with zeros.
#[derive(Clone, Debug)]
pub struct PackedHalf {
    data: AlignedBytes,
    k: usize,
    n: usize,
    nr: usize,
    group: usize,
    kernel: &'static str,
}

impl PackedHalf {
    /// Packs `b[k, n]` with element `(p, j)` at `b[p * row_stride + j]`.
    ///
    /// # Errors
    /// [`KernelError::Size`] if the slice is too short for the shape.
    pub fn from_rows(
        kernel: &GemmHalf,
        b: &[f32],
        k: usize,
        n: usize,
        row_stride: usize,
    ) -> Result<Self, KernelError> {
        KernelError::check_least(FAMILY, "row stride of B", row_stride, n)?;
        let needed = crate::epilogue::strided_len(FAMILY, k, n, row_stride)?;
        KernelError::check_least(FAMILY, "length of B", b.len(), needed)?;
        Ok(Self::pack(kernel, k, n, |p, j| b[p * row_stride + j]))
    }

    /// Packs the transpose of `bt[n, k]` with element `(p, j)` at `bt[j * row_stride + p]`: weights as networks store
    /// them, one row per output channel.
    ///
    /// # Errors
    /// [`KernelError::Size`] if the slice is too short for the shape.
    pub fn from_columns(
        kernel: &GemmHalf,
        bt: &[f32],
        k: usize,
        n: usize,
        row_stride: usize,
    ) -> Result<Self, KernelError> {
        KernelError::check_least(FAMILY, "row stride of B", row_stride, k)?;
        let needed = crate::epilogue::strided_len(FAMILY, n, k, row_stride)?;
        KernelError::check_least(FAMILY, "length of B", bt.len(), needed)?;
        Ok(Self::pack(kernel, k, n, |p, j| bt[j * row_stride + p]))
    }

    fn pack(kernel: &GemmHalf, k: usize, n: usize, value: impl Fn(usize, usize) -> f32) -> Self {
        let (nr, group) = (kernel.nr(), kernel.group);
        // Eight `k` at a time are read where rows of A are whole vectors.
        let height = Self::height(k);
        let mut packed = Self {
            data: AlignedBytes::zeros(n.div_ceil(nr) * nr * height * 2),
            k,
            n,
            nr,
            group,
            kernel: kernel.name(),
        };
        let mut line = vec![0.0; nr * group];
        let mut halves = vec![0_u16; nr * group];
        for (index, panel) in packed.data.chunks_exact_mut((nr * height * 2).max(1)).enumerate() {
            let first = index * nr;
            let columns = nr.min(n - first);
            for (block, to) in panel.chunks_exact_mut(nr * group * 2).enumerate() {
                for j in 0..columns {
                    for part in 0..group {
                        let p = block * group + part;
                        line[j * group + part] = if p < k { value(p, first + j) } else { 0.0 };
                    }
                }
                line[columns * group..].fill(0.0);
                (kernel.round)(&line, &mut halves);
                for (to, half) in to.chunks_exact_mut(2).zip(&halves) {
                    to.copy_from_slice(&half.to_ne_bytes());
                }
            }
        }
        packed
    }

    /// `k` rounded up to what kernels read.
    pub(super) fn height(k: usize) -> usize {
        k.next_multiple_of(8)
    }

    /// Rows of B: the length of the sums.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Columns of B and of the output.
    pub fn n(&self) -> usize {
        self.n
    }

    /// The kernel that can use this data.
    pub fn kernel_name(&self) -> &'static str {
        self.kernel
    }

    /// Memory held, in bytes.
    pub fn bytes(&self) -> usize {
        self.data.len()
    }

    /// `Ok` if `kernel` packed this.
    pub(super) fn check_kernel(&self, kernel: &GemmHalf) -> Result<(), KernelError> {
        if self.kernel == kernel.name() {
            Ok(())
        } else {
            Err(KernelError::PackedForOther { packed_for: self.kernel, used_with: kernel.name() })
        }
    }

    /// The panel that holds column `first` (a multiple of the panel width), from row `p` (a multiple of the group) on.
    pub(super) fn panel(&self, first: usize, p: usize) -> *const u16 {
        let start = 2 * (first * Self::height(self.k) + p / self.group * self.group * self.nr);
        self.data[start..].as_ptr().cast()
    }
}
