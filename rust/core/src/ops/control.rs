//! Control flow: `If`, `While`. Bodies are graphs with plans and memory of their own.

use std::borrow::Cow;
use std::sync::Arc;

use mnnq_format::model::Table;
use mnnq_format::schema::{TableKind, if_param, string_vec, while_param};
use smallvec::SmallVec;

use super::error::{OpError, OpResult};
use super::loops;
use super::operator::{Facts, InferError, InferResult, Kernel, Operator, PrepareContext, StepIo};
use super::registry::{OpSource, Subgraphs};
use super::while_loop::While;
use crate::runtime::arena::require_memory;
use crate::runtime::error::RuntimeError;
use crate::runtime::executor::{Executor, Request};
use crate::runtime::parallel::Parallel;
use crate::runtime::plan::Segment;
use crate::tensor::{DType, Tensor, TensorDesc, TensorView};

pub(super) type Views<'a> = SmallVec<[TensorView<'a>; 16]>;

/// A subgraph and where its inputs come from.
#[derive(Clone)]
pub(super) struct Body {
    pub(super) name: String,
    pub(super) executor: Arc<Executor>,
    /// Per input of the body, the input of the operator.
    pub(super) inputs: Vec<usize>,
    /// Outputs of the body that are wanted.
    pub(super) outputs: Vec<usize>,
}

impl Body {
    fn error(&self, error: &RuntimeError) -> OpError {
        OpError::Subgraph { name: self.name.clone(), problem: error.to_string() }
    }

    fn plan(&self, inputs: &[TensorDesc], known: &[Option<Tensor>]) -> OpResult<Arc<Segment>> {
        let request = Request { inputs, known, outputs: &self.outputs, observe: false, watch: &[] };
        self.executor.plan(&request).map_err(|error| self.error(&error))
    }

    /// Runs on these inputs; `consume` gets the outputs.
    pub(super) fn run(
        &self,
        plan: &Arc<Segment>,
        inputs: &[TensorView<'_>],
        parallel: &Parallel,
        consume: &mut dyn FnMut(usize, TensorView<'_>),
    ) -> OpResult<()> {
        self.executor.run(plan, inputs, parallel, None, consume).map_err(|error| self.error(&error))
    }

    /// Runs on inputs of any shape; gives the outputs as tensors.
    pub(super) fn evaluate(&self, inputs: &[TensorView<'_>], parallel: &Parallel) -> OpResult<Vec<Tensor>> {
        let descs: Vec<TensorDesc> = inputs.iter().map(TensorView::desc).collect();
        let plan = self.plan(&descs, &[])?;
        let mut found = vec![None; self.outputs.len()];
        let mut refused = None;
        self.run(&plan, inputs, parallel, &mut |position, view| match require_memory(view.bytes().len()) {
            Ok(()) => found[position] = Some(Tensor::from_view(view)),
            Err(error) => refused = Some(error),
        })?;
        match refused {
            Some(error) => Err(self.error(&error)),
            None => Ok(found.into_iter().flatten().collect()),
        }
    }

    /// Descriptions of the outputs if they follow from those of the inputs.
    pub(super) fn infer(
        &self,
        inputs: &[TensorDesc],
        known: &[Option<Tensor>],
    ) -> OpResult<Option<(Vec<TensorDesc>, Arc<Segment>)>> {
        let plan = self.plan(inputs, known)?;
        if plan.next.is_some() {
            return Ok(None);
        }
        let mut found = vec![None; self.outputs.len()];
        for (position, located) in &plan.results {
            found[*position] = Some(located.desc);
        }
        Ok(found.into_iter().collect::<Option<Vec<_>>>().map(|descs| (descs, plan)))
    }

    pub(super) fn descs(&self, facts: &Facts<'_>) -> OpResult<Vec<TensorDesc>> {
        self.inputs.iter().map(|&input| facts.desc(input)).collect()
    }
}

/// The names in a vector of `StringVec`.
pub(super) fn names(tables: Option<&[Table]>) -> Vec<&[String]> {
    tables.unwrap_or_default().iter().map(|t| t.get(string_vec::DATA).unwrap_or_default()).collect()
}

/// Name of a body's input or output as the file has it.
pub(super) fn input_position(executor: &Executor, name: &str) -> Option<usize> {
    executor.graph().inputs.iter().position(|input| input.name == name)
}

pub(super) fn output_position(executor: &Executor, name: &str) -> Option<usize> {
    let graph = executor.graph();
    graph.outputs.iter().position(|&value| graph.names[value] == name)
}

/// `If`: input 0 is the condition; one of two bodies runs.
struct If {
    then: Body,
    otherwise: Body,
}

/// Builds `If`.
pub(super) fn create_if(source: &OpSource<'_>, subgraphs: &mut dyn Subgraphs) -> OpResult<Arc<dyn Operator>> {
    let table = source.param(TableKind::IfParam)?;
    let outputs = names(table.get(if_param::ALIASES_OUTPUTS));
    if outputs.len() != source.outputs {
        return Err(OpError::OutputCount { wanted: outputs.len(), got: source.outputs });
    }
    let mut body = |name: Option<&str>, which: usize, key| -> OpResult<Body> {
        let name = name.ok_or_else(|| OpError::attribute(key, "absent", "the name of a subgraph"))?;
        let executor = subgraphs.executor(name)?;
        let aliases = names(table.get(if_param::ALIASES_INPUTS));
        let mut inputs = vec![None; executor.graph().inputs.len()];
        for (input, aliases) in aliases.iter().enumerate() {
            for alias in aliases.iter() {
                if let Some(position) = input_position(&executor, alias) {
                    inputs[position] = Some(input);
                }
            }
        }
        let inputs: Option<Vec<usize>> = inputs.into_iter().collect();
        let inputs =
            inputs.filter(|inputs| inputs.iter().all(|&input| input < source.inputs)).ok_or_else(|| {
                OpError::attribute("aliases_inputs", "an incomplete list", "every input of the subgraph")
            })?;
        let wanted = outputs.iter().map(|pair| {
            let name = pair.get(which).map(String::as_str).unwrap_or_default();
            let position = output_position(&executor, name);
            position.map(|position| executor.graph().outputs[position]).ok_or_else(|| {
                OpError::attribute("aliases_outputs", format!("{name:?}"), "an output of the subgraph")
            })
        });
        let outputs = wanted.collect::<OpResult<_>>()?;
        Ok(Body { name: name.to_owned(), executor, inputs, outputs })
    };
    let then = body(table.get(if_param::THEN_GRAPH), 0, "then_graph")?;
    let otherwise = body(table.get(if_param::ELSE_GRAPH), 1, "else_graph")?;
    Ok(Arc::new(If { then, otherwise }))
}

/// Whether a condition holds.
pub(super) fn truth(view: TensorView<'_>) -> OpResult<bool> {
    let none = || OpError::value(0, "an empty condition");
    Ok(match view.desc().dtype {
        DType::F32 => *view.data::<f32>().first().ok_or_else(none)? > 0.0,
        DType::I32 => *view.data::<i32>().first().ok_or_else(none)? > 0,
        DType::U8 => *view.data::<u8>().first().ok_or_else(none)? > 0,
        DType::I8 => *view.data::<i8>().first().ok_or_else(none)? > 0,
        DType::F16 => return Err(OpError::unsupported("a float16 condition")),
    })
}

impl If {
    fn body(&self, condition: bool) -> &Body {
        if condition { &self.then } else { &self.otherwise }
    }
}

impl Operator for If {
    fn infer(&self, inputs: &Facts<'_>) -> InferResult {
        inputs.desc(0)?;
        // The branch not taken may not fit the inputs at all, so it is not asked.
        let condition = truth(inputs.value(0)?.view())?;
        let body = self.body(condition);
        match body.infer(&body.descs(inputs)?, &[])? {
            Some((descs, _)) => Ok(descs),
            None => Err(InferError::Dynamic),
        }
    }

    fn prepare(&self, context: &PrepareContext<'_>) -> OpResult<Box<dyn Kernel>> {
        let condition = context.inputs.get(0).and_then(|fact| fact.value);
        let condition = condition.ok_or_else(|| OpError::unsupported("a condition that is not known"))?;
        let body = self.body(truth(condition.view())?);
        let plan = body.plan(&body.descs(&context.inputs)?, &[])?;
        Ok(Box::new(IfKernel { body: body.clone(), plan }))
    }

    fn evaluate(&self, inputs: &[Option<TensorView<'_>>], parallel: &Parallel) -> OpResult<Vec<Tensor>> {
        let input =
            |input: usize| inputs.get(input).copied().flatten().ok_or(OpError::MissingInput { input });
        let body = self.body(truth(input(0)?)?);
        let views: Views<'_> = body.inputs.iter().map(|&i| input(i)).collect::<OpResult<_>>()?;
        body.evaluate(&views, parallel)
    }
}

struct IfKernel {
    body: Body,
    plan: Arc<Segment>,
}

impl Kernel for IfKernel {
    fn label(&self) -> Cow<'static, str> {
        format!("if: {}", self.body.name).into()
    }

    fn run(&self, io: &mut StepIo<'_, '_>) -> OpResult<()> {
        let views: Views<'_> = self.body.inputs.iter().map(|&input| io.input(input)).collect();
        let outputs = &mut *io.outputs;
        self.body.run(&self.plan, &views, io.parallel, &mut |position, view| {
            outputs[position].bytes().copy_from_slice(view.bytes());
        })
    }
}

/// `While` as the converter makes it from ONNX `Loop`: inputs trip count, condition, carried values and captured ones;
/// the body takes the iteration, the condition and these, and gives the condition, the carried (and captured) values,
/// and values to be stacked.
struct Loop {
    body: Body,
    /// Carried and captured values.
    carried: usize,
    /// Stacked outputs.
    scans: usize,
}

/// Builds `While`, either form.
pub(super) fn create_while(
    source: &OpSource<'_>,
    subgraphs: &mut dyn Subgraphs,
) -> OpResult<Arc<dyn Operator>> {
    if source.main.is_some_and(|table| table.kind() == TableKind::LoopParam) {
        return loops::create(source, subgraphs);
    }
    let table = source.param(TableKind::WhileParam)?;
    let name = table.get(while_param::BODY_GRAPH);
    let name = name.ok_or_else(|| OpError::attribute("body_graph", "absent", "the name of a subgraph"))?;
    let executor = subgraphs.executor(name)?;
    let outputs = executor.graph().outputs.clone();
    let mut body = Body { name: name.to_owned(), inputs: Vec::new(), outputs, executor };
    if let Some(condition) = table.get(while_param::COND_GRAPH).filter(|name| !name.is_empty()) {
        let executor = subgraphs.executor(condition)?;
        let outputs = executor.graph().outputs.iter().copied().take(1).collect();
        let condition = Body { name: condition.to_owned(), executor, inputs: Vec::new(), outputs };
        return While::new(source, table, condition, body).map(|w| Arc::new(w) as Arc<dyn Operator>);
    }
    let inputs = body.executor.graph().inputs.len();
    if inputs != source.inputs || inputs < 2 {
        let wanted = format!("{} inputs, as the operator", source.inputs);
        return Err(OpError::attribute("body_graph", format!("a graph with {inputs} inputs"), wanted));
    }
    let carried = inputs - 2;
    let scans =
        source.outputs.checked_sub(carried).filter(|scans| body.outputs.len() == 1 + carried + scans).ok_or(
            OpError::OutputCount { wanted: body.outputs.len().saturating_sub(1), got: source.outputs },
        )?;
    body.inputs = (0..inputs).collect();
    Ok(Arc::new(Loop { body, carried, scans }))
}

/// What is known of an iteration before running.
struct Iteration {
    /// Descriptions of the body's outputs.
    outputs: Vec<TensorDesc>,
    plan: Arc<Segment>,
    /// The body's condition always holds.
    goes_on: bool,
}

impl Loop {
    /// Body inputs and known contents for planning: the iteration is a scalar; the condition holds in every iteration.
    fn request(&self, inputs: &Facts<'_>) -> OpResult<(Vec<TensorDesc>, Vec<Option<Tensor>>)> {
        let mut descs = self.body.descs(inputs)?;
        descs[0] = TensorDesc::new(DType::I32, crate::tensor::Shape::SCALAR);
        let mut known = vec![None; descs.len()];
        known[1] = Some(ones(descs[1])?);
        Ok((descs, known))
    }

    /// The plan of an iteration, if carried values keep their shapes.
    fn stable(&self, inputs: &Facts<'_>) -> OpResult<Option<Iteration>> {
        let (descs, known) = self.request(inputs)?;
        let Some((outputs, plan)) = self.body.infer(&descs, &known)? else { return Ok(None) };
        let same = (0..self.carried).all(|i| descs[2 + i] == outputs[1 + i]);
        let goes_on = plan
            .known_results
            .iter()
            .any(|(position, tensor)| *position == 0 && truth(tensor.view()).unwrap_or(false));
        Ok(same.then_some(Iteration { outputs, plan, goes_on }))
    }
}

/// A tensor of ones.
fn ones(desc: TensorDesc) -> OpResult<Tensor> {
    let n = desc.shape.count();
    Ok(match desc.dtype {
        DType::F32 => Tensor::from_vec(desc.shape, vec![1.0_f32; n])?,
        DType::I32 => Tensor::from_vec(desc.shape, vec![1_i32; n])?,
        DType::U8 => Tensor::from_vec(desc.shape, vec![1_u8; n])?,
        DType::I8 => Tensor::from_vec(desc.shape, vec![1_i8; n])?,
        DType::F16 => return Err(OpError::unsupported("a float16 condition")),
    })
}

impl Operator for Loop {
    fn infer(&self, inputs: &Facts<'_>) -> InferResult {
        let trips = inputs.get(0).and_then(|fact| fact.value).and_then(Tensor::integers);
        let runs =
            inputs.get(1).and_then(|fact| fact.value).map(|tensor| truth(tensor.view())).transpose()?;
        let known = match (trips.as_deref(), runs) {
            (Some(&[trips]), Some(true)) => usize::try_from(trips).unwrap_or(0),
            (_, Some(false)) => 0,
            _ => return Err(InferError::Dynamic),
        };
        let Some(Iteration { outputs, goes_on: true, .. }) = self.stable(inputs)? else {
            return Err(InferError::Dynamic);
        };
        let mut descs: Vec<TensorDesc> = outputs[1..].to_vec();
        for desc in &mut descs[self.carried..] {
            let mut dims = vec![known];
            dims.extend(desc.shape.dims());
            *desc = desc.with_shape(crate::tensor::Shape::new(&dims)?);
        }
        Ok(descs)
    }

    fn prepare(&self, context: &PrepareContext<'_>) -> OpResult<Box<dyn Kernel>> {
        let Iteration { outputs, plan, .. } = self
            .stable(&context.inputs)?
            .ok_or_else(|| OpError::unsupported("carried values that change their shape"))?;
        let carried = outputs[1..=self.carried].to_vec();
        Ok(Box::new(LoopKernel { body: self.body.clone(), plan, carried }))
    }

    fn evaluate(&self, inputs: &[Option<TensorView<'_>>], parallel: &Parallel) -> OpResult<Vec<Tensor>> {
        let input =
            |input: usize| inputs.get(input).copied().flatten().ok_or(OpError::MissingInput { input });
        let limit = *Tensor::from_view(input(0)?).integers().unwrap_or_default().first().unwrap_or(&0);
        let mut condition = Tensor::from_view(input(1)?);
        let mut carried: Vec<Tensor> =
            (0..self.carried).map(|i| input(2 + i).map(Tensor::from_view)).collect::<OpResult<_>>()?;
        let mut stacks: Vec<Vec<Tensor>> = vec![Vec::new(); self.scans];
        let (mut stacked, mut room) = (0_usize, 0);
        let mut step = 0_i32;
        while i64::from(step) < limit && truth(condition.view())? {
            parallel.take_iterations(1)?;
            let iteration = Tensor::scalar(step);
            let mut views: Views<'_> = smallvec::smallvec![iteration.view(), condition.view()];
            views.extend(carried.iter().map(Tensor::view));
            let mut outputs = self.body.evaluate(&views, parallel)?.into_iter();
            drop(views);
            condition = outputs.next().unwrap_or(condition);
            carried = outputs.by_ref().take(self.carried).collect();
            for (stack, tensor) in stacks.iter_mut().zip(outputs) {
                stacked += tensor.bytes().len();
                stack.push(tensor);
            }
            // They will be copied once; so there must be room for as many bytes again, and for the next iterations.
            if stacked > room {
                room = 2 * stacked;
                require_memory(room + stacked).map_err(|error| self.body.error(&error))?;
            }
            step += 1;
        }
        for stack in stacks {
            carried.push(stack_all(&stack)?);
        }
        Ok(carried)
    }
}

/// Tensors of one shape stacked along a new first axis.
fn stack_all(tensors: &[Tensor]) -> OpResult<Tensor> {
    let Some(first) = tensors.first() else {
        // No iteration: neither type nor shape of an element is known.
        return Ok(Tensor::from_vec(crate::tensor::Shape::new(&[0])?, Vec::<f32>::new())?);
    };
    let mut dims = vec![tensors.len()];
    dims.extend(first.desc().shape.dims());
    let desc = first.desc().with_shape(crate::tensor::Shape::new(&dims)?);
    let bytes: Vec<u8> = tensors.iter().flat_map(|tensor| tensor.bytes().iter().copied()).collect();
    Ok(Tensor::from_bytes(desc, bytes.into())?)
}

/// A loop whose iterations all have the same plan. States go back and forth between two places in scratch.
struct LoopKernel {
    body: Body,
    plan: Arc<Segment>,
    carried: Vec<TensorDesc>,
}

impl LoopKernel {
    /// Bytes of all states, each aligned.
    fn state_bytes(&self) -> usize {
        self.carried.iter().map(|desc| desc.byte_len().next_multiple_of(64)).sum()
    }
}

impl Kernel for LoopKernel {
    fn label(&self) -> Cow<'static, str> {
        format!("loop of {}", self.body.name).into()
    }

    fn scratch(&self) -> usize {
        2 * self.state_bytes()
    }

    fn run(&self, io: &mut StepIo<'_, '_>) -> OpResult<()> {
        let (trips, mut condition) = (io.input(0), io.input(1));
        let trips = *Tensor::from_view(trips).integers().unwrap_or_default().first().unwrap_or(&0);
        let runs = truth(condition)?;
        if runs {
            // The condition is known to hold, so all of them will run.
            io.parallel.take_iterations(u64::try_from(trips).unwrap_or(0))?;
        }
        let ones = ones(condition.desc())?;
        condition = ones.view();
        let n = self.carried.len();
        let initial = io.inputs;
        let initial = |i: usize| match initial[2 + i] {
            Some(view) => view,
            None => panic!("carried value {i} of a loop is absent"),
        };
        let (mut now, mut next) = io.scratch.split_at_mut(self.state_bytes());
        let mut step = 0_i32;
        while runs && i64::from(step) < trips {
            let iteration = [step];
            let scalar = TensorView::of(crate::tensor::Shape::SCALAR, &iteration)?;
            let mut views: Views<'_> = smallvec::smallvec![scalar, condition];
            let mut offset = 0;
            for (i, desc) in self.carried.iter().enumerate() {
                let bytes = &now[offset..offset + desc.byte_len()];
                views.push(if step == 0 { initial(i) } else { TensorView::new(*desc, bytes) });
                offset += desc.byte_len().next_multiple_of(64);
            }
            let (outputs, carried) = (&mut *io.outputs, &self.carried);
            self.body.run(&self.plan, &views, io.parallel, &mut |position, view| {
                let Some(position) = position.checked_sub(1) else { return };
                let bytes = view.bytes();
                if position < n {
                    let start: usize =
                        carried[..position].iter().map(|d| d.byte_len().next_multiple_of(64)).sum();
                    next[start..start + bytes.len()].copy_from_slice(bytes);
                } else {
                    outputs[position].bytes()[step as usize * bytes.len()..][..bytes.len()]
                        .copy_from_slice(bytes);
                }
            })?;
            drop(views);
            std::mem::swap(&mut now, &mut next);
            step += 1;
        }
        let mut offset = 0;
        for (i, desc) in self.carried.iter().enumerate() {
            let bytes = if step == 0 { initial(i).bytes() } else { &now[offset..offset + desc.byte_len()] };
            io.outputs[i].bytes().copy_from_slice(bytes);
            offset += desc.byte_len().next_multiple_of(64);
        }
        Ok(())
    }
}
