//! Element types.

use std::fmt;

use half::f16;
use mnnq_format::schema::DataType;

/// Type of the elements of a tensor at run time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DType {
    /// IEEE single precision.
    F32,
    /// 32-bit signed integer; also what 64-bit integers and booleans of the source model are.
    I32,
    /// Unsigned byte.
    U8,
    /// Signed byte.
    I8,
    /// IEEE half precision; storage only, no arithmetic is done in it.
    F16,
}

impl DType {
    /// Bytes of one element.
    #[must_use]
    pub const fn size(self) -> usize {
        match self {
            Self::F32 | Self::I32 => 4,
            Self::F16 => 2,
            Self::U8 | Self::I8 => 1,
        }
    }

    /// The name as in NumPy: "float32", "int32", ...
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "float32",
            Self::I32 => "int32",
            Self::U8 => "uint8",
            Self::I8 => "int8",
            Self::F16 => "float16",
        }
    }

    /// Whether the type is an integer.
    #[must_use]
    pub const fn is_integer(self) -> bool {
        matches!(self, Self::I32 | Self::U8 | Self::I8)
    }

    /// The run-time type of a wire type: 64-bit and 16-bit integers and booleans become [`DType::I32`],
    /// doubles [`DType::F32`]. `None` for types that tensors cannot have.
    #[must_use]
    pub fn from_wire(data_type: DataType) -> Option<Self> {
        Some(match data_type {
            DataType::DT_FLOAT | DataType::DT_DOUBLE => Self::F32,
            DataType::DT_INT32
            | DataType::DT_INT64
            | DataType::DT_BOOL
            | DataType::DT_INT16
            | DataType::DT_UINT16 => Self::I32,
            DataType::DT_UINT8 => Self::U8,
            DataType::DT_INT8 => Self::I8,
            DataType::DT_HALF => Self::F16,
            _ => return None,
        })
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Rust types that tensors can hold.
pub trait Element: bytemuck::Pod + Send + Sync + PartialOrd {
    /// The run-time type.
    const DTYPE: DType;
}

impl Element for f32 {
    const DTYPE: DType = DType::F32;
}

impl Element for i32 {
    const DTYPE: DType = DType::I32;
}

impl Element for u8 {
    const DTYPE: DType = DType::U8;
}

impl Element for i8 {
    const DTYPE: DType = DType::I8;
}

impl Element for f16 {
    const DTYPE: DType = DType::F16;
}
