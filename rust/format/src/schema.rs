//! Descriptors of the wire schema, and typed names for its fields.
//!
//! The content is generated from `schema/mnn.fbs` (run `make schema`): one [`TableKind`] and [`TableDesc`] per
//! table, one newtype per enum ([`OpType`], [`DataType`], ...), and per table a module with one constant
//! per field, e.g. [`convolution2d_common::PAD_X`].

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use crate::model::{Numbers, Table, Value};

#[expect(missing_docs, non_upper_case_globals, non_camel_case_types, reason = "names of the schema, generated")]
#[rustfmt::skip]
#[path = "schema_generated.rs"]
mod generated;

pub use generated::*;

/// A number type of the wire format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ScalarType {
    /// 1 byte, 0 or 1.
    Bool,
    /// Signed byte.
    I8,
    /// Unsigned byte.
    U8,
    /// 16-bit unsigned integer.
    U16,
    /// 32-bit signed integer.
    I32,
    /// 32-bit unsigned integer.
    U32,
    /// 64-bit signed integer.
    I64,
    /// 32-bit float.
    F32,
}

impl ScalarType {
    /// Bytes of one value; also its alignment.
    #[must_use]
    pub const fn size(self) -> usize {
        match self {
            Self::Bool | Self::I8 | Self::U8 => 1,
            Self::U16 => 2,
            Self::I32 | Self::U32 | Self::F32 => 4,
            Self::I64 => 8,
        }
    }

    /// The name as in NumPy: "bool", "int8", ...
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bool => "bool",
            Self::I8 => "int8",
            Self::U8 => "uint8",
            Self::U16 => "uint16",
            Self::I32 => "int32",
            Self::U32 => "uint32",
            Self::I64 => "int64",
            Self::F32 => "float32",
        }
    }
}

impl fmt::Display for ScalarType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A single number. Enum values are stored as their base type.
#[derive(Debug, Clone, Copy)]
#[expect(missing_docs, reason = "variants are those of ScalarType")]
pub enum Scalar {
    Bool(bool),
    I8(i8),
    U8(u8),
    U16(u16),
    I32(i32),
    U32(u32),
    I64(i64),
    F32(f32),
}

impl PartialEq for Scalar {
    /// Same type and same bits: a NaN equals itself, -0.0 and 0.0 differ.
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::F32(a), Self::F32(b)) => a.to_bits() == b.to_bits(),
            (Self::F32(_), _) | (_, Self::F32(_)) => false,
            _ => self.scalar_type() == other.scalar_type() && self.as_i64() == other.as_i64(),
        }
    }
}

impl Scalar {
    /// The type of the number.
    #[must_use]
    pub const fn scalar_type(self) -> ScalarType {
        match self {
            Self::Bool(_) => ScalarType::Bool,
            Self::I8(_) => ScalarType::I8,
            Self::U8(_) => ScalarType::U8,
            Self::U16(_) => ScalarType::U16,
            Self::I32(_) => ScalarType::I32,
            Self::U32(_) => ScalarType::U32,
            Self::I64(_) => ScalarType::I64,
            Self::F32(_) => ScalarType::F32,
        }
    }

    /// The value as an integer, if it is one.
    #[must_use]
    pub fn as_i64(self) -> Option<i64> {
        match self {
            Self::Bool(value) => Some(value.into()),
            Self::I8(value) => Some(value.into()),
            Self::U8(value) => Some(value.into()),
            Self::U16(value) => Some(value.into()),
            Self::I32(value) => Some(value.into()),
            Self::U32(value) => Some(value.into()),
            Self::I64(value) => Some(value),
            Self::F32(_) => None,
        }
    }

    /// An integer as a number of type `ty`, if it fits; `None` for [`ScalarType::F32`].
    #[must_use]
    pub fn from_i64(ty: ScalarType, value: i64) -> Option<Self> {
        Some(match ty {
            ScalarType::Bool => Self::Bool(match value {
                0 => false,
                1 => true,
                _ => return None,
            }),
            ScalarType::I8 => Self::I8(value.try_into().ok()?),
            ScalarType::U8 => Self::U8(value.try_into().ok()?),
            ScalarType::U16 => Self::U16(value.try_into().ok()?),
            ScalarType::I32 => Self::I32(value.try_into().ok()?),
            ScalarType::U32 => Self::U32(value.try_into().ok()?),
            ScalarType::I64 => Self::I64(value),
            ScalarType::F32 => return None,
        })
    }
}

/// What a field holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FieldType {
    /// A number.
    Scalar(ScalarType),
    /// A number with names.
    Enum(EnumKind),
    /// UTF-8 text.
    String,
    /// A table.
    Table(TableKind),
    /// A table of one of the kinds in [`UNION_MEMBERS`]; its tag has the slot before.
    Union,
    /// A vector of numbers.
    Numbers(ScalarType),
    /// A vector of numbers with names.
    EnumNumbers(EnumKind),
    /// A vector of texts.
    Strings,
    /// A vector of tables.
    Tables(TableKind),
}

impl FieldType {
    /// The number type of a scalar, enum, or vector of these.
    #[must_use]
    pub fn scalar_type(self) -> Option<ScalarType> {
        match self {
            Self::Scalar(ty) | Self::Numbers(ty) => Some(ty),
            Self::Enum(kind) | Self::EnumNumbers(kind) => Some(kind.desc().base),
            Self::String | Self::Table(_) | Self::Union | Self::Strings | Self::Tables(_) => None,
        }
    }

    /// In words, for messages: "a vector of float32", "a table Pool", ...
    #[must_use]
    pub fn describe(self) -> Cow<'static, str> {
        match self {
            Self::Scalar(ty) => ty.name().into(),
            Self::Enum(kind) => format!("{} (a name or a number)", kind.desc().name).into(),
            Self::String => "a string".into(),
            Self::Table(kind) => format!("a table {}", kind.name()).into(),
            Self::Union => "a table of the union OpParameter".into(),
            Self::Numbers(ty) => format!("a vector of {ty}").into(),
            Self::EnumNumbers(kind) => format!("a vector of {}", kind.desc().name).into(),
            Self::Strings => "a vector of strings".into(),
            Self::Tables(kind) => format!("a vector of tables {}", kind.name()).into(),
        }
    }
}

/// A field of a table.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FieldDesc {
    /// Its name in the schema.
    pub name: &'static str,
    /// Its slot: the vtable entry is at byte `4 + 2 * slot`.
    pub slot: u16,
    /// What it holds.
    pub ty: FieldType,
    /// Its value when absent; only numbers have one.
    pub default: Option<Scalar>,
}

/// A table type.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TableDesc {
    /// Its name in the schema.
    pub name: &'static str,
    /// Its kind.
    pub kind: TableKind,
    /// Its fields in slot order.
    pub fields: &'static [FieldDesc],
}

impl TableDesc {
    /// The field in `slot`.
    #[must_use]
    pub fn field(&self, slot: u16) -> Option<&'static FieldDesc> {
        self.fields.iter().find(|field| field.slot == slot)
    }

    /// The field called `name`.
    #[must_use]
    pub fn field_by_name(&self, name: &str) -> Option<&'static FieldDesc> {
        self.fields.iter().find(|field| field.name == name)
    }
}

/// An enum type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EnumDesc {
    /// Its name in the schema.
    pub name: &'static str,
    /// The number type that stores it.
    pub base: ScalarType,
    /// Names and numbers.
    pub values: &'static [(&'static str, i32)],
}

impl EnumDesc {
    /// The name of `number`.
    #[must_use]
    pub fn key(&self, number: i64) -> Option<&'static str> {
        self.values.iter().find(|(_, value)| i64::from(*value) == number).map(|(key, _)| *key)
    }

    /// The number called `key`.
    #[must_use]
    pub fn number(&self, key: &str) -> Option<i32> {
        self.values.iter().find(|(name, _)| *name == key).map(|(_, value)| *value)
    }
}

#[expect(
    clippy::as_conversions,
    reason = "the discriminant of a field-less enum is its position in the table"
)]
impl TableKind {
    /// The descriptor of this table.
    #[must_use]
    pub fn desc(self) -> &'static TableDesc {
        &TABLES[self as usize]
    }

    /// The name in the schema.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.desc().name
    }

    /// The table type called `name`.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        TABLES.iter().find(|table| table.name == name).map(|table| table.kind)
    }

    /// The tag of this table in the union, if it is a member.
    #[must_use]
    pub fn union_tag(self) -> Option<u8> {
        UNION_MEMBERS.iter().position(|&kind| kind == self).and_then(|i| u8::try_from(i + 1).ok())
    }

    /// The union member with tag `tag`.
    #[must_use]
    pub fn from_union_tag(tag: u8) -> Option<Self> {
        UNION_MEMBERS.get(usize::from(tag).checked_sub(1)?).copied()
    }
}

#[expect(
    clippy::as_conversions,
    reason = "the discriminant of a field-less enum is its position in the table"
)]
impl EnumKind {
    /// The descriptor of this enum.
    #[must_use]
    pub fn desc(self) -> &'static EnumDesc {
        &ENUMS[self as usize]
    }
}

impl fmt::Display for TableKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The name of a field of one table type, with the Rust type of its value.
///
/// `T` is a number type, an enum newtype, `String`, [`Table`], or a `Vec` of these.
pub struct Field<T> {
    table: TableKind,
    slot: u16,
    marker: PhantomData<fn() -> T>,
}

impl<T> Field<T> {
    pub(crate) const fn new(table: TableKind, slot: u16) -> Self {
        Self { table, slot, marker: PhantomData }
    }

    /// The table type that has this field.
    #[must_use]
    pub const fn table(self) -> TableKind {
        self.table
    }

    /// The slot of this field.
    #[must_use]
    pub const fn slot(self) -> u16 {
        self.slot
    }

    /// The descriptor of this field.
    #[must_use]
    pub fn desc(self) -> Option<&'static FieldDesc> {
        self.table.desc().field(self.slot)
    }

    /// The name of this field.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.desc().map_or("?", |field| field.name)
    }
}

impl<T> Clone for Field<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Field<T> {}

impl<T> fmt::Debug for Field<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.table, self.name())
    }
}

/// Rust types that a [`Field`] can have.
pub trait FieldValue: Sized {
    /// What reading gives: the number itself, or an `Option` of a reference.
    type Ref<'a>;
    /// What writing takes.
    type Owned;
    /// Reads `value`, or the default where it is absent (`default`: that of the schema, for numbers).
    fn read<'a>(value: Option<&'a Value>, default: Option<Scalar>) -> Self::Ref<'a>;
    /// Wraps a value.
    fn wrap(value: Self::Owned) -> Value;
}

macro_rules! scalar_field {
    ($($rust:ty, $variant:ident, $zero:expr;)*) => {$(
        impl FieldValue for $rust {
            type Ref<'a> = $rust;
            type Owned = $rust;

            fn read(value: Option<&Value>, default: Option<Scalar>) -> $rust {
                let present = match value {
                    Some(Value::Scalar(scalar)) => Some(*scalar),
                    _ => None,
                };
                match present.or(default) {
                    Some(Scalar::$variant(value)) => value,
                    _ => $zero,
                }
            }

            fn wrap(value: $rust) -> Value {
                Value::Scalar(Scalar::$variant(value))
            }
        }

        impl FieldValue for Vec<$rust> {
            type Ref<'a> = Option<&'a Numbers>;
            type Owned = Numbers;

            fn read(value: Option<&Value>, _: Option<Scalar>) -> Option<&Numbers> {
                match value {
                    Some(Value::Numbers(numbers)) => Some(numbers),
                    _ => None,
                }
            }

            fn wrap(value: Numbers) -> Value {
                Value::Numbers(value)
            }
        }
    )*};
}

scalar_field! {
    bool, Bool, false;
    i8, I8, 0;
    u8, U8, 0;
    u16, U16, 0;
    i32, I32, 0;
    u32, U32, 0;
    i64, I64, 0;
    f32, F32, 0.0;
}

macro_rules! reference_field {
    ($($rust:ty, $reference:ty, $variant:ident, $unwrap:expr, $wrap:expr;)*) => {$(
        impl FieldValue for $rust {
            type Ref<'a> = Option<&'a $reference>;
            type Owned = $rust;

            fn read(value: Option<&Value>, _: Option<Scalar>) -> Option<&$reference> {
                match value {
                    Some(Value::$variant(value)) => Some($unwrap(value)),
                    _ => None,
                }
            }

            fn wrap(value: $rust) -> Value {
                Value::$variant($wrap(value))
            }
        }
    )*};
}

reference_field! {
    String, str, String, String::as_str, std::convert::identity;
    Table, Table, Table, Box::as_ref, Box::new;
    Vec<String>, [String], Strings, Vec::as_slice, std::convert::identity;
    Vec<Table>, [Table], Tables, Vec::as_slice, std::convert::identity;
}

/// What the newtype of an enum can do besides its constants.
macro_rules! enum_impl {
    ($name:ident, $base:ty, $variant:ident) => {
        impl $name {
            /// The name of the value, if it has one.
            #[must_use]
            pub fn key(self) -> Option<&'static str> {
                EnumKind::$name.desc().key(self.0.into())
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                match self.key() {
                    Some(key) => f.write_str(key),
                    None => write!(f, "{} {}", EnumKind::$name.desc().name, self.0),
                }
            }
        }

        impl crate::schema::FieldValue for $name {
            type Ref<'a> = Self;
            type Owned = Self;

            fn read(value: Option<&crate::model::Value>, default: Option<Scalar>) -> Self {
                Self(<$base as crate::schema::FieldValue>::read(value, default))
            }

            fn wrap(value: Self) -> crate::model::Value {
                crate::model::Value::Scalar(Scalar::$variant(value.0))
            }
        }
    };
}
pub(crate) use enum_impl;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_positions_in_the_tables() {
        for (position, table) in TABLES.iter().enumerate() {
            assert_eq!(table.kind.desc().name, table.name, "table {position}");
            assert_eq!(TableKind::from_name(table.name), Some(table.kind));
            assert!(table.fields.is_sorted_by_key(|field| field.slot), "{}", table.name);
        }
        assert_eq!(EnumKind::OpType.desc().name, "OpType");
        assert_eq!(EnumKind::QuantizeRoundMode.desc().name, "QuantizeRoundMode");
    }

    #[test]
    fn the_schema_has_the_shape_of_the_format() {
        // 121 tables, 30 small enums and OpType, 103 union members besides NONE.
        assert_eq!(TABLES.len(), 121);
        assert_eq!(ENUMS.len(), 30);
        assert_eq!(UNION_MEMBERS.len(), 103);
        assert_eq!(TableKind::Convolution2D.union_tag(), Some(9));
        assert_eq!(TableKind::from_union_tag(103), Some(TableKind::FusedLinearParam));
        assert_eq!(TableKind::from_union_tag(0), None);
        assert_eq!(TableKind::Net.union_tag(), None);
    }

    #[test]
    fn no_scalar_field_needs_more_than_four_bytes() {
        // The writer aligns tables to four bytes.
        for field in TABLES.iter().flat_map(|table| table.fields) {
            if let FieldType::Scalar(_) | FieldType::Enum(_) = field.ty {
                assert!(field.ty.scalar_type().unwrap().size() <= 4, "{}", field.name);
            }
        }
    }

    #[test]
    fn defaults_are_those_of_the_schema() {
        let conv = Table::new(TableKind::Convolution2DCommon);
        assert_eq!(conv.get(convolution2d_common::KERNEL_X), 1);
        assert_eq!(conv.get(convolution2d_common::PAD_X), 0);
        assert_eq!(conv.get(convolution2d_common::PAD_MODE), PadMode::CAFFE);
        assert!(conv.get(convolution2d_common::PADS).is_none());
        assert!(Table::new(TableKind::Pool).get(pool::CEIL_MODEL));
        assert_eq!(Table::new(TableKind::Relu6).get(relu6::MAX_VALUE), 6.0);
        assert_eq!(Table::new(TableKind::QuantizedFloatParam).get(quantized_float_param::CLAMP_MIN), -128);
        assert_eq!(OpType(13).to_string(), "ConvolutionDepthwise");
        assert_eq!(OpType(-5).to_string(), "OpType -5");
    }

    #[test]
    fn fields_know_their_names() {
        assert_eq!(format!("{:?}", convolution2d_common::PAD_X), "Convolution2DCommon.padX");
        assert_eq!(op::MAIN.name(), "main");
    }
}
