//! Blocking, threads, and the call of the microkernels.

use std::ops::Range;

use super::kernels::GemmW4;
use super::micro::{K_UNIT, TileArgs};
use super::pack::PackedBlocks;
use crate::epilogue::{Epilogue, strided_len};
use crate::error::KernelError;
use crate::gemm_i8::{Dequantize, FloatTile, Tile, check_rows, finish_float};
use crate::parallel::{Executor, SharedOut, even_part, for_each_task};

const FAMILY: &str = "gemm_w4";

/// Products below which a task is not worth a thread.
const TASK_PRODUCTS: usize = 1 << 19;

/// Elements of the largest tile: 12 x 32.
const MOST_TILE: usize = 384;

/// The sums of a tile.
#[repr(C, align(64))]
struct Sums([f32; MOST_TILE]);

/// Rows of activations as [`quantize_rows`](crate::quantize_rows::quantize_rows) makes them, with the block length of the
/// weights.
#[derive(Clone, Copy, Debug)]
pub struct BlockRows<'a> {
    /// Rows.
    pub m: usize,
    /// `m` rows of `k` codes.
    pub codes: &'a [i8],
    /// Codes between rows.
    pub row_stride: usize,
    /// Scales: `[m]`, or one for all rows.
    pub scales: &'a [f32],
    /// Offsets: as long as `scales`; none for symmetric codes.
    pub offsets: Option<&'a [f32]>,
    /// Sums of the codes of each block: `[m, blocks]`.
    pub sums: &'a [i32],
}

/// Scratch that [`gemm_w4`] needs for `m` rows, in bytes: none unless blocks have to be padded to a multiple of eight.
pub fn gemm_w4_scratch_len(m: usize, weights: &PackedBlocks) -> usize {
    if is_padded(weights) { m * weights.blocks() * weights.padded_block() } else { 0 }
}

fn is_padded(weights: &PackedBlocks) -> bool {
    !weights.k().is_multiple_of(K_UNIT)
        || !weights.k().is_multiple_of(weights.block())
        || !weights.block().is_multiple_of(K_UNIT)
}

/// `out = epilogue(rows weights)`: `m` rows of `weights.n()` values at distance `out_stride`.
///
/// `scratch`: at least [`gemm_w4_scratch_len`] bytes.
///
/// # Errors
/// [`KernelError`] if a slice is too short or the weights were packed for another kernel.
#[allow(clippy::too_many_arguments, reason = "operands, epilogue, output and resources")]
pub fn gemm_w4(
    kernel: &GemmW4,
    rows: &BlockRows<'_>,
    weights: &PackedBlocks,
    epilogue: &Epilogue<'_>,
    out: &mut [f32],
    out_stride: usize,
    scratch: &mut [i8],
    executor: &dyn Executor,
) -> Result<(), KernelError> {
    let (m, n, k) = (rows.m, weights.n(), weights.k());
    if weights.kernel_name() != kernel.name() {
        return Err(KernelError::PackedForOther {
            packed_for: weights.kernel_name(),
            used_with: kernel.name(),
        });
    }
    check(rows, weights, epilogue, out.len(), out_stride, scratch.len())?;
    if m == 0 || n == 0 {
        return Ok(());
    }
    let (a, a_pitch) = if is_padded(weights) {
        (&*pad_rows(rows, weights, scratch), weights.blocks() * weights.padded_block())
    } else {
        (rows.codes, rows.row_stride)
    };
    let how = Dequantize {
        row_scale: rows.scales,
        row_offset: rows.offsets,
        row_sum: None,
        column_scale: &[],
        column_offset: None,
        column_sum: Some(weights.column_sums()),
        epilogue: *epilogue,
    };
    let job = Job {
        kernel,
        a,
        a_pitch,
        sums: rows.sums,
        weights,
        how,
        out: SharedOut(out.as_mut_ptr()),
        out_stride,
    };
    let threads = executor.threads();
    let most_tasks = m.saturating_mul(n).saturating_mul(k.max(1)).div_ceil(TASK_PRODUCTS);
    let wanted = if threads > 1 { most_tasks.min(4 * threads) } else { 1 };
    let unit = kernel.nr();
    let column_parts = wanted.min(n.div_ceil(unit));
    let row_parts = wanted.div_ceil(column_parts).min(m.div_ceil(kernel.mr()));
    for_each_task(executor, row_parts * column_parts, (0..threads).map(|_| ()), |task, ()| {
        let rows = even_part(m, row_parts, kernel.mr(), task / column_parts);
        let columns = even_part(n, column_parts, unit, task % column_parts);
        // SAFETY: `check` made sure that the output holds all rows; the tasks are disjoint blocks, each run once.
        unsafe { job.block(rows, columns) }
    });
    Ok(())
}

fn check(
    rows: &BlockRows<'_>,
    weights: &PackedBlocks,
    epilogue: &Epilogue<'_>,
    out: usize,
    out_stride: usize,
    scratch: usize,
) -> Result<(), KernelError> {
    let (m, n, k) = (rows.m, weights.n(), weights.k());
    KernelError::check_least(FAMILY, "row stride of A", rows.row_stride, k)?;
    let needed = strided_len(FAMILY, m, k, rows.row_stride)?;
    KernelError::check_least(FAMILY, "length of A", rows.codes.len(), needed)?;
    check_rows(FAMILY, "length of the row scales", rows.scales.len(), m)?;
    if let Some(offsets) = rows.offsets {
        KernelError::check(FAMILY, "length of the row offsets", offsets.len(), rows.scales.len())?;
    }
    KernelError::check(FAMILY, "length of the block sums", rows.sums.len(), m * weights.blocks())?;
    KernelError::check_least(FAMILY, "row stride of the output", out_stride, n)?;
    KernelError::check_least(FAMILY, "length of the output", out, strided_len(FAMILY, m, n, out_stride)?)?;
    KernelError::check_least(FAMILY, "scratch length", scratch, gemm_w4_scratch_len(m, weights))?;
    epilogue.check(FAMILY, m, n)
}

/// Copies the rows with zeros behind each block.
fn pad_rows<'s>(rows: &BlockRows<'_>, weights: &PackedBlocks, scratch: &'s mut [i8]) -> &'s mut [i8] {
    let (k, block, padded) = (weights.k(), weights.block(), weights.padded_block());
    let pitch = weights.blocks() * padded;
    let scratch = &mut scratch[..rows.m * pitch];
    for (i, to) in scratch.chunks_exact_mut(pitch.max(1)).enumerate() {
        let from = &rows.codes[i * rows.row_stride..][..k];
        for (from, to) in from.chunks(block).zip(to.chunks_exact_mut(padded)) {
            to[..from.len()].copy_from_slice(from);
            to[from.len()..].fill(0);
        }
    }
    scratch
}

struct Job<'a> {
    kernel: &'a GemmW4,
    a: &'a [i8],
    a_pitch: usize,
    sums: &'a [i32],
    weights: &'a PackedBlocks,
    how: Dequantize<'a>,
    out: SharedOut<f32>,
    out_stride: usize,
}

impl Job<'_> {
    /// Computes one block of the output.
    ///
    /// # Safety
    /// Nobody else may use this block of the output meanwhile.
    unsafe fn block(&self, rows: Range<usize>, columns: Range<usize>) {
        let kernel = self.kernel;
        if rows.is_empty() {
            return;
        }
        let nr = kernel.nr();
        let tiles = rows.len().div_ceil(kernel.mr());
        for column in columns.clone().step_by(nr) {
            let width = nr.min(columns.end - column);
            for index in 0..tiles {
                let part = even_part(rows.len(), tiles, 1, index);
                let tile = Tile { row: rows.start + part.start, rows: part.len(), column, columns: width };
                // SAFETY: rows and columns lie inside the block that the caller lends.
                unsafe { self.tile(tile) };
            }
        }
    }

    /// One tile.
    ///
    /// # Safety
    /// As [`block`](Self::block).
    unsafe fn tile(&self, tile: Tile) {
        let (w, pitch) = (self.weights, self.kernel.nr());
        let microkernel = self.kernel.tile(w.is_nibbles(), tile.rows);
        let mut sums = std::mem::MaybeUninit::<Sums>::uninit();
        let acc = sums.as_mut_ptr().cast::<f32>();
        debug_assert!(tile.rows * pitch <= MOST_TILE);
        let args = TileArgs {
            a: self.a[(tile.row * self.a_pitch).min(self.a.len())..].as_ptr(),
            a_pitch: self.a_pitch,
            sums: self.sums[tile.row * w.blocks()..].as_ptr(),
            blocks: w.blocks(),
            units: w.padded_block() / K_UNIT,
            b: w.panels(tile.column).as_ptr(),
            has_offsets: w.has_offsets(),
            zero: w.zero(),
            out: acc,
            out_pitch: pitch,
        };
        // SAFETY: the kernel exists, so its instructions do. `check` covered A, its sums and the output; the packed
        // weights hold whole panels, `sums` a tile; the caller lends the tile.
        unsafe {
            microkernel(&args);
            let to = self.out.get().add(tile.row * self.out_stride + tile.column);
            let float = FloatTile { tile, acc, pitch, to, stride: self.out_stride };
            finish_float::<false>(self.kernel.isa(), &self.how, float);
        }
    }
}
