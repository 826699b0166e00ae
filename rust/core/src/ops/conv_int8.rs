//! Convolutions of offline-quantized models: integer arithmetic by the exact formula.
//!
//! `acc = sum (x_code - zero_in) * w_code`, `y = acc * alpha[o] * scale_in + bias[o]`,
//! `code = clamp(round(y / scale_out) + zero_out, lo, max)`; a fused ReLU (also ReLU6, whose upper bound the output's
//! scale has) makes `lo = max(min, zero_out)`. Depthwise convolutions round bias and zero point to accumulator units
//! first. This form works with tensors whose floats lie on the codes' grid.

use std::borrow::Cow;

use mnnq_format::model::Table;
use mnnq_format::schema::{OpType, convolution2d, quantized_float_param};
use mnnq_format::{ConvWeights, QuantizedWeights};
use mnnq_kernels::geometry::Sliding;

use super::conv::infer;
use super::conv_stored::copy_window;
use super::conv_weights::ConvCommon;
use super::epilogue::QuantInfo;
use super::error::{OpError, OpResult};
use super::operator::{Facts, InferResult, Kernel, Layouts, Operator, PrepareContext, StepIo};
use super::registry::OpSource;
use crate::tensor::{DType, Layout, TensorDesc};

/// How input, output and accumulators relate.
#[derive(Debug, Clone)]
pub(super) enum IntQuant {
    /// Tensors are described: floats on the grids of `input` and `output`.
    Described { input: QuantInfo, output: QuantInfo },
    /// Tensors are int8: `code = clamp(round((acc + bias) * scale[o]) + zero, min, max)`.
    Codes { bias: Vec<i32>, scale: Vec<f32>, input_zero: i32, output_zero: i32, min: i32, max: i32 },
}

impl IntQuant {
    /// Whether a convolution runs on integers, by the rule of MNN's runtime: both tensors are described and the
    /// weights are symmetric codes; or it is one of the operators that take int8 tensors.
    pub(super) fn of(
        source: &OpSource<'_>,
        table: &Table,
        weights: &ConvWeights,
        common: &ConvCommon,
    ) -> OpResult<Option<Self>> {
        if matches!(source.op_type, OpType::ConvInt8 | OpType::DepthwiseConvInt8) {
            return Self::codes(table, weights, common).map(Some);
        }
        let (Some(&Some(input)), Some(&Some(output))) =
            (source.input_quant.first(), source.output_quant.first())
        else {
            return Ok(None);
        };
        let symmetric = matches!(weights, ConvWeights::Quantized(codes) if codes.min().is_none());
        Ok((symmetric && source.inputs == 1).then_some(Self::Described { input, output }))
    }

    fn codes(table: &Table, weights: &ConvWeights, common: &ConvCommon) -> OpResult<Self> {
        use quantized_float_param as f;
        let ConvWeights::OldInt8 { bias, scale, .. } = weights else {
            return Err(OpError::unsupported("this form of int8 weights"));
        };
        let params = table
            .get(convolution2d::SYMMETRIC_QUAN)
            .ok_or(OpError::Parameter { wanted: "QuantizedFloatParam", got: "absent".to_owned() })?;
        let n = common.out_channels;
        let bias = bias.as_ref().and_then(|b| b.as_i32().map(|b| b.into_owned())).unwrap_or(vec![0; n]);
        let scale = scale.as_ref().and_then(|s| s.as_f32().map(|s| s.into_owned())).unwrap_or_default();
        if scale.len() != n || bias.len() != n {
            let got = format!("{} scales, {} biases", scale.len(), bias.len());
            return Err(OpError::attribute("symmetricQuan", got, format!("{n} of each")));
        }
        let output_zero = params.get(f::OUTPUT_ZERO_POINT).into();
        let min: i32 = params.get(f::CLAMP_MIN).into();
        Ok(Self::Codes {
            bias,
            scale,
            input_zero: params.get(f::ZERO_POINT).into(),
            output_zero,
            min: if common.activation.is_some() { min.max(output_zero) } else { min },
            max: params.get(f::CLAMP_MAX).into(),
        })
    }
}

/// A convolution on integers.
pub(super) struct IntConv {
    common: ConvCommon,
    /// `[output channels, k]`
    codes: std::sync::Arc<[i8]>,
    /// Real weight of one code, per output channel.
    alpha: Vec<f32>,
    bias: Vec<f32>,
    quant: IntQuant,
}

impl IntConv {
    pub(super) fn new(
        common: ConvCommon,
        weights: ConvWeights,
        bias: Vec<f32>,
        quant: IntQuant,
    ) -> OpResult<Self> {
        let n = common.out_channels;
        let (codes, alpha) = match weights {
            ConvWeights::Quantized(weights) => {
                let (codes, scale, _) = QuantizedWeights::into_parts(weights);
                (codes, scale)
            }
            ConvWeights::OldInt8 { weight, .. } => {
                (weight.as_i8().unwrap_or_default().into_owned(), vec![1.0; n])
            }
            other => return Err(OpError::unsupported(format!("{} weights in int8", other.kind()))),
        };
        if alpha.len() != n {
            let wanted = format!("{n} scales, one per output channel");
            return Err(OpError::attribute("alpha", format!("{} scales", alpha.len()), wanted));
        }
        Ok(Self { common, codes: codes.into(), alpha, bias, quant })
    }

    fn dtype(&self) -> DType {
        match self.quant {
            IntQuant::Described { .. } => DType::F32,
            IntQuant::Codes { .. } => DType::I8,
        }
    }
}

impl Operator for IntConv {
    fn infer(&self, inputs: &Facts<'_>) -> InferResult {
        Ok(vec![infer(&self.common, inputs.typed(0, self.dtype())?, self.dtype())?])
    }

    fn layouts(&self, inputs: &Facts<'_>, outputs: &[TensorDesc]) -> Layouts {
        Layouts::first(Layout::ChannelsLast, inputs.len(), outputs.len())
    }

    fn rounds_output(&self) -> bool {
        true
    }

    fn prepare(&self, context: &PrepareContext<'_>) -> OpResult<Box<dyn Kernel>> {
        Ok(Box::new(IntConvKernel {
            sliding: self.common.sliding(&context.inputs.shape(0)?)?,
            depthwise: self.common.group == self.common.out_channels && self.common.group > 1,
            group: self.common.group,
            relu: self.common.activation.is_some(),
            codes: self.codes.clone(),
            alpha: self.alpha.clone(),
            bias: self.bias.clone(),
            quant: self.quant.clone(),
            threads: context.options.threads,
        }))
    }
}

struct IntConvKernel {
    sliding: Sliding,
    depthwise: bool,
    group: usize,
    relu: bool,
    codes: std::sync::Arc<[i8]>,
    alpha: Vec<f32>,
    bias: Vec<f32>,
    quant: IntQuant,
    threads: usize,
}

impl IntConvKernel {
    fn k(&self) -> usize {
        self.sliding.channels / self.group * self.sliding.taps()
    }

    /// Elements of the input, whose codes are computed first.
    fn input_len(&self) -> usize {
        self.sliding.batch * self.sliding.height * self.sliding.width * self.sliding.channels
    }

    /// The sums of one output pixel; `finish(channel, sum)`.
    fn pixel(
        &self,
        codes: &[i16],
        pixel: usize,
        pad: i16,
        window: &mut [i16],
        mut finish: impl FnMut(usize, i32),
    ) {
        let g = &self.sliding;
        let (k, n) = (self.k(), self.bias.len());
        let (in_group, out_group) = (g.channels / self.group, n / self.group);
        for group in 0..self.group {
            copy_window(g, codes, pixel, group * in_group..(group + 1) * in_group, pad, window);
            for channel in group * out_group..(group + 1) * out_group {
                let weights = &self.codes[channel * k..][..k];
                let sum = window.iter().zip(weights).map(|(&x, &w)| i32::from(x) * i32::from(w)).sum();
                finish(channel, sum);
            }
        }
    }
}

/// The code of a depthwise sum: bias and zero point become integers of the accumulator first, toward zero.
fn depthwise_code(sum: i32, alpha: f32, bias: f32, input: &QuantInfo, output: &QuantInfo) -> f64 {
    let scale = alpha * input.scale / output.scale;
    let integer = |x: f32| if x.is_finite() { f64::from(x.trunc()) } else { 0.0 };
    let bias = integer(bias / (input.scale * alpha)) + integer(output.zero / scale);
    ((f64::from(sum) + bias) * f64::from(scale)).round()
}

impl Kernel for IntConvKernel {
    fn label(&self) -> Cow<'static, str> {
        let (v, h) = (self.sliding.vertical.kernel, self.sliding.horizontal.kernel);
        format!("conv {v}x{h} int8 reference{}", if self.relu { "+relu" } else { "" }).into()
    }

    fn scratch(&self) -> usize {
        // Codes of the input without their zero point, then a window per thread.
        (self.input_len() + self.threads * self.k()) * size_of::<i16>()
    }

    fn run(&self, io: &mut StepIo<'_, '_>) -> OpResult<()> {
        let input_view = io.input(0);
        let (codes, windows) = super::support::typed::<i16>(io.scratch).split_at_mut(self.input_len());
        let (n, k) = (self.bias.len(), self.k());
        match &self.quant {
            IntQuant::Described { input, output } => {
                for (code, &x) in codes.iter_mut().zip(input_view.data::<f32>()) {
                    *code = (input.code(x) - input.zero) as i16;
                }
                let codes = &*codes;
                let lo = if self.relu { output.min.max(output.zero) } else { output.min };
                let out = io.outputs[0].data::<f32>();
                io.parallel.for_each_chunk_with(out, n, windows, k, |pixel, out, window| {
                    self.pixel(codes, pixel, 0, window, |channel, sum| {
                        let (alpha, bias) = (self.alpha[channel], self.bias[channel]);
                        let code = if self.depthwise {
                            depthwise_code(sum, alpha, bias, input, output)
                        } else {
                            let y =
                                f64::from(sum) * f64::from(alpha) * f64::from(input.scale) + f64::from(bias);
                            (y / f64::from(output.scale)).round() + f64::from(output.zero)
                        };
                        let code = code.clamp(f64::from(lo.min(output.max)), f64::from(output.max));
                        out[channel] = output.real(code as f32);
                    });
                });
            }
            IntQuant::Codes { bias, scale, input_zero, output_zero, min, max } => {
                for (code, &x) in codes.iter_mut().zip(input_view.data::<i8>()) {
                    *code = (i32::from(x) - input_zero) as i16;
                }
                let codes = &*codes;
                let out = io.outputs[0].data::<i8>();
                io.parallel.for_each_chunk_with(out, n, windows, k, |pixel, out, window| {
                    self.pixel(codes, pixel, 0, window, |channel, sum| {
                        let sum = f64::from(sum.wrapping_add(bias[channel]));
                        let code = (sum * f64::from(scale[channel])).round() as i32;
                        let code = code.saturating_add(*output_zero).max(*min).min(*max);
                        out[channel] = code.clamp(-128, 127) as i8;
                    });
                });
            }
        }
        Ok(())
    }
}
