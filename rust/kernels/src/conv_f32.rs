//! Convolution of NHWC images as a matrix product without an im2col buffer.
//!
//! A row of A is the window of one output pixel; [`gemm_f32`](crate::gemm_f32) asks for it a block at a time, and this
//! module copies the pixels (zeros in the padding) straight from the image. A 1 x 1 convolution without stride and
//! padding reads the image as a matrix.

use std::ops::Range;

use crate::aligned::AlignedVec;
use crate::error::KernelError;
use crate::gemm_f32::micro::A_STRIDE;
use crate::gemm_f32::{
    GemmF32, MatrixRows, Output, PackedB, PackedView, RowSource, ScaledRows, copy_run, product, product_view,
    scratch_len,
};
use crate::geometry::Sliding;
use crate::parallel::Executor;
use crate::simd::{Simd, SimdOp, VectorIsa};
use crate::{Epilogue, Residual};

const FAMILY: &str = "conv_f32";

/// Floats of a cache line: parts of scratch memory start at multiples.
const LINE: usize = 16;

/// How groups are packed: several narrow ones share a matrix with zeros where a channel of one would meet an output of
/// another. Panels are padded to the width of the kernel anyway, so that this costs no products, and windows are copied in
/// longer runs.
///
/// An infinity or NaN in the input spreads over the groups that share a matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Blocks {
    /// Matrices.
    count: usize,
    /// Groups per matrix.
    joined: usize,
    /// Input and output channels of a group, and taps of a window.
    inputs: usize,
    outputs: usize,
    taps: usize,
}

impl Blocks {
    fn new(
        kernel: &GemmF32,
        [out_channels, inputs, taps]: [usize; 3],
        groups: usize,
    ) -> Result<Self, KernelError> {
        if groups == 0 || !out_channels.is_multiple_of(groups) {
            return Err(KernelError::Value {
                kernel: FAMILY,
                what: "groups do not divide the output channels",
            });
        }
        let overflow =
            KernelError::Value { kernel: FAMILY, what: "the weights are larger than the address space" };
        let k = inputs.checked_mul(taps).ok_or(overflow.clone())?;
        k.checked_mul(out_channels).and_then(|n| n.checked_mul(kernel.nr())).ok_or(overflow)?;
        let outputs = out_channels / groups;
        let fits = |joined: &usize| groups.is_multiple_of(*joined) && joined * outputs <= kernel.nr();
        let joined = (1..=groups.min(kernel.nr())).rev().find(fits).unwrap_or(1);
        Ok(Self { count: groups / joined, joined, inputs, outputs, taps })
    }

    fn groups(&self) -> usize {
        self.count * self.joined
    }

    /// Rows and columns of a matrix.
    fn dims(&self) -> [usize; 2] {
        [self.joined * self.inputs * self.taps, self.joined * self.outputs]
    }

    fn weights(&self) -> usize {
        self.groups() * self.outputs * self.inputs * self.taps
    }

    /// The transposed matrix `[outputs, taps, inputs]` of a block into `to`, whose zeros stay where they are.
    fn fill(&self, block: usize, weights: &[f32], to: &mut [f32]) {
        let Self { joined, inputs, outputs, taps, .. } = *self;
        let [k, columns] = self.dims();
        let rows = weights[block * columns * inputs * taps..].chunks_exact((inputs * taps).max(1));
        for (row, (from, to)) in rows.zip(to.chunks_exact_mut(k.max(1))).take(columns).enumerate() {
            let group = row / outputs;
            for (tap, line) in to.chunks_exact_mut(joined * inputs).enumerate() {
                for (channel, value) in line[group * inputs..][..inputs].iter_mut().enumerate() {
                    *value = from[channel * taps + tap];
                }
            }
        }
    }

    /// Whether there is anything to compute.
    fn check(&self, call: &Call<'_>, out: usize) -> Result<bool, KernelError> {
        let Call { sliding, input, epilogue, .. } = *call;
        let channels = self.groups() * self.outputs;
        sliding.check(FAMILY, input.len(), out, channels)?;
        KernelError::check(FAMILY, "input channels", sliding.channels, self.inputs * self.groups())?;
        KernelError::check(FAMILY, "taps", sliding.taps(), self.taps)?;
        let pixels = sliding.out_pixels();
        epilogue.check(FAMILY, pixels, channels)?;
        Ok(pixels > 0 && channels > 0)
    }

    /// Multiplies the windows of a block with its matrix; [`check`](Self::check) has passed.
    fn multiply(
        &self,
        call: &Call<'_>,
        block: usize,
        matrix: PackedView<'_>,
        out: &mut [f32],
        scratch: &mut [f32],
    ) -> Result<(), KernelError> {
        let Call { kernel, sliding, input, epilogue, executor } = *call;
        let (inputs, outputs) = (self.joined * self.inputs, self.joined * self.outputs);
        let (channels, first_channel) = (self.groups() * self.outputs, block * inputs);
        let columns = block * outputs..(block + 1) * outputs;
        let epilogue = Epilogue {
            scale: epilogue.scale.map(|scale| &scale[columns.clone()]),
            bias: epilogue.bias.map(|bias| &bias[columns.clone()]),
            activation: epilogue.activation,
            residual: epilogue.residual.map(|r| Residual { data: &r.data[columns.start..], ..r }),
        };
        let pixels = sliding.out_pixels();
        let output = Output::new(FAMILY, &mut out[columns.start..], pixels, columns.len(), channels)?;
        if is_pointwise(sliding) {
            let data = &input[first_channel.min(input.len())..];
            let rows = MatrixRows { data, row_stride: sliding.channels };
            product_view(kernel, &rows, matrix, &epilogue, output, scratch, executor)
        } else {
            let rows = Windows { input, sliding, first_channel, channels: inputs };
            product_view(kernel, &rows, matrix, &epilogue, output, scratch, executor)
        }
    }
}

/// What the products of a convolution have in common.
#[derive(Clone, Copy)]
struct Call<'a> {
    kernel: &'a GemmF32,
    sliding: &'a Sliding,
    input: &'a [f32],
    epilogue: &'a Epilogue<'a>,
    executor: &'a dyn Executor,
}

/// Convolution weights in the order the kernel reads them: packed matrices of one or several groups.
#[derive(Clone, Debug)]
pub struct PackedConv {
    matrices: Vec<PackedB>,
    blocks: Blocks,
}

impl PackedConv {
    /// Packs `weights[oc, ic / groups, kh, kw]`, the order of ONNX and MNN.
    ///
    /// # Shapes
    /// `[out_channels, in_channels, taps]` with `in_channels` per group and `taps = kh * kw`.
    ///
    /// # Errors
    /// [`KernelError`] if the length differs or `groups` does not divide `out_channels`.
    pub fn new(
        kernel: &GemmF32,
        weights: &[f32],
        dims: [usize; 3],
        groups: usize,
    ) -> Result<Self, KernelError> {
        let blocks = Blocks::new(kernel, dims, groups)?;
        KernelError::check(FAMILY, "length of the weights", weights.len(), blocks.weights())?;
        let [k, n] = blocks.dims();
        let mut reordered = AlignedVec::zeros(n * k);
        let mut matrices = Vec::with_capacity(blocks.count);
        for block in 0..blocks.count {
            blocks.fill(block, weights, reordered.as_mut_slice());
            matrices.push(PackedB::from_columns(kernel, reordered.as_slice(), k, n, k)?);
        }
        Ok(Self { matrices, blocks })
    }

    /// The weights again, in the order of [`new`](Self::new).
    pub fn weights(&self) -> Vec<f32> {
        let Blocks { joined, inputs, outputs, taps, .. } = self.blocks;
        let mut weights = vec![0.0; self.blocks.weights()];
        let rows = weights.chunks_exact_mut((inputs * taps).max(1));
        for (row, to) in rows.enumerate() {
            let (matrix, column) = (&self.matrices[row / (joined * outputs)], row % (joined * outputs));
            for (index, value) in to.iter_mut().enumerate() {
                let (channel, tap) = (index / taps, index % taps);
                *value = matrix.get(tap * joined * inputs + column / outputs * inputs + channel, column);
            }
        }
        weights
    }

    /// Groups.
    pub fn groups(&self) -> usize {
        self.blocks.groups()
    }

    /// Output channels of all groups.
    pub fn out_channels(&self) -> usize {
        self.blocks.outputs * self.groups()
    }

    /// Memory held, in bytes.
    pub fn bytes(&self) -> usize {
        self.matrices.iter().map(PackedB::bytes).sum()
    }
}

/// Rows `[rows, channels, taps]` as `[rows, taps, channels]`: the order in which windows are copied.
pub(crate) fn taps_outside(from: &[f32], [rows, channels, taps]: [usize; 3], to: &mut [f32]) {
    let k = channels * taps;
    for row in 0..rows {
        let (from, to) = (&from[row * k..][..k], &mut to[row * k..][..k]);
        for tap in 0..taps {
            for channel in 0..channels {
                to[tap * channels + channel] = from[channel * taps + tap];
            }
        }
    }
}

/// Scratch that one thread needs, in `f32` elements.
pub fn conv_scratch_len() -> usize {
    scratch_len()
}

/// `out = epilogue(conv(input, weights))`.
///
/// `out[b, y, x, o] = sum over ky, kx, i of input[b, y sh + ky dh - pt, x sw + kx dw - pl, i] w[o, i, ky, kx]`, with
/// zeros outside the image and `i` over the channels of the group of `o`.
///
/// # Shapes
/// `input`: `[batch, height, width, channels]`; `out`: `[batch, out_height, out_width, out_channels]`; the epilogue's
/// vectors: `[out_channels]`; its residual: rows are output pixels. `scratch`: at least [`conv_scratch_len`] elements
/// per thread.
///
/// # Errors
/// [`KernelError`] if a length does not fit or the weights were packed for another kernel.
#[allow(clippy::too_many_arguments, reason = "operands, epilogue, output and resources")]
pub fn conv_f32(
    kernel: &GemmF32,
    sliding: &Sliding,
    input: &[f32],
    weights: &PackedConv,
    epilogue: &Epilogue<'_>,
    out: &mut [f32],
    scratch: &mut [f32],
    executor: &dyn Executor,
) -> Result<(), KernelError> {
    let call = Call { kernel, sliding, input, epilogue, executor };
    if weights.blocks.check(&call, out.len())? {
        for (block, matrix) in weights.matrices.iter().enumerate() {
            weights.blocks.multiply(&call, block, matrix.view(), out, scratch)?;
        }
    }
    Ok(())
}

/// Scratch of [`conv_fresh_f32`] on so many threads, in `f32` elements.
///
/// # Errors
/// Those of [`PackedConv::new`] for these dimensions.
pub fn conv_fresh_scratch_len(
    kernel: &GemmF32,
    dims: [usize; 3],
    groups: usize,
    threads: usize,
) -> Result<usize, KernelError> {
    let [k, n] = Blocks::new(kernel, dims, groups)?.dims();
    let reordered = (n * k).next_multiple_of(LINE);
    let packed = PackedView::len(kernel, k, n).next_multiple_of(LINE);
    Ok(reordered + packed + threads * scratch_len())
}

/// [`conv_f32`] with weights that are known only now: they are packed into `scratch`, group by group.
///
/// # Shapes
/// `weights`, `dims` and `groups`: as for [`PackedConv::new`]. `scratch`: [`conv_fresh_scratch_len`] elements. The rest
/// as for [`conv_f32`].
///
/// # Errors
/// Those of [`PackedConv::new`] and [`conv_f32`].
#[allow(clippy::too_many_arguments, reason = "operands, epilogue, output and resources")]
pub fn conv_fresh_f32(
    kernel: &GemmF32,
    sliding: &Sliding,
    input: &[f32],
    weights: &[f32],
    dims: [usize; 3],
    groups: usize,
    epilogue: &Epilogue<'_>,
    out: &mut [f32],
    scratch: &mut [f32],
    executor: &dyn Executor,
) -> Result<(), KernelError> {
    let blocks = Blocks::new(kernel, dims, groups)?;
    KernelError::check(FAMILY, "length of the weights", weights.len(), blocks.weights())?;
    let needed = conv_fresh_scratch_len(kernel, dims, groups, 1)?;
    KernelError::check_least(FAMILY, "scratch length", scratch.len(), needed)?;
    let [k, n] = blocks.dims();
    let (reordered, scratch) = scratch.split_at_mut((n * k).next_multiple_of(LINE));
    let (packed, scratch) = scratch.split_at_mut(PackedView::len(kernel, k, n).next_multiple_of(LINE));
    let call = Call { kernel, sliding, input, epilogue, executor };
    if blocks.check(&call, out.len())? {
        reordered.fill(0.0);
        for block in 0..blocks.count {
            blocks.fill(block, weights, reordered);
            let matrix = PackedView::from_columns(kernel, reordered, [k, n], k, packed)?;
            blocks.multiply(&call, block, matrix, out, scratch)?;
        }
    }
    Ok(())
}

/// [`conv_f32`] of `input[b, y, x, i] * input_scale[b, i]`, as a channel gate needs it, without a pass over the input.
///
/// # Shapes
/// `input_scale`: `[batch, channels]`; the rest as for [`conv_f32`]. The convolution is pointwise ([`is_pointwise`]) and
/// has one group.
///
/// # Errors
/// Those of [`conv_f32`]; [`KernelError::Value`] for any other convolution.
#[allow(clippy::too_many_arguments, reason = "operands, epilogue, output and resources")]
pub fn conv_scaled_f32(
    kernel: &GemmF32,
    sliding: &Sliding,
    input: &[f32],
    input_scale: &[f32],
    weights: &PackedConv,
    epilogue: &Epilogue<'_>,
    out: &mut [f32],
    scratch: &mut [f32],
    executor: &dyn Executor,
) -> Result<(), KernelError> {
    let channels = weights.out_channels();
    sliding.check(FAMILY, input.len(), out.len(), channels)?;
    let ([b], 1, true) = (&weights.matrices[..], weights.groups(), is_pointwise(sliding)) else {
        let what = "scaled input of a convolution that is grouped or not pointwise";
        return Err(KernelError::Value { kernel: FAMILY, what });
    };
    KernelError::check(FAMILY, "input channels", sliding.channels, weights.blocks.inputs)?;
    KernelError::check(FAMILY, "input scales", input_scale.len(), sliding.batch * sliding.channels)?;
    let pixels = sliding.out_pixels();
    let output = Output::new(FAMILY, out, pixels, channels, channels)?;
    let rows = ScaledRows {
        data: input,
        scale: input_scale,
        row_stride: sliding.channels,
        rows_per_scale: sliding.out_height * sliding.out_width,
    };
    product(kernel, &rows, b, epilogue, output, scratch, executor)
}

/// Whether output pixels are input pixels: a 1 x 1 window without stride and padding.
pub fn is_pointwise(sliding: &Sliding) -> bool {
    let point = |w: &crate::geometry::Window| w.kernel == 1 && w.stride == 1 && w.pad_begin == 0;
    point(&sliding.vertical)
        && point(&sliding.horizontal)
        && sliding.out_height == sliding.height
        && sliding.out_width == sliding.width
}

/// The windows of all output pixels, as rows of a matrix.
pub(crate) struct Windows<'a> {
    pub(crate) input: &'a [f32],
    pub(crate) sliding: &'a Sliding,
    /// First channel of the group, and the channels of a group.
    pub(crate) first_channel: usize,
    pub(crate) channels: usize,
}

impl RowSource for Windows<'_> {
    fn pack(&self, isa: VectorIsa, rows: Range<usize>, k: Range<usize>, tile: &mut [f32]) {
        isa.run(PackWindows { windows: self, rows, k, tile });
    }
}

struct PackWindows<'a> {
    windows: &'a Windows<'a>,
    rows: Range<usize>,
    k: Range<usize>,
    tile: &'a mut [f32],
}

impl SimdOp for PackWindows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { windows, rows, k, tile } = self;
        let g = windows.sliding;
        // Neighbouring taps of a row are one run of memory unless something lies between them.
        let joined = g.horizontal.dilation == 1 && windows.channels == g.channels;
        let (taps, run) = if joined {
            (1, g.horizontal.kernel * windows.channels)
        } else {
            (g.horizontal.kernel, windows.channels)
        };
        let first_run = k.start / run.max(1);
        let first_tap = (first_run / taps, first_run % taps);
        let inside = |start: isize, window: &crate::geometry::Window, length: usize| {
            start >= 0 && start.unsigned_abs() + (window.kernel - 1) * window.dilation < length
        };
        let mut x = rows.start % g.out_width;
        let mut y = rows.start / g.out_width % g.out_height;
        let mut image = rows.start / g.out_width / g.out_height;
        for (_, line) in rows.zip(tile.chunks_exact_mut(A_STRIDE)) {
            let left = g.horizontal.start(x);
            let top = g.vertical.start(y);
            let whole = inside(left, &g.horizontal, g.width) && inside(top, &g.vertical, g.height);
            let mut at = k.start;
            let mut skip = k.start - first_run * run;
            let (mut tap_y, mut tap_x) = first_tap;
            while at < k.end {
                let end = (at + run - skip).min(k.end);
                let line = &mut line[at - k.start..end - k.start];
                let input_y = top + (tap_y * g.vertical.dilation) as isize;
                let input_x = left + (tap_x * g.horizontal.dilation) as isize;
                let row = (image * g.height + input_y.max(0).unsigned_abs()) * g.width;
                if whole {
                    let start = (row + input_x.unsigned_abs()) * g.channels + windows.first_channel + skip;
                    copy_run(s, &windows.input[start..start + line.len()], line);
                } else if input_y < 0 || input_y >= g.height as isize {
                    line.fill(0.0);
                } else {
                    copy_clipped(s, windows, row, input_x, skip, line);
                }
                (at, skip) = (end, 0);
                tap_x += 1;
                if tap_x == taps {
                    (tap_y, tap_x) = (tap_y + 1, 0);
                }
            }
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

/// Copies a run that starts `skip` elements after pixel `x` of the image row at pixel `row`, with zeros where it leaves
/// the row.
#[inline(always)]
fn copy_clipped<S: Simd>(s: S, windows: &Windows<'_>, row: usize, x: isize, skip: usize, line: &mut [f32]) {
    let g = windows.sliding;
    let channels = windows.channels as isize;
    // Elements of the run that lie before and up to the end of the row; one pixel is `channels` elements of it.
    let before = (-x).max(0) * channels - skip as isize;
    let until = (g.width as isize - x).max(0) * channels - skip as isize;
    let begin = before.clamp(0, line.len() as isize).unsigned_abs();
    let end = until.clamp(begin as isize, line.len() as isize).unsigned_abs();
    if begin > 0 {
        line[..begin].fill(0.0);
    }
    if begin < end {
        let pixel = (row as isize + x) * g.channels as isize;
        let start = pixel + (windows.first_channel + skip + begin) as isize;
        let from = &windows.input[start.unsigned_abs()..][..end - begin];
        copy_run(s, from, &mut line[begin..end]);
    }
    if end < line.len() {
        line[end..].fill(0.0);
    }
}

#[cfg(test)]
pub(crate) mod tests;
