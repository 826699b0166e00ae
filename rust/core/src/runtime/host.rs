//! Running one operator at once, on tensors that are known while planning or loading.

use super::config::SessionOptions;
use super::parallel::Parallel;
use crate::graph::Graph;
use crate::ops::{Epilogue, Fact, Facts, InferError, OpError, Operator, PrepareContext, StepIo};
use crate::tensor::{Tensor, TensorDesc, TensorView, TensorViewMut};

/// Values above this size are not computed while planning, but by every run.
pub(crate) const PLAN_LIMIT: usize = 1 << 16;

/// Loops that take more iterations are not computed while planning, but by every run.
const PLAN_ITERATIONS: u64 = 1 << 10;

/// Computes an operator whose inputs are all known, if its outputs have at most `limit` bytes and no loop takes too long.
///
/// # Errors
/// [`InferError`] of the operator.
pub(crate) fn evaluate(
    operator: &dyn Operator,
    inputs: &[Option<Tensor>],
    options: &SessionOptions,
    limit: usize,
) -> Result<Option<Vec<Tensor>>, InferError> {
    let facts: Vec<Option<Fact<'_>>> = inputs
        .iter()
        .map(|input| input.as_ref().map(|tensor| Fact { desc: tensor.desc(), value: Some(tensor) }))
        .collect();
    let facts = Facts::new(&facts);
    let views: Vec<Option<TensorView<'_>>> = inputs.iter().map(|i| i.as_ref().map(Tensor::view)).collect();
    let parallel = Parallel::single().for_run(options.max_loop_iterations.min(PLAN_ITERATIONS));
    let mut outputs = match operator.infer(&facts) {
        Ok(outputs) => outputs,
        Err(InferError::Dynamic) => return unless_exhausted(&parallel, operator.evaluate(&views, &parallel)),
        Err(other) => return Err(other),
    };
    outputs.iter_mut().for_each(|desc| *desc = TensorDesc::new(desc.dtype, desc.shape));
    if outputs.iter().map(TensorDesc::byte_len).sum::<usize>() > limit {
        return Ok(None);
    }
    if let Some(folded) = operator.fold(&facts) {
        return Ok(Some(folded));
    }
    if let Some(aliases) = operator.alias(&facts, &outputs) {
        let tensors = aliases.iter().zip(&outputs).map(|(alias, desc)| {
            let bytes = views.get(alias.input).copied().flatten().map_or(&[][..], |view| view.bytes());
            let start = alias.offset * desc.dtype.size();
            Tensor::from_view(TensorView::new(*desc, &bytes[start..start + desc.byte_len()]))
        });
        return Ok(Some(tensors.collect()));
    }
    unless_exhausted(&parallel, run_kernel(operator, &facts, &views, &outputs, options, &parallel))
}

/// Nothing if loops want more iterations than planning allows, whatever the error says.
fn unless_exhausted(
    parallel: &Parallel,
    result: Result<Vec<Tensor>, OpError>,
) -> Result<Option<Vec<Tensor>>, InferError> {
    if parallel.is_exhausted() { Ok(None) } else { Ok(Some(result?)) }
}

fn run_kernel(
    operator: &dyn Operator,
    facts: &Facts<'_>,
    views: &[Option<TensorView<'_>>],
    outputs: &[TensorDesc],
    options: &SessionOptions,
    parallel: &Parallel,
) -> Result<Vec<Tensor>, OpError> {
    let epilogue = Epilogue::default();
    let context = PrepareContext {
        inputs: *facts,
        outputs,
        epilogue: &epilogue,
        input_scale: None,
        options,
        quantized: None,
    };
    let kernel = operator.prepare(&context)?;
    let mut scratch = vec![0_u128; kernel.scratch().div_ceil(16)];
    let mut memory: Vec<Vec<u128>> =
        outputs.iter().map(|desc| vec![0_u128; desc.byte_len().div_ceil(16)]).collect();
    let mut targets: Vec<TensorViewMut<'_>> = outputs
        .iter()
        .zip(&mut memory)
        .map(|(desc, words)| {
            TensorViewMut::new(*desc, &mut bytemuck::cast_slice_mut(words)[..desc.byte_len()])
        })
        .collect();
    let mut io = StepIo {
        inputs: views,
        outputs: &mut targets,
        in_place: None,
        scratch: &mut bytemuck::cast_slice_mut(&mut scratch)[..kernel.scratch()],
        parallel,
    };
    kernel.run(&mut io)?;
    Ok(targets.iter().map(|target| Tensor::from_view(target.view())).collect())
}

/// A row-major copy of a tensor in another layout.
pub(crate) fn converted(view: TensorView<'_>, desc: TensorDesc) -> Result<Tensor, OpError> {
    let kernel = crate::ops::copy_kernel(view.desc(), desc);
    let mut words = vec![0_u128; desc.byte_len().div_ceil(16)];
    let mut target = [TensorViewMut::new(desc, &mut bytemuck::cast_slice_mut(&mut words)[..desc.byte_len()])];
    let mut io = StepIo {
        inputs: &[Some(view)],
        outputs: &mut target,
        in_place: None,
        scratch: &mut [],
        parallel: &Parallel::single(),
    };
    kernel.run(&mut io)?;
    Ok(Tensor::from_view(target[0].view()))
}

/// Computes what depends on constants only, once, and drops the nodes. Results that are much larger than what
/// they are computed from stay nodes.
pub(crate) fn fold_constants(graph: &mut Graph, options: &SessionOptions) {
    let nodes = std::mem::take(&mut graph.nodes);
    for node in nodes {
        let known = |value: &Option<usize>| value.is_none_or(|value| graph.constants.contains_key(&value));
        if node.inputs.is_empty() || !node.inputs.iter().all(known) {
            graph.nodes.push(node);
            continue;
        }
        let inputs: Vec<Option<Tensor>> = node
            .inputs
            .iter()
            .map(|value| value.and_then(|value| graph.constants.get(&value).cloned()))
            .collect();
        let size: usize = inputs.iter().flatten().map(|tensor| tensor.desc().byte_len()).sum();
        match evaluate(node.operator.as_ref(), &inputs, options, PLAN_LIMIT.max(2 * size)) {
            Ok(Some(tensors)) if tensors.len() == node.outputs.len() => {
                graph.constants.extend(node.outputs.iter().copied().zip(tensors));
            }
            // Whatever is wrong will be told when the node is planned, with its name.
            _ => graph.nodes.push(node),
        }
    }
    let used: std::collections::HashSet<usize> = graph
        .nodes
        .iter()
        .flat_map(|node| node.inputs.iter().flatten().copied())
        .chain(graph.outputs.iter().copied())
        .collect();
    graph.constants.retain(|value, _| used.contains(value));
}
