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
    GemmF32, MatrixRows, Output, PackedB, RowSource, ScaledRows, copy_run, product, scratch_len,
};
use crate::geometry::Sliding;
use crate::parallel::Executor;
use crate::simd::{Simd, SimdOp, VectorIsa};
use crate::{Epilogue, Residual};

const FAMILY: &str = "conv_f32";

/// Convolution weights in the order the kernel reads them, one packed matrix per group.
#[derive(Clone, Debug)]
pub struct PackedConv {
    groups: Vec<PackedB>,
    /// Input channels of a group.
    in_channels: usize,
    /// Output channels of a group.
    out_channels: usize,
    taps: usize,
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
        [out_channels, in_channels, taps]: [usize; 3],
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
        let k = in_channels.checked_mul(taps).ok_or(overflow.clone())?;
        let wanted = k.checked_mul(out_channels).ok_or(overflow)?;
        KernelError::check(FAMILY, "length of the weights", weights.len(), wanted)?;
        let per_group = out_channels / groups;
        // Taps outside, channels inside: the order in which the windows are copied.
        let mut reordered = AlignedVec::zeros(per_group * k);
        let mut packed = Vec::with_capacity(groups);
        for group in 0..groups {
            for row in 0..per_group {
                let from = &weights[(group * per_group + row) * k..][..k];
                let to = &mut reordered.as_mut_slice()[row * k..][..k];
                for tap in 0..taps {
                    for channel in 0..in_channels {
                        to[tap * in_channels + channel] = from[channel * taps + tap];
                    }
                }
            }
            packed.push(PackedB::from_columns(kernel, reordered.as_slice(), k, per_group, k)?);
        }
        Ok(Self { groups: packed, in_channels, out_channels: per_group, taps })
    }

    /// Groups.
    pub fn groups(&self) -> usize {
        self.groups.len()
    }

    /// Output channels of all groups.
    pub fn out_channels(&self) -> usize {
        self.out_channels * self.groups.len()
    }

    /// Memory held, in bytes.
    pub fn bytes(&self) -> usize {
        self.groups.iter().map(PackedB::bytes).sum()
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
    let channels = weights.out_channels();
    sliding.check(FAMILY, input.len(), out.len(), channels)?;
    KernelError::check(
        FAMILY,
        "input channels",
        sliding.channels,
        weights.in_channels * weights.groups.len(),
    )?;
    KernelError::check(FAMILY, "taps", sliding.taps(), weights.taps)?;
    let pixels = sliding.out_pixels();
    epilogue.check(FAMILY, pixels, channels)?;
    if pixels == 0 || channels == 0 {
        return Ok(());
    }
    for (group, b) in weights.groups.iter().enumerate() {
        let columns = group * weights.out_channels..(group + 1) * weights.out_channels;
        let epilogue = Epilogue {
            scale: epilogue.scale.map(|scale| &scale[columns.clone()]),
            bias: epilogue.bias.map(|bias| &bias[columns.clone()]),
            activation: epilogue.activation,
            residual: epilogue.residual.map(|r| Residual { data: &r.data[columns.start..], ..r }),
        };
        let output = Output::new(FAMILY, &mut out[columns.start..], pixels, columns.len(), channels)?;
        let first_channel = group * weights.in_channels;
        if is_pointwise(sliding) {
            let rows =
                MatrixRows { data: &input[first_channel.min(input.len())..], row_stride: sliding.channels };
            product(kernel, &rows, b, &epilogue, output, scratch, executor)?;
        } else {
            let rows = Windows { input, sliding, first_channel, channels: weights.in_channels };
            product(kernel, &rows, b, &epilogue, output, scratch, executor)?;
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
    let ([b], true) = (&weights.groups[..], is_pointwise(sliding)) else {
        let what = "scaled input of a convolution that is grouped or not pointwise";
        return Err(KernelError::Value { kernel: FAMILY, what });
    };
    KernelError::check(FAMILY, "input channels", sliding.channels, weights.in_channels)?;
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
struct Windows<'a> {
    input: &'a [f32],
    sliding: &'a Sliding,
    /// First channel of the group, and the channels of a group.
    first_channel: usize,
    channels: usize,
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
                for (ic, oc, groups) in [(1, 1, 1), (3, 17, 1), (8, 33, 1), (6, 4, 2), (4, 8, 4)] {
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
