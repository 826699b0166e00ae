//! Shapes as tensors, and tensors of a given shape: `Shape`, `Rank`, `Size`, `BroadcastTo`, `Fill`, `Range`, `Tile`.

use std::borrow::Cow;

use mnnq_format::schema::{OpType, TableKind, shape_param};

use super::error::{OpError, OpResult};
use super::operator::{Facts, InferError, InferResult, Kernel, Operator, PrepareContext, StepIo};
use super::permute::CopyKernel;
use super::registry::OpSource;
use super::support::{StridedCopy, scalar_f32};
use crate::tensor::{DType, Shape, Tensor, TensorDesc};

/// `Shape` (perhaps only axes `start..end`), `Rank`, `Size`: INT32, from the shape of input 0.
pub(super) struct ShapeOf {
    kind: OpType,
    start: Option<i64>,
    end: Option<i64>,
}

impl ShapeOf {
    pub(super) fn new(source: &OpSource<'_>) -> OpResult<Self> {
        source.expect_outputs(1)?;
        let table = source.main.filter(|table| table.kind() == TableKind::ShapeParam);
        let bound = |has, value| table.filter(|t| t.get(has)).map(|t| i64::from(t.get(value)));
        Ok(Self {
            kind: source.op_type,
            start: bound(shape_param::HAS_START, shape_param::START),
            end: bound(shape_param::HAS_END, shape_param::END),
        })
    }

    fn value(&self, shape: Shape) -> Tensor {
        let int = |v: usize| i32::try_from(v).unwrap_or(i32::MAX);
        if self.kind == OpType::Rank {
            return Tensor::scalar(int(shape.rank()));
        }
        if self.kind == OpType::Size {
            return Tensor::scalar(int(shape.count()));
        }
        let rank = shape.rank() as i64;
        let clamp = |v: i64| (if v < 0 { v + rank } else { v }).clamp(0, rank) as usize;
        let (start, end) = (clamp(self.start.unwrap_or(0)), clamp(self.end.unwrap_or(rank)));
        let dims: Vec<i32> = shape[start..end.max(start)].iter().map(|&d| int(d)).collect();
        Tensor::vector(&dims)
    }
}

impl Operator for ShapeOf {
    fn infer(&self, inputs: &Facts<'_>) -> InferResult {
        Ok(vec![self.value(inputs.shape(0)?).desc()])
    }

    fn fold(&self, inputs: &Facts<'_>) -> Option<Vec<Tensor>> {
        Some(vec![self.value(inputs.get(0)?.desc.shape)])
    }

    fn prepare(&self, context: &PrepareContext<'_>) -> OpResult<Box<dyn Kernel>> {
        Ok(Box::new(Constant { tensor: self.value(context.inputs.shape(0)?) }))
    }
}

/// Writes a tensor that is known.
struct Constant {
    tensor: Tensor,
}

impl Kernel for Constant {
    fn label(&self) -> Cow<'static, str> {
        "constant".into()
    }

    fn run(&self, io: &mut StepIo<'_, '_>) -> OpResult<()> {
        io.outputs[0].bytes().copy_from_slice(self.tensor.bytes());
        Ok(())
    }
}

/// `BroadcastTo`: input 0 stretched to the common shape of itself and input 1 (both ways, as ONNX `Expand`).
pub(super) struct BroadcastTo;

impl BroadcastTo {
    pub(super) fn new(source: &OpSource<'_>) -> OpResult<Self> {
        source.expect_outputs(1)?;
        Ok(Self)
    }
}

impl Operator for BroadcastTo {
    fn infer(&self, inputs: &Facts<'_>) -> InferResult {
        let desc = inputs.desc(0)?;
        let wanted = Shape::from_signed(&inputs.integers(1)?)?;
        Ok(vec![desc.with_shape(desc.shape.broadcast(&wanted)?)])
    }

    fn prepare(&self, context: &PrepareContext<'_>) -> OpResult<Box<dyn Kernel>> {
        let (desc, out) = (context.inputs.desc(0)?, context.outputs[0]);
        let strides = super::support::broadcast_strides(&desc, &out);
        let strides = super::support::signed(&strides[..out.shape.rank()]);
        let copy = StridedCopy::new(&out.shape, &strides, 0);
        Ok(Box::new(CopyKernel { copy, size: out.dtype.size(), label: "broadcast" }))
    }
}

/// `Tile`: input 0 repeated along each axis as input 1 says.
pub(super) struct Tile;

impl Tile {
    pub(super) fn new(source: &OpSource<'_>) -> OpResult<Self> {
        source.expect_outputs(1)?;
        Ok(Self)
    }
}

impl Operator for Tile {
    fn infer(&self, inputs: &Facts<'_>) -> InferResult {
        let desc = inputs.desc(0)?;
        let repeats = inputs.integers(1)?;
        if repeats.len() != desc.shape.rank() {
            let problem = format!("{} repeats for rank {}", repeats.len(), desc.shape.rank());
            return Err(OpError::value(1, problem).into());
        }
        let dims: Vec<i64> = desc
            .shape
            .iter()
            .zip(&repeats)
            .map(|(&d, &r)| (d as i64).checked_mul(r).unwrap_or(i64::MAX))
            .collect();
        Ok(vec![desc.with_shape(Shape::from_signed(&dims)?)])
    }

    fn prepare(&self, context: &PrepareContext<'_>) -> OpResult<Box<dyn Kernel>> {
        let (desc, out) = (context.inputs.desc(0)?, context.outputs[0]);
        Ok(Box::new(TileKernel { input: desc.shape, output: out.shape, size: out.dtype.size() }))
    }
}

/// Repeats from the innermost axis outwards, inside the output.
struct TileKernel {
    input: Shape,
    output: Shape,
    size: usize,
}

impl Kernel for TileKernel {
    fn label(&self) -> Cow<'static, str> {
        "tile".into()
    }

    fn run(&self, io: &mut StepIo<'_, '_>) -> OpResult<()> {
        let source = io.input(0).bytes();
        let out = io.outputs[0].bytes();
        if out.is_empty() {
            return Ok(());
        }
        let rank = self.input.rank();
        let row = self.input.get(rank.wrapping_sub(1)).copied().unwrap_or(1) * self.size;
        let out_row = self.output.get(rank.wrapping_sub(1)).copied().unwrap_or(1) * self.size;
        let lead = &self.output.dims()[..rank.saturating_sub(1)];
        let strides = self.input.strides();
        for (index, line) in out.chunks_mut(out_row).enumerate() {
            let (mut rest, mut from) = (index, 0);
            for axis in (0..lead.len()).rev() {
                from += (rest % lead[axis]) % self.input[axis] * strides[axis];
                rest /= lead[axis];
            }
            let piece = &source[from * self.size..][..row];
            line.chunks_mut(row).for_each(|part| part.copy_from_slice(piece));
        }
        Ok(())
    }
}

/// `Fill`: a tensor of the shape in input 0, every element input 1.
pub(super) struct Fill;

impl Fill {
    pub(super) fn new(source: &OpSource<'_>) -> OpResult<Self> {
        source.expect_outputs(1)?;
        Ok(Self)
    }
}

impl Operator for Fill {
    fn infer(&self, inputs: &Facts<'_>) -> InferResult {
        let value = inputs.desc(1)?;
        if value.shape.count() != 1 {
            return Err(OpError::shape(1, value.shape, "one element").into());
        }
        Ok(vec![TensorDesc::new(value.dtype, Shape::from_signed(&inputs.integers(0)?)?)])
    }

    fn prepare(&self, context: &PrepareContext<'_>) -> OpResult<Box<dyn Kernel>> {
        Ok(Box::new(FillKernel { size: context.outputs[0].dtype.size() }))
    }
}

struct FillKernel {
    size: usize,
}

impl Kernel for FillKernel {
    fn label(&self) -> Cow<'static, str> {
        "fill".into()
    }

    fn run(&self, io: &mut StepIo<'_, '_>) -> OpResult<()> {
        let value = io.input(1).bytes();
        io.outputs[0].bytes().chunks_exact_mut(self.size).for_each(|element| element.copy_from_slice(value));
        Ok(())
    }
}

/// `Range(start, limit, delta)`: `start + i * delta`, `max(ceil((limit - start) / delta), 0)` elements.
pub(super) struct Range;

impl Range {
    pub(super) fn new(source: &OpSource<'_>) -> OpResult<Self> {
        source.expect_outputs(1)?;
        Ok(Self)
    }
}

impl Operator for Range {
    fn infer(&self, inputs: &Facts<'_>) -> InferResult {
        let dtype = inputs.desc(0)?.dtype;
        for input in 0..3 {
            let desc = inputs.typed(input, dtype)?;
            if desc.shape.count() != 1 {
                return Err(OpError::shape(input, desc.shape, "one element").into());
            }
        }
        let count = match dtype {
            DType::F32 => {
                let [start, limit, delta] =
                    [0, 1, 2].map(|i| inputs.value(i).map(|v| scalar_f32(v).unwrap_or(0.0)));
                let (start, limit, delta) = (f64::from(start?), f64::from(limit?), f64::from(delta?));
                ((limit - start) / delta).ceil().max(0.0)
            }
            DType::I32 => {
                let [start, limit, delta] = [0, 1, 2].map(|i| inputs.integers(i).map(|v| v[0]));
                let (start, limit, delta) = (start?, limit?, delta?);
                if delta == 0 {
                    return Err(OpError::value(2, "the step is 0").into());
                }
                ((limit - start) as f64 / delta as f64).ceil().max(0.0)
            }
            got => {
                return Err(InferError::Op(OpError::InputType {
                    input: 0,
                    wanted: "float32 or int32".to_owned(),
                    got,
                }));
            }
        };
        if count.is_nan() || count > 1e12 {
            return Err(OpError::value(2, "the range is endless").into());
        }
        Ok(vec![TensorDesc::new(dtype, Shape::new(&[count as usize])?)])
    }

    fn prepare(&self, context: &PrepareContext<'_>) -> OpResult<Box<dyn Kernel>> {
        Ok(Box::new(RangeKernel { dtype: context.outputs[0].dtype }))
    }
}

struct RangeKernel {
    dtype: DType,
}

impl Kernel for RangeKernel {
    fn label(&self) -> Cow<'static, str> {
        "range".into()
    }

    fn run(&self, io: &mut StepIo<'_, '_>) -> OpResult<()> {
        if self.dtype == DType::F32 {
            let (start, delta) = (io.input(0).data::<f32>()[0], io.input(2).data::<f32>()[0]);
            for (i, x) in io.outputs[0].data::<f32>().iter_mut().enumerate() {
                *x = start + i as f32 * delta;
            }
        } else {
            let (start, delta) = (io.input(0).data::<i32>()[0], io.input(2).data::<i32>()[0]);
            for (i, x) in io.outputs[0].data::<i32>().iter_mut().enumerate() {
                *x = start.wrapping_add((i as i32).wrapping_mul(delta));
            }
        }
        Ok(())
    }
}
