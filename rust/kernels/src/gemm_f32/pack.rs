//! Packing of weights (B) into panels, and of rows of A into tiles.

use super::kernels::GemmF32;
use crate::aligned::AlignedVec;
use crate::error::KernelError;

const FAMILY: &str = "gemm_f32";

/// A `[k, n]` matrix in the order its kernel reads it.
///
/// Panels of `nr` columns, each `[k][nr]`, the last one padded with zeros. Made once, when a model is loaded.
#[derive(Clone, Debug)]
pub struct PackedB {
    data: AlignedVec,
    k: usize,
    n: usize,
    nr: usize,
    kernel: &'static str,
}

impl PackedB {
    /// Packs `b[k, n]` with element `(p, j)` at `b[p * row_stride + j]`.
    ///
    /// # Errors
    /// [`KernelError::Size`] if the slice is too short for the shape.
    pub fn from_rows(
        kernel: &GemmF32,
        b: &[f32],
        k: usize,
        n: usize,
        row_stride: usize,
    ) -> Result<Self, KernelError> {
        KernelError::check_least(FAMILY, "row stride of B", row_stride, n)?;
        let needed = crate::epilogue::strided_len(FAMILY, k, n, row_stride)?;
        KernelError::check_least(FAMILY, "length of B", b.len(), needed)?;
        let mut packed = Self::zeros(kernel, k, n);
        packed.for_each_panel(|first, columns, nr, panel| {
            for (p, line) in panel.chunks_exact_mut(nr).enumerate() {
                let from = p * row_stride + first;
                line[..columns].copy_from_slice(&b[from..from + columns]);
            }
        });
        Ok(packed)
    }

    /// Packs the transpose of `bt[n, k]` with element `(p, j)` at `bt[j * row_stride + p]`: weights as networks store
    /// them, one row per output channel.
    ///
    /// # Errors
    /// [`KernelError::Size`] if the slice is too short for the shape.
    pub fn from_columns(
        kernel: &GemmF32,
        bt: &[f32],
        k: usize,
        n: usize,
        row_stride: usize,
    ) -> Result<Self, KernelError> {
        KernelError::check_least(FAMILY, "row stride of B", row_stride, k)?;
        let needed = crate::epilogue::strided_len(FAMILY, n, k, row_stride)?;
        KernelError::check_least(FAMILY, "length of B", bt.len(), needed)?;
        let mut packed = Self::zeros(kernel, k, n);
        packed.for_each_panel(|first, columns, nr, panel| {
            for j in 0..columns {
                let column = &bt[(first + j) * row_stride..][..k];
                for (p, &x) in column.iter().enumerate() {
                    panel[p * nr + j] = x;
                }
            }
        });
        Ok(packed)
    }

    fn zeros(kernel: &GemmF32, k: usize, n: usize) -> Self {
        let nr = kernel.nr();
        Self { data: AlignedVec::zeros(n.div_ceil(nr) * nr * k), k, n, nr, kernel: kernel.name() }
    }

    fn for_each_panel(&mut self, fill: impl Fn(usize, usize, usize, &mut [f32])) {
        let (k, n, nr) = (self.k, self.n, self.nr);
        if k == 0 {
            return;
        }
        for (index, panel) in self.data.as_mut_slice().chunks_exact_mut(k * nr).enumerate() {
            let first = index * nr;
            fill(first, nr.min(n - first), nr, panel);
        }
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
        std::mem::size_of_val(self.data.as_slice())
    }

    /// `Ok` if `kernel` packed this.
    pub(crate) fn check_kernel(&self, kernel: &GemmF32) -> Result<(), KernelError> {
        if self.kernel == kernel.name() {
            Ok(())
        } else {
            Err(KernelError::PackedForOther { packed_for: self.kernel, used_with: kernel.name() })
        }
    }

    /// The panel that holds column `first` (a multiple of the panel width), from row `p` on.
    pub(super) fn panel(&self, first: usize, p: usize) -> &[f32] {
        let start = first * self.k + p * self.nr;
        &self.data.as_slice()[start..first * self.k + self.k * self.nr]
    }
}

/// Rows of A, wherever they come from: a matrix, or the pixels of a convolution.
pub(crate) trait RowSource: Sync {
    /// Copies elements `k0 .. k0 + line.len()` of row `row`.
    fn copy(&self, row: usize, k0: usize, line: &mut [f32]);
}

/// A matrix in memory, element `(i, p)` at `data[i * row_stride + p]`.
pub(crate) struct MatrixRows<'a> {
    pub(crate) data: &'a [f32],
    pub(crate) row_stride: usize,
}

impl RowSource for MatrixRows<'_> {
    #[inline]
    fn copy(&self, row: usize, k0: usize, line: &mut [f32]) {
        let start = row * self.row_stride + k0;
        line.copy_from_slice(&self.data[start..start + line.len()]);
    }
}
