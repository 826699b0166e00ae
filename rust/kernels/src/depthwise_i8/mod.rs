//! Depthwise convolution of NHWC int8 images, exact in 32-bit integers, vectorized over channels.
//!
//! For a strip of channels and a segment of output pixels of one row, the pixels of each input column are interleaved
//! once: four rows of the window become the four bytes of a lane (padding becomes the zero point there, and windows
//! higher than four take several groups). Then every output pixel is one dot product of four bytes per lane, window
//! column and group. A column is interleaved once and used by all windows that it lies in.

#[cfg(target_arch = "aarch64")]
mod a64;
mod kernels;
mod micro;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
mod x86;

use std::ops::Range;

use crate::aligned::AlignedBytes;
use crate::error::KernelError;
use crate::gemm_i8::{Output, SharedOutput, Tile, check_zero};
use crate::geometry::Sliding;
use crate::parallel::{Executor, even_part, for_each_task};
use micro::{MOST_STRIP, StripArgs};

pub use kernels::DepthwiseI8;

const FAMILY: &str = "depthwise_i8";

/// Output pixels of a segment.
const SEGMENT: usize = 32;

/// Products below which a task is not worth a thread.
const TASK_PRODUCTS: usize = 1 << 17;

/// Largest number of taps: up to here no sum of `(x - zero) * w` leaves 32 bits.
const MOST_TAPS: usize = 1 << 16;

/// The sums of a segment.
#[repr(C, align(64))]
struct Sums([i32; SEGMENT * MOST_STRIP]);

/// Depthwise weights in the order their kernel reads them.
#[derive(Clone, Debug)]
pub struct PackedDepthwiseI8 {
    data: AlignedBytes,
    /// Where the sum of each channel starts, for whole strips.
    init: Vec<i32>,
    channels: usize,
    /// Height and width of the window.
    window: [usize; 2],
    kernel: &'static str,
}

impl PackedDepthwiseI8 {
    /// Packs `weights[channels, 1, kh, kw]`; products are `(x - input_zero) * w`.
    ///
    /// # Errors
    /// [`KernelError`] if the length is not `channels * kh * kw`, the window has more than 65536 taps or the zero point
    /// is no code.
    pub fn new(
        kernel: &DepthwiseI8,
        weights: &[i8],
        channels: usize,
        [kh, kw]: [usize; 2],
        input_zero: i32,
    ) -> Result<Self, KernelError> {
        let taps = kh.checked_mul(kw).filter(|&taps| taps > 0 && taps <= MOST_TAPS);
        let Some(taps) = taps else {
            return Err(KernelError::Value { kernel: FAMILY, what: "the taps are not 1 to 65536" });
        };
        let wanted = channels.checked_mul(taps).ok_or(KernelError::Value {
            kernel: FAMILY,
            what: "the weights are larger than the address space",
        })?;
        KernelError::check(FAMILY, "length of the weights", weights.len(), wanted)?;
        check_zero(FAMILY, input_zero)?;
        let (strip, groups) = (kernel.strip(), kh.div_ceil(4));
        let strips = channels.div_ceil(strip);
        let strip_bytes = kw * groups * strip * 4;
        let mut data = AlignedBytes::zeros(strips * strip_bytes);
        let mut init = vec![0; strips * strip];
        for (channel, start) in init.iter_mut().enumerate().take(channels) {
            let from = &weights[channel * taps..][..taps];
            let to = &mut data[channel / strip * strip_bytes..][..strip_bytes];
            for (tap, &w) in from.iter().enumerate() {
                let (y, x) = (tap / kw, tap % kw);
                to[((x * groups + y / 4) * strip + channel % strip) * 4 + y % 4] = w as u8;
            }
            let sum: i32 = from.iter().map(|&w| i32::from(w)).sum();
            *start = -(input_zero + kernel.shift()) * sum;
        }
        Ok(Self { data, init, channels, window: [kh, kw], kernel: kernel.name() })
    }

    /// Adds an integer to every sum of each channel: a bias in units of the products. The caller vouches that no sum
    /// leaves 32 bits; [`MOST_OFFSET`](Self::MOST_OFFSET) with at most 32768 taps cannot.
    ///
    /// # Errors
    /// [`KernelError`] if the length is not that of the channels or an offset is larger than the bound.
    pub fn add_offsets(&mut self, offsets: &[i32]) -> Result<(), KernelError> {
        KernelError::check(FAMILY, "length of the offsets", offsets.len(), self.channels)?;
        if offsets.iter().any(|offset| offset.unsigned_abs() > Self::MOST_OFFSET) {
            return Err(KernelError::Value { kernel: FAMILY, what: "an offset is larger than 2^30" });
        }
        for (start, offset) in self.init.iter_mut().zip(offsets) {
            *start = start.wrapping_add(*offset);
        }
        Ok(())
    }

    /// Largest magnitude of an offset.
    pub const MOST_OFFSET: u32 = 1 << 30;

    /// Channels.
    pub fn channels(&self) -> usize {
        self.channels
    }

    /// Memory held, in bytes.
    pub fn bytes(&self) -> usize {
        self.data.len() + size_of_val(&self.init[..])
    }

    /// Scratch that one thread needs for these windows, in bytes.
    pub fn scratch_len(&self, kernel: &DepthwiseI8, sliding: &Sliding) -> usize {
        let h = &sliding.horizontal;
        let outputs = SEGMENT.min(sliding.out_width.max(1));
        let columns = (outputs - 1) * h.stride + h.extent();
        columns * self.window[0].div_ceil(4) * kernel.strip() * 4
    }
}

/// `output = epilogue(sum over ky, kx of (input[b, y sh + ky dh - pt, x sw + kx dw - pl, c] - input_zero) w[c, ky, kx])`,
/// with `padding` in place of pixels outside the image.
///
/// # Shapes
/// `input`: `[batch, height, width, channels]`; the output's rows are pixels, `[batch, out_height, out_width]`, its
/// columns the channels. `scratch`: at least [`PackedDepthwiseI8::scratch_len`] bytes per thread.
///
/// # Errors
/// [`KernelError`] if a length does not fit or the weights were packed for another kernel.
#[allow(clippy::too_many_arguments, reason = "operands, output and resources")]
pub fn depthwise_i8(
    kernel: &DepthwiseI8,
    sliding: &Sliding,
    input: &[i8],
    padding: i8,
    weights: &PackedDepthwiseI8,
    mut output: Output<'_>,
    scratch: &mut [u8],
    executor: &dyn Executor,
) -> Result<(), KernelError> {
    let g = sliding;
    if weights.kernel != kernel.name() {
        return Err(KernelError::PackedForOther { packed_for: weights.kernel, used_with: kernel.name() });
    }
    g.check_input(FAMILY, input.len(), g.channels)?;
    KernelError::check(FAMILY, "channels of the weights", weights.channels, g.channels)?;
    KernelError::check(FAMILY, "height of the window", g.vertical.kernel, weights.window[0])?;
    KernelError::check(FAMILY, "width of the window", g.horizontal.kernel, weights.window[1])?;
    output.check(FAMILY, g.out_pixels(), g.channels)?;
    if g.out_pixels() == 0 || g.channels == 0 {
        return Ok(());
    }
    let per_thread = weights.scratch_len(kernel, g);
    KernelError::check_least(FAMILY, "scratch length", scratch.len(), per_thread)?;
    let rows = g.batch * g.out_height;
    let products = g.out_pixels() * g.channels * g.taps();
    let wanted =
        if executor.threads() > 1 { products.div_ceil(TASK_PRODUCTS).min(4 * executor.threads()) } else { 1 };
    let tasks = wanted.min(rows);
    let job = Job { kernel, g, input, padding: [padding; MOST_STRIP], weights, out: output.shared() };
    for_each_task(executor, tasks, scratch.chunks_exact_mut(per_thread), |task, scratch| {
        for row in even_part(rows, tasks, 1, task) {
            // SAFETY: the output was checked to hold all pixels; each row of pixels is computed by one task.
            unsafe { job.row(row, scratch) };
        }
    });
    Ok(())
}

struct Job<'a> {
    kernel: &'a DepthwiseI8,
    g: &'a Sliding,
    input: &'a [i8],
    padding: [i8; MOST_STRIP],
    weights: &'a PackedDepthwiseI8,
    out: SharedOutput<'a>,
}

impl Job<'_> {
    /// One row of output pixels, counted over the batch.
    ///
    /// # Safety
    /// Nobody else may use this row of the output meanwhile.
    unsafe fn row(&self, row: usize, scratch: &mut [u8]) {
        let strip = self.kernel.strip();
        for channel in (0..self.g.channels).step_by(strip) {
            let count = strip.min(self.g.channels - channel);
            for x in (0..self.g.out_width).step_by(SEGMENT) {
                let pixels = x..(x + SEGMENT).min(self.g.out_width);
                // SAFETY: a part of the row that the caller lends.
                unsafe { self.segment(row, pixels, channel, count, scratch) };
            }
        }
    }

    /// `count` channels from `channel` on, of some pixels of a row.
    ///
    /// # Safety
    /// As [`row`](Self::row).
    unsafe fn segment(
        &self,
        row: usize,
        pixels: Range<usize>,
        channel: usize,
        count: usize,
        scratch: &mut [u8],
    ) {
        let (g, kernel, w) = (self.g, self.kernel, self.weights);
        let strip = kernel.strip();
        let [kh, kw] = w.window;
        let groups = kh.div_ceil(4);
        self.interleave(row, &pixels, channel, count, scratch);
        let mut sums = std::mem::MaybeUninit::<Sums>::uninit();
        let out = sums.as_mut_ptr().cast::<i32>();
        let line = groups * strip * 4;
        debug_assert!(
            scratch.len() >= ((pixels.len() - 1) * g.horizontal.stride + g.horizontal.extent()) * line
        );
        let args = StripArgs {
            columns: scratch.as_ptr(),
            pixel_pitch: g.horizontal.stride * line,
            column_pitch: g.horizontal.dilation * line,
            weights: w.data[channel / strip * kw * line..].as_ptr().cast(),
            init: w.init[channel..].as_ptr(),
            kernel_width: kw,
            groups,
            pixels: pixels.len(),
            out,
        };
        // SAFETY: the kernel exists, so its instructions do. `interleave` filled the columns of all windows; weights and
        // starting values are those of a whole strip, and `sums` holds a strip for each pixel of a segment. The tile is
        // the caller's promise.
        unsafe {
            kernel.sum_strip(&args, count);
            let tile = Tile {
                row: row * g.out_width + pixels.start,
                rows: pixels.len(),
                column: channel,
                columns: count,
            };
            self.out.finish(kernel.isa(), tile, out, strip);
        }
    }

    /// Brings the input columns of all windows of the segment into lanes of four rows.
    fn interleave(
        &self,
        row: usize,
        pixels: &Range<usize>,
        channel: usize,
        count: usize,
        scratch: &mut [u8],
    ) {
        let g = self.g;
        let strip = self.kernel.strip();
        let (image, y) = (row / g.out_height, row % g.out_height);
        let kh = g.vertical.kernel;
        let groups = kh.div_ceil(4);
        let first = g.horizontal.start(pixels.start);
        let columns = (pixels.len() - 1) * g.horizontal.stride + g.horizontal.extent();
        // Columns before, inside and behind the image.
        let before = (-first).clamp(0, columns as isize).unsigned_abs();
        let until = (g.width as isize - first).clamp(before as isize, columns as isize).unsigned_abs();
        let top = g.vertical.start(y);
        let pitch = groups * strip * 4;
        assert!(scratch.len() >= columns * pitch);
        for group in 0..groups {
            let row_of = |i: usize| -> Option<usize> {
                let tap = 4 * group + i;
                let input_y = top + (tap * g.vertical.dilation) as isize;
                let inside = tap < kh && input_y >= 0 && input_y < g.height as isize && before < until;
                let x = (first + before as isize).unsigned_abs();
                inside.then(|| ((image * g.height + input_y.unsigned_abs()) * g.width + x) * g.channels)
            };
            let rows: [Option<usize>; 4] = std::array::from_fn(row_of);
            let unit = self.kernel.unit();
            for at in (0..count).step_by(unit) {
                let lanes = unit.min(count - at);
                let to = &mut scratch[(group * strip + at) * 4..];
                let mut columns_of = |range: Range<usize>, inside: bool| {
                    let rows = rows.map(|row| row.filter(|_| inside).map(|row| row + channel + at));
                    let from = (range.start * pitch).min(to.len());
                    let to = &mut to[from..];
                    self.columns(rows, lanes, range.len(), to, pitch);
                };
                columns_of(0..before, false);
                columns_of(before..until, true);
                columns_of(until..columns, false);
            }
        }
    }

    /// Interleaves neighbouring columns of up to four rows: `rows[i]` is where the first column of a row starts in the
    /// input, `None` for padding.
    fn columns(&self, rows: [Option<usize>; 4], lanes: usize, columns: usize, to: &mut [u8], pitch: usize) {
        let c = self.g.channels;
        if columns == 0 {
            return;
        }
        assert!(to.len() >= (columns - 1) * pitch + 4 * self.kernel.unit());
        let last = rows.iter().flatten().max().map_or(0, |row| row + (columns - 1) * c);
        // Lanes beyond the channels may hold anything, so a whole line is read where the input goes on.
        if last + self.kernel.unit() <= self.input.len() {
            let pointers = rows.map(|row| match row {
                Some(row) => self.input[row..].as_ptr(),
                None => self.padding.as_ptr(),
            });
            let steps = rows.map(|row| if row.is_some() { c } else { 0 });
            // SAFETY: every line lies inside the input, as just checked, or is the padding; `to` has room for all
            // columns.
            unsafe { self.kernel.interleave(pointers, steps, columns, to.as_mut_ptr(), pitch) };
            return;
        }
        for column in 0..columns {
            let mut lines = [self.padding; 4];
            for (line, row) in lines.iter_mut().zip(rows) {
                if let Some(row) = row {
                    line[..lanes].copy_from_slice(&self.input[row + column * c..][..lanes]);
                }
            }
            let pointers = [0, 1, 2, 3].map(|i: usize| lines[i].as_ptr());
            // SAFETY: the lines are whole, and `to` has room for this column.
            unsafe { self.kernel.interleave(pointers, [0; 4], 1, to[column * pitch..].as_mut_ptr(), pitch) };
        }
    }
}
