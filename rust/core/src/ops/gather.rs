//! Picking elements by index: `GatherV2`, `Gather`.

use std::borrow::Cow;

use mnnq_format::schema::{OpType, TableKind, axis as axis_param, gather};

use super::error::{OpError, OpResult};
use super::operator::{Facts, InferResult, Kernel, Operator, PrepareContext, StepIo};
use super::registry::OpSource;
use super::support::{axis, split_at_axis};
use crate::tensor::{DType, Shape, TensorDesc};

/// `GatherV2(data, indices[, axis])`: `out[.., i.., ..] = data[.., indices[i..], ..]`. Negative indices count from the
/// end of the axis.
pub(super) struct Gather {
    axis: i64,
}

impl Gather {
    pub(super) fn new(source: &OpSource<'_>) -> OpResult<Self> {
        source.expect_outputs(1)?;
        let axis = match source.main {
            Some(table) if table.kind() == TableKind::Axis => table.get(axis_param::AXIS).into(),
            Some(table) if source.op_type == OpType::Gather && table.kind() == TableKind::Gather => {
                table.get(gather::AXIS).into()
            }
            _ => 0,
        };
        Ok(Self { axis })
    }

    fn position(&self, inputs: &Facts<'_>, rank: usize) -> InferResult<usize> {
        let listed = match inputs.get(2) {
            Some(_) => inputs.integers(2)?.first().copied().unwrap_or(0),
            None => self.axis,
        };
        Ok(axis(listed, rank)?)
    }
}

impl Operator for Gather {
    fn infer(&self, inputs: &Facts<'_>) -> InferResult {
        let data = inputs.desc(0)?;
        let indices = inputs.typed(1, DType::I32)?;
        let position = self.position(inputs, data.shape.rank())?;
        let mut dims = data.shape.dims()[..position].to_vec();
        dims.extend(indices.shape.dims());
        dims.extend(&data.shape.dims()[position + 1..]);
        Ok(vec![TensorDesc::new(data.dtype, Shape::new(&dims)?)])
    }

    fn prepare(&self, context: &PrepareContext<'_>) -> OpResult<Box<dyn Kernel>> {
        let data = context.inputs.desc(0)?;
        let position = self
            .position(&context.inputs, data.shape.rank())
            .map_err(|_| OpError::unsupported("an axis that is not known"))?;
        let (_, length, inner) = split_at_axis(&data.shape, position);
        Ok(Box::new(GatherKernel { length, row: inner * data.dtype.size() }))
    }
}

struct GatherKernel {
    /// Length of the axis.
    length: usize,
    /// Bytes picked by one index.
    row: usize,
}

impl Kernel for GatherKernel {
    fn label(&self) -> Cow<'static, str> {
        "gather".into()
    }

    fn run(&self, io: &mut StepIo<'_, '_>) -> OpResult<()> {
        let (data, indices) = (io.input(0).bytes(), io.input(1).data::<i32>());
        let (length, row) = (self.length as i64, self.row);
        let position = |index: i32| {
            let index = i64::from(index);
            let index = if index < 0 { index + length } else { index };
            (0..length).contains(&index).then_some(index as usize)
        };
        if let Some(bad) = indices.iter().find(|&&index| position(index).is_none()) {
            return Err(OpError::value(1, format!("index {bad} of an axis of {length}")));
        }
        let count = indices.len();
        if count == 0 {
            return Ok(());
        }
        super::support::for_each_outer(io.parallel, io.outputs[0].bytes(), row, |at, out| {
            let (outer, which) = (at / count, position(indices[at % count]).unwrap_or(0));
            out.copy_from_slice(&data[(outer * self.length + which) * row..][..row]);
        });
        Ok(())
    }
}
