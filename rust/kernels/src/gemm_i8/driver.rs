//! Blocking, threads, and the call of the microkernels.

use std::ops::Range;

use super::dot::TileArgs;
use super::epilogue::{Output, SharedOutput, Tile};
use super::kernels::GemmI8;
use super::pack::{Block, MatrixRows, PackedI8, RowSource};
use crate::epilogue::strided_len;
use crate::error::KernelError;
use crate::parallel::{Executor, even_part, for_each_task};

const FAMILY: &str = "gemm_i8";

/// Bytes of packed A that are used together; the second-level cache holds them besides a panel of weights.
const BLOCK_BYTES: usize = 192 << 10;

/// Packed weights up to this size are read again from the second-level cache for every block of rows.
const SMALL_WEIGHTS: usize = 256 << 10;

/// Bytes of output that stay in the first-level cache while the panels fill them column by column.
const OUTPUT_BYTES: usize = 24 << 10;

/// Products below which a task is not worth a thread.
const TASK_PRODUCTS: usize = 1 << 20;

/// Elements of the largest tile: 14 x 32, or 3 x 128.
const MOST_TILE: usize = 448;

/// The sums of a tile.
#[repr(C, align(64))]
struct Sums([i32; MOST_TILE]);

/// Rows of A that are packed together.
fn rows_per_block(kernel: &GemmI8, k: usize) -> usize {
    let tile = Block::bytes(kernel, kernel.mr(), k).max(1);
    (BLOCK_BYTES / tile).clamp(1, 32) * kernel.mr()
}

/// Scratch that one thread needs, in bytes.
pub fn scratch_len(kernel: &GemmI8, k: usize) -> usize {
    Block::bytes(kernel, rows_per_block(kernel, k), k).next_multiple_of(64)
}

/// `output = epilogue(a b)`, with `a` of `m` rows of `b.k()` codes at distance `a_stride`.
///
/// `scratch`: at least [`scratch_len`] bytes; as many threads take part as it has room for. It is fastest in
/// [`AlignedBytes`](crate::AlignedBytes).
///
/// # Errors
/// [`KernelError`] if a slice is too short, a parameter of the epilogue is out of range or `b` was packed for another
/// kernel.
#[allow(clippy::too_many_arguments, reason = "two matrices with strides, and what is done with them")]
pub fn gemm_i8(
    kernel: &GemmI8,
    m: usize,
    a: &[i8],
    a_stride: usize,
    b: &PackedI8,
    output: Output<'_>,
    scratch: &mut [u8],
    executor: &dyn Executor,
) -> Result<(), KernelError> {
    KernelError::check_least(FAMILY, "row stride of A", a_stride, b.k())?;
    KernelError::check_least(FAMILY, "length of A", a.len(), strided_len(FAMILY, m, b.k(), a_stride)?)?;
    let rows = MatrixRows { data: a, row_stride: a_stride, k: b.k() };
    output.check(FAMILY, m, b.n())?;
    product(kernel, &rows, m, b, output, scratch, executor)
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
    fn new(kernel: &GemmI8, m: usize, b: &PackedI8, element_bytes: usize, threads: usize) -> Self {
        let (n, k, mr, nr) = (b.n(), b.k(), kernel.mr(), kernel.nr());
        let mut block = rows_per_block(kernel, k);
        if b.bytes() <= SMALL_WEIGHTS {
            block = block.min((OUTPUT_BYTES / (n * element_bytes) / mr).max(1) * mr);
        }
        let most_tasks = m.saturating_mul(n).saturating_mul(k.max(1)).div_ceil(TASK_PRODUCTS);
        // Four tasks per thread let fast threads help slow ones.
        let wanted = if threads > 1 { most_tasks.min(4 * threads) } else { 1 };
        let row_parts = m.div_ceil(block).max(wanted.min(m.div_ceil(mr)));
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

/// The product over any source of rows, into an output that was checked for `m` rows and `b.n()` columns.
pub(crate) fn product<R: RowSource>(
    kernel: &GemmI8,
    rows: &R,
    m: usize,
    b: &PackedI8,
    mut output: Output<'_>,
    scratch: &mut [u8],
    executor: &dyn Executor,
) -> Result<(), KernelError> {
    b.check_kernel(kernel)?;
    let per_thread = scratch_len(kernel, b.k());
    KernelError::check_least(FAMILY, "scratch length", scratch.len(), per_thread)?;
    if m == 0 || b.n() == 0 {
        return Ok(());
    }
    let threads = scratch.len().checked_div(per_thread).unwrap_or_else(|| executor.threads());
    let grid = Grid::new(kernel, m, b, output.element_bytes(), executor.threads().min(threads));
    let job = Job { kernel, rows, b, out: output.shared() };
    let mut rest = scratch;
    let states: Vec<&mut [u8]> = (0..threads)
        .map(|_| {
            let (part, tail) = std::mem::take(&mut rest).split_at_mut(per_thread);
            rest = tail;
            part
        })
        .collect();
    for_each_task(executor, grid.tasks(), states.into_iter(), |index, scratch| {
        let (rows, columns) = grid.task(index);
        // SAFETY: the output was checked to hold all rows; the tasks of the grid are disjoint blocks, and
        // `for_each_task` runs each once.
        unsafe { job.block(rows, columns, scratch) }
    });
    Ok(())
}

struct Job<'a, R> {
    kernel: &'a GemmI8,
    rows: &'a R,
    b: &'a PackedI8,
    out: SharedOutput<'a>,
}

impl<R: RowSource> Job<'_, R> {
    /// Computes one block of the output.
    ///
    /// # Safety
    /// Nobody else may use this block of the output meanwhile.
    unsafe fn block(&self, rows: Range<usize>, columns: Range<usize>, scratch: &mut [u8]) {
        if rows.is_empty() || columns.is_empty() {
            return;
        }
        let mut block = Block::new(self.kernel, scratch, rows.len(), self.b.k());
        self.rows.pack(rows.clone(), &mut block);
        let (nr, panels) = (self.kernel.nr(), self.kernel.wide_panels);
        let mut column = columns.start;
        while column < columns.end {
            let wide =
                (column + panels * nr <= columns.end).then(|| self.kernel.wide_tile(rows.len())).flatten();
            let width = if wide.is_some() { panels * nr } else { nr.min(columns.end - column) };
            // SAFETY: the block is the caller's promise; columns and rows stay inside it.
            unsafe {
                match wide {
                    Some(_) => self.tile(&block, &rows, 0..rows.len(), column, width),
                    None => self.panel(&block, &rows, column, width),
                }
            }
            column += width;
        }
    }

    /// All tiles of a block that use one panel of B.
    ///
    /// # Safety
    /// As [`block`](Self::block).
    unsafe fn panel(&self, block: &Block<'_>, rows: &Range<usize>, column: usize, width: usize) {
        let unit = self.kernel.geometry.row_unit;
        let tiles = rows.len().div_ceil(self.kernel.mr());
        for index in 0..tiles {
            // Tiles of nearly equal height, which start at whole units.
            let part = even_part(rows.len(), tiles, unit, index);
            // SAFETY: inside the block, as the caller promises.
            unsafe { self.tile(block, rows, part, column, width) };
        }
    }

    /// One tile: `part` of the block's rows, `width` columns.
    ///
    /// # Safety
    /// As [`block`](Self::block).
    unsafe fn tile(
        &self,
        block: &Block<'_>,
        rows: &Range<usize>,
        part: Range<usize>,
        column: usize,
        width: usize,
    ) {
        let (kernel, b) = (self.kernel, self.b);
        let mut sums = std::mem::MaybeUninit::<Sums>::uninit();
        let wide = width > kernel.nr();
        let pitch = if wide { width } else { kernel.nr() };
        debug_assert!(part.len() * pitch <= MOST_TILE && part.len() <= kernel.mr());
        let init = b.init(column);
        debug_assert!(init.len() >= pitch);
        let out = sums.as_mut_ptr().cast::<i32>();
        let args = TileArgs {
            a: block.tile(part.start),
            chunk_pitch: block.chunk_pitch(),
            groups: kernel.groups(b.k()),
            b: b.panels(column).as_ptr().cast(),
            panel_pitch: b.panel_bytes(),
            init: init.as_ptr(),
            out,
            out_pitch: pitch,
        };
        let microkernel =
            if wide { kernel.wide_tile(part.len()) } else { Some(kernel.tile(part.len(), width)) };
        let Some(microkernel) = microkernel else { return };
        // SAFETY: the kernel exists, so its instructions do. The block holds all chunks of the rows, B and the starting
        // values whole panels, `sums` a tile of the widest pitch. The kernel writes whole vectors that cover `width`
        // columns of each row, and `finish` reads no more; the tile is the caller's promise.
        unsafe {
            microkernel(&args);
            let tile = Tile { row: rows.start + part.start, rows: part.len(), column, columns: width };
            self.out.finish(kernel.isa(), tile, out, pitch);
        }
    }
}
