//! Between floats and the codes of a described tensor.

use std::borrow::Cow;
use std::sync::Arc;

use mnnq_kernels::quantize_rows::{StaticCodes, dequantize_static, quantize_static};

use super::super::epilogue::QuantInfo;
use super::super::error::OpResult;
use super::super::operator::{Facts, InferResult, Kernel, Layouts, Operator, PrepareContext, StepIo};
use super::super::support::kernels;
use crate::tensor::{DType, TensorDesc};

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
        Layouts::follow(inputs, outputs.len())
    }

    fn prepare(&self, _: &PrepareContext<'_>) -> OpResult<Box<dyn Kernel>> {
        Ok(Box::new(self.clone()))
    }
}

impl Kernel for Convert {
    fn label(&self) -> Cow<'static, str> {
        let isa = kernels().elementwise_f32.level();
        if self.to_codes {
            format!("quantize f32 to int8 quantize_rows_{isa}").into()
        } else {
            format!("dequantize int8 to f32 quantize_rows_{isa}").into()
        }
    }

    fn run(&self, io: &mut StepIo<'_, '_>) -> OpResult<()> {
        let isa = kernels().elementwise_f32;
        let input = io.input(0);
        let out = &mut io.outputs[0];
        if self.to_codes {
            quantize_static(isa, self.codes, input.data(), out.data(), io.parallel)?;
        } else {
            let StaticCodes { scale, zero, .. } = self.codes;
            dequantize_static(isa, scale, zero, input.data(), out.data(), io.parallel)?;
        }
        Ok(())
    }
}
