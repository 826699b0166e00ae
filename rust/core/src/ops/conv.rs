//! Convolutions: which kernel for which weights and mode.

use std::any::Any;
use std::borrow::Cow;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use mnnq_format::ConvWeights;
use mnnq_format::schema::{OpType, TableKind};
use mnnq_kernels::conv_f32::{PackedConv, conv_f32, conv_scaled_f32, conv_scratch_len};
use mnnq_kernels::depthwise_f32::{PackedDepthwise, depthwise_f32};
use mnnq_kernels::elementwise::Unary;
use mnnq_kernels::gemm_half::{PackedConvHalf, conv_half, scratch_len as half_scratch_len};
use mnnq_kernels::geometry::Sliding;
use mnnq_kernels::winograd_f32::{PackedWinograd, is_winograd, winograd_f32};
use mnnq_kernels::{Epilogue as KernelEpilogue, Residual};

use super::concat::Concat;
use super::conv_fresh::FreshConv;
use super::conv_stored::{StoredConv, StoredWeights};
use super::conv_weights::{ConvCommon, Padding, bias, kernel_epilogue, weights};
use super::dynamic::cost::{Layer, WORTH};
use super::dynamic::{DynamicWeights, IntegerConv, QuantizedRows, shared_rows};
use super::epilogue::Epilogue;
use super::error::{OpError, OpResult};
use super::int8::{IntConv, IntQuant};
use super::operator::{Facts, InferResult, Kernel, Layouts, Operator, PrepareContext, StepIo};
use super::registry::{OpSource, Subgraphs};
use super::slice::Split;
use super::support::kernels;
use crate::runtime::config::{DynamicMode, MemoryMode, PrecisionMode, SessionOptions};
use crate::tensor::{DType, Layout, Shape, TensorDesc};

/// Builds the operator for `Convolution`, `ConvolutionDepthwise`, `ConvInt8` or `DepthwiseConvInt8`.
pub(super) fn create(source: &OpSource<'_>, _: &mut dyn Subgraphs) -> OpResult<Arc<dyn Operator>> {
    source.expect_outputs(1)?;
    let table = source.param(TableKind::Convolution2D)?;
    let mut common = ConvCommon::parse(table)?;
    let depthwise = matches!(source.op_type, OpType::ConvolutionDepthwise | OpType::DepthwiseConvInt8);
    if depthwise {
        common.group = common.out_channels;
    }
    if common.out_channels % common.group != 0 {
        let wanted = format!("a divisor of the {} output channels", common.out_channels);
        return Err(OpError::attribute("group", common.group, wanted));
    }
    let Some(weights) = weights(table)? else {
        if source.inputs < 2 {
            return Err(OpError::attribute("weight", "absent", "weights in the table or as second input"));
        }
        return Ok(Arc::new(FreshConv {
            bias: bias(table, common.out_channels)?,
            has_bias: source.inputs > 2,
            common,
        }));
    };
    let per_channel = common.out_channels * common.taps();
    let in_group = weights.len() / per_channel;
    if weights.is_empty() || weights.len() % per_channel != 0 {
        let wanted = format!("a multiple of {per_channel} values");
        return Err(OpError::attribute("weight", format!("{} values", weights.len()), wanted));
    }
    common.in_channels = in_group * common.group;
    let bias = bias(table, common.out_channels)?;
    let quant = IntQuant::of(source, table, &weights, &common)?;
    if let Some(quant) = quant {
        return Ok(Arc::new(IntConv::new(common, weights, bias, quant)?));
    }
    if matches!(weights, ConvWeights::OldInt8 { .. }) {
        return Err(OpError::unsupported("int8 weights without scales in a float convolution"));
    }
    let (form, note) = Form::choose(&weights, depthwise, &common, source.options);
    if form == Form::Dynamic {
        // Packed at once: so the codes of one layer only are in memory twice.
        let packed = OnceLock::from(Arc::new(Packed::dynamic(&weights, &common)?));
        let (raw, whole) = (Mutex::default(), OnceLock::new());
        return Ok(Arc::new(Conv { common, bias, form, note, raw, packed, whole }));
    }
    let (raw, packed, whole) = (Mutex::new(Some(vec![weights])), OnceLock::new(), OnceLock::new());
    Ok(Arc::new(Conv { common, bias, form, note, raw, packed, whole }))
}

/// A split, convolutions of its pieces and their concatenation as one grouped convolution, if that is what they are.
pub(crate) fn join_groups(
    split: &dyn Operator,
    parts: &[&dyn Operator],
    concat: &dyn Operator,
    options: &SessionOptions,
) -> Option<Arc<dyn Operator>> {
    fn is<T: Any>(operator: &dyn Operator) -> Option<&T> {
        (operator as &dyn Any).downcast_ref()
    }
    let channels = is::<Split>(split)?.cuts_channels() && is::<Concat>(concat)?.joins_channels();
    if !channels {
        return None;
    }
    if let Some(parts) = parts.iter().map(|&part| is(part)).collect::<Option<Vec<&Conv>>>() {
        return Conv::joined(&parts, options.precision).map(|conv| conv as Arc<dyn Operator>);
    }
    let parts = parts.iter().map(|&part| is(part)).collect::<Option<Vec<&IntConv>>>()?;
    IntConv::joined(&parts).map(|conv| conv as Arc<dyn Operator>)
}

/// In which form the weights are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// Packed floats.
    Float,
    /// Packed floats of a depthwise convolution.
    Depthwise,
    /// The bits of the file, expanded while running.
    Stored,
    /// Rounded to 16-bit floats and multiplied so.
    Half,
    /// Few bits, multiplied in integers.
    Dynamic,
}

impl Form {
    /// The form, and what the profile says about the choice.
    fn choose(
        weights: &ConvWeights,
        depthwise: bool,
        common: &ConvCommon,
        options: &SessionOptions,
    ) -> (Self, String) {
        let half = options.precision == PrecisionMode::Low && kernels().gemm_half.is_native();
        let form = match weights {
            ConvWeights::Quantized(_) if depthwise && options.memory == MemoryMode::Low => {
                return (Self::Depthwise, ", float: quantizing takes what int8 saves".to_owned());
            }
            _ if depthwise => Self::Depthwise,
            ConvWeights::Quantized(quantized) if options.memory == MemoryMode::Low => {
                let (channels, groups) = (common.out_channels, common.group);
                if !DynamicWeights::fits(quantized, channels, groups, common.taps()) {
                    return (Self::Stored, String::new());
                }
                let ratio = Layer::of(quantized, common).ratio();
                let integers = ratio <= WORTH || options.dynamic != DynamicMode::Auto;
                let note = format!(", int8 estimated at {ratio:.2} of float");
                return (if integers { Self::Dynamic } else { Self::Float }, note);
            }
            _ if half => Self::Half,
            ConvWeights::Half(_) if options.memory == MemoryMode::Low => Self::Stored,
            _ => Self::Float,
        };
        let fallback = options.precision == PrecisionMode::Low && form == Self::Float;
        (form, if fallback { ", this CPU has no 16-bit float products".to_owned() } else { String::new() })
    }
}

enum Packed {
    Float(PackedConv),
    Depthwise(PackedDepthwise),
    Winograd(PackedWinograd),
    Half(PackedConvHalf),
    Stored(Arc<StoredWeights>),
    Dynamic(Arc<DynamicWeights>),
}

impl Packed {
    fn dynamic(weights: &ConvWeights, common: &ConvCommon) -> OpResult<Self> {
        let ConvWeights::Quantized(quantized) = weights else {
            return Err(OpError::unsupported(format!("{} weights in integers", weights.kind())));
        };
        let (channels, groups) = (common.out_channels, common.group);
        Ok(Self::Dynamic(Arc::new(DynamicWeights::new(quantized, channels, groups, common.taps())?)))
    }
}

/// `Convolution` and `ConvolutionDepthwise` on floats:
/// `y[n, o, y, x] = activation(bias[o] + sum x[n, i, y sy + ky dy - t, x sx + kx dx - l] w[o, i, ky, kx])`.
struct Conv {
    common: ConvCommon,
    bias: Vec<f32>,
    form: Form,
    /// Why this form, for the profile.
    note: String,
    /// The weights as read, until they are packed; one after the other in a convolution of several.
    raw: Mutex<Option<Vec<ConvWeights>>>,
    packed: OnceLock<Arc<Packed>>,
    /// The grouped convolution that this is a part of, which has its weights, and which part.
    whole: OnceLock<(Arc<Conv>, usize)>,
}

impl Conv {
    /// Fewest channels for which Winograd's transformations pay.
    const WINOGRAD_CHANNELS: usize = 16;

    /// Convolutions of one group each as one of several groups. The weights move there. Those that Winograd's algorithm is
    /// for stay as they are: it has no groups, and gains more than joining does.
    fn joined(parts: &[&Self], precision: PrecisionMode) -> Option<Arc<Self>> {
        let first = &parts.first()?.common;
        let alike = |part: &&Self| {
            part.common.group == 1
                && part.common == *first
                && matches!(part.form, Form::Float | Form::Half)
                && part.packed.get().is_none()
        };
        let same = |part: &&Self| !std::ptr::eq(*part, parts[0]);
        let quadratic = first.kernel == [3, 3] && first.stride == [1, 1] && first.dilation == [1, 1];
        let wide = first.in_channels.min(first.out_channels) >= Self::WINOGRAD_CHANNELS;
        let winograd = quadratic && wide && precision != PrecisionMode::High;
        if winograd || first.has_output_shape || !parts.iter().all(alike) || !parts[1..].iter().all(same) {
            return None;
        }
        let mut weights = Vec::with_capacity(parts.len());
        for part in parts {
            let raw = part.raw.lock().unwrap_or_else(PoisonError::into_inner);
            weights.extend(raw.as_ref()?.iter().cloned());
        }
        let n = parts.len();
        let common = ConvCommon {
            group: n,
            in_channels: n * first.in_channels,
            out_channels: n * first.out_channels,
            ..first.clone()
        };
        let whole = Arc::new(Self {
            common,
            bias: parts.iter().flat_map(|part| part.bias.iter().copied()).collect(),
            form: Form::Float,
            note: format!(", {n} groups in one"),
            raw: Mutex::new(Some(weights)),
            packed: OnceLock::new(),
            whole: OnceLock::new(),
        });
        for (index, part) in parts.iter().enumerate() {
            *part.raw.lock().unwrap_or_else(PoisonError::into_inner) = None;
            let _ = part.whole.set((whole.clone(), index));
        }
        Some(whole)
    }

    /// The weights of one of the convolutions that this one is made of.
    fn part(&self, index: usize) -> Option<ConvWeights> {
        let raw = self.raw.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(weights) = raw.as_ref() {
            return weights.get(index).cloned();
        }
        let Packed::Float(packed) = &**self.packed.get()? else { return None };
        let weights = packed.weights();
        let len = weights.len() / self.common.group;
        Some(ConvWeights::SparseFloat(weights[index * len..][..len].to_vec()))
    }

    /// The weights in the form the kernel reads; made at the first use, then shared by all plans.
    fn packed(&self, sliding: &Sliding, precision: PrecisionMode) -> OpResult<Arc<Packed>> {
        let mut raw = self.raw.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(packed) = self.packed.get() {
            return Ok(packed.clone());
        }
        let weights = match (raw.take(), self.whole.get()) {
            (None, Some((whole, index))) => whole.part(*index),
            (Some(weights), _) => joined_weights(weights),
            (None, None) => None,
        };
        let weights =
            weights.ok_or_else(|| OpError::unsupported("packing weights that could not be packed before"))?;
        let common = &self.common;
        let dims = [common.out_channels, common.in_channels / common.group, common.taps()];
        let packed = match self.form {
            Form::Stored => Packed::Stored(Arc::new(StoredWeights::new(weights, common.out_channels)?)),
            Form::Dynamic => Packed::dynamic(&weights, common)?,
            Form::Depthwise => Packed::Depthwise(with_floats(&weights, |w| {
                PackedDepthwise::new(w, common.out_channels, common.taps())
            })?),
            Form::Float | Form::Half if self.prefers_winograd(sliding, precision) => {
                let kernel = &kernels().gemm_f32;
                Packed::Winograd(with_floats(&weights, |w| PackedWinograd::new(kernel, w, dims[0], dims[1]))?)
            }
            Form::Half => Packed::Half(with_floats(&weights, |w| {
                PackedConvHalf::new(&kernels().gemm_half, w, dims, common.group)
            })?),
            Form::Float => Packed::Float(with_floats(&weights, |w| {
                PackedConv::new(&kernels().gemm_f32, w, dims, common.group)
            })?),
        };
        Ok(self.packed.get_or_init(|| Arc::new(packed)).clone())
    }

    /// Whether Winograd's algorithm is used: 3 x 3 windows without stride and with enough channels for its
    /// transformations to pay. Its weights are four times larger. Many of them pay only where they are used for many
    /// tiles, which the first image shows; it decides once, as the weights are kept in one form. A quarter of the products
    /// is also less work than all of them in 16-bit floats, of which a CPU does twice as many per cycle.
    fn prefers_winograd(&self, sliding: &Sliding, precision: PrecisionMode) -> bool {
        const CACHED_WEIGHTS: usize = 1 << 16;
        const MOST_WEIGHTS: usize = 1 << 19;
        const LEAST_TILES: usize = 12;
        let common = &self.common;
        let weights = common.in_channels * common.out_channels;
        let tiles = sliding.batch * sliding.out_height.div_ceil(4) * sliding.out_width.div_ceil(4);
        precision != PrecisionMode::High
            && common.group == 1
            && is_winograd(sliding)
            && common.in_channels.min(common.out_channels) >= Self::WINOGRAD_CHANNELS
            && weights <= MOST_WEIGHTS
            && (weights <= CACHED_WEIGHTS || tiles >= LEAST_TILES)
    }
}

/// Products of a convolution: every output pixel and channel has one per tap and input channel of its group.
pub(crate) fn conv_products(sliding: &Sliding, in_group: usize, outputs: usize) -> u64 {
    [sliding.taps(), in_group, outputs]
        .iter()
        .fold(sliding.out_pixels() as u64, |product, &n| product.saturating_mul(n as u64))
}

/// Weights one after the other: as they are, or floats if there are several.
fn joined_weights(mut weights: Vec<ConvWeights>) -> Option<ConvWeights> {
    if weights.len() == 1 {
        return weights.pop();
    }
    let mut all = Vec::with_capacity(weights.iter().map(ConvWeights::len).sum());
    for part in &weights {
        with_floats(part, |floats| all.extend_from_slice(floats));
    }
    Some(ConvWeights::SparseFloat(all))
}

/// Calls `work` with the weights as floats, without a copy where they lie as floats in the file.
fn with_floats<R>(weights: &ConvWeights, work: impl FnOnce(&[f32]) -> R) -> R {
    match weights {
        ConvWeights::Float(numbers) => work(&numbers.as_f32().unwrap_or_default()),
        ConvWeights::SparseFloat(values) => work(values),
        other => work(&other.to_f32()),
    }
}

/// The output of a convolution.
pub(super) fn infer(common: &ConvCommon, desc: TensorDesc, dtype: DType) -> OpResult<TensorDesc> {
    let sliding = common.sliding(&desc.shape)?;
    if sliding.channels != common.in_channels {
        return Err(OpError::shape(0, desc.shape, format!("{} channels", common.in_channels)));
    }
    let dims = [sliding.batch, common.out_channels, sliding.out_height, sliding.out_width];
    Ok(TensorDesc::new(dtype, Shape::new(&dims)?))
}

impl Operator for Conv {
    fn infer(&self, inputs: &Facts<'_>) -> InferResult {
        Ok(vec![infer(&self.common, inputs.typed(0, DType::F32)?, DType::F32)?])
    }

    fn layouts(&self, inputs: &Facts<'_>, outputs: &[TensorDesc]) -> Layouts {
        Layouts::first(Layout::ChannelsLast, inputs.len(), outputs.len())
    }

    fn accepts_epilogue(&self) -> bool {
        true
    }

    fn accepts_input_scale(&self) -> bool {
        let c = &self.common;
        // Other paddings add nothing to windows of one pixel.
        let padded = matches!(c.padding, Padding::Explicit(pads) if pads != [0; 4]);
        self.form == Form::Float && c.group == 1 && [c.kernel, c.stride] == [[1, 1]; 2] && !padded
    }

    fn prepare(&self, context: &PrepareContext<'_>) -> OpResult<Box<dyn Kernel>> {
        let sliding = self.common.sliding(&context.inputs.shape(0)?)?;
        let epilogue = self.common.epilogue(context.epilogue);
        let packed = self.packed(&sliding, context.options.precision)?;
        if let Packed::Stored(weights) = &*packed {
            let (group, bias, weights) = (self.common.group, self.bias.clone(), weights.clone());
            return Ok(Box::new(StoredConv::new(sliding, group, weights, bias, epilogue)));
        }
        if let Packed::Dynamic(weights) = &*packed {
            let (bias, weights, mode) = (self.bias.clone(), weights.clone(), context.options.dynamic);
            let (threads, shared) = (context.options.threads, context.quantized);
            let mut kernel = IntegerConv::new(sliding, weights, bias, &epilogue, mode, threads, shared);
            kernel.note(&self.note);
            return Ok(Box::new(kernel));
        }
        let (activation, residual, rest) = kernel_epilogue(&epilogue);
        Ok(Box::new(FloatConv {
            sliding,
            packed,
            bias: self.bias.clone(),
            activation,
            residual,
            rest,
            input_scale: context.input_scale,
            threads: context.options.threads,
            words: epilogue.describe() + &self.note,
        }))
    }

    fn quantized_input(
        &self,
        inputs: &Facts<'_>,
        options: &SessionOptions,
    ) -> OpResult<Option<QuantizedRows>> {
        if self.form != Form::Dynamic {
            return Ok(None);
        }
        let sliding = self.common.sliding(&inputs.shape(0)?)?;
        Ok(match &*self.packed(&sliding, options.precision)? {
            Packed::Dynamic(weights) => shared_rows(&sliding, weights, options.dynamic),
            _ => None,
        })
    }
}

struct FloatConv {
    sliding: Sliding,
    /// The input with a factor per image and channel of input 0.
    input_scale: Option<usize>,
    packed: Arc<Packed>,
    bias: Vec<f32>,
    activation: Unary,
    residual: Option<(usize, Unary)>,
    /// What the kernels cannot apply themselves.
    rest: Epilogue,
    threads: usize,
    words: String,
}

impl Kernel for FloatConv {
    fn label(&self) -> Cow<'static, str> {
        let (v, h) = (self.sliding.vertical.kernel, self.sliding.horizontal.kernel);
        match &*self.packed {
            Packed::Depthwise(_) => {
                let isa = kernels().depthwise_f32.level();
                format!("depthwise {v}x{h} f32 depthwise_f32_{isa}{}", self.words)
            }
            Packed::Winograd(_) => {
                format!("conv {v}x{h} f32 winograd 4x4 {}{}", kernels().gemm_f32.name(), self.words)
            }
            Packed::Half(_) => {
                let kernel = &kernels().gemm_half;
                format!("conv {v}x{h} {} {}{}", kernel.format(), kernel.name(), self.words)
            }
            _ => {
                let gate = if self.input_scale.is_some() { "mul+" } else { "" };
                format!("{gate}conv {v}x{h} f32 {}{}", kernels().gemm_f32.name(), self.words)
            }
        }
        .into()
    }

    fn scratch(&self) -> usize {
        match &*self.packed {
            Packed::Float(_) => self.threads * conv_scratch_len() * size_of::<f32>(),
            Packed::Winograd(weights) => self.threads * weights.scratch_len() * size_of::<f32>(),
            Packed::Half(_) => self.threads * half_scratch_len() * size_of::<f32>(),
            _ => 0,
        }
    }

    fn multiply_adds(&self) -> u64 {
        let in_group = match &*self.packed {
            Packed::Float(weights) => self.sliding.channels / weights.groups().max(1),
            Packed::Depthwise(_) => 1,
            _ => self.sliding.channels,
        };
        conv_products(&self.sliding, in_group, self.bias.len())
    }

    fn run(&self, io: &mut StepIo<'_, '_>) -> OpResult<()> {
        let input = io.input(0).data::<f32>();
        let residual = self.residual.map(|(position, then)| Residual {
            data: io.input(position).data(),
            row_stride: self.bias.len(),
            then,
        });
        let epilogue =
            KernelEpilogue { scale: None, bias: Some(&self.bias), activation: self.activation, residual };
        let scale = self.input_scale.map(|position| io.input(position).data::<f32>());
        let out = io.outputs[0].data::<f32>();
        match &*self.packed {
            Packed::Float(weights) => {
                let scratch = super::support::typed(io.scratch);
                let kernel = &kernels().gemm_f32;
                let (sliding, parallel) = (&self.sliding, io.parallel);
                if let Some(scale) = scale {
                    conv_scaled_f32(
                        kernel, sliding, input, scale, weights, &epilogue, out, scratch, parallel,
                    )?;
                } else {
                    conv_f32(kernel, sliding, input, weights, &epilogue, out, scratch, parallel)?;
                }
            }
            Packed::Winograd(weights) => {
                let scratch = super::support::typed(io.scratch);
                let kernel = &kernels().gemm_f32;
                winograd_f32(kernel, &self.sliding, input, weights, &epilogue, out, scratch, io.parallel)?;
            }
            Packed::Half(weights) => {
                let scratch = super::support::typed(io.scratch);
                let kernel = &kernels().gemm_half;
                conv_half(kernel, &self.sliding, input, weights, &epilogue, out, scratch, io.parallel)?;
            }
            Packed::Depthwise(weights) => {
                let isa = kernels().depthwise_f32;
                depthwise_f32(isa, &self.sliding, input, weights, &epilogue, out, io.parallel)?;
            }
            Packed::Stored(_) | Packed::Dynamic(_) => {
                return Err(OpError::unsupported("stored weights in the float kernel"));
            }
        }
        self.rest.apply_all(io);
        Ok(())
    }
}
