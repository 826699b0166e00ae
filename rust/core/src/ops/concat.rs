//! Joining tensors: `Concat`, `Pack`.

use std::borrow::Cow;

use mnnq_format::schema::{TableKind, axis as axis_param, pack_param};

use super::error::{OpError, OpResult};
use super::operator::{Facts, InferResult, Kernel, Layouts, Operator, PrepareContext, StepIo};
use super::registry::OpSource;
use super::support::{axis, largest_layout, split_physical};
use crate::tensor::{Layout, Shape, TensorDesc};

/// `Concat(axis)`: inputs one after the other along an axis. `Pack(axis)`: along a new axis.
pub(super) struct Concat {
    axis: i64,
    new_axis: bool,
}

impl Concat {
    pub(super) fn new(source: &OpSource<'_>) -> OpResult<Self> {
        source.expect_outputs(1)?;
        let axis = source.param(TableKind::Axis)?.get(axis_param::AXIS).into();
        Ok(Self { axis, new_axis: false })
    }

    pub(super) fn pack(source: &OpSource<'_>) -> OpResult<Self> {
        source.expect_outputs(1)?;
        let axis = source.param(TableKind::PackParam)?.get(pack_param::AXIS).into();
        Ok(Self { axis, new_axis: true })
    }
}

impl Concat {
    /// Whether it joins the channels of images.
    pub(super) fn joins_channels(&self) -> bool {
        !self.new_axis && matches!(self.axis, 1 | -3)
    }
}

impl Operator for Concat {
    fn infer(&self, inputs: &Facts<'_>) -> InferResult {
        let first = inputs.desc(0)?;
        let rank = first.shape.rank();
        let position = axis(self.axis, rank + usize::from(self.new_axis))?;
        let mut dims = first.shape.dims().to_vec();
        for input in 1..inputs.len() {
            let desc = inputs.desc(input)?;
            if desc.dtype != first.dtype {
                let wanted = first.dtype.to_string();
                return Err(OpError::InputType { input, wanted, got: desc.dtype }.into());
            }
            let fits = desc.shape.rank() == rank
                && (0..rank).all(|a| desc.shape[a] == first.shape[a] || (a == position && !self.new_axis));
            if !fits {
                let wanted = format!("{} in all axes but the one joined", first.shape);
                return Err(OpError::shape(input, desc.shape, wanted).into());
            }
            if !self.new_axis {
                dims[position] += desc.shape[position];
            }
        }
        if self.new_axis {
            dims.insert(position, inputs.len());
        }
        Ok(vec![TensorDesc::new(first.dtype, Shape::new(&dims)?)])
    }

    fn layouts(&self, inputs: &Facts<'_>, outputs: &[TensorDesc]) -> Layouts {
        if self.new_axis {
            return Layouts::plain(inputs.len(), outputs.len());
        }
        let descs: Vec<TensorDesc> = inputs.iter().flatten().map(|fact| fact.desc).collect();
        let layout = largest_layout(descs.iter());
        let mut layouts = Layouts::plain(inputs.len(), outputs.len());
        layouts.inputs.fill(Some(layout));
        layouts.outputs.fill(layout);
        layouts
    }

    fn prepare(&self, context: &PrepareContext<'_>) -> OpResult<Box<dyn Kernel>> {
        let out = context.outputs[0];
        let position = axis(self.axis, out.shape.rank())?;
        let size = out.dtype.size();
        let (_, _, inner) = split_physical(&out, position);
        let lengths = (0..context.inputs.len())
            .map(|input| {
                let length = if self.new_axis { 1 } else { context.inputs.shape(input)?[position] };
                Ok(length * inner * size)
            })
            .collect::<OpResult<Vec<usize>>>()?;
        Ok(Box::new(ConcatKernel { row: lengths.iter().sum(), lengths, layout: out.layout }))
    }
}

/// Rows of the output are made of one piece of each input.
struct ConcatKernel {
    /// Bytes of each input's piece.
    lengths: Vec<usize>,
    /// Bytes of a row.
    row: usize,
    layout: Layout,
}

impl Kernel for ConcatKernel {
    fn label(&self) -> Cow<'static, str> {
        format!("concat {:?}", self.layout).to_lowercase().into()
    }

    fn run(&self, io: &mut StepIo<'_, '_>) -> OpResult<()> {
        let inputs = io.inputs;
        let out = io.outputs[0].bytes();
        if out.is_empty() {
            return Ok(());
        }
        let rows = 65536_usize.div_ceil(self.row).max(1);
        io.parallel.for_each_chunk(out, rows * self.row, |chunk, out| {
            for (index, row) in out.chunks_mut(self.row).enumerate() {
                let index = chunk * rows + index;
                let mut at = 0;
                for (input, &length) in inputs.iter().zip(&self.lengths) {
                    let bytes = input.as_ref().map_or(&[][..], |view| view.bytes());
                    row[at..at + length].copy_from_slice(&bytes[index * length..][..length]);
                    at += length;
                }
            }
        });
        Ok(())
    }
}
