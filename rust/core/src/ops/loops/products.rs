//! Loops that are one batched product of matrices.

use super::command::{Action, Command};
use super::{Buffer, CommandLoop};
use crate::ops::error::OpResult;
use crate::ops::operator::{Fact, Facts, Kernel, PrepareContext};
use crate::tensor::{Shape, Tensor};

/// The kernel of `MatMul` for a loop that only multiplies matrices one after the other, `None` for other loops. Each operand is
/// one matrix for all iterations, or one per iteration without gaps.
pub(super) fn batched(all: &CommandLoop, context: &PrepareContext<'_>) -> OpResult<Option<Box<dyn Kernel>>> {
    let [command] = &all.commands[..] else { return Ok(None) };
    let Action::Product { operator, transpose_a, transpose_b, transpose_out: false } = &command.action else {
        return Ok(None);
    };
    let plain = all.initial.is_empty()
        && all.starts == [None]
        && command.fuse.is_none()
        && command.target.buffer == Buffer::Output(0);
    let [m, k, n] = command.size;
    let matrices = [swapped(*transpose_a, m, k), swapped(*transpose_b, k, n)];
    let shapes = if plain { shapes(all, command, &matrices, context)? } else { None };
    let Some(shapes) = shapes else { return Ok(None) };
    let values: Vec<Option<Tensor>> = shapes
        .iter()
        .enumerate()
        .map(|(input, shape)| {
            let value = context.inputs.get(input).and_then(|fact| fact.value);
            value.map(|tensor| tensor.reshaped(*shape)).transpose()
        })
        .collect::<Result<_, _>>()?;
    let mut facts: Vec<Option<Fact<'_>>> = context.inputs.iter().collect();
    for (fact, (shape, value)) in facts.iter_mut().zip(shapes.iter().zip(&values)) {
        *fact = fact.map(|fact| Fact { desc: fact.desc.with_shape(*shape), value: value.as_ref() });
    }
    let inputs = Facts::new(&facts);
    // Types and shapes are those of matrices; whatever is wrong is told here.
    operator.infer(&Facts::new(&facts[..shapes.len()])).map_err(super::prepared::planning_error)?;
    operator.prepare(&PrepareContext { inputs, ..*context }).map(Some)
}

fn swapped(swap: bool, rows: usize, columns: usize) -> [usize; 2] {
    if swap { [columns, rows] } else { [rows, columns] }
}

/// The shapes of the operands, if the loop is one product of them.
fn shapes(
    all: &CommandLoop,
    command: &Command,
    matrices: &[[usize; 2]; 2],
    context: &PrepareContext<'_>,
) -> OpResult<Option<Vec<Shape>>> {
    let (batch, [m, _, n]) = (all.iterations, command.size);
    let dense = |step: i64, len: usize| i64::try_from(len) == Ok(step);
    let size = m.saturating_mul(n);
    let fits = batch > 0
        && command.target.offset == 0
        && (batch == 1 || dense(command.target.step, size))
        && context.outputs[0].shape.count() == batch.saturating_mul(size)
        && !command.is_indexed();
    if !fits {
        return Ok(None);
    }
    let bias = [n];
    let mut shapes = Vec::new();
    for (input, source) in command.sources.iter().enumerate() {
        let own: &[usize] = matrices.get(input).map_or(&bias, |matrix| matrix);
        let len = own.iter().fold(1_usize, |len, &n| len.saturating_mul(n));
        let each = batch > 1 && source.step != 0;
        let count = if each { batch.saturating_mul(len) } else { len };
        let is_bias = input == matrices.len();
        let fits = source.buffer == Buffer::Input(input)
            && source.offset == 0
            && (!each || (dense(source.step, len) && !is_bias))
            && context.inputs.shape(input)?.count() == count;
        if !fits {
            return Ok(None);
        }
        let dims: Vec<usize> = each.then_some(batch).into_iter().chain(own.iter().copied()).collect();
        shapes.push(Shape::new(&dims)?);
    }
    let several = batch == 1 || shapes.iter().any(|shape| shape.rank() == 3);
    Ok(several.then_some(shapes))
}
