//! The runtime: a session over NumPy arrays.

use std::path::PathBuf;

use mnnq_core::runtime::{
    DynamicMode, Int8Mode, MemoryMode, PrecisionMode, RuntimeError, Session, SessionOptions, TensorInfo,
};
use mnnq_core::tensor::{DType, Element as TensorElement, Layout, Shape, TensorDesc, TensorView};
use numpy::{Element, PyArray1, PyArrayDyn, PyArrayMethods, PyReadonlyArrayDyn, PyUntypedArrayMethods};
use pyo3::exceptions::{PyMemoryError, PyTypeError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList};

use crate::errors::{Place, from_format, raise, unsupported_all};

/// Adds the class of this module.
pub(crate) fn add(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<NativeSession>()?;
    module.add_function(wrap_pyfunction!(supported_operators, module)?)
}

/// Names of the MNN operators that sessions can run.
#[pyfunction]
fn supported_operators() -> Vec<String> {
    let mut names: Vec<String> = mnnq_core::ops::supported_operators().collect();
    names.extend(["Input".to_owned(), "Const".to_owned()]);
    names.sort();
    names
}

/// A `.mnn` model, ready to run. `mnnq.runtime.InferenceSession` is the class for users.
///
/// Parameters
/// ----------
/// source
///     Path of a `.mnn` file, or its bytes.
/// threads
///     Threads per run, 1 to 1024. Results do not depend on it.
/// precision
///     "normal", "high" (sums in double precision) or "low" (products with stored weights in 16-bit floats).
/// memory
///     "normal", or "low" (quantized weights stay in their bits, and activations are quantized while running).
/// dynamic
///     Which layers of memory "low" run in integers: "auto" (those that are faster so), "always", or "compat" (with
///     MNN's rules).
/// int8
///     "exact", or "compat" (pooling of int8 tensors as MNN computes it on x86-64).
/// plan_cache
///     Number of input shapes whose plans are kept.
/// fuse
///     Fuse element-wise operators into the operator before them.
/// max_loop_iterations
///     Iterations that all loops of one run may take together.
/// allow_nan
///     Accept inputs that hold NaN.
#[pyclass(frozen, module = "mnnq._native")]
pub(crate) struct NativeSession {
    pub(crate) session: Session,
    file: Option<PathBuf>,
}

#[pymethods]
impl NativeSession {
    #[new]
    #[allow(clippy::too_many_arguments, reason = "keyword arguments of Python")]
    #[pyo3(signature = (source, *, threads = 1, precision = "normal", memory = "normal", dynamic = "auto", int8 = "exact", plan_cache = 16, fuse = true, max_loop_iterations = 1 << 20, allow_nan = false))]
    fn new(
        py: Python<'_>,
        source: &Bound<'_, PyAny>,
        threads: usize,
        precision: &str,
        memory: &str,
        dynamic: &str,
        int8: &str,
        plan_cache: usize,
        fuse: bool,
        max_loop_iterations: u64,
        allow_nan: bool,
    ) -> PyResult<Self> {
        let unknown = |key, got: &str, wanted: &str| {
            raise(
                py,
                "ConfigError",
                &format!("{got:?}, wanted {wanted}"),
                &Place { file: None, key: Some(key) },
            )
        };
        let precision = match precision {
            "normal" => PrecisionMode::Normal,
            "high" => PrecisionMode::High,
            "low" => PrecisionMode::Low,
            other => return Err(unknown("precision", other, "normal, high or low")),
        };
        let memory = match memory {
            "normal" => MemoryMode::Normal,
            "low" => MemoryMode::Low,
            other => return Err(unknown("memory", other, "normal or low")),
        };
        let dynamic = match dynamic {
            "auto" => DynamicMode::Auto,
            "always" => DynamicMode::Always,
            "compat" => DynamicMode::Compat,
            other => return Err(unknown("dynamic", other, "auto, always or compat")),
        };
        let int8 = match int8 {
            "exact" => Int8Mode::Exact,
            "compat" => Int8Mode::Compat,
            other => return Err(unknown("int8", other, "exact or compat")),
        };
        let options = SessionOptions {
            threads,
            precision,
            memory,
            dynamic,
            int8,
            plan_cache,
            fuse,
            max_loop_iterations,
            allow_nan,
        };
        let (session, file) = if let Ok(bytes) = source.cast::<PyBytes>() {
            let bytes = bytes.as_bytes().to_vec();
            (py.detach(|| Session::from_bytes(bytes, options)), None)
        } else {
            let path: PathBuf = source.extract()?;
            (py.detach(|| Session::open(&path, options)), Some(path))
        };
        match session {
            Ok(session) => Ok(Self { session, file }),
            Err(error) => Err(from_runtime(py, error, file)),
        }
    }

    /// Inputs: name, dtype, shape (-1 for lengths that vary), as tuples.
    fn inputs<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        infos(py, self.session.inputs())
    }

    /// Outputs, as `inputs`; dtype and shape are None where only running tells.
    fn outputs<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        infos(py, py.detach(|| self.session.outputs()))
    }

    /// Names of the outputs, without planning for their shapes.
    fn output_names(&self) -> Vec<String> {
        self.session.output_names().to_vec()
    }

    /// What running on inputs of these shapes takes: arena_bytes, multiply_adds, steps, outputs, complete.
    #[pyo3(signature = (shapes = None))]
    fn plan_info<'py>(
        &self,
        py: Python<'py>,
        shapes: Option<Vec<(String, Vec<usize>)>>,
    ) -> PyResult<Bound<'py, PyDict>> {
        let shapes = shapes.unwrap_or_default();
        let shapes: Vec<(&str, Shape)> = shapes
            .iter()
            .map(|(name, dims)| {
                let shape = Shape::new(dims);
                shape.map(|shape| (name.as_str(), shape)).map_err(|error| {
                    raise(py, "InputError", &error.to_string(), &Place { file: None, key: Some(name) })
                })
            })
            .collect::<PyResult<_>>()?;
        let info = py.detach(|| self.session.plan_info(&shapes));
        let info = info.map_err(|error| from_runtime(py, error, self.file.clone()))?;
        let dict = PyDict::new(py);
        dict.set_item("arena_bytes", info.arena_bytes)?;
        dict.set_item("multiply_adds", info.multiply_adds)?;
        dict.set_item("steps", info.steps)?;
        dict.set_item("complete", info.complete)?;
        let outputs = info
            .outputs
            .into_iter()
            .map(|(name, desc)| (name, desc.map(|d| d.dtype.name()), desc.map(|d| d.shape.dims().to_vec())));
        dict.set_item("outputs", outputs.collect::<Vec<_>>())?;
        Ok(dict)
    }

    /// What the file keeps in `extraInfo.buffer`: a buffer whose root is a table `Extra`, or nothing.
    fn metadata<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, self.session.metadata())
    }

    /// Run the model on arrays of the inputs' very dtypes; returns the outputs named, or all.
    fn run<'py>(
        &self,
        py: Python<'py>,
        names: Option<Vec<String>>,
        feeds: &Bound<'py, PyDict>,
    ) -> PyResult<Vec<Bound<'py, PyAny>>> {
        self.run_observed(py, names, feeds, None)
    }

    /// Run the model and call `observer(name, array)` for the inputs and every tensor that is computed.
    ///
    /// The arrays are copies in the logical shape; their strides show the layout that the runtime works in.
    fn observe<'py>(
        &self,
        py: Python<'py>,
        names: Option<Vec<String>>,
        feeds: &Bound<'py, PyDict>,
        observer: Py<PyAny>,
    ) -> PyResult<Vec<Bound<'py, PyAny>>> {
        self.run_observed(py, names, feeds, Some(observer))
    }

    /// Steps that have run so far: node, op_type, kernel, output shapes, runs, seconds.
    fn profile<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyDict>>> {
        let steps = py.detach(|| self.session.profile());
        steps
            .into_iter()
            .map(|step| {
                let dict = PyDict::new(py);
                dict.set_item("node", step.node)?;
                dict.set_item("op_type", step.op_type)?;
                dict.set_item("kernel", step.kernel)?;
                let shapes: Vec<Vec<usize>> = step.outputs.iter().map(|o| o.shape.dims().to_vec()).collect();
                dict.set_item("output_shapes", shapes)?;
                dict.set_item("runs", step.runs)?;
                dict.set_item("seconds", step.time.as_secs_f64())?;
                Ok(dict)
            })
            .collect()
    }
}

/// An array that is read while a run goes on.
pub(crate) enum Feed<'py> {
    F32(PyReadonlyArrayDyn<'py, f32>),
    I32(PyReadonlyArrayDyn<'py, i32>),
    U8(PyReadonlyArrayDyn<'py, u8>),
    I8(PyReadonlyArrayDyn<'py, i8>),
}

impl<'py> Feed<'py> {
    pub(crate) fn new(name: &str, value: &Bound<'py, PyAny>) -> PyResult<Self> {
        fn readonly<'py, T: Element>(
            value: &Bound<'py, PyAny>,
        ) -> Option<PyResult<PyReadonlyArrayDyn<'py, T>>> {
            let array = value.cast::<PyArrayDyn<T>>().ok()?;
            Some(array.try_readonly().map_err(PyErr::from))
        }
        if let Some(array) = readonly::<f32>(value) {
            return array.map(Self::F32);
        }
        if let Some(array) = readonly::<i32>(value) {
            return array.map(Self::I32);
        }
        if let Some(array) = readonly::<u8>(value) {
            return array.map(Self::U8);
        }
        if let Some(array) = readonly::<i8>(value) {
            return array.map(Self::I8);
        }
        let text = format!("input {name:?} must be an array of float32, int32, uint8 or int8");
        Err(PyTypeError::new_err(text))
    }

    pub(crate) fn view(&self, name: &str) -> PyResult<TensorView<'_>> {
        fn view<'a, T: Element + TensorElement>(
            name: &str,
            array: &'a PyReadonlyArrayDyn<'_, T>,
        ) -> PyResult<TensorView<'a>> {
            let contiguous =
                || PyTypeError::new_err(format!("input {name:?} must be a C-contiguous, aligned array"));
            let data = array.as_slice().map_err(|_| contiguous())?;
            let shape = Shape::new(array.shape())
                .map_err(|error| PyTypeError::new_err(format!("input {name:?}: {error}")))?;
            TensorView::of(shape, data).map_err(|_| contiguous())
        }
        match self {
            Self::F32(array) => view(name, array),
            Self::I32(array) => view(name, array),
            Self::U8(array) => view(name, array),
            Self::I8(array) => view(name, array),
        }
    }
}

impl NativeSession {
    /// The exception for an error of this session.
    pub(crate) fn error(&self, py: Python<'_>, error: RuntimeError) -> PyErr {
        from_runtime(py, error, self.file.clone())
    }

    fn run_observed<'py>(
        &self,
        py: Python<'py>,
        names: Option<Vec<String>>,
        feeds: &Bound<'py, PyDict>,
        observer: Option<Py<PyAny>>,
    ) -> PyResult<Vec<Bound<'py, PyAny>>> {
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
        let names = names.unwrap_or_default();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let mut failed: Option<PyErr> = None;
        let result = match observer {
            None => return self.run_into_arrays(py, &views, &names),
            Some(observer) => {
                let mut show = |name: &str, view: TensorView<'_>| {
                    if failed.is_none() {
                        failed = Python::attach(|py| {
                            let array = physical_array(py, view)?;
                            observer.call1(py, (name, array)).map(drop)
                        })
                        .err();
                    }
                };
                py.detach(|| self.session.observe(&views, &names, &mut show))
            }
        };
        if let Some(error) = failed {
            return Err(error);
        }
        let outputs = result.map_err(|error| from_runtime(py, error, self.file.clone()))?;
        outputs.iter().map(|tensor| array(py, tensor.view())).collect()
    }

    /// Runs the model; each output is copied once, from the memory of the run into its array.
    fn run_into_arrays<'py>(
        &self,
        py: Python<'py>,
        feeds: &[(&str, TensorView<'_>)],
        names: &[&str],
    ) -> PyResult<Vec<Bound<'py, PyAny>>> {
        let mut arrays: Vec<Option<Py<PyAny>>> = Vec::new();
        let mut failed: Option<PyErr> = None;
        let mut consume = |position: usize, view: TensorView<'_>| {
            if failed.is_some() {
                return;
            }
            if arrays.len() <= position {
                arrays.resize_with(position + 1, || None);
            }
            match Python::attach(|py| array(py, view).map(Bound::unbind)) {
                Ok(array) => arrays[position] = Some(array),
                Err(error) => failed = Some(error),
            }
        };
        let result = py.detach(|| self.session.run_into(feeds, names, &mut consume));
        if let Some(error) = failed {
            return Err(error);
        }
        result.map_err(|error| from_runtime(py, error, self.file.clone()))?;
        Ok(arrays.into_iter().flatten().map(|array| array.into_bound(py)).collect())
    }
}

/// A new array with the contents.
fn array<'py>(py: Python<'py>, view: TensorView<'_>) -> PyResult<Bound<'py, PyAny>> {
    let dims = view.desc().shape.dims().to_vec();
    flat(py, view)?.call_method1("reshape", (dims,))
}

/// A new array in the logical shape, whose memory has the order of the view's layout.
fn physical_array<'py>(py: Python<'py>, view: TensorView<'_>) -> PyResult<Bound<'py, PyAny>> {
    let TensorDesc { shape, layout, .. } = view.desc();
    let (rank, order) = (shape.rank(), layout.order(shape.rank()));
    let dims = layout.physical(&shape)[..rank].to_vec();
    let array = flat(py, view)?.call_method1("reshape", (dims,))?;
    if layout == Layout::Plain {
        return Ok(array);
    }
    let mut back = vec![0; rank];
    for (position, &axis) in order[..rank].iter().enumerate() {
        back[axis] = position;
    }
    array.call_method1("transpose", (back,))
}

fn flat<'py>(py: Python<'py>, view: TensorView<'_>) -> PyResult<Bound<'py, PyAny>> {
    match view.desc().dtype {
        DType::F32 => copied(py, view.data::<f32>()),
        DType::I32 => copied(py, view.data::<i32>()),
        DType::U8 => copied(py, view.data::<u8>()),
        DType::I8 => copied(py, view.data::<i8>()),
        DType::F16 => copied(py, view.data::<half::f16>()),
    }
}

/// A new array of rank 1. `ExecutionError` if there is no memory for it, where the `numpy` crate would panic.
fn copied<'py, T: Element + Copy>(py: Python<'py>, data: &[T]) -> PyResult<Bound<'py, PyAny>> {
    let empty = py.import("numpy")?.call_method1("empty", (data.len(), T::get_dtype(py)));
    let array = empty.map_err(|error| {
        if !error.is_instance_of::<PyMemoryError>(py) {
            return error;
        }
        let bytes = size_of_val(data);
        let message = format!("not enough memory: an output takes {bytes} bytes");
        raise(py, "ExecutionError", &message, &Place::default())
    })?;
    array.cast::<PyArray1<T>>()?.try_readwrite()?.as_slice_mut()?.copy_from_slice(data);
    Ok(array)
}

fn infos(py: Python<'_>, infos: Vec<TensorInfo>) -> PyResult<Bound<'_, PyList>> {
    PyList::new(py, infos.into_iter().map(|info| (info.name, info.dtype.map(DType::name), info.dims)))
}

/// The exception for an error of the runtime.
fn from_runtime(py: Python<'_>, error: RuntimeError, file: Option<PathBuf>) -> PyErr {
    let file = file.as_deref();
    let message = error.to_string();
    match error {
        RuntimeError::Format(error) => from_format(py, error, file),
        RuntimeError::Unsupported { problems } => unsupported_all(py, &problems, file),
        RuntimeError::MissingInput { name, .. }
        | RuntimeError::UnknownInput { name, .. }
        | RuntimeError::InputType { name, .. }
        | RuntimeError::InputShape { name, .. }
        | RuntimeError::NanInput { name, .. }
        | RuntimeError::UnknownOutput { name, .. } => {
            raise(py, "InputError", &message, &Place { file, key: Some(&name) })
        }
        RuntimeError::Option { key, .. } => {
            raise(py, "ConfigError", &message, &Place { file, key: Some(key) })
        }
        RuntimeError::Graph { place, .. } => {
            raise(py, "ModelError", &message, &Place { file, key: Some(&place) })
        }
        _ => raise(py, "ExecutionError", &message, &Place { file, key: None }),
    }
}
