//! `Pooling`, `Pooling3D`.

use std::borrow::Cow;
use std::sync::Arc;

use mnnq_format::schema::{AvgPoolCountType, PoolPadType, PoolType, TableKind, pool, pool3d};
use mnnq_kernels::geometry::{Sliding, Window};
use mnnq_kernels::pool::{Pool as Kind, pool_f32};
use mnnq_kernels::reduce::Reduce as Function;

use super::conv_weights::Padding;
use super::epilogue::Epilogue;
use super::error::{OpError, OpResult};
use super::operator::{Facts, InferResult, Kernel, Layouts, Operator, PrepareContext, StepIo};
use super::pool_indices::PoolIndices;
use super::reduce::Reduce;
use super::registry::{OpSource, Subgraphs};
use super::support::{ints, kernels};
use crate::tensor::{DType, Layout, Shape, TensorDesc};

/// `Pooling`: the maximum or mean of windows. The mean of a window at the border counts the padding or not.
pub(super) struct Pool {
    kernel: [usize; 2],
    stride: [usize; 2],
    padding: Padding,
    ceil: bool,
    kind: Kind,
}

/// `Pooling`.
pub(super) fn create(source: &OpSource<'_>, _: &mut dyn Subgraphs) -> OpResult<Arc<dyn Operator>> {
    let table = source.param(TableKind::Pool)?;
    let max = kind_of(table.get(pool::TYPE))?;
    let indices = source.outputs == 2;
    if !indices {
        source.expect_outputs(1)?;
    } else if !max || table.get(pool::IS_GLOBAL) {
        return Err(OpError::unsupported("a second output (indices) of mean or global pooling"));
    }
    if table.get(pool::IS_GLOBAL) {
        return Ok(global(max));
    }
    let pool = windowed(source)?;
    Ok(if indices { Arc::new(PoolIndices(pool)) } else { Arc::new(pool) })
}

/// A `Pooling` that is not global.
pub(super) fn windowed(source: &OpSource<'_>) -> OpResult<Pool> {
    let table = source.param(TableKind::Pool)?;
    let max = kind_of(table.get(pool::TYPE))?;
    let size = |field, key| {
        let got: i32 = table.get(field);
        let value = usize::try_from(got).ok().filter(|&v| (1..=1 << 24).contains(&v));
        value.ok_or_else(|| OpError::attribute(key, got, "1 or more"))
    };
    let list = ints(table.get(pool::PADS)).filter(|list| !list.is_empty());
    let pad_type = table.get(pool::PAD_TYPE);
    let padding = match pad_type {
        PoolPadType::CAFFE => {
            let (x, y) = (table.get(pool::PAD_X).into(), table.get(pool::PAD_Y).into());
            Padding::explicit(&list.clone().unwrap_or_else(|| vec![y, x, y, x]))?
        }
        PoolPadType::VALID => Padding::Valid,
        PoolPadType::SAME => Padding::Same,
        other => return Err(OpError::attribute("padType", other, "CAFFE, VALID or SAME")),
    };
    // Explicit padding given by two numbers counts unless told otherwise; given by a list it does not.
    let counts = match table.get(pool::COUNT_TYPE) {
        AvgPoolCountType::INCLUDE_PADDING => true,
        AvgPoolCountType::EXCLUDE_PADDING => false,
        AvgPoolCountType::DEFAULT => pad_type == PoolPadType::CAFFE && list.is_none(),
        other => return Err(OpError::attribute("countType", other, "a code of AvgPoolCountType")),
    };
    let kind = match (max, counts) {
        (true, _) => Kind::Max,
        (false, true) => Kind::AverageIncludePadding,
        (false, false) => Kind::AverageExcludePadding,
    };
    Ok(Pool {
        kernel: [size(pool::KERNEL_Y, "kernelY")?, size(pool::KERNEL_X, "kernelX")?],
        stride: [size(pool::STRIDE_Y, "strideY")?, size(pool::STRIDE_X, "strideX")?],
        padding,
        ceil: table.get(pool::CEIL_MODEL),
        kind,
    })
}

/// `Pooling3D`: global pooling of any rank, or windows over three spatial axes.
pub(super) fn create_3d(source: &OpSource<'_>, _: &mut dyn Subgraphs) -> OpResult<Arc<dyn Operator>> {
    source.expect_outputs(1)?;
    let table = source.param(TableKind::Pool3D)?;
    let max = kind_of(table.get(pool3d::TYPE))?;
    if !table.get(pool3d::IS_GLOBAL) {
        return Ok(Arc::new(super::volume::Pool3d::new(table, max)?));
    }
    Ok(global(max))
}

fn kind_of(kind: PoolType) -> OpResult<bool> {
    match kind {
        PoolType::MAXPOOL => Ok(true),
        PoolType::AVEPOOL => Ok(false),
        other => Err(OpError::attribute("type", other, "MAXPOOL or AVEPOOL")),
    }
}

fn global(max: bool) -> Arc<dyn Operator> {
    Arc::new(Reduce::spatial(if max { Function::Max } else { Function::Mean }))
}

impl Pool {
    pub(super) fn kind(&self) -> Kind {
        self.kind
    }

    /// The windows over an input of this shape.
    pub(super) fn sliding(&self, shape: &Shape) -> OpResult<Sliding> {
        let &[batch, channels, height, width] = shape.dims() else {
            return Err(OpError::shape(0, *shape, "[N, C, H, W]"));
        };
        let (vertical, out_height) = self.window(0, height, shape)?;
        let (horizontal, out_width) = self.window(1, width, shape)?;
        Ok(Sliding { batch, height, width, channels, out_height, out_width, vertical, horizontal })
    }

    fn window(&self, axis: usize, length: usize, shape: &Shape) -> OpResult<(Window, usize)> {
        let (kernel, stride) = (self.kernel[axis], self.stride[axis]);
        let too_small =
            || OpError::shape(0, *shape, format!("at least {kernel} with padding along axis {}", axis + 2));
        let (pad_begin, pad_end, outputs) = match self.padding {
            Padding::Valid => {
                let room = length.checked_sub(kernel).ok_or_else(too_small)?;
                (0, 0, room / stride + 1)
            }
            Padding::Same => {
                let outputs = length.div_ceil(stride);
                let total = ((outputs.max(1) - 1) * stride + kernel).saturating_sub(length);
                (total / 2, total - total / 2, outputs)
            }
            Padding::Explicit(pads) => {
                let (begin, end) = (pads[axis], pads[axis + 2]);
                let room = (length + begin + end).checked_sub(kernel).ok_or_else(too_small)?;
                // A last window that starts in the padding is kept, unlike in ONNX.
                let outputs = if self.ceil { room.div_ceil(stride) } else { room / stride } + 1;
                (begin, end, outputs)
            }
        };
        Ok((Window { kernel, stride, dilation: 1, pad_begin, pad_end }, outputs))
    }
}

impl Operator for Pool {
    fn infer(&self, inputs: &Facts<'_>) -> InferResult {
        let g = self.sliding(&inputs.typed(0, DType::F32)?.shape)?;
        Ok(vec![TensorDesc::new(DType::F32, Shape::new(&[g.batch, g.channels, g.out_height, g.out_width])?)])
    }

    fn layouts(&self, inputs: &Facts<'_>, outputs: &[TensorDesc]) -> Layouts {
        Layouts::first(Layout::ChannelsLast, inputs.len(), outputs.len())
    }

    fn accepts_epilogue(&self) -> bool {
        true
    }

    fn prepare(&self, context: &PrepareContext<'_>) -> OpResult<Box<dyn Kernel>> {
        let sliding = self.sliding(&context.inputs.shape(0)?)?;
        Ok(Box::new(PoolKernel { sliding, kind: self.kind, epilogue: context.epilogue.clone() }))
    }
}

struct PoolKernel {
    sliding: Sliding,
    kind: Kind,
    epilogue: Epilogue,
}

impl Kernel for PoolKernel {
    fn label(&self) -> Cow<'static, str> {
        let (v, h) = (self.sliding.vertical.kernel, self.sliding.horizontal.kernel);
        let isa = kernels().pool_f32.level();
        format!("pool {v}x{h} {:?} f32 pool_f32_{isa}{}", self.kind, self.epilogue.describe()).into()
    }

    fn run(&self, io: &mut StepIo<'_, '_>) -> OpResult<()> {
        let input = io.input(0).data::<f32>();
        let out = io.outputs[0].data::<f32>();
        pool_f32(kernels().pool_f32, self.kind, &self.sliding, input, out, io.parallel)?;
        self.epilogue.apply_all(io);
        Ok(())
    }
}
