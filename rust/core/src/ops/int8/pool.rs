//! Pooling of codes. Input and output have the same zero point and the same scale, or for maxima almost the same.

use std::borrow::Cow;
use std::sync::Arc;

use mnnq_format::schema::{OpType, PoolType, TableKind, pool as pool_table, pool3d};
use mnnq_kernels::elementwise_i8::pool_i8;
use mnnq_kernels::geometry::{Sliding, Window};
use mnnq_kernels::multiversion::Level;
use mnnq_kernels::pool::Pool as Kind;

use super::super::error::{OpError, OpResult};
use super::super::operator::{Facts, InferResult, Kernel, Layouts, Operator, PrepareContext, StepIo};
use super::super::pool::{Pool, windowed};
use super::super::registry::OpSource;
use crate::runtime::config::Int8Mode;
use crate::tensor::{DType, Layout, Shape, TensorDesc};

/// The operator of a `Pooling` or global `Pooling3D` on codes; `None` for forms without one.
pub(crate) fn pool(source: &OpSource<'_>) -> OpResult<Option<Arc<dyn Operator>>> {
    if source.outputs != 1 {
        return Ok(None);
    }
    let Some((input, output)) = super::described(source, 0) else { return Ok(None) };
    let (global, kind) = if source.op_type == OpType::Pooling3D {
        let table = source.param(TableKind::Pool3D)?;
        (table.get(pool3d::IS_GLOBAL), table.get(pool3d::TYPE))
    } else {
        let table = source.param(TableKind::Pool)?;
        (table.get(pool_table::IS_GLOBAL), table.get(pool_table::TYPE))
    };
    let windows = match (global, source.op_type) {
        (true, _) => match kind {
            PoolType::MAXPOOL => Windows::Global(Kind::Max),
            PoolType::AVEPOOL => Windows::Global(Kind::AverageExcludePadding),
            _ => return Ok(None),
        },
        (false, OpType::Pooling) => Windows::Sliding(windowed(source)?),
        _ => return Ok(None),
    };
    let zero = output.codes().zero as i8;
    // MNN pools floats where the scales differ, however little.
    let compat = source.options.int8 == Int8Mode::Compat && input.same_grid(&output);
    Ok(Some(Arc::new(IntPool { windows, zero, compat })))
}

enum Windows {
    Global(Kind),
    Sliding(Pool),
}

/// Largest or mean code of windows. Means are rounded to the nearest code, halves away from the zero point.
///
/// In [`Int8Mode::Compat`] as MNN 3.6.1 computes on x86-64: the largest of the codes *as unsigned bytes*, which is wrong
/// if there are negative ones, and means rounded down, by a truncated 24-bit reciprocal of the window size.
struct IntPool {
    windows: Windows,
    zero: i8,
    compat: bool,
}

impl IntPool {
    fn kind(&self) -> Kind {
        match &self.windows {
            Windows::Global(kind) => *kind,
            Windows::Sliding(pool) => pool.kind(),
        }
    }

    fn sliding(&self, shape: &Shape) -> OpResult<Sliding> {
        match &self.windows {
            Windows::Sliding(pool) => pool.sliding(shape),
            Windows::Global(_) => {
                let [batch, channels, spatial @ ..] = shape.dims() else {
                    return Err(OpError::shape(0, *shape, "[N, C, ...]"));
                };
                let pixels = spatial.iter().product::<usize>();
                let (vertical, horizontal) = (Window::new(pixels.max(1), 1, 0), Window::new(1, 1, 0));
                Ok(Sliding {
                    batch: *batch,
                    height: pixels,
                    width: 1,
                    channels: *channels,
                    out_height: 1,
                    out_width: 1,
                    vertical,
                    horizontal,
                })
            }
        }
    }
}

impl Operator for IntPool {
    fn infer(&self, inputs: &Facts<'_>) -> InferResult {
        let shape = inputs.typed(0, DType::I8)?.shape;
        let g = self.sliding(&shape)?;
        let dims = match self.windows {
            Windows::Sliding(_) => vec![g.batch, g.channels, g.out_height, g.out_width],
            Windows::Global(_) => {
                let mut dims = shape.dims().to_vec();
                dims[2..].fill(1);
                dims
            }
        };
        Ok(vec![TensorDesc::new(DType::I8, Shape::new(&dims)?)])
    }

    fn layouts(&self, inputs: &Facts<'_>, outputs: &[TensorDesc]) -> Layouts {
        Layouts::first(Layout::ChannelsLast, inputs.len(), outputs.len())
    }

    fn prepare(&self, context: &PrepareContext<'_>) -> OpResult<Box<dyn Kernel>> {
        Ok(Box::new(IntPoolKernel {
            sliding: self.sliding(&context.inputs.shape(0)?)?,
            kind: self.kind(),
            zero: self.zero,
            compat: self.compat,
        }))
    }
}

struct IntPoolKernel {
    sliding: Sliding,
    kind: Kind,
    zero: i8,
    compat: bool,
}

impl IntPoolKernel {
    /// One code of the output by MNN's rule for x86-64, from the codes of its window inside the image.
    fn compat_code(&self, window: impl Iterator<Item = i8>) -> i8 {
        if self.kind == Kind::Max {
            return window.map(|code| code as u8).max().unwrap_or(0x80) as i8;
        }
        let (sum, count) =
            window.fold((0_i64, 0_i64), |(sum, count), code| (sum + i64::from(code) + 128, count + 1));
        let factor = (1_i64 << 24) / count.max(1);
        (((sum * factor) >> 24) - 128) as i8
    }

    fn run_compat(&self, input: &[i8], out: &mut [i8]) {
        let g = &self.sliding;
        for (index, code) in out.iter_mut().enumerate() {
            let (pixel, c) = (index / g.channels, index % g.channels);
            let (row, x) = (pixel / g.out_width, pixel % g.out_width);
            let (image, y) = (row / g.out_height, row % g.out_height);
            let taps_x = g.horizontal.valid_taps(x, g.width);
            let window = g.vertical.valid_taps(y, g.height).flat_map(|ty| {
                let iy = (g.vertical.start(y) + ty as isize).unsigned_abs();
                let taps_x = taps_x.clone();
                taps_x.map(move |tx| {
                    let ix = (g.horizontal.start(x) + tx as isize).unsigned_abs();
                    input[((image * g.height + iy) * g.width + ix) * g.channels + c]
                })
            });
            *code = self.compat_code(window);
        }
    }
}

impl Kernel for IntPoolKernel {
    fn label(&self) -> Cow<'static, str> {
        let (v, h) = (self.sliding.vertical.kernel, self.sliding.horizontal.kernel);
        let how = if self.compat { "as MNN".to_owned() } else { format!("pool_i8_{}", Level::best().name()) };
        format!("pool {v}x{h} {:?} int8 {how}", self.kind).into()
    }

    fn run(&self, io: &mut StepIo<'_, '_>) -> OpResult<()> {
        let input = io.input(0).data::<i8>();
        let out = io.outputs[0].data::<i8>();
        if self.compat {
            self.run_compat(input, out);
            return Ok(());
        }
        pool_i8(Level::best(), self.kind, &self.sliding, self.zero, input, out, io.parallel)?;
        Ok(())
    }
}
