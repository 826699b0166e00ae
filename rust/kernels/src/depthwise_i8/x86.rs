//! Depthwise kernels of x86-64.

use std::arch::x86_64::*;

use super::micro::{LaneDot, StripArgs, sum_strip};

/// Interleaves; every x86-64 CPU has the instructions. Adds 128 if `FLIP` is -128.
///
/// # Safety
/// As [`InterleaveFn`](super::micro::InterleaveFn).
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

/// Even and odd bytes as 16-bit numbers: exact. Every x86-64 CPU has the instructions.
#[derive(Clone, Copy)]
struct Wide128;

impl LaneDot for Wide128 {
    lanes!(4, __m128i, _mm_loadu_si128, _mm_storeu_si128);

    #[inline(always)]
    unsafe fn dot(self, acc: Self::I, x: *const u8, w: Self::W) -> Self::I {
        // SAFETY: as in `load_i32`.
        unsafe {
            let x = _mm_loadu_si128(x.cast());
            let x_even = _mm_srai_epi16::<8>(_mm_slli_epi16::<8>(x));
            let w_even = _mm_srai_epi16::<8>(_mm_slli_epi16::<8>(w));
            let (x_odd, w_odd) = (_mm_srai_epi16::<8>(x), _mm_srai_epi16::<8>(w));
            let sum = _mm_add_epi32(_mm_madd_epi16(x_even, w_even), _mm_madd_epi16(x_odd, w_odd));
            _mm_add_epi32(acc, sum)
        }
    }
}

/// As [`Wide128`].
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
            let sum = _mm256_add_epi32(_mm256_madd_epi16(x_even, w_even), _mm256_madd_epi16(x_odd, w_odd));
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
            let sum = _mm512_add_epi32(_mm512_madd_epi16(x_even, w_even), _mm512_madd_epi16(x_odd, w_odd));
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

/// Interleaves 64 channels at a time, as codes + 128. Rows are brought into an order whose interleaving within quarters of a
/// register gives the channels in theirs.
///
/// # Safety
/// As [`InterleaveFn`](super::micro::InterleaveFn); the CPU has AVX-512.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) unsafe fn interleave_64<const FLIP: i8>(
    rows: [*const i8; 4],
    steps: [usize; 4],
    columns: usize,
    to: *mut u8,
    pitch: usize,
) {
    let flip = _mm512_set1_epi8(FLIP);
    let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    for column in 0..columns {
        // SAFETY: the caller vouches for the lines of every column.
        unsafe {
            let load = |i: usize| {
                let codes = _mm512_loadu_si512(rows[i].add(column * steps[i]).cast());
                _mm512_permutexvar_epi32(order, _mm512_xor_si512(codes, flip))
            };
            let (a, b, c, d) = (load(0), load(1), load(2), load(3));
            let (ab_low, ab_high) = (_mm512_unpacklo_epi8(a, b), _mm512_unpackhi_epi8(a, b));
            let (cd_low, cd_high) = (_mm512_unpacklo_epi8(c, d), _mm512_unpackhi_epi8(c, d));
            let line = to.add(column * pitch).cast::<__m512i>();
            _mm512_storeu_si512(line, _mm512_unpacklo_epi16(ab_low, cd_low));
            _mm512_storeu_si512(line.add(1), _mm512_unpackhi_epi16(ab_low, cd_low));
            _mm512_storeu_si512(line.add(2), _mm512_unpacklo_epi16(ab_high, cd_high));
            _mm512_storeu_si512(line.add(3), _mm512_unpackhi_epi16(ab_high, cd_high));
        }
    }
}

/// A kernel for its instructions.
macro_rules! strip {
    ($name:ident, $dot:ident, $vectors:literal, $features:literal) => {
        /// # Safety
        /// As [`StripFn`](super::micro::StripFn); the CPU has the instructions.
        #[target_feature(enable = $features)]
        pub(super) unsafe fn $name<const USED: usize, const TAPS: usize>(args: &StripArgs) {
            // SAFETY: the caller keeps the contract.
            unsafe { sum_strip::<$dot, $vectors, USED, TAPS>($dot, args) }
        }
    };
}

strip!(wide_128, Wide128, 4, "sse2");
strip!(wide_256, Wide256, 2, "avx2");
strip!(wide_512, Wide512, 4, "avx512f,avx512bw,avx512dq,avx512vl");
strip!(vnni_256, Vnni256, 2, "avx2,avxvnni");
strip!(vnni_512, Vnni512, 4, "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni");
