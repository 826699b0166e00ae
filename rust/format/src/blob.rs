//! Tensor data: the `Blob` table of constants.
#![deny(clippy::as_conversions, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use half::{bf16, f16};

use crate::error::{FormatError, Problem, Result};
use crate::model::{Numbers, Table, Value};
use crate::schema::{DataType, Field, FieldDesc, FieldValue, ScalarType, blob};

/// A constant tensor: shape, type and data, in row-major order of `dims`.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorData {
    /// The shape; empty for a scalar.
    pub dims: Vec<usize>,
    /// The type of the elements.
    pub data_type: DataType,
    /// The elements: as many as the product of `dims`. Half floats and bfloat16 are given as their raw `u16` bits.
    pub numbers: Numbers,
}

impl TensorData {
    /// The elements as f32, exactly; integers beyond 2^24 are rounded.
    ///
    /// # Errors
    /// [`Problem::UnsupportedDataType`] if the type is not a number type handled here.
    pub fn to_f32(&self) -> Result<Vec<f32>> {
        let numbers = &self.numbers;
        let converted = match self.data_type {
            DataType::DT_FLOAT => numbers.as_f32().map(std::borrow::Cow::into_owned),
            DataType::DT_HALF => map(numbers, |bits: u16| f16::from_bits(bits).to_f32()),
            DataType::DT_BFLOAT16 => map(numbers, |bits: u16| bf16::from_bits(bits).to_f32()),
            DataType::DT_INT32 => map(numbers, nearest_f32),
            DataType::DT_INT64 => map(numbers, nearest_f32_of_i64),
            DataType::DT_INT8 => map(numbers, |value: i8| f32::from(value)),
            DataType::DT_UINT8 => map(numbers, |value: u8| f32::from(value)),
            _ => None,
        };
        converted.ok_or_else(|| unsupported(self.data_type))
    }
}

fn map<T: crate::model::Number>(numbers: &Numbers, convert: impl Fn(T) -> f32) -> Option<Vec<f32>> {
    Some(numbers.as_slice::<T>()?.iter().map(|&value| convert(value)).collect())
}

#[expect(clippy::as_conversions, reason = "rounds to nearest, which is wanted")]
fn nearest_f32(value: i32) -> f32 {
    value as f32
}

#[expect(clippy::as_conversions, reason = "rounds to nearest, which is wanted")]
fn nearest_f32_of_i64(value: i64) -> f32 {
    value as f32
}

fn unsupported(data_type: DataType) -> FormatError {
    FormatError::at("dataType", Problem::UnsupportedDataType { data_type: data_type.to_string() })
}

/// The field of a `Blob` that holds data of this type.
pub(crate) fn data_field(data_type: DataType) -> Result<&'static FieldDesc> {
    fn desc<T: FieldValue>(field: Field<T>) -> Option<&'static FieldDesc> {
        field.desc()
    }
    match data_type {
        DataType::DT_FLOAT => desc(blob::FLOAT32S),
        DataType::DT_INT32 => desc(blob::INT32S),
        DataType::DT_INT64 => desc(blob::INT64S),
        DataType::DT_INT8 => desc(blob::INT8S),
        DataType::DT_UINT8 | DataType::DT_HALF | DataType::DT_BFLOAT16 => desc(blob::UINT8S),
        _ => None,
    }
    .ok_or_else(|| unsupported(data_type))
}

/// The tensor in a `Blob`.
///
/// # Errors
/// [`Problem::UnsupportedDataType`] for types other than FLOAT, HALF, BFLOAT16, INT8, UINT8, INT32 and INT64;
/// [`Problem::Length`] if the data does not fill the shape; [`Problem::ExternalMissing`] if it is in a side file
/// that was not loaded.
pub fn tensor_data(table: &Table) -> Result<TensorData> {
    if table.get(blob::EXTERNAL).is_some_and(|external| !external.is_empty()) {
        return Err(FormatError::at("external", Problem::ExternalMissing { wanted: None }));
    }
    let data_type = table.get(blob::DATA_TYPE);
    let field = data_field(data_type)?;
    let dims = table.get(blob::DIMS).and_then(|dims| dims.as_i32()).unwrap_or_default();
    let negative = |&dim: &i32| {
        let problem =
            Problem::WrongType { wanted: "sizes that are not negative".into(), got: dim.to_string() };
        FormatError::at("dims", problem)
    };
    let dims: Vec<usize> =
        dims.iter().map(|dim| usize::try_from(*dim).map_err(|_| negative(dim))).collect::<Result<_>>()?;
    // A zero anywhere makes the tensor empty, whatever the other sizes.
    let wanted = if dims.contains(&0) {
        0
    } else {
        dims.iter().try_fold(1_usize, |product, &dim| product.checked_mul(dim)).unwrap_or(usize::MAX)
    };
    let numbers = match table.value(field.slot) {
        Some(Value::Numbers(numbers)) => numbers.clone(),
        _ => Numbers::from_bytes(field.ty.scalar_type().unwrap_or(ScalarType::U8), bytes::Bytes::new())?,
    };
    let numbers = if matches!(data_type, DataType::DT_HALF | DataType::DT_BFLOAT16) {
        Numbers::from_bytes(ScalarType::U16, numbers.to_bytes()?).map_err(|error| error.within(field.name))?
    } else {
        numbers
    };
    if numbers.len() != wanted {
        return Err(FormatError::at(field.name, Problem::Length { got: numbers.len(), wanted }));
    }
    Ok(TensorData { dims, data_type, numbers })
}
