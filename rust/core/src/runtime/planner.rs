//! From a graph and input shapes to a plan: which nodes run, with which shapes, fused how.
//!
//! This file decides what runs; [`lower`](super::lower) decides layouts and memory.

use std::sync::Arc;

use smallvec::SmallVec;

use super::config::SessionOptions;
use super::error::RuntimeError;
use super::host;
use super::lower;
use super::plan::{Memory, Place, Segment};
use crate::graph::{Graph, Node, ValueId};
use crate::ops::{AsEpilogue, CodeStep, Epilogue, EpilogueStep, Fact, Facts, InferError, OpError, Operator};
use crate::tensor::{DType, Tensor, TensorDesc};

/// What is known of a tensor while planning.
#[derive(Debug, Clone)]
pub(crate) struct ValueFact {
    pub(crate) desc: TensorDesc,
    /// The contents, row-major, if known.
    pub(crate) value: Option<Tensor>,
    /// Where it is, if an earlier segment or the caller made it.
    pub(crate) place: Option<Place>,
}

/// What is left to plan, and what is known so far.
#[derive(Clone)]
pub(crate) struct PlanState {
    pub(crate) facts: Vec<Option<ValueFact>>,
    /// Nodes still to be planned.
    pub(crate) todo: Vec<usize>,
    /// Outputs asked for that no segment has given yet: position, tensor.
    pub(crate) wanted: Vec<(usize, ValueId)>,
    /// Number of segments before.
    pub(crate) depth: usize,
    /// Whether to keep and show every tensor.
    pub(crate) observe: bool,
    /// Tensors to keep and show; what is fused otherwise stays fused.
    pub(crate) watch: Vec<ValueId>,
}

impl PlanState {
    /// The start: inputs of these descriptions, perhaps with contents.
    pub(crate) fn new(
        graph: &Graph,
        inputs: &[TensorDesc],
        known: &[Option<Tensor>],
        outputs: &[ValueId],
        (observe, watch): (bool, &[ValueId]),
    ) -> Self {
        let mut facts = vec![None; graph.names.len()];
        for (index, (input, desc)) in graph.inputs.iter().zip(inputs).enumerate() {
            let value = known.get(index).cloned().flatten();
            facts[input.value] =
                Some(ValueFact { desc: *desc, value, place: Some(Memory::Input(index).start()) });
        }
        for (&value, tensor) in &graph.constants {
            facts[value] = Some(ValueFact { desc: tensor.desc(), value: Some(tensor.clone()), place: None });
        }
        let needed = graph.needed(outputs);
        Self {
            facts,
            todo: (0..graph.nodes.len()).filter(|&index| needed[index]).collect(),
            wanted: outputs.iter().copied().enumerate().collect(),
            depth: 0,
            observe,
            watch: watch.to_vec(),
        }
    }
}

/// A node that runs in the segment being planned.
pub(crate) struct Planned {
    pub(crate) operator: Arc<dyn Operator>,
    pub(crate) node: usize,
    pub(crate) inputs: SmallVec<[Option<ValueId>; 4]>,
    /// Inputs of the operator itself; those behind belong to the epilogue.
    pub(crate) own_inputs: usize,
    pub(crate) outputs: SmallVec<[ValueId; 2]>,
    pub(crate) epilogue: Epilogue,
    /// The input that input 0 is multiplied by.
    pub(crate) input_scale: Option<usize>,
}

/// Why a segment ends before the graph does.
#[derive(Default)]
pub(crate) struct Cut {
    /// Tensors whose contents must be known to go on.
    pub(crate) needs: Vec<ValueId>,
    /// Nodes to be run to know their output shapes.
    pub(crate) dynamic: Vec<usize>,
    /// Nodes that wait.
    pub(crate) deferred: Vec<usize>,
}

/// Plans the next segment.
///
/// # Errors
/// [`RuntimeError::Op`] naming the node whose inputs do not fit it, [`RuntimeError::Graph`] if a tensor that is
/// needed is never produced.
pub(crate) fn plan_segment(
    graph: &Graph,
    options: &SessionOptions,
    mut state: PlanState,
) -> Result<Segment, RuntimeError> {
    let (mut planned, cut) = infer_all(graph, options, &mut state)?;
    prune(graph, &mut planned, &cut, &state);
    if options.fuse && !state.observe {
        fuse(graph, &mut planned, &cut, &mut state);
    }
    lower::segment(graph, options, planned, cut, state)
}

fn op_error(node: &Node, source: OpError) -> RuntimeError {
    RuntimeError::Op { node: node.name.clone(), op_type: node.op_type.clone(), source }
}

/// Infers shapes, computes what is known already, and finds where the segment must end.
fn infer_all(
    graph: &Graph,
    options: &SessionOptions,
    state: &mut PlanState,
) -> Result<(Vec<Planned>, Cut), RuntimeError> {
    let (mut planned, mut cut) = (Vec::new(), Cut::default());
    for index in std::mem::take(&mut state.todo) {
        let node = &graph.nodes[index];
        if node.inputs.iter().flatten().any(|&value| state.facts[value].is_none()) {
            cut.deferred.push(index);
            continue;
        }
        if let Some(tensors) = known_outputs(node, options, &state.facts)? {
            for (&value, tensor) in node.outputs.iter().zip(tensors) {
                state.facts[value] =
                    Some(ValueFact { desc: tensor.desc(), value: Some(tensor), place: None });
            }
            continue;
        }
        let facts = facts_of(&node.inputs, &state.facts);
        let inferred = node.operator.infer(&Facts::new(&facts));
        drop(facts);
        match inferred {
            Ok(descs) if descs.len() == node.outputs.len() => {
                for (&value, desc) in node.outputs.iter().zip(&descs) {
                    let desc = TensorDesc::new(desc.dtype, desc.shape);
                    state.facts[value] = Some(ValueFact { desc, value: None, place: None });
                }
                planned.push(Planned {
                    operator: node.operator.clone(),
                    node: index,
                    inputs: node.inputs.iter().copied().collect(),
                    own_inputs: node.inputs.len(),
                    outputs: node.outputs.iter().copied().collect(),
                    epilogue: Epilogue::default(),
                    input_scale: None,
                });
            }
            Ok(descs) => {
                let (wanted, got) = (descs.len(), node.outputs.len());
                return Err(op_error(node, OpError::OutputCount { wanted, got }));
            }
            Err(InferError::NeedsValue(input)) => {
                cut.needs.extend(node.inputs.get(input).copied().flatten());
                cut.deferred.push(index);
            }
            Err(InferError::Dynamic) => cut.dynamic.push(index),
            Err(InferError::Op(source)) => return Err(op_error(node, source)),
        }
    }
    cut.needs.sort_unstable();
    cut.needs.dedup();
    if let (Some(&stuck), true, true) = (cut.deferred.first(), cut.needs.is_empty(), cut.dynamic.is_empty()) {
        let node = &graph.nodes[stuck];
        let missing = node.inputs.iter().flatten().find(|&&value| state.facts[value].is_none());
        let name = missing.and_then(|&value| graph.names.get(value)).cloned().unwrap_or_default();
        return Err(RuntimeError::Graph {
            place: format!("{} {:?}", node.op_type, node.name),
            problem: format!("its input {name:?} is not produced before it"),
        });
    }
    let finished = cut.deferred.is_empty() && cut.dynamic.is_empty();
    if let Some((_, value)) = state.wanted.iter().find(|(_, v)| finished && state.facts[*v].is_none()) {
        let place = format!("output {:?}", graph.names[*value]);
        return Err(RuntimeError::Graph { place, problem: "is produced by no operator".to_owned() });
    }
    Ok((planned, cut))
}

/// The inputs of a node as the operator sees them.
pub(crate) fn facts_of<'a>(
    inputs: &[Option<ValueId>],
    facts: &'a [Option<ValueFact>],
) -> SmallVec<[Option<Fact<'a>>; 4]> {
    inputs
        .iter()
        .map(|value| {
            let fact = facts[(*value)?].as_ref()?;
            Some(Fact { desc: fact.desc, value: fact.value.as_ref() })
        })
        .collect()
}

/// The contents of the outputs, if they can be known now and are small.
fn known_outputs(
    node: &Node,
    options: &SessionOptions,
    facts: &[Option<ValueFact>],
) -> Result<Option<Vec<Tensor>>, RuntimeError> {
    let views = facts_of(&node.inputs, facts);
    if let Some(folded) = node.operator.fold(&Facts::new(&views)) {
        return Ok(Some(folded));
    }
    let known = |fact: &Option<Fact<'_>>| fact.is_none_or(|fact| fact.value.is_some());
    if !views.iter().all(known) {
        return Ok(None);
    }
    let inputs: Vec<Option<Tensor>> =
        views.iter().map(|fact| fact.and_then(|fact| fact.value.cloned())).collect();
    match host::evaluate(node.operator.as_ref(), &inputs, options, host::PLAN_LIMIT) {
        Ok(tensors) => Ok(tensors),
        Err(InferError::Op(source)) => Err(op_error(node, source)),
        Err(InferError::NeedsValue(_) | InferError::Dynamic) => Ok(None),
    }
}

/// Marks the tensors that must outlive the segment.
fn kept(graph: &Graph, cut: &Cut, state: &PlanState) -> Vec<bool> {
    let mut kept = vec![false; graph.names.len()];
    for &(_, value) in &state.wanted {
        kept[value] = true;
    }
    for &value in &state.watch {
        kept[value] = true;
    }
    for &value in &cut.needs {
        kept[value] = true;
    }
    for &index in cut.deferred.iter().chain(&cut.dynamic) {
        for &value in graph.nodes[index].inputs.iter().flatten() {
            kept[value] = true;
        }
    }
    kept
}

/// Drops nodes whose outputs nobody uses (anymore, now that shapes are known).
fn prune(graph: &Graph, planned: &mut Vec<Planned>, cut: &Cut, state: &PlanState) {
    let mut used = kept(graph, cut, state);
    let mut keep = vec![false; planned.len()];
    for (index, node) in planned.iter().enumerate().rev() {
        keep[index] = state.observe || node.outputs.iter().any(|&value| used[value]);
        if keep[index] {
            for &value in node.inputs.iter().flatten() {
                used[value] = true;
            }
        }
    }
    let mut keep = keep.into_iter();
    planned.retain(|_| keep.next().unwrap_or(false));
}

/// Runs grouped convolutions that are spelt out as one, where nobody needs what is in between.
fn join_groups(graph: &Graph, planned: &mut Vec<Planned>, kept: &[bool]) {
    if graph.groups.is_empty() {
        return;
    }
    let mut positions = vec![None; graph.nodes.len()];
    for (position, node) in planned.iter().enumerate() {
        positions[node.node] = Some(position);
    }
    let mut gone = vec![false; planned.len()];
    for group in &graph.groups {
        let pieces = group.parts.iter().chain([&group.split]);
        let hidden = |&node: &usize| {
            positions[node].is_some() && graph.nodes[node].outputs.iter().all(|&value| !kept[value])
        };
        let (Some(concat), true) = (positions[group.concat], pieces.clone().all(hidden)) else { continue };
        pieces.filter_map(|&node| positions[node]).for_each(|position| gone[position] = true);
        planned[concat] = Planned {
            operator: group.operator.clone(),
            node: group.parts[0],
            inputs: graph.nodes[group.split].inputs[..1].iter().copied().collect(),
            own_inputs: 1,
            outputs: planned[concat].outputs.clone(),
            epilogue: Epilogue::default(),
            input_scale: None,
        };
    }
    let mut gone = gone.into_iter();
    planned.retain(|_| !gone.next().unwrap_or(false));
}

/// Lets element-wise nodes become the epilogue of the node before them.
fn fuse(graph: &Graph, planned: &mut Vec<Planned>, cut: &Cut, state: &mut PlanState) {
    let kept = kept(graph, cut, state);
    join_groups(graph, planned, &kept);
    let mut uses: Vec<SmallVec<[usize; 2]>> = vec![SmallVec::new(); graph.names.len()];
    let mut producer: Vec<Option<usize>> = vec![None; graph.names.len()];
    for (index, node) in planned.iter().enumerate() {
        for &value in node.inputs.iter().flatten() {
            uses[value].push(index);
        }
        for &value in &node.outputs {
            producer[value] = Some(index);
        }
    }
    let mut gone = vec![false; planned.len()];
    for index in 0..planned.len() {
        if let Some(gate) = gate_of(planned, index, state, &producer, &uses, &kept) {
            for &value in planned[gate].inputs.iter().flatten() {
                uses[value].iter_mut().filter(|user| **user == gate).for_each(|user| *user = index);
            }
            gone[gate] = true;
        }
    }
    for index in 0..planned.len() {
        if gone[index] || !planned[index].operator.accepts_epilogue() || planned[index].outputs.len() != 1 {
            continue;
        }
        loop {
            let value = planned[index].outputs[0];
            let [consumer] = uses[value][..] else { break };
            if kept[value] {
                break;
            }
            let Some(other) = epilogue_of(planned, index, consumer, state, &producer) else { break };
            if let Some(other) = other {
                uses[other].iter_mut().filter(|user| **user == consumer).for_each(|user| *user = index);
            }
            let output = planned[consumer].outputs[0];
            planned[index].outputs[0] = output;
            producer[output] = Some(index);
            gone[consumer] = true;
        }
    }
    let mut gone = gone.into_iter();
    planned.retain(|_| !gone.next().unwrap_or(false));
}

/// Lets node `index` multiply its input by a factor per image and channel itself, if a node does only that for it;
/// gives that node.
fn gate_of(
    planned: &mut [Planned],
    index: usize,
    state: &PlanState,
    producer: &[Option<usize>],
    uses: &[SmallVec<[usize; 2]>],
    kept: &[bool],
) -> Option<usize> {
    let node = &planned[index];
    let value = node.inputs.first().copied().flatten()?;
    if node.own_inputs != 1
        || kept[value]
        || uses[value][..] != [index]
        || !node.operator.accepts_input_scale()
    {
        return None;
    }
    let gate = producer[value]?;
    let &[Some(a), Some(b)] = &planned[gate].inputs[..] else { return None };
    if planned[gate].operator.as_epilogue() != Some(AsEpilogue::Mul(None)) {
        return None;
    }
    let desc = |value: ValueId| state.facts[value].as_ref().map(|fact| fact.desc);
    let full = desc(value).filter(|desc| desc.dtype == DType::F32)?.shape;
    let &[batch, channels, _, _] = full.dims() else { return None };
    let factor = [batch, channels, 1, 1];
    let (data, scale) = [(a, b), (b, a)].into_iter().find(|&(data, scale)| {
        desc(data).is_some_and(|d| d.shape == full) && desc(scale).is_some_and(|d| d.shape.dims() == factor)
    })?;
    let node = &mut planned[index];
    node.inputs[0] = Some(data);
    node.input_scale = Some(node.inputs.len());
    node.inputs.push(Some(scale));
    Some(gate)
}

/// Appends node `consumer` to the epilogue of node `index`, if it fits. `Some(Some(v))`: it reads `v` as well.
fn epilogue_of(
    planned: &mut [Planned],
    index: usize,
    consumer: usize,
    state: &PlanState,
    producer: &[Option<usize>],
) -> Option<Option<ValueId>> {
    let value = planned[index].outputs[0];
    let next = &planned[consumer];
    if !next.epilogue.is_empty() || next.outputs.len() != 1 {
        return None;
    }
    let desc = |value: ValueId| state.facts[value].as_ref().map(|fact| (fact.desc.dtype, fact.desc.shape));
    let kind = next.operator.as_epilogue()?;
    let codes = matches!(kind, AsEpilogue::AddCodes(_) | AsEpilogue::TableCodes(_));
    let wanted = if codes { DType::I8 } else { DType::F32 };
    let shape = desc(value).filter(|(dtype, _)| *dtype == wanted)?;
    if desc(next.outputs[0]) != Some(shape) {
        return None;
    }
    if let AsEpilogue::Activation(_) | AsEpilogue::TableCodes(_) = kind {
        // Further inputs, if any, are parameters that the activation already contains.
        if next.inputs.first() != Some(&Some(value)) {
            return None;
        }
        let epilogue = &mut planned[index].epilogue;
        match kind {
            AsEpilogue::TableCodes(table) => epilogue.codes.push(CodeStep::Table(table)),
            AsEpilogue::Activation(activation) => epilogue.steps.push(EpilogueStep::Activation(activation)),
            _ => return None,
        }
        return Some(None);
    }
    if codes && !planned[index].epilogue.codes.is_empty() {
        return None;
    }
    let next = &planned[consumer];
    let other = match next.inputs[..] {
        [Some(a), Some(b)] if a == value => b,
        [Some(a), Some(b)] if b == value => a,
        _ => return None,
    };
    let first = next.inputs[0] == Some(value);
    let ready = producer[other].is_none_or(|producer| producer < index);
    if other == value || desc(other) != Some(shape) || !ready {
        return None;
    }
    let node = &mut planned[index];
    let input = node.inputs.len();
    node.inputs.push(Some(other));
    let (step, activation) = match kind {
        AsEpilogue::Mul(activation) => (EpilogueStep::Mul { input }, activation),
        AsEpilogue::Add(activation) => (EpilogueStep::Add { input }, activation),
        AsEpilogue::AddCodes(how) => {
            let how = if first { how } else { how.swapped() };
            node.epilogue.codes.push(CodeStep::Add { input, how });
            return Some(Some(other));
        }
        AsEpilogue::Activation(_) | AsEpilogue::TableCodes(_) => return None,
    };
    node.epilogue.steps.push(step);
    node.epilogue.steps.extend(activation.map(EpilogueStep::Activation));
    Some(Some(other))
}
