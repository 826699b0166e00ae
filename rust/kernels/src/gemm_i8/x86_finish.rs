//! From sums to codes with AVX-512: two rows of 32 columns or four of 16 at a time, narrowed by saturating packs.
//!
//! The same arithmetic as the portable epilogue, element by element: `cvt`, `mul`, `add`, and
//! `trunc(x + copysign(0.5 - 2^-25, x))`. Only the clamping moves behind the rounding, where 64 bytes take one
//! instruction; [`is_small`] makes sure that no value leaves 32 bits before.

#![allow(clippy::manual_map, reason = "a closure would be compiled for the baseline")]
#![allow(clippy::needless_range_loop, reason = "counted loops over registers are what the compiler unrolls")]

use std::arch::x86_64::*;

use super::epilogue::Tile;
use super::requantize::{Requantize, ResidualI8};
use crate::elementwise_i8::TableI8;

/// Columns of two vectors.
const COLUMNS: usize = 32;

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

/// What is the same for all rows of a vector of columns.
#[derive(Clone, Copy)]
struct Column {
    scale: __m512,
    bias: __m512,
    /// The columns of the vector that there are.
    mask: u16,
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

/// The codes of a vector of columns of one row, without their zero point.
///
/// # Safety
/// `acc` and `residual` are readable for the columns that there are; the CPU has AVX-512.
#[inline(always)]
unsafe fn vector<const FULL: bool, const BIAS: bool, const RESIDUAL: bool>(
    acc: *const i32,
    column: &Column,
    how: &Requantize<'_>,
    residual: Option<(ResidualI8<'_>, *const i8)>,
) -> __m512i {
    // SAFETY: the caller vouches for the memory and the instructions; masked lanes are not accessed.
    unsafe {
        let sums =
            if FULL { _mm512_loadu_si512(acc.cast()) } else { _mm512_maskz_loadu_epi32(column.mask, acc) };
        let mut value = _mm512_mul_ps(_mm512_cvtepi32_ps(sums), column.scale);
        if BIAS {
            value = _mm512_add_ps(value, column.bias);
        }
        let code = round_away(value);
        match residual {
            Some((r, from)) if RESIDUAL => {
                let code = _mm512_max_epi32(code, _mm512_set1_epi32(how.lo - how.zero));
                let code = _mm512_min_epi32(code, _mm512_set1_epi32(how.hi - how.zero));
                let a = _mm512_add_epi32(code, _mm512_set1_epi32(how.zero - r.how.a_zero));
                let b =
                    if FULL { _mm_loadu_si128(from.cast()) } else { _mm_maskz_loadu_epi8(column.mask, from) };
                let b = _mm512_sub_epi32(_mm512_cvtepi8_epi32(b), _mm512_set1_epi32(r.how.b_zero));
                let a = _mm512_mul_ps(_mm512_cvtepi32_ps(a), _mm512_set1_ps(r.how.a_scale));
                let b = _mm512_mul_ps(_mm512_cvtepi32_ps(b), _mm512_set1_ps(r.how.b_scale));
                round_away(_mm512_add_ps(a, b))
            }
            _ => code,
        }
    }
}

/// Four vectors of codes, packed in pairs, as 64 codes in the order of the vectors.
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

/// All that the rows of a tile share.
struct Job<'a, 'b> {
    how: &'a Requantize<'b>,
    tile: Tile,
    acc: *const i32,
    pitch: usize,
    to: *mut i8,
    stride: usize,
    bounds: Bounds,
    lookup: Option<Lookup>,
}

impl Job<'_, '_> {
    /// The parameters of up to 16 columns from `j` on.
    ///
    /// # Safety
    /// The CPU has AVX-512.
    #[inline(always)]
    unsafe fn column(&self, j: usize, count: usize) -> Column {
        let (first, mask) = (self.tile.column + j, ((1_u32 << count) - 1) as u16);
        let scale = &self.how.scale[first..first + count];
        let bias = match self.how.bias {
            Some(bias) => &bias[first..first + count],
            None => scale,
        };
        // SAFETY: masked lanes are not accessed, the others are those of the slices.
        unsafe {
            let (scale, bias) =
                (_mm512_maskz_loadu_ps(mask, scale.as_ptr()), _mm512_maskz_loadu_ps(mask, bias.as_ptr()));
            Column { scale, bias, mask }
        }
    }

    /// The codes of one row in the columns from `j` on.
    ///
    /// # Safety
    /// Row and columns lie inside the tile, which the caller lends; the CPU has AVX-512.
    #[inline(always)]
    unsafe fn row<const FULL: bool, const BIAS: bool, const RESIDUAL: bool>(
        &self,
        i: usize,
        j: usize,
        column: &Column,
    ) -> __m512i {
        // SAFETY: inside the tile, as the caller promises.
        unsafe {
            let other = residual(self.how, self.tile.row + i, self.tile.column + j);
            let acc = self.acc.add(i * self.pitch + j);
            vector::<FULL, BIAS, RESIDUAL>(acc, column, self.how, other)
        }
    }

    /// 64 codes of four vectors.
    ///
    /// # Safety
    /// The CPU has AVX-512 BW, and VBMI if there is a function of codes.
    #[inline(always)]
    unsafe fn pack(&self, v: [__m512i; 4]) -> __m512i {
        // SAFETY: the caller vouches for the instructions.
        unsafe {
            let out = codes(_mm512_packs_epi32(v[0], v[1]), _mm512_packs_epi32(v[2], v[3]), &self.bounds);
            match self.lookup {
                Some(lookup) => lookup.apply(out),
                None => out,
            }
        }
    }

    /// 32 columns from `j` on.
    ///
    /// # Safety
    /// As [`finish`].
    #[inline(always)]
    unsafe fn wide<const BIAS: bool, const RESIDUAL: bool>(&self, j: usize) {
        // SAFETY: inside the tile, as the caller promises.
        unsafe {
            let (a, b) = (self.column(j, 16), self.column(j + 16, 16));
            let mut i = 0;
            while i < self.tile.rows {
                let next = (i + 1).min(self.tile.rows - 1);
                let out = self.pack([
                    self.row::<true, BIAS, RESIDUAL>(i, j, &a),
                    self.row::<true, BIAS, RESIDUAL>(i, j + 16, &b),
                    self.row::<true, BIAS, RESIDUAL>(next, j, &a),
                    self.row::<true, BIAS, RESIDUAL>(next, j + 16, &b),
                ]);
                let to = self.to.add(j);
                _mm256_storeu_si256(to.add(next * self.stride).cast(), _mm512_extracti64x4_epi64::<1>(out));
                _mm256_storeu_si256(to.add(i * self.stride).cast(), _mm512_castsi512_si256(out));
                i += 2;
            }
        }
    }

    /// Up to 16 columns from `j` on.
    ///
    /// # Safety
    /// As [`finish`].
    #[inline(always)]
    unsafe fn narrow<const FULL: bool, const BIAS: bool, const RESIDUAL: bool>(
        &self,
        j: usize,
        count: usize,
    ) {
        // SAFETY: inside the tile, as the caller promises.
        unsafe {
            let column = self.column(j, count);
            let last = self.tile.rows - 1;
            let mut i = 0;
            while i <= last {
                let rows = [i, (i + 1).min(last), (i + 2).min(last), (i + 3).min(last)];
                let out = self.pack([
                    self.row::<FULL, BIAS, RESIDUAL>(rows[0], j, &column),
                    self.row::<FULL, BIAS, RESIDUAL>(rows[1], j, &column),
                    self.row::<FULL, BIAS, RESIDUAL>(rows[2], j, &column),
                    self.row::<FULL, BIAS, RESIDUAL>(rows[3], j, &column),
                ]);
                let to = self.to.add(j);
                store::<FULL>(to.add(rows[3] * self.stride), _mm512_extracti32x4_epi32::<3>(out), count);
                store::<FULL>(to.add(rows[2] * self.stride), _mm512_extracti32x4_epi32::<2>(out), count);
                store::<FULL>(to.add(rows[1] * self.stride), _mm512_extracti32x4_epi32::<1>(out), count);
                store::<FULL>(to.add(rows[0] * self.stride), _mm512_castsi512_si128(out), count);
                i += 4;
            }
        }
    }
}

/// The first `count` codes, 16 if `FULL`.
///
/// # Safety
/// `to` is writable for so many codes; the CPU has AVX-512.
#[inline(always)]
unsafe fn store<const FULL: bool>(to: *mut i8, codes: __m128i, count: usize) {
    // SAFETY: the caller vouches for the memory.
    unsafe {
        if FULL {
            _mm_storeu_si128(to.cast(), codes);
        } else if count == 8 {
            // Masked stores are slow on some CPUs.
            _mm_storel_epi64(to.cast(), codes);
        } else {
            _mm_mask_storeu_epi8(to, ((1_u32 << count) - 1) as u16, codes);
        }
    }
}

/// The codes of a tile.
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
) {
    if tile.rows == 0 {
        return;
    }
    let (zero, lo, hi) = match how.residual {
        Some(r) if RESIDUAL => (r.how.zero, r.how.lo, r.how.hi),
        _ => (how.zero, how.lo, how.hi),
    };
    // SAFETY: the parameters of the columns were checked; sums, residual and output are the caller's promise.
    unsafe {
        let bounds = Bounds {
            zero: _mm512_set1_epi16(zero as i16),
            lo: _mm512_set1_epi8(lo as i8),
            hi: _mm512_set1_epi8(hi as i8),
        };
        let lookup = match how.table {
            Some(table) if TABLE => Some(Lookup::load(table)),
            _ => None,
        };
        let job = Job { how, tile, acc, pitch, to, stride, bounds, lookup };
        let mut j = 0;
        while j + COLUMNS <= tile.columns {
            job.wide::<BIAS, RESIDUAL>(j);
            j += COLUMNS;
        }
        while j < tile.columns {
            match tile.columns - j {
                16.. => job.narrow::<true, BIAS, RESIDUAL>(j, 16),
                count => job.narrow::<false, BIAS, RESIDUAL>(j, count),
            }
            j += 16;
        }
    }
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
        ) {
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
) {
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
