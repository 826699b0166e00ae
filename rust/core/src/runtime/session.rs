//! The public face of the runtime.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use mnnq_format::schema::{extra_info, net};
use mnnq_format::{Model, ReadLimits, SideFile, read, read_file};
use smallvec::SmallVec;

use super::arena::{LINE_BYTES, require_memory};
use super::config::SessionOptions;
use super::error::RuntimeError;
use super::executor::{Executor, Request};
use super::parallel::Parallel;
use super::plan::Observer;
use super::profile::{PlanInfo, StepProfile};
use crate::graph::{GraphInput, ValueId, build};
use crate::tensor::{DType, Shape, Tensor, TensorDesc, TensorView};

/// An input or output of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Its name.
    pub name: String,
    /// Element type; `None` if only running tells.
    pub dtype: Option<DType>,
    /// Shape, -1 for lengths that vary; `None` if only running tells.
    pub dims: Option<Vec<i64>>,
}

/// Gets the outputs of a run: position among those asked for, and contents, row-major.
pub type Consumer<'a> = &'a mut (dyn FnMut(usize, TensorView<'_>) + Send);

/// What of a run is shown.
enum Watch<'a> {
    Nothing,
    Everything(Observer<'a>),
    Some(&'a [ValueId], Observer<'a>),
}

/// A model that is ready to run.
///
/// Runs may be started from several threads at once: a plan is shared, its memory is not.
///
/// ```no_run
/// use mnnq_core::runtime::{Session, SessionOptions};
/// use mnnq_core::tensor::{Shape, TensorView};
///
/// let session = Session::open("model.mnn".as_ref(), SessionOptions::default())?;
/// let image = vec![0.0_f32; 3 * 224 * 224];
/// let input = TensorView::of(Shape::new(&[1, 3, 224, 224])?, &image)?;
/// let outputs = session.run(&[("input", input)], &[])?;
/// println!("{:?}", outputs[0].data::<f32>());
/// # Ok::<(), mnnq_core::runtime::RuntimeError>(())
/// ```
pub struct Session {
    executor: Executor,
    parallel: Parallel,
    options: SessionOptions,
    /// Names of the outputs, in the order of the file.
    outputs: Vec<String>,
    metadata: Vec<u8>,
}

impl Session {
    /// Opens a `.mnn` file. It is mapped into memory; weights that need no conversion are used where they lie.
    ///
    /// # Errors
    /// [`RuntimeError::Format`] if the file cannot be read or is broken, [`RuntimeError::Unsupported`] naming all
    /// operators and attributes that cannot be run, [`RuntimeError::Option`] for wrong options.
    pub fn open(path: &Path, options: SessionOptions) -> Result<Self, RuntimeError> {
        options.check()?;
        let model = read_file(path, &SideFile::Beside, &ReadLimits::default())?;
        Self::new(&model, options)
    }

    /// A session from the bytes of a `.mnn` file.
    ///
    /// # Errors
    /// Those of [`open`](Self::open).
    pub fn from_bytes(bytes: impl Into<bytes::Bytes>, options: SessionOptions) -> Result<Self, RuntimeError> {
        options.check()?;
        let model = read(bytes, &ReadLimits::default())?;
        Self::new(&model, options)
    }

    /// A session from a model in memory.
    ///
    /// # Errors
    /// Those of [`open`](Self::open).
    pub fn new(model: &Model, options: SessionOptions) -> Result<Self, RuntimeError> {
        options.check()?;
        let graph = build(model, &options)?;
        let outputs = graph.outputs.iter().map(|&value| graph.names[value].clone()).collect();
        let parallel = Parallel::new(options.threads)?;
        let executor = Executor::new(graph, options.clone());
        let extra = model.net().get(net::EXTRA_INFO);
        let metadata = extra.and_then(|extra| extra.get(extra_info::BUFFER)).map(|buffer| {
            let bytes = buffer.as_slice::<i8>().unwrap_or_default();
            bytes.iter().map(|&byte| byte.cast_unsigned()).collect()
        });
        Ok(Self { executor, parallel, options, outputs, metadata: metadata.unwrap_or_default() })
    }

    /// What the file keeps in `extraInfo.buffer`: a buffer whose root is a table `Extra`, or nothing.
    #[must_use]
    pub fn metadata(&self) -> &[u8] {
        &self.metadata
    }

    /// The options.
    #[must_use]
    pub fn options(&self) -> &SessionOptions {
        &self.options
    }

    /// The inputs, in the order of the file.
    #[must_use]
    pub fn inputs(&self) -> Vec<TensorInfo> {
        let info = |input: &GraphInput| TensorInfo {
            name: input.name.clone(),
            dtype: Some(input.dtype),
            dims: input.dims.clone(),
        };
        self.executor.graph().inputs.iter().map(info).collect()
    }

    /// Names of the outputs, in the order of the file.
    #[must_use]
    pub fn output_names(&self) -> &[String] {
        &self.outputs
    }

    /// The outputs, in the order of the file. Types and shapes are found by planning for two sizes of the input lengths
    /// that vary; lengths that differ between them are given as -1.
    #[must_use]
    pub fn outputs(&self) -> Vec<TensorInfo> {
        // Large sizes first: networks that shrink their input refuse small ones.
        let probes = [[64, 128], [256, 512], [1, 2]].map(|sizes| sizes.map(|size| self.output_descs(size)));
        let complete = |probe: &&[Vec<Option<TensorDesc>>; 2]| probe.iter().flatten().all(Option::is_some);
        let [one, two] = probes.iter().find(complete).unwrap_or(&probes[0]);
        let infos = self.outputs.iter().enumerate().map(|(index, name)| {
            let (a, b) = (one.get(index).copied().flatten(), two.get(index).copied().flatten());
            let dims = match (a, b) {
                (Some(a), Some(b)) if a.shape.rank() == b.shape.rank() => Some(
                    a.shape
                        .iter()
                        .zip(b.shape.iter())
                        .map(|(&a, &b)| if a == b { a as i64 } else { -1 })
                        .collect(),
                ),
                _ => None,
            };
            TensorInfo { name: name.clone(), dtype: a.or(b).map(|desc| desc.dtype), dims }
        });
        infos.collect()
    }

    /// Descriptions of the outputs if every varying input length is `length`.
    fn output_descs(&self, length: usize) -> Vec<Option<TensorDesc>> {
        let graph = self.executor.graph();
        let mut found = vec![None; graph.outputs.len()];
        let inputs: Option<Vec<TensorDesc>> = graph
            .inputs
            .iter()
            .map(|input| {
                let dims = input.dims.as_ref()?;
                let dims: Vec<usize> = dims.iter().map(|&d| usize::try_from(d).unwrap_or(length)).collect();
                Some(TensorDesc::new(input.dtype, Shape::new(&dims).ok()?))
            })
            .collect();
        let Some(inputs) = inputs else { return found };
        let request =
            Request { inputs: &inputs, known: &[], outputs: &graph.outputs, observe: false, watch: &[] };
        if let Ok(plan) = self.executor.plan_once(&request) {
            for (position, located) in &plan.results {
                found[*position] = Some(located.desc);
            }
        }
        found
    }

    /// What running on inputs of these shapes takes, found by planning. Inputs are given by name; lengths of the others
    /// are those of the file, 1 where they vary.
    ///
    /// # Errors
    /// [`RuntimeError::UnknownInput`], [`InputShape`](RuntimeError::InputShape); [`RuntimeError::Op`] if an operator
    /// cannot take the shapes.
    pub fn plan_info(&self, shapes: &[(&str, Shape)]) -> Result<PlanInfo, RuntimeError> {
        let graph = self.executor.graph();
        let given = |name: &str| shapes.iter().find(|(given, _)| *given == name).map(|(_, shape)| *shape);
        if let Some((name, _)) =
            shapes.iter().find(|(name, _)| !graph.inputs.iter().any(|input| input.name == *name))
        {
            let known = graph.inputs.iter().map(|input| input.name.clone()).collect();
            return Err(RuntimeError::UnknownInput { name: (*name).to_owned(), known });
        }
        let mut descs = Vec::with_capacity(graph.inputs.len());
        for input in &graph.inputs {
            let dims = input.dims.as_deref().unwrap_or_default();
            let default =
                || Shape::new(&dims.iter().map(|&d| usize::try_from(d).unwrap_or(1)).collect::<Vec<_>>());
            let shape = match given(&input.name) {
                Some(shape) => shape,
                None => default().map_err(|error| RuntimeError::Graph {
                    place: format!("input {:?}", input.name),
                    problem: error.to_string(),
                })?,
            };
            let desc = TensorDesc::new(input.dtype, shape);
            check_feed(input, desc)?;
            descs.push(desc);
        }
        let request =
            Request { inputs: &descs, known: &[], outputs: &graph.outputs, observe: false, watch: &[] };
        let plan = self.executor.plan_once(&request)?;
        let mut outputs: Vec<_> = self.outputs.iter().map(|name| (name.clone(), None)).collect();
        for (position, located) in &plan.results {
            outputs[*position].1 = Some(located.desc);
        }
        Ok(PlanInfo {
            arena_bytes: plan.lines * LINE_BYTES,
            multiply_adds: plan.steps.iter().map(|step| step.kernel.multiply_adds()).sum(),
            steps: plan.steps.len(),
            outputs,
            complete: plan.next.is_none(),
        })
    }

    /// Runs the model.
    ///
    /// `feeds`: every input by name, row-major. `outputs`: names of the outputs wanted, all if empty; the result
    /// has them in this order, row-major.
    ///
    /// # Errors
    /// [`RuntimeError::MissingInput`], [`UnknownInput`](RuntimeError::UnknownInput),
    /// [`InputType`](RuntimeError::InputType), [`InputShape`](RuntimeError::InputShape) or
    /// [`UnknownOutput`](RuntimeError::UnknownOutput) naming the tensor; [`RuntimeError::Op`] if an operator
    /// cannot take the shapes or contents it gets.
    pub fn run(
        &self,
        feeds: &[(&str, TensorView<'_>)],
        outputs: &[&str],
    ) -> Result<Vec<Tensor>, RuntimeError> {
        self.run_with(feeds, outputs, Watch::Nothing)
    }

    /// Runs the model and calls `consume` with the position and the contents of each output, in no particular order: for
    /// callers that have memory of their own for them. The rest is as for [`run`](Self::run).
    ///
    /// # Errors
    /// Those of [`run`](Self::run).
    pub fn run_into(
        &self,
        feeds: &[(&str, TensorView<'_>)],
        outputs: &[&str],
        consume: Consumer<'_>,
    ) -> Result<(), RuntimeError> {
        self.visit(feeds, outputs, Watch::Nothing, consume)
    }

    /// Runs the model and shows `observer` every tensor that is computed, by its name in the file: the inputs
    /// first, then in order of execution. Views are in the layout the runtime works in. Nothing is fused, so that
    /// every tensor of the file exists.
    ///
    /// # Errors
    /// Those of [`run`](Self::run).
    pub fn observe(
        &self,
        feeds: &[(&str, TensorView<'_>)],
        outputs: &[&str],
        observer: Observer<'_>,
    ) -> Result<Vec<Tensor>, RuntimeError> {
        self.run_with(feeds, outputs, Watch::Everything(observer))
    }

    /// Runs the model and shows `observer` the tensors called `names`, by their name in the file and in order of execution.
    /// Whatever does not hide them is fused as usual, so that this costs little more than [`run`](Self::run). Tensors
    /// that are constant, or that the outputs do not depend on, are not computed and not shown.
    ///
    /// # Errors
    /// Those of [`run`](Self::run); [`RuntimeError::UnknownOutput`] if the file has no tensor of such a name.
    pub fn watch(
        &self,
        feeds: &[(&str, TensorView<'_>)],
        outputs: &[&str],
        names: &[&str],
        observer: Observer<'_>,
    ) -> Result<Vec<Tensor>, RuntimeError> {
        let known = &self.executor.graph().names;
        let positions: HashMap<&str, ValueId> =
            known.iter().enumerate().map(|(value, name)| (name.as_str(), value)).collect();
        let find = |name: &&str| {
            let unknown =
                || RuntimeError::UnknownOutput { name: (*name).to_owned(), known: self.outputs.clone() };
            positions.get(name).copied().ok_or_else(unknown)
        };
        let values = names.iter().map(find).collect::<Result<Vec<ValueId>, _>>()?;
        let wanted: HashSet<&str> = names.iter().copied().collect();
        let mut filtered = |name: &str, view: TensorView<'_>| {
            if wanted.contains(name) {
                observer(name, view);
            }
        };
        self.run_with(feeds, outputs, Watch::Some(&values, &mut filtered))
    }

    fn run_with(
        &self,
        feeds: &[(&str, TensorView<'_>)],
        outputs: &[&str],
        watch: Watch<'_>,
    ) -> Result<Vec<Tensor>, RuntimeError> {
        let mut found: SmallVec<[Option<Tensor>; 4]> = SmallVec::new();
        let mut refused = None;
        self.visit(feeds, outputs, watch, &mut |position, view| match require_memory(view.bytes().len()) {
            Ok(()) => {
                found.resize((position + 1).max(found.len()), None);
                found[position] = Some(Tensor::from_view(view));
            }
            Err(error) => refused = Some(error),
        })?;
        refused.map_or(Ok(()), Err)?;
        let mut tensors = Vec::with_capacity(found.len());
        for tensor in found {
            let absent = || RuntimeError::Internal { problem: "an output was not computed".to_owned() };
            tensors.push(tensor.ok_or_else(absent)?);
        }
        Ok(tensors)
    }

    fn visit(
        &self,
        feeds: &[(&str, TensorView<'_>)],
        outputs: &[&str],
        watch: Watch<'_>,
        consume: Consumer<'_>,
    ) -> Result<(), RuntimeError> {
        let graph = self.executor.graph();
        let views = self.ordered(feeds)?;
        let descs: SmallVec<[TensorDesc; 4]> = views.iter().map(TensorView::desc).collect();
        let wanted: SmallVec<[ValueId; 4]> = if outputs.is_empty() {
            graph.outputs.iter().copied().collect()
        } else {
            outputs.iter().map(|name| self.output(name)).collect::<Result<_, _>>()?
        };
        let (observe, values, observer) = match watch {
            Watch::Nothing => (false, &[][..], None),
            Watch::Everything(observer) => (true, &[][..], Some(observer)),
            Watch::Some(values, observer) => (false, values, Some(observer)),
        };
        let request = Request { inputs: &descs, known: &[], outputs: &wanted, observe, watch: values };
        let plan = self.executor.plan(&request)?;
        let parallel = self.parallel.for_run(self.options.max_loop_iterations);
        parallel.install(|| self.executor.run(&plan, &views, &parallel, observer, consume))
    }

    fn output(&self, name: &str) -> Result<ValueId, RuntimeError> {
        let position = self.outputs.iter().position(|output| output == name);
        position
            .map(|position| self.executor.graph().outputs[position])
            .ok_or_else(|| RuntimeError::UnknownOutput { name: name.to_owned(), known: self.outputs.clone() })
    }

    /// The feeds in the order of the inputs, checked.
    fn ordered<'a>(
        &self,
        feeds: &[(&str, TensorView<'a>)],
    ) -> Result<SmallVec<[TensorView<'a>; 4]>, RuntimeError> {
        let inputs = &self.executor.graph().inputs;
        if let Some((name, _)) =
            feeds.iter().find(|(name, _)| !inputs.iter().any(|input| input.name == *name))
        {
            let known = inputs.iter().map(|input| input.name.clone()).collect();
            return Err(RuntimeError::UnknownInput { name: (*name).to_owned(), known });
        }
        inputs
            .iter()
            .map(|input| {
                let feed = feeds.iter().find(|(name, _)| *name == input.name);
                let (_, view) = feed.ok_or_else(|| RuntimeError::MissingInput {
                    name: input.name.clone(),
                    wanted: format!("{} {:?}", input.dtype, input.dims.clone().unwrap_or_default()),
                })?;
                check_feed(input, view.desc())?;
                match (!self.options.allow_nan).then(|| first_nan(view)).flatten() {
                    Some(index) => Err(RuntimeError::NanInput { name: input.name.clone(), index }),
                    None => Ok(*view),
                }
            })
            .collect()
    }

    /// What has run so far: the steps of every cached plan, in order.
    #[must_use]
    pub fn profile(&self) -> Vec<StepProfile> {
        self.executor.profile()
    }
}

/// Where the first NaN of a tensor of floats is.
fn first_nan(view: &TensorView<'_>) -> Option<usize> {
    /// Elements that are looked at together, by vector instructions.
    const RUN: usize = 1024;
    if view.desc().dtype != DType::F32 {
        return None;
    }
    let values: &[f32] = view.data();
    let run = values.chunks(RUN).position(|run| run.iter().fold(false, |found, x| found | x.is_nan()))?;
    values[run * RUN..].iter().position(|x| x.is_nan()).map(|index| run * RUN + index)
}

/// Checks type, rank and fixed lengths.
fn check_feed(input: &GraphInput, desc: TensorDesc) -> Result<(), RuntimeError> {
    if desc.dtype != input.dtype {
        let (name, wanted, got) = (input.name.clone(), input.dtype, desc.dtype.to_string());
        return Err(RuntimeError::InputType { name, wanted, got });
    }
    let Some(dims) = &input.dims else { return Ok(()) };
    let fits = |(&wanted, &got): (&i64, &usize)| wanted < 0 || usize::try_from(wanted) == Ok(got);
    if dims.len() != desc.shape.rank() || !dims.iter().zip(desc.shape.iter()).all(fits) {
        let (name, wanted, got) = (input.name.clone(), dims.clone(), Box::new(desc.shape));
        return Err(RuntimeError::InputShape { name, wanted, got });
    }
    Ok(())
}
