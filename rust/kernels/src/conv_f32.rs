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
pub(crate) mod tests {
    use super::*;
    use crate::elementwise::Unary;
    use crate::geometry::Window;
    use crate::parallel::{ScopedThreads, Serial};
    use crate::testing::{Guarded, Rng, assert_close};

    /// The formula of [`conv_f32`] in plain loops, without epilogue.
    pub(crate) fn reference(
        g: &Sliding,
        input: &[f32],
        weights: &[f32],
        oc: usize,
        groups: usize,
    ) -> Vec<f32> {
        let (ic_group, oc_group) = (g.channels / groups, oc / groups);
        let mut out = Vec::new();
        for b in 0..g.batch {
            for y in 0..g.out_height {
                for x in 0..g.out_width {
                    for o in 0..oc {
                        let mut sum = 0.0_f64;
                        for ky in 0..g.vertical.kernel {
                            for kx in 0..g.horizontal.kernel {
                                let iy = g.vertical.start(y) + (ky * g.vertical.dilation) as isize;
                                let ix = g.horizontal.start(x) + (kx * g.horizontal.dilation) as isize;
                                if iy < 0 || ix < 0 || iy >= g.height as isize || ix >= g.width as isize {
                                    continue;
                                }
                                let pixel = (b * g.height + iy as usize) * g.width + ix as usize;
                                for i in 0..ic_group {
                                    let tap = ky * g.horizontal.kernel + kx;
                                    let w = weights[(o * ic_group + i) * g.taps() + tap];
                                    let v = input[pixel * g.channels + o / oc_group * ic_group + i];
                                    sum += f64::from(w) * f64::from(v);
                                }
                            }
                        }
                        out.push(sum as f32);
                    }
                }
            }
        }
        out
    }

    fn check(kernel: &GemmF32, g: &Sliding, oc: usize, groups: usize, threads: usize) {
        let mut rng = Rng::new(7);
        let ic = g.channels / groups;
        let input = rng.floats(g.batch * g.height * g.width * g.channels, -1.0, 1.0);
        let weights = rng.floats(oc * ic * g.taps(), -1.0, 1.0);
        let (scale, bias) = (rng.floats(oc, 0.5, 1.5), rng.floats(oc, -1.0, 1.0));
        let residual = rng.floats(g.out_pixels() * oc, -1.0, 1.0);
        let epilogue = Epilogue {
            scale: Some(&scale),
            bias: Some(&bias),
            activation: Unary::Identity,
            residual: Some(Residual { data: &residual, row_stride: oc, then: Unary::Relu }),
        };
        let packed = PackedConv::new(kernel, &weights, [oc, ic, g.taps()], groups).unwrap();
        let mut out = Guarded::new(g.out_pixels() * oc, f32::NAN, -3.0);
        let mut scratch = vec![f32::NAN; threads * conv_scratch_len()];
        let executor: &dyn Executor = if threads == 1 { &Serial } else { &ScopedThreads(threads) };
        conv_f32(kernel, g, &input, &packed, &epilogue, out.get_mut(), &mut scratch, executor).unwrap();
        out.check();
        assert_eq!(packed.weights(), weights);
        let mut fresh = Guarded::new(g.out_pixels() * oc, f32::NAN, -3.0);
        let dims = [oc, ic, g.taps()];
        let mut scratch = vec![f32::NAN; conv_fresh_scratch_len(kernel, dims, groups, threads).unwrap()];
        let call = (&mut scratch[..], fresh.get_mut());
        conv_fresh_f32(kernel, g, &input, &weights, dims, groups, &epilogue, call.1, call.0, executor)
            .unwrap();
        fresh.check();
        assert_eq!(fresh.get(), out.get(), "packed now and before");
        let sums = reference(g, &input, &weights, oc, groups);
        let want: Vec<f32> = sums
            .iter()
            .enumerate()
            .map(|(i, &sum)| {
                epilogue.reference(sum, i / oc, i % oc, |f, x| if f == Unary::Relu { x.max(0.0) } else { x })
            })
            .collect();
        let what = format!("{kernel:?} {g:?} oc {oc} groups {groups}");
        assert_close(out.get(), &want, 2e-5, 1e-5, &what);
    }

    #[test]
    fn every_window_channel_count_and_group_count_is_right() {
        let window = |kernel, stride, dilation, pad_begin, pad_end| Window {
            kernel,
            stride,
            dilation,
            pad_begin,
            pad_end,
        };
        let windows = [
            (window(1, 1, 1, 0, 0), window(1, 1, 1, 0, 0)),
            (window(1, 2, 1, 0, 0), window(1, 2, 1, 0, 0)),
            (window(3, 1, 1, 1, 1), window(3, 1, 1, 1, 1)),
            (window(3, 2, 1, 1, 0), window(3, 2, 1, 0, 1)),
            (window(3, 1, 2, 2, 2), window(3, 1, 3, 3, 0)),
            (window(7, 2, 1, 3, 3), window(7, 2, 1, 3, 3)),
            (window(1, 1, 1, 0, 0), window(5, 1, 1, 2, 2)),
            (window(2, 3, 1, 4, 4), window(3, 4, 1, 6, 5)),
        ];
        for kernel in GemmF32::all_available() {
            for (vertical, horizontal) in windows {
                for (ic, oc, groups) in
                    [(1, 1, 1), (3, 17, 1), (8, 33, 1), (6, 4, 2), (4, 8, 4), (24, 36, 12)]
                {
                    let g = Sliding::new([2, 7, 9, ic], vertical, horizontal).unwrap();
                    check(&kernel, &g, oc, groups, 1);
                }
            }
        }
    }

    #[test]
    fn scaled_inputs_are_products() {
        for kernel in GemmF32::all_available() {
            for (batch, pixels, ic, oc) in [(1, 49, 300, 20), (3, 7, 17, 33), (2, 130, 32, 16)] {
                let g = Sliding::new([batch, 1, pixels, ic], Window::POINT, Window::POINT).unwrap();
                let mut rng = Rng::new(3);
                let input = rng.floats(batch * pixels * ic, -1.0, 1.0);
                let scale = rng.floats(batch * ic, 0.0, 1.0);
                let weights = rng.floats(oc * ic, -1.0, 1.0);
                let packed = PackedConv::new(&kernel, &weights, [oc, ic, 1], 1).unwrap();
                let product = |(i, x): (usize, &f32)| x * scale[i / (pixels * ic) * ic + i % ic];
                let scaled: Vec<f32> = input.iter().enumerate().map(product).collect();
                let want = reference(&g, &scaled, &weights, oc, 1);
                let mut out = Guarded::new(batch * pixels * oc, f32::NAN, -3.0);
                let mut scratch = vec![f32::NAN; 2 * conv_scratch_len()];
                let (epilogue, threads) = (Epilogue::default(), ScopedThreads(2));
                conv_scaled_f32(
                    &kernel,
                    &g,
                    &input,
                    &scale,
                    &packed,
                    &epilogue,
                    out.get_mut(),
                    &mut scratch,
                    &threads,
                )
                .unwrap();
                out.check();
                assert_close(out.get(), &want, 2e-5, 1e-5, &format!("{kernel:?} {g:?}"));
            }
            let window = Window::new(3, 1, 1);
            let g = Sliding::new([1, 4, 4, 2], window, window).unwrap();
            let packed = PackedConv::new(&kernel, &[0.0; 18], [1, 2, 9], 1).unwrap();
            let (mut out, mut scratch) = ([0.0; 16], vec![0.0; conv_scratch_len()]);
            let epilogue = Epilogue::default();
            let refused = conv_scaled_f32(
                &kernel,
                &g,
                &[0.0; 32],
                &[0.0; 2],
                &packed,
                &epilogue,
                &mut out,
                &mut scratch,
                &Serial,
            );
            assert!(refused.is_err());
        }
    }

    #[test]
    fn blocks_of_k_cut_windows_anywhere() {
        for kernel in GemmF32::all_available() {
            for ic in [40, 67, 129] {
                let g = Sliding::new([1, 5, 6, ic], Window::new(3, 1, 1), Window::new(3, 1, 1)).unwrap();
                check(&kernel, &g, 20, 1, 1);
                let dilated = Window { dilation: 2, ..Window::new(3, 1, 2) };
                check(&kernel, &Sliding::new([1, 5, 6, ic], dilated, dilated).unwrap(), 20, 1, 3);
            }
        }
    }

    #[test]
    fn arguments_that_do_not_fit_are_refused() {
        let kernel = GemmF32::new(VectorIsa::Portable);
        let packed = PackedConv::new(&kernel, &[0.0; 18], [2, 1, 9], 1).unwrap();
        let g = Sliding::new([1, 4, 4, 1], Window::new(3, 1, 1), Window::new(3, 1, 1)).unwrap();
        let mut scratch = vec![0.0; conv_scratch_len()];
        let epilogue = Epilogue::default();
        let mut run = |g: &Sliding, input: usize, out: usize| {
            let (input, mut out) = (vec![0.0; input], vec![0.0; out]);
            conv_f32(&kernel, g, &input, &packed, &epilogue, &mut out, &mut scratch, &Serial)
        };
        assert!(run(&g, 16, 32).is_ok());
        assert!(run(&g, 15, 32).is_err() && run(&g, 16, 31).is_err());
        assert!(run(&Sliding { vertical: Window::new(2, 1, 1), ..g }, 16, 32).is_err());
        let zero_stride = Sliding { vertical: Window { stride: 0, ..g.vertical }, ..g };
        assert!(run(&zero_stride, 16, 32).is_err());
        assert!(PackedConv::new(&kernel, &[0.0; 18], [2, 1, 9], 3).is_err());
    }
}
