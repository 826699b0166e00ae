//! From planned nodes to steps: layouts, conversions, aliases, kernels, memory.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::AtomicU64;

use smallvec::SmallVec;

use super::config::SessionOptions;
use super::error::RuntimeError;
use super::host;
use super::lifetimes::{Lifetimes, Use};
use super::plan::{
    Continuation, DynamicOp, Located, Memory, Piece, Place, Role, Segment, Step, StepInput, Tap,
};
use super::planner::{Cut, PlanState, Planned, ValueFact, facts_of};
use crate::graph::{Graph, ValueId};
use crate::ops::{Facts, Kernel, Layouts, OpError, PrepareContext, copy_kernel};
use crate::tensor::{Layout, Tensor, TensorDesc};

/// A tensor in memory: a description and bytes of a storage.
#[derive(Debug, Clone, Copy)]
struct Physical {
    desc: TensorDesc,
    storage: Storage,
    /// Bytes from the start of the storage.
    offset: usize,
}

#[derive(Debug, Clone, Copy)]
enum Storage {
    /// Memory of this segment's arena, by number.
    Local(usize),
    /// Somebody else's memory.
    Outside(Place),
}

/// A step whose memory is not placed yet.
struct Draft {
    kernel: Box<dyn Kernel>,
    inputs: SmallVec<[Option<Physical>; 4]>,
    outputs: SmallVec<[Physical; 2]>,
    candidates: &'static [usize],
    node: String,
    op_type: String,
}

struct Lowering<'a> {
    graph: &'a Graph,
    options: &'a SessionOptions,
    state: PlanState,
    drafts: Vec<Draft>,
    constants: Vec<Tensor>,
    /// Where each tensor first is.
    home: HashMap<ValueId, Physical>,
    /// The same in other layouts.
    converted: HashMap<(ValueId, Layout), Physical>,
    /// Bytes of each local storage.
    sizes: Vec<usize>,
    taps: Vec<(usize, ValueId, Physical)>,
}

/// Builds a segment from its nodes.
///
/// # Errors
/// [`RuntimeError::Op`] if a kernel cannot be prepared.
pub(super) fn segment(
    graph: &Graph,
    options: &SessionOptions,
    planned: Vec<Planned>,
    cut: Cut,
    state: PlanState,
) -> Result<Segment, RuntimeError> {
    let mut lowering = Lowering {
        graph,
        options,
        state,
        drafts: Vec::with_capacity(planned.len()),
        constants: Vec::new(),
        home: HashMap::new(),
        converted: HashMap::new(),
        sizes: Vec::new(),
        taps: Vec::new(),
    };
    if lowering.state.observe && lowering.state.depth == 0 {
        for input in &graph.inputs {
            let physical = lowering.physical(input.value)?;
            lowering.taps.push((0, input.value, physical));
        }
    }
    for node in planned {
        lowering.node(node)?;
    }
    lowering.finish(cut)
}

impl Lowering<'_> {
    fn op_error(&self, node: usize) -> impl Fn(OpError) -> RuntimeError + use<> {
        let node = &self.graph.nodes[node];
        let (name, op_type) = (node.name.clone(), node.op_type.clone());
        move |source| RuntimeError::Op { node: name.clone(), op_type: op_type.clone(), source }
    }

    fn fact(&self, value: ValueId) -> Result<&ValueFact, RuntimeError> {
        self.state.facts[value].as_ref().ok_or_else(|| RuntimeError::Internal {
            problem: format!("tensor {:?} is used before it is planned", self.graph.names[value]),
        })
    }

    fn local(&mut self, desc: TensorDesc) -> Physical {
        self.sizes.push(desc.byte_len());
        Physical { desc, storage: Storage::Local(self.sizes.len() - 1), offset: 0 }
    }

    fn constant(&mut self, tensor: Tensor) -> Physical {
        let desc = tensor.desc();
        self.constants.push(tensor);
        let place = Memory::Const { frame: self.state.depth, index: self.constants.len() - 1 }.start();
        Physical { desc, storage: Storage::Outside(place), offset: 0 }
    }

    /// Where a tensor is.
    fn physical(&mut self, value: ValueId) -> Result<Physical, RuntimeError> {
        if let Some(&physical) = self.home.get(&value) {
            return Ok(physical);
        }
        let fact = self.fact(value)?;
        let physical = match (&fact.value, fact.place) {
            (_, Some(place)) => Physical { desc: fact.desc, storage: Storage::Outside(place), offset: 0 },
            (Some(tensor), None) => {
                let tensor = tensor.clone();
                self.constant(tensor)
            }
            (None, None) => {
                let problem = format!("tensor {:?} has no memory", self.graph.names[value]);
                return Err(RuntimeError::Internal { problem });
            }
        };
        self.home.insert(value, physical);
        Ok(physical)
    }

    /// A tensor in this layout, converted if need be.
    fn in_layout(&mut self, value: ValueId, layout: Layout) -> Result<Physical, RuntimeError> {
        let physical = self.physical(value)?;
        let desc = physical.desc.with_layout(layout);
        if physical.desc.layout == layout || Layout::same_bytes(&desc.shape) {
            return Ok(Physical { desc, ..physical });
        }
        if let Some(&converted) = self.converted.get(&(value, layout)) {
            return Ok(converted);
        }
        let known = self.fact(value)?.value.clone();
        let converted = if let Some(tensor) = known {
            let tensor = host::converted(tensor.view(), desc).map_err(|error| RuntimeError::Internal {
                problem: format!("converting {:?}: {error}", self.graph.names[value]),
            })?;
            self.constant(tensor)
        } else {
            let output = self.local(desc);
            self.drafts.push(Draft {
                kernel: copy_kernel(physical.desc, desc),
                inputs: smallvec::smallvec![Some(physical)],
                outputs: smallvec::smallvec![output],
                candidates: &[],
                node: self.graph.names[value].clone(),
                op_type: "layout".to_owned(),
            });
            output
        };
        self.converted.insert((value, layout), converted);
        Ok(converted)
    }

    /// Decides layouts, prepares the kernel and appends the step.
    fn node(&mut self, node: Planned) -> Result<(), RuntimeError> {
        let op_error = self.op_error(node.node);
        let mut outputs: SmallVec<[TensorDesc; 2]> = node
            .outputs
            .iter()
            .map(|&value| self.fact(value).map(|fact| fact.desc))
            .collect::<Result<_, _>>()?;
        let layouts = self.layouts(&node, &outputs)?;
        for (desc, layout) in outputs.iter_mut().zip(&layouts.outputs) {
            desc.layout = if desc.shape.rank() < 3 { Layout::Plain } else { *layout };
        }
        let residual = outputs.first().map_or(Layout::Plain, |desc| desc.layout);
        let mut inputs: SmallVec<[Option<Physical>; 4]> = SmallVec::new();
        for (index, value) in node.inputs.iter().enumerate() {
            let wish = match layouts.inputs.get(index) {
                _ if index >= node.own_inputs => Some(residual),
                Some(wish) => *wish,
                None => Some(Layout::Plain),
            };
            inputs.push(match (value, wish) {
                (None, _) => None,
                (Some(value), None) => Some(self.physical(*value)?),
                (Some(value), Some(layout)) => Some(self.in_layout(*value, layout)?),
            });
        }
        let mut known = facts_of(&node.inputs, &self.state.facts);
        for (fact, input) in known.iter_mut().zip(&inputs) {
            if let (Some(fact), Some(input)) = (fact, input) {
                fact.desc = input.desc;
            }
        }
        let facts = Facts::new(&known);
        let aliases = if node.epilogue.is_empty() { node.operator.alias(&facts, &outputs) } else { None };
        let prepared = if aliases.is_some() {
            None
        } else {
            let (epilogue, options) = (&node.epilogue, self.options);
            let input_scale = node.input_scale;
            let context = PrepareContext { inputs: facts, outputs: &outputs, epilogue, input_scale, options };
            Some(node.operator.prepare(&context).map_err(op_error)?)
        };
        drop(known);
        let mut physical: SmallVec<[Physical; 2]> = SmallVec::new();
        for (index, desc) in outputs.iter().enumerate() {
            let alias = aliases.as_ref().and_then(|aliases| aliases.get(index));
            physical.push(match alias.and_then(|a| Some((a, inputs.get(a.input).copied().flatten()?))) {
                Some((alias, source)) => {
                    let offset = source.offset + alias.offset * desc.dtype.size();
                    Physical { desc: *desc, storage: source.storage, offset }
                }
                None => self.local(*desc),
            });
        }
        if let Some(kernel) = prepared {
            let source = &self.graph.nodes[node.node];
            self.drafts.push(Draft {
                kernel,
                inputs,
                outputs: physical.clone(),
                candidates: node.operator.in_place(),
                node: source.name.clone(),
                op_type: source.op_type.clone(),
            });
        }
        for (&value, physical) in node.outputs.iter().zip(&physical) {
            self.home.insert(value, *physical);
            if let Some(fact) = self.state.facts[value].as_mut() {
                fact.desc = physical.desc;
            }
            if self.state.observe {
                self.taps.push((self.drafts.len(), value, *physical));
            }
        }
        Ok(())
    }

    fn layouts(&mut self, node: &Planned, outputs: &[TensorDesc]) -> Result<Layouts, RuntimeError> {
        let own = &node.inputs[..node.own_inputs];
        for value in own.iter().flatten() {
            let desc = self.physical(*value)?.desc;
            if let Some(fact) = self.state.facts[*value].as_mut() {
                fact.desc = desc;
            }
        }
        let facts = facts_of(own, &self.state.facts);
        Ok(node.operator.layouts(&Facts::new(&facts), outputs))
    }

    /// Places everything and closes the segment.
    fn finish(mut self, cut: Cut) -> Result<Segment, RuntimeError> {
        let mut results = Vec::new();
        let mut known_results = Vec::new();
        let wanted = std::mem::take(&mut self.state.wanted);
        for (position, value) in wanted {
            let Some(fact) = self.state.facts[value].as_ref() else {
                self.state.wanted.push((position, value));
                continue;
            };
            known_results.extend(fact.value.clone().map(|tensor| (position, tensor)));
            results.push((position, self.in_layout(value, Layout::Plain)?));
        }
        let mut needs = Vec::new();
        for &value in &cut.needs {
            needs.push((value, self.in_layout(value, Layout::Plain)?));
        }
        let mut live: HashMap<ValueId, Physical> = HashMap::new();
        for &index in &cut.deferred {
            for &value in self.graph.nodes[index].inputs.iter().flatten() {
                let fact = self.state.facts[value].as_ref();
                if fact.is_some_and(|fact| fact.value.is_none()) {
                    live.insert(value, self.physical(value)?);
                }
            }
        }
        let mut dynamic = Vec::new();
        for &index in &cut.dynamic {
            let mut inputs = Vec::new();
            for &value in &self.graph.nodes[index].inputs {
                inputs.push(value.map(|value| self.in_layout(value, Layout::Plain)).transpose()?);
            }
            dynamic.push((index, inputs));
        }
        let outlive = results.iter().map(|(_, p)| p).chain(needs.iter().map(|(_, p)| p)).chain(live.values());
        let outlive = outlive.chain(dynamic.iter().flat_map(|(_, inputs)| inputs.iter().flatten()));
        let memory = self.place(outlive.copied().collect());
        let depth = self.state.depth;
        let locate = |physical: &Physical| {
            let base = match physical.storage {
                Storage::Outside(place) => place,
                Storage::Local(storage) => {
                    Place { memory: Memory::Arena { frame: depth }, offset: memory.byte_offset(storage) }
                }
            };
            let place = Place { offset: base.offset + physical.offset, ..base };
            Located { place, desc: physical.desc }
        };
        let results = results.iter().map(|(position, physical)| (*position, locate(physical))).collect();
        let needs: Vec<_> = needs.iter().map(|(value, physical)| (*value, locate(physical))).collect();
        for (value, physical) in &live {
            let located = locate(physical);
            self.state.facts[*value] =
                Some(ValueFact { desc: located.desc, value: None, place: Some(located.place) });
        }
        let dynamic: Vec<DynamicOp> = dynamic
            .into_iter()
            .map(|(index, inputs)| {
                let node = &self.graph.nodes[index];
                DynamicOp {
                    operator: node.operator.clone(),
                    inputs: inputs.iter().map(|input| input.as_ref().map(&locate)).collect(),
                    outputs: node.outputs.clone(),
                    node: node.name.clone(),
                    op_type: node.op_type.clone(),
                }
            })
            .collect();
        let taps = self.taps.iter().map(|(after, value, physical)| Tap {
            after: *after,
            name: self.graph.names[*value].clone(),
            tensor: locate(physical),
        });
        let taps = taps.collect();
        let steps = self.drafts.drain(..).enumerate().map(|(i, draft)| step(draft, i, &memory)).collect();
        let next = (!cut.deferred.is_empty() || !dynamic.is_empty()).then(|| {
            self.state.todo = cut.deferred;
            self.state.depth += 1;
            Continuation { needs, dynamic, state: self.state, cache: Mutex::default() }
        });
        let (constants, lines) = (self.constants, memory.lines());
        Ok(Segment { steps, constants, lines, arenas: Mutex::default(), results, known_results, taps, next })
    }

    /// Lifetimes, in-place decisions and offsets.
    fn place(&self, outlive: Vec<Physical>) -> Lifetimes {
        let local = |physical: &Physical| match physical.storage {
            Storage::Local(storage) => Some(storage),
            Storage::Outside(_) => None,
        };
        let mut memory = Lifetimes::new(&self.sizes);
        for (index, draft) in self.drafts.iter().enumerate() {
            for output in draft.outputs.iter().filter_map(local) {
                memory.produce(output, index);
            }
            for input in draft.inputs.iter().flatten().filter_map(local) {
                memory.consume(input, index);
            }
            memory.scratch(index, draft.kernel.scratch());
        }
        for (after, _, physical) in &self.taps {
            if let Some(storage) = local(physical) {
                memory.consume(storage, after.saturating_sub(1));
            }
        }
        outlive.iter().filter_map(local).for_each(|storage| memory.keep(storage));
        for (index, draft) in self.drafts.iter().enumerate() {
            let Some(output) = draft.outputs.first() else { continue };
            let Some(target) = local(output) else { continue };
            for &candidate in draft.candidates {
                let Some(input) = draft.inputs.get(candidate).copied().flatten() else { continue };
                let Some(source) = local(&input) else { continue };
                let shared = draft.inputs.iter().flatten().filter_map(local);
                let alone = shared.filter(|&other| memory.same(other, source)).count() == 1;
                let fits = input.offset == 0
                    && input.desc.byte_len() == output.desc.byte_len()
                    && input.desc.layout == output.desc.layout;
                if alone && fits && memory.take_over(target, source, index, candidate) {
                    break;
                }
            }
        }
        memory.assign_offsets();
        memory
    }
}

fn step(draft: Draft, index: usize, memory: &Lifetimes) -> Step {
    let in_place = memory.in_place(index);
    let mut pieces: SmallVec<[(Piece, Use); 6]> = SmallVec::new();
    let mut add = |used: Use, role: Role| {
        let (start, lines) = memory.range(used);
        if !pieces.iter().any(|(piece, _)| piece.start == start) {
            pieces.push((Piece { start, lines, role }, used));
        }
    };
    for (position, output) in draft.outputs.iter().enumerate() {
        if let Storage::Local(storage) = output.storage {
            add(Use::Storage(storage), Role::Output(position));
        }
    }
    let scratch = draft.kernel.scratch();
    if scratch > 0 {
        add(Use::Scratch(index), Role::Scratch);
    }
    for (position, input) in draft.inputs.iter().enumerate() {
        if let Some(Physical { storage: Storage::Local(storage), .. }) = input
            && in_place != Some(position)
        {
            add(Use::Storage(*storage), Role::Shared);
        }
    }
    pieces.sort_by_key(|(piece, _)| piece.start);
    let inputs = draft
        .inputs
        .iter()
        .enumerate()
        .map(|(position, input)| match input {
            None => StepInput::Absent,
            Some(_) if in_place == Some(position) => StepInput::Absent,
            Some(Physical { desc, storage: Storage::Local(storage), offset }) => {
                let start = memory.range(Use::Storage(*storage)).0;
                let piece = pieces.iter().position(|(piece, _)| piece.start == start).unwrap_or_default();
                StepInput::Local { piece, offset: *offset, desc: *desc }
            }
            Some(Physical { desc, storage: Storage::Outside(place), offset }) => {
                let place = Place { offset: place.offset + offset, ..*place };
                StepInput::Far(Located { place, desc: *desc })
            }
        })
        .collect();
    Step {
        kernel: draft.kernel,
        inputs,
        outputs: draft.outputs.iter().map(|output| output.desc).collect(),
        in_place,
        pieces: pieces.into_iter().map(|(piece, _)| piece).collect(),
        scratch,
        node: draft.node,
        op_type: draft.op_type,
        nanoseconds: AtomicU64::new(0),
        runs: AtomicU64::new(0),
    }
}
