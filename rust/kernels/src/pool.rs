//! Max and average pooling of NHWC images, vectorized over channels.

use crate::error::KernelError;
use crate::geometry::Sliding;
use crate::parallel::{Executor, for_each_chunk};
use crate::simd::{Simd, SimdOp, VectorIsa};

const FAMILY: &str = "pool_f32";

/// Inputs below which a task is not worth a thread.
const TASK_INPUTS: usize = 1 << 15;

/// What a window becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Pool {
    /// The largest value inside the image; NaN if there is one.
    Max,
    /// The mean of the values inside the image.
    AverageExcludePadding,
    /// The sum of the values inside the image, divided by the taps inside the image or its padding. Taps beyond the
    /// padding, which ceiling mode makes, do not count.
    AverageIncludePadding,
}

/// `out[b, y, x, c] = pool over the window of input[b, ..., c]`.
///
/// A window without any tap inside the image (possible with ceiling mode or large padding) gives minus infinity for
/// `Max` and 0 for the averages. Global pooling is a reduction: see [`crate::reduce`].
///
/// # Shapes
/// `input`: `[batch, height, width, channels]`; `out`: `[batch, out_height, out_width, channels]`.
///
/// # Errors
/// [`KernelError`] if a length does not fit.
pub fn pool_f32(
    isa: VectorIsa,
    kind: Pool,
    sliding: &Sliding,
    input: &[f32],
    out: &mut [f32],
    executor: &dyn Executor,
) -> Result<(), KernelError> {
    let g = sliding;
    g.check(FAMILY, input.len(), out.len(), g.channels)?;
    if out.is_empty() {
        return Ok(());
    }
    let row = g.out_width * g.channels;
    let rows = TASK_INPUTS.div_ceil(row * g.taps()).max(1);
    for_each_chunk(executor, out, rows * row, |index, out| {
        isa.run(Rows { kind, g, input, first: index * rows, out });
    });
    Ok(())
}

/// Some rows of output pixels.
struct Rows<'a> {
    kind: Pool,
    g: &'a Sliding,
    input: &'a [f32],
    first: usize,
    out: &'a mut [f32],
}

impl SimdOp for Rows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { kind, g, input, first, out } = self;
        let row_len = g.out_width * g.channels;
        for (index, line) in out.chunks_exact_mut(row_len).enumerate() {
            let row = first + index;
            let (image, y) = (row / g.out_height, row % g.out_height);
            for (x, out) in line.chunks_exact_mut(g.channels).enumerate() {
                window(s, kind, g, &input[image * g.height * g.width * g.channels..], (y, x), out);
            }
        }
    }
}

/// The factor of a sum.
fn average_factor(kind: Pool, g: &Sliding, (y, x): (usize, usize), inside: usize) -> f32 {
    let padded = |w: &crate::geometry::Window, output: usize, len: usize| {
        let end = (len + w.pad_end) as isize;
        (0..w.kernel).filter(|tap| w.start(output) + ((tap * w.dilation) as isize) < end).count()
    };
    let count = match kind {
        Pool::AverageIncludePadding => padded(&g.vertical, y, g.height) * padded(&g.horizontal, x, g.width),
        _ => inside,
    };
    if count == 0 { 0.0 } else { 1.0 / count as f32 }
}

/// One output pixel.
#[inline(always)]
fn window<S: Simd>(s: S, kind: Pool, g: &Sliding, image: &[f32], (y, x): (usize, usize), out: &mut [f32]) {
    let taps_y = g.vertical.valid_taps(y, g.height);
    let taps_x = g.horizontal.valid_taps(x, g.width);
    let factor =
        if kind == Pool::Max { 1.0 } else { average_factor(kind, g, (y, x), taps_y.len() * taps_x.len()) };
    for channel in (0..g.channels).step_by(S::LANES) {
        let end = g.channels.min(channel + S::LANES);
        let mut acc = s.splat(if kind == Pool::Max { f32::NEG_INFINITY } else { 0.0 });
        for tap_y in taps_y.clone() {
            let row = g.vertical.start(y) + (tap_y * g.vertical.dilation) as isize;
            for tap_x in taps_x.clone() {
                let column = g.horizontal.start(x) + (tap_x * g.horizontal.dilation) as isize;
                let pixel = (row * g.width as isize + column).unsigned_abs() * g.channels;
                let value = s.load_tail(&image[pixel + channel..pixel + end]);
                acc = if kind == Pool::Max { maximum(s, acc, value) } else { s.add(acc, value) };
            }
        }
        s.store_tail(&mut out[channel..end], s.mul(acc, s.splat(factor)));
    }
}

/// The larger value; NaN if either is.
#[inline(always)]
pub(crate) fn maximum<S: Simd>(s: S, acc: S::F, x: S::F) -> S::F {
    // `x` replaces `acc` unless it is smaller or equal; an `acc` that is NaN stays.
    let keep = s.select(s.lt(acc, x), x, acc);
    s.select(s.eq(x, x), keep, x)
}

/// The smaller value; NaN if either is.
#[inline(always)]
pub(crate) fn minimum<S: Simd>(s: S, acc: S::F, x: S::F) -> S::F {
    let keep = s.select(s.lt(x, acc), x, acc);
    s.select(s.eq(x, x), keep, x)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geometry::Window;
    use crate::parallel::{ScopedThreads, Serial};
    use crate::testing::{Guarded, Rng, assert_close};

    fn reference(kind: Pool, g: &Sliding, input: &[f32]) -> Vec<f32> {
        let mut out = Vec::new();
        for b in 0..g.batch {
            for y in 0..g.out_height {
                for x in 0..g.out_width {
                    for c in 0..g.channels {
                        let (mut largest, mut sum, mut inside, mut padded) = (f32::NEG_INFINITY, 0.0, 0, 0);
                        for ky in 0..g.vertical.kernel {
                            for kx in 0..g.horizontal.kernel {
                                let iy = g.vertical.start(y) + (ky * g.vertical.dilation) as isize;
                                let ix = g.horizontal.start(x) + (kx * g.horizontal.dilation) as isize;
                                let (h, w) = (g.height as isize, g.width as isize);
                                if iy < h + g.vertical.pad_end as isize
                                    && ix < w + g.horizontal.pad_end as isize
                                {
                                    padded += 1;
                                }
                                if iy >= 0 && ix >= 0 && iy < h && ix < w {
                                    let pixel = (b * g.height + iy as usize) * g.width + ix as usize;
                                    let v = input[pixel * g.channels + c];
                                    largest = largest.max(v);
                                    sum += v;
                                    inside += 1;
                                }
                            }
                        }
                        out.push(match kind {
                            Pool::Max => largest,
                            Pool::AverageExcludePadding => sum / inside.max(1) as f32,
                            Pool::AverageIncludePadding => sum / padded.max(1) as f32,
                        });
                    }
                }
            }
        }
        out
    }

    #[test]
    fn every_window_and_kind_is_right() {
        let windows = [
            Window::new(2, 2, 0),
            Window::new(3, 2, 1),
            Window::new(3, 1, 1),
            Window { pad_begin: 0, pad_end: 1, ..Window::new(3, 2, 0) },
            Window { dilation: 2, ..Window::new(2, 1, 1) },
        ];
        let mut rng = Rng::new(4);
        crate::for_each_vector_isa!(|isa| {
            for window in windows {
                for channels in [1, 3, 16, 37] {
                    let mut g = Sliding::new([2, 7, 10, channels], window, window).unwrap();
                    let input = rng.floats(2 * 7 * 10 * channels, -1.0, 1.0);
                    for ceiling in [0, 1] {
                        g.out_height += ceiling;
                        g.out_width += ceiling;
                        for kind in [Pool::Max, Pool::AverageExcludePadding, Pool::AverageIncludePadding] {
                            let mut out = Guarded::new(g.out_pixels() * channels, f32::NAN, 5.0);
                            let executor: &dyn Executor =
                                if ceiling == 0 { &Serial } else { &ScopedThreads(2) };
                            pool_f32(isa, kind, &g, &input, out.get_mut(), executor).unwrap();
                            out.check();
                            let what = format!("{kind:?} {g:?} {}", isa.level());
                            assert_close(out.get(), &reference(kind, &g, &input), 1e-6, 1e-6, &what);
                        }
                    }
                }
            }
        });
    }

    #[test]
    fn max_keeps_nan_wherever_it_stands() {
        let g = Sliding::new([1, 1, 4, 1], Window::POINT, Window::new(2, 1, 0)).unwrap();
        crate::for_each_vector_isa!(|isa| {
            let mut out = [0.0; 3];
            pool_f32(isa, Pool::Max, &g, &[1.0, f32::NAN, 2.0, 3.0], &mut out, &Serial).unwrap();
            assert!(out[0].is_nan() && out[1].is_nan() && out[2] == 3.0, "{out:?}");
        });
    }
}
