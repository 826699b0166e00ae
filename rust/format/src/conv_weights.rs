//! The weights of a convolution, in whichever state its table has them.
#![deny(clippy::as_conversions, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use half::f16;

use crate::error::{FormatError, Problem, Result};
use crate::model::{Numbers, Table};
use crate::quantized::QuantizedWeights;
use crate::schema::{convolution2d, idst_quan, quantized_float_param};
use crate::weight_blob;

/// The weights of a `Convolution2D`, flat, in the order of the source tensor.
#[derive(Debug, Clone, PartialEq)]
pub enum ConvWeights {
    /// f32 values, shared with the file.
    Float(Numbers),
    /// Sparse f32 values, expanded.
    SparseFloat(Vec<f32>),
    /// Half floats.
    Half(Vec<f16>),
    /// Codes with scales (storage types 1, 2 and 4).
    Quantized(QuantizedWeights),
    /// The old int8 form: codes with a scale per output channel that already includes the activation scales,
    /// `out = clamp(round((acc + bias) * scale))`.
    OldInt8 {
        /// i8 codes.
        weight: Numbers,
        /// i32 biases in units of the accumulator.
        bias: Option<Numbers>,
        /// f32 output scales.
        scale: Option<Numbers>,
    },
}

impl ConvWeights {
    /// A word for the state: "float", "sparse", "half", "quantized", "old_int8".
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Float(_) => "float",
            Self::SparseFloat(_) => "sparse",
            Self::Half(_) => "half",
            Self::Quantized(_) => "quantized",
            Self::OldInt8 { .. } => "old_int8",
        }
    }

    /// The number of weights.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::Float(numbers) => numbers.len(),
            Self::SparseFloat(values) => values.len(),
            Self::Half(values) => values.len(),
            Self::Quantized(weights) => weights.codes().len(),
            Self::OldInt8 { weight, .. } => weight.len(),
        }
    }

    /// Whether there are no weights.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The weights as f32; of the old int8 form the codes themselves, which have no scale of their own.
    #[must_use]
    pub fn to_f32(&self) -> Vec<f32> {
        match self {
            Self::Float(numbers) => numbers.as_f32().unwrap_or_default().into_owned(),
            Self::SparseFloat(values) => values.clone(),
            Self::Half(values) => values.iter().map(|value| value.to_f32()).collect(),
            Self::Quantized(weights) => weights.dequantize(),
            Self::OldInt8 { weight, .. } => {
                weight.as_i8().unwrap_or_default().iter().map(|&code| f32::from(code)).collect()
            }
        }
    }
}

/// Decodes the weights of a `Convolution2D` table.
///
/// # Errors
/// [`Problem::NoWeights`] if they are inputs of the op; [`Problem::ExternalMissing`] if they are in a side file that
/// was not loaded; otherwise the broken invariant of the payload, with the field.
pub fn conv_weights(conv: &Table) -> Result<ConvWeights> {
    if conv.get(convolution2d::EXTERNAL).is_some_and(|external| !external.is_empty()) {
        return Err(FormatError::at("external", Problem::ExternalMissing { wanted: None }));
    }
    if let Some(weight) = conv.get(convolution2d::WEIGHT).filter(|weight| !weight.is_empty()) {
        return Ok(ConvWeights::Float(weight.clone()));
    }
    if let Some(quantized) = conv.get(convolution2d::QUAN_PARAMETER) {
        return idst_weights(quantized).map_err(|error| error.within("quanParameter"));
    }
    let old = conv.get(convolution2d::SYMMETRIC_QUAN);
    match old.and_then(|old| Some((old, old.get(quantized_float_param::WEIGHT).filter(|w| !w.is_empty())?))) {
        Some((old, weight)) => Ok(ConvWeights::OldInt8 {
            weight: weight.clone(),
            bias: old.get(quantized_float_param::BIAS).cloned(),
            scale: old.get(quantized_float_param::SCALE).cloned(),
        }),
        None => Err(FormatError::at("", Problem::NoWeights)),
    }
}

/// How the quantized weights of a `Convolution2D` table are stored, without decoding dense ones.
///
/// # Errors
/// Those of [`conv_weights`] that show without the codes; [`Problem::NoWeights`] if there is no `quanParameter`.
pub fn describe_conv_weights(conv: &Table) -> Result<weight_blob::Description> {
    if conv.get(convolution2d::EXTERNAL).is_some_and(|external| !external.is_empty()) {
        return Err(FormatError::at("external", Problem::ExternalMissing { wanted: None }));
    }
    match conv.get(convolution2d::QUAN_PARAMETER) {
        Some(quantized) => weight_blob::describe(quantized).map_err(|error| error.within("quanParameter")),
        None => Err(FormatError::at("", Problem::NoWeights)),
    }
}

fn idst_weights(quantized: &Table) -> Result<ConvWeights> {
    if quantized.has(idst_quan::INDEX) {
        return weight_blob::decode_sparse_float(quantized).map(ConvWeights::SparseFloat);
    }
    match quantized.get(idst_quan::TYPE) {
        3 => weight_blob::decode_half(quantized).map(ConvWeights::Half),
        _ => weight_blob::decode(quantized).map(ConvWeights::Quantized),
    }
}
