//! Winograd's convolution F(4x4, 3x3) of NHWC int8 images, exact: the sums of the direct formula, bit for bit.
//!
//! `Y = A^T [ sum over channels of (G g G^T) . (B^T d B) ] A` as in [`winograd_f32`](crate::winograd_f32), with the
//! points 0, 1, -1, 2, -2 and infinity: `B` is then made of integers and `G` of fractions over 4, 6 and 24. With each row of
//! `G` times its denominator both factors are 16-bit integers: `|B^T d B| <= 100 * 128` and `|G g G^T| <= 49 * 128`. The
//! outputs are `(24, 12, 6, 6)` times too large along each axis, so `9 * 2^p` times with `p <= 6`.
//!
//! Sums of products may leave 32 bits, but everything is exact modulo `2^32`: multiplying by the inverse of 9 leaves
//! `2^p Y` modulo `2^32`, and a shift `Y` if `|Y| < 2^25`. A layer is taken only if its weights promise that for every
//! input: `128 sum |w| < 2^25` for each output channel, which holds for up to 227 channels always and for trained weights
//! nearly always.
//!
//! Pairs of 16-bit products per instruction and a quarter of the products: four times the direct sum with 16-bit operands,
//! which is what x86-64 CPUs without VNNI have for full-range codes.

mod kernels;
mod portable;
#[cfg(test)]
mod tests;
mod transform;
#[cfg(target_arch = "x86_64")]
mod x86;

use std::ops::Range;

pub use kernels::WinogradI8;

use crate::aligned::AlignedBytes;
use crate::error::KernelError;
use crate::gemm_i8::dot::{LINE, TileArgs};
use crate::gemm_i8::{Output, SharedOutput, Tile, check_zero};
use crate::geometry::Sliding;
use crate::multiversion::{Level, dispatch};
use crate::parallel::{Executor, even_part, for_each_task};
use crate::winograd_f32::is_winograd;
use transform::{CHUNK_CHANNELS, InputTransform, OutputTransform, Tiling, transform_weights};

const FAMILY: &str = "winograd_i8";

/// Output pixels along a side of a tile.
const OUT: usize = 4;
/// Input pixels along a side of a tile.
const IN: usize = 6;
/// Products per tile and channel.
const POINTS: usize = IN * IN;

/// Largest sum of the magnitudes of an output channel's weights: sums of `128` times as much stay below `2^25`.
const MOST_MAGNITUDE: u64 = (1 << 18) - 1;

/// Bytes of transformed tiles and their sums that are worked on at a time, so that they stay in the second-level cache.
const BLOCK_BYTES: usize = 384 << 10;

/// Neighbouring tiles whose outputs are finished together.
const RUN: usize = 8;

/// Transformed weights of a 3 x 3 convolution.
#[derive(Clone, Debug)]
pub struct PackedWinogradI8 {
    /// `[panels, points, pairs of channels, nr, 2]` of 16 bits.
    data: AlignedBytes,
    /// What is added to each sum, for whole panels.
    init: Vec<i32>,
    in_channels: usize,
    out_channels: usize,
    kernel: WinogradI8,
}

impl PackedWinogradI8 {
    /// Whether the sums are exact for every input: `weights` has `9 * in_channels` codes for each output channel.
    pub fn is_exact(weights: &[i8], in_channels: usize) -> bool {
        let channel = |codes: &[i8]| codes.iter().map(|&w| u64::from(w.unsigned_abs())).sum::<u64>();
        in_channels > 0 && weights.chunks(9 * in_channels).all(|codes| channel(codes) <= MOST_MAGNITUDE)
    }

    /// Transforms and packs `weights[out_channels, in_channels, 3, 3]`.
    ///
    /// `input_zero` is the zero point of the input: products are `(x - input_zero) * w`.
    ///
    /// # Errors
    /// [`KernelError`] if the length differs, the weights are too large ([`is_exact`](Self::is_exact)) or the zero point
    /// is outside `-128..=127`.
    pub fn new(
        kernel: &WinogradI8,
        weights: &[i8],
        out_channels: usize,
        in_channels: usize,
        input_zero: i32,
    ) -> Result<Self, KernelError> {
        let overflow =
            KernelError::Value { kernel: FAMILY, what: "the weights are larger than the address space" };
        let pairs = in_channels.checked_mul(out_channels).ok_or(overflow.clone())?;
        KernelError::check(
            FAMILY,
            "length of the weights",
            weights.len(),
            pairs.checked_mul(9).ok_or(overflow)?,
        )?;
        check_zero(FAMILY, input_zero)?;
        if !weights.is_empty() && !Self::is_exact(weights, in_channels) {
            return Err(KernelError::Value {
                kernel: FAMILY,
                what: "the magnitudes of the weights of an output channel sum up to 2^18 or more",
            });
        }
        let nr = kernel.nr();
        let panels = out_channels.div_ceil(nr);
        let mut packed = Self {
            data: AlignedBytes::default(),
            init: vec![0; panels * nr],
            in_channels,
            out_channels,
            kernel: *kernel,
        };
        let point_bytes = packed.point_bytes();
        packed.data = AlignedBytes::zeros(panels * POINTS * point_bytes);
        for (pair, taps) in weights.as_chunks::<9>().0.iter().enumerate() {
            let (o, i) = (pair / in_channels, pair % in_channels);
            packed.init[o] += taps.iter().map(|&w| i32::from(w)).sum::<i32>();
            for (point, value) in transform_weights(taps).into_iter().enumerate() {
                let place = (o / nr * POINTS + point) * point_bytes + ((i / 2 * nr + o % nr) * 2 + i % 2) * 2;
                packed.data[place..place + 2].copy_from_slice(&value.to_ne_bytes());
            }
        }
        for start in &mut packed.init {
            *start = start.wrapping_mul(input_zero).wrapping_neg();
        }
        Ok(packed)
    }

    /// The kernel that uses this data.
    pub fn kernel(&self) -> &WinogradI8 {
        &self.kernel
    }

    /// Adds an integer to every sum of each output channel; the sums wrap around at 32 bits.
    ///
    /// # Errors
    /// [`KernelError`] if the length is not that of the output channels.
    pub fn add_offsets(&mut self, offsets: &[i32]) -> Result<(), KernelError> {
        KernelError::check(FAMILY, "length of the offsets", offsets.len(), self.out_channels)?;
        for (start, offset) in self.init.iter_mut().zip(offsets) {
            *start = start.wrapping_add(*offset);
        }
        Ok(())
    }

    /// Memory held, in bytes.
    pub fn bytes(&self) -> usize {
        self.data.len() + size_of_val(&self.init[..])
    }

    /// Scratch that one thread needs, in `i32` elements.
    pub fn scratch_len(&self) -> usize {
        self.inputs_len() + self.sums_len() + OUT * OUT * RUN * self.kernel.nr()
    }

    /// Elements of the transformed input, of the sums of a panel.
    fn inputs_len(&self) -> usize {
        POINTS * self.in_channels.div_ceil(CHUNK_CHANNELS) * self.most_tiles() * LINE / 4
    }

    fn sums_len(&self) -> usize {
        POINTS * self.most_tiles() * self.kernel.nr()
    }

    /// Tiles that are transformed together at most.
    fn most_tiles(&self) -> usize {
        let mr = self.kernel.mr();
        let tile = POINTS * (2 * self.in_channels + 4 * self.kernel.nr());
        (BLOCK_BYTES / tile.max(1) / mr).clamp(16_usize.div_ceil(mr), 64 / mr) * mr
    }

    /// Bytes of the weights of a panel at one point.
    fn point_bytes(&self) -> usize {
        self.kernel.pairs(self.in_channels) * self.kernel.nr() * 4
    }
}

/// `output = epilogue(conv(input, weights))`, 3 x 3, no stride, no dilation, one group; the sums are those of
/// [`conv_i8`](crate::conv_i8::conv_i8).
///
/// # Shapes
/// As [`conv_i8`](crate::conv_i8::conv_i8). `scratch`: at least [`PackedWinogradI8::scratch_len`] elements; as many threads
/// take part as it has room for.
///
/// # Errors
/// [`KernelError`] if a length does not fit or the windows are of another kind ([`is_winograd`]).
pub fn winograd_i8(
    sliding: &Sliding,
    input: &[i8],
    padding: i8,
    weights: &PackedWinogradI8,
    mut output: Output<'_>,
    scratch: &mut [i32],
    executor: &dyn Executor,
) -> Result<(), KernelError> {
    let channels = weights.out_channels;
    if !is_winograd(sliding) {
        return Err(KernelError::Value { kernel: FAMILY, what: "the window is not 3 x 3 with stride 1" });
    }
    sliding.check_input(FAMILY, input.len(), channels)?;
    KernelError::check(FAMILY, "input channels", sliding.channels, weights.in_channels)?;
    output.check(FAMILY, sliding.out_pixels(), channels)?;
    let scratch_len = weights.scratch_len();
    KernelError::check_least(FAMILY, "scratch length", scratch.len(), scratch_len)?;
    if sliding.out_pixels() == 0 || channels == 0 || weights.in_channels == 0 {
        return Ok(());
    }
    let tiling =
        Tiling { sliding, rows: sliding.out_height.div_ceil(OUT), columns: sliding.out_width.div_ceil(OUT) };
    let tiles = sliding.batch * tiling.rows * tiling.columns;
    let threads = executor.threads().min(scratch.len() / scratch_len).max(1);
    let panels = channels.div_ceil(weights.kernel.nr());
    // A multiple of the number of threads, unless tiles become too few for a product; then threads share panels.
    let blocks = tiles.div_ceil(weights.most_tiles());
    let blocks = blocks.max(blocks.next_multiple_of(threads).min(tiles.div_ceil(weights.kernel.mr())));
    let parts = if blocks < threads { threads.div_ceil(blocks).min(panels) } else { 1 };
    let job = Job { tiling, input, padding, weights, output: output.shared() };
    for_each_task(executor, blocks * parts, scratch.chunks_exact_mut(scratch_len), |index, scratch| {
        let tiles = even_part(tiles, blocks, 1, index / parts);
        let panels = even_part(panels, parts, 1, index % parts);
        // SAFETY: the output was checked to hold all pixels; the tasks are disjoint tiles or columns of it, and
        // `for_each_task` runs each once.
        unsafe { job.block(tiles, panels, scratch) }
    });
    Ok(())
}

struct Job<'a> {
    tiling: Tiling<'a>,
    input: &'a [i8],
    padding: i8,
    weights: &'a PackedWinogradI8,
    output: SharedOutput<'a>,
}

impl Job<'_> {
    /// Computes some panels of columns of some tiles.
    ///
    /// # Safety
    /// The output exists, and nobody else may use this part of it meanwhile.
    unsafe fn block(&self, tiles: Range<usize>, panels: Range<usize>, scratch: &mut [i32]) {
        let (w, level) = (self.weights, Level::from(self.weights.kernel.isa()));
        let (inputs, rest) = scratch.split_at_mut(w.inputs_len());
        let (sums, exact) = rest.split_at_mut(w.sums_len());
        let inputs = as_halves(inputs);
        let transform = InputTransform {
            tiling: self.tiling,
            input: self.input,
            padding: self.padding,
            tiles: tiles.clone(),
            most: w.most_tiles(),
            to: inputs,
        };
        dispatch(level, transform);
        for panel in panels {
            self.products(panel, tiles.len(), inputs, sums);
            // SAFETY: the caller's promise.
            unsafe { self.finish(panel, tiles.clone(), sums, exact) };
        }
    }

    /// The sums over channels of one panel, for each of the 36 points.
    fn products(&self, panel: usize, tiles: usize, inputs: &[i16], sums: &mut [i32]) {
        let (w, most) = (self.weights, self.weights.most_tiles());
        let (kernel, nr) = (&w.kernel, w.kernel.nr());
        let (chunks, width) = (w.in_channels.div_ceil(CHUNK_CHANNELS), nr.min(w.out_channels - panel * nr));
        let heights = tiles.div_ceil(kernel.mr());
        let zeros = [0_i32; 64];
        for point in 0..POINTS {
            let b = &w.data[(panel * POINTS + point) * w.point_bytes()..][..w.point_bytes()];
            for part in 0..heights {
                let rows = even_part(tiles, heights, 1, part);
                let a = &inputs[(point * chunks * most + rows.start) * (LINE / 2)..];
                let out = &mut sums[(point * most + rows.start) * nr..][..rows.len() * nr];
                debug_assert!(
                    a.len() >= ((chunks - 1) * most + rows.len()) * (LINE / 2) && nr <= zeros.len()
                );
                let args = TileArgs {
                    a: a.as_ptr().cast(),
                    chunk_pitch: most * LINE,
                    groups: kernel.pairs(w.in_channels),
                    b: b.as_ptr().cast(),
                    panel_pitch: 0,
                    init: zeros.as_ptr(),
                    out: out.as_mut_ptr(),
                    out_pitch: nr,
                };
                // SAFETY: the kernel exists, so its instructions do. The transformed input has all chunks of the rows,
                // whole lines of them; `b` is a whole panel, and a tile of whole vectors lies in the sums.
                unsafe { kernel.tile(rows.len(), width)(&args) };
            }
        }
    }

    /// From the sums of a panel to the output.
    ///
    /// # Safety
    /// As [`block`](Self::block).
    unsafe fn finish(&self, panel: usize, tiles: Range<usize>, sums: &[i32], exact: &mut [i32]) {
        let (w, g) = (self.weights, self.tiling.sliding);
        let (nr, most, isa) = (w.kernel.nr(), w.most_tiles(), w.kernel.isa());
        let (column, columns) = (panel * nr, nr.min(w.out_channels - panel * nr));
        let init = &w.init[column..column + nr];
        let mut tile = tiles.start;
        while tile < tiles.end {
            let (image, y, x) = self.tiling.origin(tile);
            let run = RUN.min(tiles.end - tile).min(self.tiling.columns - x / OUT);
            let (slot, to) = (tile - tiles.start, &mut exact[..OUT * OUT * run * nr]);
            if nr.is_multiple_of(16) {
                let transform = OutputTransform::<16> { from: sums, most, nr, slot, run, init, to };
                dispatch(Level::from(isa), transform);
            } else {
                let transform = OutputTransform::<8> { from: sums, most, nr, slot, run, init, to };
                dispatch(Level::from(isa), transform);
            }
            for i in 0..OUT.min(g.out_height - y) {
                let row = (image * g.out_height + y + i) * g.out_width + x;
                let rows = (OUT * run).min(g.out_width - x);
                let acc = exact[i * OUT * run * nr..][..rows * nr].as_ptr();
                // SAFETY: pixels and columns that the caller lends; `exact` holds their sums.
                unsafe { self.output.finish(isa, Tile { row, rows, column, columns }, acc, nr) };
            }
            tile += run;
        }
    }
}

/// The same memory as 16-bit elements.
fn as_halves(words: &mut [i32]) -> &mut [i16] {
    // SAFETY: an `i32` is two `i16` without padding, of stricter alignment; every value is one of the other type.
    unsafe { std::slice::from_raw_parts_mut(words.as_mut_ptr().cast(), 2 * words.len()) }
}
