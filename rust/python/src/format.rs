//! Models as nested dictionaries, and the weights in them.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use mnnq_format::external::{map_side_file, read_file, resolve};
use mnnq_format::schema::{
    ENUMS, FieldDesc, FieldType, ROOT, Scalar, ScalarType, TABLES, TableKind, UNION_MEMBERS,
};
use mnnq_format::weight_blob::{EncodeOptions, ScaleStorage, encode, half_table};
use mnnq_format::{
    ConvWeights, FormatError, Model, Numbers, QuantizedWeights, ReadLimits, SideFile, Table, Value,
    WriteOptions, conv_weights, read, to_bytes,
};
use numpy::{PyArray1, PyReadonlyArray1, PyReadonlyArrayDyn, PyUntypedArrayMethods};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::{PyBool, PyBytes, PyDict, PyList, PyMapping, PySequence, PyString};

use crate::arrays::{ArrayError, describe, row_major, to_array, to_numbers};
use crate::errors::{Place, from_format, raise};

/// Adds the functions of this module.
pub(crate) fn add(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(read_model, module)?)?;
    module.add_function(wrap_pyfunction!(write_model, module)?)?;
    module.add_function(wrap_pyfunction!(model_to_bytes, module)?)?;
    module.add_function(wrap_pyfunction!(validate, module)?)?;
    module.add_function(wrap_pyfunction!(schema, module)?)?;
    module.add_function(wrap_pyfunction!(decode_weights, module)?)?;
    module.add_function(wrap_pyfunction!(encode_weights, module)?)?;
    module.add_function(wrap_pyfunction!(pack_half, module)?)
}

/// A model file, or its content.
enum Source {
    Path(PathBuf),
    Bytes(bytes::Bytes),
}

impl Source {
    fn path(&self) -> Option<&Path> {
        match self {
            Self::Path(path) => Some(path),
            Self::Bytes(_) => None,
        }
    }
}

impl<'py> FromPyObject<'_, 'py> for Source {
    type Error = PyErr;

    fn extract(value: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        if let Ok(bytes) = value.cast::<PyBytes>() {
            let shared = PyBackedBytes::from(bytes.to_owned());
            return Ok(Self::Bytes(bytes::Bytes::from_owner(shared)));
        }
        Ok(Self::Path(value.extract()?))
    }
}

/// Reads and validates a model; loads external weights where they are found.
fn load(source: &Source, external: Option<PathBuf>) -> Result<Model, FormatError> {
    let limits = ReadLimits::default();
    match source {
        Source::Path(path) => {
            let side = external.map_or(SideFile::Beside, SideFile::At);
            read_file(path, &side, &limits)
        }
        Source::Bytes(bytes) => {
            let mut model = read(bytes.clone(), &limits)?;
            if let Some(side) = external {
                resolve(&mut model, &map_side_file(&side)?)?;
            }
            Ok(model)
        }
    }
}

/// Read a `.mnn` file, or its content, as nested dictionaries.
///
/// Parameters
/// ----------
/// source
///     Path of the file, or the content as `bytes`.
/// external
///     Path of the external weight file. By default `<source>.weight` is used where it exists.
///
/// Returns
/// -------
/// The root table. Keys are the field names of the schema. Numbers are always there (absent ones with their default);
/// strings, vectors and tables only if the file has them. Enum values are their names, or numbers where the schema has
/// no name. Vectors of numbers are arrays; the parameters of an op are in `main`, their type in `main_type`.
/// External weights are in the ordinary vectors, unless there is no such file: then `external` is kept.
///
/// Raises
/// ------
/// FormatError
///     If the content breaks an invariant of the format.
/// OSError
///     If a file cannot be opened.
#[pyfunction]
#[pyo3(signature = (source, external = None))]
fn read_model(py: Python<'_>, source: Source, external: Option<PathBuf>) -> PyResult<Bound<'_, PyDict>> {
    let model =
        py.detach(|| load(&source, external)).map_err(|error| from_format(py, error, source.path()))?;
    to_dict(py, model.net())
}

/// Check a `.mnn` file, or its content, without converting it.
///
/// Parameters
/// ----------
/// source
///     Path of the file, or the content as `bytes`.
///
/// Raises
/// ------
/// FormatError
///     If the content breaks an invariant of the format.
/// OSError
///     If the file cannot be opened.
#[pyfunction]
fn validate(py: Python<'_>, source: Source) -> PyResult<()> {
    let result = py.detach(|| load(&source, None));
    result.map(|_| ()).map_err(|error| from_format(py, error, source.path()))
}

/// Write a model, given as `read_model` returns it, to a file.
///
/// Enum values may be names or numbers, vectors arrays or sequences of numbers. A value of None stands for absent.
/// Contiguous arrays of the right dtype are not copied. The file appears when it is complete.
///
/// Parameters
/// ----------
/// model
///     The root table.
/// path
///     Where to write.
/// external
///     Put weights into `<path>.weight`. Models beyond 2 GiB are written that way in any case.
///
/// Returns
/// -------
/// The number of bytes written, both files together.
///
/// Raises
/// ------
/// FormatError
///     If a key is unknown or a value of the wrong type; `key` says which.
/// OSError
///     If the file cannot be written.
#[pyfunction]
#[pyo3(signature = (model, path, *, external = false))]
fn write_model(py: Python<'_>, model: &Bound<'_, PyAny>, path: PathBuf, external: bool) -> PyResult<u64> {
    let model = to_model(model)?;
    py.detach(|| mnnq_format::write_file(&model, &path, &WriteOptions { external }))
        .map_err(|error| from_format(py, error, Some(&path)))
}

/// Return the bytes of a model, given as `read_model` returns it, in one file.
///
/// Parameters
/// ----------
/// model
///     The root table.
///
/// Raises
/// ------
/// FormatError
///     If a key is unknown, a value of the wrong type, or the model larger than 2 GiB.
#[pyfunction]
fn model_to_bytes<'py>(py: Python<'py>, model: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyBytes>> {
    let model = to_model(model)?;
    let bytes = py.detach(|| to_bytes(&model)).map_err(|error| from_format(py, error, None))?;
    Ok(PyBytes::new(py, &bytes))
}

/// Return the schema.
///
/// Returns
/// -------
/// `enums`: name -> {key: number}; `tables`: name -> {field: {"slot", "type", "default"}}, where `type` is a scalar,
/// an enum, "string", a table, "union" or one of these in brackets; `union`: the members of the union, tag 1 first.
#[pyfunction]
fn schema(py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
    let enums = PyDict::new(py);
    for desc in ENUMS {
        let values = PyDict::new(py);
        desc.values.iter().try_for_each(|(key, number)| values.set_item(key, number))?;
        enums.set_item(desc.name, values)?;
    }
    let tables = PyDict::new(py);
    for desc in TABLES {
        let fields = PyDict::new(py);
        for field in desc.fields {
            let entry = PyDict::new(py);
            entry.set_item("slot", field.slot)?;
            entry.set_item("type", type_name(field.ty))?;
            if let Some(default) = field.default {
                entry.set_item("default", scalar_to_python(py, field, default)?)?;
            }
            fields.set_item(field.name, entry)?;
        }
        tables.set_item(desc.name, fields)?;
    }
    let out = PyDict::new(py);
    out.set_item("enums", enums)?;
    out.set_item("tables", tables)?;
    out.set_item("union", PyList::new(py, UNION_MEMBERS.iter().map(|kind| kind.name()))?)?;
    Ok(out)
}

fn type_name(ty: FieldType) -> String {
    match ty {
        FieldType::Scalar(ty) => ty.name().to_owned(),
        FieldType::Enum(kind) => kind.desc().name.to_owned(),
        FieldType::String => "string".to_owned(),
        FieldType::Table(kind) => kind.name().to_owned(),
        FieldType::Union => "union".to_owned(),
        FieldType::Numbers(ty) => format!("[{ty}]"),
        FieldType::EnumNumbers(kind) => format!("[{}]", kind.desc().name),
        FieldType::Strings => "[string]".to_owned(),
        FieldType::Tables(kind) => format!("[{kind}]"),
    }
}

/// Decode the weights of a `Convolution2D` table.
///
/// Parameters
/// ----------
/// conv
///     The table, as `read_model` returns it.
///
/// Returns
/// -------
/// `kind`: "float", "sparse", "half", "quantized" or "old_int8"; `weight`: float32, flat, in the order of the source
/// tensor (for "old_int8" the codes themselves). For "quantized" also `bits`, `rows`, `row_len`, `codes` (int8, flat),
/// `scale` (float32 per row) and `min` (float32 per row, or None if symmetric); for "old_int8" `codes`, `scale`, `bias`
/// where present. Otherwise these are None.
///
/// Raises
/// ------
/// FormatError
///     If the payload is damaged, absent, or in a side file that was not loaded.
#[pyfunction]
fn decode_weights<'py>(py: Python<'py>, conv: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyDict>> {
    let table = to_table(conv, TableKind::Convolution2D, "")?;
    let (weights, values) = py
        .detach(|| conv_weights(&table).map(|weights| (weights.to_f32(), weights)))
        .map(|(values, weights)| (weights, values))
        .map_err(|error| from_format(py, error, None))?;
    let out = PyDict::new(py);
    out.set_item("kind", weights.kind())?;
    out.set_item("weight", PyArray1::from_vec(py, values))?;
    for key in ["codes", "scale", "min", "bias", "bits", "rows", "row_len"] {
        out.set_item(key, py.None())?;
    }
    match weights {
        ConvWeights::Quantized(weights) => {
            out.set_item("bits", weights.bits())?;
            out.set_item("rows", weights.rows())?;
            out.set_item("row_len", weights.row_len())?;
            let (codes, scale, min) = weights.into_parts();
            out.set_item("codes", PyArray1::from_vec(py, codes))?;
            out.set_item("scale", PyArray1::from_vec(py, scale))?;
            out.set_item("min", min.map(|min| PyArray1::from_vec(py, min)))?;
        }
        ConvWeights::OldInt8 { weight, bias, scale } => {
            out.set_item("bits", 8)?;
            out.set_item("codes", to_array(py, &weight)?)?;
            out.set_item("scale", scale.map(|scale| to_array(py, &scale)).transpose()?)?;
            out.set_item("bias", bias.map(|bias| to_array(py, &bias)).transpose()?)?;
        }
        _ => {}
    }
    Ok(out)
}

/// Encode quantized weights as an `IDSTQuan` table.
///
/// The weights are `codes * scale` per row, or `min + scale * (codes + 2**(bits - 1))` if `min` is given.
///
/// Parameters
/// ----------
/// codes
///     int8, `[rows, row_len]` or flat; within `-2**(bits - 1) .. 2**(bits - 1) - 1`.
/// scale
///     float32, `[rows]`.
/// min
///     float32, `[rows]`, for asymmetric weights.
/// bits
///     2 to 8.
/// fp16_scales
///     Store scales and minima as half floats.
/// sparse
///     Use the sparse layout where it is smaller.
/// wide
///     Store 32-bit dimensions even where 16 bits suffice.
///
/// Raises
/// ------
/// FormatError
///     If the parts do not fit together.
#[pyfunction]
#[pyo3(signature = (codes, scale, min, bits, *, fp16_scales = false, sparse = false, wide = false))]
#[expect(clippy::too_many_arguments, reason = "keyword options of a Python function")]
fn encode_weights<'py>(
    py: Python<'py>,
    codes: PyReadonlyArrayDyn<'py, i8>,
    scale: PyReadonlyArray1<'py, f32>,
    min: Option<PyReadonlyArray1<'py, f32>>,
    bits: u8,
    fp16_scales: bool,
    sparse: bool,
    wide: bool,
) -> PyResult<Bound<'py, PyDict>> {
    let rows = scale.len();
    if codes.ndim() > 1 && codes.shape().first() != Some(&rows) {
        let message =
            format!("shape {:?}, wanted {rows} rows as `scale` has, or a flat array", codes.shape());
        return Err(raise(py, "FormatError", &message, &Place { file: None, key: Some("codes") }));
    }
    let codes = row_major(&codes)?.into_owned();
    let scale = row_major(&scale)?.into_owned();
    let min = min.map(|min| row_major(&min).map(Cow::into_owned)).transpose()?;
    let scales = if fp16_scales { ScaleStorage::F16 } else { ScaleStorage::F32 };
    let table = py.detach(|| {
        let weights = QuantizedWeights::new(bits, codes, scale, min)?;
        encode(&weights, &EncodeOptions { scales, sparse, wide }).map(|encoded| encoded.into_table())
    });
    to_dict(py, &table.map_err(|error| from_format(py, error, None))?)
}

/// Encode weights as half floats: an `IDSTQuan` table of type 3.
///
/// Parameters
/// ----------
/// weight
///     float32, any shape; clamped to ±65504 and rounded to nearest even.
#[pyfunction]
fn pack_half<'py>(py: Python<'py>, weight: PyReadonlyArrayDyn<'py, f32>) -> PyResult<Bound<'py, PyDict>> {
    let table = half_table(&row_major(&weight)?);
    to_dict(py, &table)
}

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

fn scalar_to_python<'py>(py: Python<'py>, field: &FieldDesc, scalar: Scalar) -> PyResult<Bound<'py, PyAny>> {
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

fn to_model(model: &Bound<'_, PyAny>) -> PyResult<Model> {
    let net = to_table(model, ROOT, "")?;
    Model::new(net).map_err(|error| from_format(model.py(), error, None))
}

/// A dictionary as a table of kind `kind`; `path` is where it is in the model.
fn to_table(value: &Bound<'_, PyAny>, kind: TableKind, path: &str) -> PyResult<Table> {
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

fn invalid(py: Python<'_>, path: &str, message: &str) -> PyErr {
    let key = (!path.is_empty()).then_some(path);
    raise(py, "FormatError", message, &Place { file: None, key })
}

fn wrong_type(value: &Bound<'_, PyAny>, path: &str, wanted: &str) -> PyErr {
    invalid(value.py(), path, &format!("wanted {wanted}, got {}", describe(value)))
}

fn unknown_key(py: Python<'_>, kind: TableKind, path: &str, name: &str) -> PyErr {
    invalid(py, &join(path, name), &format!("{kind} has no field \"{name}\""))
}
