//! Commands of a loop, as the file states them.

use std::collections::HashMap;
use std::sync::Arc;

use mnnq_format::model::{Numbers, Table};
use mnnq_format::schema::{
    BinaryOpOperation, Field, OpType, TableKind, loop_param, mat_mul, op, region_command, view,
};
use smallvec::SmallVec;

use super::Buffer;
use crate::ops::error::{OpError, OpResult};
use crate::ops::operator::Operator;
use crate::ops::registry::{OpSource, Subgraphs, create_operator};
use crate::ops::support::ints;

/// Where a command reads or writes in iteration `i`: from element `offset + step * at` of a tensor on, where `at` is `i`, or
/// element `i` of an index tensor.
#[derive(Debug, Clone, Copy)]
pub(super) struct Access {
    pub(super) buffer: Buffer,
    /// The input with the indices.
    pub(super) index: Option<usize>,
    pub(super) step: i64,
    pub(super) offset: i64,
    /// Distance of neighbours along the three axes of the command.
    pub(super) strides: [i64; 3],
}

/// What a command does with what it reads.
pub(super) enum Action {
    /// Fills a whole tensor with zeros.
    Zero,
    /// Copies.
    Copy,
    /// A function of one or two elements.
    Elementwise(Arc<dyn Operator>),
    /// The product of a matrix of `size[0]` rows and one of `size[2]` columns, perhaps with a bias. Matrices lie in memory
    /// without gaps, whatever the strides say.
    Product { operator: Arc<dyn Operator>, transpose_a: bool, transpose_b: bool, transpose_out: bool },
}

/// How the result of a command meets what is in its target: replaces it, or is combined with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fuse {
    Add,
    Sub,
    Mul,
    Min,
    Max,
}

/// One command.
pub(super) struct Command {
    pub(super) action: Action,
    pub(super) size: [usize; 3],
    pub(super) target: Access,
    pub(super) sources: SmallVec<[Access; 3]>,
    pub(super) fuse: Option<Fuse>,
}

/// The numbers of a vector.
fn list(table: &Table, field: Field<Vec<i32>>) -> Vec<i64> {
    ints(table.get(field)).unwrap_or_default()
}

fn three(key: &'static str, list: Vec<i64>) -> OpResult<[i64; 3]> {
    list.as_slice().try_into().map_err(|_| OpError::attribute(key, format!("{list:?}"), "3 numbers"))
}

/// The first `count` numbers of a vector that has at least so many.
fn at_least(key: &'static str, mut list: Vec<i64>, count: usize) -> OpResult<Vec<i64>> {
    if list.len() < count {
        return Err(OpError::attribute(key, format!("{list:?}"), format!("{count} numbers")));
    }
    list.truncate(count);
    Ok(list)
}

/// Reads the commands of one loop.
pub(super) struct Reader<'a, 'b> {
    pub(super) source: &'a OpSource<'b>,
    /// Per slot of the loop, the tensor it stands for.
    pub(super) slots: HashMap<i64, Buffer>,
    /// Inputs of the file's operator.
    pub(super) inputs: usize,
}

impl Reader<'_, '_> {
    /// The commands of each iteration.
    pub(super) fn commands(&self, table: &Table, subgraphs: &mut dyn Subgraphs) -> OpResult<Vec<Command>> {
        let tables = table.get(loop_param::COMMANDS).unwrap_or_default();
        tables.iter().map(|command| self.command(command, tables.len() == 1, subgraphs)).collect()
    }

    /// The commands before the first iteration: copies and zeros.
    pub(super) fn initial(&self, table: &Table) -> OpResult<Vec<Command>> {
        let tables = table.get(loop_param::INIT_COMMAND).unwrap_or_default();
        tables.iter().map(|command| self.initial_command(command)).collect()
    }

    fn buffer(&self, slot: i64) -> OpResult<Buffer> {
        self.slots
            .get(&slot)
            .copied()
            .ok_or_else(|| OpError::attribute("indexes", slot, "an input or output of the loop"))
    }

    fn target(&self, access: Access) -> OpResult<Access> {
        match access.buffer {
            Buffer::Output(_) => Ok(access),
            Buffer::Input(input) => {
                Err(OpError::attribute("indexes", format!("a result in input {input}"), "an output"))
            }
        }
    }

    fn initial_command(&self, table: &Table) -> OpResult<Command> {
        if table.get(region_command::FUSE) >= 0 {
            return Err(OpError::unsupported("an initial command with fuse"));
        }
        let indexes = list(table, region_command::INDEXES);
        let Some(inner) = table.get(region_command::OP) else {
            let slot = *indexes.first().ok_or_else(|| OpError::attribute("indexes", "empty", "a tensor"))?;
            let target =
                Access { buffer: self.buffer(slot)?, index: None, step: 0, offset: 0, strides: [0; 3] };
            let target = self.target(target)?;
            return Ok(Command {
                action: Action::Zero,
                size: [0; 3],
                target,
                sources: SmallVec::new(),
                fuse: None,
            });
        };
        if inner.get(op::TYPE) != OpType::UnaryOp || inner.get(op::MAIN).is_some() {
            return Err(OpError::unsupported(format!("an initial command {}", inner.get(op::TYPE))));
        }
        let mut accesses = self.accesses(table, 2, &[0; 2], &[-1; 2], false)?;
        let target = self.target(accesses.remove(0))?;
        Ok(Command { action: Action::Copy, size: size(table)?, target, sources: accesses, fuse: None })
    }

    /// The tensors of a command, the target first.
    fn accesses(
        &self,
        table: &Table,
        count: usize,
        steps: &[i64],
        indices: &[i64],
        by_input: bool,
    ) -> OpResult<SmallVec<[Access; 3]>> {
        let slots = at_least("indexes", list(table, region_command::INDEXES), count)?;
        let views = table.get(region_command::VIEW).unwrap_or_default();
        if views.len() < count {
            return Err(OpError::attribute("view", format!("{} views", views.len()), count.to_string()));
        }
        let access = |position: usize| -> OpResult<Access> {
            let wanted = indices[position];
            let index = match usize::try_from(wanted) {
                Err(_) => None,
                // A single copy counts inputs, other commands count slots.
                Ok(index) if by_input => Some(index).filter(|&index| index < self.inputs),
                Ok(_) => match self.slots.get(&wanted) {
                    Some(&Buffer::Input(input)) => Some(input),
                    _ => None,
                },
            };
            if index.is_none() && wanted >= 0 {
                return Err(OpError::attribute("iterIndexes", wanted, "-1 or an input of the loop"));
            }
            Ok(Access {
                buffer: self.buffer(slots[position])?,
                index,
                step: steps[position],
                offset: views[position].get(view::OFFSET).into(),
                strides: three("stride", list(&views[position], view::STRIDE))?,
            })
        };
        (0..count).map(access).collect()
    }

    fn command(&self, table: &Table, only: bool, subgraphs: &mut dyn Subgraphs) -> OpResult<Command> {
        let inner = table.get(region_command::OP);
        let inner = inner.ok_or_else(|| OpError::attribute("op", "absent", "an operator"))?;
        let op_type = inner.get(op::TYPE);
        let main = inner.get(op::MAIN);
        let given = table.get(region_command::INDEXES).map_or(0, Numbers::len);
        let count = match op_type {
            OpType::UnaryOp => 2,
            OpType::BinaryOp => 3,
            OpType::MatMul => given.clamp(3, 4),
            _ => return Err(OpError::unsupported(format!("a command {op_type}"))),
        };
        let copy = op_type == OpType::UnaryOp && main.is_none();
        let fuse = fuse(table.get(region_command::FUSE))?;
        let steps = at_least("steps", list(table, region_command::STEPS), count)?;
        let indices = at_least("iterIndexes", list(table, region_command::ITER_INDEXES), count)?;
        let mut accesses = self.accesses(table, count, &steps, &indices, copy && only && fuse.is_none())?;
        let target = self.target(accesses.remove(0))?;
        let action = if copy {
            Action::Copy
        } else {
            let operator = create_operator(&self.inner_source(inner, op_type, count - 1), subgraphs)?;
            match (op_type, main) {
                (OpType::MatMul, Some(main)) if main.kind() == TableKind::MatMul => Action::Product {
                    operator,
                    transpose_a: main.get(mat_mul::TRANSPOSE_A),
                    transpose_b: main.get(mat_mul::TRANSPOSE_B),
                    transpose_out: target.strides[0] == 1 && target.strides[2] != 1,
                },
                _ => Action::Elementwise(operator),
            }
        };
        Ok(Command { action, size: size(table)?, target, sources: accesses, fuse })
    }

    fn inner_source<'c>(&'c self, table: &'c Table, op_type: OpType, inputs: usize) -> OpSource<'c> {
        OpSource {
            op_type,
            table,
            main: table.get(op::MAIN),
            inputs,
            outputs: 1,
            options: self.source.options,
            input_quant: smallvec::smallvec![None; inputs],
            output_quant: smallvec::smallvec![None],
            described: vec![None],
            input_tensors: &[],
            output_tensors: &[],
        }
    }
}

/// Three lengths.
fn size(table: &Table) -> OpResult<[usize; 3]> {
    let size = three("size", list(table, region_command::SIZE))?;
    let bad = || OpError::attribute("size", format!("{size:?}"), "3 lengths");
    let mut lengths = [0; 3];
    for (length, &n) in lengths.iter_mut().zip(&size) {
        *length = usize::try_from(n).map_err(|_| bad())?;
    }
    Ok(lengths)
}

fn fuse(code: i32) -> OpResult<Option<Fuse>> {
    if code < 0 {
        return Ok(None);
    }
    Ok(Some(match BinaryOpOperation(code) {
        BinaryOpOperation::ADD => Fuse::Add,
        BinaryOpOperation::SUB => Fuse::Sub,
        BinaryOpOperation::MUL => Fuse::Mul,
        BinaryOpOperation::MINIMUM => Fuse::Min,
        BinaryOpOperation::MAXIMUM => Fuse::Max,
        other => return Err(OpError::attribute("fuse", other, "ADD, SUB, MUL, MINIMUM or MAXIMUM")),
    }))
}
