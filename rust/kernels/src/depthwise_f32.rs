//! Depthwise convolution of NHWC images, vectorized over channels.
//!
//! A tile is up to eight output pixels of one row and one vector of channels: the weights of a tap are loaded once per
//! tile, the pixels are operands of the multiply-adds. Windows that reach into the padding run one pixel at a time
//! over the taps that exist.

use std::ops::Range;

use crate::Epilogue;
use crate::aligned::AlignedVec;
use crate::epilogue::{finish_block, strided_len};
use crate::error::KernelError;
use crate::geometry::Sliding;
use crate::parallel::{Executor, for_each_chunk};
use crate::simd::{Simd, SimdOp, VectorIsa};

const FAMILY: &str = "depthwise_f32";

/// Multiply-adds below which a task is not worth a thread.
const TASK_PRODUCTS: usize = 1 << 16;

/// Depthwise weights in the order `[taps, channels]`.
#[derive(Clone, Debug)]
pub struct PackedDepthwise {
    data: AlignedVec,
    channels: usize,
    taps: usize,
}

impl PackedDepthwise {
    /// Packs `weights[channels, 1, kh, kw]`, `taps = kh * kw`.
    ///
    /// # Errors
    /// [`KernelError::Size`] if the length is not `channels * taps`.
    pub fn new(weights: &[f32], channels: usize, taps: usize) -> Result<Self, KernelError> {
        let wanted = strided_len(FAMILY, channels, taps, taps)?;
        KernelError::check(FAMILY, "length of the weights", weights.len(), wanted)?;
        let mut data = AlignedVec::zeros(wanted);
        for (tap, line) in data.as_mut_slice().chunks_exact_mut(channels.max(1)).enumerate() {
            for (channel, x) in line.iter_mut().enumerate() {
                *x = weights[channel * taps + tap];
            }
        }
        Ok(Self { data, channels, taps })
    }
}

/// `out[b, y, x, c] = epilogue(sum over ky, kx of input[b, y sh + ky dh - pt, x sw + kx dw - pl, c] w[c, ky, kx])`,
/// with zeros outside the image.
///
/// # Shapes
/// `input`: `[batch, height, width, channels]`; `out`: `[batch, out_height, out_width, channels]`; the epilogue's
/// vectors: `[channels]`; its residual: rows are output pixels.
///
/// # Errors
/// [`KernelError`] if a length does not fit.
pub fn depthwise_f32(
    isa: VectorIsa,
    sliding: &Sliding,
    input: &[f32],
    weights: &PackedDepthwise,
    epilogue: &Epilogue<'_>,
    out: &mut [f32],
    executor: &dyn Executor,
) -> Result<(), KernelError> {
    let g = sliding;
    g.check(FAMILY, input.len(), out.len(), g.channels)?;
    KernelError::check(FAMILY, "channels of the weights", weights.channels, g.channels)?;
    KernelError::check(FAMILY, "taps", g.taps(), weights.taps)?;
    epilogue.check(FAMILY, g.out_pixels(), g.channels)?;
    let row = g.out_width * g.channels;
    if out.is_empty() {
        return Ok(());
    }
    let rows = TASK_PRODUCTS.div_ceil(row * g.taps().max(1)).max(1);
    for_each_chunk(executor, out, rows * row, |index, out| {
        for (offset, out) in out.chunks_exact_mut(row).enumerate() {
            let line = Line {
                isa,
                g,
                input,
                weights: weights.data.as_slice(),
                epilogue,
                row: index * rows + offset,
                out,
            };
            match (g.horizontal.kernel, g.horizontal.stride, g.horizontal.dilation) {
                (3, 1, 1) => isa.run(Fixed::<3, 1>(line)),
                (3, 2, 1) => isa.run(Fixed::<3, 2>(line)),
                (5, 1, 1) => isa.run(Fixed::<5, 1>(line)),
                (5, 2, 1) => isa.run(Fixed::<5, 2>(line)),
                _ => isa.run(Fixed::<0, 0>(line)),
            }
        }
    });
    Ok(())
}

/// One row of output pixels.
struct Line<'a> {
    isa: VectorIsa,
    g: &'a Sliding,
    input: &'a [f32],
    weights: &'a [f32],
    epilogue: &'a Epilogue<'a>,
    /// The output row, counted over the batch.
    row: usize,
    out: &'a mut [f32],
}

/// A row for windows `K` wide at distance `STRIDE` without dilation; both 0 for any window.
struct Fixed<'a, const K: usize, const STRIDE: usize>(Line<'a>);

impl<const K: usize, const STRIDE: usize> SimdOp for Fixed<'_, K, STRIDE> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let mut line = self.0;
        let g = line.g;
        let interior = g.horizontal.interior(g.width, g.out_width);
        let (begin, end) = (interior.start, interior.end);
        for x in (0..begin).chain(end..g.out_width) {
            line.pixels::<S, 1, 0, 0>(s, x, g.horizontal.valid_taps(x, g.width));
        }
        let all = 0..g.horizontal.kernel;
        let mut x = begin;
        while x + 8 <= end {
            line.pixels::<S, 8, K, STRIDE>(s, x, all.clone());
            x += 8;
        }
        if x + 4 <= end {
            line.pixels::<S, 4, K, STRIDE>(s, x, all.clone());
            x += 4;
        }
        if x + 2 <= end {
            line.pixels::<S, 2, K, STRIDE>(s, x, all.clone());
            x += 2;
        }
        if x < end {
            line.pixels::<S, 1, K, STRIDE>(s, x, all);
        }
    }
}

/// The part of a window that lies inside the image, for the first of some neighbouring pixels.
struct Taps {
    pixels: *const f32,
    weights: *const f32,
    rows: usize,
    columns: usize,
    row_step: usize,
    column_step: usize,
    /// Distance between the windows of neighbouring output pixels.
    pixel_step: usize,
    weight_row_step: usize,
    channels: usize,
}

impl Taps {
    /// The sums of `count` channels from `channel` on, for `T` pixels; `FULL` if `count` is a whole vector.
    ///
    /// # Safety
    /// All taps of all `T` windows must be readable at these channels, and their weights.
    #[inline(always)]
    #[allow(
        clippy::needless_range_loop,
        reason = "counted loops over register tiles are what the compiler unrolls"
    )]
    unsafe fn sum<S: Simd, const T: usize, const K: usize, const STRIDE: usize, const FULL: bool>(
        &self,
        s: S,
        channel: usize,
        count: usize,
    ) -> [S::F; T] {
        let mut acc = [s.splat(0.0); T];
        let columns = if K == 0 { self.columns } else { K };
        for row in 0..self.rows {
            for column in 0..columns {
                // SAFETY: the caller vouches for every tap.
                unsafe {
                    let w = self.weights.add(row * self.weight_row_step + column * self.channels + channel);
                    let pixel = self.pixels.add(row * self.row_step + channel);
                    let w = if FULL { s.load(w) } else { s.load_partial(w, count) };
                    for t in 0..T {
                        // With constants, equal offsets of neighbouring windows are loaded once.
                        let offset = if K == 0 {
                            t * self.pixel_step + column * self.column_step
                        } else {
                            (t * STRIDE + column) * self.channels
                        };
                        let from = pixel.add(offset);
                        let value = if FULL { s.load(from) } else { s.load_partial(from, count) };
                        acc[t] = s.fma(value, w, acc[t]);
                    }
                }
            }
        }
        acc
    }
}

impl Line<'_> {
    /// Computes `T` neighbouring output pixels from `x` on, over the taps `taps_x` of each (all of them inside the
    /// image).
    #[inline(always)]
    fn pixels<S: Simd, const T: usize, const K: usize, const STRIDE: usize>(
        &mut self,
        s: S,
        x: usize,
        taps_x: Range<usize>,
    ) {
        let g = self.g;
        let channels = g.channels;
        let (image, y) = (self.row / g.out_height, self.row % g.out_height);
        let taps_y = g.vertical.valid_taps(y, g.height);
        let dilation_x = if K == 0 { g.horizontal.dilation } else { 1 };
        let taps_x = if K == 0 { taps_x } else { 0..K };
        // Offsets of the first valid tap, in pixels, and the bounds of everything that is read below.
        let first_y = g.vertical.start(y) + (taps_y.start * g.vertical.dilation) as isize;
        let first_x = g.horizontal.start(x) + (taps_x.start * dilation_x) as isize;
        let empty = taps_y.is_empty() || taps_x.is_empty();
        let start =
            if empty { 0 } else { ((image * g.height) as isize + first_y) * g.width as isize + first_x };
        let start = start.unsigned_abs() * channels;
        if !empty {
            let last_y = (taps_y.len() - 1) * g.vertical.dilation * g.width;
            let last_x = (T - 1) * g.horizontal.stride + (taps_x.len() - 1) * dilation_x;
            assert!(start + (last_y + last_x + 1) * channels <= self.input.len());
        }
        assert!(self.weights.len() >= g.taps() * channels && self.out.len() >= (x + T) * channels);
        // An empty window reads nothing; its pointers only have to exist.
        let (taps_y, taps_x) = if empty { (0..0, 0..0) } else { (taps_y, taps_x) };
        let window = Taps {
            pixels: self.input[start..].as_ptr(),
            weights: self.weights[(taps_y.start * g.horizontal.kernel + taps_x.start) * channels..].as_ptr(),
            rows: taps_y.len(),
            columns: taps_x.len(),
            row_step: g.vertical.dilation * g.width * channels,
            column_step: dilation_x * channels,
            pixel_step: g.horizontal.stride * channels,
            weight_row_step: g.horizontal.kernel * channels,
            channels,
        };
        let whole = channels - channels % S::LANES;
        for channel in (0..whole).step_by(S::LANES) {
            // SAFETY: with `channel + LANES <= channels`, weights are read inside the length asserted above, and the
            // last pixel is at most the one asserted above.
            let acc = unsafe { window.sum::<S, T, K, STRIDE, true>(s, channel, S::LANES) };
            self.store(s, x, channel, S::LANES, acc);
        }
        if whole < channels {
            // SAFETY: as above, for the channels that are left.
            let acc = unsafe { window.sum::<S, T, K, STRIDE, false>(s, whole, channels - whole) };
            self.store(s, x, whole, channels - whole, acc);
        }
        self.finish(x, T);
    }

    /// Applies scale, bias and a clamp, and stores `count` channels of the pixels from `x` on.
    #[inline(always)]
    #[allow(
        clippy::needless_range_loop,
        reason = "counted loops over register tiles are what the compiler unrolls"
    )]
    fn store<S: Simd, const T: usize>(
        &mut self,
        s: S,
        x: usize,
        channel: usize,
        count: usize,
        mut acc: [S::F; T],
    ) {
        if let Some(scale) = self.epilogue.scale {
            let scale = s.load_tail(&scale[channel..channel + count]);
            for t in 0..T {
                acc[t] = s.mul(acc[t], scale);
            }
        }
        if let Some(bias) = self.epilogue.bias {
            let bias = s.load_tail(&bias[channel..channel + count]);
            for t in 0..T {
                acc[t] = s.add(acc[t], bias);
            }
        }
        if let Some((lo, hi)) = self.epilogue.activation.as_clamp() {
            let (lo, hi) = (s.splat(lo), s.splat(hi));
            for t in 0..T {
                acc[t] = s.at_most(s.at_least(acc[t], lo), hi);
            }
        }
        for t in 0..T {
            let start = (x + t) * self.g.channels + channel;
            let out = &mut self.out[start..start + count];
            if count == S::LANES {
                s.store_slice(out, acc[t]);
            } else {
                s.store_tail(out, acc[t]);
            }
        }
    }

    /// The steps that do not run in registers.
    #[inline(always)]
    fn finish(&mut self, x: usize, pixels: usize) {
        if self.epilogue.activation.as_clamp().is_some() && self.epilogue.residual.is_none() {
            return;
        }
        self.finish_pixels(x, pixels);
    }

    #[inline(never)]
    fn finish_pixels(&mut self, x: usize, pixels: usize) {
        let channels = self.g.channels;
        let out = &mut self.out[x * channels..(x + pixels) * channels];
        let row = self.row * self.g.out_width + x;
        // A clamp that ran in registers already does no harm here.
        // SAFETY: the block is the slice, `pixels` rows of `channels`.
        unsafe {
            finish_block(self.isa, self.epilogue, (row, 0), out.as_mut_ptr(), [pixels, channels], channels);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Residual;
    use crate::elementwise::Unary;
    use crate::geometry::Window;
    use crate::parallel::{ScopedThreads, Serial};
    use crate::testing::{Guarded, Rng, assert_close};

    fn reference(g: &Sliding, input: &[f32], weights: &[f32]) -> Vec<f32> {
        let mut out = Vec::new();
        for b in 0..g.batch {
            for y in 0..g.out_height {
                for x in 0..g.out_width {
                    for c in 0..g.channels {
                        let mut sum = 0.0_f64;
                        for ky in 0..g.vertical.kernel {
                            for kx in 0..g.horizontal.kernel {
                                let iy = g.vertical.start(y) + (ky * g.vertical.dilation) as isize;
                                let ix = g.horizontal.start(x) + (kx * g.horizontal.dilation) as isize;
                                if iy >= 0 && ix >= 0 && iy < g.height as isize && ix < g.width as isize {
                                    let pixel = (b * g.height + iy as usize) * g.width + ix as usize;
                                    let w = weights[c * g.taps() + ky * g.horizontal.kernel + kx];
                                    sum += f64::from(w) * f64::from(input[pixel * g.channels + c]);
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

    #[test]
    fn every_window_channel_count_and_epilogue_is_right() {
        let windows = [
            Window::new(3, 1, 1),
            Window::new(3, 2, 1),
            Window::new(5, 1, 2),
            Window::new(5, 2, 2),
            Window::new(7, 1, 3),
            Window { dilation: 2, ..Window::new(3, 1, 2) },
            Window { pad_begin: 0, pad_end: 1, ..Window::new(3, 2, 0) },
            Window::new(2, 3, 5),
            Window::POINT,
        ];
        let mut rng = Rng::new(11);
        crate::for_each_vector_isa!(|isa| {
            for window in windows {
                for (size, channels) in [([2, 6, 23], 1), ([1, 9, 12], 16), ([1, 5, 7], 33), ([1, 4, 19], 7)]
                {
                    let g = Sliding::new([size[0], size[1], size[2], channels], window, window).unwrap();
                    let input = rng.floats(size.iter().product::<usize>() * channels, -1.0, 1.0);
                    let weights = rng.floats(channels * g.taps(), -1.0, 1.0);
                    let (scale, bias) = (rng.floats(channels, 0.5, 2.0), rng.floats(channels, -1.0, 1.0));
                    let data = rng.floats(g.out_pixels() * channels, -1.0, 1.0);
                    let relu = |f, x: f32| match f {
                        Unary::Relu => x.max(0.0),
                        Unary::Silu => x / (1.0 + (-x).exp()),
                        _ => x,
                    };
                    for activation in [Unary::Identity, Unary::Relu, Unary::Silu] {
                        for with_residual in [false, true] {
                            let epilogue = Epilogue {
                                scale: Some(&scale),
                                bias: Some(&bias),
                                activation,
                                residual: with_residual.then_some(Residual {
                                    data: &data,
                                    row_stride: channels,
                                    then: Unary::Relu,
                                }),
                            };
                            let packed = PackedDepthwise::new(&weights, channels, g.taps()).unwrap();
                            let mut out = Guarded::new(g.out_pixels() * channels, f32::NAN, 3.0);
                            let executor: &dyn Executor =
                                if with_residual { &ScopedThreads(2) } else { &Serial };
                            depthwise_f32(isa, &g, &input, &packed, &epilogue, out.get_mut(), executor)
                                .unwrap();
                            out.check();
                            let want: Vec<f32> = reference(&g, &input, &weights)
                                .iter()
                                .enumerate()
                                .map(|(i, &sum)| epilogue.reference(sum, i / channels, i % channels, relu))
                                .collect();
                            let what = format!("{} {g:?} {activation:?}", isa.level());
                            assert_close(out.get(), &want, 5e-6, 1e-5, &what);
                        }
                    }
                }
            }
        });
    }

    #[test]
    fn arguments_that_do_not_fit_are_refused() {
        let g = Sliding::new([1, 4, 4, 2], Window::new(3, 1, 1), Window::new(3, 1, 1)).unwrap();
        let packed = PackedDepthwise::new(&[0.0; 18], 2, 9).unwrap();
        let run = |input: usize, out: usize| {
            let epilogue = Epilogue::default();
            depthwise_f32(
                VectorIsa::Portable,
                &g,
                &vec![0.0; input],
                &packed,
                &epilogue,
                &mut vec![0.0; out],
                &Serial,
            )
        };
        assert!(run(32, 32).is_ok());
        assert!(run(31, 32).is_err() && run(32, 33).is_err());
        assert!(PackedDepthwise::new(&[0.0; 17], 2, 9).is_err());
    }
}
