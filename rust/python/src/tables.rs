//! Tables of the format to dictionaries and back.

use mnnq_format::schema::{FieldDesc, FieldType, ROOT, Scalar, ScalarType, TableKind};
use mnnq_format::{Model, Numbers, Table, Value};
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyBytes, PyDict, PyList, PyMapping, PySequence, PyString};

use crate::arrays::{ArrayError, describe, to_array, to_numbers};
use crate::errors::{Place, from_format, raise};

/// A table as a dictionary.
pub(crate) fn to_dict<'py>(py: Python<'py>, table: &Table) -> PyResult<Bound<'py, PyDict>> {
    let out = PyDict::new(py);
    for field in table.kind().desc().fields {
        let default = field.default.map(Value::Scalar);
        let Some(value) = table.value(field.slot).or(default.as_ref()) else { continue };
        if let (FieldType::Union, Value::Table(main)) = (field.ty, value) {
            out.set_item(tag_name(field), main.kind().name())?;
        }
        let value = match value {
            Value::Scalar(scalar) => scalar_to_python(py, field, *scalar)?,
            value => value_to_python(py, value)?,
        };
        out.set_item(field.name, value)?;
    }
    Ok(out)
}

/// The key that holds the type of a union.
fn tag_name(field: &FieldDesc) -> String {
    format!("{}_type", field.name)
}

fn value_to_python<'py>(py: Python<'py>, value: &Value) -> PyResult<Bound<'py, PyAny>> {
    Ok(match value {
        Value::Scalar(scalar) => number_to_python(py, *scalar)?,
        Value::String(text) => PyString::new(py, text).into_any(),
        Value::Table(table) => to_dict(py, table)?.into_any(),
        Value::Numbers(numbers) => to_array(py, numbers)?,
        Value::Strings(texts) => PyList::new(py, texts)?.into_any(),
        Value::Tables(tables) => {
            let list = PyList::empty(py);
            for table in tables {
                list.append(to_dict(py, table)?)?;
            }
            list.into_any()
        }
    })
}

pub(crate) fn scalar_to_python<'py>(
    py: Python<'py>,
    field: &FieldDesc,
    scalar: Scalar,
) -> PyResult<Bound<'py, PyAny>> {
    if let (FieldType::Enum(kind), Some(number)) = (field.ty, scalar.as_i64())
        && let Some(key) = kind.desc().key(number)
    {
        return Ok(PyString::intern(py, key).into_any());
    }
    number_to_python(py, scalar)
}

fn number_to_python(py: Python<'_>, scalar: Scalar) -> PyResult<Bound<'_, PyAny>> {
    Ok(match scalar {
        Scalar::Bool(value) => PyBool::new(py, value).to_owned().into_any(),
        Scalar::F32(value) => value.into_pyobject(py)?.into_any(),
        other => other.as_i64().unwrap_or_default().into_pyobject(py)?.into_any(),
    })
}

pub(crate) fn to_model(model: &Bound<'_, PyAny>) -> PyResult<Model> {
    let net = to_table(model, ROOT, "")?;
    Model::new(net).map_err(|error| from_format(model.py(), error, None))
}

/// A dictionary as a table of kind `kind`; `path` is where it is in the model.
pub(crate) fn to_table(value: &Bound<'_, PyAny>, kind: TableKind, path: &str) -> PyResult<Table> {
    let wanted = || format!("a mapping with the fields of {kind}");
    let Ok(mapping) = value.cast::<PyMapping>() else { return Err(wrong_type(value, path, &wanted())) };
    let desc = kind.desc();
    let union = desc.fields.iter().find(|field| field.ty == FieldType::Union);
    let mut table = Table::new(kind);
    let mut tag = None;
    for item in mapping.items()?.iter() {
        let (key, value): (Bound<'_, PyAny>, Bound<'_, PyAny>) = item.extract()?;
        let Ok(name) = key.extract::<String>() else {
            return Err(wrong_type(&key, path, "keys that are strings"));
        };
        if value.is_none() {
            // Still no excuse for a misspelt name.
            if desc.field_by_name(&name).is_none() && union.is_none_or(|field| tag_name(field) != name) {
                return Err(unknown_key(value.py(), kind, path, &name));
            }
            continue;
        }
        if union.is_some_and(|field| tag_name(field) == name) {
            tag = Some(union_member(&value, &join(path, &name))?);
            continue;
        }
        let Some(field) = desc.field_by_name(&name) else {
            return Err(unknown_key(value.py(), kind, path, &name));
        };
        if field.ty != FieldType::Union {
            let converted = to_value(&value, field, &join(path, &name))?;
            table.set_by_name(&name, converted).map_err(|error| from_format(value.py(), error, None))?;
        }
    }
    if let Some(field) = union {
        set_union(&mut table, field, mapping, tag.flatten(), path)?;
    }
    Ok(table)
}

/// Sets the union of `table` from its dictionary: the table's type is in its own key.
fn set_union(
    table: &mut Table,
    field: &FieldDesc,
    mapping: &Bound<'_, PyMapping>,
    tag: Option<TableKind>,
    path: &str,
) -> PyResult<()> {
    let value = match mapping.get_item(field.name) {
        Ok(value) if !value.is_none() => Some(value),
        _ => None,
    };
    match (value, tag) {
        (Some(value), Some(kind)) => {
            let main = to_table(&value, kind, &join(path, field.name))?;
            table
                .set_by_name(field.name, Value::Table(Box::new(main)))
                .map_err(|error| from_format(mapping.py(), error, None))
        }
        (None, None) => Ok(()),
        (Some(_), None) => {
            let message = format!("missing: the type of `{}`", field.name);
            Err(invalid(mapping.py(), &join(path, &tag_name(field)), &message))
        }
        (None, Some(kind)) => {
            let message = format!("missing: the table {kind} (an empty mapping if it has no fields)");
            Err(invalid(mapping.py(), &join(path, field.name), &message))
        }
    }
}

/// The member of the union called, or numbered, `value`; None for "NONE" and 0.
fn union_member(value: &Bound<'_, PyAny>, path: &str) -> PyResult<Option<TableKind>> {
    let kind = match (value.extract::<String>(), value.extract::<u8>()) {
        (Ok(name), _) if name == "NONE" => return Ok(None),
        (_, Ok(0)) => return Ok(None),
        (Ok(name), _) => TableKind::from_name(&name).filter(|kind| kind.union_tag().is_some()),
        (_, Ok(tag)) => TableKind::from_union_tag(tag),
        _ => return Err(wrong_type(value, path, "the name or number of a union member")),
    };
    kind.map(Some).ok_or_else(|| {
        let message = format!(
            "{} is not a member of the union",
            value.repr().map_or_else(|_| "?".into(), |r| r.to_string())
        );
        invalid(value.py(), path, &message)
    })
}

fn to_value(value: &Bound<'_, PyAny>, field: &FieldDesc, path: &str) -> PyResult<Value> {
    let wanted = || field.ty.describe();
    Ok(match field.ty {
        FieldType::Scalar(ty) => Value::Scalar(to_scalar(value, ty, path)?),
        FieldType::Enum(kind) => match value.extract::<String>() {
            Ok(key) => {
                let number =
                    kind.desc().number(&key).and_then(|n| Scalar::from_i64(kind.desc().base, n.into()));
                let unknown =
                    || invalid(value.py(), path, &format!("\"{key}\" is not a {}", kind.desc().name));
                Value::Scalar(number.ok_or_else(unknown)?)
            }
            Err(_) => Value::Scalar(to_scalar(value, kind.desc().base, path)?),
        },
        FieldType::String => Value::String(value.extract().map_err(|_| wrong_type(value, path, &wanted()))?),
        FieldType::Table(kind) => Value::Table(Box::new(to_table(value, kind, path)?)),
        FieldType::Numbers(ty) => Value::Numbers(vector(value, ty, path)?),
        FieldType::EnumNumbers(kind) => Value::Numbers(enum_vector(value, kind.desc(), path)?),
        FieldType::Strings => {
            let mut texts = Vec::new();
            for (index, item) in items(value, path, &wanted())?.iter().enumerate() {
                let text =
                    item.extract().map_err(|_| wrong_type(item, &format!("{path}[{index}]"), "a string"))?;
                texts.push(text);
            }
            Value::Strings(texts)
        }
        FieldType::Tables(kind) => {
            let mut tables = Vec::new();
            for (index, item) in items(value, path, &wanted())?.iter().enumerate() {
                tables.push(to_table(item, kind, &format!("{path}[{index}]"))?);
            }
            Value::Tables(tables)
        }
        FieldType::Union => return Err(wrong_type(value, path, &wanted())),
    })
}

fn to_scalar(value: &Bound<'_, PyAny>, ty: ScalarType, path: &str) -> PyResult<Scalar> {
    let wrong = || wrong_type(value, path, ty.name());
    match ty {
        ScalarType::F32 => {
            let wide: f64 = value.extract().map_err(|_| wrong())?;
            #[expect(clippy::as_conversions, reason = "rounds to nearest; an overflow is caught below")]
            let narrow = wide as f32;
            if wide.is_finite() && narrow.is_infinite() {
                return Err(invalid(value.py(), path, &format!("{wide} does not fit float32")));
            }
            Ok(Scalar::F32(narrow))
        }
        ScalarType::Bool if value.extract::<bool>().is_ok() => Ok(Scalar::Bool(value.extract()?)),
        _ => {
            let number: i64 = value.extract().map_err(|_| wrong())?;
            let outside = || invalid(value.py(), path, &format!("{number} does not fit {ty}"));
            Scalar::from_i64(ty, number).ok_or_else(outside)
        }
    }
}

fn vector(value: &Bound<'_, PyAny>, element: ScalarType, path: &str) -> PyResult<Numbers> {
    to_numbers(value, element).map_err(|error| match error {
        ArrayError::Got(got) => {
            invalid(value.py(), path, &format!("wanted a one-dimensional array of {element}, got {got}"))
        }
        ArrayError::Python(error) => error,
    })
}

/// A vector of enum values, by name or number.
fn enum_vector(
    value: &Bound<'_, PyAny>,
    desc: &mnnq_format::schema::EnumDesc,
    path: &str,
) -> PyResult<Numbers> {
    let wanted = format!("a vector of {}", desc.name);
    let Ok(items) = items(value, path, &wanted) else { return vector(value, desc.base, path) };
    if !items.iter().any(|item| item.is_instance_of::<PyString>()) {
        return vector(value, desc.base, path);
    }
    let numbers = PyList::empty(value.py());
    for (index, item) in items.iter().enumerate() {
        match item.extract::<String>() {
            Ok(key) => {
                let message = format!("\"{key}\" is not a {}", desc.name);
                let unknown = || invalid(value.py(), &format!("{path}[{index}]"), &message);
                numbers.append(desc.number(&key).ok_or_else(unknown)?)?;
            }
            Err(_) => numbers.append(item)?,
        }
    }
    vector(numbers.as_any(), desc.base, path)
}

/// The items of a sequence that is not text.
fn items<'py>(value: &Bound<'py, PyAny>, path: &str, wanted: &str) -> PyResult<Vec<Bound<'py, PyAny>>> {
    if value.is_instance_of::<PyString>() || value.is_instance_of::<PyBytes>() {
        return Err(wrong_type(value, path, wanted));
    }
    let Ok(sequence) = value.cast::<PySequence>() else { return Err(wrong_type(value, path, wanted)) };
    sequence.try_iter()?.collect()
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

pub(crate) fn invalid(py: Python<'_>, path: &str, message: &str) -> PyErr {
    let key = (!path.is_empty()).then_some(path);
    raise(py, "FormatError", message, &Place { file: None, key })
}

pub(crate) fn wrong_type(value: &Bound<'_, PyAny>, path: &str, wanted: &str) -> PyErr {
    invalid(value.py(), path, &format!("wanted {wanted}, got {}", describe(value)))
}

fn unknown_key(py: Python<'_>, kind: TableKind, path: &str, name: &str) -> PyErr {
    invalid(py, &join(path, name), &format!("{kind} has no field \"{name}\""))
}
