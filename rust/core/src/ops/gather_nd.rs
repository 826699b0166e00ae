//! Picking elements by tensors of positions: `GatherElements`, `GatherND`.

use std::borrow::Cow;

use mnnq_format::schema::{TableKind, axis as axis_param};
use smallvec::SmallVec;

use super::error::{OpError, OpResult};
use super::operator::{Facts, InferResult, Kernel, Operator, PrepareContext, StepIo};
use super::registry::OpSource;
use super::support::{CHUNK, Nest, axis, for_each_outer, signed};
use crate::runtime::parallel::Parallel;
use crate::tensor::{DType, MAX_RANK, Shape, TensorDesc};

/// The position an index means; negative ones count from the end.
pub(super) fn position(index: i32, length: usize) -> Option<usize> {
    let (index, length) = (i64::from(index), length as i64);
    let wrapped = if index < 0 { index + length } else { index };
    (0..length).contains(&wrapped).then_some(wrapped as usize)
}

/// Checks all indices of one axis.
pub(super) fn check_indices(input: usize, indices: &[i32], length: usize) -> OpResult<()> {
    match indices.iter().find(|&&index| position(index, length).is_none()) {
        Some(bad) => Err(OpError::value(input, format!("index {bad} of an axis of {length}"))),
        None => Ok(()),
    }
}

/// The axis an operator gets as an optional input.
pub(super) fn axis_input(inputs: &Facts<'_>, input: usize, default: i64, rank: usize) -> InferResult<usize> {
    let listed = match inputs.get(input) {
        Some(_) => inputs.integers(input)?.first().copied(),
        None => Some(default),
    };
    let listed = listed.ok_or_else(|| OpError::value(input, "no axis in an empty tensor"))?;
    Ok(axis(listed, rank)?)
}

/// `GatherElements(data, indices[, axis])`: `out[.., i, ..] = data[.., indices[.., i, ..], ..]`, of the shape of the
/// indices, which may be shorter than the data along the other axes. The axis is 0 if absent. Negative indices count
/// from the end, as in ONNX; MNN's runtime reads out of bounds.
pub(super) struct GatherElements;

impl GatherElements {
    pub(super) fn new(source: &OpSource<'_>) -> OpResult<Self> {
        source.expect_outputs(1)?;
        Ok(Self)
    }
}

impl Operator for GatherElements {
    fn infer(&self, inputs: &Facts<'_>) -> InferResult {
        let data = inputs.desc(0)?;
        let indices = inputs.typed(1, DType::I32)?;
        let along = axis_input(inputs, 2, 0, data.shape.rank())?;
        check_elements(&data.shape, &indices.shape, along, 1)?;
        Ok(vec![TensorDesc::new(data.dtype, indices.shape)])
    }

    fn prepare(&self, context: &PrepareContext<'_>) -> OpResult<Box<dyn Kernel>> {
        let (data, indices) = (context.inputs.desc(0)?, context.inputs.desc(1)?);
        let along = axis_input(&context.inputs, 2, 0, data.shape.rank())
            .map_err(|_| OpError::unsupported("an axis that is not known"))?;
        let lines = Lines::new(&data.shape, &indices.shape, along);
        Ok(Box::new(ElementsKernel { lines, size: data.dtype.size() }))
    }
}

/// Checks that positions along `along` can be given for `shape` by a tensor of shape `indices`.
pub(super) fn check_elements(shape: &Shape, indices: &Shape, along: usize, input: usize) -> OpResult<()> {
    let fits = indices.rank() == shape.rank()
        && indices.iter().zip(shape.iter()).enumerate().all(|(i, (a, b))| i == along || a <= b);
    if !fits {
        let wanted = format!("at most {shape} except along axis {along}");
        return Err(OpError::shape(input, *indices, wanted));
    }
    Ok(())
}

/// Walks over a tensor of positions along one axis of another tensor.
pub(super) struct Lines {
    /// Offsets in the other tensor, the axis apart.
    nest: Nest<1>,
    /// Length of the axis.
    pub(super) length: usize,
    /// Stride of the axis.
    stride: usize,
}

impl Lines {
    pub(super) fn new(shape: &Shape, indices: &Shape, along: usize) -> Self {
        let own = shape.strides();
        let mut strides = signed(&own[..shape.rank()]);
        strides[along] = 0;
        Self { nest: Nest::new(indices.dims(), [&strides]), length: shape[along], stride: own[along] }
    }

    /// Calls `visit(number of the index, offset of the element)` for `indices`, which are number `start` and on and
    /// have been checked.
    pub(super) fn visit(&self, start: usize, indices: &[i32], mut visit: impl FnMut(usize, usize)) {
        let [step] = self.nest.inner();
        self.nest.rows(start, indices.len(), |at, [offset], len| {
            for (i, &index) in indices[at - start..][..len].iter().enumerate() {
                let here = position(index, self.length).unwrap_or(0) * self.stride;
                visit(at + i, (offset + i as isize * step) as usize + here);
            }
        });
    }
}

struct ElementsKernel {
    lines: Lines,
    size: usize,
}

impl ElementsKernel {
    fn gather<T: bytemuck::Pod + Send + Sync>(
        &self,
        data: &[u8],
        indices: &[i32],
        out: &mut [u8],
        parallel: &Parallel,
    ) {
        let data: &[T] = bytemuck::cast_slice(data);
        parallel.for_each_chunk(bytemuck::cast_slice_mut::<u8, T>(out), CHUNK, |chunk, out| {
            let first = chunk * CHUNK;
            self.lines.visit(first, &indices[first..][..out.len()], |at, from| out[at - first] = data[from]);
        });
    }
}

impl Kernel for ElementsKernel {
    fn label(&self) -> Cow<'static, str> {
        "gather elements".into()
    }

    fn run(&self, io: &mut StepIo<'_, '_>) -> OpResult<()> {
        let (data, indices) = (io.input(0).bytes(), io.input(1).data::<i32>());
        check_indices(1, indices, self.lines.length)?;
        if indices.is_empty() {
            return Ok(());
        }
        let parallel = io.parallel;
        let out = io.outputs[0].bytes();
        match self.size {
            4 => self.gather::<u32>(data, indices, out, parallel),
            2 => self.gather::<u16>(data, indices, out, parallel),
            _ => self.gather::<u8>(data, indices, out, parallel),
        }
        Ok(())
    }
}

/// Slices of a tensor chosen by tuples of indices of its first axes.
#[derive(Debug, Clone)]
pub(super) struct Tuples {
    /// Lengths of the first axes.
    sizes: SmallVec<[usize; MAX_RANK]>,
    /// Elements of a slice.
    pub(super) slice: usize,
}

impl Tuples {
    /// Tuples `indices[.., depth]` into `shape`; `input` is the position of the indices.
    pub(super) fn new(shape: &Shape, indices: &Shape, input: usize) -> OpResult<Self> {
        match indices.dims().last() {
            Some(&depth) if depth <= shape.rank() => Ok(Self {
                sizes: SmallVec::from_slice(&shape.dims()[..depth]),
                slice: shape.span(depth..shape.rank()),
            }),
            _ => Err(OpError::shape(
                input,
                *indices,
                format!("[.., depth] with a depth of at most {}", shape.rank()),
            )),
        }
    }

    /// Length of a tuple.
    pub(super) fn depth(&self) -> usize {
        self.sizes.len()
    }

    /// Number of the slice that a tuple chooses.
    pub(super) fn find(&self, tuple: &[i32]) -> Option<usize> {
        let mut number = 0;
        for (&index, &size) in tuple.iter().zip(&self.sizes) {
            number = number * size + position(index, size)?;
        }
        Some(number)
    }

    /// Checks all tuples.
    pub(super) fn check(&self, input: usize, indices: &[i32]) -> OpResult<()> {
        let depth = self.depth().max(1);
        match indices.chunks(depth).find(|tuple| self.find(tuple).is_none()) {
            Some(bad) => Err(OpError::value(input, format!("indices {bad:?} of axes {:?}", &self.sizes[..]))),
            None => Ok(()),
        }
    }
}

/// `GatherND(data, indices)`: the slices `data[indices[i.., :]]`. Negative indices count from the end. With `axis = b`
/// the first `b` axes are batch axes; files then hold tuples of one index, which counts over the batch axes and the
/// following one together.
pub(super) struct GatherNd {
    batch: usize,
}

impl GatherNd {
    pub(super) fn new(source: &OpSource<'_>) -> OpResult<Self> {
        source.expect_outputs(1)?;
        let batch = match source.main.filter(|table| table.kind() == TableKind::Axis) {
            Some(table) => table.get(axis_param::AXIS),
            None => 0,
        };
        let count = usize::try_from(batch).ok().filter(|&batch| batch < MAX_RANK);
        Ok(Self { batch: count.ok_or_else(|| OpError::attribute("axis", batch, "0 or more"))? })
    }

    /// The tuples, and the axes of the data that a tuple stands for.
    fn tuples(&self, data: &Shape, indices: &Shape) -> OpResult<(Tuples, usize)> {
        if self.batch == 0 {
            let tuples = Tuples::new(data, indices, 1)?;
            let depth = tuples.depth();
            return Ok((tuples, depth));
        }
        let axes = self.batch + 1;
        if axes > data.rank() {
            return Err(OpError::shape(0, *data, format!("at least {axes} axes")));
        }
        if indices.last() != Some(&1) {
            return Err(OpError::shape(1, *indices, "[.., 1], as there are batch axes"));
        }
        let mut dims = vec![data.span(0..axes)];
        dims.extend(&data.dims()[axes..]);
        Ok((Tuples::new(&Shape::new(&dims)?, indices, 1)?, axes))
    }
}

impl Operator for GatherNd {
    fn infer(&self, inputs: &Facts<'_>) -> InferResult {
        let data = inputs.desc(0)?;
        let indices = inputs.typed(1, DType::I32)?;
        let (_, axes) = self.tuples(&data.shape, &indices.shape)?;
        let mut dims = indices.shape.dims()[..indices.shape.rank() - 1].to_vec();
        dims.extend(&data.shape.dims()[axes..]);
        Ok(vec![TensorDesc::new(data.dtype, Shape::new(&dims)?)])
    }

    fn prepare(&self, context: &PrepareContext<'_>) -> OpResult<Box<dyn Kernel>> {
        let data = context.inputs.desc(0)?;
        let (tuples, _) = self.tuples(&data.shape, &context.inputs.shape(1)?)?;
        Ok(Box::new(GatherNdKernel { row: tuples.slice * data.dtype.size(), tuples }))
    }
}

struct GatherNdKernel {
    tuples: Tuples,
    /// Bytes of a slice.
    row: usize,
}

impl Kernel for GatherNdKernel {
    fn label(&self) -> Cow<'static, str> {
        "gather nd".into()
    }

    fn run(&self, io: &mut StepIo<'_, '_>) -> OpResult<()> {
        let (data, indices) = (io.input(0).bytes(), io.input(1).data::<i32>());
        self.tuples.check(1, indices)?;
        let (depth, row) = (self.tuples.depth(), self.row);
        for_each_outer(io.parallel, io.outputs[0].bytes(), row, |at, out| {
            let number = self.tuples.find(&indices[at * depth..][..depth]).unwrap_or(0);
            out.copy_from_slice(&data[number * row..][..row]);
        });
        Ok(())
    }
}
