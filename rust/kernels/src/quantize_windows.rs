//! Quantization of the windows of a convolution: every output pixel gets codes in a range of its own.
//!
//! The range of a window follows from the ranges of its pixels, which are found once ([`pixel_ranges`]); the codes are
//! then made straight from the image. Codes, scales, offsets and sums are equal bit for bit on every instruction set.

use std::ops::Range as Span;

use crate::epilogue::strided_len;
use crate::error::KernelError;
use crate::geometry::Sliding;
use crate::parallel::{Executor, for_each_chunk};
use crate::quantize_rows::{Codes, Range, RowCodes, RowScheme, parameters};
use crate::simd::{Simd, SimdOp, VectorIsa};

const FAMILY: &str = "quantize_windows";

/// Elements below which a task is not worth a thread.
const TASK_ELEMENTS: usize = 1 << 15;

/// Smallest and largest value of each run of `channels` values of `x`; infinity and minus infinity of none.
///
/// # Errors
/// [`KernelError`] if `x` is not `ranges.len()` runs.
pub fn pixel_ranges(
    isa: VectorIsa,
    x: &[f32],
    channels: usize,
    ranges: &mut [[f32; 2]],
    executor: &dyn Executor,
) -> Result<(), KernelError> {
    let wanted = strided_len(FAMILY, ranges.len(), channels, channels)?;
    KernelError::check(FAMILY, "length of the input", x.len(), wanted)?;
    let per_task = TASK_ELEMENTS.div_ceil(channels.max(1));
    for_each_chunk(executor, ranges, per_task, |task, ranges| {
        isa.run(PixelRanges { x: &x[task * per_task * channels..], channels, ranges });
    });
    Ok(())
}

struct PixelRanges<'a> {
    x: &'a [f32],
    channels: usize,
    ranges: &'a mut [[f32; 2]],
}

impl SimdOp for PixelRanges<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (i, range) in self.ranges.iter_mut().enumerate() {
            let (lo, hi) = Range(&self.x[i * self.channels..][..self.channels]).run(s);
            *range = [lo, hi];
        }
    }
}

/// The windows of an NHWC image, to be quantized.
///
/// A window has `taps * channels` codes: for each block of `block_channels` channels, for each tap, these channels. So
/// block-wise weights `[o, i, kh, kw]` whose blocks are runs of input channels keep their blocks together.
#[derive(Clone, Copy, Debug)]
pub struct Windows<'a> {
    /// Where the windows lie.
    pub sliding: &'a Sliding,
    /// The image.
    pub input: &'a [f32],
    /// From [`pixel_ranges`] for runs of `channels` values: `[pixels, groups]`.
    pub ranges: &'a [[f32; 2]],
    /// How codes are chosen: padding has the code of 0, so that [`RowScheme::Asymmetric`] is refused where there is
    /// any.
    pub scheme: RowScheme,
    /// The group of channels.
    pub group: usize,
    /// Channels of a group.
    pub channels: usize,
    /// Channels of a block: divides `channels`.
    pub block_channels: usize,
}

impl Windows<'_> {
    /// Codes of a window.
    pub fn len(&self) -> usize {
        self.channels * self.sliding.taps()
    }

    /// Whether windows have no codes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Quantizes the windows of some output pixels.
    ///
    /// `out`: as many rows as pixels, with scales and offsets of their own and one sum per block.
    ///
    /// # Errors
    /// [`KernelError`] if a length does not fit.
    pub fn quantize(
        &self,
        isa: VectorIsa,
        pixels: Span<usize>,
        mut out: RowCodes<'_>,
    ) -> Result<(), KernelError> {
        self.check(&pixels, &out)?;
        isa.run(QuantizeWindows { windows: self, pixels, out: &mut out });
        Ok(())
    }

    fn check(&self, pixels: &Span<usize>, out: &RowCodes<'_>) -> Result<(), KernelError> {
        let (g, m, k) = (self.sliding, pixels.len(), self.len());
        g.check_input(FAMILY, self.input.len(), self.channels)?;
        let value = |what| Err(KernelError::Value { kernel: FAMILY, what });
        if self.channels == 0 || !g.channels.is_multiple_of(self.channels) {
            return value("the channels of a group do not divide the channels");
        }
        if self.block_channels == 0 || !self.channels.is_multiple_of(self.block_channels) {
            return value("the channels of a block do not divide those of a group");
        }
        if self.group >= g.channels / self.channels {
            return value("there is no such group");
        }
        if pixels.end > g.out_pixels() {
            return value("there are no such pixels");
        }
        let padded = |w: &crate::geometry::Window| w.pad_begin + w.pad_end > 0;
        if self.scheme == RowScheme::Asymmetric && (padded(&g.vertical) || padded(&g.horizontal)) {
            return value("padding has no code in an asymmetric range without 0");
        }
        let wanted = g.batch * g.height * g.width * (g.channels / self.channels);
        KernelError::check(FAMILY, "length of the ranges", self.ranges.len(), wanted)?;
        KernelError::check_least(FAMILY, "row stride of the codes", out.row_stride, k)?;
        let needed = strided_len(FAMILY, m, k, out.row_stride)?;
        KernelError::check_least(FAMILY, "length of the codes", out.codes.len(), needed)?;
        KernelError::check(FAMILY, "length of the scales", out.scales.len(), m)?;
        KernelError::check(FAMILY, "length of the offsets", out.offsets.len(), m)?;
        let blocks = self.channels / self.block_channels;
        KernelError::check(FAMILY, "length of the sums", out.sums.len(), m * blocks)
    }
}

struct QuantizeWindows<'a, 'b, 'c> {
    windows: &'a Windows<'b>,
    pixels: Span<usize>,
    out: &'a mut RowCodes<'c>,
}

impl SimdOp for QuantizeWindows<'_, '_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { windows: w, pixels, out } = self;
        let (g, k) = (w.sliding, w.len());
        let (groups, blocks) = (g.channels / w.channels, w.channels / w.block_channels);
        let (kernel_h, kernel_w) = (g.vertical.kernel, g.horizontal.kernel);
        // Neighbouring taps of a row are one run of memory unless something lies between them.
        let joined = g.horizontal.dilation == 1 && w.channels == g.channels && blocks == 1;
        for (i, pixel) in pixels.enumerate() {
            let (x, rest) = (pixel % g.out_width, pixel / g.out_width);
            let (y, image) = (rest % g.out_height, rest / g.out_height);
            let (left, top) = (g.horizontal.start(x), g.vertical.start(y));
            let across = g.horizontal.valid_taps(x, g.width);
            let down = g.vertical.valid_taps(y, g.height);
            let at = |tap_y: usize, tap_x: usize| {
                let input_y = (top + (tap_y * g.vertical.dilation) as isize).unsigned_abs();
                let input_x = (left + (tap_x * g.horizontal.dilation) as isize).unsigned_abs();
                (image * g.height + input_y) * g.width + input_x
            };
            let (mut lo, mut hi) = (f32::INFINITY, f32::NEG_INFINITY);
            for tap_y in down.clone() {
                for tap_x in across.clone() {
                    let [l, h] = w.ranges[at(tap_y, tap_x) * groups + w.group];
                    lo = lo.min(l);
                    hi = hi.max(h);
                }
            }
            let p = parameters(w.scheme, (lo, hi));
            out.scales[i] = p.scale;
            out.offsets[i] = p.offset;
            let row = &mut out.codes[i * out.row_stride..][..k];
            for block in 0..blocks {
                let first = w.group * w.channels + block * w.block_channels;
                let mut sum = 0;
                for tap_y in 0..kernel_h {
                    let start = (block * kernel_h + tap_y) * kernel_w * w.block_channels;
                    let line = &mut row[start..start + kernel_w * w.block_channels];
                    if !down.contains(&tap_y) || across.is_empty() {
                        line.fill(p.zero as i8);
                        sum += p.zero * line.len() as i32;
                        continue;
                    }
                    let (from, until) = (across.start * w.block_channels, across.end * w.block_channels);
                    line[..from].fill(p.zero as i8);
                    line[until..].fill(p.zero as i8);
                    sum += p.zero * (line.len() - (until - from)) as i32;
                    if joined {
                        let from_input = at(tap_y, across.start) * g.channels;
                        let x = &w.input[from_input..][..until - from];
                        sum += Codes { p, x, codes: &mut line[from..until] }.run(s);
                    } else {
                        for (tap_x, codes) in
                            across.clone().zip(line[from..until].chunks_exact_mut(w.block_channels))
                        {
                            let x = &w.input[at(tap_y, tap_x) * g.channels + first..][..w.block_channels];
                            sum += Codes { p, x, codes }.run(s);
                        }
                    }
                }
                out.sums[i * blocks + block] = sum;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geometry::Window;
    use crate::parallel::{ScopedThreads, Serial};
    use crate::quantize_rows::{RowQuantizer, quantize_rows};
    use crate::testing::{Guarded, Rng};

    /// The windows as floats, in the order of their codes.
    fn reference(w: &Windows<'_>, pixel: usize) -> Vec<f32> {
        let g = w.sliding;
        let (x, y) = (pixel % g.out_width, pixel / g.out_width % g.out_height);
        let image = pixel / g.out_width / g.out_height;
        let mut row = Vec::new();
        for block in 0..w.channels / w.block_channels {
            for ky in 0..g.vertical.kernel {
                for kx in 0..g.horizontal.kernel {
                    let iy = g.vertical.start(y) + (ky * g.vertical.dilation) as isize;
                    let ix = g.horizontal.start(x) + (kx * g.horizontal.dilation) as isize;
                    let inside = iy >= 0 && ix >= 0 && iy < g.height as isize && ix < g.width as isize;
                    for c in 0..w.block_channels {
                        let channel = w.group * w.channels + block * w.block_channels + c;
                        row.push(if inside {
                            let pixel = (image * g.height + iy as usize) * g.width + ix as usize;
                            w.input[pixel * g.channels + channel]
                        } else {
                            0.0
                        });
                    }
                }
            }
        }
        row
    }

    #[test]
    fn windows_are_quantized_as_rows_of_their_values() {
        let windows = [
            (Window::POINT, Window::new(1, 2, 0)),
            (Window::new(3, 1, 1), Window::new(3, 1, 1)),
            (Window::new(3, 2, 1), Window { dilation: 2, ..Window::new(3, 1, 2) }),
            (Window::new(5, 1, 4), Window::new(7, 3, 6)),
        ];
        for (vertical, horizontal) in windows {
            for (channels, groups, blocks) in
                [(1, 1, 1), (3, 1, 1), (40, 1, 1), (8, 2, 1), (24, 1, 3), (32, 2, 2)]
            {
                let g = Sliding::new([2, 6, 7, channels], vertical, horizontal).unwrap();
                let input = Rng::new(5).floats(2 * 6 * 7 * channels, -1.0, 2.0);
                let per_group = channels / groups;
                for scheme in [RowScheme::Symmetric, RowScheme::ZeroPoint] {
                    for isa in VectorIsa::all_available() {
                        let mut ranges = vec![[0.0; 2]; 2 * 6 * 7 * groups];
                        pixel_ranges(isa, &input, per_group, &mut ranges, &ScopedThreads(2)).unwrap();
                        for group in 0..groups {
                            let w = Windows {
                                sliding: &g,
                                input: &input,
                                ranges: &ranges,
                                scheme,
                                group,
                                channels: per_group,
                                block_channels: per_group / blocks,
                            };
                            compare(isa, &w, blocks);
                        }
                    }
                }
            }
        }
    }

    fn compare(isa: VectorIsa, w: &Windows<'_>, blocks: usize) {
        let (m, k) = (w.sliding.out_pixels(), w.len());
        let run = |work: &mut dyn FnMut(RowCodes<'_>)| {
            let mut codes = Guarded::new(m * (k + 3), 77, 55);
            let (mut scales, mut offsets) = (vec![0.0; m], vec![0.0; m]);
            let mut sums = vec![0; m * blocks];
            let out = RowCodes {
                codes: codes.get_mut(),
                row_stride: k + 3,
                scales: &mut scales,
                offsets: &mut offsets,
                sums: &mut sums,
            };
            work(out);
            codes.check();
            (codes.get().to_vec(), scales, offsets, sums)
        };
        let got = run(&mut |out| w.quantize(isa, 0..m, out).unwrap());
        let floats: Vec<f32> = (0..m).flat_map(|pixel| reference(w, pixel)).collect();
        let how = RowQuantizer { scheme: w.scheme, per_tensor: false, block: k / blocks };
        let want = run(&mut |out| {
            quantize_rows(VectorIsa::Portable, how, &floats, [m, k], k, out, &Serial).unwrap();
        });
        assert_eq!(got, want, "{isa:?} {:?}", w.sliding);
    }

    #[test]
    fn arguments_that_do_not_fit_are_refused() {
        let g = Sliding::new([1, 3, 3, 4], Window::new(3, 1, 1), Window::new(3, 1, 1)).unwrap();
        let input = [0.0; 36];
        let ranges = [[0.0; 2]; 9];
        let good = Windows {
            sliding: &g,
            input: &input,
            ranges: &ranges,
            scheme: RowScheme::ZeroPoint,
            group: 0,
            channels: 4,
            block_channels: 4,
        };
        let run = |w: Windows<'_>, pixels: Span<usize>| {
            let (mut codes, mut scales, mut offsets, mut sums) = ([0; 36 * 9], [0.0; 9], [0.0; 9], [0; 9]);
            let m = pixels.len();
            let out = RowCodes {
                codes: &mut codes,
                row_stride: 36,
                scales: &mut scales[..m],
                offsets: &mut offsets[..m],
                sums: &mut sums[..m],
            };
            w.quantize(VectorIsa::Portable, pixels, out)
        };
        assert!(run(good, 0..9).is_ok() && run(good, 3..5).is_ok());
        assert!(run(good, 8..10).is_err());
        assert!(run(Windows { scheme: RowScheme::Asymmetric, ..good }, 0..9).is_err());
        assert!(run(Windows { channels: 3, ..good }, 0..9).is_err());
        assert!(run(Windows { block_channels: 3, ..good }, 0..9).is_err());
        assert!(run(Windows { group: 1, ..good }, 0..9).is_err());
        assert!(run(Windows { input: &input[1..], ..good }, 0..9).is_err());
        assert!(run(Windows { ranges: &ranges[1..], ..good }, 0..9).is_err());
        let mut short = [[0.0; 2]; 8];
        assert!(pixel_ranges(VectorIsa::Portable, &input, 4, &mut short, &Serial).is_err());
    }
}
