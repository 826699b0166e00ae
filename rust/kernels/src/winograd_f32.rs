//! Winograd's convolution F(4x4, 3x3) of NHWC images: 36 multiplications for 16 outputs instead of 144.
//!
//! `Y = A^T [ sum over channels of (G g G^T) . (B^T d B) ] A` for tiles `d` of 6 x 6 input pixels that overlap by two,
//! with `.` the element-wise product (Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", 2016). The
//! sums over channels are 36 matrix products. The matrices belong to the points 0, `+-a`, `+-b` and infinity with
//! `a^2 = 1/2`, `b^2 = 2`: rounding errors are then about half of those of the points 0, +-1, +-2.
//!
//! For an input of magnitude 1 the result differs from the exact one by less than `5e-6 sqrt(9 channels)` times the
//! magnitude of the weights (typically a tenth of that); a direct sum is about ten times closer. Results do not depend on the number of threads.

#![allow(
    clippy::needless_range_loop,
    reason = "counted loops over register tiles are what the compiler unrolls"
)]

use std::ops::Range;

use crate::aligned::AlignedVec;
use crate::epilogue::{finish_block, is_deferred};
use crate::error::KernelError;
use crate::gemm_f32::micro::{A_STRIDE, K_BLOCK, TileArgs};
use crate::gemm_f32::{GemmF32, PackedB};
use crate::geometry::Sliding;
use crate::parallel::{Executor, SharedOut, even_part, for_each_task};
use crate::simd::{Simd, SimdOp, VectorIsa};
use crate::{Epilogue, elementwise::Unary};

const FAMILY: &str = "winograd_f32";

/// Output pixels along a side of a tile.
const OUT: usize = 4;
/// Input pixels along a side of a tile.
const IN: usize = 6;
/// Products per tile and channel.
const POINTS: usize = IN * IN;

/// Floats of transformed tiles that are worked on at a time, so that they stay in the second-level cache.
const BLOCK_FLOATS: usize = 196_608;

/// The finite points are `0, +-P1, +-P2`.
const P1: f32 = std::f32::consts::FRAC_1_SQRT_2;
const P2: f32 = std::f32::consts::SQRT_2;

/// Whether these windows are what this module computes: 3 x 3, no stride, no dilation.
pub fn is_winograd(sliding: &Sliding) -> bool {
    [&sliding.vertical, &sliding.horizontal].iter().all(|w| w.kernel == 3 && w.stride == 1 && w.dilation == 1)
}

/// Transformed weights of a 3 x 3 convolution: 36 packed matrices `[in_channels, out_channels]`.
#[derive(Clone, Debug)]
pub struct PackedWinograd {
    matrices: Vec<PackedB>,
    in_channels: usize,
    out_channels: usize,
}

impl PackedWinograd {
    /// Transforms and packs `weights[out_channels, in_channels, 3, 3]`.
    ///
    /// # Errors
    /// [`KernelError`] if the length differs.
    pub fn new(
        kernel: &GemmF32,
        weights: &[f32],
        out_channels: usize,
        in_channels: usize,
    ) -> Result<Self, KernelError> {
        let overflow =
            KernelError::Value { kernel: FAMILY, what: "the weights are larger than the address space" };
        let pairs = in_channels.checked_mul(out_channels).ok_or(overflow.clone())?;
        let wanted = pairs.checked_mul(9).ok_or(overflow)?;
        KernelError::check(FAMILY, "length of the weights", weights.len(), wanted)?;
        let g = weight_transform();
        let mut plane = AlignedVec::zeros(pairs);
        let mut matrices = Vec::with_capacity(POINTS);
        for point in 0..POINTS {
            let (gy, gx) = (g[point / IN], g[point % IN]);
            let factors: [f64; 9] = std::array::from_fn(|tap| gy[tap / 3] * gx[tap % 3]);
            for (pair, taps) in weights.as_chunks::<9>().0.iter().enumerate() {
                let sum: f64 = taps.iter().zip(factors).map(|(&w, factor)| f64::from(w) * factor).sum();
                plane[pair] = sum as f32;
            }
            matrices.push(PackedB::from_columns(kernel, &plane, in_channels, out_channels, in_channels)?);
        }
        Ok(Self { matrices, in_channels, out_channels })
    }

    /// Memory held, in bytes.
    pub fn bytes(&self) -> usize {
        self.matrices.iter().map(PackedB::bytes).sum()
    }

    /// Scratch that one thread needs, in `f32` elements.
    pub fn scratch_len(&self) -> usize {
        self.inputs_len() + POINTS * self.most_tiles() * self.out_stride()
    }

    fn inputs_len(&self) -> usize {
        POINTS * self.most_tiles() * A_STRIDE * self.in_channels.div_ceil(K_BLOCK)
    }

    /// Tiles that are transformed together at most.
    fn most_tiles(&self) -> usize {
        (BLOCK_FLOATS / (POINTS * (self.in_channels + self.out_channels)).max(1)).clamp(16, 64)
    }

    fn out_stride(&self) -> usize {
        self.out_channels.next_multiple_of(crate::simd::MAX_LANES)
    }
}

/// The matrix G: row `p` is `[1, p, p^2] / product of (p - q) over the other points q`, the last one `[0, 0, 1]`.
fn weight_transform() -> [[f64; 3]; IN] {
    let (a, b) = (0.5_f64.sqrt(), 2.0_f64.sqrt());
    let points = [0.0, a, -a, b, -b];
    let mut rows = [[0.0, 0.0, 1.0]; IN];
    for (row, &p) in rows.iter_mut().zip(&points) {
        let scale: f64 = points.iter().filter(|&&q| q != p).map(|&q| p - q).product();
        *row = [1.0 / scale, p / scale, p * p / scale];
    }
    rows
}

/// `out = epilogue(conv(input, weights))`, 3 x 3, no stride, no dilation, one group.
///
/// # Shapes
/// `input`: `[batch, height, width, in_channels]`; `out`: `[batch, out_height, out_width, out_channels]`; the
/// epilogue's vectors: `[out_channels]`; its residual: rows are output pixels. `scratch`: at least
/// [`PackedWinograd::scratch_len`] elements; as many threads take part as it has room for.
///
/// # Errors
/// [`KernelError`] if a length does not fit, the windows are of another kind ([`is_winograd`]) or the weights were
/// packed for another kernel.
#[allow(clippy::too_many_arguments, reason = "operands, epilogue, output and resources")]
pub fn winograd_f32(
    kernel: &GemmF32,
    sliding: &Sliding,
    input: &[f32],
    weights: &PackedWinograd,
    epilogue: &Epilogue<'_>,
    out: &mut [f32],
    scratch: &mut [f32],
    executor: &dyn Executor,
) -> Result<(), KernelError> {
    let channels = weights.out_channels;
    if !is_winograd(sliding) {
        return Err(KernelError::Value { kernel: FAMILY, what: "the window is not 3 x 3 with stride 1" });
    }
    sliding.check(FAMILY, input.len(), out.len(), channels)?;
    KernelError::check(FAMILY, "input channels", sliding.channels, weights.in_channels)?;
    epilogue.check(FAMILY, sliding.out_pixels(), channels)?;
    weights.matrices.iter().try_for_each(|matrix| matrix.check_kernel(kernel))?;
    let scratch_len = weights.scratch_len();
    KernelError::check_least(FAMILY, "scratch length", scratch.len(), scratch_len)?;
    if out.is_empty() || weights.in_channels == 0 {
        return Ok(());
    }
    let (rows, columns) = (sliding.out_height.div_ceil(OUT), sliding.out_width.div_ceil(OUT));
    let tiles = sliding.batch * rows * columns;
    let threads = executor.threads().min(scratch.len() / scratch_len).max(1);
    // A multiple of the number of threads, unless tiles become too few for a product.
    let blocks = tiles.div_ceil(weights.most_tiles());
    let blocks = blocks.max(blocks.next_multiple_of(threads).min(tiles.div_ceil(8)));
    let job = Job { kernel, sliding, input, weights, epilogue, rows, columns };
    let target = SharedOut(out.as_mut_ptr());
    for_each_task(executor, blocks, scratch.chunks_exact_mut(scratch_len), |index, scratch| {
        let tiles = even_part(tiles, blocks, 1, index);
        // SAFETY: `Sliding::check` compared the output with the shape; tiles are disjoint parts of it, and
        // `for_each_task` runs each once.
        unsafe { job.block(tiles, target, scratch) }
    });
    Ok(())
}

struct Job<'a> {
    kernel: &'a GemmF32,
    sliding: &'a Sliding,
    input: &'a [f32],
    weights: &'a PackedWinograd,
    epilogue: &'a Epilogue<'a>,
    /// Tiles of an image, down and across.
    rows: usize,
    columns: usize,
}

impl Job<'_> {
    /// Image, first row and first column of a tile of the output.
    #[inline(always)]
    fn origin(&self, tile: usize) -> (usize, usize, usize) {
        let (rest, x) = (tile / self.columns, tile % self.columns);
        (rest / self.rows, rest % self.rows * OUT, x * OUT)
    }

    /// Computes some tiles.
    ///
    /// # Safety
    /// `out` must be valid for the whole output, and nobody else may use these tiles of it meanwhile.
    unsafe fn block(&self, tiles: Range<usize>, out: SharedOut<f32>, scratch: &mut [f32]) {
        let (inputs, sums) = scratch.split_at_mut(self.weights.inputs_len());
        let isa = self.kernel.isa();
        isa.run(InputTransform { job: self, tiles: tiles.clone(), to: inputs });
        self.products(tiles.len(), inputs, sums);
        isa.run(OutputTransform { job: self, tiles: tiles.clone(), from: sums, out: out.get() });
        if is_deferred(self.epilogue) {
            // SAFETY: the caller's promise.
            unsafe { self.finish(isa, tiles, out) };
        }
    }

    /// The sums over channels, for each of the 36 points.
    fn products(&self, tiles: usize, inputs: &[f32], sums: &mut [f32]) {
        let (weights, most) = (self.weights, self.weights.most_tiles());
        let (channels, stride) = (weights.out_channels, weights.out_stride());
        let heights = tiles.div_ceil(self.kernel.mr());
        for (point, matrix) in weights.matrices.iter().enumerate() {
            for first in (0..weights.in_channels).step_by(K_BLOCK) {
                let k = K_BLOCK.min(weights.in_channels - first);
                let a = &inputs[(first / K_BLOCK * POINTS + point) * most * A_STRIDE..][..tiles * A_STRIDE];
                for column in (0..channels).step_by(self.kernel.nr()) {
                    let width = self.kernel.nr().min(channels - column);
                    let panel = matrix.panel(column, first);
                    debug_assert!(panel.len() >= k * self.kernel.nr());
                    for part in 0..heights {
                        let rows = even_part(tiles, heights, 1, part);
                        let c = &mut sums[(point * most + rows.start) * stride + column..];
                        debug_assert!(c.len() >= (rows.len() - 1) * stride + width);
                        let args = TileArgs {
                            a: a[rows.start * A_STRIDE..].as_ptr(),
                            b: panel.as_ptr(),
                            k,
                            c: c.as_mut_ptr(),
                            c_stride: stride,
                            columns: width,
                            accumulate: first > 0,
                            epilogue: None,
                        };
                        // SAFETY: the kernel exists, so its instructions do; rows, panel and tile lie in the slices,
                        // whose lengths `scratch_len` and `PackedB` give.
                        unsafe { self.kernel.tile(rows.len(), width)(&args) };
                    }
                }
            }
        }
    }

    /// The steps of the epilogue that do not run in registers.
    ///
    /// # Safety
    /// As [`block`](Self::block).
    unsafe fn finish(&self, isa: VectorIsa, tiles: Range<usize>, out: SharedOut<f32>) {
        let (g, channels) = (self.sliding, self.weights.out_channels);
        for tile in tiles {
            let (image, y, x) = self.origin(tile);
            for y in y..(y + OUT).min(g.out_height) {
                let pixel = (image * g.out_height + y) * g.out_width + x;
                let size = [OUT.min(g.out_width - x), channels];
                // SAFETY: a row of pixels of a tile that is the caller's.
                unsafe {
                    let block = out.get().add(pixel * channels);
                    finish_block(isa, self.epilogue, (pixel, 0), block, size, channels);
                }
            }
        }
    }
}

struct InputTransform<'a> {
    job: &'a Job<'a>,
    tiles: Range<usize>,
    to: &'a mut [f32],
}

/// `B^T d` for one line of six.
#[inline(always)]
fn input_line<S: Simd>(s: S, d: [S::F; IN]) -> [S::F; IN] {
    // (P1 P2)^2 = 1 and P1^2 + P2^2 = 5/2.
    let (sum, a2, b2) = (s.splat(-2.5), s.splat(-P1 * P1), s.splat(-P2 * P2));
    let even_a = s.fma(b2, d[2], d[4]);
    let odd_a = s.mul(s.splat(P1), s.fma(b2, d[1], d[3]));
    let even_b = s.fma(a2, d[2], d[4]);
    let odd_b = s.mul(s.splat(P2), s.fma(a2, d[1], d[3]));
    [
        s.fma(sum, d[2], s.add(d[0], d[4])),
        s.add(even_a, odd_a),
        s.sub(even_a, odd_a),
        s.add(even_b, odd_b),
        s.sub(even_b, odd_b),
        s.fma(sum, d[3], s.add(d[1], d[5])),
    ]
}

/// `A^T m` for one line of six.
#[inline(always)]
fn output_line<S: Simd>(s: S, m: [S::F; IN]) -> [S::F; OUT] {
    let (sum_a, difference_a) = (s.add(m[1], m[2]), s.sub(m[1], m[2]));
    let (sum_b, difference_b) = (s.add(m[3], m[4]), s.sub(m[3], m[4]));
    let cubic = s.fma(s.splat(P1 * P1 * P1), difference_a, m[5]);
    [
        s.add(m[0], s.add(sum_a, sum_b)),
        s.fma(s.splat(P1), difference_a, s.mul(s.splat(P2), difference_b)),
        s.fma(s.splat(P1 * P1), sum_a, s.mul(s.splat(P2 * P2), sum_b)),
        s.fma(s.splat(P2 * P2 * P2), difference_b, cubic),
    ]
}

impl SimdOp for InputTransform<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { job, tiles, to } = self;
        let (g, most) = (job.sliding, job.weights.most_tiles());
        let channels = g.channels;
        let (pad_y, pad_x) = (g.vertical.pad_begin as isize, g.horizontal.pad_begin as isize);
        for (slot, tile) in tiles.enumerate() {
            let (image, y, x) = job.origin(tile);
            let (y, x) = (y as isize - pad_y, x as isize - pad_x);
            // The rows and columns of the tile that lie in the image.
            let clip =
                |from: isize, len: usize| [(-from).clamp(0, 6), (len as isize - from).clamp(0, IN as isize)];
            let ([top, bottom], [left, right]) = (clip(y, g.height), clip(x, g.width));
            let whole = [top, bottom, left, right] == [0, IN as isize, 0, IN as isize];
            for channel in (0..channels).step_by(S::LANES) {
                let count = S::LANES.min(channels - channel);
                let mut d = [[s.splat(0.0); IN]; IN];
                let at = |i: isize, j: isize| {
                    let row = (image * g.height) as isize + y + i;
                    ((row * g.width as isize + x + j) as usize) * channels + channel
                };
                if whole && count == S::LANES {
                    let first = at(0, 0);
                    let end = at(IN as isize - 1, IN as isize - 1) + S::LANES;
                    assert!(first <= end && end <= job.input.len());
                    for i in 0..IN {
                        for j in 0..IN {
                            // SAFETY: between the first and the last pixel, whose places were checked.
                            let from =
                                unsafe { job.input.as_ptr().add(first + (i * g.width + j) * channels) };
                            // SAFETY: a whole vector of channels of that pixel.
                            d[i][j] = unsafe { s.load(from) };
                        }
                    }
                } else {
                    for i in top..bottom {
                        for j in left..right {
                            d[i as usize][j as usize] = s.load_tail(&job.input[at(i, j)..][..count]);
                        }
                    }
                }
                for j in 0..IN {
                    let line = input_line(s, std::array::from_fn(|i| d[i][j]));
                    for i in 0..IN {
                        d[i][j] = line[i];
                    }
                }
                let part = channel / K_BLOCK * POINTS;
                let place = slot * A_STRIDE + channel % K_BLOCK;
                for i in 0..IN {
                    let line = input_line(s, d[i]);
                    for j in 0..IN {
                        let start = (part + i * IN + j) * most * A_STRIDE + place;
                        s.store_slice(&mut to[start..start + S::LANES], line[j]);
                    }
                }
            }
        }
    }
}

struct OutputTransform<'a> {
    job: &'a Job<'a>,
    tiles: Range<usize>,
    from: &'a [f32],
    out: *mut f32,
}

/// The part of an epilogue that runs in registers.
struct Finish<'a> {
    epilogue: &'a Epilogue<'a>,
    clamp: Option<(f32, f32)>,
    then: Option<(f32, f32)>,
    residual: Option<(&'a [f32], usize)>,
}

impl<'a> Finish<'a> {
    fn new(epilogue: &'a Epilogue<'a>) -> Self {
        let bounds = |f: Unary| if f == Unary::Identity { None } else { f.as_clamp() };
        let now = !is_deferred(epilogue);
        let residual = epilogue.residual.filter(|_| now);
        Self {
            epilogue,
            clamp: if now { bounds(epilogue.activation) } else { None },
            then: residual.and_then(|residual| bounds(residual.then)),
            residual: residual.map(|residual| (residual.data, residual.row_stride)),
        }
    }

    #[inline(always)]
    fn apply<S: Simd>(&self, s: S, pixel: usize, channel: usize, count: usize, sum: S::F) -> S::F {
        let clamp = |y: S::F, bounds: Option<(f32, f32)>| match bounds {
            Some((lo, hi)) => s.at_most(s.at_least(y, s.splat(lo)), s.splat(hi)),
            None => y,
        };
        let mut y = sum;
        if let Some(scale) = self.epilogue.scale {
            y = s.mul(y, s.load_tail(&scale[channel..][..count]));
        }
        if let Some(bias) = self.epilogue.bias {
            y = s.add(y, s.load_tail(&bias[channel..][..count]));
        }
        y = clamp(y, self.clamp);
        if let Some((data, stride)) = self.residual {
            y = s.add(y, s.load_tail(&data[pixel * stride + channel..][..count]));
        }
        clamp(y, self.then)
    }
}

impl SimdOp for OutputTransform<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { job, tiles, from, out } = self;
        let (g, most) = (job.sliding, job.weights.most_tiles());
        let (channels, stride) = (job.weights.out_channels, job.weights.out_stride());
        let finish = Finish::new(job.epilogue);
        for (slot, tile) in tiles.enumerate() {
            let (image, y, x) = job.origin(tile);
            let (height, width) = (OUT.min(g.out_height - y), OUT.min(g.out_width - x));
            for channel in (0..channels).step_by(S::LANES) {
                let count = S::LANES.min(channels - channel);
                let mut half = [[s.splat(0.0); IN]; OUT];
                for j in 0..IN {
                    let mut m = [s.splat(0.0); IN];
                    for i in 0..IN {
                        let start = ((i * IN + j) * most + slot) * stride + channel;
                        m[i] = s.load_slice(&from[start..start + S::LANES]);
                    }
                    let line = output_line(s, m);
                    for i in 0..OUT {
                        half[i][j] = line[i];
                    }
                }
                for i in 0..height {
                    let line = output_line(s, half[i]);
                    for j in 0..width {
                        let pixel = (image * g.out_height + y + i) * g.out_width + x + j;
                        let value = finish.apply(s, pixel, channel, count, line[j]);
                        // SAFETY: channels of a pixel of a tile that the caller may write, see `Job::block`.
                        unsafe {
                            let to = out.add(pixel * channels + channel);
                            if count == S::LANES {
                                s.store(to, value);
                            } else {
                                s.store_partial(to, count, value);
                            }
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Residual;
    use crate::conv_f32::tests::reference;
    use crate::geometry::Window;
    use crate::parallel::{ScopedThreads, Serial};
    use crate::testing::{Guarded, Rng, assert_close};

    /// Runs one convolution; the largest error relative to `sqrt(9 channels)`, which the sums' size grows with.
    fn check(kernel: &GemmF32, g: &Sliding, oc: usize, activation: Unary, threads: usize) -> Vec<f32> {
        let mut rng = Rng::new(5);
        let ic = g.channels;
        let input = rng.floats(g.batch * g.height * g.width * ic, -1.0, 1.0);
        let weights = rng.floats(oc * ic * 9, -1.0, 1.0);
        let (scale, bias) = (rng.floats(oc, 0.5, 1.5), rng.floats(oc, -1.0, 1.0));
        let data = rng.floats(g.out_pixels() * oc, -1.0, 1.0);
        let epilogue = Epilogue {
            scale: Some(&scale),
            bias: Some(&bias),
            activation,
            residual: Some(Residual { data: &data, row_stride: oc, then: Unary::Relu }),
        };
        let packed = PackedWinograd::new(kernel, &weights, oc, ic).unwrap();
        let mut out = Guarded::new(g.out_pixels() * oc, f32::NAN, -3.0);
        let mut scratch = vec![f32::NAN; threads * packed.scratch_len()];
        let executor: &dyn Executor = if threads == 1 { &Serial } else { &ScopedThreads(threads) };
        winograd_f32(kernel, g, &input, &packed, &epilogue, out.get_mut(), &mut scratch, executor).unwrap();
        out.check();
        let function = |f: Unary, x: f32| match f {
            Unary::Relu => x.max(0.0),
            Unary::Silu => x / (1.0 + (-x).exp()),
            _ => x,
        };
        let want: Vec<f32> = reference(g, &input, &weights, oc, 1)
            .iter()
            .enumerate()
            .map(|(i, &sum)| epilogue.reference(sum, i / oc, i % oc, function))
            .collect();
        let bound = 5e-6 * (9.0 * ic as f32).sqrt();
        assert_close(out.get(), &want, bound, 1e-5, &format!("{kernel:?} {g:?} oc {oc} {activation:?}"));
        out.get().to_vec()
    }

    #[test]
    fn every_size_padding_channel_count_and_epilogue_is_right() {
        for kernel in GemmF32::all_available() {
            for (size, ic, oc) in [
                ([1, 4, 4], 16, 16),
                ([2, 7, 9], 5, 33),
                ([1, 14, 13], 32, 8),
                ([1, 3, 2], 17, 3),
                ([3, 6, 6], 20, 48),
                ([1, 5, 5], 270, 40),
            ] {
                for (pad, end) in [(1, 1), (0, 0), (2, 0), (0, 2)] {
                    let window = Window { pad_end: end, ..Window::new(3, 1, pad) };
                    let Ok(g) = Sliding::new([size[0], size[1], size[2], ic], window, window) else {
                        continue;
                    };
                    for activation in [Unary::Identity, Unary::Relu, Unary::Silu] {
                        check(&kernel, &g, oc, activation, 1);
                    }
                }
            }
        }
    }

    #[test]
    fn threads_do_not_change_a_bit() {
        let kernel = GemmF32::all_available().pop().unwrap();
        let window = Window::new(3, 1, 1);
        let g = Sliding::new([1, 30, 27, 24], window, window).unwrap();
        let one = check(&kernel, &g, 40, Unary::Relu, 1);
        assert!([2, 3, 5].iter().all(|&threads| check(&kernel, &g, 40, Unary::Relu, threads) == one));
    }

    #[test]
    fn arguments_that_do_not_fit_are_refused() {
        let kernel = GemmF32::all_available().pop().unwrap();
        assert!(PackedWinograd::new(&kernel, &[0.0; 17], 1, 2).is_err());
        let packed = PackedWinograd::new(&kernel, &[0.0; 18], 1, 2).unwrap();
        let run = |stride: usize, input: usize, scratch: usize| {
            let window = Window::new(3, stride, 1);
            let g = Sliding::new([1, 4, 4, 2], window, window).unwrap();
            let (input, mut out) = (vec![0.0; input], vec![0.0; g.out_pixels()]);
            let epilogue = Epilogue::default();
            let mut scratch = vec![0.0; scratch];
            winograd_f32(&kernel, &g, &input, &packed, &epilogue, &mut out, &mut scratch, &Serial)
        };
        assert!(run(1, 32, packed.scratch_len()).is_ok());
        assert!(run(2, 32, packed.scratch_len()).is_err());
        assert!(run(1, 31, packed.scratch_len()).is_err());
        assert!(run(1, 32, packed.scratch_len() - 1).is_err());
    }
}
