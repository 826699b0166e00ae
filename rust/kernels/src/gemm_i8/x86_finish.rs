//! From sums to codes with AVX-512: two rows of 32 columns at a time, narrowed by saturating packs.
//!
//! The same arithmetic as the portable epilogue, element by element: `cvt`, `mul`, `add`, and
//! `trunc(x + copysign(0.5 - 2^-25, x))`. Only the clamping moves behind the rounding, where 64 bytes take one
//! instruction; [`is_small`] makes sure that no value leaves 32 bits before.

#![allow(clippy::manual_map, reason = "a closure would be compiled for the baseline")]
#![allow(clippy::needless_range_loop, reason = "counted loops over registers are what the compiler unrolls")]

use std::arch::x86_64::*;

use super::epilogue::{Requantize, ResidualI8, Tile};
use crate::elementwise_i8::TableI8;

/// Columns that this file handles together.
pub(crate) const COLUMNS: usize = 32;

/// Whether every value before clamping is far inside the range of `i32`, whatever the sums are.
pub(super) fn is_small(how: &Requantize<'_>) -> bool {
    const SCALE: f32 = 0.125;
    const BIAS: f32 = (1 << 28) as f32;
    const RATIO: f32 = (1 << 20) as f32;
    let within = |values: &[f32], bound: f32| values.iter().fold(true, |all, x| all & (x.abs() <= bound));
    within(how.scale, SCALE)
        && how.bias.is_none_or(|bias| within(bias, BIAS))
        && how.residual.is_none_or(|r| within(&[r.how.a_scale, r.how.b_scale], RATIO))
}

/// The tables of a function of codes in registers.
#[derive(Clone, Copy)]
struct Lookup([__m512i; 4]);

impl Lookup {
    #[inline(always)]
    fn load(table: &TableI8) -> Self {
        let codes = table.entries();
        // SAFETY: the table has four times 64 bytes; the callers run with AVX-512.
        unsafe {
            let from = codes.as_ptr().cast::<__m512i>();
            Self([
                _mm512_loadu_si512(from),
                _mm512_loadu_si512(from.add(1)),
                _mm512_loadu_si512(from.add(2)),
                _mm512_loadu_si512(from.add(3)),
            ])
        }
    }

    /// # Safety
    /// The CPU has VBMI.
    #[inline(always)]
    unsafe fn apply(self, x: __m512i) -> __m512i {
        let [low, below_zero, from_zero, high] = self.0;
        // SAFETY: the caller vouches for the instructions.
        unsafe {
            let negative = _mm512_permutex2var_epi8(low, x, below_zero);
            let positive = _mm512_permutex2var_epi8(from_zero, x, high);
            _mm512_mask_blend_epi8(_mm512_movepi8_mask(x), positive, negative)
        }
    }
}

/// What is the same for all rows.
#[derive(Clone, Copy)]
struct Columns {
    scale: [__m512; 2],
    bias: [__m512; 2],
}

/// The constants of the rounding.
#[derive(Clone, Copy)]
struct Bounds {
    zero: __m512i,
    lo: __m512i,
    hi: __m512i,
}

/// `trunc(x + copysign(0.5 - 2^-25, x))`.
///
/// # Safety
/// The CPU has AVX-512.
#[inline(always)]
unsafe fn round_away(x: __m512) -> __m512i {
    // SAFETY: the caller vouches for the instructions.
    unsafe {
        let half = _mm512_castps_si512(_mm512_set1_ps(0.5_f32.next_down()));
        let sign = _mm512_set1_epi32(i32::MIN);
        // half | (x & sign)
        let half = _mm512_ternarylogic_epi32::<0xF8>(half, _mm512_castps_si512(x), sign);
        _mm512_cvttps_epi32(_mm512_add_ps(x, _mm512_castsi512_ps(half)))
    }
}

/// One row of 32 codes, without their zero point, as 16-bit numbers in the order that packing leaves.
///
/// # Safety
/// `acc` is readable for 32 values and `residual` for as many codes; the CPU has AVX-512.
#[inline(always)]
unsafe fn row<const BIAS: bool, const RESIDUAL: bool>(
    acc: *const i32,
    columns: &Columns,
    how: &Requantize<'_>,
    residual: Option<(ResidualI8<'_>, *const i8)>,
) -> __m512i {
    // SAFETY: the caller vouches for the memory and the instructions.
    unsafe {
        let mut codes = [_mm512_setzero_si512(); 2];
        for v in 0..2 {
            let sums = _mm512_loadu_si512(acc.add(16 * v).cast());
            let mut value = _mm512_mul_ps(_mm512_cvtepi32_ps(sums), columns.scale[v]);
            if BIAS {
                value = _mm512_add_ps(value, columns.bias[v]);
            }
            codes[v] = round_away(value);
            if RESIDUAL && let Some((r, from)) = residual {
                let code = _mm512_max_epi32(codes[v], _mm512_set1_epi32(how.lo - how.zero));
                let code = _mm512_min_epi32(code, _mm512_set1_epi32(how.hi - how.zero));
                let a = _mm512_add_epi32(code, _mm512_set1_epi32(how.zero - r.how.a_zero));
                let b = _mm512_cvtepi8_epi32(_mm_loadu_si128(from.add(16 * v).cast()));
                let b = _mm512_sub_epi32(b, _mm512_set1_epi32(r.how.b_zero));
                let a = _mm512_mul_ps(_mm512_cvtepi32_ps(a), _mm512_set1_ps(r.how.a_scale));
                let b = _mm512_mul_ps(_mm512_cvtepi32_ps(b), _mm512_set1_ps(r.how.b_scale));
                codes[v] = round_away(_mm512_add_ps(a, b));
            }
        }
        _mm512_packs_epi32(codes[0], codes[1])
    }
}

/// Two packed rows as 64 codes: the first row in the lower half.
///
/// # Safety
/// The CPU has AVX-512 BW.
#[inline(always)]
unsafe fn codes(first: __m512i, second: __m512i, bounds: &Bounds) -> __m512i {
    // SAFETY: the caller vouches for the instructions.
    unsafe {
        let first = _mm512_adds_epi16(first, bounds.zero);
        let second = _mm512_adds_epi16(second, bounds.zero);
        let packed = _mm512_packs_epi16(first, second);
        let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
        let codes = _mm512_permutexvar_epi32(order, packed);
        _mm512_min_epi8(_mm512_max_epi8(codes, bounds.lo), bounds.hi)
    }
}

/// Where the residual of a row starts.
///
/// # Safety
/// Row and column lie inside the output.
#[inline(always)]
unsafe fn residual<'a>(
    how: &Requantize<'a>,
    row: usize,
    column: usize,
) -> Option<(ResidualI8<'a>, *const i8)> {
    match how.residual {
        // SAFETY: the residual was checked to have an element for each of the output.
        Some(r) => Some((r, unsafe { r.data.as_ptr().add(row * r.row_stride + column) })),
        None => None,
    }
}

/// The whole groups of 32 columns of a tile; returns how many columns that are.
///
/// # Safety
/// As [`SharedOutput::finish`](super::epilogue::SharedOutput::finish); the CPU has AVX-512, and VBMI if `TABLE`.
#[inline(always)]
unsafe fn finish<const BIAS: bool, const RESIDUAL: bool, const TABLE: bool>(
    how: &Requantize<'_>,
    tile: Tile,
    acc: *const i32,
    pitch: usize,
    to: *mut i8,
    stride: usize,
) -> usize {
    let whole = tile.columns - tile.columns % COLUMNS;
    // SAFETY: the parameters of the columns were checked; sums, residual and output are the caller's promise.
    unsafe {
        let (zero, lo, hi) = match how.residual {
            Some(r) if RESIDUAL => (r.how.zero, r.how.lo, r.how.hi),
            _ => (how.zero, how.lo, how.hi),
        };
        let bounds = Bounds {
            zero: _mm512_set1_epi16(zero as i16),
            lo: _mm512_set1_epi8(lo as i8),
            hi: _mm512_set1_epi8(hi as i8),
        };
        let lookup = match how.table {
            Some(table) if TABLE => Some(Lookup::load(table)),
            _ => None,
        };
        for j in (0..whole).step_by(COLUMNS) {
            let first = tile.column + j;
            let scale = &how.scale[first..first + COLUMNS];
            let bias = match how.bias {
                Some(bias) if BIAS => &bias[first..first + COLUMNS],
                _ => scale,
            };
            let columns = Columns {
                scale: [_mm512_loadu_ps(scale.as_ptr()), _mm512_loadu_ps(scale.as_ptr().add(16))],
                bias: [_mm512_loadu_ps(bias.as_ptr()), _mm512_loadu_ps(bias.as_ptr().add(16))],
            };
            for i in (0..tile.rows).step_by(2) {
                let from = acc.add(i * pitch + j);
                let both = i + 1 < tile.rows;
                let upper = row::<BIAS, RESIDUAL>(from, &columns, how, residual(how, tile.row + i, first));
                let lower = if both {
                    let other = residual(how, tile.row + i + 1, first);
                    row::<BIAS, RESIDUAL>(from.add(pitch), &columns, how, other)
                } else {
                    upper
                };
                let mut out = codes(upper, lower, &bounds);
                if TABLE && let Some(lookup) = lookup {
                    out = lookup.apply(out);
                }
                let to = to.add(i * stride + j);
                _mm256_storeu_si256(to.cast(), _mm512_castsi512_si256(out));
                if both {
                    _mm256_storeu_si256(to.add(stride).cast(), _mm512_extracti64x4_epi64::<1>(out));
                }
            }
        }
    }
    whole
}

/// A variant compiled for its instructions.
macro_rules! variant {
    ($name:ident, $features:literal, $table:literal) => {
        /// # Safety
        /// As [`finish`].
        #[target_feature(enable = $features)]
        unsafe fn $name<const BIAS: bool, const RESIDUAL: bool>(
            how: &Requantize<'_>,
            tile: Tile,
            acc: *const i32,
            pitch: usize,
            to: *mut i8,
            stride: usize,
        ) -> usize {
            // SAFETY: the caller keeps the contract.
            unsafe { finish::<BIAS, RESIDUAL, $table>(how, tile, acc, pitch, to, stride) }
        }
    };
}

variant!(plain, "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c", false);
variant!(with_table, "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx2,fma,f16c", true);

/// As [`finish`], with the function of codes if `table`, which needs VBMI.
///
/// # Safety
/// As [`SharedOutput::finish`](super::epilogue::SharedOutput::finish); the CPU has AVX-512, and VBMI if `table`; the
/// parameters are [small](is_small).
pub(super) unsafe fn finish_rows(
    how: &Requantize<'_>,
    table: bool,
    tile: Tile,
    acc: *const i32,
    pitch: usize,
    to: *mut i8,
    stride: usize,
) -> usize {
    let kernel = match (how.bias.is_some(), how.residual.is_some(), table) {
        (false, false, false) => plain::<false, false>,
        (true, false, false) => plain::<true, false>,
        (false, true, false) => plain::<false, true>,
        (true, true, false) => plain::<true, true>,
        (false, false, true) => with_table::<false, false>,
        (true, false, true) => with_table::<true, false>,
        (false, true, true) => with_table::<false, true>,
        (true, true, true) => with_table::<true, true>,
    };
    // SAFETY: the caller keeps the contract.
    unsafe { kernel(how, tile, acc, pitch, to, stride) }
}
