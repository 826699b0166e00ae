//! Sampling images at positions between pixels: `GridSample`, `ROIAlign`.

use std::borrow::Cow;

use mnnq_format::schema::{BorderMode, PoolType, SampleMode, TableKind, grid_sample, roi_parameters};

use super::error::{OpError, OpResult};
use super::operator::{Facts, InferResult, Kernel, Operator, PrepareContext, StepIo};
use super::registry::OpSource;
use super::support::for_each_outer;
use crate::tensor::{DType, Shape, TensorDesc};

/// `GridSample(x, grid)`: `out[n, c, p..] = x[n, c]` at the position `grid[n, p.., :]`, whose coordinates run from -1
/// to 1 over the axes of the image, the last axis first. Two or three spatial axes.
///
/// Positions are mapped to the centres of the outermost pixels if `alignCorners`, else to their outer edges. Nearest
/// takes the even neighbour where two are as near, and reflection is ONNX's: MNN's runtime computes neither.
#[derive(Debug, Clone, Copy)]
pub(super) struct GridSample {
    nearest: bool,
    border: Border,
    align_corners: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Border {
    Zeros,
    Clamp,
    Reflection,
}

impl GridSample {
    pub(super) fn new(source: &OpSource<'_>) -> OpResult<Self> {
        source.expect_outputs(1)?;
        let table = source.param(TableKind::GridSample)?;
        if table.get(grid_sample::BACKWARD) {
            return Err(OpError::attribute("backward", true, "false"));
        }
        let nearest = match table.get(grid_sample::MODE) {
            SampleMode::BILINEAR => false,
            SampleMode::NEAREST => true,
            other => return Err(OpError::attribute("mode", other, "BILINEAR or NEAREST")),
        };
        let border = match table.get(grid_sample::PADDING_MODE) {
            BorderMode::ZEROS => Border::Zeros,
            BorderMode::CLAMP => Border::Clamp,
            BorderMode::REFLECTION => Border::Reflection,
            other => return Err(OpError::attribute("paddingMode", other, "ZEROS, CLAMP or REFLECTION")),
        };
        Ok(Self { nearest, border, align_corners: table.get(grid_sample::ALIGN_CORNERS) })
    }

    /// The pixel coordinate of a position along an axis.
    fn coordinate(self, position: f32, length: usize) -> f32 {
        let size = length as f32;
        let raw = if self.align_corners {
            (position + 1.0) / 2.0 * (size - 1.0)
        } else {
            ((position + 1.0) * size - 1.0) / 2.0
        };
        match self.border {
            Border::Zeros => raw,
            Border::Clamp => raw.clamp(0.0, size - 1.0),
            Border::Reflection => {
                let (low, high) = if self.align_corners { (0.0, size - 1.0) } else { (-0.5, size - 0.5) };
                reflect(raw, low, high).clamp(0.0, size - 1.0)
            }
        }
    }

    /// Two pixels of an axis with their weights; `None` for a pixel outside.
    fn neighbours(self, position: f32, length: usize) -> [(Option<usize>, f32); 2] {
        let at = self.coordinate(position, length);
        let inside = |v: f32| (v >= 0.0 && v < length as f32).then_some(v as usize);
        if self.nearest {
            return [(inside(at.round_ties_even()), 1.0), (None, 0.0)];
        }
        let (low, share) = (at.floor(), at - at.floor());
        [(inside(low), 1.0 - share), (inside(low + 1.0), share)]
    }
}

/// A coordinate mirrored at the bounds as often as it takes.
fn reflect(value: f32, low: f32, high: f32) -> f32 {
    let range = high - low;
    if range <= 0.0 {
        return low;
    }
    let folded = (value - low).rem_euclid(2.0 * range);
    low + if folded > range { 2.0 * range - folded } else { folded }
}

impl Operator for GridSample {
    fn infer(&self, inputs: &Facts<'_>) -> InferResult {
        let (x, grid) = (inputs.typed(0, DType::F32)?.shape, inputs.typed(1, DType::F32)?.shape);
        let rank = x.rank();
        if !(4..=5).contains(&rank) || x[2..].contains(&0) {
            return Err(OpError::shape(0, x, "[N, C, H, W] or [N, C, D, H, W] with pixels").into());
        }
        if grid.rank() != rank || grid[0] != x[0] || grid[rank - 1] != rank - 2 {
            let wanted = format!("[{}, positions.., {}] of rank {rank}", x[0], rank - 2);
            return Err(OpError::shape(1, grid, wanted).into());
        }
        let mut dims = vec![x[0], x[1]];
        dims.extend(&grid.dims()[1..rank - 1]);
        Ok(vec![TensorDesc::new(DType::F32, Shape::new(&dims)?)])
    }

    fn prepare(&self, context: &PrepareContext<'_>) -> OpResult<Box<dyn Kernel>> {
        let (x, out) = (context.inputs.shape(0)?, context.outputs[0].shape);
        Ok(Box::new(GridKernel {
            sample: *self,
            channels: x[1],
            spatial: x.dims()[2..].to_vec(),
            positions: out.span(2..out.rank()),
        }))
    }
}

struct GridKernel {
    sample: GridSample,
    channels: usize,
    /// Lengths of the image's axes.
    spatial: Vec<usize>,
    /// Positions per image.
    positions: usize,
}

impl Kernel for GridKernel {
    fn label(&self) -> Cow<'static, str> {
        if self.sample.nearest { "grid sample nearest f32" } else { "grid sample linear f32" }.into()
    }

    fn run(&self, io: &mut StepIo<'_, '_>) -> OpResult<()> {
        let (x, grid) = (io.input(0).data::<f32>(), io.input(1).data::<f32>());
        let axes = self.spatial.len();
        let plane: usize = self.spatial.iter().product();
        for_each_outer(io.parallel, io.outputs[0].data::<f32>(), self.positions, |at, out| {
            let image = &x[at * plane..][..plane];
            let positions = &grid[at / self.channels * self.positions * axes..];
            for (y, position) in out.iter_mut().zip(positions.chunks_exact(axes)) {
                let mut near = [[(None, 0.0); 2]; 3];
                for (axis, slot) in near.iter_mut().enumerate().take(axes) {
                    *slot = self.sample.neighbours(position[axes - 1 - axis], self.spatial[axis]);
                }
                *y = 0.0;
                for corner in 0..1_usize << axes {
                    let (mut offset, mut weight) = (Some(0), 1.0);
                    for axis in 0..axes {
                        let (pixel, share) = near[axis][corner >> axis & 1];
                        offset = offset.zip(pixel).map(|(o, p): (usize, usize)| o * self.spatial[axis] + p);
                        weight *= share;
                    }
                    *y += offset.map_or(0.0, |offset| image[offset] * weight);
                }
            }
        });
        Ok(())
    }
}

/// `ROIAlign(x, rois[, images])`: each region `x1, y1, x2, y2` (times `spatialScale`) of an image is cut into
/// `pooledHeight x pooledWidth` cells, and a cell becomes the mean (or maximum) of bilinear samples on a regular grid in it:
/// `samplingRatio` per axis, or as many as the cell has pixels if that is not positive. `aligned` moves regions by
/// half a pixel; otherwise they are at least one pixel large. Without input 2, the number of the image is the first of
/// five values of a region.
pub(super) struct RoiAlign {
    height: usize,
    width: usize,
    scale: f32,
    ratio: usize,
    aligned: bool,
    max: bool,
}

impl RoiAlign {
    pub(super) fn new(source: &OpSource<'_>) -> OpResult<Self> {
        source.expect_outputs(1)?;
        let table = source.param(TableKind::RoiParameters)?;
        if table.get(roi_parameters::OUTPUT_GRAD) {
            return Err(OpError::attribute("outputGrad", true, "false"));
        }
        let kind = table.get(roi_parameters::POOL_TYPE);
        if ![PoolType::AVEPOOL, PoolType::MAXPOOL].contains(&kind) {
            return Err(OpError::attribute("poolType", kind, "AVEPOOL or MAXPOOL"));
        }
        let size = |field, key| {
            let got: i32 = table.get(field);
            let value = usize::try_from(got).ok().filter(|&v| (1..=1 << 16).contains(&v));
            value.ok_or_else(|| OpError::attribute(key, got, "1 or more"))
        };
        let got = table.get(roi_parameters::SAMPLING_RATIO);
        if got > MAX_SAMPLES {
            return Err(OpError::attribute("samplingRatio", got, format!("at most {MAX_SAMPLES}")));
        }
        Ok(Self {
            height: size(roi_parameters::POOLED_HEIGHT, "pooledHeight")?,
            width: size(roi_parameters::POOLED_WIDTH, "pooledWidth")?,
            scale: table.get(roi_parameters::SPATIAL_SCALE),
            ratio: usize::try_from(got).unwrap_or(0),
            aligned: table.get(roi_parameters::ALIGNED),
            max: kind == PoolType::MAXPOOL,
        })
    }
}

/// Most samples per cell and axis.
const MAX_SAMPLES: i32 = 1024;

impl Operator for RoiAlign {
    fn infer(&self, inputs: &Facts<'_>) -> InferResult {
        let (x, rois) = (inputs.typed(0, DType::F32)?.shape, inputs.typed(1, DType::F32)?.shape);
        if x.rank() != 4 || x[2..].contains(&0) {
            return Err(OpError::shape(0, x, "[N, C, H, W] with pixels").into());
        }
        let given = inputs.get(2).is_some();
        let columns = if given { 4 } else { 5 };
        if rois.rank() != 2 || rois[1] != columns {
            return Err(OpError::shape(1, rois, format!("[regions, {columns}]")).into());
        }
        if given {
            let images = inputs.typed(2, DType::I32)?.shape;
            if images.count() != rois[0] {
                return Err(OpError::shape(2, images, format!("[{}]", rois[0])).into());
            }
        }
        let shape = Shape::new(&[rois[0], x[1], self.height, self.width])?;
        Ok(vec![TensorDesc::new(DType::F32, shape)])
    }

    fn prepare(&self, context: &PrepareContext<'_>) -> OpResult<Box<dyn Kernel>> {
        let &[images, channels, height, width] = context.inputs.shape(0)?.dims() else {
            return Err(OpError::shape(0, context.inputs.shape(0)?, "[N, C, H, W]"));
        };
        Ok(Box::new(RoiKernel {
            cells: [self.height, self.width],
            scale: self.scale,
            ratio: self.ratio,
            aligned: self.aligned,
            max: self.max,
            images,
            channels,
            size: [height, width],
        }))
    }
}

struct RoiKernel {
    cells: [usize; 2],
    scale: f32,
    ratio: usize,
    aligned: bool,
    max: bool,
    images: usize,
    channels: usize,
    size: [usize; 2],
}

impl RoiKernel {
    /// Start, length of a cell, and samples per cell of a region along one axis.
    fn axis(&self, from: f32, to: f32, cells: usize) -> (f32, f32, usize) {
        let shift = if self.aligned { 0.5 } else { 0.0 };
        let (start, end) = (from * self.scale - shift, to * self.scale - shift);
        let length = if self.aligned { end - start } else { (end - start).max(1.0) };
        let cell = length / cells as f32;
        // The cast maps NaN and negative numbers to 0.
        let samples =
            if self.ratio > 0 { self.ratio } else { (cell.ceil() as usize).min(MAX_SAMPLES as usize) };
        (start, cell, samples)
    }

    fn pool(&self, image: &[f32], region: &[f32], out: &mut [f32]) {
        let (top, cell_height, rows) = self.axis(region[1], region[3], self.cells[0]);
        let (left, cell_width, columns) = self.axis(region[0], region[2], self.cells[1]);
        let count = (rows * columns).max(1) as f32;
        for (at, y) in out.iter_mut().enumerate() {
            let (cell_y, cell_x) = ((at / self.cells[1]) as f32, (at % self.cells[1]) as f32);
            let (mut sum, mut most) = (0.0, f32::NEG_INFINITY);
            for r in 0..rows {
                let v = top + cell_height * (cell_y + (r as f32 + 0.5) / rows as f32);
                for c in 0..columns {
                    let u = left + cell_width * (cell_x + (c as f32 + 0.5) / columns as f32);
                    let sample = self.bilinear(image, v, u);
                    sum += sample;
                    most = most.max(sample);
                }
            }
            *y = match self.max {
                false => sum / count,
                true if rows * columns == 0 => 0.0,
                true => most,
            };
        }
    }

    /// The image between pixels; 0 more than a pixel outside.
    fn bilinear(&self, image: &[f32], v: f32, u: f32) -> f32 {
        let [height, width] = self.size;
        let outside = |p: f32, n: usize| !(p >= -1.0 && p <= n as f32);
        if outside(v, height) || outside(u, width) {
            return 0.0;
        }
        let split = |p: f32, n: usize| {
            let p = p.clamp(0.0, (n - 1) as f32);
            let low = p as usize;
            (low, (low + 1).min(n - 1), p - low as f32)
        };
        let ((y0, y1, fy), (x0, x1, fx)) = (split(v, height), split(u, width));
        let row = |y: usize| image[y * width + x0] * (1.0 - fx) + image[y * width + x1] * fx;
        row(y0) * (1.0 - fy) + row(y1) * fy
    }
}

impl Kernel for RoiKernel {
    fn label(&self) -> Cow<'static, str> {
        "roi align f32".into()
    }

    fn run(&self, io: &mut StepIo<'_, '_>) -> OpResult<()> {
        let (x, rois) = (io.input(0).data::<f32>(), io.input(1).data::<f32>());
        let listed = io.optional(2).map(|view| view.data::<i32>());
        let columns = if listed.is_some() { 4 } else { 5 };
        let image_of = |region: usize| {
            let number = match listed {
                Some(listed) => i64::from(listed[region]),
                None => rois[region * columns] as i64,
            };
            usize::try_from(number).ok().filter(|&n| n < self.images).ok_or(number)
        };
        if let Some(bad) = (0..rois.len() / columns).find_map(|region| image_of(region).err()) {
            let input = if listed.is_some() { 2 } else { 1 };
            return Err(OpError::value(input, format!("image {bad} of {}", self.images)));
        }
        let plane = self.size[0] * self.size[1];
        let cells = self.cells[0] * self.cells[1];
        for_each_outer(io.parallel, io.outputs[0].data::<f32>(), cells, |at, out| {
            let (region, channel) = (at / self.channels, at % self.channels);
            let image = &x[(image_of(region).unwrap_or(0) * self.channels + channel) * plane..][..plane];
            self.pool(image, &rois[region * columns + columns - 4..][..4], out);
        });
        Ok(())
    }
}
