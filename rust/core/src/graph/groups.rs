//! Grouped convolutions that a file spells out: a split of the channels, a convolution per group, a concatenation.
//!
//! mnnq's own converter writes them so, because MNN's low-memory mode computes native groups wrongly. They are found once,
//! when a graph is loaded; a plan runs the whole as one convolution unless somebody wants to see what is in between.

use std::sync::Arc;

use super::{Graph, ValueId};
use crate::ops::{Operator, join_groups};
use crate::runtime::config::SessionOptions;

/// A grouped convolution in pieces; positions of nodes.
pub(crate) struct GroupedConv {
    pub(crate) split: usize,
    pub(crate) parts: Vec<usize>,
    pub(crate) concat: usize,
    /// The whole.
    pub(crate) operator: Arc<dyn Operator>,
}

/// All of a graph.
pub(crate) fn find(graph: &Graph, options: &SessionOptions) -> Vec<GroupedConv> {
    let mut uses = vec![0_usize; graph.names.len()];
    let mut producer: Vec<Option<usize>> = vec![None; graph.names.len()];
    for (index, node) in graph.nodes.iter().enumerate() {
        node.inputs.iter().flatten().for_each(|&value| uses[value] += 1);
        node.outputs.iter().for_each(|&value| producer[value] = Some(index));
    }
    graph.outputs.iter().for_each(|&value| uses[value] += 1);
    (0..graph.nodes.len()).filter_map(|concat| at(graph, concat, (&uses, &producer), options)).collect()
}

/// The grouped convolution that ends in this node.
fn at(
    graph: &Graph,
    concat: usize,
    (uses, producer): (&[usize], &[Option<usize>]),
    options: &SessionOptions,
) -> Option<GroupedConv> {
    let node = &graph.nodes[concat];
    if node.inputs.len() < 2 || node.outputs.len() != 1 {
        return None;
    }
    let once = |value: ValueId| (uses[value] == 1).then_some(value);
    let mut parts = Vec::with_capacity(node.inputs.len());
    let mut pieces = Vec::with_capacity(node.inputs.len());
    for value in &node.inputs {
        let part = producer[once((*value)?)?]?;
        let ([Some(piece)], [_]) = (&graph.nodes[part].inputs[..], &graph.nodes[part].outputs[..]) else {
            return None;
        };
        pieces.push(once(*piece)?);
        parts.push(part);
    }
    let split = producer[*pieces.first()?]?;
    if graph.nodes[split].outputs != pieces {
        return None;
    }
    let operators: Vec<&dyn Operator> =
        parts.iter().map(|&part| graph.nodes[part].operator.as_ref()).collect();
    let operator =
        join_groups(graph.nodes[split].operator.as_ref(), &operators, node.operator.as_ref(), options)?;
    Some(GroupedConv { split, parts, concat, operator })
}
