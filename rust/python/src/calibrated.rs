//! Weight quantization with calibration data: statistics of inputs, and codes chosen for them.

use std::sync::Arc;

use mnnq_core::quant::QuantError;
use mnnq_core::quant::moments::{Delta, Images, Moments, Statistics, Taps};
use mnnq_core::quant::weight::gptq::{Compensation, compensate, output_error};
use mnnq_core::quant::weight::{correlated, weighted};
use numpy::{
    PyArray1, PyArrayMethods, PyReadonlyArray1, PyReadonlyArray2, PyReadonlyArray4, PyUntypedArrayMethods,
};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::quant::{Options, codes_dict, invalid, thread_count};

/// Adds the classes and functions of this module.
pub(crate) fn add(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<InputMoments>()?;
    module.add_class::<InputStatistics>()?;
    module.add_function(wrap_pyfunction!(compensate_weights, module)?)?;
    module.add_function(wrap_pyfunction!(quantize_weighted, module)?)?;
    module.add_function(wrap_pyfunction!(quantize_correlated, module)?)?;
    module.add_function(wrap_pyfunction!(layer_output_error, module)?)
}

fn error(py: Python<'_>, error: &QuantError) -> PyErr {
    invalid(py, error.key(), &error.to_string())
}

/// A pool of its own, or the process's.
pub(crate) fn pool(py: Python<'_>, threads: Option<i64>) -> PyResult<Option<Arc<ThreadPool>>> {
    let Some(threads) = thread_count(py, threads)? else { return Ok(None) };
    let pool = ThreadPoolBuilder::new().num_threads(threads).build();
    pool.map(|pool| Some(Arc::new(pool))).map_err(|error| invalid(py, "threads", &error.to_string()))
}

pub(crate) fn within<R: Send>(pool: Option<&ThreadPool>, work: impl FnOnce() -> R + Send) -> R {
    match pool {
        Some(pool) => pool.install(work),
        None => work(),
    }
}

/// Means and covariances of what a layer's kernel meets, collected from its inputs.
///
/// Parameters
/// ----------
/// channels, groups
///     Input channels, and groups of them that do not meet.
/// kernel, stride, dilation
///     Along height and width.
/// cross
///     Whether the inputs in the float model are given too.
/// threads
///     Number of threads; by default one per CPU.
#[pyclass(module = "mnnq._native")]
struct InputMoments {
    moments: Option<Moments>,
    pool: Option<Arc<ThreadPool>>,
}

#[pymethods]
impl InputMoments {
    #[new]
    #[pyo3(signature = (channels, groups, *, kernel = [1, 1], stride = [1, 1], dilation = [1, 1], cross = false, threads = None))]
    #[expect(clippy::too_many_arguments, reason = "keyword options of a Python class")]
    fn new(
        py: Python<'_>,
        channels: usize,
        groups: usize,
        kernel: [usize; 2],
        stride: [usize; 2],
        dilation: [usize; 2],
        cross: bool,
        threads: Option<i64>,
    ) -> PyResult<Self> {
        let taps = Taps { kernel, stride, dilation };
        let moments = Moments::new(channels, groups, taps, cross).map_err(|e| error(py, &e))?;
        Ok(Self { moments: Some(moments), pool: pool(py, threads)? })
    }

    /// Add the inputs of a sample: in the quantized model and, with `cross`, in the float model.
    ///
    /// Parameters
    /// ----------
    /// actual, exact
    ///     float32 `[N, C, H, W]`, contiguous.
    /// pad
    ///     Padding above and left.
    /// outputs
    ///     Rows and columns of the layer's output.
    /// rows
    ///     Every how many rows of outputs are counted, and the first of them.
    #[pyo3(signature = (actual, exact, pad, outputs, rows = [1, 0]))]
    fn add(
        &mut self,
        py: Python<'_>,
        actual: PyReadonlyArray4<'_, f32>,
        exact: Option<PyReadonlyArray4<'_, f32>>,
        pad: [usize; 2],
        outputs: [usize; 2],
        rows: [usize; 2],
    ) -> PyResult<()> {
        let contiguous = |_| invalid(py, "calib", "an input is not C-contiguous");
        let data = actual.as_slice().map_err(contiguous)?;
        let exact = exact.as_ref().map(|exact| exact.as_slice()).transpose().map_err(contiguous)?;
        let &[n, c, h, w] = actual.shape() else {
            return Err(invalid(py, "calib", "an input is no batch of images"));
        };
        let images = Images { actual: data, exact, shape: [n, c, h, w], pad, outputs, rows };
        let pool = self.pool.clone();
        let moments = self.moments.as_mut().ok_or_else(|| finished(py))?;
        py.detach(|| within(pool.as_deref(), || moments.add(&images))).map_err(|e| error(py, &e))
    }

    /// End the collection and return the statistics.
    fn finish(&mut self, py: Python<'_>) -> PyResult<InputStatistics> {
        let moments = self.moments.take().ok_or_else(|| finished(py))?;
        let pool = self.pool.clone();
        let statistics =
            py.detach(|| within(pool.as_deref(), || moments.finish())).map_err(|e| error(py, &e))?;
        Ok(InputStatistics { statistics })
    }
}

fn finished(py: Python<'_>) -> PyErr {
    invalid(py, "calib", "the collection has ended")
}

/// Means and covariances of the inputs of a layer; made by `InputMoments.finish`.
#[pyclass(module = "mnnq._native")]
struct InputStatistics {
    statistics: Statistics,
}

/// The arguments that make an `InputStatistics` again.
type Parts<'py> = (
    usize,
    usize,
    usize,
    Bound<'py, PyArray1<f64>>,
    Bound<'py, PyArray1<f64>>,
    Option<(Bound<'py, PyArray1<f64>>, Bound<'py, PyArray1<f64>>)>,
);

#[pymethods]
impl InputStatistics {
    /// Statistics from their parts, as pickling gives them: groups, columns, count, mean, covariances, and the mean and
    /// covariances of the difference to the float model, flat.
    #[new]
    #[pyo3(signature = (groups, columns, count, mean, second, delta = None))]
    fn new(
        py: Python<'_>,
        groups: usize,
        columns: usize,
        count: usize,
        mean: PyReadonlyArray1<'_, f64>,
        second: PyReadonlyArray1<'_, f64>,
        delta: Option<(PyReadonlyArray1<'_, f64>, PyReadonlyArray1<'_, f64>)>,
    ) -> PyResult<Self> {
        let lines = groups.checked_mul(columns);
        let squares = lines.and_then(|lines| lines.checked_mul(columns));
        let fits = |mean: &PyReadonlyArray1<'_, f64>, second: &PyReadonlyArray1<'_, f64>| {
            Some(mean.len()) == lines && Some(second.len()) == squares
        };
        let good = fits(&mean, &second) && delta.as_ref().is_none_or(|(mean, cross)| fits(mean, cross));
        if !good || count == 0 || lines == Some(0) {
            return Err(invalid(py, "calib", "parts of statistics that do not fit together"));
        }
        let vector = |array: &PyReadonlyArray1<'_, f64>| array.as_array().to_vec();
        let delta = delta.map(|(mean, cross)| Delta { mean: vector(&mean), cross: vector(&cross) });
        let (mean, second) = (vector(&mean), vector(&second));
        Ok(Self { statistics: Statistics { groups, columns, count, mean, second, delta } })
    }

    fn __getnewargs__<'py>(&self, py: Python<'py>) -> Parts<'py> {
        let Statistics { groups, columns, count, mean, second, delta } = &self.statistics;
        let array = |values: &[f64]| PyArray1::from_slice(py, values);
        let delta = delta.as_ref().map(|delta| (array(&delta.mean), array(&delta.cross)));
        (*groups, *columns, *count, array(mean), array(second), delta)
    }

    /// Positions seen.
    #[getter]
    fn count(&self) -> usize {
        self.statistics.count
    }

    /// Inputs of a group that one output sees.
    #[getter]
    fn columns(&self) -> usize {
        self.statistics.columns
    }

    /// Mean inputs `[groups, columns]` in the quantized and in the float model.
    fn means<'py>(&self, py: Python<'py>) -> PyResult<(Bound<'py, PyAny>, Bound<'py, PyAny>)> {
        let statistics = &self.statistics;
        let shape = [statistics.groups, statistics.columns];
        let actual = statistics.mean.clone();
        let exact = match &statistics.delta {
            Some(delta) => actual.iter().zip(&delta.mean).map(|(x, d)| x + d).collect(),
            None => actual.clone(),
        };
        let array = |values| PyArray1::from_vec(py, values).reshape(shape).map(Bound::into_any);
        Ok((array(actual)?, array(exact)?))
    }

    /// Covariances `[groups, columns, columns]` of the inputs in the quantized model.
    fn covariance<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let Statistics { groups, columns, second, .. } = &self.statistics;
        let array = PyArray1::from_slice(py, second).reshape([*groups, *columns, *columns])?;
        Ok(array.into_any())
    }

    /// Add the statistics of other inputs of the same layer.
    fn merge(&mut self, py: Python<'_>, other: PyRef<'_, Self>) -> PyResult<()> {
        let other = &other.statistics;
        let mine = &mut self.statistics;
        py.detach(|| mine.merge(other)).map_err(|e| error(py, &e))
    }
}

/// Quantize a weight matrix for the inputs of its layer: searched scales, compensated errors, coordinate descent.
///
/// Parameters
/// ----------
/// weight
///     float32 `[rows, row_len]`, contiguous.
/// inputs
///     Statistics of the layer's inputs.
/// bits, symmetric, block, fp16_scales, threads
///     As for `quantize_weights`.
/// damping
///     Ridge, as a fraction of the mean variance of the inputs.
/// by_variance
///     Round the inputs of the largest variance first.
/// follow_float
///     Aim at the outputs of the float model in spite of changed inputs.
/// sweeps
///     Most sweeps of coordinate descent.
///
/// Returns
/// -------
/// As `quantize_codes`.
///
/// Raises
/// ------
/// QuantizationError
///     If an option does not fit, or a weight is not finite; `key` names the argument.
#[pyfunction]
#[pyo3(signature = (
    weight, inputs, *, bits, symmetric, block = None, damping = 0.01, by_variance = true, follow_float = true,
    sweeps = 4, fp16_scales = false, threads = None
))]
#[expect(clippy::too_many_arguments, reason = "keyword options of a Python function")]
fn compensate_weights<'py>(
    py: Python<'py>,
    weight: PyReadonlyArray2<'py, f32>,
    inputs: PyRef<'py, InputStatistics>,
    bits: i64,
    symmetric: bool,
    block: Option<i64>,
    damping: f64,
    by_variance: bool,
    follow_float: bool,
    sweeps: usize,
    fp16_scales: bool,
    threads: Option<i64>,
) -> PyResult<Bound<'py, PyDict>> {
    if !(damping.is_finite() && damping > 0.0) {
        return Err(invalid(py, "damping", &format!("{damping}, wanted a positive number")));
    }
    let options =
        Options { bits, symmetric, block, method: "search", gain_correction: false, fp16_scales, threads };
    let &[rows, row_len] = weight.shape() else { return Err(invalid(py, "weight", "it is no matrix")) };
    let spec = options.spec(py, row_len)?;
    let data = weight.as_slice().map_err(|_| invalid(py, "weight", "it is not C-contiguous"))?;
    let how = Compensation { damping, by_variance, follow_float, sweeps };
    let pool = pool(py, threads)?;
    let statistics = &inputs.statistics;
    let result = py.detach(|| within(pool.as_deref(), || compensate(data, rows, &spec, statistics, &how)));
    codes_dict(py, &options, result.map_err(|e| error(py, &e))?)
}

/// Quantize a weight matrix for inputs of known power: the search, with errors weighted by it.
///
/// Parameters
/// ----------
/// weight
///     float32 `[rows, row_len]`, contiguous; a row is an output channel.
/// power
///     float64 `[row_len]`: mean square of each input, up to a common factor.
/// bits, symmetric, block, fp16_scales, threads
///     As `quantize_codes`.
///
/// Returns
/// -------
/// As `quantize_codes`.
///
/// Raises
/// ------
/// QuantizationError
///     If an option does not fit, or a weight is not finite; `key` names the argument.
#[pyfunction]
#[pyo3(signature = (weight, power, *, bits, symmetric, block = None, fp16_scales = false, threads = None))]
#[expect(clippy::too_many_arguments, reason = "keyword options of a Python function")]
fn quantize_weighted<'py>(
    py: Python<'py>,
    weight: PyReadonlyArray2<'py, f32>,
    power: PyReadonlyArray1<'py, f64>,
    bits: i64,
    symmetric: bool,
    block: Option<i64>,
    fp16_scales: bool,
    threads: Option<i64>,
) -> PyResult<Bound<'py, PyDict>> {
    let options =
        Options { bits, symmetric, block, method: "search", gain_correction: false, fp16_scales, threads };
    let &[rows, row_len] = weight.shape() else { return Err(invalid(py, "weight", "it is no matrix")) };
    let spec = options.spec(py, row_len)?;
    let data = weight.as_slice().map_err(|_| invalid(py, "weight", "it is not C-contiguous"))?;
    let power = power.as_slice().map_err(|_| invalid(py, "power", "it is not C-contiguous"))?;
    let pool = pool(py, threads)?;
    let result =
        py.detach(|| within(pool.as_deref(), || weighted::quantize_weighted(data, rows, &spec, power)));
    codes_dict(py, &options, result.map_err(|e| error(py, &e))?)
}

/// Quantize a weight matrix whose kernels see inputs that go together: the search, with errors of a kernel that cancel.
///
/// Parameters
/// ----------
/// weight
///     float32 `[rows, row_len]`, contiguous; a row is an output channel.
/// taps
///     Consecutive weights of a kernel; must divide the blocks.
/// correlation
///     Correlation between the inputs of a kernel, from 0 to below 1.
/// bits, symmetric, block, gain_correction, fp16_scales, threads
///     As `quantize_codes`.
///
/// Returns
/// -------
/// As `quantize_codes`.
///
/// Raises
/// ------
/// QuantizationError
///     If an option does not fit, or a weight is not finite; `key` names the argument.
#[pyfunction]
#[pyo3(signature = (
    weight, *, taps, correlation, bits, symmetric, block = None, gain_correction = false, fp16_scales = false,
    threads = None
))]
#[expect(clippy::too_many_arguments, reason = "keyword options of a Python function")]
fn quantize_correlated<'py>(
    py: Python<'py>,
    weight: PyReadonlyArray2<'py, f32>,
    taps: usize,
    correlation: f64,
    bits: i64,
    symmetric: bool,
    block: Option<i64>,
    gain_correction: bool,
    fp16_scales: bool,
    threads: Option<i64>,
) -> PyResult<Bound<'py, PyDict>> {
    let options = Options { bits, symmetric, block, method: "search", gain_correction, fp16_scales, threads };
    let &[rows, row_len] = weight.shape() else { return Err(invalid(py, "weight", "it is no matrix")) };
    let spec = options.spec(py, row_len)?;
    let data = weight.as_slice().map_err(|_| invalid(py, "weight", "it is not C-contiguous"))?;
    let pool = pool(py, threads)?;
    let result = py.detach(|| {
        within(pool.as_deref(), || correlated::quantize_correlated(data, rows, &spec, taps, correlation))
    });
    codes_dict(py, &options, result.map_err(|e| error(py, &e))?)
}

/// Squared error of a layer's outputs with other weights, means apart.
///
/// Parameters
/// ----------
/// weight, decoded
///     float32 `[rows, row_len]`, contiguous: the weights, and those in their place.
/// inputs
///     Statistics of the layer's inputs.
///
/// Returns
/// -------
/// `own`: on the inputs in the quantized model; `total`: against the float model's outputs, up to a constant of the
/// layer; `power`: variance of the outputs. Sums over rows of means over positions.
#[pyfunction]
#[pyo3(signature = (weight, decoded, inputs, *, threads = None))]
fn layer_output_error<'py>(
    py: Python<'py>,
    weight: PyReadonlyArray2<'py, f32>,
    decoded: PyReadonlyArray2<'py, f32>,
    inputs: PyRef<'py, InputStatistics>,
    threads: Option<i64>,
) -> PyResult<Bound<'py, PyDict>> {
    if weight.shape() != decoded.shape() {
        return Err(invalid(py, "decoded", "its shape is not that of the weights"));
    }
    let contiguous = |_| invalid(py, "weight", "it is not C-contiguous");
    let (data, other) = (weight.as_slice().map_err(contiguous)?, decoded.as_slice().map_err(contiguous)?);
    let rows = weight.shape()[0];
    let pool = pool(py, threads)?;
    let statistics = &inputs.statistics;
    let result = py.detach(|| within(pool.as_deref(), || output_error(data, other, rows, statistics)));
    let result = result.map_err(|e| error(py, &e))?;
    let out = PyDict::new(py);
    out.set_item("own", result.own)?;
    out.set_item("total", result.total)?;
    out.set_item("power", result.power)?;
    Ok(out)
}
