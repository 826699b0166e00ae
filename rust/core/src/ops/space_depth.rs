//! `DepthToSpace`, `SpaceToDepth`.

use mnnq_format::schema::{DepthToSpaceMode, OpType, TableKind, depth_space_param};

use super::error::{OpError, OpResult};
use super::operator::{Facts, InferResult, Kernel, Layouts, Operator, PrepareContext};
use super::permute::CopyKernel;
use super::registry::OpSource;
use super::support::StridedCopy;
use crate::tensor::{Layout, Shape, TensorDesc};

/// `DepthToSpace(b)`: `[N, C b b, H, W]` to `[N, C, H b, W b]`; `SpaceToDepth(b)` the other way. In mode DCR channel
/// `(i b + j) C + c` is pixel `(i, j)` of a block, in mode CRD channel `(c b + i) b + j`.
pub(super) struct SpaceDepth {
    block: usize,
    crd: bool,
    to_space: bool,
}

impl SpaceDepth {
    pub(super) fn new(source: &OpSource<'_>) -> OpResult<Self> {
        source.expect_outputs(1)?;
        let table = source.param(TableKind::DepthSpaceParam)?;
        let block = table.get(depth_space_param::BLOCK_SIZE);
        let crd = match table.get(depth_space_param::MODE) {
            DepthToSpaceMode::DCR => false,
            DepthToSpaceMode::CRD => true,
            other => return Err(OpError::attribute("mode", other, "DCR or CRD")),
        };
        let block = usize::try_from(block)
            .ok()
            .filter(|&b| (1..=1 << 16).contains(&b))
            .ok_or_else(|| OpError::attribute("blockSize", block, "1 or more"))?;
        Ok(Self { block, crd, to_space: source.op_type == OpType::DepthToSpace })
    }
}

impl Operator for SpaceDepth {
    fn infer(&self, inputs: &Facts<'_>) -> InferResult {
        let desc = inputs.desc(0)?;
        let &[n, c, h, w] = desc.shape.dims() else {
            return Err(OpError::shape(0, desc.shape, "[N, C, H, W]").into());
        };
        let b = self.block;
        let dims = if self.to_space && c % (b * b) == 0 {
            [n, c / (b * b), h * b, w * b]
        } else if !self.to_space && h % b == 0 && w % b == 0 {
            [n, c * b * b, h / b, w / b]
        } else {
            return Err(OpError::shape(0, desc.shape, format!("a multiple of block size {b}")).into());
        };
        Ok(vec![desc.with_shape(Shape::new(&dims)?)])
    }

    fn layouts(&self, inputs: &Facts<'_>, outputs: &[TensorDesc]) -> Layouts {
        Layouts::follow(inputs, outputs.len())
    }

    fn prepare(&self, context: &PrepareContext<'_>) -> OpResult<Box<dyn Kernel>> {
        let (desc, out) = (context.inputs.desc(0)?, context.outputs[0]);
        // The tensor with depth, as [N, C, b, b, H, W] in the order of its channels: strides of the six axes.
        let (deep, space) = if self.to_space { (desc, out) } else { (out, desc) };
        let b = self.block;
        let (n, c) = (space.shape[0], space.shape[1]);
        let (h, w) = (deep.shape[2], deep.shape[3]);
        let s = deep.layout.strides(&deep.shape).map(|s| s as isize);
        let (bi, ci) = (b as isize, c as isize);
        let deep_strides = if self.crd {
            [s[0], s[1] * bi * bi, s[1] * bi, s[1], s[2], s[3]]
        } else {
            [s[0], s[1], s[1] * bi * ci, s[1] * ci, s[2], s[3]]
        };
        let t = space.layout.strides(&space.shape).map(|s| s as isize);
        let space_strides = [t[0], t[1], t[2], t[3], t[2] * bi, t[3] * bi];
        let dims = [n, c, b, b, h, w];
        let (source, target) =
            if self.to_space { (deep_strides, space_strides) } else { (space_strides, deep_strides) };
        // Axes in the memory order of the output; axes of length 1 do not matter.
        let mut order: Vec<usize> = (0..6).collect();
        order.sort_by_key(|&axis| (std::cmp::Reverse(target[axis]), axis));
        let ordered: Vec<usize> = order.iter().map(|&axis| dims[axis]).collect();
        let strides: Vec<isize> = order.iter().map(|&axis| source[axis]).collect();
        debug_assert!(out.layout == desc.layout || Layout::same_bytes(&out.shape));
        let label = if self.to_space { "depth to space" } else { "space to depth" };
        let copy = StridedCopy::new(&ordered, &strides, 0);
        Ok(Box::new(CopyKernel { copy, size: desc.dtype.size(), label }))
    }
}
