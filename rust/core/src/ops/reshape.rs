//! Operators that only give the same elements another shape. They cost nothing: the output is the input's memory.

use mnnq_format::schema::{
    MNN_DATA_FORMAT, OpType, TableKind, expand_dims, flatten, reshape, squeeze_param, tensor_convert_info,
};
use smallvec::SmallVec;

use super::error::{OpError, OpResult};
use super::operator::{Alias, Facts, InferResult, Kernel, Layouts, Operator, PrepareContext};
use super::permute::copy_kernel;
use super::registry::OpSource;
use super::support::{axis, ints};
use crate::tensor::{Shape, TensorDesc};

fn whole() -> Option<SmallVec<[Alias; 2]>> {
    Some(smallvec::smallvec![Alias { input: 0, offset: 0 }])
}

/// What all operators of this file share besides their shape rule.
macro_rules! view_operator {
    ($name:ident) => {
        impl Operator for $name {
            fn infer(&self, inputs: &Facts<'_>) -> InferResult {
                let desc = inputs.desc(0)?;
                let shape = self.shape(inputs)?;
                if shape.count() != desc.shape.count() {
                    let wanted = format!("{} elements for {shape}", shape.count());
                    return Err(OpError::shape(0, desc.shape, wanted).into());
                }
                Ok(vec![desc.with_shape(shape)])
            }

            fn alias(&self, _: &Facts<'_>, _: &[TensorDesc]) -> Option<SmallVec<[Alias; 2]>> {
                whole()
            }

            fn prepare(&self, context: &PrepareContext<'_>) -> OpResult<Box<dyn Kernel>> {
                let desc = context.inputs.desc(0)?;
                Ok(copy_kernel(desc, desc))
            }
        }
    };
}

/// `Identity`, `Copy`, `Dropout`, and `ConvertTensor` between NCHW and NC4HW4: the input.
///
/// Logical shapes of the file are NCHW whatever the format; how tensors lie in memory is the planner's choice.
pub(super) struct Identity;

impl Identity {
    pub(super) fn new(source: &OpSource<'_>) -> OpResult<Self> {
        if source.outputs == 0 || source.outputs > source.inputs.max(1) {
            return Err(OpError::OutputCount { wanted: 1, got: source.outputs });
        }
        Ok(Self)
    }

    pub(super) fn convert(source: &OpSource<'_>) -> OpResult<Self> {
        source.expect_outputs(1)?;
        let table = source.param(TableKind::TensorConvertInfo)?;
        let (from, to) = (table.get(tensor_convert_info::SOURCE), table.get(tensor_convert_info::DEST));
        let channels_inside = |format| matches!(format, MNN_DATA_FORMAT::NHWC | MNN_DATA_FORMAT::NHWC4);
        if channels_inside(from) || channels_inside(to) {
            return Err(OpError::unsupported(format!(
                "conversion from {from} to {to}, which permutes axes,"
            )));
        }
        Ok(Self)
    }
}

impl Operator for Identity {
    fn infer(&self, inputs: &Facts<'_>) -> InferResult {
        Ok(vec![inputs.desc(0)?])
    }

    fn layouts(&self, inputs: &Facts<'_>, outputs: &[TensorDesc]) -> Layouts {
        Layouts::follow(inputs, outputs.len())
    }

    fn alias(&self, _: &Facts<'_>, _: &[TensorDesc]) -> Option<SmallVec<[Alias; 2]>> {
        whole()
    }

    fn prepare(&self, context: &PrepareContext<'_>) -> OpResult<Box<dyn Kernel>> {
        let desc = context.inputs.desc(0)?;
        Ok(copy_kernel(desc, desc))
    }
}

/// `Reshape`: dims from the table or input 1; 0 copies the input's length, -1 is what remains.
pub(super) struct Reshape {
    dims: Option<Vec<i64>>,
}

impl Reshape {
    pub(super) fn new(source: &OpSource<'_>) -> OpResult<Self> {
        source.expect_outputs(1)?;
        let table = source.optional_param(TableKind::Reshape)?;
        if table.is_some_and(|t| t.get(reshape::DIM_TYPE) == MNN_DATA_FORMAT::NHWC) {
            return Err(OpError::attribute("dimType", "NHWC", "NCHW"));
        }
        let dims = if source.inputs > 1 { None } else { table.and_then(|t| ints(t.get(reshape::DIMS))) };
        if source.inputs < 2 && dims.is_none() {
            return Err(OpError::attribute("dims", "absent", "a list, or a second input"));
        }
        Ok(Self { dims })
    }

    fn shape(&self, inputs: &Facts<'_>) -> InferResult<Shape> {
        let input = inputs.shape(0)?;
        let wanted = match &self.dims {
            Some(dims) => dims.clone(),
            None => inputs.integers(1)?,
        };
        let bad = || OpError::value(1, format!("shape {wanted:?} does not fit {input}"));
        let mut dims = Vec::with_capacity(wanted.len());
        let mut open = None;
        for (position, &d) in wanted.iter().enumerate() {
            dims.push(match d {
                // An empty input keeps a 0 that stands where its own length differs.
                0 => input.get(position).copied().unwrap_or(0),
                -1 if open.is_none() => {
                    open = Some(position);
                    1
                }
                d => usize::try_from(d).map_err(|_| bad())?,
            });
        }
        if let Some(open) = open {
            let rest = Shape::new(&dims)?.count();
            let fits = rest > 0 && input.count() % rest == 0;
            dims[open] = if fits { input.count() / rest } else { return Err(bad().into()) };
        }
        let shape = Shape::new(&dims)?;
        if shape.count() != input.count() {
            return Err(bad().into());
        }
        Ok(shape)
    }
}

view_operator!(Reshape);

/// `Flatten(axis, endAxis)`: to `[before axis, rest]`; with endAxis (PyTorch) merges `axis..=endAxis`.
pub(super) struct Flatten {
    axis: i64,
    end: i64,
}

impl Flatten {
    pub(super) fn new(source: &OpSource<'_>) -> OpResult<Self> {
        source.expect_outputs(1)?;
        let table = source.param(TableKind::Flatten)?;
        Ok(Self { axis: table.get(flatten::AXIS).into(), end: table.get(flatten::END_AXIS).into() })
    }

    fn shape(&self, inputs: &Facts<'_>) -> InferResult<Shape> {
        let input = inputs.shape(0)?;
        let rank = input.rank();
        if self.end == 0 {
            // ONNX allows axis == rank.
            let axis = if self.axis == rank as i64 { rank } else { axis(self.axis, rank)? };
            return Ok(Shape::new(&[input.span(0..axis), input.span(axis..rank)])?);
        }
        let (first, last) = (axis(self.axis, rank)?, axis(self.end, rank)?);
        if first > last {
            return Err(OpError::attribute("endAxis", self.end, "not before axis").into());
        }
        let mut dims = input.dims()[..first].to_vec();
        dims.push(input.span(first..last + 1));
        dims.extend(&input.dims()[last + 1..]);
        Ok(Shape::new(&dims)?)
    }
}

view_operator!(Flatten);

/// `Squeeze`: drops axes of length 1: those listed (table or input 1), or all.
pub(super) struct Squeeze {
    axes: Vec<i64>,
}

impl Squeeze {
    pub(super) fn new(source: &OpSource<'_>) -> OpResult<Self> {
        source.expect_outputs(1)?;
        let table = source.optional_param(TableKind::SqueezeParam)?;
        Ok(Self { axes: table.and_then(|t| ints(t.get(squeeze_param::SQUEEZE_DIMS))).unwrap_or_default() })
    }

    fn shape(&self, inputs: &Facts<'_>) -> InferResult<Shape> {
        let input = inputs.shape(0)?;
        let list = if self.axes.is_empty() && inputs.get(1).is_some() {
            inputs.integers(1)?
        } else {
            self.axes.clone()
        };
        let listed = super::support::axes(&list, input.rank())?;
        if let Some(&bad) = listed.iter().find(|&&a| input[a] != 1) {
            return Err(OpError::shape(0, input, format!("length 1 in axis {bad}")).into());
        }
        let keep = |(a, &d): (usize, &usize)| {
            let dropped = if list.is_empty() { d == 1 } else { listed.contains(&a) };
            (!dropped).then_some(d)
        };
        let dims: Vec<usize> = input.iter().enumerate().filter_map(keep).collect();
        Ok(Shape::new(&dims)?)
    }
}

view_operator!(Squeeze);

/// `Unsqueeze`, `ExpandDims`: new axes of length 1, counted in the output.
pub(super) struct Unsqueeze {
    axes: Vec<i64>,
}

impl Unsqueeze {
    pub(super) fn new(source: &OpSource<'_>) -> OpResult<Self> {
        source.expect_outputs(1)?;
        let axes = if source.op_type == OpType::ExpandDims {
            let table = source.optional_param(TableKind::ExpandDims)?;
            let listed = source.inputs < 2;
            table.filter(|_| listed).map(|t| vec![i64::from(t.get(expand_dims::AXIS))]).unwrap_or_default()
        } else {
            let table = source.optional_param(TableKind::SqueezeParam)?;
            table.and_then(|t| ints(t.get(squeeze_param::SQUEEZE_DIMS))).unwrap_or_default()
        };
        if axes.is_empty() && source.inputs < 2 {
            return Err(OpError::attribute("squeezeDims", "absent", "a list, or a second input"));
        }
        Ok(Self { axes })
    }

    fn shape(&self, inputs: &Facts<'_>) -> InferResult<Shape> {
        let input = inputs.shape(0)?;
        let list = if self.axes.is_empty() { inputs.integers(1)? } else { self.axes.clone() };
        let rank = input.rank() + list.len();
        let axes = super::support::axes(&list, rank)?;
        if axes.len() != list.len() {
            return Err(OpError::value(1, format!("axes {list:?} repeat")).into());
        }
        let mut own = input.iter();
        let dims: Vec<usize> =
            (0..rank).map(|a| if axes.contains(&a) { 1 } else { own.next().copied().unwrap_or(1) }).collect();
        Ok(Shape::new(&dims)?)
    }
}

view_operator!(Unsqueeze);
