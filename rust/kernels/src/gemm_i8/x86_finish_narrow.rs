//! From sums to codes with AVX2 or SSE2: two rows of two vectors at a time, narrowed by saturating packs.
//!
//! The arithmetic is that of the AVX-512 epilogue (`x86_finish`), element by element; it needs [small] parameters as well.
//!
//! [small]: super::x86_finish::is_small

use std::arch::x86_64::*;

use super::epilogue::Tile;
use super::requantize::{Requantize, ResidualI8};

/// What an instruction set provides.
trait Registers: Copy {
    /// Values of a register.
    const LANES: usize;
    type F: Copy;
    type I: Copy;

    /// One value in all lanes.
    ///
    /// # Safety
    /// The CPU has the instructions, as for all functions here.
    unsafe fn splat(self, x: f32) -> Self::F;
    /// # Safety
    /// `from` must be readable for `LANES` values.
    unsafe fn load(self, from: *const f32) -> Self::F;
    /// `round(acc * scale + bias)`, halves away from zero.
    ///
    /// # Safety
    /// `acc` must be readable for `LANES` values.
    unsafe fn codes(self, acc: *const i32, scale: Self::F, bias: Self::F) -> Self::I;
    /// The sum with other codes, without the zero point of the result.
    ///
    /// # Safety
    /// `from` must be readable for `LANES` codes.
    unsafe fn add(self, code: Self::I, from: *const i8, how: &Requantize<'_>, r: &ResidualI8<'_>) -> Self::I;
    /// Stores two vectors to `to[0]` and two to `to[1]`, with `[zero, lo, hi]`.
    ///
    /// # Safety
    /// Both must be writable for `2 * LANES` codes.
    unsafe fn store(self, v: [Self::I; 4], bounds: [i16; 3], to: [*mut i8; 2]);
}

#[derive(Clone, Copy)]
struct Sse2;

impl Registers for Sse2 {
    const LANES: usize = 4;
    type F = __m128;
    type I = __m128i;

    #[inline(always)]
    unsafe fn splat(self, x: f32) -> Self::F {
        // SAFETY: SSE2 is part of x86-64.
        unsafe { _mm_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> Self::F {
        // SAFETY: the caller vouches for the memory.
        unsafe { _mm_loadu_ps(from) }
    }
    #[inline(always)]
    unsafe fn codes(self, acc: *const i32, scale: Self::F, bias: Self::F) -> Self::I {
        // SAFETY: the caller vouches for the memory.
        unsafe {
            let sums = _mm_cvtepi32_ps(_mm_loadu_si128(acc.cast()));
            round_128(_mm_add_ps(_mm_mul_ps(sums, scale), bias))
        }
    }
    #[inline(always)]
    unsafe fn add(self, code: Self::I, from: *const i8, how: &Requantize<'_>, r: &ResidualI8<'_>) -> Self::I {
        // SAFETY: the caller vouches for four codes.
        unsafe {
            // 16 bits are enough for what the bounds leave, and have a minimum and a maximum.
            let narrow = _mm_packs_epi32(code, code);
            let narrow = _mm_max_epi16(narrow, _mm_set1_epi16((how.lo - how.zero) as i16));
            let narrow = _mm_min_epi16(narrow, _mm_set1_epi16((how.hi - how.zero) as i16));
            let a = _mm_srai_epi32::<16>(_mm_unpacklo_epi16(narrow, narrow));
            let a = _mm_add_epi32(a, _mm_set1_epi32(how.zero - r.how.a_zero));
            let b = _mm_cvtsi32_si128(from.cast::<i32>().read_unaligned());
            let b = _mm_unpacklo_epi8(b, b);
            let b = _mm_srai_epi32::<24>(_mm_unpacklo_epi16(b, b));
            let b = _mm_sub_epi32(b, _mm_set1_epi32(r.how.b_zero));
            let a = _mm_mul_ps(_mm_cvtepi32_ps(a), _mm_set1_ps(r.how.a_scale));
            let b = _mm_mul_ps(_mm_cvtepi32_ps(b), _mm_set1_ps(r.how.b_scale));
            round_128(_mm_add_ps(a, b))
        }
    }
    #[inline(always)]
    unsafe fn store(self, v: [Self::I; 4], bounds: [i16; 3], to: [*mut i8; 2]) {
        // SAFETY: the caller vouches for the memory.
        unsafe {
            let [zero, lo, hi] = bounds.map(|x| _mm_set1_epi16(x));
            let codes = |a, b| {
                let codes = _mm_adds_epi16(_mm_packs_epi32(a, b), zero);
                _mm_min_epi16(_mm_max_epi16(codes, lo), hi)
            };
            let packed = _mm_packs_epi16(codes(v[0], v[1]), codes(v[2], v[3]));
            _mm_storel_epi64(to[1].cast(), _mm_unpackhi_epi64(packed, packed));
            _mm_storel_epi64(to[0].cast(), packed);
        }
    }
}

/// `trunc(x + copysign(0.5 - 2^-25, x))`.
#[inline(always)]
unsafe fn round_128(x: __m128) -> __m128i {
    // SAFETY: SSE2 is part of x86-64.
    unsafe {
        let half = _mm_or_ps(_mm_and_ps(x, _mm_set1_ps(-0.0)), _mm_set1_ps(0.5_f32.next_down()));
        _mm_cvttps_epi32(_mm_add_ps(x, half))
    }
}

#[derive(Clone, Copy)]
struct Avx2;

impl Registers for Avx2 {
    const LANES: usize = 8;
    type F = __m256;
    type I = __m256i;

    #[inline(always)]
    unsafe fn splat(self, x: f32) -> Self::F {
        // SAFETY: the caller vouches for the instructions.
        unsafe { _mm256_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> Self::F {
        // SAFETY: the caller vouches for the memory and the instructions.
        unsafe { _mm256_loadu_ps(from) }
    }
    #[inline(always)]
    unsafe fn codes(self, acc: *const i32, scale: Self::F, bias: Self::F) -> Self::I {
        // SAFETY: the caller vouches for the memory and the instructions.
        unsafe {
            let sums = _mm256_cvtepi32_ps(_mm256_loadu_si256(acc.cast()));
            round_256(_mm256_add_ps(_mm256_mul_ps(sums, scale), bias))
        }
    }
    #[inline(always)]
    unsafe fn add(self, code: Self::I, from: *const i8, how: &Requantize<'_>, r: &ResidualI8<'_>) -> Self::I {
        // SAFETY: the caller vouches for eight codes and the instructions.
        unsafe {
            let code = _mm256_max_epi32(code, _mm256_set1_epi32(how.lo - how.zero));
            let code = _mm256_min_epi32(code, _mm256_set1_epi32(how.hi - how.zero));
            let a = _mm256_add_epi32(code, _mm256_set1_epi32(how.zero - r.how.a_zero));
            let b = _mm256_cvtepi8_epi32(_mm_loadl_epi64(from.cast()));
            let b = _mm256_sub_epi32(b, _mm256_set1_epi32(r.how.b_zero));
            let a = _mm256_mul_ps(_mm256_cvtepi32_ps(a), _mm256_set1_ps(r.how.a_scale));
            let b = _mm256_mul_ps(_mm256_cvtepi32_ps(b), _mm256_set1_ps(r.how.b_scale));
            round_256(_mm256_add_ps(a, b))
        }
    }
    #[inline(always)]
    unsafe fn store(self, v: [Self::I; 4], bounds: [i16; 3], to: [*mut i8; 2]) {
        // SAFETY: the caller vouches for the memory and the instructions.
        unsafe {
            let [zero, lo, hi] =
                [_mm256_set1_epi16(bounds[0]), _mm256_set1_epi16(bounds[1]), _mm256_set1_epi16(bounds[2])];
            let first = _mm256_adds_epi16(_mm256_packs_epi32(v[0], v[1]), zero);
            let first = _mm256_min_epi16(_mm256_max_epi16(first, lo), hi);
            let second = _mm256_adds_epi16(_mm256_packs_epi32(v[2], v[3]), zero);
            let second = _mm256_min_epi16(_mm256_max_epi16(second, lo), hi);
            let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
            let packed = _mm256_permutevar8x32_epi32(_mm256_packs_epi16(first, second), order);
            _mm_storeu_si128(to[1].cast(), _mm256_extracti128_si256::<1>(packed));
            _mm_storeu_si128(to[0].cast(), _mm256_castsi256_si128(packed));
        }
    }
}

/// `trunc(x + copysign(0.5 - 2^-25, x))`.
///
/// # Safety
/// The CPU has AVX2.
#[inline(always)]
unsafe fn round_256(x: __m256) -> __m256i {
    // SAFETY: the caller vouches for the instructions.
    unsafe {
        let sign = _mm256_and_ps(x, _mm256_set1_ps(-0.0));
        let half = _mm256_or_ps(sign, _mm256_set1_ps(0.5_f32.next_down()));
        _mm256_cvttps_epi32(_mm256_add_ps(x, half))
    }
}

/// Sums of a tile, and where its codes go.
#[derive(Clone, Copy)]
pub(super) struct Lines {
    pub(super) tile: Tile,
    pub(super) acc: *const i32,
    pub(super) pitch: usize,
    /// The tile's first element.
    pub(super) to: *mut i8,
    pub(super) stride: usize,
}

/// The columns of a tile that fill pairs of vectors; returns how many.
///
/// # Safety
/// As [`SharedOutput::finish`](super::epilogue::SharedOutput::finish); the CPU has the instructions of `R`, and the
/// parameters are small.
#[inline(always)]
unsafe fn finish<R: Registers, const RESIDUAL: bool>(
    registers: R,
    how: &Requantize<'_>,
    lines: Lines,
) -> usize {
    let Lines { tile, acc, pitch, to, stride } = lines;
    let width = 2 * R::LANES;
    let whole = if tile.rows == 0 { 0 } else { tile.columns - tile.columns % width };
    let bounds = match how.residual {
        Some(r) if RESIDUAL => [r.how.zero, r.how.lo, r.how.hi],
        _ => [how.zero, how.lo, how.hi],
    };
    let bounds = [bounds[0] as i16, bounds[1] as i16, bounds[2] as i16];
    let mut j = 0;
    while j < whole {
        let columns = tile.column + j..tile.column + j + width;
        let scales = &how.scale[columns.clone()];
        // SAFETY: the slices have `width` values; everything else lies inside the tile, as the caller promises.
        unsafe {
            let scale = [registers.load(scales.as_ptr()), registers.load(scales.as_ptr().add(R::LANES))];
            // Adding 0 changes no code.
            let mut bias = [registers.splat(0.0); 2];
            if let Some(values) = how.bias {
                let values = &values[columns];
                bias = [registers.load(values.as_ptr()), registers.load(values.as_ptr().add(R::LANES))];
            }
            let mut i = 0;
            while i < tile.rows {
                let rows = [i, (i + 1).min(tile.rows - 1)];
                let mut v = [registers.codes(acc.add(i * pitch + j), scale[0], bias[0]); 4];
                for n in 0..4 {
                    let (row, at) = (rows[n / 2], j + n % 2 * R::LANES);
                    v[n] = registers.codes(acc.add(row * pitch + at), scale[n % 2], bias[n % 2]);
                    if RESIDUAL && let Some(r) = &how.residual {
                        let from = r.data.as_ptr().add((tile.row + row) * r.row_stride + tile.column + at);
                        v[n] = registers.add(v[n], from, how, r);
                    }
                }
                registers.store(v, bounds, rows.map(|row| to.add(row * stride + j)));
                i += 2;
            }
        }
        j += width;
    }
    whole
}

/// # Safety
/// As [`finish`]; the CPU has AVX2.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn finish_256<const RESIDUAL: bool>(how: &Requantize<'_>, lines: Lines) -> usize {
    // SAFETY: the caller keeps the contract.
    unsafe { finish::<Avx2, RESIDUAL>(Avx2, how, lines) }
}

/// Makes the codes of as many columns as fill pairs of vectors, with AVX2 or else with SSE2; returns how many.
///
/// # Safety
/// As [`SharedOutput::finish`](super::epilogue::SharedOutput::finish); the CPU has AVX2 if `avx2`; the parameters are
/// [small](super::x86_finish::is_small).
pub(super) unsafe fn finish_columns(how: &Requantize<'_>, avx2: bool, lines: Lines) -> usize {
    // SAFETY: the caller keeps the contract.
    unsafe {
        match (avx2, how.residual.is_some()) {
            (true, false) => finish_256::<false>(how, lines),
            (true, true) => finish_256::<true>(how, lines),
            (false, false) => finish::<Sse2, false>(Sse2, how, lines),
            (false, true) => finish::<Sse2, true>(Sse2, how, lines),
        }
    }
}
