//! `Pooling` with a second output: maxima and where they are.

use std::borrow::Cow;

use mnnq_kernels::geometry::{Sliding, Window};

use super::error::{OpError, OpResult};
use super::operator::{Facts, InferResult, Kernel, Operator, PrepareContext, StepIo};
use super::pool::Pool;
use super::support::for_each_outer;
use crate::tensor::{DType, Shape, TensorDesc};

/// The maximum of every window and, as a second output, its position in the plane of its image and channel
/// (`row * width + column`, INT32): the first one of equal maxima. Padding is never a maximum, as in ONNX; MNN's
/// runtime takes it for zeros here.
pub(super) struct PoolIndices(pub(super) Pool);

impl Operator for PoolIndices {
    fn infer(&self, inputs: &Facts<'_>) -> InferResult {
        let x = inputs.typed(0, DType::F32)?.shape;
        let g = self.0.sliding(&x)?;
        if g.height == 0 || g.width == 0 {
            return Err(OpError::shape(0, x, "[N, C, H, W] with pixels").into());
        }
        let shape = Shape::new(&[g.batch, g.channels, g.out_height, g.out_width])?;
        Ok(vec![TensorDesc::new(DType::F32, shape), TensorDesc::new(DType::I32, shape)])
    }

    fn prepare(&self, context: &PrepareContext<'_>) -> OpResult<Box<dyn Kernel>> {
        Ok(Box::new(IndexKernel { sliding: self.0.sliding(&context.inputs.shape(0)?)? }))
    }
}

struct IndexKernel {
    sliding: Sliding,
}

/// The part of window `at` that lies in an axis of `length`; one element at the border if there is none.
fn part(window: &Window, at: usize, length: usize) -> std::ops::Range<usize> {
    let start = at * window.stride;
    let end = (start + window.kernel).saturating_sub(window.pad_begin).clamp(1, length.max(1));
    start.saturating_sub(window.pad_begin).min(end - 1)..end
}

impl Kernel for IndexKernel {
    fn label(&self) -> Cow<'static, str> {
        format!(
            "pool {}x{} max with indices f32",
            self.sliding.vertical.kernel, self.sliding.horizontal.kernel
        )
        .into()
    }

    fn run(&self, io: &mut StepIo<'_, '_>) -> OpResult<()> {
        let g = &self.sliding;
        let x = io.input(0).data::<f32>();
        let (plane, outputs) = (g.height * g.width, g.out_height * g.out_width);
        let [values, indices, ..] = &mut *io.outputs else { return Ok(()) };
        for_each_outer(io.parallel, indices.data::<i32>(), outputs, |at, out| {
            let x = &x[at * plane..][..plane];
            for (place, index) in out.iter_mut().enumerate() {
                let columns = part(&g.horizontal, place % g.out_width, g.width);
                let mut best = None;
                for row in part(&g.vertical, place / g.out_width, g.height) {
                    for at in row * g.width + columns.start..row * g.width + columns.end {
                        if best.is_none_or(|best: usize| x[at] > x[best]) {
                            best = Some(at);
                        }
                    }
                }
                *index = best.unwrap_or(0) as i32;
            }
        });
        let indices = &*indices.data::<i32>();
        for_each_outer(io.parallel, values.data::<f32>(), outputs, |at, out| {
            for (y, &index) in out.iter_mut().zip(&indices[at * outputs..]) {
                *y = x[at * plane + index as usize];
            }
        });
        Ok(())
    }
}
