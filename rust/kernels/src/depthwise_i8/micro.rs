//! What an instruction set provides, and the loop over the pixels of a segment written once over it.

#![allow(
    clippy::needless_range_loop,
    reason = "counted loops over register tiles are what the compiler unrolls"
)]

/// Channels that most kernels interleave at a time.
pub(super) const LINE_UNIT: usize = 16;

/// Most channels that are interleaved at a time, and most channels of a strip.
pub(super) const MOST_STRIP: usize = 64;

/// The sums of some neighbouring pixels of a row, for a strip of channels.
pub(super) struct StripArgs {
    /// Interleaved input columns.
    pub(super) columns: *const u8,
    /// Bytes between the windows of neighbouring pixels.
    pub(super) pixel_pitch: usize,
    /// Bytes between the columns of a window.
    pub(super) column_pitch: usize,
    /// Weights: for each window column and group of rows a strip of lanes.
    pub(super) weights: *const i8,
    pub(super) init: *const i32,
    pub(super) kernel_width: usize,
    pub(super) groups: usize,
    pub(super) pixels: usize,
    /// A strip for each pixel.
    pub(super) out: *mut i32,
}

/// # Safety
/// The CPU has the instructions; everything that the arguments describe is readable, `out` writable.
pub(super) type StripFn = unsafe fn(&StripArgs);

/// Four rows of as many channels as the kernel takes at a time become lanes of four bytes, for some neighbouring columns: those of row `i` lie `steps[i]`
/// apart, those of the result `pitch`.
///
/// # Safety
/// Every row must be readable for that many bytes at each column, the result writable for four times as many.
pub(super) type InterleaveFn =
    unsafe fn(rows: [*const i8; 4], steps: [usize; 4], columns: usize, to: *mut u8, pitch: usize);

/// Dot products of four bytes per lane, of two vectors.
pub(super) trait LaneDot: Copy {
    const LANES: usize;
    type I: Copy;
    /// Weights of a vector of channels.
    type W: Copy;
    /// # Safety
    /// `from` must be readable for `LANES` values.
    unsafe fn load_i32(self, from: *const i32) -> Self::I;
    /// # Safety
    /// `to` must be writable for `LANES` values.
    unsafe fn store_i32(self, to: *mut i32, x: Self::I);
    /// # Safety
    /// `from` must be readable for `4 * LANES` bytes.
    unsafe fn load_w(self, from: *const i8) -> Self::W;
    /// `acc[j] += sum over g of x[4 j + g] * w[4 j + g]`, exact.
    ///
    /// # Safety
    /// `x` must be readable for `4 * LANES` bytes.
    unsafe fn dot(self, acc: Self::I, x: *const u8, w: Self::W) -> Self::I;
}

/// Pixels whose sums are made together where the weights do not fit into registers.
const PIXELS: usize = 4;

/// All pixels of the segment, for the first `USED` of the `VECTORS` vectors of a strip; `TAPS` is the product of window
/// width and groups, or 0 for any.
///
/// # Safety
/// As [`StripFn`].
#[inline(always)]
pub(super) unsafe fn sum_strip<D: LaneDot, const VECTORS: usize, const USED: usize, const TAPS: usize>(
    d: D,
    args: &StripArgs,
) {
    let vector = 4 * D::LANES;
    // SAFETY: the caller vouches for everything that the arguments describe.
    unsafe {
        let mut init = [d.load_i32(args.init); USED];
        for v in 1..USED {
            init[v] = d.load_i32(args.init.add(v * D::LANES));
        }
        if TAPS == 0 {
            let mut pixel = 0;
            while pixel + PIXELS <= args.pixels {
                sum_pixels::<D, VECTORS, USED, PIXELS>(d, args, pixel, init);
                pixel += PIXELS;
            }
            for pixel in pixel..args.pixels {
                sum_pixels::<D, VECTORS, USED, 1>(d, args, pixel, init);
            }
            return;
        }
        let mut weights = [[d.load_w(args.weights); USED]; TAPS];
        for tap in 0..TAPS {
            for v in 0..USED {
                weights[tap][v] = d.load_w(args.weights.add((tap * VECTORS + v) * vector));
            }
        }
        for pixel in 0..args.pixels {
            let window = args.columns.add(pixel * args.pixel_pitch);
            let mut acc = init;
            // One group of rows: taps are window columns.
            for tap in 0..TAPS {
                let x = window.add(tap * args.column_pitch);
                for v in 0..USED {
                    acc[v] = d.dot(acc[v], x.add(v * vector), weights[tap][v]);
                }
            }
            for v in 0..USED {
                d.store_i32(args.out.add((pixel * VECTORS + v) * D::LANES), acc[v]);
            }
        }
    }
}

/// `P` neighbouring pixels of a window of any size.
///
/// # Safety
/// As [`StripFn`].
#[inline(always)]
unsafe fn sum_pixels<D: LaneDot, const VECTORS: usize, const USED: usize, const P: usize>(
    d: D,
    args: &StripArgs,
    pixel: usize,
    init: [D::I; USED],
) {
    let vector = 4 * D::LANES;
    // SAFETY: the caller vouches for everything that the arguments describe.
    unsafe {
        let mut acc = [init; P];
        let mut w = args.weights;
        for column in 0..args.kernel_width {
            let mut x = args.columns.add(pixel * args.pixel_pitch + column * args.column_pitch);
            for _ in 0..args.groups {
                for v in 0..USED {
                    let weights = d.load_w(w.add(v * vector));
                    for p in 0..P {
                        acc[p][v] = d.dot(acc[p][v], x.add(p * args.pixel_pitch + v * vector), weights);
                    }
                }
                x = x.add(VECTORS * vector);
                w = w.add(VECTORS * vector);
            }
        }
        for p in 0..P {
            for v in 0..USED {
                d.store_i32(args.out.add(((pixel + p) * VECTORS + v) * D::LANES), acc[p][v]);
            }
        }
    }
}

#[derive(Clone, Copy)]
struct Plain;

impl LaneDot for Plain {
    const LANES: usize = 4;
    type I = [i32; 4];
    type W = [i8; 16];

    #[inline(always)]
    unsafe fn load_i32(self, from: *const i32) -> Self::I {
        // SAFETY: the caller vouches for four values.
        unsafe { from.cast::<[i32; 4]>().read() }
    }
    #[inline(always)]
    unsafe fn store_i32(self, to: *mut i32, x: Self::I) {
        // SAFETY: the caller vouches for four values.
        unsafe { to.cast::<[i32; 4]>().write(x) }
    }
    #[inline(always)]
    unsafe fn load_w(self, from: *const i8) -> Self::W {
        // SAFETY: the caller vouches for 16 bytes.
        unsafe { from.cast::<[i8; 16]>().read() }
    }
    #[inline(always)]
    unsafe fn dot(self, acc: Self::I, x: *const u8, w: Self::W) -> Self::I {
        // SAFETY: the caller vouches for 16 bytes.
        let x = unsafe { x.cast::<[i8; 16]>().read() };
        std::array::from_fn(|j| {
            (4 * j..4 * j + 4).fold(acc[j], |sum, i| sum + i32::from(x[i]) * i32::from(w[i]))
        })
    }
}

/// # Safety
/// As [`InterleaveFn`].
pub(super) unsafe fn interleave_plain(
    rows: [*const i8; 4],
    steps: [usize; 4],
    columns: usize,
    to: *mut u8,
    pitch: usize,
) {
    for column in 0..columns {
        for lane in 0..LINE_UNIT {
            for i in 0..4 {
                // SAFETY: the caller vouches for the lines of every column.
                unsafe {
                    *to.add(column * pitch + 4 * lane + i) = *rows[i].add(column * steps[i] + lane) as u8
                };
            }
        }
    }
}

/// # Safety
/// As [`StripFn`].
pub(super) unsafe fn strip_plain<const TAPS: usize>(args: &StripArgs) {
    // SAFETY: the caller keeps the contract.
    unsafe { sum_strip::<Plain, 4, 4, TAPS>(Plain, args) }
}
