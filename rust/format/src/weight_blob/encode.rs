//! Quantized weights to payload bytes.

use half::f16;

use crate::bitpack;
use crate::error::{FormatError, Problem, Result};
use crate::model::Table;
use crate::quantized::{QuantizedWeights, half};
use crate::schema::{ScaleStorageType, TableKind, idst_quan};
use crate::weight_blob::zero_code;

/// How scales and minima are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ScaleStorage {
    /// 32-bit floats.
    #[default]
    F32,
    /// Half floats, rounded to nearest even. The codes stay as they are, so the weights move a little.
    F16,
}

/// How [`encode`] stores weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EncodeOptions {
    /// Type of the stored scales and minima.
    pub scales: ScaleStorage,
    /// Use the sparse layout (type 2) where it is smaller than the dense one (type 1).
    pub sparse: bool,
    /// Write dims of 32 bits even if 16 would do.
    pub wide: bool,
}

/// The parts of an `IDSTQuan` table that depend on the weights.
#[derive(Debug, Clone, PartialEq)]
pub struct EncodedWeights {
    /// Storage type: 1 (dense) or 2 (sparse).
    pub kind: i32,
    /// The payload.
    pub buffer: Vec<u8>,
    /// `[scale]`, or `[min, scale]` pairs if asymmetric; rounded to half floats if so stored.
    pub alpha: Vec<f32>,
    /// How `alpha` is stored.
    pub scales: ScaleStorage,
    /// Whether the dims of the header have 32 bits.
    pub shape_int32: bool,
    /// Bits per code.
    pub bits: u8,
    /// The smallest code if asymmetric, else 0.
    pub a_min: i32,
    /// The number of rows if asymmetric, else 0.
    pub read_type: i32,
}

impl EncodedWeights {
    /// The `IDSTQuan` table, with all fields that MNN's own converter sets for such weights.
    #[must_use]
    pub fn into_table(self) -> Table {
        let mut table = Table::new(TableKind::IDSTQuan);
        table
            .set(idst_quan::BUFFER, signed(self.buffer))
            .set(idst_quan::TYPE, self.kind)
            .set(idst_quan::QUANT_SCALE, 1.0_f32)
            .set(idst_quan::A_MAX_OR_BITS, i32::from(self.bits))
            .set(idst_quan::A_MIN, self.a_min)
            .set(idst_quan::READ_TYPE, self.read_type)
            .set(idst_quan::SHAPE_INT32, self.shape_int32);
        match self.scales {
            ScaleStorage::F32 => table.set(idst_quan::ALPHA, self.alpha),
            ScaleStorage::F16 => {
                let bits: Vec<u16> = self.alpha.iter().map(|&value| f16::from_f32(value).to_bits()).collect();
                table.set(idst_quan::SCALE_STORAGE, ScaleStorageType::FP16).set(idst_quan::ALPHA_FP16, bits)
            }
        };
        table
    }
}

/// The same bytes as signed numbers, without copying.
fn signed(bytes: Vec<u8>) -> Vec<i8> {
    bytemuck::cast_vec(bytes)
}

/// An `IDSTQuan` table of type 3: the weights as half floats (see [`half_bytes`]), no scales.
#[must_use]
pub fn half_table(weights: &[f32]) -> Table {
    Table::new(TableKind::IDSTQuan)
        .with(idst_quan::BUFFER, signed(half_bytes(weights)))
        .with(idst_quan::TYPE, 3)
        .with(idst_quan::QUANT_SCALE, 1.0_f32)
}

/// Encodes weights in the dense layout, or in the sparse one where that is asked for and smaller.
///
/// The bytes depend on nothing but the arguments.
///
/// # Errors
/// [`Problem::TooManyWeights`] if rows or row length exceed `i32::MAX`.
pub fn encode(weights: &QuantizedWeights, options: &EncodeOptions) -> Result<EncodedWeights> {
    let read_type = i32::try_from(weights.rows()).map_err(|_| too_many(weights.rows()))?;
    i32::try_from(weights.row_len()).map_err(|_| too_many(weights.row_len()))?;
    let stored = |value: f32| match options.scales {
        ScaleStorage::F32 => value,
        ScaleStorage::F16 => f16::from_f32(value).to_f32(),
    };
    let alpha: Vec<f32> = match weights.min() {
        None => weights.scale().iter().map(|&scale| stored(scale)).collect(),
        Some(min) => {
            min.iter().zip(weights.scale()).flat_map(|(&min, &scale)| [stored(min), stored(scale)]).collect()
        }
    };
    let asymmetric = weights.min().is_some();
    let shape_int32 =
        options.wide || [weights.rows(), weights.row_len()].iter().any(|&dim| u16::try_from(dim).is_err());
    let header = header(weights.rows(), weights.row_len(), shape_int32);
    let sparse = if options.sparse { sparse_payload(weights, &alpha, &header) } else { None };
    let (kind, buffer) = match sparse {
        Some(buffer) => (2, buffer),
        None => (1, dense_payload(weights, header)),
    };
    Ok(EncodedWeights {
        kind,
        buffer,
        alpha,
        scales: options.scales,
        shape_int32,
        bits: weights.bits(),
        a_min: if asymmetric { i32::from(half(weights.bits())).saturating_neg() } else { 0 },
        read_type: if asymmetric { read_type } else { 0 },
    })
}

fn too_many(count: usize) -> FormatError {
    let count = u64::try_from(count).unwrap_or(u64::MAX);
    FormatError::at("codes", Problem::TooManyWeights { count, limit: i32::MAX.unsigned_abs().into() })
}

/// Number of dims, then rows and row length in 16 or 32 bits.
fn header(rows: usize, row_len: usize, wide: bool) -> Vec<u8> {
    let mut out = vec![2];
    for dim in [rows, row_len] {
        let [a, b, c, d, ..] = dim.to_le_bytes();
        out.extend([a, b]);
        out.extend(wide.then_some([c, d]).into_iter().flatten());
    }
    out
}

/// The number of values (0 stands for 256) and the values `-half ..= half - 1`.
fn linear_table(bits: u8) -> impl Iterator<Item = u8> {
    let half = half(bits);
    let [count, _] = half.saturating_mul(2).to_le_bytes();
    std::iter::once(count).chain((half.saturating_neg()..half).map(|value| value.to_le_bytes()[0]))
}

fn dense_payload(weights: &QuantizedWeights, header: Vec<u8>) -> Vec<u8> {
    let codes = bitpack::pack_codes(weights.codes(), weights.bits());
    let mut out = Vec::with_capacity(header.len().saturating_add(257).saturating_add(codes.len()));
    out.extend_from_slice(&header);
    out.extend(linear_table(weights.bits()));
    out.extend_from_slice(&codes);
    out
}

/// The sparse layout, if it can express the weights and is smaller than the dense one.
fn sparse_payload(weights: &QuantizedWeights, alpha: &[f32], header: &[u8]) -> Option<Vec<u8>> {
    let bits = weights.bits();
    let zero = zero_codes(weights, alpha)?;
    let listed: Vec<usize> = listed_positions(weights, &zero);
    let (step_bits, entries) = best_step_bits(&listed, bits)?;
    let nnz = u32::try_from(entries).ok()?;
    let sparse_len =
        bitpack::packed_len(entries, step_bits)?.checked_add(bitpack::packed_len(entries, bits)?)?;
    // nnz (4 bytes) and step width (1) are the only parts that the dense layout lacks besides the steps.
    if sparse_len.checked_add(5)? >= bitpack::packed_len(weights.codes().len(), bits)? {
        return None;
    }
    let longest = longest_step(step_bits);
    let (mut steps, mut codes) = (Vec::with_capacity(entries), Vec::with_capacity(entries));
    let mut position = 0_usize;
    for &next in &listed {
        while next.saturating_sub(position) > longest {
            position = position.checked_add(longest)?;
            steps.push(longest);
            codes.push(*zero.get(position.checked_div(weights.row_len())?)?);
        }
        steps.push(next.saturating_sub(position));
        codes.push(*weights.codes().get(next)?);
        position = next;
    }
    let mut out = Vec::with_capacity(header.len().saturating_add(262).saturating_add(sparse_len));
    out.extend_from_slice(header);
    out.extend_from_slice(&nnz.to_le_bytes());
    out.push(step_bits);
    out.extend(bitpack::pack_with(&steps, step_bits, |step| step.to_le_bytes()[0]));
    out.extend(linear_table(bits));
    out.extend(bitpack::pack_codes(&codes, bits));
    Some(out)
}

/// The zero code of every row, or `None` if one of them is not a code of this width: then the gaps between
/// entries could not be filled.
fn zero_codes(weights: &QuantizedWeights, alpha: &[f32]) -> Option<Vec<i8>> {
    if weights.min().is_none() {
        return Some(vec![0; weights.rows()]);
    }
    let half = half(weights.bits());
    alpha
        .as_chunks::<2>()
        .0
        .iter()
        .map(|&[min, scale]| {
            let zero = zero_code(min, scale, weights.bits());
            (zero < i32::from(half)).then(|| i8::try_from(zero).ok()).flatten()
        })
        .map(|zero| zero.filter(|&zero| i16::from(zero) >= half.saturating_neg()))
        .collect()
}

/// Flat positions of all codes that are not their row's zero code; the first position if there are none.
fn listed_positions(weights: &QuantizedWeights, zero: &[i8]) -> Vec<usize> {
    let row_len = weights.row_len().max(1);
    let rows = weights.codes().chunks(row_len).zip(zero);
    let flags = rows.flat_map(|(codes, &zero)| codes.iter().map(move |&code| code != zero));
    let mut listed: Vec<usize> = flags.enumerate().filter_map(|(i, differs)| differs.then_some(i)).collect();
    if listed.is_empty() && !weights.codes().is_empty() {
        listed.push(0);
    }
    listed
}

/// The largest step that `bits` bits can express.
fn longest_step(bits: u8) -> usize {
    usize::from(u8::MAX.checked_shr(8_u32.saturating_sub(bits.into())).unwrap_or(0))
}

/// The step width (2 to 8) with the smallest payload, and its number of entries including fillers.
fn best_step_bits(listed: &[usize], bits: u8) -> Option<(u8, usize)> {
    let gaps =
        std::iter::once(0).chain(listed.iter().copied()).zip(listed).map(|(from, &to)| to.abs_diff(from));
    let mut fillers = [0_usize; 7];
    for gap in gaps {
        for (step_bits, count) in (2_u8..).zip(&mut fillers) {
            *count = count.checked_add(gap.saturating_sub(1).checked_div(longest_step(step_bits))?)?;
        }
    }
    (2_u8..)
        .zip(fillers)
        .filter_map(|(step_bits, fillers)| {
            let entries = listed.len().checked_add(fillers)?;
            let len =
                bitpack::packed_len(entries, step_bits)?.checked_add(bitpack::packed_len(entries, bits)?)?;
            Some((len, step_bits, entries))
        })
        .min()
        .map(|(_, step_bits, entries)| (step_bits, entries))
}

/// Floats as little-endian half floats: the payload of type 3.
///
/// Values are rounded to nearest even after clamping to ±65504, the largest half float; NaN stays NaN.
#[must_use]
pub fn half_bytes(weights: &[f32]) -> Vec<u8> {
    weights.iter().flat_map(|weight| f16::from_f32(weight.clamp(-65504.0, 65504.0)).to_le_bytes()).collect()
}
