//! Between floats and codes in files that say so themselves: `FloatToInt8`, `Int8ToFloat`.

use std::borrow::Cow;

use mnnq_format::model::Table;
use mnnq_format::schema::{TableKind, quantized_float_param};

use super::error::{OpError, OpResult};
use super::operator::{Facts, InferResult, Kernel, Layouts, Operator, PrepareContext, StepIo};
use super::registry::OpSource;
use super::support::{CHUNK, floats, split_physical};
use crate::tensor::{DType, TensorDesc};

/// Scale and zero point, one for all or one per channel (axis 1).
#[derive(Debug, Clone)]
struct Affine {
    scale: Vec<f32>,
    zero: Vec<f32>,
}

impl Affine {
    fn parse(table: &Table) -> OpResult<Self> {
        let scale = floats(table.get(quantized_float_param::TENSOR_SCALE));
        let mut zero = floats(table.get(quantized_float_param::FLOATZEROS));
        if zero.is_empty() {
            zero = vec![f32::from(table.get(quantized_float_param::ZERO_POINT))];
        }
        if scale.is_empty() {
            return Err(OpError::attribute("tensorScale", "empty", "one value, or one per channel"));
        }
        Ok(Self { scale, zero })
    }

    fn check(&self, desc: &TensorDesc) -> OpResult<()> {
        let channels = desc.shape.get(1).copied().unwrap_or(1);
        for (key, values) in [("tensorScale", &self.scale), ("floatzeros", &self.zero)] {
            if values.len() != 1 && values.len() != channels {
                let wanted = format!("1 or {channels} values");
                return Err(OpError::attribute(key, format!("{} values", values.len()), wanted));
            }
        }
        Ok(())
    }

    fn at(&self, channel: usize) -> (f32, f32) {
        let pick = |values: &[f32]| if values.len() == 1 { values[0] } else { values[channel] };
        (pick(&self.scale), pick(&self.zero))
    }
}

/// `FloatToInt8`: `code = clamp(round(x * tensorScale) + zero, clampMin, clampMax)`, rounding half away from zero.
pub(super) struct FloatToInt8 {
    affine: Affine,
    min: f32,
    max: f32,
}

impl FloatToInt8 {
    pub(super) fn new(source: &OpSource<'_>) -> OpResult<Self> {
        source.expect_outputs(1)?;
        let table = source.param(TableKind::QuantizedFloatParam)?;
        let bound = |field| f32::from(table.get::<i8>(field));
        Ok(Self {
            affine: Affine::parse(table)?,
            min: bound(quantized_float_param::CLAMP_MIN),
            max: bound(quantized_float_param::CLAMP_MAX),
        })
    }
}

/// `Int8ToFloat`: `x = (code - zero) * tensorScale`.
pub(super) struct Int8ToFloat {
    affine: Affine,
}

impl Int8ToFloat {
    pub(super) fn new(source: &OpSource<'_>) -> OpResult<Self> {
        source.expect_outputs(1)?;
        Ok(Self { affine: Affine::parse(source.param(TableKind::QuantizedFloatParam)?)? })
    }
}

impl Operator for FloatToInt8 {
    fn infer(&self, inputs: &Facts<'_>) -> InferResult {
        let desc = inputs.typed(0, DType::F32)?;
        self.affine.check(&desc)?;
        Ok(vec![TensorDesc { dtype: DType::I8, ..desc }])
    }

    fn layouts(&self, inputs: &Facts<'_>, outputs: &[TensorDesc]) -> Layouts {
        Layouts::follow(inputs, outputs.len())
    }

    fn prepare(&self, context: &PrepareContext<'_>) -> OpResult<Box<dyn Kernel>> {
        let (channels, inner) = channels(&context.inputs.desc(0)?);
        let (affine, min, max) = (self.affine.clone(), self.min, self.max.max(self.min));
        Ok(Box::new(QuantizeKernel { affine, bounds: Some((min, max)), channels, inner }))
    }
}

impl Operator for Int8ToFloat {
    fn infer(&self, inputs: &Facts<'_>) -> InferResult {
        let desc = inputs.typed(0, DType::I8)?;
        self.affine.check(&desc)?;
        Ok(vec![TensorDesc { dtype: DType::F32, ..desc }])
    }

    fn layouts(&self, inputs: &Facts<'_>, outputs: &[TensorDesc]) -> Layouts {
        Layouts::follow(inputs, outputs.len())
    }

    fn prepare(&self, context: &PrepareContext<'_>) -> OpResult<Box<dyn Kernel>> {
        let (channels, inner) = channels(&context.inputs.desc(0)?);
        Ok(Box::new(QuantizeKernel { affine: self.affine.clone(), bounds: None, channels, inner }))
    }
}

/// Channels and elements behind each, in memory order.
fn channels(desc: &TensorDesc) -> (usize, usize) {
    if desc.shape.rank() < 2 {
        return (1, 1);
    }
    let (_, channels, inner) = split_physical(desc, 1);
    (channels.max(1), inner.max(1))
}

struct QuantizeKernel {
    affine: Affine,
    /// Bounds of the codes; `None`: from codes to floats.
    bounds: Option<(f32, f32)>,
    channels: usize,
    inner: usize,
}

impl Kernel for QuantizeKernel {
    fn label(&self) -> Cow<'static, str> {
        if self.bounds.is_some() { "quantize f32 to int8" } else { "dequantize int8 to f32" }.into()
    }

    fn run(&self, io: &mut StepIo<'_, '_>) -> OpResult<()> {
        let channel = |position: usize| position / self.inner % self.channels;
        match self.bounds {
            Some((min, max)) => {
                let x = io.input(0).data::<f32>();
                io.parallel.for_each_chunk(io.outputs[0].data::<i8>(), CHUNK, |chunk, out| {
                    for (i, code) in out.iter_mut().enumerate() {
                        let i = chunk * CHUNK + i;
                        let (scale, zero) = self.affine.at(channel(i));
                        *code = ((x[i] * scale).round() + zero).clamp(min, max) as i8;
                    }
                });
            }
            None => {
                let codes = io.input(0).data::<i8>();
                io.parallel.for_each_chunk(io.outputs[0].data::<f32>(), CHUNK, |chunk, out| {
                    for (i, x) in out.iter_mut().enumerate() {
                        let i = chunk * CHUNK + i;
                        let (scale, zero) = self.affine.at(channel(i));
                        *x = (f32::from(codes[i]) - zero) * scale;
                    }
                });
            }
        }
        Ok(())
    }
}
