//! Local response normalization: `LRN`.

use std::borrow::Cow;

use mnnq_format::schema::{TableKind, lrn};

use super::error::{OpError, OpResult};
use super::operator::{Facts, InferResult, Kernel, Operator, PrepareContext, StepIo};
use super::registry::OpSource;
use super::support::for_each_outer;
use crate::tensor::{DType, TensorDesc};

/// `LRN`: `x / (bias + alpha / n * sum)^beta`, the sum over squares around each value as far as there are such: of the
/// `n = size` channels around it, or, within a channel (`regionType` 1), of the `n = size^2` pixels around it.
pub(super) struct Lrn {
    within: bool,
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
        if !(0..=1).contains(&region) {
            return Err(OpError::attribute(
                "regionType",
                region,
                "0 (across channels) or 1 (within a channel)",
            ));
        }
        let got = table.get(lrn::LOCAL_SIZE);
        let size = usize::try_from(got).ok().filter(|&size| size > 0);
        Ok(Self {
            within: region == 1,
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
        if self.within && desc.shape.rank() != 4 {
            return Err(OpError::shape(0, desc.shape, "[N, C, H, W]").into());
        }
        Ok(vec![TensorDesc::new(DType::F32, desc.shape)])
    }

    fn prepare(&self, context: &PrepareContext<'_>) -> OpResult<Box<dyn Kernel>> {
        let shape = context.inputs.shape(0)?;
        let (before, after) = ((self.size - 1) / 2, self.size / 2);
        if self.within {
            let scale = self.alpha / (self.size as f32 * self.size as f32);
            let size = [shape[2], shape[3]];
            let (beta, bias) = (self.beta, self.bias);
            return Ok(Box::new(WithinKernel { size, reach: [before, after], scale, beta, bias }));
        }
        Ok(Box::new(LrnKernel {
            channels: shape[1],
            plane: shape.span(2..shape.rank()),
            before,
            after,
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

/// The sum over a square of pixels of each plane.
struct WithinKernel {
    size: [usize; 2],
    /// Pixels before and behind.
    reach: [usize; 2],
    scale: f32,
    beta: f32,
    bias: f32,
}

impl Kernel for WithinKernel {
    fn label(&self) -> Cow<'static, str> {
        "local response normalization within channels f32".into()
    }

    fn run(&self, io: &mut StepIo<'_, '_>) -> OpResult<()> {
        let x = io.input(0).data::<f32>();
        let [height, width] = self.size;
        let around = |at: usize, length: usize| {
            at.saturating_sub(self.reach[0])..at.saturating_add(self.reach[1] + 1).min(length)
        };
        for_each_outer(io.parallel, io.outputs[0].data::<f32>(), height * width, |plane, out| {
            let x = &x[plane * height * width..][..height * width];
            for (at, y) in out.iter_mut().enumerate() {
                let columns = around(at % width, width);
                let rows = around(at / width, height).map(|row| &x[row * width..][columns.clone()]);
                let sum: f32 = rows.flatten().map(|v| v * v).sum();
                *y = x[at] / (self.bias + self.scale * sum).powf(self.beta);
            }
        });
        Ok(())
    }
}
