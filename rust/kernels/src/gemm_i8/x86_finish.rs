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
use crate::elementwise_i8::{AddI8, TableI8};

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

/// A residual's parameters, in registers.
#[derive(Clone, Copy)]
struct Sum {
    /// Bounds of the code that is added to, without its zero point.
    lo: __m512,
    hi: __m512,
    /// Zero point of that code, less the one that the sum takes off.
    shift: __m512,
    b_zero: __m512,
    a_scale: __m512,
    b_scale: __m512,
    data: *const i8,
    row_stride: usize,
}

impl Sum {
    /// # Safety
    /// The CPU has AVX-512.
    #[inline(always)]
    unsafe fn new(how: &Requantize<'_>, residual: ResidualI8<'_>) -> Self {
        let add = residual.how;
        // SAFETY: the caller vouches for the instructions.
        unsafe {
            let all = |code: i32| _mm512_set1_ps(code as f32);
            Self {
                lo: all(how.lo - how.zero),
                hi: all(how.hi - how.zero),
                shift: all(how.zero - add.a_zero),
                b_zero: all(add.b_zero),
                a_scale: _mm512_set1_ps(add.a_scale),
                b_scale: _mm512_set1_ps(add.b_scale),
                data: residual.data.as_ptr(),
                row_stride: residual.row_stride,
            }
        }
    }

    /// Whether no zero point has to be added or taken off.
    fn is_centred(residual: ResidualI8<'_>, zero: i32) -> bool {
        zero == residual.how.a_zero && residual.how.b_zero == 0
    }
}

/// `x + copysign(0.5 - 2^-25, x)`: truncated, this is `x` rounded, halves away from zero.
///
/// # Safety
/// The CPU has AVX-512.
#[inline(always)]
unsafe fn away(x: __m512) -> __m512 {
    // SAFETY: the caller vouches for the instructions.
    unsafe {
        let half = _mm512_castps_si512(_mm512_set1_ps(0.5_f32.next_down()));
        let sign = _mm512_set1_epi32(i32::MIN);
        // half | (x & sign)
        let half = _mm512_ternarylogic_epi32::<0xF8>(half, _mm512_castps_si512(x), sign);
        _mm512_add_ps(x, _mm512_castsi512_ps(half))
    }
}

/// A kind of epilogue: what is added to the product, and then to its codes.
trait Kind: Copy {
    /// A bias per column.
    const BIAS: bool;
    /// A residual.
    const SUM: bool;
    /// The residual's zero points matter.
    const ZEROS: bool;
}

/// The kinds, as parameters.
#[derive(Clone, Copy)]
struct With<const BIAS: bool, const SUM: bool, const ZEROS: bool>;

impl<const BIAS: bool, const SUM: bool, const ZEROS: bool> Kind for With<BIAS, SUM, ZEROS> {
    const BIAS: bool = BIAS;
    const SUM: bool = SUM;
    const ZEROS: bool = ZEROS;
}

/// The codes of a vector of columns of one row, without their zero point.
///
/// Between the two roundings of a sum, codes stay floats: small integers, exact in every operation on them.
///
/// # Safety
/// `acc` and `residual` are readable for the columns that there are; the CPU has AVX-512.
#[inline(always)]
unsafe fn vector<const FULL: bool, K: Kind>(
    acc: *const i32,
    column: &Column,
    sum: &Sum,
    residual: *const i8,
) -> __m512i {
    // SAFETY: the caller vouches for the memory and the instructions; masked lanes are not accessed.
    unsafe {
        let sums =
            if FULL { _mm512_loadu_si512(acc.cast()) } else { _mm512_maskz_loadu_epi32(column.mask, acc) };
        let mut value = _mm512_mul_ps(_mm512_cvtepi32_ps(sums), column.scale);
        if K::BIAS {
            value = _mm512_add_ps(value, column.bias);
        }
        let mut value = away(value);
        if K::SUM {
            let code = _mm512_roundscale_ps::<{ _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC }>(value);
            let mut a = _mm512_min_ps(_mm512_max_ps(code, sum.lo), sum.hi);
            let b = if FULL {
                _mm_loadu_si128(residual.cast())
            } else {
                _mm_maskz_loadu_epi8(column.mask, residual)
            };
            let mut b = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(b));
            if K::ZEROS {
                a = _mm512_add_ps(a, sum.shift);
                b = _mm512_sub_ps(b, sum.b_zero);
            }
            value = away(_mm512_add_ps(_mm512_mul_ps(a, sum.a_scale), _mm512_mul_ps(b, sum.b_scale)));
        }
        _mm512_cvttps_epi32(value)
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

/// All that the rows of a tile share.
struct Job<'a, 'b> {
    how: &'a Requantize<'b>,
    tile: Tile,
    acc: *const i32,
    pitch: usize,
    to: *mut i8,
    stride: usize,
    bounds: Bounds,
    sum: Sum,
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
    unsafe fn row<const FULL: bool, K: Kind>(&self, i: usize, j: usize, column: &Column) -> __m512i {
        let at = (self.tile.row + i) * self.sum.row_stride + self.tile.column + j;
        // SAFETY: inside the tile, as the caller promises; the residual was checked to have an element for each of the
        // output, and is not read where there is none.
        unsafe {
            let acc = self.acc.add(i * self.pitch + j);
            vector::<FULL, K>(acc, column, &self.sum, self.sum.data.wrapping_add(at))
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
    unsafe fn wide<K: Kind>(&self, j: usize) {
        // SAFETY: inside the tile, as the caller promises.
        unsafe {
            let (a, b) = (self.column(j, 16), self.column(j + 16, 16));
            let mut i = 0;
            while i < self.tile.rows {
                let next = (i + 1).min(self.tile.rows - 1);
                let out = self.pack([
                    self.row::<true, K>(i, j, &a),
                    self.row::<true, K>(i, j + 16, &b),
                    self.row::<true, K>(next, j, &a),
                    self.row::<true, K>(next, j + 16, &b),
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
    unsafe fn narrow<const FULL: bool, K: Kind>(&self, j: usize, count: usize) {
        // SAFETY: inside the tile, as the caller promises.
        unsafe {
            let column = self.column(j, count);
            let last = self.tile.rows - 1;
            let mut i = 0;
            while i <= last {
                let rows = [i, (i + 1).min(last), (i + 2).min(last), (i + 3).min(last)];
                let out = self.pack([
                    self.row::<FULL, K>(rows[0], j, &column),
                    self.row::<FULL, K>(rows[1], j, &column),
                    self.row::<FULL, K>(rows[2], j, &column),
                    self.row::<FULL, K>(rows[3], j, &column),
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
unsafe fn finish<K: Kind, const TABLE: bool>(
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
        Some(r) if K::SUM => (r.how.zero, r.how.lo, r.how.hi),
        _ => (how.zero, how.lo, how.hi),
    };
    // SAFETY: the parameters of the columns were checked; sums, residual and output are the caller's promise.
    unsafe {
        let bounds = Bounds {
            zero: _mm512_set1_epi16(zero as i16),
            lo: _mm512_set1_epi8(lo as i8),
            hi: _mm512_set1_epi8(hi as i8),
        };
        let add = AddI8 { a_scale: 0.0, a_zero: 0, b_scale: 0.0, b_zero: 0, zero: 0, lo: 0, hi: 0 };
        let sum = Sum::new(how, how.residual.unwrap_or(ResidualI8 { data: &[], row_stride: 0, how: add }));
        let lookup = match how.table {
            Some(table) if TABLE => Some(Lookup::load(table)),
            _ => None,
        };
        let job = Job { how, tile, acc, pitch, to, stride, bounds, sum, lookup };
        let mut j = 0;
        while j + COLUMNS <= tile.columns {
            job.wide::<K>(j);
            j += COLUMNS;
        }
        while j < tile.columns {
            match tile.columns - j {
                16.. => job.narrow::<true, K>(j, 16),
                count => job.narrow::<false, K>(j, count),
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
        unsafe fn $name<K: Kind>(
            how: &Requantize<'_>,
            tile: Tile,
            acc: *const i32,
            pitch: usize,
            to: *mut i8,
            stride: usize,
        ) {
            // SAFETY: the caller keeps the contract.
            unsafe { finish::<K, $table>(how, tile, acc, pitch, to, stride) }
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
    let centred = how.residual.is_some_and(|r| Sum::is_centred(r, how.zero));
    let kernel = match (how.bias.is_some(), how.residual.is_some(), centred, table) {
        (false, false, _, false) => plain::<With<false, false, false>>,
        (true, false, _, false) => plain::<With<true, false, false>>,
        (false, true, true, false) => plain::<With<false, true, false>>,
        (true, true, true, false) => plain::<With<true, true, false>>,
        (false, true, false, false) => plain::<With<false, true, true>>,
        (true, true, false, false) => plain::<With<true, true, true>>,
        (false, false, _, true) => with_table::<With<false, false, false>>,
        (true, false, _, true) => with_table::<With<true, false, false>>,
        (false, true, _, true) => with_table::<With<false, true, true>>,
        (true, true, _, true) => with_table::<With<true, true, true>>,
    };
    // SAFETY: the caller keeps the contract.
    unsafe { kernel(how, tile, acc, pitch, to, stride) }
}
