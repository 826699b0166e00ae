//! Vectors of numbers: NumPy arrays to the format's [`Numbers`] and back.

use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;
use mnnq_format::model::{Number, Numbers, PayloadSource};
use mnnq_format::schema::ScalarType;
use mnnq_format::{FormatError, Problem};
use numpy::ndarray::Dimension;
use numpy::{Element, PyArray1, PyArrayMethods, PyReadonlyArray, PyReadonlyArray1, PyUntypedArrayMethods};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::PyBytes;

/// A new array with the values, in the dtype of the vector.
pub(crate) fn to_array<'py>(py: Python<'py>, numbers: &Numbers) -> PyResult<Bound<'py, PyAny>> {
    fn array<'py, T: Number + Element>(py: Python<'py>, numbers: &Numbers) -> Bound<'py, PyAny> {
        PyArray1::from_slice(py, &numbers.as_slice::<T>().unwrap_or_default()).into_any()
    }
    Ok(match numbers.element() {
        ScalarType::Bool => {
            let flags = numbers.as_u8().unwrap_or_default();
            PyArray1::from_iter(py, flags.iter().map(|&flag| flag != 0)).into_any()
        }
        ScalarType::I8 => array::<i8>(py, numbers),
        ScalarType::U8 => array::<u8>(py, numbers),
        ScalarType::U16 => array::<u16>(py, numbers),
        ScalarType::I32 => array::<i32>(py, numbers),
        ScalarType::U32 => array::<u32>(py, numbers),
        ScalarType::I64 => array::<i64>(py, numbers),
        ScalarType::F32 => array::<f32>(py, numbers),
    })
}

/// Why a value is not a vector of numbers.
pub(crate) enum ArrayError {
    /// In words: what there was instead.
    Got(String),
    /// Python failed.
    Python(PyErr),
}

impl From<PyErr> for ArrayError {
    fn from(error: PyErr) -> Self {
        Self::Python(error)
    }
}

/// An array, a sequence of numbers, or (for 8-bit elements) `bytes` as a vector.
///
/// A contiguous array of the very dtype is not copied: it is read when the model is written. Others are converted if
/// all their values fit.
pub(crate) fn to_numbers(value: &Bound<'_, PyAny>, element: ScalarType) -> Result<Numbers, ArrayError> {
    match element {
        ScalarType::Bool => bools(value),
        ScalarType::I8 => numbers::<i8>(value),
        ScalarType::U8 => numbers::<u8>(value),
        ScalarType::U16 => numbers::<u16>(value),
        ScalarType::I32 => numbers::<i32>(value),
        ScalarType::U32 => numbers::<u32>(value),
        ScalarType::I64 => numbers::<i64>(value),
        ScalarType::F32 => numbers::<f32>(value),
    }
}

fn numbers<T: Number + Element>(value: &Bound<'_, PyAny>) -> Result<Numbers, ArrayError> {
    if let Ok(array) = value.cast::<PyArray1<T>>() {
        return shared(array);
    }
    if T::TYPE.size() == 1
        && let Ok(text) = value.cast::<PyBytes>()
    {
        let bytes = Bytes::from_owner(PyBackedBytes::from(text.clone()));
        return Numbers::from_bytes(T::TYPE, bytes).map_err(|error| ArrayError::Got(error.to_string()));
    }
    let array = converted(value, T::TYPE)?;
    match array.cast::<PyArray1<T>>() {
        Ok(array) => shared(array),
        Err(_) => Err(ArrayError::Got(describe(&array))),
    }
}

fn bools(value: &Bound<'_, PyAny>) -> Result<Numbers, ArrayError> {
    let array = converted(value, ScalarType::Bool)?;
    match array.cast::<PyArray1<bool>>() {
        Ok(array) => Ok(array.to_vec().map_err(|error| ArrayError::Got(error.to_string()))?.into()),
        Err(_) => Err(ArrayError::Got(describe(&array))),
    }
}

/// The array itself if it is contiguous, else a copy of its values.
fn shared<T: Number + Element>(array: &Bound<'_, PyArray1<T>>) -> Result<Numbers, ArrayError> {
    let byte_len = array.len().saturating_mul(size_of::<T>());
    if !array.is_contiguous() || cfg!(target_endian = "big") {
        let values = array.try_readonly().map_err(PyErr::from)?;
        return Ok(row_major(&values)?.into_owned().into());
    }
    // As bytes: an array over a mapped file may start at any address, and only bytes may be read from there.
    let bytes = array.call_method1("view", ("uint8",))?;
    let bytes = bytes.cast::<PyArray1<u8>>().map_err(PyErr::from)?;
    let source = Arc::new(ArraySource(bytes.clone().unbind()));
    Numbers::from_source(T::TYPE, byte_len, source).map_err(|error| ArrayError::Got(error.to_string()))
}

/// A one-dimensional array of dtype `element` with the same values.
fn converted<'py>(value: &Bound<'py, PyAny>, element: ScalarType) -> Result<Bound<'py, PyAny>, ArrayError> {
    let py = value.py();
    let numpy = py.import("numpy")?;
    let array = numpy.call_method1("asarray", (value,)).map_err(|_| ArrayError::Got(describe(value)))?;
    if array.getattr("ndim")?.extract::<usize>()? != 1 {
        return Err(ArrayError::Got(describe(&array)));
    }
    let kind: String = array.getattr("dtype")?.getattr("kind")?.extract()?;
    let wanted: &[&str] = match element {
        ScalarType::Bool => &["b"],
        ScalarType::F32 => &["b", "i", "u", "f"],
        _ => &["b", "i", "u"],
    };
    let empty = array.getattr("size")?.extract::<usize>()? == 0;
    if !empty && !wanted.contains(&kind.as_str()) {
        return Err(ArrayError::Got(describe(&array)));
    }
    let converted = array.call_method1("astype", (element.name(),))?;
    if !empty && matches!(kind.as_str(), "i" | "u") && element != ScalarType::F32 {
        // Values that do not fit wrap around: then the arrays differ.
        let same: bool = numpy.call_method1("array_equal", (&array, &converted))?.extract()?;
        if !same {
            return Err(ArrayError::Got(format!("{} with values that do not fit", describe(&array))));
        }
    }
    Ok(converted)
}

/// In words, for messages: "an array of float64, shape (2, 3)" or the name of the type.
pub(crate) fn describe(value: &Bound<'_, PyAny>) -> String {
    let array = || -> PyResult<String> {
        let (dtype, shape) = (value.getattr("dtype")?.str()?, value.getattr("shape")?.str()?);
        Ok(format!("an array of {dtype}, shape {shape}"))
    };
    array()
        .or_else(|_| value.get_type().name().map(|name| name.to_string()))
        .unwrap_or_else(|_| "?".to_owned())
}

/// The elements in row-major order, borrowed where they lie so.
///
/// (`PyReadonlyArray::as_slice` also accepts column-major arrays, in their order in memory.) Arrays over mapped files
/// may be misaligned; those are copied by NumPy, which may read them.
pub(crate) fn row_major<'a, T: Element + Copy, D: Dimension>(
    array: &'a PyReadonlyArray<'_, T, D>,
) -> PyResult<Cow<'a, [T]>> {
    match array.as_slice() {
        Ok(slice) if array.is_c_contiguous() => Ok(Cow::Borrowed(slice)),
        _ => {
            let copy = array.call_method1("flatten", ("C",))?;
            let copy: PyReadonlyArray1<'_, T> = copy.extract().map_err(PyErr::from)?;
            Ok(Cow::Owned(copy.as_slice().map_err(PyErr::from)?.to_vec()))
        }
    }
}

/// The bytes of an array, read under the interpreter lock when the model is written.
struct ArraySource(Py<PyArray1<u8>>);

impl PayloadSource for ArraySource {
    fn with_bytes(&self, read: &mut dyn FnMut(&[u8]) -> Result<(), FormatError>) -> Result<(), FormatError> {
        Python::attach(|py| {
            // Fails only if somebody changed the array's layout or holds it for writing meanwhile.
            let gone = || FormatError::at("", Problem::PayloadChanged { wanted: 0, got: 0 });
            let array = self.0.bind(py).try_readonly().map_err(|_| gone())?;
            read(array.as_slice().map_err(|_| gone())?)
        })
    }
}
