//! Convolution of NHWC int8 images as a matrix product without an im2col buffer.
//!
//! A row of A is the window of one output pixel; [`gemm_i8`](crate::gemm_i8) asks for it a block at a time, and this
//! module copies the pixels (a given code in the padding) straight from the image. A 1 x 1 convolution without stride
//! and padding reads the image as a matrix.

#[cfg(test)]
pub(crate) mod tests;

use std::ops::Range;

use crate::error::KernelError;
use crate::gemm_i8::{Block, GemmI8, MatrixRows, Output, PackedI8, RowSource, product, scratch_len};
use crate::geometry::{Sliding, Window};
use crate::parallel::Executor;

const FAMILY: &str = "conv_i8";

/// Int8 convolution weights in the order the kernel reads them, one packed matrix per group.
#[derive(Clone, Debug)]
pub struct PackedConvI8 {
    groups: Vec<PackedI8>,
    /// Input channels of a group.
    in_channels: usize,
    /// Output channels of a group.
    out_channels: usize,
    taps: usize,
}

impl PackedConvI8 {
    /// Packs `weights[oc, ic / groups, kh, kw]`, the order of ONNX and MNN.
    ///
    /// `input_zero` is the zero point of the input: products are `(x - input_zero) * w`. Where scale and zero point are
    /// found at run time, pack with 0 and give an offset to the epilogue.
    ///
    /// # Shapes
    /// `[out_channels, in_channels, taps]` with `in_channels` per group and `taps = kh * kw`.
    ///
    /// # Errors
    /// [`KernelError`] if the length differs, `groups` does not divide `out_channels`, or a window has more than 65536
    /// elements.
    pub fn new(
        kernel: &GemmI8,
        weights: &[i8],
        [out_channels, in_channels, taps]: [usize; 3],
        groups: usize,
        input_zero: i32,
    ) -> Result<Self, KernelError> {
        if groups == 0 || !out_channels.is_multiple_of(groups) {
            return Err(KernelError::Value {
                kernel: FAMILY,
                what: "groups do not divide the output channels",
            });
        }
        let overflow =
            KernelError::Value { kernel: FAMILY, what: "the weights are larger than the address space" };
        let k = in_channels.checked_mul(taps).ok_or(overflow.clone())?;
        let wanted = k.checked_mul(out_channels).ok_or(overflow)?;
        KernelError::check(FAMILY, "length of the weights", weights.len(), wanted)?;
        let per_group = out_channels / groups;
        // Taps outside, channels inside: the order in which the windows are copied.
        let mut reordered = vec![0; per_group * k];
        let mut packed = Vec::with_capacity(groups);
        for group in 0..groups {
            for row in 0..per_group {
                let from = &weights[(group * per_group + row) * k..][..k];
                let to = &mut reordered[row * k..][..k];
                for tap in 0..taps {
                    for channel in 0..in_channels {
                        to[tap * in_channels + channel] = from[channel * taps + tap];
                    }
                }
            }
            packed.push(PackedI8::new(kernel, &reordered, k, per_group, k, input_zero)?);
        }
        Ok(Self { groups: packed, in_channels, out_channels: per_group, taps })
    }

    /// Adds an integer to every sum of each output channel: a bias in units of the products. The sums wrap around at
    /// 32 bits.
    ///
    /// # Errors
    /// [`KernelError`] if the length is not that of the output channels.
    pub fn add_offsets(&mut self, offsets: &[i32]) -> Result<(), KernelError> {
        KernelError::check(FAMILY, "length of the offsets", offsets.len(), self.out_channels())?;
        if self.out_channels > 0 {
            for (group, offsets) in self.groups.iter_mut().zip(offsets.chunks(self.out_channels)) {
                group.add_offsets(offsets);
            }
        }
        Ok(())
    }

    /// Output channels of all groups.
    pub fn out_channels(&self) -> usize {
        self.out_channels * self.groups.len()
    }

    /// Sum of the weights of each output channel.
    pub fn column_sums(&self) -> impl Iterator<Item = i32> + '_ {
        self.groups.iter().flat_map(|group| group.column_sums().iter().copied())
    }

    /// Memory held, in bytes.
    pub fn bytes(&self) -> usize {
        self.groups.iter().map(PackedI8::bytes).sum()
    }

    /// Scratch that one thread needs, in bytes.
    pub fn scratch_len(&self, kernel: &GemmI8) -> usize {
        scratch_len(kernel, self.in_channels * self.taps)
    }
}

/// `output = epilogue(conv(input, weights))`.
///
/// The sums are `sum over ky, kx, i of (input[b, y sh + ky dh - pt, x sw + kx dw - pl, i] - input_zero) w[o, i, ky, kx]`
/// with `padding` in place of pixels outside the image and `i` over the channels of the group of `o`. `padding` is
/// the code of 0: the zero point.
///
/// # Shapes
/// `input`: `[batch, height, width, channels]`; the output's rows are pixels, `[batch, out_height, out_width]`, its
/// columns the output channels, with any row stride. `scratch`: at least [`PackedConvI8::scratch_len`] bytes per
/// thread.
///
/// # Errors
/// [`KernelError`] if a length does not fit or the weights were packed for another kernel.
#[allow(clippy::too_many_arguments, reason = "operands, output and resources")]
pub fn conv_i8(
    kernel: &GemmI8,
    sliding: &Sliding,
    input: &[i8],
    padding: i8,
    weights: &PackedConvI8,
    mut output: Output<'_>,
    scratch: &mut [u8],
    executor: &dyn Executor,
) -> Result<(), KernelError> {
    let channels = weights.out_channels();
    sliding.check_input(FAMILY, input.len(), channels)?;
    KernelError::check(
        FAMILY,
        "input channels",
        sliding.channels,
        weights.in_channels * weights.groups.len(),
    )?;
    KernelError::check(FAMILY, "taps", sliding.taps(), weights.taps)?;
    let pixels = sliding.out_pixels();
    output.check(FAMILY, pixels, channels)?;
    if pixels == 0 || channels == 0 {
        return Ok(());
    }
    for (group, b) in weights.groups.iter().enumerate() {
        let columns = group * weights.out_channels..(group + 1) * weights.out_channels;
        let output = output.columns(columns.start, columns.end);
        let first_channel = group * weights.in_channels;
        if is_pointwise(sliding) {
            let data = &input[first_channel.min(input.len())..];
            let rows = MatrixRows { data, row_stride: sliding.channels, k: b.k() };
            product(kernel, &rows, pixels, b, output, scratch, executor)?;
        } else {
            let rows = Windows { input, padding, sliding, first_channel, channels: weights.in_channels };
            product(kernel, &rows, pixels, b, output, scratch, executor)?;
        }
    }
    Ok(())
}

/// Whether output pixels are input pixels.
fn is_pointwise(sliding: &Sliding) -> bool {
    let point = |w: &Window| w.kernel == 1 && w.stride == 1 && w.pad_begin == 0;
    point(&sliding.vertical)
        && point(&sliding.horizontal)
        && sliding.out_height == sliding.height
        && sliding.out_width == sliding.width
}

/// The windows of all output pixels, as rows of a matrix.
struct Windows<'a> {
    input: &'a [i8],
    padding: i8,
    sliding: &'a Sliding,
    /// First channel of the group, and the channels of a group.
    first_channel: usize,
    channels: usize,
}

impl RowSource for Windows<'_> {
    fn pack(&self, rows: Range<usize>, block: &mut Block<'_>) {
        let g = self.sliding;
        let mut x = rows.start % g.out_width;
        let mut y = rows.start / g.out_width % g.out_height;
        let mut image = rows.start / g.out_width / g.out_height;
        // Neighbouring taps of a row are one run of memory unless something lies between them.
        let joined = g.horizontal.dilation == 1 && self.channels == g.channels;
        let line_length = g.horizontal.kernel * self.channels;
        let interior = g.horizontal.interior(g.width, g.out_width);
        let interior_y = g.vertical.interior(g.height, g.out_height);
        let mut index = 0;
        while index < rows.len() {
            let (left, top) = (g.horizontal.start(x), g.vertical.start(y));
            if joined && interior.contains(&x) && interior_y.contains(&y) {
                // Neighbouring windows that lie inside the image.
                let lines = (interior.end - x).min(rows.len() - index);
                let row = image * g.height + top.unsigned_abs();
                let first = (row * g.width + left.unsigned_abs()) * g.channels;
                let size = [g.vertical.kernel, g.vertical.dilation * g.width * g.channels, line_length];
                let step = g.horizontal.stride * g.channels;
                if block.copy_windows([index, lines], &self.input[first..], step, size) {
                    index += lines;
                    x += lines;
                    if x == g.out_width {
                        (x, y) = (0, y + 1);
                        if y == g.out_height {
                            (y, image) = (0, image + 1);
                        }
                    }
                    continue;
                }
            }
            let mut line = block.line(index);
            let taps = if interior.contains(&x) {
                0..g.horizontal.kernel
            } else {
                g.horizontal.valid_taps(x, g.width)
            };
            for tap_y in 0..g.vertical.kernel {
                let at = tap_y * line_length;
                let input_y = top + (tap_y * g.vertical.dilation) as isize;
                if input_y < 0 || input_y >= g.height as isize || taps.is_empty() {
                    line.fill(at, line_length, self.padding);
                    continue;
                }
                let row = (image * g.height + input_y.unsigned_abs()) * g.width;
                let pixel = |tap: usize| {
                    let input_x = left + (tap * g.horizontal.dilation) as isize;
                    (row + input_x.unsigned_abs()) * g.channels + self.first_channel
                };
                if taps.start > 0 {
                    line.fill(at, taps.start * self.channels, self.padding);
                }
                if joined {
                    let codes = &self.input[pixel(taps.start)..][..taps.len() * self.channels];
                    line.copy(at + taps.start * self.channels, codes);
                } else {
                    for tap in taps.clone() {
                        let codes = &self.input[pixel(tap)..][..self.channels];
                        line.copy(at + tap * self.channels, codes);
                    }
                }
                if taps.end < g.horizontal.kernel {
                    let after = taps.end * self.channels;
                    line.fill(at + after, line_length - after, self.padding);
                }
            }
            index += 1;
            x += 1;
            if x == g.out_width {
                (x, y) = (0, y + 1);
                if y == g.out_height {
                    (y, image) = (0, image + 1);
                }
            }
        }
    }
}
