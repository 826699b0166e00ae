//! Operators that walk along one axis: `CumSum`, `ReverseSequence`.

use std::borrow::Cow;

use mnnq_format::schema::{TableKind, cum_sum, reverse_sequence_param};

use super::error::{OpError, OpResult};
use super::gather_nd::axis_input;
use super::operator::{Facts, InferResult, Kernel, Operator, PrepareContext, StepIo};
use super::registry::OpSource;
use super::support::{axis, for_each_outer, split_at_axis};
use crate::tensor::{DType, Element, TensorDesc};

/// `CumSum(x, axis)`: running sums along an axis, from the end if `reverse`, of the elements before each one if
/// `exclusive`. Floats, and 32-bit integers, which wrap around.
pub(super) struct CumSum {
    exclusive: bool,
    reverse: bool,
}

impl CumSum {
    pub(super) fn new(source: &OpSource<'_>) -> OpResult<Self> {
        source.expect_outputs(1)?;
        let table = source.param(TableKind::CumSum)?;
        Ok(Self { exclusive: table.get(cum_sum::EXCLUSIVE), reverse: table.get(cum_sum::REVERSE) })
    }
}

impl Operator for CumSum {
    fn infer(&self, inputs: &Facts<'_>) -> InferResult {
        let desc = inputs.desc(0)?;
        if !matches!(desc.dtype, DType::F32 | DType::I32) {
            let wanted = "float32 or int32".to_owned();
            return Err(OpError::InputType { input: 0, wanted, got: desc.dtype }.into());
        }
        axis_input(inputs, 1, 0, desc.shape.rank())?;
        Ok(vec![TensorDesc::new(desc.dtype, desc.shape)])
    }

    fn prepare(&self, context: &PrepareContext<'_>) -> OpResult<Box<dyn Kernel>> {
        let shape = context.inputs.shape(0)?;
        let along = axis_input(&context.inputs, 1, 0, shape.rank())
            .map_err(|_| OpError::unsupported("an axis that is not known"))?;
        let (_, length, inner) = split_at_axis(&shape, along);
        Ok(Box::new(CumSumKernel { length, inner, exclusive: self.exclusive, reverse: self.reverse }))
    }
}

struct CumSumKernel {
    length: usize,
    inner: usize,
    exclusive: bool,
    reverse: bool,
}

impl CumSumKernel {
    fn scan<T: Element>(&self, io: &mut StepIo<'_, '_>, zero: T, add: impl Fn(T, T) -> T + Sync + Send) {
        let x = io.input(0).data::<T>();
        let (length, inner) = (self.length, self.inner);
        for_each_outer(io.parallel, io.outputs[0].data::<T>(), length * inner, |outer, out| {
            let x = &x[outer * length * inner..][..length * inner];
            let step = |l: usize| if self.reverse { length - 1 - l } else { l };
            for l in 0..length {
                let (row, before) = (step(l) * inner, l.checked_sub(1).map(|l| step(l) * inner));
                for i in 0..inner {
                    let sum = before.map_or(zero, |before| out[before + i]);
                    out[row + i] = match (self.exclusive, before) {
                        (false, _) => add(sum, x[row + i]),
                        (true, Some(before)) => add(sum, x[before + i]),
                        (true, None) => zero,
                    };
                }
            }
        });
    }
}

impl Kernel for CumSumKernel {
    fn label(&self) -> Cow<'static, str> {
        "cumulative sum".into()
    }

    fn run(&self, io: &mut StepIo<'_, '_>) -> OpResult<()> {
        match io.input(0).desc().dtype {
            DType::F32 => self.scan(io, 0.0_f32, |a, b| a + b),
            _ => self.scan(io, 0_i32, i32::wrapping_add),
        }
        Ok(())
    }
}

/// `ReverseSequence(x, lengths)`: for every index b of the batch axis the first `lengths[b]` elements along the
/// sequence axis in reverse order, the others as they are.
pub(super) struct ReverseSequence {
    batch: i64,
    sequence: i64,
}

impl ReverseSequence {
    pub(super) fn new(source: &OpSource<'_>) -> OpResult<Self> {
        source.expect_outputs(1)?;
        let table = source.param(TableKind::ReverseSequenceParam)?;
        let batch = table.get(reverse_sequence_param::BATCH_DIM).into();
        let sequence = table.get(reverse_sequence_param::SEQ_DIM).into();
        if batch == sequence {
            return Err(OpError::attribute("seqDim", sequence, "another axis than batchDim"));
        }
        Ok(Self { batch, sequence })
    }

    fn axes(&self, rank: usize) -> OpResult<(usize, usize)> {
        let (batch, sequence) = (axis(self.batch, rank)?, axis(self.sequence, rank)?);
        if batch == sequence {
            return Err(OpError::attribute("seqDim", self.sequence, "another axis than batchDim"));
        }
        Ok((batch, sequence))
    }
}

impl Operator for ReverseSequence {
    fn infer(&self, inputs: &Facts<'_>) -> InferResult {
        let desc = inputs.desc(0)?;
        let (batch, _) = self.axes(desc.shape.rank())?;
        let lengths = inputs.typed(1, DType::I32)?.shape;
        if lengths.dims() != [desc.shape[batch]] {
            return Err(OpError::shape(1, lengths, format!("[{}]", desc.shape[batch])).into());
        }
        Ok(vec![TensorDesc::new(desc.dtype, desc.shape)])
    }

    fn prepare(&self, context: &PrepareContext<'_>) -> OpResult<Box<dyn Kernel>> {
        let desc = context.inputs.desc(0)?;
        let (batch, sequence) = self.axes(desc.shape.rank())?;
        let strides = desc.shape.strides();
        let last = batch.max(sequence);
        let row = desc.shape.span(last + 1..desc.shape.rank());
        // Strides and positions below are in rows.
        Ok(Box::new(ReverseKernel {
            row: row * desc.dtype.size(),
            batch: (strides[batch] / row.max(1), desc.shape[batch]),
            sequence: (strides[sequence] / row.max(1), desc.shape[sequence]),
        }))
    }
}

struct ReverseKernel {
    /// Bytes of what is moved as one.
    row: usize,
    /// Stride and length of the batch axis.
    batch: (usize, usize),
    /// Stride and length of the sequence axis.
    sequence: (usize, usize),
}

impl Kernel for ReverseKernel {
    fn label(&self) -> Cow<'static, str> {
        "reverse sequence".into()
    }

    fn run(&self, io: &mut StepIo<'_, '_>) -> OpResult<()> {
        let (x, lengths) = (io.input(0).bytes(), io.input(1).data::<i32>());
        let (stride, steps) = self.sequence;
        if let Some(bad) = lengths.iter().find(|&&n| usize::try_from(n).map_or(true, |n| n > steps)) {
            return Err(OpError::value(1, format!("length {bad} of a sequence of {steps}")));
        }
        for_each_outer(io.parallel, io.outputs[0].bytes(), self.row, |at, out| {
            let step = at / stride % steps;
            let length = lengths[at / self.batch.0 % self.batch.1] as usize;
            let from = if step < length { at - step * stride + (length - 1 - step) * stride } else { at };
            out.copy_from_slice(&x[from * self.row..][..self.row]);
        });
        Ok(())
    }
}
