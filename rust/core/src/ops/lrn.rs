//! Local response normalization: `LRN`.

use std::borrow::Cow;

use mnnq_format::schema::{TableKind, lrn};

use super::error::{OpError, OpResult};
use super::operator::{Facts, InferResult, Kernel, Operator, PrepareContext, StepIo};
use super::registry::OpSource;
use super::support::for_each_outer;
use crate::tensor::{DType, TensorDesc};

/// `LRN`: `x / (bias + alpha / size * sum)^beta`, the sum over the squares of the `size` channels around each one,
/// as far as there are such channels.
pub(super) struct Lrn {
    size: usize,
    alpha: f32,
    beta: f32,
    bias: f32,
}

impl Lrn {
    pub(super) fn new(source: &OpSource<'_>) -> OpResult<Self> {
        source.expect_outputs(1)?;
        let table = source.param(TableKind::LRN)?;
        let region = table.get(lrn::REGION_TYPE);
        if region != 0 {
            return Err(OpError::attribute("regionType", region, "0 (across channels)"));
        }
        let got = table.get(lrn::LOCAL_SIZE);
        let size = usize::try_from(got).ok().filter(|&size| size > 0);
        Ok(Self {
            size: size.ok_or_else(|| OpError::attribute("localSize", got, "1 or more"))?,
            alpha: table.get(lrn::ALPHA),
            beta: table.get(lrn::BETA),
            bias: table.get(lrn::BIAS),
        })
    }
}

impl Operator for Lrn {
    fn infer(&self, inputs: &Facts<'_>) -> InferResult {
        let desc = inputs.typed(0, DType::F32)?;
        if desc.shape.rank() < 2 {
            return Err(OpError::shape(0, desc.shape, "[N, C, spatial...]").into());
        }
        Ok(vec![TensorDesc::new(DType::F32, desc.shape)])
    }

    fn prepare(&self, context: &PrepareContext<'_>) -> OpResult<Box<dyn Kernel>> {
        let shape = context.inputs.shape(0)?;
        Ok(Box::new(LrnKernel {
            channels: shape[1],
            plane: shape.span(2..shape.rank()),
            before: (self.size - 1) / 2,
            after: self.size / 2,
            scale: self.alpha / self.size as f32,
            beta: self.beta,
            bias: self.bias,
        }))
    }
}

struct LrnKernel {
    channels: usize,
    plane: usize,
    before: usize,
    after: usize,
    scale: f32,
    beta: f32,
    bias: f32,
}

impl Kernel for LrnKernel {
    fn label(&self) -> Cow<'static, str> {
        "local response normalization f32".into()
    }

    fn run(&self, io: &mut StepIo<'_, '_>) -> OpResult<()> {
        let x = io.input(0).data::<f32>();
        let (channels, plane) = (self.channels, self.plane);
        for_each_outer(io.parallel, io.outputs[0].data::<f32>(), plane, |at, out| {
            let (image, channel) = (at / channels * channels, at % channels);
            let first = channel.saturating_sub(self.before);
            let last = channel.saturating_add(self.after).min(channels - 1);
            out.fill(0.0);
            for c in first..=last {
                for (sum, v) in out.iter_mut().zip(&x[(image + c) * plane..][..plane]) {
                    *sum += v * v;
                }
            }
            for (y, v) in out.iter_mut().zip(&x[at * plane..][..plane]) {
                *y = v / (self.bias + self.scale * *y).powf(self.beta);
            }
        });
        Ok(())
    }
}
