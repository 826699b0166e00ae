//! Convolutions with weights that are computed while running.

use std::borrow::Cow;

use mnnq_kernels::Epilogue as KernelEpilogue;
use mnnq_kernels::conv_f32::{conv_fresh_f32, conv_fresh_scratch_len};
use mnnq_kernels::elementwise::Unary;
use mnnq_kernels::geometry::Sliding;

use super::conv::{conv_products, infer};
use super::conv_weights::ConvCommon;
use super::epilogue::Epilogue;
use super::error::{OpError, OpResult};
use super::operator::{Facts, InferResult, Kernel, Layouts, Operator, PrepareContext, StepIo};
use super::support::kernels;
use crate::tensor::{DType, Layout, Shape, TensorDesc};

/// `Convolution` whose weights (and bias) are inputs: `(x, weight [o, i / group, kh, kw], [bias])`.
pub(super) struct FreshConv {
    pub(super) common: ConvCommon,
    pub(super) bias: Vec<f32>,
    pub(super) has_bias: bool,
}

impl Operator for FreshConv {
    fn infer(&self, inputs: &Facts<'_>) -> InferResult {
        let (x, weight) = (inputs.typed(0, DType::F32)?, inputs.typed(1, DType::F32)?);
        let common = self.with_weight(&x.shape, &weight.shape)?;
        if let Some(bias) = inputs.get(2).filter(|_| self.has_bias)
            && bias.desc.shape.count() != common.out_channels
        {
            return Err(OpError::shape(2, bias.desc.shape, format!("{} values", common.out_channels)).into());
        }
        Ok(vec![infer(&common, x, DType::F32)?])
    }

    fn layouts(&self, inputs: &Facts<'_>, outputs: &[TensorDesc]) -> Layouts {
        Layouts::first(Layout::ChannelsLast, inputs.len(), outputs.len())
    }

    fn accepts_epilogue(&self) -> bool {
        true
    }

    fn prepare(&self, context: &PrepareContext<'_>) -> OpResult<Box<dyn Kernel>> {
        let x = context.inputs.shape(0)?;
        let common = self.with_weight(&x, &context.inputs.shape(1)?)?;
        let epilogue = common.epilogue(context.epilogue);
        let dims = [common.out_channels, common.in_channels / common.group, common.taps()];
        let threads = context.options.threads;
        Ok(Box::new(FreshConvKernel {
            sliding: common.sliding(&x)?,
            dims,
            group: common.group,
            bias: self.bias.clone(),
            has_bias: self.has_bias && context.inputs.get(2).is_some(),
            epilogue,
            scratch: conv_fresh_scratch_len(&kernels().gemm_f32, dims, common.group, threads)?,
        }))
    }
}

impl FreshConv {
    /// The attributes with the channels of the weights.
    fn with_weight(&self, x: &Shape, weight: &Shape) -> OpResult<ConvCommon> {
        let &[out_channels, in_group, kh, kw] = weight.dims() else {
            return Err(OpError::shape(1, *weight, "[O, I, kh, kw]"));
        };
        let channels = x.get(1).copied().unwrap_or(0);
        let fits = out_channels == self.common.out_channels && [kh, kw] == self.common.kernel;
        if !fits || in_group == 0 || channels % in_group != 0 {
            let wanted = format!("{} outputs, kernel {:?}", self.common.out_channels, self.common.kernel);
            return Err(OpError::shape(1, *weight, wanted));
        }
        Ok(ConvCommon { in_channels: channels, group: channels / in_group, ..self.common.clone() })
    }
}

struct FreshConvKernel {
    sliding: Sliding,
    dims: [usize; 3],
    group: usize,
    bias: Vec<f32>,
    has_bias: bool,
    epilogue: Epilogue,
    /// Floats.
    scratch: usize,
}

impl Kernel for FreshConvKernel {
    fn label(&self) -> Cow<'static, str> {
        format!("conv f32 {}, weights packed in every run", kernels().gemm_f32.name()).into()
    }

    fn scratch(&self) -> usize {
        self.scratch * size_of::<f32>()
    }

    fn multiply_adds(&self) -> u64 {
        conv_products(&self.sliding, self.dims[1], self.dims[0])
    }

    fn run(&self, io: &mut StepIo<'_, '_>) -> OpResult<()> {
        let kernel = &kernels().gemm_f32;
        let bias = if self.has_bias { io.input(2).data::<f32>() } else { &self.bias };
        let epilogue = KernelEpilogue::new(Some(bias), Unary::Identity);
        let (input, weights) = (io.input(0).data(), io.input(1).data());
        let (sliding, scratch) = (&self.sliding, super::support::typed(io.scratch));
        let (out, dims, parallel) = (io.outputs[0].data::<f32>(), self.dims, io.parallel);
        conv_fresh_f32(kernel, sliding, input, weights, dims, self.group, &epilogue, out, scratch, parallel)?;
        self.epilogue.apply_all(io);
        Ok(())
    }
}
