//! Models built in code.
#![allow(dead_code, reason = "each test uses a part of it")]

use mnnq_core::runtime::{RuntimeError, Session, SessionOptions};
use mnnq_format::Model;
use mnnq_format::model::{Numbers, Table};
use mnnq_format::schema::*;

/// A graph under construction; tensors are known by name.
#[derive(Default)]
pub(crate) struct Builder {
    pub(crate) names: Vec<String>,
    pub(crate) ops: Vec<Table>,
    pub(crate) subgraphs: Vec<Table>,
    /// The file has fixed shapes.
    pub(crate) fixed: bool,
}

impl Builder {
    pub(crate) fn id(&mut self, name: &str) -> i32 {
        let position = self.names.iter().position(|known| known == name).unwrap_or_else(|| {
            self.names.push(name.to_owned());
            self.names.len() - 1
        });
        i32::try_from(position).unwrap()
    }

    pub(crate) fn op(
        &mut self,
        kind: OpType,
        inputs: &[&str],
        outputs: &[&str],
        main: Option<Table>,
    ) -> &mut Self {
        let mut table = Table::new(TableKind::Op);
        let ids = |builder: &mut Self, names: &[&str]| -> Numbers {
            names.iter().map(|name| builder.id(name)).collect::<Vec<i32>>().into()
        };
        let (input_ids, output_ids) = (ids(self, inputs), ids(self, outputs));
        table.set(op::TYPE, kind).set(op::NAME, outputs[0].to_owned());
        table.set(op::INPUT_INDEXES, input_ids).set(op::OUTPUT_INDEXES, output_ids);
        if let Some(main) = main {
            table.set(op::MAIN, main);
        }
        self.ops.push(table);
        self
    }

    pub(crate) fn input(&mut self, name: &str, data_type: DataType, dims: &[i32]) -> &mut Self {
        let mut table = Table::new(TableKind::Input);
        table.set(input::DIMS, dims.to_vec()).set(input::DTYPE, data_type);
        self.op(OpType::Input, &[], &[name], Some(table))
    }

    pub(crate) fn ints(&mut self, name: &str, dims: &[i32], values: &[i32]) -> &mut Self {
        let mut table = Table::new(TableKind::Blob);
        table.set(blob::DIMS, dims.to_vec()).set(blob::DATA_TYPE, DataType::DT_INT32);
        table.set(blob::INT32S, values.to_vec());
        self.op(OpType::Const, &[], &[name], Some(table))
    }

    pub(crate) fn floats(&mut self, name: &str, dims: &[i32], values: &[f32]) -> &mut Self {
        let mut table = Table::new(TableKind::Blob);
        table.set(blob::DIMS, dims.to_vec()).set(blob::FLOAT32S, values.to_vec());
        self.op(OpType::Const, &[], &[name], Some(table))
    }

    pub(crate) fn binary(&mut self, code: BinaryOpOperation, a: &str, b: &str, out: &str) -> &mut Self {
        let mut table = Table::new(TableKind::BinaryOp);
        table.set(binary_op::OP_TYPE, code);
        self.op(OpType::BinaryOp, &[a, b], &[out], Some(table))
    }

    pub(crate) fn unary(&mut self, code: UnaryOpOperation, x: &str, out: &str) -> &mut Self {
        let mut table = Table::new(TableKind::UnaryOp);
        table.set(unary_op::OP_TYPE, code);
        self.op(OpType::UnaryOp, &[x], &[out], Some(table))
    }

    /// Closes the graph as a subgraph of `outer`.
    pub(crate) fn into_subgraph(
        mut self,
        outer: &mut Builder,
        name: &str,
        inputs: &[&str],
        outputs: &[&str],
    ) {
        let mut table = Table::new(TableKind::SubGraphProto);
        let inputs: Vec<i32> = inputs.iter().map(|name| self.id(name)).collect();
        let outputs: Vec<i32> = outputs.iter().map(|name| self.id(name)).collect();
        table.set(sub_graph_proto::NAME, name.to_owned());
        table.set(sub_graph_proto::INPUTS, inputs).set(sub_graph_proto::OUTPUTS, outputs);
        table.set(sub_graph_proto::TENSORS, self.names).set(sub_graph_proto::NODES, self.ops);
        outer.subgraphs.push(table);
    }

    pub(crate) fn session(self, outputs: &[&str], options: SessionOptions) -> Result<Session, RuntimeError> {
        let mut net = Table::new(TableKind::Net);
        net.set(net::OPLISTS, self.ops).set(net::TENSOR_NAME, self.names);
        net.set(net::OUTPUT_NAME, outputs.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>());
        if self.fixed {
            net.set(net::USAGE, Usage::INFERENCE_STATIC);
        }
        if !self.subgraphs.is_empty() {
            net.set(net::SUBGRAPHS, self.subgraphs);
        }
        Session::new(&Model::new(net).unwrap(), options)
    }
}
