//! Weight quantization: NumPy matrices to `IDSTQuan` tables, or to plain codes.

use std::ops::Range;

use half::{bf16, f16};
use mnnq_core::quant::weight::{
    self, QuantizedMatrix, StridedMatrix, WeightElement, WeightError, WeightSource,
};
use mnnq_core::quant::{
    BitWidth, Granularity, QuantError, ScaleStorage, Scheme, WeightMethod, WeightQuantSpec,
};
use mnnq_format::weight_blob::{EncodeOptions, encode};
use numpy::ndarray::{ArrayView2, s};
use numpy::{Element, PyArray1, PyArray2, PyArrayMethods, PyReadonlyArray2};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::arrays::describe;
use crate::errors::{Place, from_format, raise};
use crate::tables::to_dict;

/// Adds the functions of this module.
pub(crate) fn add(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(quantize_weights, module)?)?;
    module.add_function(wrap_pyfunction!(quantize_codes, module)?)
}

/// Quantize a weight matrix and encode it as an `IDSTQuan` table.
///
/// Parameters
/// ----------
/// weight
///     float32, float16 or bfloat16, `[rows, row_len]`, any strides; a row is an output channel. A transposed view is
///     read in place.
/// bits
///     Bits per code, 2 to 8.
/// symmetric
///     Store a scale per block only; otherwise a scale and a minimum.
/// block
///     Elements of a row that share a scale; must divide `row_len`. None: the whole row.
/// method
///     "rtn" (MNN's default rule), "hqq" (MNN's --hqq), "hqq_ref" (as published) or "search" (smallest squared error).
/// gain_correction
///     Restore gain and, if asymmetric, mean of each row.
/// fp16_scales
///     Store scales and minima as half floats.
/// sparse
///     Use the sparse layout where it is smaller.
/// threads
///     Number of threads; by default one per CPU. The result does not depend on it.
///
/// Returns
/// -------
/// The table as `write_model` takes it for `quanParameter`, and the figures: `sqnr_db`, `relative_rms`,
/// `max_abs_error`, `squared_error`, `squared_weight`, `rows`, `row_len`, `bits`, `block`, `symmetric`, `method`.
///
/// Raises
/// ------
/// QuantizationError
///     If an option does not fit, or a weight is not finite; `key` names the argument.
#[pyfunction]
#[pyo3(signature = (
    weight, *, bits, symmetric, block = None, method = "rtn", gain_correction = false, fp16_scales = false,
    sparse = false, threads = None
))]
#[expect(clippy::too_many_arguments, reason = "keyword options of a Python function")]
fn quantize_weights<'py>(
    py: Python<'py>,
    weight: &Bound<'py, PyAny>,
    bits: i64,
    symmetric: bool,
    block: Option<i64>,
    method: &str,
    gain_correction: bool,
    fp16_scales: bool,
    sparse: bool,
    threads: Option<i64>,
) -> PyResult<(Bound<'py, PyDict>, Bound<'py, PyDict>)> {
    let options = Options { bits, symmetric, block, method, gain_correction, fp16_scales, threads };
    let quantized = options.run(py, weight)?;
    let stats = options.stats(py, &quantized)?;
    let scales = if fp16_scales { ScaleStorage::F16 } else { ScaleStorage::F32 };
    let table = py.detach(move || {
        let encoded = encode(&quantized.weights, &EncodeOptions { scales, sparse, wide: false });
        encoded.map(|encoded| encoded.into_table())
    });
    let table = table.map_err(|error| from_format(py, error, None))?;
    Ok((to_dict(py, &table)?, stats))
}

/// Quantize a weight matrix and return codes, scales and minima as arrays.
///
/// Parameters are those of `quantize_weights`.
///
/// Returns
/// -------
/// `codes`: int8 `[rows, row_len]`; `scale`: float32 `[rows, row_len / block]`; `min`: likewise, or None if symmetric;
/// `row_relative_rms`: float64 `[rows]`; `stats`: as `quantize_weights` returns them.
///
/// Raises
/// ------
/// QuantizationError
///     If an option does not fit, or a weight is not finite; `key` names the argument.
#[pyfunction]
#[pyo3(signature = (
    weight, *, bits, symmetric, block = None, method = "rtn", gain_correction = false, fp16_scales = false,
    threads = None
))]
#[expect(clippy::too_many_arguments, reason = "keyword options of a Python function")]
fn quantize_codes<'py>(
    py: Python<'py>,
    weight: &Bound<'py, PyAny>,
    bits: i64,
    symmetric: bool,
    block: Option<i64>,
    method: &str,
    gain_correction: bool,
    fp16_scales: bool,
    threads: Option<i64>,
) -> PyResult<Bound<'py, PyDict>> {
    let options = Options { bits, symmetric, block, method, gain_correction, fp16_scales, threads };
    let quantized = options.run(py, weight)?;
    codes_dict(py, &options, quantized)
}

/// What `quantize_codes` returns.
pub(crate) fn codes_dict<'py>(
    py: Python<'py>,
    options: &Options<'_>,
    quantized: QuantizedMatrix,
) -> PyResult<Bound<'py, PyDict>> {
    let out = PyDict::new(py);
    out.set_item("stats", options.stats(py, &quantized)?)?;
    let row_errors: Vec<f64> = quantized.row_errors.iter().map(WeightError::relative_rms).collect();
    out.set_item("row_relative_rms", PyArray1::from_vec(py, row_errors))?;
    let (rows, row_len) = (quantized.rows, quantized.row_len);
    let blocks = row_len / quantized.block_len;
    let (codes, scale, min) = quantized.weights.into_parts();
    out.set_item("codes", matrix(py, codes, [rows, row_len])?)?;
    out.set_item("scale", matrix(py, scale, [rows, blocks])?)?;
    out.set_item("min", min.map(|min| matrix(py, min, [rows, blocks])).transpose()?)?;
    Ok(out)
}

pub(crate) fn matrix<T: Element>(
    py: Python<'_>,
    values: Vec<T>,
    shape: [usize; 2],
) -> PyResult<Bound<'_, PyArray2<T>>> {
    PyArray1::from_vec(py, values).reshape(shape)
}

/// The options as Python gives them.
pub(crate) struct Options<'a> {
    pub(crate) bits: i64,
    pub(crate) symmetric: bool,
    pub(crate) block: Option<i64>,
    pub(crate) method: &'a str,
    pub(crate) gain_correction: bool,
    pub(crate) fp16_scales: bool,
    pub(crate) threads: Option<i64>,
}

/// The number of threads as Python gives it.
pub(crate) fn thread_count(py: Python<'_>, threads: Option<i64>) -> PyResult<Option<usize>> {
    match threads.map(usize::try_from) {
        None => Ok(None),
        Some(Ok(threads)) if threads > 0 => Ok(Some(threads)),
        Some(_) => Err(invalid(py, "threads", "the number of threads must be positive")),
    }
}

impl Options<'_> {
    fn run(&self, py: Python<'_>, weight: &Bound<'_, PyAny>) -> PyResult<QuantizedMatrix> {
        let weight = Matrix::extract(weight)?;
        let threads = thread_count(py, self.threads)?;
        let spec = self.spec(py, weight.row_len())?;
        weight.quantize(py, &spec, threads).map_err(|error| invalid(py, error.key(), &error.to_string()))
    }

    /// The options, checked, for rows of `row_len`.
    pub(crate) fn spec(&self, py: Python<'_>, row_len: usize) -> PyResult<WeightQuantSpec> {
        let raise = |error: QuantError| invalid(py, error.key(), &error.to_string());
        let bits = u32::try_from(self.bits).map_err(|_| {
            invalid(py, "bits", &format!("bit width {} is not supported; use 2 to 8", self.bits))
        })?;
        let granularity = match self.block {
            None => Granularity::PerChannel,
            Some(len) => {
                let message = || format!("block length {len} is not positive; rows have {row_len} elements");
                let len = usize::try_from(len).ok().filter(|&len| len > 0);
                Granularity::PerBlock { len: len.ok_or_else(|| invalid(py, "block", &message()))? }
            }
        };
        Ok(WeightQuantSpec {
            bits: BitWidth::new(bits).map_err(raise)?,
            scheme: if self.symmetric { Scheme::Symmetric } else { Scheme::Asymmetric },
            granularity,
            method: WeightMethod::from_name(self.method).map_err(raise)?,
            scale_storage: if self.fp16_scales { ScaleStorage::F16 } else { ScaleStorage::F32 },
            gain_correction: self.gain_correction,
        })
    }

    fn stats<'py>(&self, py: Python<'py>, quantized: &QuantizedMatrix) -> PyResult<Bound<'py, PyDict>> {
        let error = quantized.error();
        let out = PyDict::new(py);
        out.set_item("sqnr_db", error.sqnr_db())?;
        out.set_item("relative_rms", error.relative_rms())?;
        out.set_item("max_abs_error", error.max_abs_error)?;
        out.set_item("squared_error", error.squared_error)?;
        out.set_item("squared_weight", error.squared_weight)?;
        out.set_item("rows", quantized.rows)?;
        out.set_item("row_len", quantized.row_len)?;
        out.set_item("bits", self.bits)?;
        out.set_item("block", quantized.block_len)?;
        out.set_item("symmetric", self.symmetric)?;
        out.set_item("method", self.method)?;
        Ok(out)
    }
}

/// A `QuantizationError` about an argument.
pub(crate) fn invalid(py: Python<'_>, key: &str, message: &str) -> PyErr {
    raise(py, "QuantizationError", message, &Place { file: None, key: Some(key) })
}

/// A matrix argument of one of the accepted dtypes.
enum Matrix<'py> {
    F32(PyReadonlyArray2<'py, f32>),
    F16(PyReadonlyArray2<'py, f16>),
    Bf16(PyReadonlyArray2<'py, bf16>),
}

impl<'py> Matrix<'py> {
    fn extract(value: &Bound<'py, PyAny>) -> PyResult<Self> {
        let wrong = || {
            let message =
                format!("{}; wanted an aligned matrix of float32, float16 or bfloat16", describe(value));
            invalid(value.py(), "weight", &message)
        };
        let aligned = || value.getattr("flags")?.getattr("aligned")?.extract::<bool>();
        if !aligned().unwrap_or(false) {
            return Err(wrong());
        }
        // The dtype bfloat16 exists only if a package has registered it: ask for it by name first.
        let dtype = value.getattr("dtype")?.str()?.to_string();
        match dtype.as_str() {
            "float32" => value.extract().map(Self::F32).map_err(|_| wrong()),
            "float16" => value.extract().map(Self::F16).map_err(|_| wrong()),
            "bfloat16" => value.extract().map(Self::Bf16).map_err(|_| wrong()),
            _ => Err(wrong()),
        }
    }

    fn row_len(&self) -> usize {
        match self {
            Self::F32(array) => array.as_array().ncols(),
            Self::F16(array) => array.as_array().ncols(),
            Self::Bf16(array) => array.as_array().ncols(),
        }
    }

    fn quantize(
        &self,
        py: Python<'_>,
        spec: &WeightQuantSpec,
        threads: Option<usize>,
    ) -> Result<QuantizedMatrix, QuantError> {
        match self {
            Self::F32(array) => quantize_view(py, array.as_array(), spec, threads),
            Self::F16(array) => quantize_view(py, array.as_array(), spec, threads),
            Self::Bf16(array) => quantize_view(py, array.as_array(), spec, threads),
        }
    }
}

fn quantize_view<T: WeightElement>(
    py: Python<'_>,
    view: ArrayView2<'_, T>,
    spec: &WeightQuantSpec,
    threads: Option<usize>,
) -> Result<QuantizedMatrix, QuantError> {
    let (rows, row_len) = view.dim();
    let strides = (usize::try_from(view.strides()[0]), usize::try_from(view.strides()[1]));
    match (view.as_slice_memory_order(), strides) {
        (Some(data), (Ok(row_stride), Ok(col_stride))) => {
            let source = StridedMatrix::new(data, [rows, row_len], [row_stride, col_stride])?;
            py.detach(|| weight::quantize(&source, spec, threads))
        }
        _ => py.detach(|| weight::quantize(&View(view), spec, threads)),
    }
}

/// A matrix with gaps, repeated or reversed axes: read element by element.
struct View<'a, T>(ArrayView2<'a, T>);

impl<T: WeightElement> WeightSource for View<'_, T> {
    fn rows(&self) -> usize {
        self.0.nrows()
    }

    fn row_len(&self) -> usize {
        self.0.ncols()
    }

    fn contiguous(&self, _: Range<usize>) -> Option<&[f32]> {
        None
    }

    fn copy_rows(&self, rows: Range<usize>, out: &mut [f32]) {
        let view = self.0.slice(s![rows, ..]);
        for (x, value) in out.iter_mut().zip(view.iter()) {
            T::convert(std::slice::from_ref(value), std::slice::from_mut(x));
        }
    }
}
