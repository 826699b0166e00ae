//! Windows over three spatial axes: `Convolution3D` and `Pooling3D`; and `Im2Col`, with which MNN's converter writes the
//! former.

use std::borrow::Cow;
use std::sync::{Arc, OnceLock};

use mnnq_format::model::Table;
use mnnq_format::schema::{PadMode, PoolPadType, TableKind, convolution3d, convolution3d_common, pool3d};
use mnnq_kernels::Epilogue as KernelEpilogue;
use mnnq_kernels::conv_f32::{PackedConv, conv_f32, conv_scratch_len};
use mnnq_kernels::elementwise::Unary;
use mnnq_kernels::geometry::{Sliding, Window};

use super::conv_weights::ConvCommon;
use super::epilogue::Epilogue;
use super::error::{OpError, OpResult};
use super::operator::{Facts, InferResult, Kernel, Operator, PrepareContext, StepIo};
use super::registry::OpSource;
use super::support::{floats, for_each_outer, ints, kernels, typed};
use crate::tensor::{DType, Shape, TensorDesc};

/// How the padding of three axes is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Padding {
    /// Before and behind, per axis.
    Explicit([[usize; 2]; 3]),
    Valid,
    /// So that the output has `ceil(input / stride)` values, the smaller half first.
    Same,
}

impl Padding {
    fn explicit(list: &[i64]) -> OpResult<Self> {
        let pads: Option<Vec<usize>> =
            list.iter().map(|&v| usize::try_from(v).ok().filter(|&v| v <= 1 << 20)).collect();
        match pads.as_deref() {
            Some([]) => Ok(Self::Explicit([[0; 2]; 3])),
            Some(&[d, h, w]) => Ok(Self::Explicit([[d; 2], [h; 2], [w; 2]])),
            Some(&[d, h, w, d2, h2, w2]) => Ok(Self::Explicit([[d, d2], [h, h2], [w, w2]])),
            _ => Err(OpError::attribute("pads", format!("{list:?}"), "3 or 6 numbers, 0 or more")),
        }
    }
}

/// The windows of three axes.
#[derive(Debug, Clone)]
struct Windows {
    kernel: [usize; 3],
    stride: [usize; 3],
    dilation: [usize; 3],
    padding: Padding,
}

/// Three positive numbers of a list; `default` if it is absent.
fn triple(list: Option<Vec<i64>>, key: &'static str, default: Option<usize>) -> OpResult<[usize; 3]> {
    let list = list.unwrap_or_default();
    if let (true, Some(default)) = (list.is_empty(), default) {
        return Ok([default; 3]);
    }
    let values: Option<Vec<usize>> =
        list.iter().map(|&v| usize::try_from(v).ok().filter(|&v| (1..=1 << 20).contains(&v))).collect();
    let values = values.and_then(|values| <[usize; 3]>::try_from(values).ok());
    values.ok_or_else(|| OpError::attribute(key, format!("{list:?}"), "3 numbers, 1 or more"))
}

impl Windows {
    /// The window along each spatial axis of `[N, C, D, H, W]` and the numbers of outputs.
    fn over(&self, shape: &Shape) -> OpResult<[(Window, usize); 3]> {
        let &[_, _, depth, height, width] = shape.dims() else {
            return Err(OpError::shape(0, *shape, "[N, C, D, H, W]"));
        };
        let mut found = [(Window::POINT, 0); 3];
        for (axis, (slot, length)) in found.iter_mut().zip([depth, height, width]).enumerate() {
            let (kernel, stride, dilation) = (self.kernel[axis], self.stride[axis], self.dilation[axis]);
            let [pad_begin, pad_end] = match self.padding {
                Padding::Explicit(pads) => pads[axis],
                Padding::Valid => [0; 2],
                Padding::Same => {
                    let outputs = length.div_ceil(stride).max(1);
                    let span = (outputs - 1) * stride + (kernel - 1) * dilation + 1;
                    let total = span.saturating_sub(length);
                    [total / 2, total - total / 2]
                }
            };
            let window = Window { kernel, stride, dilation, pad_begin, pad_end };
            let outputs = window.outputs(length).map_err(|error| OpError::unsupported(error.to_string()))?;
            if outputs == 0 && length > 0 {
                let wanted = format!("at least {} with padding along axis {}", window.extent(), axis + 2);
                return Err(OpError::shape(0, *shape, wanted));
            }
            *slot = (window, outputs);
        }
        Ok(found)
    }
}

/// `Pooling3D` with windows: the maximum of windows, or their mean over the values inside the tensor.
pub(super) struct Pool3d {
    windows: Windows,
    max: bool,
}

impl Pool3d {
    pub(super) fn new(table: &Table, max: bool) -> OpResult<Self> {
        let pad_type = table.get(pool3d::PAD_TYPE);
        let padding = match pad_type {
            PoolPadType::CAFFE => Padding::explicit(&ints(table.get(pool3d::PADS)).unwrap_or_default())?,
            PoolPadType::VALID => Padding::Valid,
            PoolPadType::SAME => Padding::Same,
            other => return Err(OpError::attribute("padType", other, "CAFFE, VALID or SAME")),
        };
        let windows = Windows {
            kernel: triple(ints(table.get(pool3d::KERNELS)), "kernels", None)?,
            stride: triple(ints(table.get(pool3d::STRIDES)), "strides", Some(1))?,
            dilation: [1; 3],
            padding,
        };
        Ok(Self { windows, max })
    }
}

impl Operator for Pool3d {
    fn infer(&self, inputs: &Facts<'_>) -> InferResult {
        let shape = inputs.typed(0, DType::F32)?.shape;
        let [(_, d), (_, h), (_, w)] = self.windows.over(&shape)?;
        Ok(vec![TensorDesc::new(DType::F32, Shape::new(&[shape[0], shape[1], d, h, w])?)])
    }

    fn prepare(&self, context: &PrepareContext<'_>) -> OpResult<Box<dyn Kernel>> {
        let shape = context.inputs.shape(0)?;
        let size = [shape[2], shape[3], shape[4]];
        Ok(Box::new(PoolKernel { windows: self.windows.over(&shape)?, size, max: self.max }))
    }
}

struct PoolKernel {
    windows: [(Window, usize); 3],
    size: [usize; 3],
    max: bool,
}

impl Kernel for PoolKernel {
    fn label(&self) -> Cow<'static, str> {
        let kind = if self.max { "max" } else { "mean" };
        let [d, h, w] = self.windows.map(|(window, _)| window.kernel);
        format!("pool {d}x{h}x{w} {kind} f32").into()
    }

    fn run(&self, io: &mut StepIo<'_, '_>) -> OpResult<()> {
        let x = io.input(0).data::<f32>();
        let (volume, outputs) = (self.size.iter().product(), self.windows.map(|(_, outputs)| outputs));
        let [_, rows, columns] = outputs;
        for_each_outer(io.parallel, io.outputs[0].data::<f32>(), outputs.iter().product(), |at, out| {
            let x = &x[at * volume..][..volume];
            for (index, y) in out.iter_mut().enumerate() {
                let place = [index / columns / rows, index / columns % rows, index % columns];
                // The part of the window that lies in the tensor.
                let [depth, height, width] = std::array::from_fn(|axis| {
                    let (window, _) = &self.windows[axis];
                    let first = place[axis] * window.stride;
                    let inside = |at: usize| at.saturating_sub(window.pad_begin).min(self.size[axis]);
                    inside(first)..inside(first + window.kernel)
                });
                let (mut sum, mut most, mut count) = (0.0_f32, f32::NEG_INFINITY, 0_usize);
                for d in depth {
                    for h in height.clone() {
                        for &v in &x[(d * self.size[1] + h) * self.size[2]..][width.clone()] {
                            sum += v;
                            most = if v > most || v.is_nan() { v } else { most };
                            count += 1;
                        }
                    }
                }
                *y = if self.max { most } else { sum / count.max(1) as f32 };
            }
        });
        Ok(())
    }
}

/// `Convolution3D`: as a convolution of images whose channels are those of all depths of a window.
pub(super) struct Conv3d {
    windows: Windows,
    /// Input channels of a group, output channels of all.
    channels: [usize; 2],
    groups: usize,
    weight: Vec<f32>,
    bias: Vec<f32>,
    activation: Unary,
    packed: OnceLock<Arc<PackedConv>>,
}

impl Conv3d {
    pub(super) fn new(source: &OpSource<'_>) -> OpResult<Self> {
        use convolution3d_common as f;
        source.expect_outputs(1)?;
        let table = source.param(TableKind::Convolution3D)?;
        let common = table
            .get(convolution3d::COMMON)
            .ok_or(OpError::Parameter { wanted: "Convolution3DCommon", got: "absent".to_owned() })?;
        let padding = match common.get(f::PAD_MODE) {
            PadMode::VALID => Padding::Valid,
            PadMode::SAME => Padding::Same,
            PadMode::CAFFE => Padding::explicit(&ints(common.get(f::PADS)).unwrap_or_default())?,
            other => return Err(OpError::attribute("padMode", other, "CAFFE, VALID or SAME")),
        };
        let windows = Windows {
            kernel: triple(ints(common.get(f::KERNELS)), "kernels", None)?,
            stride: triple(ints(common.get(f::STRIDES)), "strides", Some(1))?,
            dilation: triple(ints(common.get(f::DILATES)), "dilates", Some(1))?,
            padding,
        };
        let (weight, got) = (floats(table.get(convolution3d::WEIGHT)), common.get(f::OUTPUT_COUNT));
        let outputs = usize::try_from(got).ok().filter(|&v| v > 0);
        let outputs = outputs.ok_or_else(|| OpError::attribute("outputCount", got, "1 or more"))?;
        // Files of one group may leave it out.
        let groups = usize::try_from(common.get(f::GROUP)).unwrap_or(0).max(1);
        if !outputs.is_multiple_of(groups) {
            let wanted = format!("a divisor of the {outputs} output channels");
            return Err(OpError::attribute("group", groups, wanted));
        }
        let taps = windows.kernel.iter().try_fold(outputs, |product, &n| product.checked_mul(n));
        let inputs = taps.filter(|&taps| !weight.is_empty() && weight.len().is_multiple_of(taps));
        let inputs = inputs.map(|taps| weight.len() / taps);
        let inputs = inputs.ok_or_else(|| {
            let wanted = format!("a multiple of {outputs} channels times {:?}", windows.kernel);
            OpError::attribute("weight", format!("{} values", weight.len()), wanted)
        })?;
        let mut bias = floats(table.get(convolution3d::BIAS));
        bias.resize(if bias.is_empty() { outputs } else { bias.len() }, 0.0);
        if bias.len() != outputs {
            return Err(OpError::attribute(
                "bias",
                format!("{} values", bias.len()),
                format!("{outputs} values"),
            ));
        }
        let activation = if common.get(f::RELU6) {
            Unary::Clamp { lo: 0.0, hi: 6.0 }
        } else if common.get(f::RELU) {
            Unary::Relu
        } else {
            Unary::Identity
        };
        let (channels, packed) = ([inputs, outputs], OnceLock::new());
        Ok(Self { windows, channels, groups, weight, bias, activation, packed })
    }

    /// Weights `[o, i, d, h, w]` as those of `d i` channels in each group, depth outside.
    fn packed(&self) -> OpResult<Arc<PackedConv>> {
        if let Some(packed) = self.packed.get() {
            return Ok(packed.clone());
        }
        let ([inputs, outputs], [depth, height, width]) = (self.channels, self.windows.kernel);
        let plane = height * width;
        let mut ordered = Vec::with_capacity(self.weight.len());
        for o in 0..outputs {
            for d in 0..depth {
                for i in 0..inputs {
                    ordered
                        .extend_from_slice(&self.weight[((o * inputs + i) * depth + d) * plane..][..plane]);
                }
            }
        }
        let dims = [outputs, depth * inputs, plane];
        let packed = PackedConv::new(&kernels().gemm_f32, &ordered, dims, self.groups)?;
        Ok(self.packed.get_or_init(|| Arc::new(packed)).clone())
    }
}

impl Operator for Conv3d {
    fn infer(&self, inputs: &Facts<'_>) -> InferResult {
        let shape = inputs.typed(0, DType::F32)?.shape;
        let [(_, d), (_, h), (_, w)] = self.windows.over(&shape)?;
        let [channels, outputs] = self.channels;
        if Some(shape[1]) != channels.checked_mul(self.groups) {
            let wanted = format!("{channels} channels in each of {} groups", self.groups);
            return Err(OpError::shape(0, shape, wanted).into());
        }
        Ok(vec![TensorDesc::new(DType::F32, Shape::new(&[shape[0], outputs, d, h, w])?)])
    }

    fn accepts_epilogue(&self) -> bool {
        true
    }

    fn prepare(&self, context: &PrepareContext<'_>) -> OpResult<Box<dyn Kernel>> {
        let shape = context.inputs.shape(0)?;
        let [(depth, slices), (vertical, out_height), (horizontal, out_width)] = self.windows.over(&shape)?;
        let sliding = Sliding {
            batch: 1,
            height: shape[3],
            width: shape[4],
            channels: depth.kernel * shape[1],
            out_height,
            out_width,
            vertical,
            horizontal,
        };
        Ok(Box::new(Conv3dKernel {
            sliding,
            depth,
            images: shape[0],
            slices: [shape[2], slices],
            channels: self.channels,
            packed: self.packed()?,
            bias: self.bias.clone(),
            activation: self.activation,
            epilogue: context.epilogue.clone(),
            threads: context.options.threads,
        }))
    }
}

struct Conv3dKernel {
    /// One slice of the output.
    sliding: Sliding,
    depth: Window,
    images: usize,
    /// Of the input and of the output.
    slices: [usize; 2],
    channels: [usize; 2],
    packed: Arc<PackedConv>,
    bias: Vec<f32>,
    activation: Unary,
    epilogue: Epilogue,
    threads: usize,
}

impl Conv3dKernel {
    /// Floats of a slice of the input with its depths as channels, and of a slice of the output.
    fn parts(&self) -> [usize; 2] {
        let g = &self.sliding;
        [g.height * g.width * g.channels, g.out_pixels() * self.channels[1]].map(|n| n.next_multiple_of(16))
    }
}

impl Kernel for Conv3dKernel {
    fn label(&self) -> Cow<'static, str> {
        let (d, v, h) = (self.depth.kernel, self.sliding.vertical.kernel, self.sliding.horizontal.kernel);
        format!("conv {d}x{v}x{h} f32 {}", kernels().gemm_f32.name()).into()
    }

    fn scratch(&self) -> usize {
        (self.parts().iter().sum::<usize>() + self.threads * conv_scratch_len()) * size_of::<f32>()
    }

    fn multiply_adds(&self) -> u64 {
        let in_group = self.sliding.channels / self.packed.groups();
        let slice = super::conv::conv_products(&self.sliding, in_group, self.channels[1]);
        slice.saturating_mul((self.images * self.slices[1]) as u64)
    }

    fn run(&self, io: &mut StepIo<'_, '_>) -> OpResult<()> {
        let x = io.input(0).data::<f32>();
        let out = io.outputs[0].data::<f32>();
        let (g, [in_group, outputs], [slices, out_slices]) = (&self.sliding, self.channels, self.slices);
        let (inputs, taps) = (in_group * self.packed.groups(), self.depth.kernel);
        let (plane, out_plane) = (g.height * g.width, g.out_pixels());
        let [gathered, result] = self.parts();
        let (gathered, rest) = typed::<f32>(io.scratch).split_at_mut(gathered);
        let (result, scratch) = rest.split_at_mut(result);
        let gathered = &mut gathered[..plane * g.channels];
        let result = &mut result[..out_plane * outputs];
        let epilogue = KernelEpilogue::new(Some(&self.bias), self.activation);
        for image in 0..self.images {
            for slice in 0..out_slices {
                for tap in 0..taps {
                    let d = (slice * self.depth.stride + tap * self.depth.dilation)
                        .checked_sub(self.depth.pad_begin)
                        .filter(|&d| d < slices);
                    for channel in 0..inputs {
                        let (group, own) = (channel / in_group, channel % in_group);
                        let column = (group * taps + tap) * in_group + own;
                        let from =
                            d.map(|d| &x[((image * inputs + channel) * slices + d) * plane..][..plane]);
                        for (pixel, line) in gathered.chunks_exact_mut(g.channels).enumerate() {
                            line[column] = from.map_or(0.0, |from| from[pixel]);
                        }
                    }
                }
                let kernel = &kernels().gemm_f32;
                conv_f32(kernel, g, gathered, &self.packed, &epilogue, result, scratch, io.parallel)?;
                for channel in 0..outputs {
                    let start = ((image * outputs + channel) * out_slices + slice) * out_plane;
                    for (pixel, y) in out[start..start + out_plane].iter_mut().enumerate() {
                        *y = result[pixel * outputs + channel];
                    }
                }
            }
        }
        self.epilogue.apply_all(io);
        Ok(())
    }
}

/// `Im2Col(x [N, C, H, W])`: `out[c kh kw, n oh ow]`, the values under each tap of each window, zeros in the padding.
pub(super) struct Im2Col {
    common: ConvCommon,
}

impl Im2Col {
    pub(super) fn new(source: &OpSource<'_>) -> OpResult<Self> {
        source.expect_outputs(1)?;
        let table = source.param(TableKind::Convolution2D)?;
        Ok(Self { common: ConvCommon::windows_only(table)? })
    }
}

impl Operator for Im2Col {
    fn infer(&self, inputs: &Facts<'_>) -> InferResult {
        let g = self.common.sliding(&inputs.typed(0, DType::F32)?.shape)?;
        let rows = g.channels * g.taps();
        Ok(vec![TensorDesc::new(DType::F32, Shape::new(&[rows, g.out_pixels()])?)])
    }

    fn prepare(&self, context: &PrepareContext<'_>) -> OpResult<Box<dyn Kernel>> {
        Ok(Box::new(Im2ColKernel { sliding: self.common.sliding(&context.inputs.shape(0)?)? }))
    }
}

struct Im2ColKernel {
    sliding: Sliding,
}

impl Kernel for Im2ColKernel {
    fn label(&self) -> Cow<'static, str> {
        "im2col f32".into()
    }

    fn run(&self, io: &mut StepIo<'_, '_>) -> OpResult<()> {
        let (g, x) = (&self.sliding, io.input(0).data::<f32>());
        for_each_outer(io.parallel, io.outputs[0].data::<f32>(), g.out_pixels(), |row, out| {
            let (channel, tap) = (row / g.taps(), row % g.taps());
            let [ky, kx] = [tap / g.horizontal.kernel, tap % g.horizontal.kernel];
            let inside = |output: usize, tap: usize, window: &Window, length: usize| {
                (output * window.stride + tap * window.dilation)
                    .checked_sub(window.pad_begin)
                    .filter(|&at| at < length)
            };
            for (pixel, value) in out.iter_mut().enumerate() {
                let (rest, px) = (pixel / g.out_width, pixel % g.out_width);
                let (image, py) = (rest / g.out_height, rest % g.out_height);
                let y = inside(py, ky, &g.vertical, g.height);
                let at = y.zip(inside(px, kx, &g.horizontal, g.width));
                *value = at.map_or(0.0, |(y, x_at)| {
                    x[((image * g.channels + channel) * g.height + y) * g.width + x_at]
                });
            }
        });
        Ok(())
    }
}
