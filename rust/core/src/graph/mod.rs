//! A model as a graph of operators, ready to be planned.

mod builder;
mod groups;
mod int8;

use std::collections::HashMap;
use std::sync::Arc;

use crate::ops::{Operator, QuantInfo};
use crate::tensor::{DType, Tensor};

pub use builder::{GraphSource, build};
pub(crate) use groups::{GroupedConv, find as find_groups};

/// A tensor of a graph, by position in [`Graph::names`].
pub type ValueId = usize;

/// One operator with the tensors it connects.
pub struct Node {
    /// The operator.
    pub operator: Arc<dyn Operator>,
    /// Its name in the file.
    pub name: String,
    /// Its operator type in the file.
    pub op_type: String,
    /// Inputs; `None` for absent optional ones.
    pub inputs: Vec<Option<ValueId>>,
    /// Outputs.
    pub outputs: Vec<ValueId>,
}

/// An input of a graph.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GraphInput {
    /// Its name.
    pub name: String,
    /// Its tensor.
    pub value: ValueId,
    /// Element type.
    pub dtype: DType,
    /// Shape; -1 for lengths that vary. `None` if the file does not say (inputs of subgraphs).
    pub dims: Option<Vec<i64>>,
}

/// A graph: nodes in execution order, constants, inputs and outputs.
#[derive(Default)]
pub struct Graph {
    /// Names of the tensors.
    pub names: Vec<String>,
    /// Nodes in execution order.
    pub nodes: Vec<Node>,
    /// Inputs, in the order of the file.
    pub inputs: Vec<GraphInput>,
    /// Outputs, in the order of the file.
    pub outputs: Vec<ValueId>,
    /// Constants.
    pub constants: HashMap<ValueId, Tensor>,
    /// Quantization of tensors of offline-quantized models.
    pub quant: HashMap<ValueId, QuantInfo>,
    /// Tensors that hold codes, and how to make real numbers of them.
    pub coded: HashMap<ValueId, QuantInfo>,
    /// Grouped convolutions that are spelt out.
    pub(crate) groups: Vec<GroupedConv>,
}

impl Graph {
    /// For each node, whether one of `outputs` depends on it.
    #[must_use]
    pub fn needed(&self, outputs: &[ValueId]) -> Vec<bool> {
        let mut wanted = vec![false; self.names.len()];
        for &value in outputs {
            wanted[value] = true;
        }
        let mut needed = vec![false; self.nodes.len()];
        for (index, node) in self.nodes.iter().enumerate().rev() {
            if node.outputs.iter().any(|&value| wanted[value]) {
                needed[index] = true;
                for &value in node.inputs.iter().flatten() {
                    wanted[value] = true;
                }
            }
        }
        needed
    }
}
