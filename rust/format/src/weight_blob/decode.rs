//! Payload bytes to quantized weights. Everything is checked: the bytes come from a file.

use std::borrow::Cow;

use half::f16;

use crate::bitpack::{packed_len, unpack_codes, unpack_with};
use crate::error::{FormatError, Problem, Result};
use crate::model::{Numbers, Table};
use crate::quantized::{QuantizedWeights, half};
use crate::schema::{ScaleStorageType, idst_quan};
use crate::weight_blob::zero_code;

/// Weights that a sparse payload may always stand for, whatever its size.
const SPARSE_FLOOR: u64 = 1 << 16;

/// Weights that a sparse payload may stand for per byte of its own and of its scales, above [`SPARSE_FLOOR`].
const SPARSE_RATIO: u64 = 4096;

/// Decodes an `IDSTQuan` table of storage type 1, 2 or 4.
///
/// # Errors
/// [`Problem::UnsupportedStorage`] for another type; the first broken invariant of the payload otherwise.
pub fn decode(quantized: &Table) -> Result<QuantizedWeights> {
    let kind = quantized.get(idst_quan::TYPE);
    let buffer = bytes_of(quantized.get(idst_quan::BUFFER));
    let wide = quantized.get(idst_quan::SHAPE_INT32);
    let alpha = alpha(quantized)?;
    let codes = match kind {
        1 => decode_dense(&buffer, wide),
        2 => decode_sparse(&buffer, wide, &alpha),
        4 => Ok(Codes { bits: 8, codes: buffer.iter().map(|byte| byte.cast_signed()).collect() }),
        kind => return Err(FormatError::at("type", Problem::UnsupportedStorage { kind })),
    }
    .map_err(|problem| FormatError::at("buffer", problem))?;
    with_scales(quantized, codes, &alpha)
}

/// How weights are quantized, without the weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Description {
    /// Bits of a code, 2 to 8.
    pub bits: u8,
    /// Rows: scales.
    pub rows: usize,
    /// Weights of a row.
    pub row_len: usize,
    /// Whether rows have a minimum.
    pub asymmetric: bool,
}

/// What [`decode`] would give, from the header of the payload: of storage type 1 the codes are not looked at.
///
/// # Errors
/// Those of [`decode`], as far as they show without the codes.
pub fn describe(quantized: &Table) -> Result<Description> {
    if quantized.get(idst_quan::TYPE) != 1 {
        let weights = decode(quantized)?;
        let (bits, rows, row_len) = (weights.bits(), weights.rows(), weights.row_len());
        return Ok(Description { bits, rows, row_len, asymmetric: weights.min().is_some() });
    }
    let buffer = bytes_of(quantized.get(idst_quan::BUFFER));
    let (table, count, _) = dense_parts(&buffer, quantized.get(idst_quan::SHAPE_INT32))
        .map_err(|problem| FormatError::at("buffer", problem))?;
    let asymmetric = quantized.get(idst_quan::READ_TYPE) != 0;
    let half_scales = quantized.get(idst_quan::SCALE_STORAGE) == ScaleStorageType::FP16;
    let scales = if half_scales {
        quantized.get(idst_quan::ALPHA_FP16).map_or(0, Numbers::len)
    } else {
        quantized.get(idst_quan::ALPHA).map_or(0, Numbers::len)
    };
    let wrong = || FormatError::at("alpha", Problem::RowCount { scales, weights: count });
    let rows = match asymmetric {
        true if scales.is_multiple_of(2) => scales / 2,
        true => return Err(wrong()),
        false => scales,
    };
    if count > 0 && count.checked_rem(rows) != Some(0) {
        return Err(wrong());
    }
    Ok(Description {
        bits: width(table.values),
        rows,
        row_len: count.checked_div(rows).unwrap_or(0),
        asymmetric,
    })
}

/// Codes and the narrowest width (2 to 8 bits) that holds them all.
struct Codes {
    bits: u8,
    codes: Vec<i8>,
}

/// Half floats of storage type 3.
///
/// # Errors
/// [`Problem::ExternalSize`] for an odd number of bytes.
pub fn decode_half(quantized: &Table) -> Result<Vec<f16>> {
    let buffer = bytes_of(quantized.get(idst_quan::BUFFER));
    let (pairs, rest) = buffer.as_chunks::<2>();
    if !rest.is_empty() {
        return Err(FormatError::at("buffer", Problem::ExternalSize { size: buffer.len(), element: 2 }));
    }
    Ok(pairs.iter().map(|&pair| f16::from_le_bytes(pair)).collect())
}

/// Sparse floats: `alpha[i]` at flat position `index[i]`, zero elsewhere, `weightSize` values in all.
///
/// # Errors
/// [`Problem::Length`] if `index` and `alpha` differ in length, [`Problem::PositionOutOfRange`] for an index beyond
/// the end, [`Problem::TooManyWeights`] for a size out of all proportion.
pub fn decode_sparse_float(quantized: &Table) -> Result<Vec<f32>> {
    let values = quantized.get(idst_quan::ALPHA).and_then(Numbers::as_f32).unwrap_or_default();
    let index = quantized.get(idst_quan::INDEX).and_then(Numbers::as_slice::<u32>).unwrap_or_default();
    if index.len() != values.len() {
        let problem = Problem::Length { got: index.len(), wanted: values.len() };
        return Err(FormatError::at("index", problem));
    }
    let payload = to_u64(index.len()).saturating_mul(8);
    let count = sparse_size(quantized.get(idst_quan::WEIGHT_SIZE).into(), payload)
        .map_err(|problem| FormatError::at("weightSize", problem))?;
    let mut out = vec![0.0; count];
    for (entry, (&position, &value)) in index.iter().zip(values.iter()).enumerate() {
        let place = usize::try_from(position).ok().and_then(|position| out.get_mut(position));
        let Some(place) = place else {
            let problem = Problem::PositionOutOfRange { entry, position: position.into(), count };
            return Err(FormatError::at("index", problem));
        };
        *place = value;
    }
    Ok(out)
}

/// Bytes of a vector of i8 or u8; empty where absent.
fn bytes_of(numbers: Option<&Numbers>) -> bytes::Bytes {
    numbers.and_then(|numbers| numbers.to_bytes().ok()).unwrap_or_default()
}

/// The scales, or pairs of minimum and scale.
fn alpha(quantized: &Table) -> Result<Cow<'_, [f32]>> {
    if quantized.get(idst_quan::SCALE_STORAGE) != ScaleStorageType::FP16 {
        return Ok(quantized.get(idst_quan::ALPHA).and_then(Numbers::as_f32).unwrap_or_default());
    }
    let bits = quantized.get(idst_quan::ALPHA_FP16).and_then(Numbers::as_slice::<u16>).unwrap_or_default();
    Ok(bits.iter().map(|&bits| f16::from_bits(bits).to_f32()).collect())
}

/// Brings the scales of a table into the form of [`QuantizedWeights`].
fn with_scales(quantized: &Table, codes: Codes, alpha: &[f32]) -> Result<QuantizedWeights> {
    let a_min = quantized.get(idst_quan::A_MIN);
    let quant_scale = quantized.get(idst_quan::QUANT_SCALE);
    // Files of type 4 from before `readType` existed: asymmetric, and `quantScale` was never set.
    let old_type4 = quantized.get(idst_quan::TYPE) == 4 && a_min == 0 && quant_scale.abs() < 1e-6;
    let asymmetric = quantized.get(idst_quan::READ_TYPE) != 0 || old_type4;
    let gain = if old_type4 || quantized.get(idst_quan::HAS_SCALE_INT) { 1.0 } else { quant_scale };
    let scaled = |value: f32| if gain == 1.0 { value } else { value * gain };
    let wrong = || Problem::RowCount { scales: alpha.len(), weights: codes.codes.len() };
    let (scale, min): (Vec<f32>, Option<Vec<f32>>) = if asymmetric {
        let (pairs, rest) = alpha.as_chunks::<2>();
        if !rest.is_empty() {
            return Err(FormatError::at("alpha", wrong()));
        }
        let half = f32::from(half(codes.bits));
        // What code 0 stands for follows from `aMin`; the minimum of ours belongs to the code -half.
        let smallest = if a_min == 0 { -128.0 } else { small_f32(a_min) };
        let minimum = |min: f32, scale: f32| {
            if smallest == -half {
                min
            } else {
                let zero = if smallest < 0.0 { min - smallest * scale } else { min };
                zero - half * scale
            }
        };
        let min = pairs.iter().map(|&[min, scale]| scaled(minimum(min, scale))).collect();
        (pairs.iter().map(|&[_, scale]| scaled(scale)).collect(), Some(min))
    } else {
        (alpha.iter().map(|&scale| scaled(scale)).collect(), None)
    };
    if !codes.codes.is_empty() && codes.codes.len().checked_rem(scale.len()) != Some(0) {
        return Err(FormatError::at("alpha", wrong()));
    }
    QuantizedWeights::new(codes.bits, codes.codes, scale, min)
}

/// An integer as f32, rounded to nearest.
#[expect(clippy::as_conversions, reason = "rounds to nearest, which is wanted")]
fn small_f32(value: i32) -> f32 {
    value as f32
}

/// Takes a payload apart from its start.
struct Cursor<'a> {
    all: &'a [u8],
    rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    fn new(all: &'a [u8]) -> Self {
        Self { all, rest: all }
    }

    fn take(&mut self, what: &'static str, size: Option<usize>) -> Result<&'a [u8], Problem> {
        let short = |size: Option<usize>| {
            let used = to_u64(self.all.len().saturating_sub(self.rest.len()));
            let wanted = used.saturating_add(size.map_or(u64::MAX, to_u64));
            Problem::PayloadTooShort { what, wanted, len: self.all.len() }
        };
        let (taken, rest) =
            size.and_then(|size| self.rest.split_at_checked(size)).ok_or_else(|| short(size))?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], Problem> {
        Ok(self.take(what, Some(N))?.first_chunk().copied().unwrap_or([0; N]))
    }

    fn byte(&mut self, what: &'static str) -> Result<u8, Problem> {
        Ok(u8::from_le_bytes(self.array(what)?))
    }

    /// The first dim and the product of all.
    fn dims(&mut self, wide: bool) -> Result<(u64, u64), Problem> {
        let count = self.byte("the number of dims")?;
        if !(1..=4).contains(&count) {
            return Err(Problem::PayloadDims { count });
        }
        let (mut first, mut product) = (None, 1_u64);
        for _ in 0..count {
            let dim = if wide {
                u64::from(u32::from_le_bytes(self.array("the dims")?))
            } else {
                u64::from(u16::from_le_bytes(self.array("the dims")?))
            };
            first = first.or(Some(dim));
            product = product.saturating_mul(dim);
        }
        Ok((first.unwrap_or(0), product))
    }

    fn table(&mut self) -> Result<ValueTable, Problem> {
        let count = match self.byte("the size of the value table")? {
            0 => 256,
            count => usize::from(count),
        };
        let mut values: Vec<i8> =
            self.take("the value table", Some(count))?.iter().map(|byte| byte.cast_signed()).collect();
        values.sort_unstable();
        Ok(ValueTable { values })
    }
}

/// The values that indices stand for, ascending.
struct ValueTable {
    values: Vec<i8>,
}

impl ValueTable {
    /// Bits per index: `max(1, ceil(log2(count)))`.
    fn bits(&self) -> u8 {
        (1..8).find(|bits| 1_usize.wrapping_shl(*bits) >= self.values.len()).map_or(8, |bits| {
            // 1..8 fits.
            u8::try_from(bits).unwrap_or(8)
        })
    }

    /// Whether index `i` stands for `i - 2^(bits-1)`, for all indices of that width.
    fn is_linear(&self) -> bool {
        let first = match self.bits() {
            1 => -1,
            bits => half(bits).saturating_neg(),
        };
        self.values.len() == 1_usize.wrapping_shl(self.bits().into())
            && (first..).zip(&self.values).all(|(wanted, &value)| wanted == i16::from(value))
    }

    /// Codes of `count` packed indices.
    fn codes(&self, packed: &[u8], count: usize) -> Result<Vec<i8>, Problem> {
        let short = Problem::PayloadTooShort { what: "the codes", wanted: u64::MAX, len: packed.len() };
        if self.is_linear() {
            return unpack_codes(packed, count, self.bits()).ok_or(short);
        }
        let mut values = [0; 256];
        values.iter_mut().zip(&self.values).for_each(|(to, from)| *to = *from);
        if self.values.len() != 1_usize.wrapping_shl(self.bits().into()) {
            let indices = unpack_with(packed, count, self.bits(), |index| index).ok_or(short.clone())?;
            let outside = |&index: &u8| usize::from(index) >= self.values.len();
            if let Some(entry) = indices.iter().position(outside) {
                let index = indices.get(entry).copied().unwrap_or_default();
                return Err(Problem::ValueIndex { entry, index, count: self.values.len() });
            }
        }
        let value = |index: u8| values.get(usize::from(index)).copied().unwrap_or_default();
        unpack_with(packed, count, self.bits(), value).ok_or(short)
    }
}

/// The narrowest width of 2 to 8 bits that holds all of `values`.
fn width(values: impl IntoIterator<Item = i8>) -> u8 {
    let magnitude = |value: i8| if value < 0 { !value } else { value };
    let largest = i16::from(values.into_iter().map(magnitude).max().unwrap_or(0));
    (2..8).find(|&bits| largest < half(bits)).unwrap_or(8)
}

/// The value table, the number of codes, and the packed codes.
fn dense_parts(payload: &[u8], wide: bool) -> Result<(ValueTable, usize, &[u8]), Problem> {
    let mut cursor = Cursor::new(payload);
    let (_, product) = cursor.dims(wide)?;
    let table = cursor.table()?;
    let count = usize::try_from(product).ok();
    let size = count.and_then(|count| packed_len(count, table.bits()));
    let packed = cursor.take("the codes", size)?;
    Ok((table, count.unwrap_or(0), packed))
}

fn decode_dense(payload: &[u8], wide: bool) -> Result<Codes, Problem> {
    let (table, count, packed) = dense_parts(payload, wide)?;
    let codes = table.codes(packed, count)?;
    Ok(Codes { bits: width(table.values), codes })
}

fn decode_sparse(payload: &[u8], wide: bool, alpha: &[f32]) -> Result<Codes, Problem> {
    let mut cursor = Cursor::new(payload);
    let (rows, product) = cursor.dims(wide)?;
    let size = to_u64(payload.len()).saturating_add(to_u64(size_of_val(alpha)));
    let count = sparse_size(product, size)?;
    let entries = u32::from_le_bytes(cursor.array("the number of entries")?);
    let entries = usize::try_from(entries).unwrap_or(usize::MAX);
    let step_bits = cursor.byte("the step width")?;
    if !(1..=8).contains(&step_bits) {
        return Err(Problem::StepBits { bits: step_bits });
    }
    let packed = cursor.take("the steps", packed_len(entries, step_bits))?;
    let steps = unpack_with(packed, entries, step_bits, usize::from).unwrap_or_default();
    let table = cursor.table()?;
    let packed = cursor.take("the codes", packed_len(entries, table.bits()))?;
    let listed = table.codes(packed, entries)?;
    let rows = usize::try_from(rows).unwrap_or(usize::MAX);
    let zero = zero_codes(rows, alpha, table.bits());
    let mut codes = vec![0; count];
    if let (Some(zero), Some(row_len)) = (&zero, count.checked_div(rows).filter(|len| *len > 0)) {
        for (row, &zero) in codes.chunks_mut(row_len).zip(zero) {
            row.fill(zero);
        }
    }
    let mut position = 0_usize;
    for (entry, (step, code)) in steps.into_iter().zip(listed).enumerate() {
        position = position.saturating_add(step);
        let Some(place) = codes.get_mut(position) else {
            return Err(Problem::PositionOutOfRange { entry, position: to_u64(position), count });
        };
        *place = code;
    }
    let bits = width(table.values.into_iter().chain(zero.into_iter().flatten()));
    Ok(Codes { bits, codes })
}

/// The code of everything that a sparse payload does not list, per row; `None` for symmetric weights (it is 0).
fn zero_codes(rows: usize, alpha: &[f32], bits: u8) -> Option<Vec<i8>> {
    if Some(alpha.len()) != rows.checked_mul(2) {
        return None;
    }
    let saturate = |code: i32| i8::try_from(code.clamp(-128, 127)).unwrap_or(0);
    Some(alpha.as_chunks::<2>().0.iter().map(|&[min, scale]| saturate(zero_code(min, scale, bits))).collect())
}

/// The number of weights of a sparse payload, if it is in proportion to the payload.
///
/// Not listed weights cost nothing, so a few bytes could claim any number of them.
fn sparse_size(count: u64, payload: u64) -> Result<usize, Problem> {
    let limit = payload.saturating_mul(SPARSE_RATIO).max(SPARSE_FLOOR);
    if count > limit {
        return Err(Problem::TooManyWeights { count, limit });
    }
    usize::try_from(count).map_err(|_| Problem::TooManyWeights { count, limit })
}

/// Lossless on every machine that Rust supports.
fn to_u64(value: usize) -> u64 {
    u64::try_from(value).unwrap_or(u64::MAX)
}
