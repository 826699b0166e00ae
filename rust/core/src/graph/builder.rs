//! From the tables of a file to a [`Graph`].

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use mnnq_format::model::{Numbers, Table};
use mnnq_format::schema::{
    DataType, OpType, TableKind, input, net, op, sub_graph_proto, tensor_describe, tensor_quant_info,
};
use mnnq_format::{Model, blob};

use super::int8::{self, Form, Placement};
use super::{Graph, GraphInput, Node, ValueId};
use crate::ops::loops::tensors as loop_tensors;
use crate::ops::{OpError, OpSource, Operator, QuantInfo, Subgraphs, create_operator};
use crate::runtime::config::SessionOptions;
use crate::runtime::error::RuntimeError;
use crate::runtime::executor::Executor;
use crate::tensor::{DType, Shape, Tensor, TensorDesc};

/// What a graph is built from: the main graph or a subgraph of a file.
pub struct GraphSource<'a> {
    names: &'a [String],
    ops: &'a [Table],
    described: &'a [Table],
    /// Ids of inputs, for subgraphs; for the main graph those of its `Input` ops.
    inputs: Option<Vec<ValueId>>,
    /// Ids of outputs; `None`: those produced and never consumed.
    outputs: Option<Vec<ValueId>>,
    static_shapes: bool,
}

/// Builds the main graph of a model.
///
/// # Errors
/// [`RuntimeError::Unsupported`] with every operator and attribute that is not supported,
/// [`RuntimeError::Graph`] if the graph is not one.
pub fn build(model: &Model, options: &SessionOptions) -> Result<Graph, RuntimeError> {
    let root = model.net();
    let names = model.tensor_names();
    let outputs = match root.get(net::OUTPUT_NAME) {
        Some(wanted) if !wanted.is_empty() => Some(
            wanted
                .iter()
                .map(|name| {
                    names.iter().position(|known| known == name).ok_or_else(|| RuntimeError::Graph {
                        place: format!("output {name:?}"),
                        problem: "no tensor has this name".to_owned(),
                    })
                })
                .collect::<Result<Vec<_>, _>>()?,
        ),
        _ => None,
    };
    let source = GraphSource {
        names,
        ops: model.ops(),
        described: root.get(net::EXTRA_TENSOR_DESCRIBE).unwrap_or_default(),
        inputs: None,
        outputs,
        static_shapes: root.get(net::USAGE).0 == 2,
    };
    let mut context = BuildContext {
        options,
        subgraphs: root.get(net::SUBGRAPHS).unwrap_or_default(),
        built: HashMap::new(),
        open: Vec::new(),
        problems: Vec::new(),
    };
    let graph = context.graph(&source)?;
    if context.problems.is_empty() {
        return Ok(graph);
    }
    let mut seen = HashSet::new();
    context.problems.retain(|problem| seen.insert(problem.clone()));
    Err(RuntimeError::Unsupported { problems: context.problems })
}

struct BuildContext<'a> {
    options: &'a SessionOptions,
    subgraphs: &'a [Table],
    built: HashMap<String, Arc<Executor>>,
    /// Subgraphs being built, outermost first.
    open: Vec<String>,
    problems: Vec<String>,
}

impl Subgraphs for BuildContext<'_> {
    fn executor(&mut self, name: &str) -> Result<Arc<Executor>, OpError> {
        if let Some(executor) = self.built.get(name) {
            return Ok(executor.clone());
        }
        let failed = |problem: String| OpError::Subgraph { name: name.to_owned(), problem };
        if self.open.iter().any(|open| open == name) {
            return Err(failed("contains itself".to_owned()));
        }
        let table = self
            .subgraphs
            .iter()
            .find(|table| table.get(sub_graph_proto::NAME) == Some(name))
            .ok_or_else(|| failed("is not in the file".to_owned()))?;
        let ids = |numbers: Option<&Numbers>| -> Vec<ValueId> {
            let ids = numbers.and_then(|n| n.as_i32()).unwrap_or_default();
            ids.iter().map(|&id| usize::try_from(id).unwrap_or(usize::MAX)).collect()
        };
        let source = GraphSource {
            names: table.get(sub_graph_proto::TENSORS).unwrap_or_default(),
            ops: table.get(sub_graph_proto::NODES).unwrap_or_default(),
            described: table.get(sub_graph_proto::EXTRA_TENSOR_DESCRIBE).unwrap_or_default(),
            inputs: Some(ids(table.get(sub_graph_proto::INPUTS))),
            outputs: Some(ids(table.get(sub_graph_proto::OUTPUTS))),
            static_shapes: false,
        };
        self.open.push(name.to_owned());
        let graph = self.graph(&source);
        self.open.pop();
        let graph = graph.map_err(|error| failed(error.to_string()))?;
        let executor = Arc::new(Executor::new(graph, self.options.clone()));
        self.built.insert(name.to_owned(), executor.clone());
        Ok(executor)
    }
}

impl BuildContext<'_> {
    fn graph(&mut self, source: &GraphSource<'_>) -> Result<Graph, RuntimeError> {
        let mut graph = Graph { names: source.names.to_vec(), ..Graph::default() };
        let floats = source.described.iter().filter_map(|table| describe(&mut graph, table)).collect();
        int8::propagate(&mut graph.quant, &floats, source.ops, source.names.len());
        let mut placement = Placement::new(&graph, source.ops, source.outputs.as_deref());
        let mut versions = Versions { again: source.static_shapes, ..Versions::default() };
        for table in source.ops {
            self.add_op(&mut graph, (&mut placement, &mut versions), table, source)?;
        }
        graph.outputs = match &source.outputs {
            Some(outputs) => outputs.iter().map(|&tensor| versions.current(tensor)).collect(),
            None => unconsumed(&graph),
        };
        placement.finish(&mut graph);
        if let Some(inputs) = &source.inputs {
            order_inputs(&mut graph, inputs)?;
        }
        check(&graph)?;
        Ok(graph)
    }

    fn add_op(
        &mut self,
        graph: &mut Graph,
        (placement, versions): (&mut Placement, &mut Versions),
        table: &Table,
        source: &GraphSource<'_>,
    ) -> Result<(), RuntimeError> {
        let op_type = table.get(op::TYPE);
        let name = table.get(op::NAME).unwrap_or_default().to_owned();
        let place = || format!("{op_type} {name:?}");
        let id = |index: i32| -> Result<ValueId, RuntimeError> {
            usize::try_from(index).ok().filter(|&id| id < source.names.len()).ok_or_else(|| {
                RuntimeError::Graph { place: place(), problem: format!("tensor {index} does not exist") }
            })
        };
        let list = |numbers: Option<&Numbers>| numbers.and_then(|n| n.as_i32().map(|n| n.into_owned()));
        let inputs = list(table.get(op::INPUT_INDEXES))
            .unwrap_or_default()
            .into_iter()
            .map(|index| if index < 0 { Ok(None) } else { id(index).map(Some) })
            .collect::<Result<Vec<_>, _>>()?;
        let outputs = list(table.get(op::OUTPUT_INDEXES))
            .unwrap_or_default()
            .into_iter()
            .map(id)
            .collect::<Result<Vec<_>, _>>()?;
        let main = table.get(op::MAIN);
        match op_type {
            OpType::Input => {
                let Some(&value) = outputs.first() else { return Ok(()) };
                match graph_input(main, source.names[value].clone(), value) {
                    Ok(found) => graph.inputs.push(found),
                    Err(error) => self.problems.push(format!("{}: {error}", place())),
                }
                return Ok(());
            }
            OpType::Const | OpType::TrainableParam => {
                let Some(&value) = outputs.first() else { return Ok(()) };
                match constant(main) {
                    Ok(tensor) => drop(graph.constants.insert(value, tensor)),
                    Err(error) => self.problems.push(format!("{}: {error}", place())),
                }
                return Ok(());
            }
            _ => {}
        }
        let commands = main.filter(|main| op_type == OpType::While && main.kind() == TableKind::LoopParam);
        let (inputs, outputs) = match commands {
            Some(main) => loop_tensors(main, inputs, outputs, |tensor| versions.made.contains(&tensor)),
            None => (inputs, outputs),
        };
        let quant = |value: Option<ValueId>| value.and_then(|value| graph.quant.get(&value).copied());
        let described = |value: ValueId| {
            let found =
                source.described.iter().find(|d| usize::try_from(d.get(tensor_describe::INDEX)) == Ok(value));
            found.filter(|_| source.static_shapes)
        };
        let op_source = OpSource {
            op_type,
            table,
            main,
            inputs: inputs.len(),
            outputs: outputs.len(),
            options: self.options,
            input_quant: inputs.iter().map(|&value| quant(value)).collect(),
            output_quant: outputs.iter().map(|&value| quant(Some(value))).collect(),
            described: outputs.iter().map(|&value| described(value)).collect(),
            input_tensors: &inputs,
            output_tensors: &outputs,
        };
        let (inputs, outputs) = versions.place(graph, &inputs, &outputs);
        let form = placement.form(graph, op_type, main, &inputs, &outputs);
        let form = placement.settle(form, &inputs);
        match operator(&op_source, self, form) {
            Ok((operator, form)) => {
                let node = Node { operator, name, op_type: op_type.to_string(), inputs, outputs };
                placement.add(graph, node, op_type, form);
            }
            Err(error) => self.problems.push(format!("{}: {error}", place())),
        }
        Ok(())
    }
}

/// Files with fixed shapes may produce a tensor again, going on with what it holds. In a graph every tensor is produced once, so
/// what comes later is another tensor. The last one keeps the name.
#[derive(Default)]
struct Versions {
    /// Whether the file may do so.
    again: bool,
    /// Tensors of the file that operators have produced.
    made: HashSet<ValueId>,
    /// What those that were produced again stand for now.
    latest: HashMap<ValueId, ValueId>,
}

impl Versions {
    fn current(&self, tensor: ValueId) -> ValueId {
        self.latest.get(&tensor).copied().unwrap_or(tensor)
    }

    /// The tensors of the graph that a node reads and produces.
    fn place(
        &mut self,
        graph: &mut Graph,
        inputs: &[Option<ValueId>],
        outputs: &[ValueId],
    ) -> (Vec<Option<ValueId>>, Vec<ValueId>) {
        let inputs = inputs.iter().map(|input| input.map(|tensor| self.current(tensor))).collect();
        let outputs = outputs.iter().map(|&tensor| {
            if self.made.insert(tensor) || !self.again {
                return tensor;
            }
            let (old, new) = (self.current(tensor), graph.names.len());
            let name = graph.names[old].clone();
            graph.names[old] = format!("{name} (before {new})");
            graph.names.push(name);
            self.latest.insert(tensor, new);
            new
        });
        (inputs, outputs.collect())
    }
}

/// The operator of a node, and the form it really has.
fn operator(
    source: &OpSource<'_>,
    subgraphs: &mut dyn Subgraphs,
    form: Form,
) -> Result<(Arc<dyn Operator>, Form), OpError> {
    if form != Form::Codes {
        return Ok((create_operator(source, subgraphs)?, form));
    }
    if let Some(operator) = Placement::operator(source)? {
        return Ok((operator, form));
    }
    let operator = create_operator(source, subgraphs)?;
    let form = match source.op_type {
        // No integer form after all: floats between rounded tensors.
        OpType::BinaryOp | OpType::Pooling | OpType::Pooling3D => Form::Rounded,
        OpType::Convolution | OpType::ConvolutionDepthwise if !operator.takes_codes() => Form::Float,
        OpType::UnaryOp => Form::Rounded,
        _ => form,
    };
    Ok((operator, form))
}

/// Notes the quantization of a tensor. Returns the tensor if it is described as one without codes.
fn describe(graph: &mut Graph, table: &Table) -> Option<ValueId> {
    let info = table.get(tensor_describe::QUANT_INFO)?;
    let value = usize::try_from(table.get(tensor_describe::INDEX)).ok()?;
    let quant = QuantInfo {
        scale: info.get(tensor_quant_info::SCALE),
        zero: info.get(tensor_quant_info::ZERO),
        min: info.get(tensor_quant_info::MIN),
        max: info.get(tensor_quant_info::MAX),
    };
    let integer = info.get(tensor_quant_info::TYPE) == DataType::DT_INT8;
    if integer
        && quant.scale.is_normal()
        && quant.scale > 0.0
        && quant.min <= quant.max
        && [quant.zero, quant.min, quant.max].iter().all(|x| x.fract() == 0.0 && (-128.0..=127.0).contains(x))
        && value < graph.names.len()
    {
        graph.quant.insert(value, quant);
    }
    (!integer).then_some(value)
}

fn graph_input(main: Option<&Table>, name: String, value: ValueId) -> Result<GraphInput, OpError> {
    let Some(table) = main else {
        return Ok(GraphInput { name, value, dtype: DType::F32, dims: None });
    };
    expect_kind(table, TableKind::Input)?;
    let wire = table.get(input::DTYPE);
    let dtype = DType::from_wire(wire).ok_or_else(|| OpError::attribute("dtype", wire, "a number type"))?;
    let dims = table
        .get(input::DIMS)
        .and_then(|dims| dims.as_i32().map(|dims| dims.iter().map(|&d| i64::from(d).max(-1)).collect()));
    Ok(GraphInput { name, value, dtype, dims: dims.or(Some(Vec::new())) })
}

fn expect_kind(table: &Table, wanted: TableKind) -> Result<(), OpError> {
    if table.kind() == wanted {
        return Ok(());
    }
    Err(OpError::Parameter { wanted: wanted.name(), got: table.kind().name().to_owned() })
}

/// Constants up to this many bytes are copied out of the file.
const COPIED: usize = 1 << 20;

/// The tensor of a `Const` op: half floats become floats, 64-bit integers 32-bit ones.
pub(crate) fn constant(main: Option<&Table>) -> Result<Tensor, OpError> {
    let table = main.ok_or(OpError::Parameter { wanted: "Blob", got: "absent".to_owned() })?;
    expect_kind(table, TableKind::Blob)?;
    let data = blob::tensor_data(table)?;
    let shape = Shape::new(&data.dims)?;
    Ok(match data.data_type {
        DataType::DT_HALF | DataType::DT_BFLOAT16 => Tensor::from_vec(shape, data.to_f32()?)?,
        DataType::DT_INT64 => {
            let wide = data.numbers.as_i64().unwrap_or_default();
            let narrow = |v: &i64| (*v).clamp(i32::MIN.into(), i32::MAX.into()) as i32;
            Tensor::from_vec(shape, wide.iter().map(narrow).collect::<Vec<i32>>())?
        }
        wire => {
            let dtype = DType::from_wire(wire)
                .ok_or_else(|| OpError::attribute("dataType", wire, "a number type"))?;
            let tensor = Tensor::from_bytes(TensorDesc::new(dtype, shape), data.numbers.to_bytes()?)?;
            // A view of the mapped file would keep all of it in memory.
            if tensor.bytes().len() <= COPIED { Tensor::from_view(tensor.view()) } else { tensor }
        }
    })
}

/// Tensors that are produced and never consumed, in order of production.
fn unconsumed(graph: &Graph) -> Vec<ValueId> {
    let consumed: HashSet<ValueId> =
        graph.nodes.iter().flat_map(|node| node.inputs.iter().flatten().copied()).collect();
    let produced = graph.nodes.iter().flat_map(|node| node.outputs.iter().copied());
    produced.filter(|value| !consumed.contains(value)).collect()
}

/// Brings the inputs of a subgraph into its order; inputs without an `Input` op are floats of any shape.
fn order_inputs(graph: &mut Graph, order: &[ValueId]) -> Result<(), RuntimeError> {
    let mut known: HashMap<ValueId, GraphInput> = graph.inputs.drain(..).map(|i| (i.value, i)).collect();
    for &value in order {
        let name = graph.names.get(value).cloned().ok_or_else(|| RuntimeError::Graph {
            place: "subgraph inputs".to_owned(),
            problem: format!("tensor {value} does not exist"),
        })?;
        let input = known.remove(&value).unwrap_or(GraphInput { name, value, dtype: DType::F32, dims: None });
        graph.inputs.push(input);
    }
    Ok(())
}

/// Each tensor is produced once, before it is used.
fn check(graph: &Graph) -> Result<(), RuntimeError> {
    let wrong = |place: String, problem: String| Err(RuntimeError::Graph { place, problem });
    let mut ready = vec![false; graph.names.len()];
    let sources = graph.inputs.iter().map(|input| input.value).chain(graph.constants.keys().copied());
    for value in sources {
        if std::mem::replace(&mut ready[value], true) {
            return wrong(format!("tensor {:?}", graph.names[value]), "is produced twice".to_owned());
        }
    }
    // A node that was refused has left a gap; what follows from it is no news.
    for node in &graph.nodes {
        for &value in &node.outputs {
            if std::mem::replace(&mut ready[value], true) {
                return wrong(format!("tensor {:?}", graph.names[value]), "is produced twice".to_owned());
            }
        }
    }
    for &value in &graph.outputs {
        if value >= graph.names.len() {
            return wrong("outputs".to_owned(), format!("tensor {value} does not exist"));
        }
    }
    Ok(())
}
