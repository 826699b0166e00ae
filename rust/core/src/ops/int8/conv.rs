//! Convolutions of codes, in integers.
//!
//! `acc = sum (x_code - zero_in) * w_code`; `code = clamp(round(acc * s[o] + b[o]) + zero_out, lo, max)` with
//! `s = alpha * scale_in / scale_out` and `b = bias / scale_out`, each computed in `f64` and rounded to `f32` once; the
//! multiplication and the addition are `f32` operations, and halves are rounded away from zero. A fused ReLU (also
//! ReLU6, whose upper bound the output's scale has) makes `lo = max(min, zero_out)`.
//!
//! Depthwise convolutions have their bias and zero point in units of the products, truncated:
//! `code = clamp(round((acc + trunc(bias / (scale_in * alpha)) + trunc(zero_out / s)) * s), lo, max)`. So does MNN.

use std::borrow::Cow;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use mnnq_format::model::Table;
use mnnq_format::schema::{OpType, convolution2d, quantized_float_param};
use mnnq_format::{ConvWeights, QuantizedWeights};
use mnnq_kernels::conv_i8::{PackedConvI8, conv_i8};
use mnnq_kernels::depthwise_i8::{PackedDepthwiseI8, depthwise_i8};
use mnnq_kernels::elementwise_i8::{AddI8, TableI8};
use mnnq_kernels::gemm_i8::{Output, Requantize, ResidualI8, requantize_parameters};
use mnnq_kernels::geometry::Sliding;
use mnnq_kernels::winograd_f32::is_winograd;
use mnnq_kernels::winograd_i8::{PackedWinogradI8, winograd_i8};

use super::super::conv::infer;
use super::super::conv_weights::ConvCommon;
use super::super::dynamic::cost::Layer;
use super::super::epilogue::{CodeStep, QuantInfo};
use super::super::error::{OpError, OpResult};
use super::super::operator::{Facts, InferResult, Kernel, Layouts, Operator, PrepareContext, StepIo};
use super::super::registry::OpSource;
use super::super::support::kernels;
use crate::tensor::{DType, Layout, TensorDesc};

/// How input, output and accumulators relate.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum IntQuant {
    /// Real scales of the tensors.
    Described { input: QuantInfo, output: QuantInfo },
    /// Everything in codes: `code = clamp(round((acc + bias) * scale[o]) + zero, min, max)`.
    Codes { bias: Vec<i32>, scale: Vec<f32>, input_zero: i32, output_zero: i32, min: i32, max: i32 },
}

impl IntQuant {
    /// Whether a convolution runs on integers, by the rule of MNN's runtime: both tensors are described and the
    /// weights are symmetric codes; or it is one of the operators that take int8 tensors.
    pub(crate) fn of(
        source: &OpSource<'_>,
        table: &Table,
        weights: &ConvWeights,
        common: &ConvCommon,
    ) -> OpResult<Option<Self>> {
        if matches!(source.op_type, OpType::ConvInt8 | OpType::DepthwiseConvInt8) {
            return Self::codes(table, weights, common).map(Some);
        }
        let Some((input, output)) = super::described(source, 0) else { return Ok(None) };
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

    fn input_zero(&self) -> i32 {
        match self {
            Self::Described { input, .. } => input.codes().zero,
            Self::Codes { input_zero, .. } => *input_zero,
        }
    }
}

/// The numbers that make codes of sums.
#[derive(Debug)]
struct Rounding {
    scale: Vec<f32>,
    bias: Option<Vec<f32>>,
    /// Added to the sums.
    offsets: Option<Vec<i32>>,
    zero: i32,
    lo: i32,
    hi: i32,
}

impl Rounding {
    fn new(quant: &IntQuant, alpha: &[f32], bias: &[f32], relu: bool, depthwise: bool) -> OpResult<Self> {
        match quant {
            IntQuant::Described { input, output } => {
                let to = output.codes();
                let lo = if relu { to.lo.max(to.zero).min(to.hi) } else { to.lo };
                let (scale, offset) = requantize_parameters(input.scale, alpha, bias, output.scale)?;
                if !depthwise {
                    return Ok(Self {
                        scale,
                        bias: Some(offset),
                        offsets: None,
                        zero: to.zero,
                        lo,
                        hi: to.hi,
                    });
                }
                let offsets = alpha.iter().zip(bias).zip(&scale).map(|((&alpha, &bias), &scale)| {
                    whole(bias / (input.scale * alpha)).saturating_add(whole(output.zero / scale))
                });
                let offsets = Some(offsets.map(bounded).collect());
                Ok(Self { scale, bias: None, offsets, zero: 0, lo, hi: to.hi })
            }
            IntQuant::Codes { bias, scale, output_zero, min, max, .. } => {
                let (lo, hi) = ((*min).clamp(-128, 127), (*max).clamp(-128, 127));
                let offsets = Some(bias.iter().map(|&b| bounded(b)).collect());
                Ok(Self { scale: scale.clone(), bias: None, offsets, zero: *output_zero, lo: lo.min(hi), hi })
            }
        }
    }
}

/// The integer part; 0 for what is no number (a channel without weights).
fn whole(x: f32) -> i32 {
    if x.is_finite() { x as i32 } else { 0 }
}

/// What can be added to a sum of products without leaving 32 bits.
fn bounded(offset: i32) -> i32 {
    let most = PackedDepthwiseI8::MOST_OFFSET as i32;
    offset.clamp(-most, most)
}

enum Weights {
    Dense(PackedConvI8),
    Winograd(PackedWinogradI8),
    Depthwise(PackedDepthwiseI8),
}

struct Packed {
    weights: Weights,
    rounding: Rounding,
}

/// How many groups of so many columns share the `width` columns of a tile, whose products are computed anyway.
fn groups_in_one(groups: usize, columns: usize, width: usize) -> usize {
    (1..=groups).rev().find(|n| groups.is_multiple_of(*n) && n * columns <= width).unwrap_or(1)
}

/// Weights `[output channels, input channels of a group, taps]` for groups of `merged` times as many channels: zeros between
/// the old groups.
fn block_diagonal(codes: Vec<i8>, common: &ConvCommon, merged: usize) -> Vec<i8> {
    if merged <= 1 || codes.is_empty() {
        return codes;
    }
    let columns = common.out_channels / common.group;
    let k = codes.len() / common.out_channels;
    let mut wide = vec![0; codes.len() * merged];
    for (row, (from, to)) in codes.chunks_exact(k).zip(wide.chunks_exact_mut(merged * k)).enumerate() {
        to[row / columns % merged * k..][..k].copy_from_slice(from);
    }
    wide
}

/// A convolution of codes.
pub(crate) struct IntConv {
    common: ConvCommon,
    quant: IntQuant,
    alpha: Vec<f32>,
    bias: Vec<f32>,
    /// Convolutions of the file that this one is made of.
    pieces: usize,
    /// `[output channels, k]`, until they are packed.
    codes: Mutex<Option<Vec<i8>>>,
    packed: OnceLock<Arc<Packed>>,
}

impl IntConv {
    pub(crate) fn new(
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
        let packed = OnceLock::new();
        Ok(Self { common, quant, alpha, bias, pieces: 1, codes: Mutex::new(Some(codes)), packed })
    }

    /// Convolutions of one group each as one of several groups; the codes are the same. The parts keep their weights, of
    /// a byte each, for whoever wants to see what is in between.
    pub(crate) fn joined(parts: &[&Self]) -> Option<Arc<Self>> {
        let first = *parts.first()?;
        let alike = |part: &&Self| {
            part.common.group == 1
                && part.common == first.common
                && part.quant == first.quant
                && part.takes_codes()
                && part.packed.get().is_none()
        };
        if first.common.has_output_shape || !parts.iter().all(alike) {
            return None;
        }
        let mut codes = Vec::new();
        for part in parts {
            let part = part.codes.lock().unwrap_or_else(PoisonError::into_inner);
            codes.extend_from_slice(part.as_ref()?);
        }
        let n = parts.len();
        Some(Arc::new(Self {
            common: ConvCommon {
                group: n,
                in_channels: n * first.common.in_channels,
                out_channels: n * first.common.out_channels,
                ..first.common.clone()
            },
            quant: first.quant.clone(),
            alpha: parts.iter().flat_map(|part| part.alpha.iter().copied()).collect(),
            bias: parts.iter().flat_map(|part| part.bias.iter().copied()).collect(),
            pieces: n,
            codes: Mutex::new(Some(codes)),
            packed: OnceLock::new(),
        }))
    }

    fn depthwise(&self) -> bool {
        let group = self.common.group;
        group > 1 && group == self.common.out_channels && group == self.common.in_channels
    }

    /// Whether Winograd's algorithm is used, which gives the same sums: 3 x 3 windows without stride, where it is faster on
    /// this CPU. The first image decides, as the weights are kept in one form.
    fn prefers_winograd(&self, sliding: &Sliding, codes: &[i8]) -> bool {
        let tiles = sliding.batch * sliding.out_height.div_ceil(4) * sliding.out_width.div_ceil(4);
        self.common.group == 1
            && is_winograd(sliding)
            && kernels().winograd_i8.pays(self.common.in_channels, tiles)
            && PackedWinogradI8::is_exact(codes, self.common.in_channels)
    }

    /// What a layer gains on this CPU, for the profile. Floats could not give the same codes, so that nothing depends on it.
    fn estimate(&self, weights: &Weights) -> String {
        let winograd = match weights {
            Weights::Dense(_) => false,
            Weights::Winograd(_) => true,
            Weights::Depthwise(_) => return String::new(),
        };
        let pieces = if self.pieces > 1 { format!(", {} groups in one", self.pieces) } else { String::new() };
        let ratio = Layer::dense(&self.common).ratio_of_codes(winograd);
        format!("{pieces}, estimated at {ratio:.2} of float")
    }

    /// The weights in the order of the kernel; made at the first use, then shared by all plans.
    fn packed(&self, sliding: &Sliding) -> OpResult<Arc<Packed>> {
        let mut codes = self.codes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(packed) = self.packed.get() {
            return Ok(packed.clone());
        }
        let codes = codes
            .take()
            .ok_or_else(|| OpError::unsupported("packing weights that could not be packed before"))?;
        let common = &self.common;
        let relu = common.activation.is_some();
        let rounding = Rounding::new(&self.quant, &self.alpha, &self.bias, relu, self.depthwise())?;
        let zero = self.quant.input_zero();
        let weights = if self.depthwise() {
            let kernel = &kernels().depthwise_i8;
            let mut packed =
                PackedDepthwiseI8::new(kernel, &codes, common.out_channels, common.kernel, zero)?;
            if let Some(offsets) = &rounding.offsets {
                packed.add_offsets(offsets)?;
            }
            Weights::Depthwise(packed)
        } else if self.prefers_winograd(sliding, &codes) {
            let channels = (common.out_channels, common.in_channels);
            let kernel = &kernels().winograd_i8;
            let mut packed = PackedWinogradI8::new(kernel, &codes, channels.0, channels.1, zero)?;
            if let Some(offsets) = &rounding.offsets {
                packed.add_offsets(offsets)?;
            }
            Weights::Winograd(packed)
        } else {
            let kernel = &kernels().gemm_i8;
            let merged = groups_in_one(common.group, common.out_channels / common.group, kernel.nr());
            let groups = common.group / merged;
            let dims = [common.out_channels, common.in_channels / groups, common.taps()];
            let codes = block_diagonal(codes, common, merged);
            let mut packed = PackedConvI8::new(kernel, &codes, dims, groups, zero)?;
            if let Some(offsets) = &rounding.offsets {
                packed.add_offsets(offsets)?;
            }
            Weights::Dense(packed)
        };
        Ok(self.packed.get_or_init(|| Arc::new(Packed { weights, rounding })).clone())
    }
}

impl Operator for IntConv {
    fn infer(&self, inputs: &Facts<'_>) -> InferResult {
        Ok(vec![infer(&self.common, inputs.typed(0, DType::I8)?, DType::I8)?])
    }

    fn layouts(&self, inputs: &Facts<'_>, outputs: &[TensorDesc]) -> Layouts {
        Layouts::first(Layout::ChannelsLast, inputs.len(), outputs.len())
    }

    fn accepts_epilogue(&self) -> bool {
        true
    }

    fn takes_codes(&self) -> bool {
        matches!(self.quant, IntQuant::Described { .. })
    }

    fn prepare(&self, context: &PrepareContext<'_>) -> OpResult<Box<dyn Kernel>> {
        let sliding = self.common.sliding(&context.inputs.shape(0)?)?;
        let packed = self.packed(&sliding)?;
        let (mut residual, mut table): (_, Option<Arc<TableI8>>) = (None, None);
        for step in &context.epilogue.codes {
            match step {
                CodeStep::Add { input, how } => residual = Some((*input, *how)),
                CodeStep::Table(function) => {
                    table =
                        Some(table.map_or_else(|| function.clone(), |first| Arc::new(first.then(function))));
                }
            }
        }
        let scratch = match &packed.weights {
            Weights::Dense(weights) => weights.scratch_len(&kernels().gemm_i8),
            Weights::Winograd(weights) => (4 * weights.scratch_len()).next_multiple_of(64),
            Weights::Depthwise(weights) => weights.scratch_len(&kernels().depthwise_i8, &sliding),
        };
        Ok(Box::new(IntConvKernel {
            sliding,
            relu: self.common.activation.is_some(),
            padding: self.quant.input_zero().clamp(-128, 127) as i8,
            channels: self.common.out_channels,
            in_group: self.common.in_channels / self.common.group.max(1),
            residual,
            table,
            scratch: scratch * context.options.threads,
            words: format!("{}{}", context.epilogue.describe(), self.estimate(&packed.weights)),
            packed,
        }))
    }
}

struct IntConvKernel {
    sliding: Sliding,
    relu: bool,
    /// The code of 0.
    padding: i8,
    channels: usize,
    /// Input channels of a group.
    in_group: usize,
    packed: Arc<Packed>,
    residual: Option<(usize, AddI8)>,
    table: Option<Arc<TableI8>>,
    scratch: usize,
    words: String,
}

impl Kernel for IntConvKernel {
    fn label(&self) -> Cow<'static, str> {
        let (v, h) = (self.sliding.vertical.kernel, self.sliding.horizontal.kernel);
        let (name, kernel) = match &self.packed.weights {
            Weights::Dense(_) => ("conv", kernels().gemm_i8.name()),
            Weights::Winograd(weights) => ("conv", weights.kernel().name()),
            Weights::Depthwise(_) => ("depthwise", kernels().depthwise_i8.name()),
        };
        let relu = if self.relu { "+relu" } else { "" };
        format!("{name} {v}x{h} int8 {kernel}{relu}{}", self.words).into()
    }

    fn scratch(&self) -> usize {
        self.scratch
    }

    fn multiply_adds(&self) -> u64 {
        crate::ops::conv::conv_products(&self.sliding, self.in_group, self.channels)
    }

    fn run(&self, io: &mut StepIo<'_, '_>) -> OpResult<()> {
        let input = io.input(0).data::<i8>();
        let residual = self.residual.map(|(position, how)| ResidualI8 {
            data: io.input(position).data(),
            row_stride: self.channels,
            how,
        });
        let rounding = &self.packed.rounding;
        let requantize = Requantize {
            scale: &rounding.scale,
            bias: rounding.bias.as_deref(),
            zero: rounding.zero,
            lo: rounding.lo,
            hi: rounding.hi,
            residual,
            table: self.table.as_deref(),
        };
        let output = Output::Int8 { data: io.outputs[0].data(), row_stride: self.channels, requantize };
        let (g, padding) = (&self.sliding, self.padding);
        match &self.packed.weights {
            Weights::Dense(weights) => {
                conv_i8(&kernels().gemm_i8, g, input, padding, weights, output, io.scratch, io.parallel)?;
            }
            Weights::Winograd(weights) => {
                let scratch = crate::ops::support::typed(io.scratch);
                winograd_i8(g, input, padding, weights, output, scratch, io.parallel)?;
            }
            Weights::Depthwise(weights) => {
                let kernel = &kernels().depthwise_i8;
                depthwise_i8(kernel, g, input, padding, weights, output, io.scratch, io.parallel)?;
            }
        }
        Ok(())
    }
}
