//! Between floats and the codes of a described tensor.

use std::borrow::Cow;
use std::sync::Arc;

use mnnq_kernels::elementwise_i8::quantize_interleaved;
use mnnq_kernels::quantize_rows::{StaticCodes, dequantize_static, quantize_static};

use super::super::epilogue::QuantInfo;
use super::super::error::OpResult;
use super::super::operator::{Facts, InferResult, Kernel, Layouts, Operator, PrepareContext, StepIo};
use super::super::support::kernels;
use crate::tensor::{DType, Layout, TensorDesc};

/// The operator `code = clamp(round(x / scale) + zero, min, max)`, rounding half away from zero.
pub(crate) fn quantize(info: &QuantInfo) -> Arc<dyn Operator> {
    Arc::new(Convert { codes: info.codes(), to_codes: true })
}

/// The operator `x = (code - zero) * scale`.
pub(crate) fn dequantize(info: &QuantInfo) -> Arc<dyn Operator> {
    Arc::new(Convert { codes: info.codes(), to_codes: false })
}

#[derive(Clone)]
struct Convert {
    codes: StaticCodes,
    to_codes: bool,
}

impl Operator for Convert {
    fn infer(&self, inputs: &Facts<'_>) -> InferResult {
        let (from, to) = if self.to_codes { (DType::F32, DType::I8) } else { (DType::I8, DType::F32) };
        Ok(vec![TensorDesc { dtype: to, ..inputs.typed(0, from)? }])
    }

    fn layouts(&self, inputs: &Facts<'_>, outputs: &[TensorDesc]) -> Layouts {
        let mut layouts = Layouts::follow(inputs, outputs.len());
        // Images are wanted channels-last; with few channels that costs nothing here.
        if self.to_codes && inputs.desc(0).is_ok_and(|desc| few_channels(&desc)) {
            layouts.outputs.fill(Layout::ChannelsLast);
        }
        layouts
    }

    fn prepare(&self, context: &PrepareContext<'_>) -> OpResult<Box<dyn Kernel>> {
        let desc = context.inputs.desc(0)?;
        let interleave = context.outputs[0].layout == Layout::ChannelsLast && few_channels(&desc);
        let image = interleave.then(|| [desc.shape[1], desc.shape[2] * desc.shape[3]]);
        Ok(Box::new(ConvertKernel { convert: self.clone(), image: image.filter(|_| self.to_codes) }))
    }
}

/// Whether it is a row-major image of few channels.
fn few_channels(desc: &TensorDesc) -> bool {
    matches!(desc.shape.dims(), [_, 1..=4, _, _]) && desc.layout == Layout::Plain
}

struct ConvertKernel {
    convert: Convert,
    /// Channels and pixels of row-major images whose codes are to be channels-last.
    image: Option<[usize; 2]>,
}

impl Kernel for ConvertKernel {
    fn label(&self) -> Cow<'static, str> {
        let isa = kernels().elementwise_f32.level();
        if self.image.is_some() {
            format!("quantize f32 to int8 channels-last quantize_rows_{isa}").into()
        } else if self.convert.to_codes {
            format!("quantize f32 to int8 quantize_rows_{isa}").into()
        } else {
            format!("dequantize int8 to f32 quantize_rows_{isa}").into()
        }
    }

    fn run(&self, io: &mut StepIo<'_, '_>) -> OpResult<()> {
        let isa = kernels().elementwise_f32;
        let input = io.input(0);
        let out = &mut io.outputs[0];
        let codes = self.convert.codes;
        if let Some(image) = self.image {
            quantize_interleaved(isa, codes, input.data(), image, out.data(), io.parallel)?;
        } else if self.convert.to_codes {
            quantize_static(isa, codes, input.data(), out.data(), io.parallel)?;
        } else {
            let StaticCodes { scale, zero, .. } = codes;
            dequantize_static(isa, scale, zero, input.data(), out.data(), io.parallel)?;
        }
        Ok(())
    }
}
