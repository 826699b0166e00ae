//! Statistics of tensors, gathered while a session runs.

use std::collections::BTreeMap;

use mnnq_core::quant::observer::encoding::{Damaged, Reader, Writer};
use mnnq_core::quant::observer::ranges::{self, Codes};
use mnnq_core::quant::observer::statistics::Method;
use mnnq_core::quant::observer::{ChannelStatistics, Grid, Histogram, TensorStatistics, kl};
use mnnq_core::tensor::{DType, Layout, TensorView};
use numpy::PyArray1;
use pyo3::exceptions::{PyKeyError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};

use crate::errors::{Place, raise};
use crate::session::{Feed, NativeSession};

/// Adds the class and functions of this module.
pub(crate) fn add(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<NativeStatistics>()?;
    module.add_function(wrap_pyfunction!(activation_codes, module)?)
}

/// Scale, zero point, smallest and largest code.
type CodeTuple = (f32, i32, i32, i32);

/// Statistics of named tensors over any number of samples, of constant size.
///
/// Parameters
/// ----------
/// tensors
///     Tensors whose values are counted.
/// channels
///     Tensors whose mean and extremes per channel (axis 1; the last axis for fewer than 3) are kept.
/// momentum
///     Weight of the past in averaged ranges, 0 to 1.
/// limits
///     Largest magnitudes by name, where MNN's own histogram is wanted besides.
#[pyclass(module = "mnnq._native")]
struct NativeStatistics {
    momentum: f64,
    samples: u64,
    tensors: BTreeMap<String, TensorStatistics>,
    channels: BTreeMap<String, ChannelStatistics>,
}

#[pymethods]
impl NativeStatistics {
    #[new]
    #[pyo3(signature = (tensors, channels = Vec::new(), momentum = 0.99, limits = BTreeMap::new()))]
    fn new(
        tensors: Vec<String>,
        channels: Vec<String>,
        momentum: f64,
        limits: BTreeMap<String, f32>,
    ) -> PyResult<Self> {
        if !(0.0..=1.0).contains(&momentum) {
            return Err(PyValueError::new_err(format!("momentum {momentum}, wanted 0 to 1")));
        }
        let fresh = |name: String| {
            let limit = limits.get(&name).copied().filter(|limit| limit.is_finite() && *limit > 0.0);
            let magnitudes = limit.map(|limit| (limit, vec![0; kl::MNN_BINS]));
            (name, TensorStatistics { magnitudes, ..TensorStatistics::default() })
        };
        Ok(Self {
            momentum,
            samples: 0,
            tensors: tensors.into_iter().map(fresh).collect(),
            channels: channels.into_iter().map(|name| (name, ChannelStatistics::default())).collect(),
        })
    }

    /// Number of samples seen.
    #[getter]
    fn samples(&self) -> u64 {
        self.samples
    }

    /// Names of the tensors whose values are counted.
    #[getter]
    fn tensors(&self) -> Vec<String> {
        self.tensors.keys().cloned().collect()
    }

    /// Run a session on one sample and count what it computes.
    fn observe(
        &mut self,
        py: Python<'_>,
        session: &Bound<'_, NativeSession>,
        feeds: &Bound<'_, PyDict>,
    ) -> PyResult<()> {
        let mut arrays = Vec::with_capacity(feeds.len());
        for (name, value) in feeds.iter() {
            let name: String = name.extract()?;
            let feed = Feed::new(&name, &value)?;
            arrays.push((name, feed));
        }
        let views = arrays
            .iter()
            .map(|(name, feed)| Ok((name.as_str(), feed.view(name)?)))
            .collect::<PyResult<Vec<_>>>()?;
        let native = session.get();
        let Self { momentum, tensors, channels, .. } = self;
        let names: Vec<String> = tensors.keys().chain(channels.keys()).cloned().collect();
        let mut names: Vec<&str> = names.iter().map(String::as_str).collect();
        names.sort_unstable();
        names.dedup();
        let mut failed: Option<String> = None;
        let threads = native.session.options().threads;
        let result = py.detach(|| {
            let mut show = |name: &str, view: TensorView<'_>| {
                if failed.is_none() {
                    failed = count(tensors.get_mut(name), channels.get_mut(name), view, *momentum, threads)
                        .err()
                        .map(|problem| format!("tensor {name:?}: {problem}"));
                }
            };
            native.session.watch(&views, &[], &names, &mut show)
        });
        if let Some(problem) = failed {
            return Err(raise(py, "QuantizationError", &problem, &Place::default()));
        }
        result.map_err(|error| native.error(py, error))?;
        self.samples += 1;
        Ok(())
    }

    /// Add the statistics of samples that come behind these.
    fn merge(&mut self, py: Python<'_>, other: &Bound<'_, Self>) -> PyResult<()> {
        let Ok(other) = other.try_borrow() else {
            return Err(PyValueError::new_err("statistics cannot be merged with themselves"));
        };
        let other = &*other;
        self.samples += other.samples;
        for (name, theirs) in &other.tensors {
            self.tensors.entry(name.clone()).or_default().merge(theirs, self.momentum);
        }
        for (name, theirs) in &other.channels {
            if !self.channels.entry(name.clone()).or_default().merge(theirs) {
                let problem = format!("tensor {name:?} has different numbers of channels");
                return Err(raise(py, "QuantizationError", &problem, &Place::default()));
            }
        }
        Ok(())
    }

    /// The statistics as bytes; `from_state` takes them.
    fn state<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        let mut writer = Writer::default();
        writer.text("mnnq statistics 1");
        writer.f64(self.momentum);
        writer.u64(self.samples);
        writer.u64(self.tensors.len() as u64);
        for (name, statistics) in &self.tensors {
            writer.text(name);
            writer.tensor(statistics);
        }
        writer.u64(self.channels.len() as u64);
        for (name, statistics) in &self.channels {
            writer.text(name);
            writer.channels(statistics);
        }
        PyBytes::new(py, &writer.into_bytes())
    }

    /// The statistics that `state` has given.
    #[staticmethod]
    fn from_state(state: &[u8]) -> PyResult<Self> {
        read(state).map_err(|error| PyValueError::new_err(error.to_string()))
    }

    /// What was seen of a tensor: min, max, count, zeros, width of the bins, positions and counts of those that are not
    /// empty.
    fn summary<'py>(&self, py: Python<'py>, name: &str) -> PyResult<Bound<'py, PyDict>> {
        let statistics = self.tensor(name)?;
        let histogram = &statistics.histogram;
        let dict = PyDict::new(py);
        let empty = histogram.count() == 0;
        dict.set_item("min", if empty { 0.0 } else { histogram.min() })?;
        dict.set_item("max", if empty { 0.0 } else { histogram.max() })?;
        dict.set_item("count", histogram.count())?;
        dict.set_item("zeros", histogram.zeros())?;
        dict.set_item("width", histogram.width())?;
        let (centres, counts): (Vec<f64>, Vec<u64>) = histogram.bins().unzip();
        dict.set_item("centres", PyArray1::from_vec(py, centres))?;
        dict.set_item("counts", PyArray1::from_vec(py, counts))?;
        Ok(dict)
    }

    /// The range that a method chooses for tensors that share their codes.
    ///
    /// Parameters
    /// ----------
    /// names
    ///     The tensors; their values count together.
    /// method
    ///     "mse", "minmax", "percentile", "kl", "admm" or "ema".
    /// symmetric, low_code, high_code
    ///     The codes to choose from.
    /// percentile
    ///     Share of the values that the range holds, for that method.
    /// clipping
    ///     Weight of the error of clipping against that of rounding, for "mse".
    #[expect(clippy::too_many_arguments, reason = "keyword options of a Python function")]
    #[pyo3(signature = (names, method, *, symmetric, low_code, high_code, percentile = 99.99, clipping = 1.0))]
    fn range(
        &self,
        names: Vec<String>,
        method: &str,
        symmetric: bool,
        low_code: i32,
        high_code: i32,
        percentile: f64,
        clipping: f64,
    ) -> PyResult<(f64, f64)> {
        let Some(method) = Method::parse(method, percentile, clipping) else {
            return Err(PyValueError::new_err(format!("method {method:?} is unknown")));
        };
        let grid = grid(symmetric, low_code, high_code)?;
        if method == Method::Moving {
            // Averaged ranges cannot be averaged again: the union.
            let mut union = (0.0_f64, 0.0_f64);
            for name in &names {
                let (low, high) = self.tensor(name)?.range(method, grid, self.momentum);
                union = (union.0.min(low), union.1.max(high));
            }
            return Ok(union);
        }
        let [name] = &names[..] else {
            let mut all = TensorStatistics { histogram: Histogram::default(), ..TensorStatistics::default() };
            for name in &names {
                all.histogram.merge(&self.tensor(name)?.histogram);
            }
            return Ok(all.range(method, grid, self.momentum));
        };
        Ok(self.tensor(name)?.range(method, grid, self.momentum))
    }

    /// Scale by MNN's own rule of divergence, with `clamp` the largest code; None without its histogram.
    fn mnn_scale(&self, name: &str, clamp: i32) -> PyResult<Option<f32>> {
        if clamp < 1 {
            return Err(PyValueError::new_err(format!("clamp {clamp}, wanted 1 or more")));
        }
        Ok(self.tensor(name)?.mnn_divergence(clamp).map(|codes| codes.scale))
    }

    /// What codes do to a tensor: sum of squares, expected sum of squared errors, share of values beyond the codes.
    fn error(&self, name: &str, scale: f32, zero: i32, min: i32, max: i32) -> PyResult<(f64, f64, f64)> {
        if !(scale > 0.0 && min < max) {
            return Err(PyValueError::new_err(format!("scale {scale}, codes {min} to {max}")));
        }
        Ok(ranges::error(&self.tensor(name)?.histogram, Codes { scale, zero, min, max }))
    }

    /// Means, minima and maxima of the channels of a tensor.
    #[expect(clippy::type_complexity, reason = "three arrays")]
    fn channel_statistics<'py>(
        &self,
        py: Python<'py>,
        name: &str,
    ) -> PyResult<(Bound<'py, PyArray1<f64>>, Bound<'py, PyArray1<f32>>, Bound<'py, PyArray1<f32>>)> {
        let found = self.channels.get(name).ok_or_else(|| PyKeyError::new_err(name.to_owned()))?;
        Ok((
            PyArray1::from_vec(py, found.means()),
            PyArray1::from_slice(py, found.min()),
            PyArray1::from_slice(py, found.max()),
        ))
    }
}

impl NativeStatistics {
    fn tensor(&self, name: &str) -> PyResult<&TensorStatistics> {
        self.tensors.get(name).ok_or_else(|| PyKeyError::new_err(name.to_owned()))
    }
}

fn read(state: &[u8]) -> Result<NativeStatistics, Damaged> {
    let mut reader = Reader::new(state);
    if reader.text()? != "mnnq statistics 1" {
        return Err(Damaged);
    }
    let (momentum, samples) = (reader.f64()?, reader.u64()?);
    let (mut tensors, mut channels) = (BTreeMap::new(), BTreeMap::new());
    for _ in 0..reader.u64()? {
        tensors.insert(reader.text()?, reader.tensor()?);
    }
    for _ in 0..reader.u64()? {
        channels.insert(reader.text()?, reader.channels()?);
    }
    if !reader.is_done() {
        return Err(Damaged);
    }
    Ok(NativeStatistics { momentum, samples, tensors, channels })
}

/// Counts one tensor of one sample.
fn count(
    tensor: Option<&mut TensorStatistics>,
    channels: Option<&mut ChannelStatistics>,
    view: TensorView<'_>,
    momentum: f64,
    threads: usize,
) -> Result<(), String> {
    let desc = view.desc();
    if desc.dtype != DType::F32 {
        return Ok(());
    }
    let (values, dims) = (view.data::<f32>(), desc.shape.dims().to_vec());
    if let Some(tensor) = tensor {
        let area: usize = if dims.len() > 2 { dims[2..].iter().product() } else { 1 };
        tensor.area = tensor.area.max(area as u64);
        tensor.add(values, momentum, threads).map_err(|error| error.to_string())?;
    }
    if let Some(channels) = channels {
        let (count, inner) = match (dims.len(), desc.layout) {
            (0, _) => (1, 1),
            (1 | 2, _) => (dims[dims.len() - 1], 1),
            (_, Layout::ChannelsLast) => (dims[1], 1),
            (_, Layout::Plain) => (dims[1], dims[2..].iter().product()),
        };
        if !channels.add(values, count, inner) {
            return Err("its number of channels varies".to_owned());
        }
    }
    Ok(())
}

fn grid(symmetric: bool, min: i32, max: i32) -> PyResult<Grid> {
    if min >= max || max < 1 || min < -128 || max > 127 {
        return Err(PyValueError::new_err(format!("codes {min} to {max}, wanted some of -128 to 127")));
    }
    Ok(Grid { symmetric, min, max })
}

/// The codes for values of a range, which is widened to hold 0: scale, zero point, smallest and largest code.
#[pyfunction]
#[pyo3(signature = (low, high, *, symmetric, low_code, high_code))]
fn activation_codes(
    low: f64,
    high: f64,
    symmetric: bool,
    low_code: i32,
    high_code: i32,
) -> PyResult<CodeTuple> {
    if !(low.is_finite() && high.is_finite() && low <= high) {
        return Err(PyValueError::new_err(format!("no range: {low} to {high}")));
    }
    let Codes { scale, zero, min, max } = grid(symmetric, low_code, high_code)?.codes(low, high);
    Ok((scale, zero, min, max))
}
