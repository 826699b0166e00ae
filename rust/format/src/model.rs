//! A model as an owned tree: tables with the fields that are present, in the types of the schema.
//!
//! Vectors of numbers share the memory they were read from (a file mapping, a buffer), so that a model of
//! several hundred megabytes costs no copy; everything else is small and owned.

mod numbers;

pub use numbers::{Number, Numbers, PayloadSource};

use crate::error::{FormatError, Problem, Result};
use crate::schema::{self, Field, FieldDesc, FieldType, FieldValue, Scalar, TableKind};

/// The value of a field.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// A number or enum value.
    Scalar(Scalar),
    /// Text.
    String(String),
    /// A table, also the value of a union (its tag is the table's kind).
    Table(Box<Table>),
    /// A vector of numbers or enum values.
    Numbers(Numbers),
    /// A vector of texts.
    Strings(Vec<String>),
    /// A vector of tables.
    Tables(Vec<Table>),
}

impl Value {
    /// In words, for messages.
    #[must_use]
    pub fn describe(&self) -> String {
        match self {
            Self::Scalar(scalar) => scalar.scalar_type().name().to_owned(),
            Self::String(_) => "a string".to_owned(),
            Self::Table(table) => format!("a table {}", table.kind()),
            Self::Numbers(numbers) => format!("a vector of {}", numbers.element()),
            Self::Strings(_) => "a vector of strings".to_owned(),
            Self::Tables(tables) => match tables.first() {
                Some(table) => format!("a vector of tables {}", table.kind()),
                None => "an empty vector of tables".to_owned(),
            },
        }
    }

    /// Whether a field of type `ty` can hold this value.
    #[must_use]
    pub fn fits(&self, ty: FieldType) -> bool {
        match (self, ty) {
            (Self::Scalar(scalar), FieldType::Scalar(_) | FieldType::Enum(_)) => {
                ty.scalar_type() == Some(scalar.scalar_type())
            }
            (Self::Numbers(numbers), FieldType::Numbers(_) | FieldType::EnumNumbers(_)) => {
                ty.scalar_type() == Some(numbers.element())
            }
            (Self::String(_), FieldType::String) | (Self::Strings(_), FieldType::Strings) => true,
            (Self::Table(table), FieldType::Table(kind)) => table.kind() == kind,
            (Self::Table(table), FieldType::Union) => table.kind().union_tag().is_some(),
            (Self::Tables(tables), FieldType::Tables(kind)) => {
                tables.iter().all(|table| table.kind() == kind)
            }
            _ => false,
        }
    }
}

/// A table: its kind and the fields that are present.
#[derive(Debug, Clone, PartialEq)]
pub struct Table {
    kind: TableKind,
    /// Sorted by slot.
    fields: Vec<(u16, Value)>,
}

impl Table {
    /// A table without fields.
    #[must_use]
    pub fn new(kind: TableKind) -> Self {
        Self { kind, fields: Vec::new() }
    }

    /// What kind of table it is.
    #[must_use]
    pub fn kind(&self) -> TableKind {
        self.kind
    }

    /// The fields that are present, in slot order.
    pub fn fields(&self) -> impl ExactSizeIterator<Item = (&'static FieldDesc, &Value)> {
        static UNKNOWN: FieldDesc = FieldDesc { name: "?", slot: 0, ty: FieldType::String, default: None };
        let desc = self.kind.desc();
        self.fields.iter().map(|(slot, value)| (desc.field(*slot).unwrap_or(&UNKNOWN), value))
    }

    /// The value of `field`: a number (the default of the schema where absent), or `Some` reference.
    ///
    /// `field` must be one of this table's kind; in release builds the field of another table reads as absent.
    #[must_use]
    pub fn get<T: FieldValue>(&self, field: Field<T>) -> T::Ref<'_> {
        debug_assert_eq!(self.kind, field.table(), "field {field:?} of another table");
        let value = if self.kind == field.table() { self.value(field.slot()) } else { None };
        T::read(value, field.desc().and_then(|desc| desc.default))
    }

    /// Whether `field` is present.
    #[must_use]
    pub fn has<T>(&self, field: Field<T>) -> bool {
        self.kind == field.table() && self.value(field.slot()).is_some()
    }

    /// Sets a field.
    pub fn set<T: FieldValue>(&mut self, field: Field<T>, value: impl Into<T::Owned>) -> &mut Self {
        debug_assert_eq!(self.kind, field.table(), "field {field:?} of another table");
        self.set_slot(field.slot(), T::wrap(value.into()));
        self
    }

    /// [`set`](Self::set) for building a table in one expression.
    #[must_use]
    pub fn with<T: FieldValue>(mut self, field: Field<T>, value: impl Into<T::Owned>) -> Self {
        self.set(field, value);
        self
    }

    /// Removes a field and returns its value.
    pub fn take<T>(&mut self, field: Field<T>) -> Option<Value> {
        debug_assert_eq!(self.kind, field.table(), "field {field:?} of another table");
        let position = self.fields.binary_search_by_key(&field.slot(), |(slot, _)| *slot).ok()?;
        Some(self.fields.remove(position).1)
    }

    /// The table in `field`, to change it.
    pub fn table_mut(&mut self, field: Field<Table>) -> Option<&mut Table> {
        match self.value_mut(field.slot()) {
            Some(Value::Table(table)) => Some(table),
            _ => None,
        }
    }

    /// The tables in `field`, to change them.
    pub fn tables_mut(&mut self, field: Field<Vec<Table>>) -> Option<&mut Vec<Table>> {
        match self.value_mut(field.slot()) {
            Some(Value::Tables(tables)) => Some(tables),
            _ => None,
        }
    }

    /// The value in `slot`, if present.
    #[must_use]
    pub fn value(&self, slot: u16) -> Option<&Value> {
        let position = self.fields.binary_search_by_key(&slot, |(slot, _)| *slot).ok()?;
        self.fields.get(position).map(|(_, value)| value)
    }

    /// The value of the field called `name`, if present.
    ///
    /// # Errors
    /// [`Problem::UnknownField`] if the schema has no such field.
    pub fn value_by_name(&self, name: &str) -> Result<Option<&Value>> {
        Ok(self.value(self.field_named(name)?.slot))
    }

    /// Sets the field called `name`.
    ///
    /// # Errors
    /// [`Problem::UnknownField`] if the schema has no such field, [`Problem::WrongType`] if the value is of
    /// another type.
    pub fn set_by_name(&mut self, name: &str, value: Value) -> Result<()> {
        let field = self.field_named(name)?;
        if !value.fits(field.ty) {
            let problem =
                Problem::WrongType { wanted: field.ty.describe().into_owned(), got: value.describe() };
            return Err(FormatError::at(name, problem));
        }
        self.set_slot(field.slot, value);
        Ok(())
    }

    /// Appends the value of a slot larger than all present ones, or replaces or inserts it.
    pub(crate) fn set_slot(&mut self, slot: u16, value: Value) {
        match self.fields.binary_search_by_key(&slot, |(slot, _)| *slot) {
            Ok(position) => {
                if let Some(entry) = self.fields.get_mut(position) {
                    entry.1 = value;
                }
            }
            Err(position) => self.fields.insert(position, (slot, value)),
        }
    }

    pub(crate) fn remove_slot(&mut self, slot: u16) {
        self.fields.retain(|(other, _)| *other != slot);
    }

    pub(crate) fn reserve(&mut self, fields: usize) {
        self.fields.reserve_exact(fields);
    }

    pub(crate) fn values_mut(&mut self) -> impl Iterator<Item = (u16, &mut Value)> {
        self.fields.iter_mut().map(|(slot, value)| (*slot, value))
    }

    fn value_mut(&mut self, slot: u16) -> Option<&mut Value> {
        let position = self.fields.binary_search_by_key(&slot, |(slot, _)| *slot).ok()?;
        self.fields.get_mut(position).map(|(_, value)| value)
    }

    fn field_named(&self, name: &str) -> Result<&'static FieldDesc> {
        let unknown = || Problem::UnknownField { table: self.kind.name(), name: name.to_owned() };
        self.kind.desc().field_by_name(name).ok_or_else(|| FormatError::at("", unknown()))
    }
}

/// A field of a table in a file that this version's schema does not have; it was skipped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SkippedField {
    /// Path of the table.
    pub path: String,
    /// Kind of the table.
    pub table: TableKind,
    /// Slot of the field.
    pub slot: u16,
}

/// A model: its root table, of kind [`TableKind::Net`].
#[derive(Debug, Clone, PartialEq)]
pub struct Model {
    net: Table,
    skipped: Vec<SkippedField>,
}

impl Model {
    /// Wraps a root table.
    ///
    /// # Errors
    /// [`Problem::WrongType`] if `net` is of another kind than [`TableKind::Net`].
    pub fn new(net: Table) -> Result<Self> {
        Self::with_skipped(net, Vec::new())
    }

    pub(crate) fn with_skipped(net: Table, skipped: Vec<SkippedField>) -> Result<Self> {
        if net.kind() != schema::ROOT {
            let (wanted, got) = (schema::ROOT.to_string(), net.kind().to_string());
            return Err(FormatError::at("", Problem::WrongType { wanted, got }));
        }
        Ok(Self { net, skipped })
    }

    /// The root table.
    #[must_use]
    pub fn net(&self) -> &Table {
        &self.net
    }

    /// The root table, to change it.
    pub fn net_mut(&mut self) -> &mut Table {
        &mut self.net
    }

    /// The root table, by value.
    #[must_use]
    pub fn into_net(self) -> Table {
        self.net
    }

    /// The ops of the main graph, in execution order.
    #[must_use]
    pub fn ops(&self) -> &[Table] {
        self.net.get(schema::net::OPLISTS).unwrap_or_default()
    }

    /// The tensor names of the main graph; tensor ids are positions in this list.
    #[must_use]
    pub fn tensor_names(&self) -> &[String] {
        self.net.get(schema::net::TENSOR_NAME).unwrap_or_default()
    }

    /// Fields of the file that this version does not know (a newer MNN wrote it) and that were skipped.
    /// The list is cut off at a hundred.
    #[must_use]
    pub fn skipped_fields(&self) -> &[SkippedField] {
        &self.skipped
    }
}
