//! Writing elements to positions: `ScatterNd`, `ScatterElements`.

use std::borrow::Cow;

use mnnq_format::schema::{BinaryOpOperation, TableKind, binary_op};

use super::error::{OpError, OpResult};
use super::gather_nd::{Lines, Tuples, axis_input, check_elements, check_indices};
use super::operator::{Facts, InferResult, Kernel, Operator, PrepareContext, StepIo};
use super::registry::OpSource;
use crate::tensor::{DType, Element, Shape, TensorDesc, TensorView, TensorViewMut};

/// How an update is combined with what is at its position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Combine {
    Replace,
    Add,
    Subtract,
    Multiply,
    Maximum,
    Minimum,
}

impl Combine {
    /// From the operator's `BinaryOp` table; its absence and the number -1 mean that updates replace.
    fn new(source: &OpSource<'_>) -> OpResult<Self> {
        let Some(table) = source.main.filter(|table| table.kind() == TableKind::BinaryOp) else {
            return Ok(Self::Replace);
        };
        Ok(match table.get(binary_op::OP_TYPE) {
            BinaryOpOperation(-1) => Self::Replace,
            BinaryOpOperation::ADD => Self::Add,
            BinaryOpOperation::SUB => Self::Subtract,
            BinaryOpOperation::MUL => Self::Multiply,
            BinaryOpOperation::MAXIMUM => Self::Maximum,
            BinaryOpOperation::MINIMUM => Self::Minimum,
            other => {
                return Err(OpError::attribute("opType", other, "-1, ADD, SUB, MUL, MAXIMUM or MINIMUM"));
            }
        })
    }

    /// Reductions are done on floats and 32-bit integers.
    fn check_type(self, dtype: DType, input: usize) -> OpResult<()> {
        if self == Self::Replace || matches!(dtype, DType::F32 | DType::I32) {
            return Ok(());
        }
        Err(OpError::InputType { input, wanted: "float32 or int32 to be reduced".to_owned(), got: dtype })
    }

    fn floats(self) -> fn(f32, f32) -> f32 {
        match self {
            Self::Replace => |_, b| b,
            Self::Add => |a, b| a + b,
            Self::Subtract => |a, b| a - b,
            Self::Multiply => |a, b| a * b,
            Self::Maximum => |a, b| if b > a || b.is_nan() { b } else { a },
            Self::Minimum => |a, b| if b < a || b.is_nan() { b } else { a },
        }
    }

    fn ints(self) -> fn(i32, i32) -> i32 {
        match self {
            Self::Replace => |_, b| b,
            Self::Add => i32::wrapping_add,
            Self::Subtract => i32::wrapping_sub,
            Self::Multiply => i32::wrapping_mul,
            Self::Maximum => i32::max,
            Self::Minimum => i32::min,
        }
    }

    /// Applies the updates one after another. `visit(apply)` calls `apply(target, source, count)` for each run.
    fn apply(
        self,
        out: &mut TensorViewMut<'_>,
        updates: TensorView<'_>,
        visit: impl FnOnce(&mut dyn FnMut(usize, usize, usize)),
    ) {
        if self == Self::Replace {
            let size = updates.desc().dtype.size();
            let (from, to) = (updates.bytes(), out.bytes());
            return visit(&mut |target, source, count| {
                to[target * size..][..count * size].copy_from_slice(&from[source * size..][..count * size]);
            });
        }
        match updates.desc().dtype {
            DType::F32 => visit(&mut combine(out.data(), updates.data(), self.floats())),
            DType::I32 => visit(&mut combine(out.data(), updates.data(), self.ints())),
            // Refused by `check_type`.
            DType::F16 | DType::U8 | DType::I8 => {}
        }
    }

    fn name(self) -> String {
        format!("{self:?}").to_lowercase()
    }
}

fn combine<'a, T: Element>(
    to: &'a mut [T],
    from: &'a [T],
    merge: fn(T, T) -> T,
) -> impl FnMut(usize, usize, usize) + 'a {
    move |target, source, count| {
        for (a, &b) in to[target..][..count].iter_mut().zip(&from[source..][..count]) {
            *a = merge(*a, b);
        }
    }
}

/// Puts the data that updates are applied to into output 0, unless it is there.
fn start(io: &mut StepIo<'_, '_>, data: usize) {
    if io.in_place == Some(data) {
        return;
    }
    match io.optional(data) {
        Some(view) => io.outputs[0].bytes().copy_from_slice(view.bytes()),
        None => io.outputs[0].bytes().fill(0),
    }
}

fn same_type(inputs: &Facts<'_>, updates: usize, dtype: DType) -> OpResult<TensorDesc> {
    inputs.typed(updates, dtype)
}

/// `ScatterElements(data, indices, updates[, axis])`: a copy of the data in which the element at
/// `[.., indices[.., i, ..], ..]` is replaced by (or summed with, ...) `updates[.., i, ..]`, in the order of the updates.
/// Negative indices count from the end, as in ONNX.
pub(super) struct ScatterElements {
    combine: Combine,
}

impl ScatterElements {
    pub(super) fn new(source: &OpSource<'_>) -> OpResult<Self> {
        source.expect_outputs(1)?;
        Ok(Self { combine: Combine::new(source)? })
    }
}

impl Operator for ScatterElements {
    fn infer(&self, inputs: &Facts<'_>) -> InferResult {
        let data = inputs.desc(0)?;
        self.combine.check_type(data.dtype, 0)?;
        let indices = inputs.typed(1, DType::I32)?;
        let updates = same_type(inputs, 2, data.dtype)?;
        let along = axis_input(inputs, 3, 0, data.shape.rank())?;
        check_elements(&data.shape, &indices.shape, along, 1)?;
        if updates.shape != indices.shape {
            return Err(OpError::shape(2, updates.shape, format!("{}, as the indices", indices.shape)).into());
        }
        Ok(vec![TensorDesc::new(data.dtype, data.shape)])
    }

    fn in_place(&self) -> &'static [usize] {
        &[0]
    }

    fn prepare(&self, context: &PrepareContext<'_>) -> OpResult<Box<dyn Kernel>> {
        let (data, indices) = (context.inputs.shape(0)?, context.inputs.shape(1)?);
        let along = axis_input(&context.inputs, 3, 0, data.rank())
            .map_err(|_| OpError::unsupported("an axis that is not known"))?;
        Ok(Box::new(ElementsKernel { combine: self.combine, lines: Lines::new(&data, &indices, along) }))
    }
}

struct ElementsKernel {
    combine: Combine,
    lines: Lines,
}

impl Kernel for ElementsKernel {
    fn label(&self) -> Cow<'static, str> {
        format!("scatter elements {}", self.combine.name()).into()
    }

    fn run(&self, io: &mut StepIo<'_, '_>) -> OpResult<()> {
        let (indices, updates) = (io.input(1).data::<i32>(), io.input(2));
        check_indices(1, indices, self.lines.length)?;
        start(io, 0);
        self.combine.apply(&mut io.outputs[0], updates, |apply| {
            self.lines.visit(0, indices, |at, target| apply(target, at, 1));
        });
        Ok(())
    }
}

/// `ScatterNd(indices, updates, shape[, data])`: a copy of the data (zeros of the shape, if absent) in which the slices
/// at `indices[i.., :]` are replaced by (or summed with, ...) `updates[i..]`, in the order of the updates. Negative
/// indices count from the end, as in ONNX.
pub(super) struct ScatterNd {
    combine: Combine,
}

impl ScatterNd {
    pub(super) fn new(source: &OpSource<'_>) -> OpResult<Self> {
        source.expect_outputs(1)?;
        Ok(Self { combine: Combine::new(source)? })
    }
}

impl Operator for ScatterNd {
    fn infer(&self, inputs: &Facts<'_>) -> InferResult {
        let indices = inputs.typed(0, DType::I32)?;
        let updates = inputs.desc(1)?;
        self.combine.check_type(updates.dtype, 1)?;
        let shape = Shape::from_signed(&inputs.integers(2)?)?;
        if inputs.get(3).is_some() {
            let data = same_type(inputs, 3, updates.dtype)?.shape;
            if data != shape {
                return Err(OpError::shape(3, data, format!("{shape}, as input 2 says")).into());
            }
        }
        let tuples = Tuples::new(&shape, &indices.shape, 0)?;
        let mut wanted = indices.shape.dims()[..indices.shape.rank() - 1].to_vec();
        wanted.extend(&shape.dims()[tuples.depth()..]);
        // Trailing and leading axes of one element may be missing.
        if updates.shape.count() != wanted.iter().product::<usize>() {
            return Err(OpError::shape(1, updates.shape, format!("{wanted:?}")).into());
        }
        Ok(vec![TensorDesc::new(updates.dtype, shape)])
    }

    fn in_place(&self) -> &'static [usize] {
        &[3]
    }

    fn prepare(&self, context: &PrepareContext<'_>) -> OpResult<Box<dyn Kernel>> {
        let tuples = Tuples::new(&context.outputs[0].shape, &context.inputs.shape(0)?, 0)?;
        Ok(Box::new(ScatterNdKernel { combine: self.combine, tuples }))
    }
}

struct ScatterNdKernel {
    combine: Combine,
    tuples: Tuples,
}

impl Kernel for ScatterNdKernel {
    fn label(&self) -> Cow<'static, str> {
        format!("scatter nd {}", self.combine.name()).into()
    }

    fn run(&self, io: &mut StepIo<'_, '_>) -> OpResult<()> {
        let (indices, updates) = (io.input(0).data::<i32>(), io.input(1));
        self.tuples.check(0, indices)?;
        start(io, 3);
        let (depth, slice) = (self.tuples.depth(), self.tuples.slice);
        let count = updates.shape().count().checked_div(slice).unwrap_or(0);
        self.combine.apply(&mut io.outputs[0], updates, |apply| {
            for number in 0..count {
                let target = self.tuples.find(&indices[number * depth..][..depth]).unwrap_or(0);
                apply(target * slice, number * slice, slice);
            }
        });
        Ok(())
    }
}
