//! Packing of weights (B) into panels, and of rows of A into chunks.

use std::ops::Range;

use super::dot::{CHUNK, CopyRows, LINE};
use super::kernels::GemmI8;
use crate::aligned::AlignedBytes;
use crate::epilogue::strided_len;
use crate::error::KernelError;

const FAMILY: &str = "gemm_i8";

/// Largest `k`: up to here no sum of `(a - zero) * b` leaves 32 bits.
pub(crate) const MOST_K: usize = 1 << 16;

/// Int8 weights `[n, k]` in the order their kernel reads them, with their column sums folded into the starting values.
#[derive(Clone, Debug)]
pub struct PackedI8 {
    data: AlignedBytes,
    /// Where the sum of each column starts: `-(zero + shift) * column sum`, for whole panels.
    init: Vec<i32>,
    sums: Vec<i32>,
    k: usize,
    n: usize,
    nr: usize,
    panel_bytes: usize,
    kernel: &'static str,
}

impl PackedI8 {
    /// Packs `weights[n, k]`, element `(p, j)` of B at `weights[j * row_stride + p]`: one row per output channel, as
    /// networks store them.
    ///
    /// `input_zero` is the zero point of the activations, for all of them (0 for symmetric ones, and where each row has
    /// its own): the products are `(a - input_zero) * b`.
    ///
    /// # Errors
    /// [`KernelError`] if the slice is too short, `k` is above 65536 or the zero point is outside `-128..=127`.
    pub fn new(
        kernel: &GemmI8,
        weights: &[i8],
        k: usize,
        n: usize,
        row_stride: usize,
        input_zero: i32,
    ) -> Result<Self, KernelError> {
        KernelError::check_least(FAMILY, "row stride of the weights", row_stride, k)?;
        let needed = strided_len(FAMILY, n, k, row_stride)?;
        KernelError::check_least(FAMILY, "length of the weights", weights.len(), needed)?;
        if k > MOST_K {
            return Err(KernelError::Value {
                kernel: FAMILY,
                what: "k is above 65536, the sums may overflow",
            });
        }
        check_zero(FAMILY, input_zero)?;
        let (nr, group) = (kernel.nr(), kernel.geometry.group);
        let panel_bytes = kernel.groups(k) * group * nr;
        let panels = n.div_ceil(nr);
        let mut data = AlignedBytes::zeros(panels * panel_bytes);
        let mut sums = vec![0_i32; n];
        for (j, sum) in sums.iter_mut().enumerate() {
            let panel = &mut data[j / nr * panel_bytes..][..panel_bytes];
            let column = &weights[j * row_stride..][..k];
            *sum = column.iter().map(|&w| i32::from(w)).sum();
            for (index, codes) in column.chunks(group).enumerate() {
                let place = &mut panel[(index * nr + j % nr) * group..][..codes.len()];
                for (to, &code) in place.iter_mut().zip(codes) {
                    *to = code as u8;
                }
            }
        }
        let shift = input_zero + kernel.geometry.a_shift;
        let mut init = vec![0_i32; panels * nr];
        for (start, sum) in init.iter_mut().zip(&sums) {
            *start = shift.wrapping_mul(*sum).wrapping_neg();
        }
        Ok(Self { data, init, sums, k, n, nr, panel_bytes, kernel: kernel.name() })
    }

    /// Adds to the value that the sum of each column starts from.
    pub(crate) fn add_offsets(&mut self, offsets: &[i32]) {
        for (start, offset) in self.init.iter_mut().zip(offsets) {
            *start = start.wrapping_add(*offset);
        }
    }

    /// Length of the sums.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Columns of the output.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Sum of the weights of each column: `[n]`.
    pub fn column_sums(&self) -> &[i32] {
        &self.sums
    }

    /// The kernel that can use this data.
    pub fn kernel_name(&self) -> &'static str {
        self.kernel
    }

    /// Memory held, in bytes.
    pub fn bytes(&self) -> usize {
        self.data.len() + size_of_val(&self.init[..]) + size_of_val(&self.sums[..])
    }

    /// `Ok` if `kernel` packed this.
    pub(super) fn check_kernel(&self, kernel: &GemmI8) -> Result<(), KernelError> {
        if self.kernel == kernel.name() {
            Ok(())
        } else {
            Err(KernelError::PackedForOther { packed_for: self.kernel, used_with: kernel.name() })
        }
    }

    /// The panels from that of column `first` (a multiple of the panel width) on.
    pub(super) fn panels(&self, first: usize) -> &[u8] {
        &self.data[first / self.nr * self.panel_bytes..]
    }

    pub(super) fn panel_bytes(&self) -> usize {
        self.panel_bytes
    }

    /// Starting values of the columns from `first` on, for whole panels.
    pub(super) fn init(&self, first: usize) -> &[i32] {
        &self.init[first..]
    }
}

/// `Ok` if a zero point is a code.
pub(crate) fn check_zero(kernel: &'static str, zero: i32) -> Result<(), KernelError> {
    if i8::try_from(zero).is_ok() {
        Ok(())
    } else {
        Err(KernelError::Value { kernel, what: "a zero point is outside -128..=127" })
    }
}

/// A row of packed A, to be filled.
pub(crate) struct Line<'a> {
    kernel: &'a GemmI8,
    /// Where the row starts in the first chunk.
    start: *mut u8,
    chunk_pitch: usize,
    per_chunk: usize,
    k: usize,
}

impl Line<'_> {
    /// Copies codes to `k = at` and following.
    #[inline]
    pub(crate) fn copy(&mut self, at: usize, codes: &[i8]) {
        // SAFETY: `pieces` stays inside the row, of which `Block` owns the memory; the kernel exists, so its
        // instructions do.
        self.pieces(at, codes.len(), |line, place, range| unsafe {
            (self.kernel.copy)(line, place, codes.as_ptr().add(range.start), range.len());
        });
    }

    /// Sets `len` codes from `k = at` on to one value.
    #[inline]
    pub(crate) fn fill(&mut self, at: usize, len: usize, value: i8) {
        // SAFETY: as in `copy`.
        self.pieces(at, len, |line, place, range| unsafe {
            (self.kernel.fill)(line, place, value, range.len());
        });
    }

    /// Cuts `at..at + len` at the ends of chunks.
    #[inline]
    fn pieces(&self, at: usize, len: usize, mut body: impl FnMut(*mut u8, usize, Range<usize>)) {
        assert!(at + len <= self.k);
        if at + len <= self.per_chunk {
            if len > 0 {
                body(self.start, at, 0..len);
            }
            return;
        }
        let mut done = 0;
        while done < len {
            let k = at + done;
            let (chunk, place) = (k / self.per_chunk, k % self.per_chunk);
            let count = (self.per_chunk - place).min(len - done);
            // SAFETY: the block has a chunk for every `k` of the row.
            let line = unsafe { self.start.add(chunk * self.chunk_pitch) };
            body(line, place, done..done + count);
            done += count;
        }
    }
}

/// Rows of packed A in scratch memory.
pub(crate) struct Block<'a> {
    kernel: &'a GemmI8,
    scratch: &'a mut [u8],
    chunk_pitch: usize,
    /// Codes of a chunk.
    per_chunk: usize,
    k: usize,
}

impl<'a> Block<'a> {
    /// Bytes that `rows` rows of `k` take.
    pub(super) fn bytes(kernel: &GemmI8, rows: usize, k: usize) -> usize {
        let lines = rows.next_multiple_of(kernel.geometry.row_unit);
        let chunks = (kernel.groups(k) * kernel.geometry.group * kernel.geometry.a_bytes).div_ceil(CHUNK);
        chunks * lines * LINE
    }

    pub(super) fn new(kernel: &'a GemmI8, scratch: &'a mut [u8], rows: usize, k: usize) -> Self {
        assert!(scratch.len() >= Self::bytes(kernel, rows, k));
        let chunk_pitch = rows.next_multiple_of(kernel.geometry.row_unit) * LINE;
        Self { kernel, scratch, chunk_pitch, per_chunk: CHUNK / kernel.geometry.a_bytes, k }
    }

    pub(super) fn chunk_pitch(&self) -> usize {
        self.chunk_pitch
    }

    /// Where a row starts in the first chunk, in bytes.
    fn offset(&self, row: usize) -> usize {
        match self.kernel.geometry.row_unit {
            1 => row * LINE,
            unit => row / unit * unit * LINE + row % unit * self.kernel.geometry.group,
        }
    }

    /// A row, to be filled.
    pub(crate) fn line(&mut self, row: usize) -> Line<'_> {
        let offset = self.offset(row).min(self.scratch.len());
        Line {
            kernel: self.kernel,
            start: self.scratch[offset..].as_mut_ptr(),
            chunk_pitch: self.chunk_pitch,
            per_chunk: self.per_chunk,
            k: self.k,
        }
    }

    /// Fills the first `rows` lines from rows of `data` that are `stride` apart, if the kernel can copy them together.
    fn copy_rows(&mut self, data: &[i8], stride: usize, rows: usize) -> bool {
        let Some(copy) = self.kernel.copy_rows.filter(|_| rows > 0) else { return false };
        assert!(data.len() >= (rows - 1) * stride + self.k);
        assert!(
            self.scratch.len() >= Self::bytes(self.kernel, rows, self.k) && self.chunk_pitch >= rows * LINE
        );
        for (chunk, first) in (0..self.k).step_by(self.per_chunk).enumerate() {
            let len = self.per_chunk.min(self.k - first);
            // SAFETY: the kernel exists, so its instructions do; rows and lines were just checked, and a line has room
            // for a chunk and a gap of 64 bytes.
            unsafe {
                let to = self.scratch.as_mut_ptr().add(chunk * self.chunk_pitch);
                let from = data.as_ptr().add(first);
                copy(&CopyRows { to, lines: rows, from, from_step: stride, rows: 1, row_stride: 0, len });
            }
        }
        true
    }

    /// Fills `lines` lines from `first` on with windows: line `i` takes `rows` rows of `len` codes, `row_stride` apart
    /// from `data[i * step]` on. `false`: the kernel cannot, and nothing was done.
    pub(crate) fn copy_windows(
        &mut self,
        [first, lines]: [usize; 2],
        data: &[i8],
        step: usize,
        [rows, row_stride, len]: [usize; 3],
    ) -> bool {
        let Some(copy) = self.kernel.copy_rows else { return false };
        if self.k > self.per_chunk || lines == 0 || rows == 0 {
            return false;
        }
        assert!(rows * len == self.k && data.len() >= (lines - 1) * step + (rows - 1) * row_stride + len);
        assert!((first + lines) * LINE <= self.chunk_pitch && self.scratch.len() >= self.chunk_pitch);
        // SAFETY: the kernel exists, so its instructions do; windows and lines were just checked, and a line has room
        // for a chunk and a gap of 64 bytes.
        unsafe {
            let (to, from) = (self.scratch.as_mut_ptr().add(first * LINE), data.as_ptr());
            copy(&CopyRows { to, lines, from, from_step: step, rows, row_stride, len });
        }
        true
    }

    /// The first row of a tile.
    pub(super) fn tile(&self, row: usize) -> *const u8 {
        self.scratch[self.offset(row).min(self.scratch.len())..].as_ptr()
    }
}

/// Rows of A, wherever they come from: a matrix, or the pixels of a convolution.
pub(crate) trait RowSource: Sync {
    /// Copies the rows of the range to the lines of the block, the first one to line 0.
    fn pack(&self, rows: Range<usize>, block: &mut Block<'_>);
}

/// A matrix in memory, element `(i, p)` at `data[i * row_stride + p]`.
pub(crate) struct MatrixRows<'m> {
    pub(crate) data: &'m [i8],
    pub(crate) row_stride: usize,
    pub(crate) k: usize,
}

impl RowSource for MatrixRows<'_> {
    fn pack(&self, rows: Range<usize>, block: &mut Block<'_>) {
        if let Some(data) = self.data.get(rows.start * self.row_stride..)
            && block.copy_rows(data, self.row_stride, rows.len())
        {
            return;
        }
        for (index, row) in rows.enumerate() {
            block.line(index).copy(0, &self.data[row * self.row_stride..][..self.k]);
        }
    }
}
