//! `Interp`: resizing images.

use std::borrow::Cow;

use mnnq_format::schema::{CoordinateTransformationMode as Mode, TableKind, blob, interp, tensor_describe};

use super::epilogue::Epilogue;
use super::error::{OpError, OpResult};
use super::operator::{Facts, InferResult, Kernel, Layouts, Operator, PrepareContext, StepIo};
use super::registry::OpSource;
use super::support::{for_each_outer, ints};
use crate::tensor::{DType, Layout, Shape, TensorDesc};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Filter {
    /// The pixel at `floor(x)`.
    NearestFloor,
    /// The pixel at `floor(x + 0.499)`: the nearest, halves down.
    NearestRound,
    Linear,
    Cubic,
}

/// `Interp(x [N, C, H, W][, sizes or scales])`: `x_src = x_dst * scale + offset` along each axis.
pub(super) struct Interp {
    filter: Filter,
    mode: Mode,
    /// Size and scale (height, width) in the table, used without a second input.
    size: [i32; 2],
    scale: [f32; 2],
    offset: [f32; 2],
    /// Output size (height, width) in files with fixed shapes. There the table has the coordinates themselves:
    /// `x_src = x_dst * scale + offset`.
    fixed: Option<[usize; 2]>,
    cubic: f32,
    has_input: bool,
}

impl Interp {
    pub(super) fn new(source: &OpSource<'_>) -> OpResult<Self> {
        source.expect_outputs(1)?;
        let table = source.param(TableKind::Interp)?;
        let kind = table.get(interp::RESIZE_TYPE);
        let filter = match kind {
            1 => Filter::NearestFloor,
            4 => Filter::NearestRound,
            2 => Filter::Linear,
            3 => Filter::Cubic,
            other => return Err(OpError::attribute("resizeType", other, "1 to 4")),
        };
        let mut mode = table.get(interp::CTM);
        if mode == Mode::NotSet {
            mode = if table.get(interp::HALF_PIXEL_CENTERS) && filter != Filter::NearestFloor {
                Mode::HalfPixels
            } else if table.get(interp::ALIGN_CORNERS) {
                Mode::AlignCorners
            } else {
                Mode::Asymmetric
            };
        }
        if !(Mode::AlignCorners.0..=Mode::TensorflowHalfPixels.0).contains(&mode.0) {
            return Err(OpError::attribute("ctm", mode, "a mode other than crop-and-resize"));
        }
        Ok(Self {
            filter,
            mode,
            size: [table.get(interp::OUTPUT_HEIGHT), table.get(interp::OUTPUT_WIDTH)],
            scale: [table.get(interp::HEIGHT_SCALE), table.get(interp::WIDTH_SCALE)],
            offset: [table.get(interp::HEIGHT_OFFSET), table.get(interp::WIDTH_OFFSET)],
            cubic: table.get(interp::CUBIC_COEFF_A),
            has_input: source.inputs > 1,
            fixed: (source.inputs == 1).then(|| Self::described(source)).flatten(),
        })
    }

    /// Output size in a file with fixed shapes.
    fn described(source: &OpSource<'_>) -> Option<[usize; 2]> {
        let blob = source.described.first().copied().flatten()?.get(tensor_describe::BLOB)?;
        let &[_, _, h, w] = &ints(blob.get(blob::DIMS))?[..] else { return None };
        Self::sizes([h, w]).ok()
    }

    /// Output height and width, and per axis the scale that was given, if one was.
    fn output(&self, inputs: &Facts<'_>) -> InferResult<([usize; 2], [Option<f32>; 2])> {
        let shape = inputs.typed(0, DType::F32)?.shape;
        let &[n, c, h, w] = shape.dims() else {
            return Err(OpError::shape(0, shape, "[N, C, H, W]").into());
        };
        let scaled = |length: usize, scale: f32| (length as f32 * scale) as usize;
        if self.has_input {
            let second = inputs.value(1)?;
            let kept = |same: bool| {
                same.then_some(()).ok_or_else(|| OpError::unsupported("resizing of batch or channels"))
            };
            return Ok(match (second.integers(), second.desc().shape.count()) {
                (Some(sizes), 4) => {
                    kept(sizes[0] == n as i64 && sizes[1] == c as i64)?;
                    (Self::sizes([sizes[2], sizes[3]])?, [None; 2])
                }
                (Some(sizes), 2) => (Self::sizes([sizes[0], sizes[1]])?, [None; 2]),
                (None, count @ (2 | 4)) => {
                    let scales = second.data::<f32>();
                    kept(count == 2 || scales[..2] == [1.0, 1.0])?;
                    let scales = &scales[count - 2..];
                    if !scales.iter().all(|s| (1e-6..1e6).contains(s)) {
                        return Err(OpError::value(1, format!("scales {scales:?}")).into());
                    }
                    ([scaled(h, scales[0]), scaled(w, scales[1])], [Some(scales[0]), Some(scales[1])])
                }
                (_, count) => return Err(OpError::value(1, format!("{count} values, wanted 4")).into()),
            });
        }
        if let Some(size) = self.fixed {
            return Ok((size, [None; 2]));
        }
        if self.size[0] > 0 && self.size[1] > 0 {
            return Ok((Self::sizes(self.size.map(i64::from))?, [None; 2]));
        }
        if !self.scale.iter().all(|s| (1e-6..1e6).contains(s)) {
            return Err(OpError::attribute(
                "heightScale, widthScale",
                format!("{:?}", self.scale),
                "positive",
            )
            .into());
        }
        Ok(([scaled(h, self.scale[0]), scaled(w, self.scale[1])], self.scale.map(Some)))
    }

    fn sizes(sizes: [i64; 2]) -> OpResult<[usize; 2]> {
        let bad = || OpError::value(1, format!("size {sizes:?}"));
        let size = |v: i64| usize::try_from(v).ok().filter(|&v| v <= 1 << 31).ok_or_else(bad);
        Ok([size(sizes[0])?, size(sizes[1])?])
    }

    /// Positions and weights of the input pixels for each output pixel of an axis.
    fn taps(&self, axis: usize, input: usize, output: usize, given: Option<f32>) -> Vec<Taps> {
        let ratio = given.map_or(input as f32 / output.max(1) as f32, |scale| 1.0 / scale);
        let (scale, offset) = match self.mode {
            _ if self.fixed.is_some() => (self.scale[axis], self.offset[axis]),
            Mode::HalfPixels => (ratio, 0.5 * ratio - 0.5),
            Mode::PytorchHalfPixels if output == 1 => (0.0, 0.0),
            Mode::PytorchHalfPixels => (ratio, 0.5 * ratio - 0.5),
            Mode::TensorflowHalfPixels => (ratio, 0.5 * ratio),
            Mode::AlignCorners if output == 1 => (0.0, 0.0),
            Mode::AlignCorners => ((input as f32 - 1.0) / (output as f32 - 1.0), 0.0),
            _ => (ratio, self.offset[axis]),
        };
        let last = input.saturating_sub(1) as i64;
        let clamp = |p: i64| p.clamp(0, last) as usize;
        (0..output)
            .map(|position| {
                let x = position as f32 * scale + offset;
                let floor = x.floor();
                let (base, t) = (floor as i64, x - floor);
                match self.filter {
                    Filter::NearestFloor => Taps::one(clamp(base)),
                    Filter::NearestRound => Taps::one(clamp((x + 0.499).floor() as i64)),
                    Filter::Linear => Taps {
                        at: [clamp(base), clamp(base + 1), 0, 0],
                        weight: [1.0 - t, t, 0.0, 0.0],
                        count: 2,
                    },
                    Filter::Cubic => Taps {
                        at: [-1, 0, 1, 2].map(|d| clamp(base + d)),
                        weight: cubic(t, self.cubic),
                        count: 4,
                    },
                }
            })
            .collect()
    }
}

/// Weights of the four neighbours by the cubic convolution kernel with parameter `a`.
fn cubic(t: f32, a: f32) -> [f32; 4] {
    let near = |d: f32| ((a + 2.0) * d - (a + 3.0)) * d * d + 1.0;
    let far = |d: f32| ((a * d - 5.0 * a) * d + 8.0 * a) * d - 4.0 * a;
    [far(1.0 + t), near(t), near(1.0 - t), far(2.0 - t)]
}

/// The input pixels of one output pixel along an axis.
#[derive(Debug, Clone, Copy)]
struct Taps {
    at: [usize; 4],
    weight: [f32; 4],
    count: usize,
}

impl Taps {
    fn one(at: usize) -> Self {
        Self { at: [at, 0, 0, 0], weight: [1.0, 0.0, 0.0, 0.0], count: 1 }
    }
}

impl Operator for Interp {
    fn infer(&self, inputs: &Facts<'_>) -> InferResult {
        let shape = inputs.shape(0)?;
        let ([h, w], _) = self.output(inputs)?;
        if shape.count() == 0 && h * w > 0 {
            return Err(OpError::shape(0, shape, "pixels to resize").into());
        }
        Ok(vec![TensorDesc::new(DType::F32, Shape::new(&[shape[0], shape[1], h, w])?)])
    }

    fn layouts(&self, inputs: &Facts<'_>, outputs: &[TensorDesc]) -> Layouts {
        Layouts::first(Layout::ChannelsLast, inputs.len(), outputs.len())
    }

    fn accepts_epilogue(&self) -> bool {
        true
    }

    fn prepare(&self, context: &PrepareContext<'_>) -> OpResult<Box<dyn Kernel>> {
        let shape = context.inputs.shape(0)?;
        let (size, given) =
            self.output(&context.inputs).map_err(|_| OpError::unsupported("sizes that are not known"))?;
        Ok(Box::new(InterpKernel {
            rows: self.taps(0, shape[2], size[0], given[0]),
            columns: self.taps(1, shape[3], size[1], given[1]),
            channels: shape[1],
            input: [shape[2], shape[3]],
            filter: self.filter,
            epilogue: context.epilogue.clone(),
        }))
    }
}

struct InterpKernel {
    rows: Vec<Taps>,
    columns: Vec<Taps>,
    channels: usize,
    input: [usize; 2],
    filter: Filter,
    epilogue: Epilogue,
}

impl Kernel for InterpKernel {
    fn label(&self) -> Cow<'static, str> {
        format!("interp {:?} f32{}", self.filter, self.epilogue.describe()).to_lowercase().into()
    }

    fn run(&self, io: &mut StepIo<'_, '_>) -> OpResult<()> {
        let x = io.input(0).data::<f32>();
        let epilogue = self.epilogue.bind(io.inputs);
        let (c, [height, width]) = (self.channels, self.input);
        let row = self.columns.len() * c;
        for_each_outer(io.parallel, io.outputs[0].data::<f32>(), row, |index, out| {
            let (image, y) = (index / self.rows.len(), &self.rows[index % self.rows.len()]);
            for (out, x_taps) in out.chunks_exact_mut(c).zip(&self.columns) {
                out.fill(0.0);
                for ky in 0..y.count {
                    let line = (image * height + y.at[ky]) * width;
                    for kx in 0..x_taps.count {
                        let weight = y.weight[ky] * x_taps.weight[kx];
                        let pixel = &x[(line + x_taps.at[kx]) * c..][..c];
                        if weight == 1.0 && y.count == 1 {
                            out.copy_from_slice(pixel);
                        } else {
                            out.iter_mut().zip(pixel).for_each(|(o, &p)| *o += weight * p);
                        }
                    }
                }
            }
            epilogue.apply(index * row, out);
        });
        Ok(())
    }
}
