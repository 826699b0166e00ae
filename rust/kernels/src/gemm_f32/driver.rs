//! Blocking, threads, and the call of the microkernels.

use std::ops::Range;

use super::kernels::GemmF32;
use super::micro::{A_STRIDE, K_BLOCK, TileArgs, TileEpilogue};
use super::pack::{MatrixRows, PackedB, PackedView, RowSource};
use crate::elementwise::Unary;
use crate::epilogue::{Epilogue, finish_block, is_deferred, strided_len};
use crate::error::KernelError;
use crate::parallel::{Executor, SharedOut, even_part, for_each_task};

const FAMILY: &str = "gemm_f32";

/// Most rows of A that are packed together; a block then takes about 120 KiB, which the second-level cache holds.
const M_BLOCK: usize = 112;

/// Products below which a task is not worth a thread.
const TASK_PRODUCTS: usize = 1 << 18;

/// Scratch that one thread needs, in `f32` elements.
pub fn scratch_len() -> usize {
    M_BLOCK * A_STRIDE
}

/// `out = epilogue(a b)`.
///
/// # Shapes
/// `a`: `m` rows of `b.k()` at distance `a_stride`; `out`: `m` rows of `b.n()` at distance `out_stride`. `scratch`: at
/// least [`scratch_len`] elements; as many threads take part as it has room for.
///
/// # Errors
/// [`KernelError`] if a slice is too short or `b` was packed for another kernel.
#[allow(clippy::too_many_arguments, reason = "two matrices with strides, and what is done with them")]
pub fn gemm_f32(
    kernel: &GemmF32,
    m: usize,
    a: &[f32],
    a_stride: usize,
    b: &PackedB,
    epilogue: &Epilogue<'_>,
    out: &mut [f32],
    out_stride: usize,
    scratch: &mut [f32],
    executor: &dyn Executor,
) -> Result<(), KernelError> {
    gemm_view_f32(kernel, m, a, a_stride, b.view(), epilogue, out, out_stride, scratch, executor)
}

/// [`gemm_f32`] with a matrix that was packed into borrowed memory.
///
/// # Errors
/// Those of [`gemm_f32`].
#[allow(clippy::too_many_arguments, reason = "two matrices with strides, and what is done with them")]
pub fn gemm_view_f32(
    kernel: &GemmF32,
    m: usize,
    a: &[f32],
    a_stride: usize,
    b: PackedView<'_>,
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
    product_view(kernel, &rows, b, epilogue, output, scratch, executor)
}

/// The matrix that a product writes.
pub(crate) struct Output<'a> {
    pub(crate) data: &'a mut [f32],
    pub(crate) rows: usize,
    pub(crate) stride: usize,
}

impl<'a> Output<'a> {
    /// Checks that `data` holds `rows` rows of `columns` at distance `stride`.
    pub(crate) fn new(
        kernel: &'static str,
        data: &'a mut [f32],
        rows: usize,
        columns: usize,
        stride: usize,
    ) -> Result<Self, KernelError> {
        KernelError::check_least(kernel, "row stride of the output", stride, columns)?;
        KernelError::check_least(
            kernel,
            "length of the output",
            data.len(),
            strided_len(kernel, rows, columns, stride)?,
        )?;
        Ok(Self { data, rows, stride })
    }
}

/// How a product is cut into tasks: a grid of blocks of rows and groups of panels.
struct Grid {
    row_parts: usize,
    column_parts: usize,
    mr: usize,
    nr: usize,
    m: usize,
    n: usize,
}

impl Grid {
    fn new(kernel: &GemmF32, m: usize, n: usize, k: usize, threads: usize) -> Self {
        let (mr, nr) = (kernel.mr(), kernel.nr());
        let most_tasks = m.saturating_mul(n).saturating_mul(k.max(1)).div_ceil(TASK_PRODUCTS);
        // Four tasks per thread let fast threads help slow ones.
        let wanted = if threads > 1 { most_tasks.min(4 * threads) } else { 1 };
        let row_tiles = m.div_ceil(mr);
        let row_parts = m.div_ceil(M_BLOCK - M_BLOCK % mr).max(wanted.min(row_tiles));
        let column_parts =
            if row_parts >= wanted { 1 } else { wanted.div_ceil(row_parts).min(n.div_ceil(nr)) };
        Self { row_parts, column_parts, mr, nr, m, n }
    }

    fn tasks(&self) -> usize {
        self.row_parts * self.column_parts
    }

    fn task(&self, index: usize) -> (Range<usize>, Range<usize>) {
        let rows = even_part(self.m, self.row_parts, self.mr, index / self.column_parts);
        let columns = even_part(self.n, self.column_parts, self.nr, index % self.column_parts);
        (rows, columns)
    }
}

/// The product over any source of rows.
pub(crate) fn product<R: RowSource>(
    kernel: &GemmF32,
    rows: &R,
    b: &PackedB,
    epilogue: &Epilogue<'_>,
    output: Output<'_>,
    scratch: &mut [f32],
    executor: &dyn Executor,
) -> Result<(), KernelError> {
    product_view(kernel, rows, b.view(), epilogue, output, scratch, executor)
}

pub(crate) fn product_view<R: RowSource>(
    kernel: &GemmF32,
    rows: &R,
    b: PackedView<'_>,
    epilogue: &Epilogue<'_>,
    output: Output<'_>,
    scratch: &mut [f32],
    executor: &dyn Executor,
) -> Result<(), KernelError> {
    b.check_kernel(kernel)?;
    epilogue.check(FAMILY, output.rows, b.n())?;
    KernelError::check_least(FAMILY, "scratch length", scratch.len(), scratch_len())?;
    if output.rows == 0 || b.n() == 0 {
        return Ok(());
    }
    let threads = executor.threads().min(scratch.len() / scratch_len());
    let grid = Grid::new(kernel, output.rows, b.n(), b.k(), threads);
    let job = Job { kernel, rows, b, epilogue, out_stride: output.stride };
    let out = SharedOut(output.data.as_mut_ptr());
    for_each_task(executor, grid.tasks(), scratch.chunks_exact_mut(scratch_len()), |index, scratch| {
        let (rows, columns) = grid.task(index);
        // SAFETY: `Output::new` checked that the data holds all rows; the tasks of the grid are disjoint blocks, and
        // `for_each_task` runs each once.
        unsafe { job.block(rows, columns, out, scratch) }
    });
    Ok(())
}

struct Job<'a, R> {
    kernel: &'a GemmF32,
    rows: &'a R,
    b: PackedView<'a>,
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
        for part in 0..k_parts {
            let k_range = even_part(k, k_parts, 16, part);
            self.rows.pack(self.kernel.isa(), rows.clone(), k_range.clone(), scratch);
            let first = part == 0;
            let last = part + 1 == k_parts;
            for column in columns.clone().step_by(self.kernel.nr()) {
                let width = self.kernel.nr().min(columns.end - column);
                // SAFETY: the block is the caller's promise; columns and rows stay inside it.
                unsafe { self.panel(&rows, column, width, &k_range, (first, last), out, scratch) };
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
        scratch: &[f32],
    ) {
        let panel = self.b.panel(column, k_range.start);
        debug_assert!(panel.len() >= k_range.len() * self.kernel.nr());
        let tiles = rows.len().div_ceil(self.kernel.mr());
        // Tiles of nearly equal height: the first `extra` ones are one row higher.
        let (height, extra) = (rows.len() / tiles, rows.len() % tiles);
        let mut next = 0;
        for index in 0..tiles {
            let tile_rows = next..next + height + usize::from(index < extra);
            next = tile_rows.end;
            let row = rows.start + tile_rows.start;
            // SAFETY: inside the output, as the caller promises.
            let c = unsafe { out.get().add(row * self.out_stride + column) };
            let args = TileArgs {
                a: scratch[tile_rows.start * A_STRIDE..tile_rows.end * A_STRIDE].as_ptr(),
                b: panel.as_ptr(),
                k: k_range.len(),
                c,
                c_stride: self.out_stride,
                columns: width,
                accumulate: !first,
                epilogue: last.then(|| tile_epilogue(self.epilogue, row, column)),
            };
            // SAFETY: the kernel exists, so its instructions do. A's rows lie in scratch, B's panel holds
            // `k_range.len()` rows, the tile is the caller's promise, and `Epilogue::check` covered the vectors.
            unsafe { self.kernel.tile(tile_rows.len(), width)(&args) };
            if last && is_deferred(self.epilogue) {
                // SAFETY: the tile just written, which nobody else uses.
                unsafe {
                    let size = [tile_rows.len(), width];
                    finish_block(self.kernel.isa(), self.epilogue, (row, column), c, size, self.out_stride);
                }
            }
        }
    }
}

/// The steps that run in registers, for the tile at `(row, column)`.
pub(crate) fn tile_epilogue(epilogue: &Epilogue<'_>, row: usize, column: usize) -> TileEpilogue {
    let from = |vector: Option<&[f32]>| vector.map_or(std::ptr::null(), |v| v[column..].as_ptr());
    let bounds = |f: Unary| if f == Unary::Identity { None } else { f.as_clamp() };
    let mut steps = TileEpilogue {
        scale: from(epilogue.scale),
        bias: from(epilogue.bias),
        clamp: None,
        residual: std::ptr::null(),
        residual_stride: 0,
        then_clamp: None,
    };
    if !is_deferred(epilogue) {
        steps.clamp = bounds(epilogue.activation);
        if let Some(residual) = epilogue.residual {
            steps.residual = residual.data[row * residual.row_stride + column..].as_ptr();
            steps.residual_stride = residual.row_stride;
            steps.then_clamp = bounds(residual.then);
        }
    }
    steps
}
