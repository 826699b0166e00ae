//! Which nodes of an offline-quantized model run on codes, and the conversions between them and the others.
//!
//! The rule is that of MNN's runtime. First, quantization spreads to undescribed neighbours of described tensors through
//! operators that only move elements ([`propagate`]). Then an operator runs on codes if it has an integer form and all its
//! data is described. Each described tensor exists as codes, as floats, or as both; a conversion is a node, made at the
//! first use of the form that is missing and shared by all later ones. This module knows operator types and tensors, no
//! arithmetic.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use mnnq_format::model::Table;
use mnnq_format::schema::{
    OpType, PoolType, TableKind, UnaryOpOperation, convolution2d, op, pool as pool_table, pool3d, relu,
    unary_op,
};

use super::{Graph, Node, ValueId};
use crate::ops::int8::{binary, dequantize, pool, quantize, rescale, table};
use crate::ops::{OpError, OpSource, Operator, QuantInfo};

/// How a node of a quantized model runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// On floats.
    Float,
    /// On codes.
    Codes,
    /// On floats that lie on the grids of the codes; the output is rounded to its own.
    Rounded,
    /// A table, or the maximum of codes that stand for almost the same numbers in input and output: on codes if the input
    /// is made as codes, else on floats. Equal, since nobody reads the output as floats.
    Table,
    /// Moves codes, after they were brought to the scale of the output. Equal to moving floats, since nobody reads the
    /// output as floats.
    Rescaled,
}

/// What moves elements without looking at them, and where the data is: all inputs, or the first.
fn moves(op_type: OpType) -> Option<bool> {
    match op_type {
        OpType::Concat | OpType::Pack => Some(true),
        OpType::Raster
        | OpType::ConvertTensor
        | OpType::Reshape
        | OpType::Permute
        | OpType::Flatten
        | OpType::Identity
        | OpType::Squeeze
        | OpType::Unsqueeze
        | OpType::Slice
        | OpType::Unpack
        | OpType::StridedSlice
        | OpType::SliceTf
        | OpType::DepthToSpace
        | OpType::SpaceToDepth => Some(false),
        _ => None,
    }
}

fn is_function(op_type: OpType) -> bool {
    matches!(
        op_type,
        OpType::UnaryOp
            | OpType::ReLU
            | OpType::ReLU6
            | OpType::Sigmoid
            | OpType::TanH
            | OpType::ELU
            | OpType::Selu
    )
}

/// The inputs that are data, not parameters.
fn data(op_type: OpType, inputs: &[Option<ValueId>]) -> impl Iterator<Item = ValueId> + use<'_> {
    let all = matches!(op_type, OpType::BinaryOp) || moves(op_type) == Some(true);
    inputs[..if all { inputs.len() } else { inputs.len().min(1) }].iter().flatten().copied()
}

/// An operator of the file as far as this module looks at it.
struct Described<'a> {
    op_type: OpType,
    main: Option<&'a Table>,
    inputs: Vec<Option<ValueId>>,
    outputs: Vec<ValueId>,
}

impl<'a> Described<'a> {
    fn of(table: &'a Table, tensors: usize) -> Self {
        let ids = |numbers: Option<&mnnq_format::Numbers>| -> Vec<Option<ValueId>> {
            let ids = numbers.and_then(|n| n.as_i32()).unwrap_or_default();
            ids.iter().map(|&id| usize::try_from(id).ok().filter(|&id| id < tensors)).collect()
        };
        Self {
            op_type: table.get(op::TYPE),
            main: table.get(op::MAIN),
            inputs: ids(table.get(op::INPUT_INDEXES)),
            outputs: ids(table.get(op::OUTPUT_INDEXES)).into_iter().flatten().collect(),
        }
    }
}

/// Gives undescribed tensors the quantization of their neighbours across operators that move elements or pick among
/// them: forward where there is one data input, backward where there is one output, three rounds, as MNN does. Those
/// described as `floats` neither get one nor pass one on.
pub(super) fn propagate(
    quant: &mut HashMap<ValueId, QuantInfo>,
    floats: &HashSet<ValueId>,
    ops: &[Table],
    tensors: usize,
) {
    if quant.is_empty() {
        return;
    }
    let ops: Vec<Described<'_>> = ops.iter().map(|table| Described::of(table, tensors)).collect();
    let open = |value: &ValueId| !quant.contains_key(value) && !floats.contains(value);
    let (mut forward, mut backward) = (Edges::default(), Edges::default());
    for op in &ops {
        let spreads = moves(op.op_type).is_some()
            || matches!(op.op_type, OpType::Pooling | OpType::Interp | OpType::ReLU | OpType::ReLU6)
            || is_global_pool(op.op_type, op.main);
        if !spreads {
            continue;
        }
        let inputs: Vec<ValueId> = data(op.op_type, &op.inputs).collect();
        if let [input] = inputs[..] {
            op.outputs.iter().filter(|v| open(v)).for_each(|&v| forward.add(input, v));
        }
        if let [output] = op.outputs[..] {
            inputs.iter().filter(|v| open(v)).for_each(|&v| backward.add(output, v));
        }
    }
    // A tensor that could be reached from several others in one direction does not spread in the other.
    let several = |edges: &Edges| -> Vec<ValueId> {
        edges.0.values().filter(|to| to.len() > 1).flatten().copied().collect()
    };
    let (from_backward, from_forward) = (several(&backward), several(&forward));
    from_backward.iter().for_each(|v| drop(forward.0.remove(v)));
    from_forward.iter().for_each(|v| drop(backward.0.remove(v)));
    for _ in 0..3 {
        if !forward.spread(quant) && !backward.spread(quant) {
            break;
        }
    }
}

#[derive(Default)]
struct Edges(HashMap<ValueId, Vec<ValueId>>);

impl Edges {
    fn add(&mut self, from: ValueId, to: ValueId) {
        let list = self.0.entry(from).or_default();
        if !list.contains(&to) {
            list.push(to);
        }
    }

    /// Whether anything changed. Only tensors without a quantization get one.
    fn spread(&self, quant: &mut HashMap<ValueId, QuantInfo>) -> bool {
        let mut todo: Vec<ValueId> = self.0.keys().copied().filter(|v| quant.contains_key(v)).collect();
        todo.sort_unstable();
        let mut changed = false;
        while let Some(from) = todo.pop() {
            let info = quant[&from];
            for &to in self.0.get(&from).into_iter().flatten() {
                if let std::collections::hash_map::Entry::Vacant(entry) = quant.entry(to) {
                    entry.insert(info);
                    changed = true;
                    todo.push(to);
                }
            }
        }
        changed
    }
}

/// The parameter table, if it is of this kind.
fn of_kind(main: Option<&Table>, kind: TableKind) -> Option<&Table> {
    main.filter(|table| table.kind() == kind)
}

fn is_global_pool(op_type: OpType, main: Option<&Table>) -> bool {
    op_type == OpType::Pooling3D && of_kind(main, TableKind::Pool3D).is_some_and(|t| t.get(pool3d::IS_GLOBAL))
}

fn is_max_pool(op_type: OpType, main: Option<&Table>) -> bool {
    let plain = |table: &Table| table.get(pool_table::TYPE) == PoolType::MAXPOOL;
    let volume = |table: &Table| table.get(pool3d::TYPE) == PoolType::MAXPOOL;
    match op_type {
        OpType::Pooling => of_kind(main, TableKind::Pool).is_some_and(plain),
        _ => is_global_pool(op_type, main) && of_kind(main, TableKind::Pool3D).is_some_and(volume),
    }
}

/// Forms of the tensors of a graph while it is built.
#[derive(Default)]
pub(super) struct Placement {
    /// Tensors that somebody reads as floats.
    read_as_floats: HashSet<ValueId>,
    /// Codes of a tensor.
    codes: HashMap<ValueId, ValueId>,
    /// Floats on the grid, of tensors whose own floats are not.
    rounded: HashMap<ValueId, ValueId>,
    /// Tensors that exist as codes only, so far.
    missing: HashSet<ValueId>,
    /// Tensors that are made as codes.
    native: HashSet<ValueId>,
}

impl Placement {
    /// Looks ahead who reads what.
    pub(super) fn new(graph: &Graph, ops: &[Table], outputs: Option<&[ValueId]>) -> Self {
        let mut this = Self::default();
        if graph.quant.is_empty() {
            return this;
        }
        let ops: Vec<Described<'_>> =
            ops.iter().map(|table| Described::of(table, graph.names.len())).collect();
        match outputs {
            Some(outputs) => this.read_as_floats.extend(outputs),
            None => {
                let read: HashSet<ValueId> =
                    ops.iter().flat_map(|op| op.inputs.iter().flatten().copied()).collect();
                let made = ops.iter().flat_map(|op| op.outputs.iter().copied());
                this.read_as_floats.extend(made.filter(|value| !read.contains(value)));
            }
        }
        for op in ops.iter().rev() {
            let form = this.form(graph, op.op_type, op.main, &op.inputs, &op.outputs);
            let codes: HashSet<ValueId> = match form {
                Form::Codes | Form::Rescaled | Form::Table => data(op.op_type, &op.inputs).collect(),
                Form::Float | Form::Rounded => HashSet::new(),
            };
            let read = op.inputs.iter().flatten().filter(|value| !codes.contains(value));
            this.read_as_floats.extend(read);
        }
        this
    }

    /// How a node runs.
    pub(super) fn form(
        &self,
        graph: &Graph,
        op_type: OpType,
        main: Option<&Table>,
        inputs: &[Option<ValueId>],
        outputs: &[ValueId],
    ) -> Form {
        let quant = |value: ValueId| graph.quant.get(&value);
        let Some(output) = outputs.first().and_then(|&value| quant(value)) else { return Form::Float };
        let Some(data) = data(op_type, inputs).map(quant).collect::<Option<Vec<&QuantInfo>>>() else {
            return Form::Float;
        };
        if data.is_empty() || outputs.iter().any(|&value| quant(value).is_none_or(|q| !q.same_grid(output))) {
            return Form::Float;
        }
        let same = data.iter().all(|input| input.same_grid(output));
        let alone = outputs.iter().all(|value| !self.read_as_floats.contains(value));
        match op_type {
            OpType::Convolution | OpType::ConvolutionDepthwise => {
                let integer = of_kind(main, TableKind::Convolution2D)
                    .is_some_and(|table| table.get(convolution2d::QUAN_PARAMETER).is_some());
                if integer && inputs.len() == 1 { Form::Codes } else { Form::Float }
            }
            OpType::Pooling if same => Form::Codes,
            OpType::Pooling3D if same && is_global_pool(op_type, main) => Form::Codes,
            OpType::Pooling | OpType::Pooling3D
                if alone
                    && data.iter().all(|input| input.same_codes(output))
                    && is_max_pool(op_type, main) =>
            {
                Form::Table
            }
            OpType::BinaryOp => Form::Codes,
            OpType::Softmax | OpType::LayerNorm | OpType::Scale | OpType::Interp | OpType::PReLU => {
                Form::Rounded
            }
            _ if moves(op_type).is_some() => match (same, alone) {
                (true, _) => Form::Codes,
                (false, true) => Form::Rescaled,
                (false, false) => Form::Float,
            },
            _ if is_function(op_type) && function_of_codes(op_type, main, same) => Form::Codes,
            _ if is_function(op_type) && alone => Form::Table,
            _ => Form::Float,
        }
    }

    /// [`Form::Table`] decided by what is known of the input while the graph is built.
    pub(super) fn settle(&self, form: Form, inputs: &[Option<ValueId>]) -> Form {
        match (form, inputs.first()) {
            (Form::Table, Some(Some(input))) if self.native.contains(input) => Form::Codes,
            (Form::Table, _) => Form::Float,
            _ => form,
        }
    }

    /// The operator on codes of a node that has one of its own; `None` if that of floats takes codes as well, or there
    /// is none.
    pub(super) fn operator(source: &OpSource<'_>) -> Result<Option<Arc<dyn Operator>>, OpError> {
        match source.op_type {
            OpType::Pooling | OpType::Pooling3D => pool(source),
            OpType::BinaryOp => binary(source),
            op_type if is_function(op_type) => table(source),
            _ => Ok(None),
        }
    }

    /// Adds a node in this form.
    pub(super) fn add(&mut self, graph: &mut Graph, mut node: Node, op_type: OpType, form: Form) {
        let data = data(op_type, &node.inputs).count();
        let target = node.outputs.first().and_then(|value| graph.quant.get(value)).copied();
        for (position, input) in node.inputs.iter_mut().enumerate() {
            let Some(value) = *input else { continue };
            *input = Some(match (form, target) {
                (Form::Codes, _) if position < data => self.codes(graph, value),
                (Form::Rescaled, Some(target)) if position < data => self.rescaled(graph, value, &target),
                (Form::Rounded, _) if graph.quant.contains_key(&value) => self.rounded(graph, value),
                _ => self.floats(graph, value),
            });
        }
        let outputs = node.outputs.clone();
        match form {
            Form::Float | Form::Table => graph.nodes.push(node),
            Form::Codes | Form::Rescaled => {
                for output in &mut node.outputs {
                    *output = self.new_codes(graph, *output);
                }
                graph.nodes.push(node);
            }
            Form::Rounded => {
                for output in &mut node.outputs {
                    *output = fresh(graph, format!("{}__float", graph.names[*output]));
                }
                let made = node.outputs.clone();
                graph.nodes.push(node);
                for (from, value) in made.into_iter().zip(outputs) {
                    let to = self.new_codes(graph, value);
                    convert(graph, quantize(&graph.quant[&value]), "quantize", from, to);
                }
            }
        }
    }

    /// Makes what the graph must give as floats, and names what exists as codes only.
    pub(super) fn finish(&mut self, graph: &mut Graph) {
        let of_codes: HashMap<ValueId, ValueId> =
            self.codes.iter().map(|(&value, &codes)| (codes, value)).collect();
        for value in &mut graph.outputs {
            *value = of_codes.get(value).copied().unwrap_or(*value);
        }
        for value in graph.outputs.clone() {
            self.floats(graph, value);
        }
        for (&value, &codes) in &self.codes {
            let suffix = if self.missing.contains(&value) { "" } else { "__int8" };
            graph.names[codes] = format!("{}{suffix}", graph.names[value]);
            graph.coded.insert(codes, graph.quant[&value]);
        }
    }

    fn new_codes(&mut self, graph: &mut Graph, value: ValueId) -> ValueId {
        let codes = fresh(graph, String::new());
        self.codes.insert(value, codes);
        self.missing.insert(value);
        self.native.insert(value);
        codes
    }

    /// The codes of a described tensor.
    fn codes(&mut self, graph: &mut Graph, value: ValueId) -> ValueId {
        if let Some(&codes) = self.codes.get(&value) {
            return codes;
        }
        let codes = fresh(graph, String::new());
        self.codes.insert(value, codes);
        convert(graph, quantize(&graph.quant[&value]), "quantize", value, codes);
        codes
    }

    /// The codes of a tensor on another grid; floats are rounded to that grid only.
    fn rescaled(&mut self, graph: &mut Graph, value: ValueId, to: &QuantInfo) -> ValueId {
        let from = graph.quant[&value];
        if from.same_grid(to) {
            return self.codes(graph, value);
        }
        let rescaled = fresh(graph, format!("{}__rescaled", graph.names[value]));
        graph.coded.insert(rescaled, *to);
        if self.native.contains(&value) {
            let codes = self.codes(graph, value);
            convert(graph, rescale(&from, to), "rescale", codes, rescaled);
        } else {
            convert(graph, quantize(to), "quantize", value, rescaled);
        }
        rescaled
    }

    /// The tensor as floats.
    fn floats(&mut self, graph: &mut Graph, value: ValueId) -> ValueId {
        if self.missing.remove(&value) {
            convert(graph, dequantize(&graph.quant[&value]), "dequantize", self.codes[&value], value);
        }
        value
    }

    /// The tensor as floats on its grid.
    fn rounded(&mut self, graph: &mut Graph, value: ValueId) -> ValueId {
        if self.native.contains(&value) {
            return self.floats(graph, value);
        }
        if let Some(&rounded) = self.rounded.get(&value) {
            return rounded;
        }
        let codes = self.codes(graph, value);
        let rounded = fresh(graph, format!("{}__rounded", graph.names[value]));
        convert(graph, dequantize(&graph.quant[&value]), "dequantize", codes, rounded);
        self.rounded.insert(value, rounded);
        rounded
    }
}

/// Functions that MNN computes on codes: those with a table, three more, and ReLU that keeps the scale.
fn function_of_codes(op_type: OpType, main: Option<&Table>, same: bool) -> bool {
    match op_type {
        OpType::UnaryOp => of_kind(main, TableKind::UnaryOp).is_some_and(|table| {
            use UnaryOpOperation as Code;
            let code = table.get(unary_op::OP_TYPE);
            table.has(unary_op::TABLE_INT8) || matches!(code, Code::NEG | Code::ABS | Code::SIGN)
        }),
        OpType::ReLU => {
            same && of_kind(main, TableKind::Relu).is_none_or(|table| table.get(relu::SLOPE) == 0.0)
        }
        _ => false,
    }
}

fn fresh(graph: &mut Graph, name: String) -> ValueId {
    graph.names.push(name);
    graph.names.len() - 1
}

fn convert(graph: &mut Graph, operator: Arc<dyn Operator>, op_type: &str, from: ValueId, to: ValueId) {
    let name = [from, to].map(|value| graph.names[value].as_str());
    let name = if name[0].is_empty() { name[1] } else { name[0] }.to_owned();
    let (inputs, outputs) = (vec![Some(from)], vec![to]);
    graph.nodes.push(Node { operator, name, op_type: op_type.to_owned(), inputs, outputs });
}
