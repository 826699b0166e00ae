//! What offline quantization computes beside its statistics: codes of weights, differences of tensors.

use mnnq_core::quant::QuantError;
use mnnq_core::quant::difference::{Difference, NotFinite, Values, difference};
use mnnq_core::quant::weight::rows::{RowScale, quantize_rows as quantize};
use numpy::{PyArray1, PyReadonlyArray1, PyReadonlyArray2, PyUntypedArrayMethods};
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::calibrated::{pool, within};
use crate::errors::{Place, raise};
use crate::quant::{invalid, matrix};

/// Adds the functions of this module.
pub(crate) fn add(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(quantize_rows, module)?)?;
    module.add_function(wrap_pyfunction!(difference_sums, module)?)
}

/// Quantize a weight matrix to codes of `-limit` to `limit` with one scale per row and no offset.
///
/// Parameters
/// ----------
/// weight
///     float32 `[rows, row_len]`, contiguous; a row is an output channel.
/// method
///     "search", "max_abs" or "admm".
/// limit
///     Largest code, 1 to 127.
/// floor
///     Smallest scale of each row, float32 `[rows]`, or None.
/// threads
///     Threads; by default one per CPU. The result does not depend on it.
///
/// Returns
/// -------
/// `codes` (int8 `[rows, row_len]`), `scale` (float32 `[rows]`; 0 for rows of zeros), `error` (sum of squared errors), `power` (sum
/// of squared weights).
///
/// Raises
/// ------
/// QuantizationError
///     If an option does not fit, or a weight is not finite; `key` names the argument.
#[pyfunction]
#[pyo3(signature = (weight, *, method, limit, floor = None, threads = None))]
fn quantize_rows<'py>(
    py: Python<'py>,
    weight: PyReadonlyArray2<'py, f32>,
    method: &str,
    limit: i64,
    floor: Option<PyReadonlyArray1<'py, f32>>,
    threads: Option<i64>,
) -> PyResult<Bound<'py, PyDict>> {
    let Some(method) = RowScale::from_name(method) else {
        let message = format!("{method:?} is unknown, wanted \"search\", \"max_abs\" or \"admm\"");
        return Err(invalid(py, "method", &message));
    };
    let Some(limit) = u8::try_from(limit).ok().filter(|limit| (1..=127).contains(limit)) else {
        return Err(invalid(py, "limit", &format!("{limit}, wanted 1 to 127")));
    };
    let &[rows, row_len] = weight.shape() else { return Err(invalid(py, "weight", "it is no matrix")) };
    let data = weight.as_slice().map_err(|_| invalid(py, "weight", "it is not C-contiguous"))?;
    let floor = match &floor {
        Some(floor) => Some(floor.as_slice().map_err(|_| invalid(py, "floor", "it is not C-contiguous"))?),
        None => None,
    };
    let pool = pool(py, threads)?;
    let found = py
        .detach(|| within(pool.as_deref(), || quantize(data, row_len, method, limit, floor)))
        .map_err(|error| failure(py, &error))?;
    let dict = PyDict::new(py);
    dict.set_item("codes", matrix(py, found.codes, [rows, row_len])?)?;
    dict.set_item("scale", PyArray1::from_vec(py, found.scales))?;
    dict.set_item("error", found.error)?;
    dict.set_item("power", found.power)?;
    Ok(dict)
}

fn failure(py: Python<'_>, error: &QuantError) -> PyErr {
    raise(py, "QuantizationError", &error.to_string(), &Place::default())
}

/// Largest difference, largest reference, `sum (y - r)^2`, `sum r^2`, `sum y^2`, `sum y r`.
type Sums = (f64, f64, f64, f64, f64, f64);

/// Compare values with their references.
///
/// Parameters
/// ----------
/// reference
///     float32, contiguous, one axis.
/// values
///     float32 or int8, contiguous, as long.
/// scale, zero
///     What codes stand for: `(code - zero) * scale`.
///
/// Returns
/// -------
/// Largest `|y - r|`, largest `|r|`, `sum (y - r)^2`, `sum r^2`, `sum y^2`, `sum y r`; or False where a reference is not finite, None where a value
/// is not.
#[pyfunction]
#[pyo3(signature = (reference, values, scale = 1.0, zero = 0.0))]
fn difference_sums<'py>(
    py: Python<'py>,
    reference: PyReadonlyArray1<'py, f32>,
    values: &Bound<'py, PyAny>,
    scale: f32,
    zero: f32,
) -> PyResult<Bound<'py, PyAny>> {
    let reference = reference.as_slice().map_err(|_| invalid(py, "reference", "it is not C-contiguous"))?;
    let (floats, codes);
    let values = if let Ok(array) = values.extract::<PyReadonlyArray1<'py, f32>>() {
        floats = array;
        Values::Floats(floats.as_slice().map_err(|_| invalid(py, "values", "it is not C-contiguous"))?)
    } else if let Ok(array) = values.extract::<PyReadonlyArray1<'py, i8>>() {
        codes = array;
        let codes = codes.as_slice().map_err(|_| invalid(py, "values", "it is not C-contiguous"))?;
        Values::Codes { codes, scale, zero }
    } else {
        return Err(PyTypeError::new_err("values: wanted a float32 or int8 array of one axis"));
    };
    if values.len() != reference.len() {
        let message = format!("{} values, the reference has {}", values.len(), reference.len());
        return Err(invalid(py, "values", &message));
    }
    match py.detach(|| difference(reference, values)) {
        Ok(Difference { largest, peak, error, power, norm, dot }) => {
            let sums: Sums = (largest, peak, error, power, norm, dot);
            Ok(sums.into_pyobject(py)?.into_any())
        }
        Err(NotFinite::Reference) => Ok(false.into_pyobject(py)?.to_owned().into_any()),
        Err(NotFinite::Value) => Ok(py.None().into_bound(py)),
    }
}
