//! `Softmax`.

use std::borrow::Cow;

use mnnq_format::schema::{TableKind, axis as axis_param};
use mnnq_kernels::softmax::{Softmax as Kind, softmax_f32};

use super::error::OpResult;
use super::operator::{Facts, InferResult, Kernel, Layouts, Operator, PrepareContext, StepIo};
use super::registry::OpSource;
use super::support::{axis, for_each_outer, kernels, split_physical};
use crate::tensor::{DType, TensorDesc};

/// `Softmax(axis)`: `exp(x - max) / sum exp(x - max)` along an axis.
pub(super) struct Softmax {
    axis: i64,
}

impl Softmax {
    pub(super) fn new(source: &OpSource<'_>) -> OpResult<Self> {
        source.expect_outputs(1)?;
        Ok(Self { axis: source.param(TableKind::Axis)?.get(axis_param::AXIS).into() })
    }
}

impl Operator for Softmax {
    fn infer(&self, inputs: &Facts<'_>) -> InferResult {
        let desc = inputs.typed(0, DType::F32)?;
        axis(self.axis, desc.shape.rank())?;
        Ok(vec![desc])
    }

    fn layouts(&self, inputs: &Facts<'_>, outputs: &[TensorDesc]) -> Layouts {
        Layouts::follow(inputs, outputs.len())
    }

    fn prepare(&self, context: &PrepareContext<'_>) -> OpResult<Box<dyn Kernel>> {
        let desc = context.inputs.desc(0)?;
        let (_, len, inner) = split_physical(&desc, axis(self.axis, desc.shape.rank())?);
        Ok(Box::new(SoftmaxKernel { len, inner }))
    }
}

struct SoftmaxKernel {
    len: usize,
    inner: usize,
}

impl Kernel for SoftmaxKernel {
    fn label(&self) -> Cow<'static, str> {
        format!("softmax f32 {}", kernels().reduce_f32.level()).into()
    }

    fn run(&self, io: &mut StepIo<'_, '_>) -> OpResult<()> {
        let x = io.input(0).data::<f32>();
        let slab = self.len * self.inner;
        let failed = std::sync::Mutex::new(None);
        for_each_outer(io.parallel, io.outputs[0].data::<f32>(), slab, |index, out| {
            let x = &x[index * slab..][..slab];
            let dims = [1, self.len, self.inner];
            if let Err(error) = softmax_f32(kernels().reduce_f32, Kind::Probabilities, dims, x, out) {
                *failed.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(error);
            }
        });
        match failed.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner) {
            Some(error) => Err(error.into()),
            None => Ok(()),
        }
    }
}
