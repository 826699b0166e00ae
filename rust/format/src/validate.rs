//! Checks of the graph that the bytes alone do not guarantee.
#![deny(clippy::as_conversions, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::collections::HashSet;

use crate::error::{FormatError, Problem, Result};
use crate::model::{Model, Table};
use crate::schema::{TableKind, Usage, if_param, net, op, sub_graph_proto, while_param};

/// Checks that the ops and tensor names are there, that all tensor indices exist (-1 stands for an optional input
/// that is not used), that no tensor is produced twice in a graph, and that the subgraphs that ops name exist. In files with
/// fixed shapes MNN's converter lets one op go on with what another one has produced, so there a tensor may be produced
/// again.
///
/// # Errors
/// [`FormatError::Invalid`] with the first broken invariant and the path of its field.
pub fn validate(model: &Model) -> Result<()> {
    let root = model.net();
    if !root.has(net::OPLISTS) {
        return Err(FormatError::at("oplists", Problem::Missing));
    }
    if !root.has(net::TENSOR_NAME) {
        return Err(FormatError::at("tensorName", Problem::Missing));
    }
    let subgraphs = root.get(net::SUBGRAPHS).unwrap_or_default();
    let mut names = HashSet::new();
    for (position, subgraph) in subgraphs.iter().enumerate() {
        let name = subgraph.get(sub_graph_proto::NAME).unwrap_or_default();
        if !names.insert(name) {
            let problem = Problem::DuplicateSubgraph { name: name.to_owned() };
            return Err(FormatError::at(format!("subgraphs[{position}].name"), problem));
        }
    }
    let again = root.get(net::USAGE) == Usage::INFERENCE_STATIC;
    check_graph("oplists", model.ops(), model.tensor_names().len(), &names, again)?;
    for (position, subgraph) in subgraphs.iter().enumerate() {
        check_subgraph(subgraph, &names).map_err(|error| error.within(&format!("subgraphs[{position}]")))?;
    }
    Ok(())
}

fn check_subgraph(subgraph: &Table, names: &HashSet<&str>) -> Result<()> {
    let count = subgraph.get(sub_graph_proto::TENSORS).unwrap_or_default().len();
    let nodes = subgraph.get(sub_graph_proto::NODES).unwrap_or_default();
    for (name, indexes) in [
        ("inputs", subgraph.get(sub_graph_proto::INPUTS)),
        ("outputs", subgraph.get(sub_graph_proto::OUTPUTS)),
    ] {
        let indexes = indexes.and_then(|indexes| indexes.as_i32()).unwrap_or_default();
        for (position, &index) in indexes.iter().enumerate() {
            check_index(index, count).map_err(|error| error.within(&format!("{name}[{position}]")))?;
        }
    }
    check_graph("nodes", nodes, count, names, false)
}

/// Checks the ops of one graph; `list` is the name of the field that holds them. `again`: tensors may be produced again.
fn check_graph(list: &str, ops: &[Table], tensors: usize, names: &HashSet<&str>, again: bool) -> Result<()> {
    let mut producer: Vec<Option<usize>> = vec![None; tensors];
    for (position, node) in ops.iter().enumerate() {
        check_op(node, tensors, names, |index| {
            let entry = usize::try_from(index).ok().and_then(|index| producer.get_mut(index));
            match entry.map(|by| by.replace(position)) {
                Some(Some(by)) if !again => Err(FormatError::at("", Problem::ProducedTwice { index, by })),
                _ => Ok(()),
            }
        })
        .map_err(|error| error.within(&format!("{list}[{position}]")))?;
    }
    Ok(())
}

fn check_op(
    node: &Table,
    tensors: usize,
    names: &HashSet<&str>,
    mut produce: impl FnMut(i32) -> Result<()>,
) -> Result<()> {
    let inputs = node.get(op::INPUT_INDEXES).and_then(|indexes| indexes.as_i32()).unwrap_or_default();
    for (position, &index) in inputs.iter().enumerate() {
        if index != -1 {
            check_index(index, tensors)
                .map_err(|error| error.within(&format!("inputIndexes[{position}]")))?;
        }
    }
    let outputs = node.get(op::OUTPUT_INDEXES).and_then(|indexes| indexes.as_i32()).unwrap_or_default();
    for (position, &index) in outputs.iter().enumerate() {
        check_index(index, tensors)
            .and_then(|()| produce(index))
            .map_err(|error| error.within(&format!("outputIndexes[{position}]")))?;
    }
    let Some(main) = node.get(op::MAIN) else { return Ok(()) };
    let graphs: &[_] = match main.kind() {
        TableKind::WhileParam => &[while_param::COND_GRAPH, while_param::BODY_GRAPH],
        TableKind::IfParam => &[if_param::THEN_GRAPH, if_param::ELSE_GRAPH],
        _ => &[],
    };
    for &field in graphs {
        if let Some(name) = main.get(field)
            && !names.contains(name)
        {
            let problem = Problem::UnknownSubgraph { name: name.to_owned() };
            return Err(FormatError::at(format!("main.{}", field.name()), problem));
        }
    }
    Ok(())
}

fn check_index(index: i32, count: usize) -> Result<()> {
    if usize::try_from(index).is_ok_and(|index| index < count) {
        return Ok(());
    }
    Err(FormatError::at("", Problem::TensorIndex { index, count }))
}
