//! A graph with its plans: what a session and the bodies of control flow have in common.

use std::sync::{Arc, Mutex, PoisonError};

use smallvec::SmallVec;

use super::config::SessionOptions;
use super::error::RuntimeError;
use super::host;
use super::parallel::Parallel;
use super::plan::{Continuation, Frame, Key, Memory, Observer, Segment, view};
use super::planner::{PlanState, ValueFact, plan_segment};
use super::profile::StepProfile;
use crate::graph::{Graph, ValueId, find_groups};
use crate::tensor::{Tensor, TensorDesc, TensorView};

/// What a plan is looked up by.
struct PlanKey {
    inputs: Vec<TensorDesc>,
    /// Contents of inputs that are known to be the same in every run of the plan.
    known: Vec<Option<Tensor>>,
    outputs: Vec<ValueId>,
    observe: bool,
    watch: Vec<ValueId>,
}

/// What to plan for.
#[derive(Clone, Copy)]
pub(crate) struct Request<'a> {
    pub(crate) inputs: &'a [TensorDesc],
    /// Contents of inputs that are the same in every run; may be shorter than `inputs`.
    pub(crate) known: &'a [Option<Tensor>],
    /// Tensors wanted.
    pub(crate) outputs: &'a [ValueId],
    /// Whether every tensor is shown.
    pub(crate) observe: bool,
    /// Tensors that are shown.
    pub(crate) watch: &'a [ValueId],
}

/// A graph that can be run on inputs of any shapes.
pub struct Executor {
    graph: Graph,
    options: SessionOptions,
    /// Most recently used first.
    plans: Mutex<Vec<(PlanKey, Arc<Segment>)>>,
}

impl Executor {
    /// An executor of `graph`. What depends on constants only is computed here.
    #[must_use]
    pub fn new(mut graph: Graph, options: SessionOptions) -> Self {
        host::fold_constants(&mut graph, &options);
        if options.fuse {
            graph.groups = find_groups(&graph, &options);
        }
        Self { graph, options, plans: Mutex::default() }
    }

    /// The graph.
    #[must_use]
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// The plan for a request, from the cache or made now.
    pub(crate) fn plan(&self, request: &Request<'_>) -> Result<Arc<Segment>, RuntimeError> {
        let matches = |key: &PlanKey| {
            key.inputs == request.inputs
                && key.outputs == request.outputs
                && key.observe == request.observe
                && key.watch == request.watch
                && key.known == request.known
        };
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(position) = plans.iter().position(|(key, _)| matches(key)) {
            plans[..=position].rotate_right(1);
            return Ok(plans[0].1.clone());
        }
        let segment = Arc::new(self.plan_once(request)?);
        let key = PlanKey {
            inputs: request.inputs.to_vec(),
            known: request.known.to_vec(),
            outputs: request.outputs.to_vec(),
            observe: request.observe,
            watch: request.watch.to_vec(),
        };
        plans.truncate(self.options.plan_cache - 1);
        plans.insert(0, (key, segment.clone()));
        Ok(segment)
    }

    /// A plan for a request that is not kept.
    pub(crate) fn plan_once(&self, request: &Request<'_>) -> Result<Segment, RuntimeError> {
        let state = PlanState::new(
            &self.graph,
            request.inputs,
            request.known,
            request.outputs,
            (request.observe, request.watch),
        );
        plan_segment(&self.graph, &self.options, state)
    }

    /// Runs a plan. `consume` gets each output that was asked for: its position and its contents, row-major.
    pub(crate) fn run(
        &self,
        plan: &Arc<Segment>,
        feeds: &[TensorView<'_>],
        parallel: &Parallel,
        mut observer: Option<Observer<'_>>,
        consume: &mut dyn FnMut(usize, TensorView<'_>),
    ) -> Result<(), RuntimeError> {
        let mut frames: SmallVec<[Frame; 1]> = SmallVec::new();
        let mut segment = plan.clone();
        loop {
            segment.run(&mut frames, feeds, parallel, observer.as_mut())?;
            let Some(next) = &segment.next else { break };
            let owned = run_dynamic(next, &frames, feeds, parallel)?;
            if let Some(observer) = observer.as_mut() {
                let names = next.dynamic.iter().flat_map(|op| &op.outputs);
                for (&value, tensor) in names.zip(&owned) {
                    observer(&self.graph.names[value], tensor.view());
                }
            }
            if let Some(frame) = frames.last_mut() {
                frame.owned = owned;
            }
            let found = self.continuation(next, &frames, feeds)?;
            segment = found;
        }
        for frame in &frames {
            for (position, located) in &frame.segment.results {
                consume(*position, view(located, &frames, feeds));
            }
        }
        Ok(())
    }

    /// The segment that follows, from the cache or planned now.
    fn continuation(
        &self,
        next: &Continuation,
        frames: &[Frame],
        feeds: &[TensorView<'_>],
    ) -> Result<Arc<Segment>, RuntimeError> {
        let owned = frames.last().map_or(&[][..], |frame| &frame.owned);
        let needs: SmallVec<[TensorView<'_>; 4]> =
            next.needs.iter().map(|(_, located)| view(located, frames, feeds)).collect();
        let matches = |key: &Key| {
            key.values.iter().zip(&needs).all(|(tensor, view)| tensor.bytes() == view.bytes())
                && key.descs.iter().zip(owned).all(|(desc, tensor)| *desc == tensor.desc())
        };
        let mut cache = next.cache.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(position) = cache.iter().position(|(key, _)| matches(key)) {
            cache[..=position].rotate_right(1);
            return Ok(cache[0].1.clone());
        }
        let mut state = next.state.clone();
        let values: Vec<Tensor> = needs.iter().map(|&view| Tensor::from_view(view)).collect();
        for ((value, located), tensor) in next.needs.iter().zip(&values) {
            let (desc, place) = (located.desc, Some(located.place));
            state.facts[*value] = Some(ValueFact { desc, value: Some(tensor.clone()), place });
        }
        let outputs = next.dynamic.iter().flat_map(|op| &op.outputs);
        for (index, (&value, tensor)) in outputs.zip(owned).enumerate() {
            let place = Some(Memory::Owned { frame: frames.len() - 1, index }.start());
            state.facts[value] = Some(ValueFact { desc: tensor.desc(), value: None, place });
        }
        let segment = Arc::new(plan_segment(&self.graph, &self.options, state)?);
        let key = Key { values, descs: owned.iter().map(Tensor::desc).collect() };
        cache.truncate(self.options.plan_cache - 1);
        cache.insert(0, (key, segment.clone()));
        Ok(segment)
    }

    /// What has run so far, step by step, of all plans in the cache.
    pub(crate) fn profile(&self) -> Vec<StepProfile> {
        let plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        let mut profile = Vec::new();
        for (_, segment) in plans.iter() {
            profile_segment(segment, &mut profile);
        }
        profile
    }
}

fn profile_segment(segment: &Segment, profile: &mut Vec<StepProfile>) {
    profile.extend(segment.steps.iter().map(StepProfile::of));
    if let Some(next) = &segment.next {
        for (_, segment) in next.cache.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            profile_segment(segment, profile);
        }
    }
}

/// Runs the operators at the end of a segment whose output shapes only running tells.
fn run_dynamic(
    next: &Continuation,
    frames: &[Frame],
    feeds: &[TensorView<'_>],
    parallel: &Parallel,
) -> Result<Vec<Tensor>, RuntimeError> {
    let mut owned = Vec::new();
    for op in &next.dynamic {
        let inputs: SmallVec<[Option<TensorView<'_>>; 8]> = op
            .inputs
            .iter()
            .map(|input| input.as_ref().map(|located| view(located, frames, feeds)))
            .collect();
        let tensors = op.operator.evaluate(&inputs, parallel);
        let tensors = tensors.map_err(|source| RuntimeError::Op {
            node: op.node.clone(),
            op_type: op.op_type.clone(),
            source,
        })?;
        if tensors.len() != op.outputs.len() {
            let problem =
                format!("{} gives {} outputs instead of {}", op.node, tensors.len(), op.outputs.len());
            return Err(RuntimeError::Internal { problem });
        }
        owned.extend(tensors);
    }
    Ok(owned)
}
