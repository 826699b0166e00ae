//! The kernels: interleaving of four rows, and dot products of four bytes per lane.

#![allow(
    clippy::needless_range_loop,
    reason = "counted loops over register tiles are what the compiler unrolls"
)]

use crate::cpu::IsaLevel;
use crate::simd::VectorIsa;

/// Channels that are interleaved at a time.
pub(super) const LINE_UNIT: usize = 16;

/// Most channels of a strip.
pub(super) const MOST_STRIP: usize = 32;

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
type StripFn = unsafe fn(&StripArgs);

/// Four rows of 16 channels become 16 lanes of four bytes, for some neighbouring columns: those of row `i` lie `steps[i]`
/// apart, those of the result `pitch`.
///
/// # Safety
/// Every row must be readable for 16 bytes at each column, the result writable for 64.
type InterleaveFn =
    unsafe fn(rows: [*const i8; 4], steps: [usize; 4], columns: usize, to: *mut u8, pitch: usize);

/// Dot products of four bytes per lane, of two vectors.
trait LaneDot: Copy {
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

/// All pixels of the segment, for strips of `VECTORS` vectors; `TAPS` is the product of window width and groups, or 0 for any.
///
/// # Safety
/// As [`StripFn`].
#[inline(always)]
unsafe fn sum_strip<D: LaneDot, const VECTORS: usize, const TAPS: usize>(d: D, args: &StripArgs) {
    let vector = 4 * D::LANES;
    // SAFETY: the caller vouches for everything that the arguments describe.
    unsafe {
        let mut init = [d.load_i32(args.init); VECTORS];
        for v in 1..VECTORS {
            init[v] = d.load_i32(args.init.add(v * D::LANES));
        }
        let mut weights = [[d.load_w(args.weights); VECTORS]; TAPS];
        for tap in 0..TAPS {
            for v in 0..VECTORS {
                weights[tap][v] = d.load_w(args.weights.add((tap * VECTORS + v) * vector));
            }
        }
        for pixel in 0..args.pixels {
            let window = args.columns.add(pixel * args.pixel_pitch);
            let mut acc = init;
            if TAPS > 0 {
                // One group of rows: taps are window columns.
                for tap in 0..TAPS {
                    let x = window.add(tap * args.column_pitch);
                    for v in 0..VECTORS {
                        acc[v] = d.dot(acc[v], x.add(v * vector), weights[tap][v]);
                    }
                }
            } else {
                let mut w = args.weights;
                for column in 0..args.kernel_width {
                    let mut x = window.add(column * args.column_pitch);
                    for _ in 0..args.groups {
                        for v in 0..VECTORS {
                            acc[v] = d.dot(acc[v], x.add(v * vector), d.load_w(w.add(v * vector)));
                        }
                        x = x.add(VECTORS * vector);
                        w = w.add(VECTORS * vector);
                    }
                }
            }
            for v in 0..VECTORS {
                d.store_i32(args.out.add((pixel * VECTORS + v) * D::LANES), acc[v]);
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
unsafe fn interleave_plain(
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
unsafe fn strip_plain<const TAPS: usize>(args: &StripArgs) {
    // SAFETY: the caller keeps the contract.
    unsafe { sum_strip::<Plain, 4, TAPS>(Plain, args) }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::*;

    /// Interleaves; every x86-64 CPU has the instructions. Adds 128 if `FLIP` is -128.
    ///
    /// # Safety
    /// As [`InterleaveFn`].
    pub(super) unsafe fn interleave<const FLIP: i8>(
        rows: [*const i8; 4],
        steps: [usize; 4],
        columns: usize,
        to: *mut u8,
        pitch: usize,
    ) {
        // SAFETY: SSE2 is part of x86-64; the caller vouches for the lines of every column.
        unsafe {
            let flip = _mm_set1_epi8(FLIP);
            let mut rows = rows;
            let mut to = to;
            for _ in 0..columns {
                let [a, b, c, d] = rows.map(|row| _mm_xor_si128(_mm_loadu_si128(row.cast()), flip));
                for (row, step) in rows.iter_mut().zip(steps) {
                    *row = row.wrapping_add(step);
                }
                let (ab_low, ab_high) = (_mm_unpacklo_epi8(a, b), _mm_unpackhi_epi8(a, b));
                let (cd_low, cd_high) = (_mm_unpacklo_epi8(c, d), _mm_unpackhi_epi8(c, d));
                let line = to.cast::<__m128i>();
                _mm_storeu_si128(line, _mm_unpacklo_epi16(ab_low, cd_low));
                _mm_storeu_si128(line.add(1), _mm_unpackhi_epi16(ab_low, cd_low));
                _mm_storeu_si128(line.add(2), _mm_unpacklo_epi16(ab_high, cd_high));
                _mm_storeu_si128(line.add(3), _mm_unpackhi_epi16(ab_high, cd_high));
                to = to.wrapping_add(pitch);
            }
        }
    }

    /// Implements [`LaneDot`] but for its product.
    macro_rules! lanes {
        ($lanes:literal, $vector:ty, $load:ident, $store:ident) => {
            const LANES: usize = $lanes;
            type I = $vector;
            type W = $vector;

            #[inline(always)]
            unsafe fn load_i32(self, from: *const i32) -> Self::I {
                // SAFETY: the caller vouches for the memory; the kernel runs only where its instructions exist.
                unsafe { $load(from.cast()) }
            }
            #[inline(always)]
            unsafe fn store_i32(self, to: *mut i32, x: Self::I) {
                // SAFETY: as in `load_i32`.
                unsafe { $store(to.cast(), x) }
            }
            #[inline(always)]
            unsafe fn load_w(self, from: *const i8) -> Self::W {
                // SAFETY: as in `load_i32`.
                unsafe { $load(from.cast()) }
            }
        };
    }

    /// Even and odd bytes as 16-bit numbers: exact.
    #[derive(Clone, Copy)]
    struct Wide256;

    impl LaneDot for Wide256 {
        lanes!(8, __m256i, _mm256_loadu_si256, _mm256_storeu_si256);

        #[inline(always)]
        unsafe fn dot(self, acc: Self::I, x: *const u8, w: Self::W) -> Self::I {
            // SAFETY: as in `load_i32`.
            unsafe {
                let x = _mm256_loadu_si256(x.cast());
                let x_even = _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(x));
                let w_even = _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(w));
                let (x_odd, w_odd) = (_mm256_srai_epi16::<8>(x), _mm256_srai_epi16::<8>(w));
                let sum =
                    _mm256_add_epi32(_mm256_madd_epi16(x_even, w_even), _mm256_madd_epi16(x_odd, w_odd));
                _mm256_add_epi32(acc, sum)
            }
        }
    }

    #[derive(Clone, Copy)]
    struct Wide512;

    impl LaneDot for Wide512 {
        lanes!(16, __m512i, _mm512_loadu_si512, _mm512_storeu_si512);

        #[inline(always)]
        unsafe fn dot(self, acc: Self::I, x: *const u8, w: Self::W) -> Self::I {
            // SAFETY: as in `load_i32`.
            unsafe {
                let x = _mm512_loadu_si512(x.cast());
                let x_even = _mm512_srai_epi16::<8>(_mm512_slli_epi16::<8>(x));
                let w_even = _mm512_srai_epi16::<8>(_mm512_slli_epi16::<8>(w));
                let (x_odd, w_odd) = (_mm512_srai_epi16::<8>(x), _mm512_srai_epi16::<8>(w));
                let sum =
                    _mm512_add_epi32(_mm512_madd_epi16(x_even, w_even), _mm512_madd_epi16(x_odd, w_odd));
                _mm512_add_epi32(acc, sum)
            }
        }
    }

    #[derive(Clone, Copy)]
    struct Vnni256;

    impl LaneDot for Vnni256 {
        lanes!(8, __m256i, _mm256_loadu_si256, _mm256_storeu_si256);

        #[inline(always)]
        unsafe fn dot(self, acc: Self::I, x: *const u8, w: Self::W) -> Self::I {
            // SAFETY: as in `load_i32`.
            unsafe { _mm256_dpbusd_avx_epi32(acc, _mm256_loadu_si256(x.cast()), w) }
        }
    }

    #[derive(Clone, Copy)]
    struct Vnni512;

    impl LaneDot for Vnni512 {
        lanes!(16, __m512i, _mm512_loadu_si512, _mm512_storeu_si512);

        #[inline(always)]
        unsafe fn dot(self, acc: Self::I, x: *const u8, w: Self::W) -> Self::I {
            // SAFETY: as in `load_i32`.
            unsafe { _mm512_dpbusd_epi32(acc, _mm512_loadu_si512(x.cast()), w) }
        }
    }

    /// # Safety
    /// As [`StripFn`]; the CPU has AVX2.
    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn wide_256<const TAPS: usize>(args: &StripArgs) {
        // SAFETY: the caller keeps the contract.
        unsafe { sum_strip::<Wide256, 2, TAPS>(Wide256, args) }
    }

    /// # Safety
    /// As [`StripFn`]; the CPU has AVX-512.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    pub(super) unsafe fn wide_512<const TAPS: usize>(args: &StripArgs) {
        // SAFETY: the caller keeps the contract.
        unsafe { sum_strip::<Wide512, 2, TAPS>(Wide512, args) }
    }

    /// # Safety
    /// As [`StripFn`]; the CPU has AVX-VNNI.
    #[target_feature(enable = "avx2,avxvnni")]
    pub(super) unsafe fn vnni_256<const TAPS: usize>(args: &StripArgs) {
        // SAFETY: the caller keeps the contract.
        unsafe { sum_strip::<Vnni256, 2, TAPS>(Vnni256, args) }
    }

    /// # Safety
    /// As [`StripFn`]; the CPU has AVX-512 VNNI.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    pub(super) unsafe fn vnni_512<const TAPS: usize>(args: &StripArgs) {
        // SAFETY: the caller keeps the contract.
        unsafe { sum_strip::<Vnni512, 2, TAPS>(Vnni512, args) }
    }
}

#[cfg(target_arch = "aarch64")]
mod a64 {
    use std::arch::aarch64::*;
    use std::arch::asm;

    use super::*;

    /// Interleaves by one structured store; every CPU with Advanced SIMD has it.
    ///
    /// # Safety
    /// As [`InterleaveFn`].
    pub(super) unsafe fn interleave(
        rows: [*const i8; 4],
        steps: [usize; 4],
        columns: usize,
        to: *mut u8,
        pitch: usize,
    ) {
        // SAFETY: a kernel that uses this exists only with the token of Advanced SIMD; the caller vouches for the lines
        // of every column.
        unsafe {
            for column in 0..columns {
                let load = |i: usize| vld1q_u8(rows[i].add(column * steps[i]).cast());
                vst4q_u8(to.add(column * pitch), uint8x16x4_t(load(0), load(1), load(2), load(3)));
            }
        }
    }

    macro_rules! lanes {
        () => {
            const LANES: usize = 4;
            type I = int32x4_t;
            type W = int8x16_t;

            #[inline(always)]
            unsafe fn load_i32(self, from: *const i32) -> Self::I {
                // SAFETY: the caller vouches for the memory; the kernel runs only where its instructions exist.
                unsafe { vld1q_s32(from) }
            }
            #[inline(always)]
            unsafe fn store_i32(self, to: *mut i32, x: Self::I) {
                // SAFETY: as in `load_i32`.
                unsafe { vst1q_s32(to, x) }
            }
            #[inline(always)]
            unsafe fn load_w(self, from: *const i8) -> Self::W {
                // SAFETY: as in `load_i32`.
                unsafe { vld1q_s8(from) }
            }
        };
    }

    #[derive(Clone, Copy)]
    struct Wide;

    impl LaneDot for Wide {
        lanes!();

        #[inline(always)]
        unsafe fn dot(self, acc: Self::I, x: *const u8, w: Self::W) -> Self::I {
            // SAFETY: as in `load_i32`.
            unsafe {
                let x = vld1q_s8(x.cast());
                let first = vpaddlq_s16(vmull_s8(vget_low_s8(x), vget_low_s8(w)));
                let second = vpaddlq_s16(vmull_high_s8(x, w));
                vaddq_s32(acc, vpaddq_s32(first, second))
            }
        }
    }

    #[derive(Clone, Copy)]
    struct Sdot;

    impl LaneDot for Sdot {
        lanes!();

        #[inline(always)]
        unsafe fn dot(self, acc: Self::I, x: *const u8, w: Self::W) -> Self::I {
            let mut sum = acc;
            // SAFETY: as in `load_i32`; one instruction on registers, of a CPU that has it.
            unsafe {
                let x = vld1q_s8(x.cast());
                asm!("sdot {s:v}.4s, {x:v}.16b, {w:v}.16b", s = inout(vreg) sum, x = in(vreg) x, w = in(vreg) w,
                     options(pure, nomem, nostack, preserves_flags));
            }
            sum
        }
    }

    /// # Safety
    /// As [`StripFn`].
    #[target_feature(enable = "neon")]
    pub(super) unsafe fn wide<const TAPS: usize>(args: &StripArgs) {
        // SAFETY: the caller keeps the contract.
        unsafe { sum_strip::<Wide, 4, TAPS>(Wide, args) }
    }

    /// # Safety
    /// As [`StripFn`]; the CPU has `sdot`.
    #[target_feature(enable = "neon,dotprod")]
    pub(super) unsafe fn sdot<const TAPS: usize>(args: &StripArgs) {
        // SAFETY: the caller keeps the contract.
        unsafe { sum_strip::<Sdot, 4, TAPS>(Sdot, args) }
    }
}

/// An int8 depthwise kernel, with the proof that it may run.
#[derive(Clone, Copy)]
pub struct DepthwiseI8 {
    name: &'static str,
    level: IsaLevel,
    isa: VectorIsa,
    /// Channels of a strip: a multiple of [`LINE_UNIT`].
    strip: usize,
    /// What interleaving adds to the codes.
    shift: i32,
    interleave: InterleaveFn,
    /// For windows three wide and at most four high, and for any.
    three: StripFn,
    any: StripFn,
}

impl std::fmt::Debug for DepthwiseI8 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

fn baseline() -> DepthwiseI8 {
    DepthwiseI8 {
        name: "depthwise_i8_baseline",
        level: IsaLevel::Baseline,
        isa: VectorIsa::Portable,
        strip: 16,
        shift: 0,
        interleave: interleave_plain,
        three: strip_plain::<3>,
        any: strip_plain::<0>,
    }
}

#[cfg(target_arch = "x86_64")]
fn of_architecture() -> Vec<DepthwiseI8> {
    use crate::cpu::{Avx2, Avx512, Avx512Vnni, AvxVnni};
    let mut all = Vec::new();
    all.extend(Avx2::detect().map(|token| DepthwiseI8 {
        name: "depthwise_i8_avx2",
        level: Avx2::LEVEL,
        isa: VectorIsa::Avx2(token),
        strip: 16,
        shift: 0,
        interleave: x86::interleave::<0>,
        three: x86::wide_256::<3>,
        any: x86::wide_256::<0>,
    }));
    all.extend(AvxVnni::detect().map(|token| DepthwiseI8 {
        name: "depthwise_i8_avxvnni",
        level: AvxVnni::LEVEL,
        isa: VectorIsa::Avx2(token.avx2()),
        strip: 16,
        shift: 128,
        interleave: x86::interleave::<-128>,
        three: x86::vnni_256::<3>,
        any: x86::vnni_256::<0>,
    }));
    all.extend(Avx512::detect().map(|token| DepthwiseI8 {
        name: "depthwise_i8_avx512",
        level: Avx512::LEVEL,
        isa: VectorIsa::Avx512(token),
        strip: 32,
        shift: 0,
        interleave: x86::interleave::<0>,
        three: x86::wide_512::<3>,
        any: x86::wide_512::<0>,
    }));
    all.extend(Avx512Vnni::detect().map(|token| DepthwiseI8 {
        name: "depthwise_i8_avx512vnni",
        level: Avx512Vnni::LEVEL,
        isa: VectorIsa::Avx512(token.avx512()),
        strip: 32,
        shift: 128,
        interleave: x86::interleave::<-128>,
        three: x86::vnni_512::<3>,
        any: x86::vnni_512::<0>,
    }));
    all
}

#[cfg(target_arch = "aarch64")]
fn of_architecture() -> Vec<DepthwiseI8> {
    use crate::cpu::{Neon, NeonDotprod};
    let mut all = Vec::new();
    all.extend(Neon::detect().map(|token| DepthwiseI8 {
        name: "depthwise_i8_neon",
        level: Neon::LEVEL,
        isa: VectorIsa::Neon(token),
        strip: 16,
        shift: 0,
        interleave: a64::interleave,
        three: a64::wide::<3>,
        any: a64::wide::<0>,
    }));
    all.extend(NeonDotprod::detect().map(|token| DepthwiseI8 {
        name: "depthwise_i8_dotprod",
        level: NeonDotprod::LEVEL,
        isa: VectorIsa::Neon(token.neon()),
        strip: 16,
        shift: 0,
        interleave: a64::interleave,
        three: a64::sdot::<3>,
        any: a64::sdot::<0>,
    }));
    all
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn of_architecture() -> Vec<DepthwiseI8> {
    Vec::new()
}

impl DepthwiseI8 {
    /// The kernels that may run here, the lowest level first.
    pub fn all_available() -> Vec<Self> {
        std::iter::once(baseline()).chain(of_architecture()).collect()
    }

    /// The best kernel of a level up to `cap` that may run here.
    pub fn at_most(cap: IsaLevel) -> Self {
        of_architecture().into_iter().rfind(|kernel| kernel.level <= cap).unwrap_or_else(baseline)
    }

    /// For example `depthwise_i8_avx512vnni`.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The level whose instructions the sums use.
    pub fn level(&self) -> IsaLevel {
        self.level
    }

    /// The instruction set of the epilogues.
    pub fn isa(&self) -> VectorIsa {
        self.isa
    }

    /// Channels of a strip.
    pub(super) fn strip(&self) -> usize {
        self.strip
    }

    pub(super) fn shift(&self) -> i32 {
        self.shift
    }

    /// See [`InterleaveFn`].
    ///
    /// # Safety
    /// As [`InterleaveFn`].
    #[inline]
    pub(super) unsafe fn interleave(
        &self,
        rows: [*const i8; 4],
        steps: [usize; 4],
        columns: usize,
        to: *mut u8,
        pitch: usize,
    ) {
        // SAFETY: the caller keeps the contract; the kernel exists, so its instructions do.
        unsafe { (self.interleave)(rows, steps, columns, to, pitch) };
    }

    /// The sums of a segment.
    ///
    /// # Safety
    /// Everything that the arguments describe must be readable, `out` writable for a strip per pixel.
    pub(super) unsafe fn sum_strip(&self, args: &StripArgs) {
        let kernel = if args.kernel_width == 3 && args.groups == 1 { self.three } else { self.any };
        // SAFETY: the kernel exists, so its instructions do; the memory is the caller's promise.
        unsafe { kernel(args) }
    }
}
