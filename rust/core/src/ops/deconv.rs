//! Transposed convolutions: `Deconvolution`, `DeconvolutionDepthwise`.
//!
//! The product of every input pixel with all weights, then a sum over the products that meet in an output pixel.

use std::borrow::Cow;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use mnnq_format::ConvWeights;
use mnnq_format::schema::{OpType, TableKind};
use mnnq_kernels::Epilogue as KernelEpilogue;
use mnnq_kernels::gemm_f32::{PackedB, gemm_f32, scratch_len};

use super::conv_weights::{ConvCommon, Padding, bias, weights};
use super::epilogue::Epilogue;
use super::error::{OpError, OpResult};
use super::operator::{Facts, InferResult, Kernel, Layouts, Operator, PrepareContext, StepIo};
use super::registry::OpSource;
use super::support::{for_each_outer, kernels};
use crate::tensor::{DType, Layout, Shape, TensorDesc};

/// Weights `[ic, oc / group, kh, kw]`, quantized ones expanded to floats; or `(x, weight, [bias])` with weights that
/// are inputs, packed in every run.
pub(super) struct Deconv {
    common: ConvCommon,
    bias: Vec<f32>,
    depthwise: bool,
    /// Number of inputs, if the weights are one.
    dynamic: Option<usize>,
    raw: Mutex<Option<ConvWeights>>,
    packed: OnceLock<Arc<Packed>>,
}

enum Packed {
    /// Per group: `[ic / group, taps * oc / group]`.
    Groups(Vec<PackedB>),
    /// `[taps, channels]`
    Depthwise(Vec<f32>),
}

impl Packed {
    fn new(common: &ConvCommon, depthwise: bool, weights: &[f32]) -> OpResult<Self> {
        let (taps, group) = (common.taps(), common.group);
        let (ic, oc) = (common.in_channels / group, common.out_channels / group);
        if depthwise {
            let at = |i: usize| weights[i % common.out_channels * taps + i / common.out_channels];
            return Ok(Self::Depthwise((0..weights.len()).map(at).collect()));
        }
        let mut matrix = vec![0.0; ic * oc * taps];
        let mut groups = Vec::with_capacity(group);
        for weights in weights.chunks_exact((ic * oc * taps).max(1)) {
            for (i, line) in matrix.chunks_exact_mut(oc * taps).enumerate() {
                for (j, w) in line.iter_mut().enumerate() {
                    *w = weights[(i * oc + j % oc) * taps + j / oc];
                }
            }
            groups.push(PackedB::from_rows(&kernels().gemm_f32, &matrix, ic, oc * taps, oc * taps)?);
        }
        Ok(Self::Groups(groups))
    }
}

impl Deconv {
    pub(super) fn new(source: &OpSource<'_>) -> OpResult<Self> {
        source.expect_outputs(1)?;
        let table = source.param(TableKind::Convolution2D)?;
        let mut common = ConvCommon::parse(table)?;
        let depthwise = source.op_type == OpType::DeconvolutionDepthwise;
        if depthwise {
            common.group = common.out_channels;
        }
        if common.out_channels % common.group != 0 {
            return Err(OpError::attribute("group", common.group, "a divisor of outputCount"));
        }
        let Some(weights) = weights(table)? else { return Self::with_inputs(source, common, depthwise) };
        if matches!(weights, ConvWeights::OldInt8 { .. }) {
            return Err(OpError::unsupported("int8 weights without scales"));
        }
        let per_channel = common.out_channels / common.group * common.taps();
        if weights.is_empty() || weights.len() % per_channel != 0 {
            let wanted = format!("a multiple of {per_channel} values");
            return Err(OpError::attribute("weight", format!("{} values", weights.len()), wanted));
        }
        common.in_channels = weights.len() / per_channel;
        if common.in_channels % common.group != 0 {
            return Err(OpError::attribute("group", common.group, "a divisor of the input channels"));
        }
        let bias = bias(table, common.out_channels)?;
        let raw = Mutex::new(Some(weights));
        Ok(Self { common, bias, depthwise, dynamic: None, raw, packed: OnceLock::new() })
    }

    /// The form whose weights are input 1.
    fn with_inputs(source: &OpSource<'_>, common: ConvCommon, depthwise: bool) -> OpResult<Self> {
        if depthwise || common.has_output_shape {
            let what =
                "a transposed convolution, depthwise or of a given output shape, whose weights are an input";
            return Err(OpError::unsupported(what));
        }
        if !(2..=3).contains(&source.inputs) {
            let wanted = "weights in the table or as second input";
            return Err(OpError::attribute("weight", "absent", wanted));
        }
        let (dynamic, raw) = (Some(source.inputs), Mutex::new(None));
        Ok(Self { common, bias: Vec::new(), depthwise, dynamic, raw, packed: OnceLock::new() })
    }

    /// The attributes, and the input channels that the weights have.
    fn with_channels(&self, inputs: &Facts<'_>) -> OpResult<ConvCommon> {
        let mut common = self.common.clone();
        let Some(count) = self.dynamic else { return Ok(common) };
        let shape = inputs.typed(1, DType::F32)?.shape;
        let [height, width] = common.kernel;
        let per_group = common.out_channels / common.group;
        if shape.rank() != 4 || shape[1..] != [per_group, height, width] || shape[0] % common.group != 0 {
            let wanted = format!("[channels, {per_group}, {height}, {width}] in {} groups", common.group);
            return Err(OpError::shape(1, shape, wanted));
        }
        if count == 3 {
            let bias = inputs.typed(2, DType::F32)?.shape;
            if bias.count() != common.out_channels {
                return Err(OpError::shape(2, bias, format!("[{}]", common.out_channels)));
            }
        }
        common.in_channels = shape[0];
        Ok(common)
    }

    fn packed(&self) -> OpResult<Arc<Packed>> {
        let mut raw = self.raw.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(packed) = self.packed.get() {
            return Ok(packed.clone());
        }
        let weights = raw.take().map(|weights| weights.to_f32()).unwrap_or_default();
        let packed = Packed::new(&self.common, self.depthwise, &weights)?;
        Ok(self.packed.get_or_init(|| Arc::new(packed)).clone())
    }

    /// Output size and padding (top, left).
    fn output(&self, inputs: &Facts<'_>) -> InferResult<([usize; 2], [usize; 2])> {
        let shape = inputs.typed(0, DType::F32)?.shape;
        let common = self.with_channels(inputs)?;
        let &[_, channels, height, width] = shape.dims() else {
            return Err(OpError::shape(0, shape, "[N, C, H, W]").into());
        };
        if channels != common.in_channels {
            return Err(OpError::shape(0, shape, format!("{} channels", common.in_channels)).into());
        }
        let wanted = if common.has_output_shape {
            let list = inputs.integers(inputs.len().max(2) - 1)?;
            match list[..] {
                [_, h, w, _] if h > 0 && w > 0 => Some([h as usize, w as usize]),
                _ => return Err(OpError::value(1, format!("output shape {list:?}")).into()),
            }
        } else {
            None
        };
        let (mut size, mut pad) = ([0; 2], [0; 2]);
        for (axis, length) in [height, width].into_iter().enumerate() {
            let span = (length.max(1) - 1) * common.stride[axis]
                + (common.kernel[axis] - 1) * common.dilation[axis]
                + 1
                + common.out_pads[axis];
            (size[axis], pad[axis]) = match (wanted, common.padding) {
                (Some(wanted), _) => (wanted[axis], span.saturating_sub(wanted[axis]) / 2),
                (None, Padding::Same) => {
                    let size = length * common.stride[axis];
                    (size, span.saturating_sub(size) / 2)
                }
                (None, Padding::Valid) => (span, 0),
                (None, Padding::Explicit(pads)) => {
                    let total = pads[axis] + pads[axis + 2];
                    let size = span.checked_sub(total).filter(|&size| size > 0);
                    let size = size
                        .ok_or_else(|| OpError::shape(0, shape, format!("more than the padding {total}")))?;
                    (size, pads[axis])
                }
            };
        }
        Ok((size, pad))
    }
}

impl Operator for Deconv {
    fn infer(&self, inputs: &Facts<'_>) -> InferResult {
        let (size, _) = self.output(inputs)?;
        let dims = [inputs.shape(0)?[0], self.common.out_channels, size[0], size[1]];
        Ok(vec![TensorDesc::new(DType::F32, Shape::new(&dims)?)])
    }

    fn layouts(&self, inputs: &Facts<'_>, outputs: &[TensorDesc]) -> Layouts {
        Layouts::first(Layout::ChannelsLast, inputs.len(), outputs.len())
    }

    fn accepts_epilogue(&self) -> bool {
        true
    }

    fn prepare(&self, context: &PrepareContext<'_>) -> OpResult<Box<dyn Kernel>> {
        // Operands of the epilogue follow the operator's own inputs.
        let own = self.dynamic.unwrap_or(if self.common.has_output_shape { 2 } else { 1 });
        let facts: Vec<_> = context.inputs.iter().take(own).collect();
        let facts = Facts::new(&facts);
        let (size, pad) =
            self.output(&facts).map_err(|_| OpError::unsupported("an output shape that is not known"))?;
        let shape = context.inputs.shape(0)?;
        Ok(Box::new(DeconvKernel {
            input: [shape[0], shape[2], shape[3]],
            size,
            pad,
            epilogue: self.common.epilogue(context.epilogue),
            common: self.with_channels(&facts)?,
            bias: self.bias.clone(),
            bias_input: self.dynamic == Some(3),
            depthwise: self.depthwise,
            packed: if self.dynamic.is_some() { None } else { Some(self.packed()?) },
            threads: context.options.threads,
        }))
    }
}

struct DeconvKernel {
    /// Batch, height, width.
    input: [usize; 3],
    size: [usize; 2],
    pad: [usize; 2],
    common: ConvCommon,
    bias: Vec<f32>,
    bias_input: bool,
    depthwise: bool,
    /// `None` if the weights are an input.
    packed: Option<Arc<Packed>>,
    epilogue: Epilogue,
    threads: usize,
}

impl DeconvKernel {
    fn pixels(&self) -> usize {
        self.input.iter().product()
    }

    /// Floats of the products of one pixel.
    fn products(&self) -> usize {
        if self.depthwise { 0 } else { self.common.out_channels * self.common.taps() }
    }

    /// The tap along an axis that leads from input position `from` to output position `to`.
    fn source(&self, axis: usize, to: usize, tap: usize) -> Option<usize> {
        let at = (to + self.pad[axis]).checked_sub(tap * self.common.dilation[axis])?;
        let from = at / self.common.stride[axis];
        (at % self.common.stride[axis] == 0 && from < self.input[axis + 1]).then_some(from)
    }
}

impl Kernel for DeconvKernel {
    fn label(&self) -> Cow<'static, str> {
        let [v, h] = self.common.kernel;
        let kind = if self.depthwise { "depthwise deconv" } else { "deconv" };
        let packed = if self.packed.is_none() { ", weights packed in every run" } else { "" };
        format!("{kind} {v}x{h} f32 {}{packed}{}", kernels().gemm_f32.name(), self.epilogue.describe()).into()
    }

    fn scratch(&self) -> usize {
        (self.pixels() * self.products() + self.threads * scratch_len()) * size_of::<f32>()
    }

    fn multiply_adds(&self) -> u64 {
        let common = &self.common;
        [common.in_channels, common.taps(), common.out_channels / common.group.max(1)]
            .iter()
            .chain(&self.input)
            .fold(1, |product: u64, &n| product.saturating_mul(n as u64))
    }

    fn run(&self, io: &mut StepIo<'_, '_>) -> OpResult<()> {
        let x = io.input(0).data::<f32>();
        let packed = match &self.packed {
            Some(packed) => packed.clone(),
            None => Arc::new(Packed::new(&self.common, false, io.input(1).data())?),
        };
        let bias = if self.bias_input { io.input(2).data::<f32>() } else { &self.bias[..] };
        let (ic, oc, taps) = (self.common.in_channels, self.common.out_channels, self.common.taps());
        let (group, oc_group) = (self.common.group, oc / self.common.group);
        let scratch: &mut [f32] = super::support::typed(io.scratch);
        let (products, scratch) = scratch.split_at_mut(self.pixels() * self.products());
        if let Packed::Groups(groups) = &*packed {
            let row = oc * taps;
            for (index, weights) in groups.iter().enumerate() {
                let (a, out) = (&x[(index * ic / group).min(x.len())..], index * oc_group * taps);
                let out = &mut products[out.min(self.pixels() * row)..];
                let epilogue = KernelEpilogue::default();
                let kernel = &kernels().gemm_f32;
                gemm_f32(kernel, self.pixels(), a, ic, weights, &epilogue, out, row, scratch, io.parallel)?;
            }
        }
        let products = &*products;
        let epilogue = self.epilogue.bind(io.inputs);
        let [out_height, out_width] = self.size;
        let [_, height, width] = self.input;
        let row = out_width * oc;
        for_each_outer(io.parallel, io.outputs[0].data::<f32>(), row, |index, out| {
            let (image, y) = (index / out_height, index % out_height);
            out.chunks_exact_mut(oc).for_each(|pixel| {
                if bias.is_empty() {
                    pixel.fill(0.0);
                } else {
                    pixel.copy_from_slice(bias);
                }
            });
            for ky in 0..self.common.kernel[0] {
                let Some(iy) = self.source(0, y, ky) else { continue };
                for (out_x, out) in out.chunks_exact_mut(oc).enumerate() {
                    for kx in 0..self.common.kernel[1] {
                        let Some(ix) = self.source(1, out_x, kx) else { continue };
                        let tap = ky * self.common.kernel[1] + kx;
                        let pixel = (image * height + iy) * width + ix;
                        match &*packed {
                            Packed::Depthwise(weights) => {
                                let (x, w) = (&x[pixel * oc..][..oc], &weights[tap * oc..][..oc]);
                                out.iter_mut().zip(x).zip(w).for_each(|((out, x), w)| *out += x * w);
                            }
                            Packed::Groups(_) => {
                                for (g, out) in out.chunks_exact_mut(oc_group).enumerate() {
                                    let at = pixel * oc * taps + (g * taps + tap) * oc_group;
                                    let part = &products[at..at + oc_group];
                                    out.iter_mut().zip(part).for_each(|(out, p)| *out += p);
                                }
                            }
                        }
                    }
                }
            }
            epilogue.apply(index * row, out);
        });
        Ok(())
    }
}
