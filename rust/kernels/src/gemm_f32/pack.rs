//! Packing of weights (B) into panels, and of rows of A into tiles.

use std::ops::Range;

use super::kernels::GemmF32;
use super::micro::A_STRIDE;
use crate::aligned::AlignedVec;
use crate::error::KernelError;
use crate::simd::{Simd, SimdOp, VectorIsa};

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
        let mut packed = Self::zeros(kernel, k, n);
        PackedView::from_rows(kernel, b, [k, n], row_stride, packed.data.as_mut_slice())?;
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
        let mut packed = Self::zeros(kernel, k, n);
        PackedView::from_columns(kernel, bt, [k, n], row_stride, packed.data.as_mut_slice())?;
        Ok(packed)
    }

    fn zeros(kernel: &GemmF32, k: usize, n: usize) -> Self {
        let data = AlignedVec::zeros(PackedView::len(kernel, k, n));
        Self { data, k, n, nr: kernel.nr(), kernel: kernel.name() }
    }

    /// The same matrix, borrowed.
    pub fn view(&self) -> PackedView<'_> {
        let Self { k, n, nr, kernel, .. } = *self;
        PackedView { data: self.data.as_slice(), k, n, nr, kernel }
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

    /// The element in row `p` and column `j`.
    pub(crate) fn get(&self, p: usize, j: usize) -> f32 {
        self.panel(j - j % self.nr, p)[j % self.nr]
    }

    /// Memory held, in bytes.
    pub fn bytes(&self) -> usize {
        std::mem::size_of_val(self.data.as_slice())
    }

    /// `Ok` if `kernel` packed this.
    pub(crate) fn check_kernel(&self, kernel: &GemmF32) -> Result<(), KernelError> {
        self.view().check_kernel(kernel)
    }

    /// The panel that holds column `first` (a multiple of the panel width), from row `p` on.
    pub(crate) fn panel(&self, first: usize, p: usize) -> &[f32] {
        self.view().panel(first, p)
    }
}

/// A packed matrix in memory of the caller, for matrices that are known only while running. See [`PackedB`].
#[derive(Clone, Copy, Debug)]
pub struct PackedView<'a> {
    data: &'a [f32],
    k: usize,
    n: usize,
    nr: usize,
    kernel: &'static str,
}

impl<'a> PackedView<'a> {
    /// Floats that a packed `[k, n]` matrix takes; memory for it is best aligned to 64 bytes.
    pub fn len(kernel: &GemmF32, k: usize, n: usize) -> usize {
        n.next_multiple_of(kernel.nr()) * k
    }

    /// [`PackedB::from_rows`] into the first [`len`](Self::len) elements of `memory`.
    ///
    /// # Errors
    /// [`KernelError::Size`] if a slice is too short for the shape.
    pub fn from_rows(
        kernel: &GemmF32,
        b: &[f32],
        [k, n]: [usize; 2],
        row_stride: usize,
        memory: &'a mut [f32],
    ) -> Result<Self, KernelError> {
        KernelError::check_least(FAMILY, "row stride of B", row_stride, n)?;
        let needed = crate::epilogue::strided_len(FAMILY, k, n, row_stride)?;
        KernelError::check_least(FAMILY, "length of B", b.len(), needed)?;
        Self::pack(kernel, [k, n], memory, |first, columns, nr, panel| {
            for (p, line) in panel.chunks_exact_mut(nr).enumerate() {
                let from = p * row_stride + first;
                line[..columns].copy_from_slice(&b[from..from + columns]);
                line[columns..].fill(0.0);
            }
        })
    }

    /// [`PackedB::from_columns`] into the first [`len`](Self::len) elements of `memory`.
    ///
    /// # Errors
    /// [`KernelError::Size`] if a slice is too short for the shape.
    pub fn from_columns(
        kernel: &GemmF32,
        bt: &[f32],
        [k, n]: [usize; 2],
        row_stride: usize,
        memory: &'a mut [f32],
    ) -> Result<Self, KernelError> {
        KernelError::check_least(FAMILY, "row stride of B", row_stride, k)?;
        let needed = crate::epilogue::strided_len(FAMILY, n, k, row_stride)?;
        KernelError::check_least(FAMILY, "length of B", bt.len(), needed)?;
        Self::pack(kernel, [k, n], memory, |first, columns, nr, panel| {
            for j in 0..columns {
                let column = &bt[(first + j) * row_stride..][..k];
                for (p, &x) in column.iter().enumerate() {
                    panel[p * nr + j] = x;
                }
            }
            if columns < nr {
                panel.chunks_exact_mut(nr).for_each(|line| line[columns..].fill(0.0));
            }
        })
    }

    fn pack(
        kernel: &GemmF32,
        [k, n]: [usize; 2],
        memory: &'a mut [f32],
        fill: impl Fn(usize, usize, usize, &mut [f32]),
    ) -> Result<Self, KernelError> {
        let (nr, len) = (kernel.nr(), Self::len(kernel, k, n));
        KernelError::check_least(FAMILY, "memory for packed B", memory.len(), len)?;
        let data = &mut memory[..len];
        if k > 0 {
            for (index, panel) in data.chunks_exact_mut(k * nr).enumerate() {
                let first = index * nr;
                fill(first, nr.min(n - first), nr, panel);
            }
        }
        Ok(Self { data, k, n, nr, kernel: kernel.name() })
    }

    /// Rows of B: the length of the sums.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Columns of B and of the output.
    pub fn n(&self) -> usize {
        self.n
    }

    /// `Ok` if `kernel` packed this.
    pub(super) fn check_kernel(&self, kernel: &GemmF32) -> Result<(), KernelError> {
        if self.kernel == kernel.name() {
            Ok(())
        } else {
            Err(KernelError::PackedForOther { packed_for: self.kernel, used_with: kernel.name() })
        }
    }

    /// The panel that holds column `first` (a multiple of the panel width), from row `p` on.
    pub(super) fn panel(&self, first: usize, p: usize) -> &'a [f32] {
        let start = first * self.k + p * self.nr;
        &self.data[start..first * self.k + self.k * self.nr]
    }
}

/// Rows of A, wherever they come from: a matrix, or the pixels of a convolution.
pub(crate) trait RowSource: Sync {
    /// Copies the elements `k` of each row in `rows` to `tile`, one row every [`A_STRIDE`] elements.
    fn pack(&self, isa: VectorIsa, rows: Range<usize>, k: Range<usize>, tile: &mut [f32]);
}

/// Copies a run of any length by vectors, without the call that a slice copy of unknown length makes.
#[inline(always)]
pub(crate) fn copy_run<S: Simd>(s: S, from: &[f32], to: &mut [f32]) {
    assert_eq!(from.len(), to.len());
    let len = from.len();
    if len < S::LANES {
        s.store_tail(to, s.load_tail(from));
        return;
    }
    let mut start = 0;
    while start + S::LANES <= len {
        s.store_slice(&mut to[start..], s.load_slice(&from[start..]));
        start += S::LANES;
    }
    if start < len {
        // The last vector overlaps the one before.
        let start = len - S::LANES;
        s.store_slice(&mut to[start..], s.load_slice(&from[start..]));
    }
}

/// A matrix in memory, element `(i, p)` at `data[i * row_stride + p]`.
pub(crate) struct MatrixRows<'a> {
    pub(crate) data: &'a [f32],
    pub(crate) row_stride: usize,
}

struct PackMatrix<'a> {
    data: &'a [f32],
    row_stride: usize,
    length: usize,
    tile: &'a mut [f32],
}

impl SimdOp for PackMatrix<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (index, line) in self.tile.chunks_exact_mut(A_STRIDE).enumerate() {
            let from = &self.data[index * self.row_stride..][..self.length];
            copy_run(s, from, &mut line[..self.length]);
        }
    }
}

impl RowSource for MatrixRows<'_> {
    fn pack(&self, isa: VectorIsa, rows: Range<usize>, k: Range<usize>, tile: &mut [f32]) {
        let data = &self.data[rows.start * self.row_stride + k.start..];
        let tile = &mut tile[..rows.len() * A_STRIDE];
        isa.run(PackMatrix { data, row_stride: self.row_stride, length: k.len(), tile });
    }
}

/// A matrix whose element `(i, p)` is `data[i * row_stride + p] * scale[i / rows_per_scale * row_stride + p]`: pixels of
/// images with a factor per image and channel.
pub(crate) struct ScaledRows<'a> {
    pub(crate) data: &'a [f32],
    pub(crate) scale: &'a [f32],
    pub(crate) row_stride: usize,
    pub(crate) rows_per_scale: usize,
}

struct PackScaled<'a> {
    data: &'a [f32],
    row_stride: usize,
    scale: &'a [f32],
    tile: &'a mut [f32],
}

impl SimdOp for PackScaled<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { data, row_stride, scale, tile } = self;
        let length = scale.len();
        for (index, line) in tile.chunks_exact_mut(A_STRIDE).enumerate() {
            let from = &data[index * row_stride..][..length];
            for start in (0..length).step_by(S::LANES) {
                let end = (start + S::LANES).min(length);
                let value = s.mul(s.load_tail(&from[start..end]), s.load_tail(&scale[start..end]));
                s.store_tail(&mut line[start..end], value);
            }
        }
    }
}

impl RowSource for ScaledRows<'_> {
    fn pack(&self, isa: VectorIsa, rows: Range<usize>, k: Range<usize>, tile: &mut [f32]) {
        let (mut row, mut tile) = (rows.start, &mut tile[..rows.len() * A_STRIDE]);
        while row < rows.end {
            let image = row / self.rows_per_scale;
            let end = rows.end.min((image + 1) * self.rows_per_scale);
            let (now, rest) = std::mem::take(&mut tile).split_at_mut((end - row) * A_STRIDE);
            let data = &self.data[row * self.row_stride + k.start..];
            let scale = &self.scale[image * self.row_stride..][k.clone()];
            isa.run(PackScaled { data, row_stride: self.row_stride, scale, tile: now });
            (row, tile) = (end, rest);
        }
    }
}
