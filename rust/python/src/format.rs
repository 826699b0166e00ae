//! Models as nested dictionaries, and the weights in them.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use mnnq_format::external::{map_side_file, read_file, resolve};
use mnnq_format::schema::{ENUMS, FieldType, TABLES, TableKind, UNION_MEMBERS};
use mnnq_format::weight_blob::{EncodeOptions, ScaleStorage, encode, half_table};
use mnnq_format::{
    ConvWeights, FormatError, Model, QuantizedWeights, ReadLimits, SideFile, WriteOptions, conv_weights,
    describe_conv_weights, read, to_bytes,
};
use numpy::{PyArray1, PyReadonlyArray1, PyReadonlyArrayDyn, PyUntypedArrayMethods};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::{PyBytes, PyDict, PyList};

use crate::arrays::{row_major, to_array};
use crate::errors::{Place, from_format, raise};
use crate::tables::{invalid, scalar_to_python, to_dict, to_model, to_table};

/// Adds the functions of this module.
pub(crate) fn add(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(read_model, module)?)?;
    module.add_function(wrap_pyfunction!(write_model, module)?)?;
    module.add_function(wrap_pyfunction!(model_to_bytes, module)?)?;
    module.add_function(wrap_pyfunction!(table_to_bytes, module)?)?;
    module.add_function(wrap_pyfunction!(table_from_bytes, module)?)?;
    module.add_function(wrap_pyfunction!(validate, module)?)?;
    module.add_function(wrap_pyfunction!(schema, module)?)?;
    module.add_function(wrap_pyfunction!(decode_weights, module)?)?;
    module.add_function(wrap_pyfunction!(describe_weights, module)?)?;
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

/// Serialize one table as a buffer of its own, as some byte fields hold them (`ExtraInfo.buffer` holds an `Extra`).
///
/// Parameters
/// ----------
/// kind
///     Name of the table in the schema.
/// fields
///     Its fields, as `read_model` returns tables.
///
/// Raises
/// ------
/// FormatError
///     If there is no such table, a key is unknown or a value of the wrong type.
#[pyfunction]
fn table_to_bytes<'py>(
    py: Python<'py>,
    kind: &str,
    fields: &Bound<'py, PyAny>,
) -> PyResult<Bound<'py, PyBytes>> {
    let table = to_table(fields, table_kind(py, kind)?, "")?;
    let bytes = mnnq_format::writer::table_to_bytes(&table).map_err(|error| from_format(py, error, None))?;
    Ok(PyBytes::new(py, &bytes))
}

/// Read a buffer whose root is a table of the given kind: the inverse of `table_to_bytes`.
///
/// Raises
/// ------
/// FormatError
///     If there is no such table, or the content breaks an invariant of the format.
#[pyfunction]
fn table_from_bytes<'py>(
    py: Python<'py>,
    kind: &str,
    content: PyBackedBytes,
) -> PyResult<Bound<'py, PyDict>> {
    let bytes = bytes::Bytes::from_owner(content);
    let table = mnnq_format::reader::read_table(bytes, table_kind(py, kind)?, &ReadLimits::default());
    to_dict(py, &table.map_err(|error| from_format(py, error, None))?)
}

fn table_kind(py: Python<'_>, name: &str) -> PyResult<TableKind> {
    TableKind::from_name(name).ok_or_else(|| invalid(py, name, "the schema has no such table"))
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

/// How the quantized weights of a ``Convolution2D`` table are stored; dense codes are not decoded.
///
/// Parameters
/// ----------
/// conv
///     The table, as `read_model` returns it.
///
/// Returns
/// -------
/// tuple
///     Bits, rows, weights per row, and whether rows have a minimum.
///
/// Raises
/// ------
/// FormatError
///     If the payload is damaged as far as its header shows, absent, or in a side file that was not loaded.
#[pyfunction]
fn describe_weights(py: Python<'_>, conv: &Bound<'_, PyAny>) -> PyResult<(u8, usize, usize, bool)> {
    let table = to_table(conv, TableKind::Convolution2D, "")?;
    let found = describe_conv_weights(&table).map_err(|error| from_format(py, error, None))?;
    Ok((found.bits, found.rows, found.row_len, found.asymmetric))
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
