//! `Raster`: copies of regions, which files with fixed shapes have instead of layout operators.

use std::borrow::Cow;

use mnnq_format::model::Table;
use mnnq_format::schema::{blob, region, tensor_describe, view};

use super::error::{OpError, OpResult};
use super::operator::{Facts, InferResult, Kernel, Operator, PrepareContext, StepIo};
use super::registry::OpSource;
use super::support::ints;
use crate::tensor::{DType, Shape, TensorDesc};

/// A box of elements: `dst[do + i ds0 + j ds1 + k ds2] = src[so + i ss0 + j ss1 + k ss2]`.
#[derive(Debug, Clone)]
struct Region {
    input: usize,
    size: [usize; 3],
    source: (i64, [i64; 3]),
    target: (i64, [i64; 3]),
}

/// `Raster`: its output's shape and regions are in the file's tensor descriptions.
pub(super) struct Raster {
    shape: Shape,
    /// Its type, if there is no input to tell.
    dtype: Option<DType>,
    regions: Vec<Region>,
}

impl Raster {
    pub(super) fn new(source: &OpSource<'_>) -> OpResult<Self> {
        source.expect_outputs(1)?;
        let described = source.described.first().copied().flatten();
        let table = described.ok_or_else(|| OpError::unsupported("a raster without described output"))?;
        let blob = table.get(tensor_describe::BLOB);
        let dims = blob.and_then(|b| ints(b.get(blob::DIMS))).unwrap_or_default();
        let regions = table.get(tensor_describe::REGIONS).unwrap_or_default();
        if regions.len() != source.inputs {
            let wanted = format!("{}, one per input", source.inputs);
            return Err(OpError::attribute("regions", format!("{} regions", regions.len()), wanted));
        }
        let regions = regions.iter().enumerate().map(|(input, region)| Self::region(region, input));
        Ok(Self {
            shape: Shape::from_signed(&dims)?,
            dtype: blob.and_then(|blob| DType::from_wire(blob.get(blob::DATA_TYPE))),
            regions: regions.collect::<OpResult<_>>()?,
        })
    }

    /// Region `input`, whose elements are in the input of this position. (`origin` is not written by MNN's converter, nor read
    /// when its runtime executes the operator.)
    fn region(table: &Table, input: usize) -> OpResult<Region> {
        let three = |key, list: Option<Vec<i64>>| -> OpResult<[i64; 3]> {
            let list = list.unwrap_or_default();
            list.as_slice().try_into().map_err(|_| OpError::attribute(key, format!("{list:?}"), "3 numbers"))
        };
        let part = |table: Option<&Table>| -> OpResult<(i64, [i64; 3])> {
            let table = table
                .ok_or_else(|| OpError::attribute("regions", "a region without views", "src and dst"))?;
            Ok((table.get(view::OFFSET).into(), three("stride", ints(table.get(view::STRIDE)))?))
        };
        let size = three("size", ints(table.get(region::SIZE)))?;
        let bad = || OpError::attribute("size", format!("{size:?}"), "3 lengths");
        let mut lengths = [0; 3];
        for (length, &n) in lengths.iter_mut().zip(&size) {
            *length = usize::try_from(n).ok().filter(|&n| n <= 1 << 31).ok_or_else(bad)?;
        }
        Ok(Region {
            input,
            size: lengths,
            source: part(table.get(region::SRC))?,
            target: part(table.get(region::DST))?,
        })
    }
}

/// First and last position that a view touches.
fn bounds((offset, strides): (i64, [i64; 3]), size: [usize; 3]) -> Option<(i64, i64)> {
    let (mut lo, mut hi) = (offset, offset);
    for (stride, length) in strides.into_iter().zip(size) {
        let reach = stride.checked_mul(i64::try_from(length).ok()?.checked_sub(1)?)?;
        if reach < 0 { lo = lo.checked_add(reach)? } else { hi = hi.checked_add(reach)? }
    }
    Some((lo, hi))
}

impl Operator for Raster {
    fn infer(&self, inputs: &Facts<'_>) -> InferResult {
        let dtype = match (inputs.is_empty(), self.dtype) {
            (true, Some(dtype)) => dtype,
            _ => inputs.desc(0)?.dtype,
        };
        for region in self.regions.iter().filter(|region| !region.size.contains(&0)) {
            let desc = inputs.typed(region.input, dtype)?;
            for (view, count, what) in
                [(region.source, desc.shape.count(), "input"), (region.target, self.shape.count(), "output")]
            {
                let inside = bounds(view, region.size)
                    .is_some_and(|(lo, hi)| lo >= 0 && usize::try_from(hi).is_ok_and(|hi| hi < count));
                if !inside {
                    let got = format!("{view:?} with size {:?}", region.size);
                    return Err(OpError::attribute("regions", got, format!("inside the {what}")).into());
                }
            }
        }
        Ok(vec![TensorDesc::new(dtype, self.shape)])
    }

    fn prepare(&self, context: &PrepareContext<'_>) -> OpResult<Box<dyn Kernel>> {
        Ok(Box::new(RasterKernel { regions: self.regions.clone(), dtype: context.outputs[0].dtype }))
    }
}

struct RasterKernel {
    regions: Vec<Region>,
    dtype: DType,
}

impl Kernel for RasterKernel {
    fn label(&self) -> Cow<'static, str> {
        format!("raster of {} regions", self.regions.len()).into()
    }

    fn run(&self, io: &mut StepIo<'_, '_>) -> OpResult<()> {
        let size = self.dtype.size();
        let inputs = io.inputs;
        let out = io.outputs[0].bytes();
        out.fill(0);
        for region in &self.regions {
            let Some(source) = inputs.get(region.input).and_then(|view| view.as_ref()) else { continue };
            let source = source.bytes();
            let at = |(offset, strides): (i64, [i64; 3]), i: usize, j: usize, k: usize| {
                let position = offset + i as i64 * strides[0] + j as i64 * strides[1] + k as i64 * strides[2];
                position as usize * size
            };
            let [a, b, c] = region.size;
            for i in 0..a {
                for j in 0..b {
                    if region.source.1[2] == 1 && region.target.1[2] == 1 && c > 0 {
                        let (from, to) = (at(region.source, i, j, 0), at(region.target, i, j, 0));
                        out[to..to + c * size].copy_from_slice(&source[from..from + c * size]);
                        continue;
                    }
                    for k in 0..c {
                        let (from, to) = (at(region.source, i, j, k), at(region.target, i, j, k));
                        out[to..to + size].copy_from_slice(&source[from..from + size]);
                    }
                }
            }
        }
        Ok(())
    }
}
