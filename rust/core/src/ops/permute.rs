//! Changing the order of axes: `Permute`, `Transpose`, and conversions of layout.

use std::borrow::Cow;

use mnnq_format::schema::{TableKind, permute};
use smallvec::SmallVec;

use super::error::{OpError, OpResult};
use super::operator::{Alias, Facts, InferResult, Kernel, Layouts, Operator, PrepareContext, StepIo};
use super::registry::OpSource;
use super::support::{StridedCopy, ints};
use crate::tensor::{Layout, Shape, TensorDesc};

/// `Permute(dims)`: output axis i is input axis dims[i]; without dims the order is reversed. `Transpose` has the order
/// as input 1.
pub(super) struct Permute {
    dims: Option<Vec<i64>>,
    from_input: bool,
}

impl Permute {
    pub(super) fn new(source: &OpSource<'_>) -> OpResult<Self> {
        source.expect_outputs(1)?;
        let dims = match source.main {
            Some(table) if table.kind() == TableKind::Permute => ints(table.get(permute::DIMS)),
            _ => None,
        };
        Ok(Self { dims: dims.filter(|dims| !dims.is_empty()), from_input: source.inputs > 1 })
    }

    fn order(&self, inputs: &Facts<'_>) -> InferResult<SmallVec<[usize; 8]>> {
        let rank = inputs.shape(0)?.rank();
        let list = match &self.dims {
            _ if self.from_input => inputs.integers(1)?,
            Some(dims) => dims.clone(),
            None => (0..rank as i64).rev().collect(),
        };
        let order: SmallVec<[usize; 8]> =
            list.iter().map(|&a| super::support::axis(a, rank)).collect::<OpResult<_>>()?;
        let mut seen = [false; 8];
        order.iter().for_each(|&a| seen[a] = true);
        if order.len() != rank || !seen[..rank].iter().all(|&s| s) {
            return Err(
                OpError::attribute("dims", format!("{list:?}"), format!("an order of {rank} axes")).into()
            );
        }
        Ok(order)
    }
}

impl Operator for Permute {
    fn infer(&self, inputs: &Facts<'_>) -> InferResult {
        let desc = inputs.desc(0)?;
        let dims: Vec<usize> = self.order(inputs)?.iter().map(|&a| desc.shape[a]).collect();
        Ok(vec![desc.with_shape(Shape::new(&dims)?)])
    }

    fn layouts(&self, inputs: &Facts<'_>, outputs: &[TensorDesc]) -> Layouts {
        // The copy takes any order of the input, and the permutation may cancel the layout.
        let mut layouts = Layouts::plain(inputs.len(), outputs.len());
        layouts.inputs[0] = None;
        layouts
    }

    fn alias(&self, inputs: &Facts<'_>, outputs: &[TensorDesc]) -> Option<SmallVec<[Alias; 2]>> {
        let out = outputs.first()?;
        let strides = self.strides(inputs).ok()?;
        let want = out.shape.strides();
        let same =
            strides.iter().zip(want).zip(out.shape.iter()).all(|((&s, w), &d)| d == 1 || s == w as isize);
        same.then(|| smallvec::smallvec![Alias { input: 0, offset: 0 }])
    }

    fn prepare(&self, context: &PrepareContext<'_>) -> OpResult<Box<dyn Kernel>> {
        let out = context.outputs[0];
        let strides = self
            .strides(&context.inputs)
            .map_err(|_| OpError::unsupported("an order of axes that is not known"))?;
        let copy = StridedCopy::new(&out.shape, &strides, 0);
        Ok(Box::new(CopyKernel { copy, size: out.dtype.size(), label: "permute" }))
    }
}

impl Permute {
    /// Strides of the input along the axes of the output.
    fn strides(&self, inputs: &Facts<'_>) -> InferResult<SmallVec<[isize; 8]>> {
        let desc = inputs.desc(0)?;
        let own = desc.layout.strides(&desc.shape);
        Ok(self.order(inputs)?.iter().map(|&a| own[a] as isize).collect())
    }
}

/// Copies elements in another order.
pub(super) struct CopyKernel {
    pub(super) copy: StridedCopy,
    pub(super) size: usize,
    pub(super) label: &'static str,
}

impl Kernel for CopyKernel {
    fn label(&self) -> Cow<'static, str> {
        self.label.into()
    }

    fn run(&self, io: &mut StepIo<'_, '_>) -> OpResult<()> {
        let source = io.input(0).bytes();
        self.copy.run(self.size, source, io.outputs[0].bytes(), io.parallel);
        Ok(())
    }
}

/// A kernel that copies a tensor into another layout of the same shape.
pub(crate) fn copy_kernel(from: TensorDesc, to: TensorDesc) -> Box<dyn Kernel> {
    let rank = to.shape.rank();
    let own = from.layout.strides(&from.shape);
    let strides: SmallVec<[isize; 8]> =
        to.layout.order(rank)[..rank].iter().map(|&a| own[a] as isize).collect();
    let copy = StridedCopy::new(&to.layout.physical(&to.shape)[..rank], &strides, 0);
    let label = match to.layout {
        Layout::Plain => "copy to plain",
        Layout::ChannelsLast => "copy to channels-last",
    };
    Box::new(CopyKernel { copy, size: to.dtype.size(), label })
}
