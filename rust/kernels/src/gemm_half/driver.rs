//! Blocking, threads, and the call of the microkernels.

use std::ops::Range;

use super::kernels::{A_STRIDE, GemmHalf, K_BLOCK, TileArgs};
use super::pack::PackedHalf;
use crate::epilogue::{Epilogue, finish_block, is_deferred, strided_len};
use crate::error::KernelError;
use crate::gemm_f32::micro::{A_STRIDE as FLOAT_STRIDE, K_BLOCK as FLOAT_BLOCK};
use crate::gemm_f32::{MatrixRows, Output, RowSource, tile_epilogue};
use crate::parallel::{Executor, SharedOut, even_part, for_each_task};

const FAMILY: &str = "gemm_half";

/// Most rows of A that are packed together; a block then takes about 120 KiB, which the second-level cache holds.
const M_BLOCK: usize = 112;

/// Rows that are copied as floats before they are rounded.
const STRIP: usize = 16;

/// Products below which a task is not worth a thread.
const TASK_PRODUCTS: usize = 1 << 19;

/// Scratch that one thread needs, in `f32` elements.
pub fn scratch_len() -> usize {
    STRIP * FLOAT_STRIDE + M_BLOCK * A_STRIDE / 2
}

/// `out = epilogue(half(a) b)`.
///
/// # Shapes
/// `a`: `m` rows of `b.k()` at distance `a_stride`; `out`: `m` rows of `b.n()` at distance `out_stride`. `scratch`: at
/// least [`scratch_len`] elements; as many threads take part as it has room for.
///
/// # Errors
/// [`KernelError`] if a slice is too short or `b` was packed for another kernel.
#[allow(clippy::too_many_arguments, reason = "two matrices with strides, and what is done with them")]
pub fn gemm_half(
    kernel: &GemmHalf,
    m: usize,
    a: &[f32],
    a_stride: usize,
    b: &PackedHalf,
    epilogue: &Epilogue<'_>,
    out: &mut [f32],
    out_stride: usize,
    scratch: &mut [f32],
    executor: &dyn Executor,
) -> Result<(), KernelError> {
    KernelError::check_least(FAMILY, "row stride of A", a_stride, b.k())?;
    KernelError::check_least(FAMILY, "length of A", a.len(), strided_len(FAMILY, m, b.k(), a_stride)?)?;
    let rows = MatrixRows { data: a, row_stride: a_stride };
    let output = Output::new(FAMILY, out, m, b.n(), out_stride)?;
    product(kernel, &rows, b, epilogue, output, scratch, executor)
}

/// The product over any source of rows.
pub(crate) fn product<R: RowSource>(
    kernel: &GemmHalf,
    rows: &R,
    b: &PackedHalf,
    epilogue: &Epilogue<'_>,
    output: Output<'_>,
    scratch: &mut [f32],
    executor: &dyn Executor,
) -> Result<(), KernelError> {
    b.check_kernel(kernel)?;
    let (m, n, k) = (output.rows, b.n(), b.k());
    epilogue.check(FAMILY, m, n)?;
    KernelError::check_least(FAMILY, "scratch length", scratch.len(), scratch_len())?;
    if m == 0 || n == 0 {
        return Ok(());
    }
    let threads = executor.threads().min(scratch.len() / scratch_len());
    let (mr, nr) = (kernel.mr(), kernel.nr());
    let most_tasks = m.saturating_mul(n).saturating_mul(k.max(1)).div_ceil(TASK_PRODUCTS);
    let wanted = if threads > 1 { most_tasks.min(4 * threads) } else { 1 };
    let row_parts = m.div_ceil(M_BLOCK - M_BLOCK % mr).max(wanted.min(m.div_ceil(mr)));
    let column_parts = if row_parts >= wanted { 1 } else { wanted.div_ceil(row_parts).min(n.div_ceil(nr)) };
    let job = Job { kernel, rows, b, epilogue, out_stride: output.stride };
    let out = SharedOut(output.data.as_mut_ptr());
    let tasks = row_parts * column_parts;
    for_each_task(executor, tasks, scratch.chunks_exact_mut(scratch_len()), |index, scratch| {
        let rows = even_part(m, row_parts, mr, index / column_parts);
        let columns = even_part(n, column_parts, nr, index % column_parts);
        // SAFETY: `Output::new` checked that the data holds all rows; the tasks are disjoint blocks, and
        // `for_each_task` runs each once.
        unsafe { job.block(rows, columns, out, scratch) }
    });
    Ok(())
}

struct Job<'a, R> {
    kernel: &'a GemmHalf,
    rows: &'a R,
    b: &'a PackedHalf,
    epilogue: &'a Epilogue<'a>,
    out_stride: usize,
}

impl<R: RowSource> Job<'_, R> {
    /// Computes one block of the output.
    ///
    /// # Safety
    /// `out` must be valid for the whole output, and nobody else may use this block of it meanwhile.
    unsafe fn block(
        &self,
        rows: Range<usize>,
        columns: Range<usize>,
        out: SharedOut<f32>,
        scratch: &mut [f32],
    ) {
        let k = self.b.k();
        let k_parts = k.div_ceil(K_BLOCK).max(1);
        let (floats, halves) = scratch.split_at_mut(STRIP * FLOAT_STRIDE);
        let halves: &mut [u16] = as_halves(halves);
        for part in 0..k_parts {
            let k_range = even_part(k, k_parts, 16, part);
            self.pack(&rows, &k_range, floats, halves);
            let ends = (part == 0, part + 1 == k_parts);
            for column in columns.clone().step_by(self.kernel.nr()) {
                let width = self.kernel.nr().min(columns.end - column);
                // SAFETY: the block is the caller's promise; columns and rows stay inside it.
                unsafe { self.panel(&rows, column, width, &k_range, ends, out, halves) };
            }
        }
    }

    /// Rounds the elements `k_range` of the rows, zeros behind them up to a whole vector.
    fn pack(&self, rows: &Range<usize>, k_range: &Range<usize>, floats: &mut [f32], halves: &mut [u16]) {
        for first in rows.clone().step_by(STRIP) {
            let strip = first..(first + STRIP).min(rows.end);
            let mut at = k_range.start;
            while at < k_range.end {
                let part = at..(at + FLOAT_BLOCK).min(k_range.end);
                self.rows.pack(self.kernel.isa(), strip.clone(), part.clone(), floats);
                for (i, row) in strip.clone().enumerate() {
                    let from = &floats[i * FLOAT_STRIDE..][..part.len()];
                    let to = (row - rows.start) * A_STRIDE + part.start - k_range.start;
                    (self.kernel.round)(from, &mut halves[to..to + part.len()]);
                }
                at = part.end;
            }
            for row in strip {
                let start = (row - rows.start) * A_STRIDE;
                halves[start + k_range.len()..start + k_range.len().next_multiple_of(8)].fill(0);
            }
        }
    }

    /// All tiles of a block that use one panel of B.
    ///
    /// # Safety
    /// As [`block`](Self::block), for `rows` and the `width` columns from `column` on.
    #[allow(clippy::too_many_arguments, reason = "the loop body of `block`")]
    unsafe fn panel(
        &self,
        rows: &Range<usize>,
        column: usize,
        width: usize,
        k_range: &Range<usize>,
        (first, last): (bool, bool),
        out: SharedOut<f32>,
        halves: &[u16],
    ) {
        let tiles = rows.len().div_ceil(self.kernel.mr());
        for index in 0..tiles {
            let part = even_part(rows.len(), tiles, 1, index);
            let row = rows.start + part.start;
            // SAFETY: inside the output, as the caller promises.
            let c = unsafe { out.get().add(row * self.out_stride + column) };
            let args = TileArgs {
                a: halves[part.start * A_STRIDE..part.end * A_STRIDE].as_ptr(),
                b: self.b.panel(column, k_range.start),
                groups: k_range.len().div_ceil(self.kernel.group),
                c,
                c_stride: self.out_stride,
                columns: width,
                accumulate: !first,
                epilogue: last.then(|| tile_epilogue(self.epilogue, row, column)),
            };
            // SAFETY: the kernel exists, so its instructions do. A's rows lie in scratch with zeros behind them, B's
            // panel holds all groups, the tile is the caller's promise, and `Epilogue::check` covered the vectors.
            unsafe { self.kernel.tile(part.len(), width)(&args) };
            if last && is_deferred(self.epilogue) {
                // SAFETY: the tile just written, which nobody else uses.
                unsafe {
                    let size = [part.len(), width];
                    finish_block(self.kernel.isa(), self.epilogue, (row, column), c, size, self.out_stride);
                }
            }
        }
    }
}

/// The memory of floats for twice as many halves.
fn as_halves(floats: &mut [f32]) -> &mut [u16] {
    // SAFETY: every bit pattern is a value of both types, the alignment of `u16` is smaller, and the borrow goes on.
    unsafe { std::slice::from_raw_parts_mut(floats.as_mut_ptr().cast(), 2 * floats.len()) }
}
