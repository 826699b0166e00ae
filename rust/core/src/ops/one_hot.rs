//! `OneHot`.

use std::borrow::Cow;

use mnnq_format::schema::{TableKind, one_hot_param};

use super::error::{OpError, OpResult};
use super::operator::{Facts, InferResult, Kernel, Operator, PrepareContext, StepIo};
use super::registry::OpSource;
use super::support::{axis, for_each_outer};
use crate::tensor::{DType, Shape, TensorDesc};

/// `OneHot(indices, depth, on, off)`: a new axis of length `depth` with `on` at the index and `off` elsewhere. Indices
/// out of range, negative ones included, give `off` everywhere.
pub(super) struct OneHot {
    axis: i64,
}

impl OneHot {
    pub(super) fn new(source: &OpSource<'_>) -> OpResult<Self> {
        source.expect_outputs(1)?;
        if source.inputs != 4 {
            return Err(OpError::unsupported(format!("{} inputs", source.inputs)));
        }
        let table = source.param(TableKind::OneHotParam)?;
        Ok(Self { axis: table.get(one_hot_param::AXIS).into() })
    }
}

impl Operator for OneHot {
    fn infer(&self, inputs: &Facts<'_>) -> InferResult {
        let indices = inputs.typed(0, DType::I32)?.shape;
        let on = inputs.desc(2)?;
        let off = inputs.typed(3, on.dtype)?;
        for (input, desc) in [(2, on), (3, off)] {
            if desc.shape.count() != 1 {
                return Err(OpError::shape(input, desc.shape, "one element").into());
            }
        }
        let listed = inputs.integers(1)?.first().copied().unwrap_or(-1);
        let depth = usize::try_from(listed);
        let depth = depth.map_err(|_| OpError::value(1, format!("depth is {listed}, wanted 0 or more")))?;
        let mut dims = indices.dims().to_vec();
        dims.insert(axis(self.axis, indices.rank() + 1)?, depth);
        Ok(vec![TensorDesc::new(on.dtype, Shape::new(&dims)?)])
    }

    fn prepare(&self, context: &PrepareContext<'_>) -> OpResult<Box<dyn Kernel>> {
        let out = context.outputs[0];
        let position = axis(self.axis, out.shape.rank())?;
        Ok(Box::new(OneHotKernel {
            depth: out.shape[position],
            inner: out.shape.span(position + 1..out.shape.rank()),
            size: out.dtype.size(),
        }))
    }
}

struct OneHotKernel {
    depth: usize,
    inner: usize,
    size: usize,
}

impl Kernel for OneHotKernel {
    fn label(&self) -> Cow<'static, str> {
        "one hot".into()
    }

    fn run(&self, io: &mut StepIo<'_, '_>) -> OpResult<()> {
        let indices = io.input(0).data::<i32>();
        let (on, off) = (io.input(2).bytes(), io.input(3).bytes());
        let (depth, inner, size) = (self.depth, self.inner, self.size);
        for_each_outer(io.parallel, io.outputs[0].bytes(), depth * inner * size, |outer, out| {
            for piece in out.chunks_exact_mut(size) {
                piece.copy_from_slice(off);
            }
            for (i, &index) in indices[outer * inner..][..inner].iter().enumerate() {
                if let Some(index) = usize::try_from(index).ok().filter(|&index| index < depth) {
                    out[(index * inner + i) * size..][..size].copy_from_slice(on);
                }
            }
        });
        Ok(())
    }
}
