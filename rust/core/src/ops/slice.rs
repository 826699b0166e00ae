//! Parts of tensors: `SliceTf`, `StridedSlice`, `Slice` (split), `Unpack`, `Reverse`.

use mnnq_format::schema::{NetSource, TableKind, axis as axis_param, pack_param, slice, strided_slice_param};
use smallvec::SmallVec;

use super::error::{OpError, OpResult};
use super::operator::{Alias, Facts, InferResult, Kernel, Layouts, Operator, PrepareContext, StepIo};
use super::permute::CopyKernel;
use super::registry::OpSource;
use super::support::{StridedCopy, axis, ints, signed, split_physical};
use crate::tensor::{MAX_RANK, Shape, TensorDesc};

/// Which elements of an axis are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Taken {
    begin: i64,
    step: i64,
    count: usize,
}

impl Taken {
    fn all(length: usize) -> Self {
        Self { begin: 0, step: 1, count: length }
    }

    /// `begin..end` in steps: negative bounds count from the end once, then both are clamped to the axis.
    fn clamped(length: usize, begin: i64, end: i64, step: i64) -> Self {
        let n = length as i64;
        let wrap = |v: i64| if v < 0 { v.saturating_add(n) } else { v };
        let (lo, hi) = if step > 0 { (0, n) } else { (-1, n - 1) };
        let begin = wrap(begin).clamp(lo, hi);
        // For negative steps an end far below zero means "past the first element".
        let end = wrap(end).clamp(lo, hi);
        let distance = if step > 0 { end - begin } else { begin - end };
        let count = if distance <= 0 { 0 } else { (distance as u64).div_ceil(step.unsigned_abs()) as usize };
        Self { begin, step, count }
    }
}

/// What is taken of each input axis, and the axes of the result.
#[derive(Debug, Clone, PartialEq)]
struct Selection {
    taken: SmallVec<[Taken; MAX_RANK]>,
    shape: Shape,
}

/// How the bounds are given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// begin and size per axis; size -1: to the end.
    Tf,
    /// starts, ends, [axes], [steps] as in ONNX.
    Onnx,
    /// begin, end, [strides] with bit masks as in TensorFlow.
    Masks { begin: i32, end: i32, shrink: i32, new_axis: i32, ellipsis: i32 },
}

/// `SliceTf` and `StridedSlice`.
pub(super) struct Slice {
    form: Form,
}

impl Slice {
    /// `SliceTf(begin, size)`.
    pub(super) fn tf(source: &OpSource<'_>) -> OpResult<Self> {
        source.expect_outputs(1)?;
        Ok(Self { form: Form::Tf })
    }

    /// `StridedSlice`, ONNX form (fromType 1) or TensorFlow's (0).
    pub(super) fn strided(source: &OpSource<'_>) -> OpResult<Self> {
        source.expect_outputs(1)?;
        let table = source.param(TableKind::StridedSliceParam)?;
        let form = match table.get(strided_slice_param::FROM_TYPE) {
            1 => Form::Onnx,
            0 => Form::Masks {
                begin: table.get(strided_slice_param::BEGIN_MASK),
                end: table.get(strided_slice_param::END_MASK),
                shrink: table.get(strided_slice_param::SHRINK_AXIS_MASK),
                new_axis: table.get(strided_slice_param::NEW_AXIS_MASK),
                ellipsis: table.get(strided_slice_param::ELLIPSIS_MASK),
            },
            other => return Err(OpError::attribute("fromType", other, "0 or 1")),
        };
        if source.inputs > 4 && form != Form::Onnx {
            return Err(OpError::unsupported("a fifth input"));
        }
        Ok(Self { form })
    }

    fn select(&self, inputs: &Facts<'_>) -> InferResult<Selection> {
        let input = inputs.shape(0)?;
        match self.form {
            Form::Tf => Self::select_tf(inputs, input),
            Form::Onnx => Self::select_onnx(inputs, input),
            Form::Masks { begin, end, shrink, new_axis, ellipsis } => {
                Self::select_masks(inputs, input, [begin, end, shrink, new_axis, ellipsis])
            }
        }
    }

    fn select_tf(inputs: &Facts<'_>, input: Shape) -> InferResult<Selection> {
        let (begin, size) = (inputs.integers(1)?, inputs.integers(2)?);
        if begin.len() != input.rank() || size.len() != input.rank() {
            let problem = format!("{} begins and {} sizes for {input}", begin.len(), size.len());
            return Err(OpError::value(1, problem).into());
        }
        let mut taken = SmallVec::new();
        for ((&length, &begin), &size) in input.iter().zip(&begin).zip(&size) {
            let n = length as i64;
            let begin = if begin < 0 { begin + n } else { begin };
            let count = if size < 0 { n - begin } else { size };
            if begin < 0 || count < 0 || begin.saturating_add(count) > n {
                return Err(OpError::value(1, format!("{count} elements from {begin} of {length}")).into());
            }
            taken.push(Taken { begin, step: 1, count: count as usize });
        }
        Selection::same_axes(taken)
    }

    fn select_onnx(inputs: &Facts<'_>, input: Shape) -> InferResult<Selection> {
        let (begin, end) = (inputs.integers(1)?, inputs.integers(2)?);
        let listed = match inputs.get(3) {
            Some(_) => inputs.integers(3)?,
            None => (0..begin.len() as i64).collect(),
        };
        let steps = match inputs.get(4) {
            Some(_) => inputs.integers(4)?,
            None => vec![1; begin.len()],
        };
        if begin.len() != end.len() || begin.len() != listed.len() || begin.len() != steps.len() {
            return Err(OpError::value(1, "starts, ends, axes and steps differ in length").into());
        }
        let mut taken: SmallVec<[Taken; MAX_RANK]> = input.iter().map(|&d| Taken::all(d)).collect();
        for (((&begin, &end), &a), &step) in begin.iter().zip(&end).zip(&listed).zip(&steps) {
            let a = axis(a, input.rank())?;
            if step == 0 {
                return Err(OpError::value(4, "a step is 0").into());
            }
            taken[a] = Taken::clamped(input[a], begin, end, step);
        }
        Selection::same_axes(taken)
    }

    fn select_masks(inputs: &Facts<'_>, input: Shape, masks: [i32; 5]) -> InferResult<Selection> {
        let [begin_mask, end_mask, shrink, new_axis, ellipsis] = masks;
        let (begin, end) = (inputs.integers(1)?, inputs.integers(2)?);
        let steps = match inputs.get(3) {
            Some(_) => inputs.integers(3)?,
            None => vec![1; begin.len()],
        };
        if begin.len() != end.len() || begin.len() != steps.len() || begin.len() > 31 {
            return Err(OpError::value(1, "begins, ends and strides differ in length").into());
        }
        let bit = |mask: i32, i: usize| mask >> i & 1 == 1;
        let own = (0..begin.len()).filter(|&i| !bit(new_axis, i) && !bit(ellipsis, i)).count();
        let full = input.rank().checked_sub(own).ok_or_else(|| OpError::value(1, "more bounds than axes"))?;
        let mut taken: SmallVec<[Taken; MAX_RANK]> = SmallVec::new();
        let mut dims = Vec::new();
        let mut spread = false;
        for i in 0..begin.len() {
            if bit(ellipsis, i) {
                spread = true;
                for _ in 0..full {
                    dims.push(input[taken.len()]);
                    taken.push(Taken::all(input[taken.len()]));
                }
                continue;
            }
            if bit(new_axis, i) {
                dims.push(1);
                continue;
            }
            let length = input[taken.len()];
            if steps[i] == 0 {
                return Err(OpError::value(3, "a stride is 0").into());
            }
            if bit(shrink, i) {
                let at = if begin[i] < 0 { begin[i] + length as i64 } else { begin[i] };
                if !(0..length as i64).contains(&at) {
                    return Err(
                        OpError::value(1, format!("index {} of an axis of {length}", begin[i])).into()
                    );
                }
                taken.push(Taken { begin: at, step: 1, count: 1 });
                continue;
            }
            let (first, last) = if steps[i] > 0 { (0, i64::MAX) } else { (i64::MAX, i64::MIN / 2) };
            let from = if bit(begin_mask, i) { first } else { begin[i] };
            let to = if bit(end_mask, i) { last } else { end[i] };
            let t = Taken::clamped(length, from, to, steps[i]);
            dims.push(t.count);
            taken.push(t);
        }
        if !spread {
            for &length in &input[taken.len()..] {
                dims.push(length);
                taken.push(Taken::all(length));
            }
        }
        Ok(Selection { taken, shape: Shape::new(&dims)? })
    }
}

impl Selection {
    fn same_axes(taken: SmallVec<[Taken; MAX_RANK]>) -> InferResult<Self> {
        let dims: SmallVec<[usize; MAX_RANK]> = taken.iter().map(|t| t.count).collect();
        Ok(Self { shape: Shape::new(&dims)?, taken })
    }

    /// A copy of what is selected, in the memory order of the input.
    fn copy(&self, desc: &TensorDesc) -> StridedCopy {
        let rank = desc.shape.rank();
        let own = desc.layout.strides(&desc.shape);
        let order = desc.layout.order(rank);
        let dims: SmallVec<[usize; MAX_RANK]> = order[..rank].iter().map(|&a| self.taken[a].count).collect();
        let strides: SmallVec<[isize; MAX_RANK]> =
            order[..rank].iter().map(|&a| own[a] as isize * self.taken[a].step as isize).collect();
        let start = (0..rank).map(|a| self.taken[a].begin as isize * own[a] as isize).sum();
        StridedCopy::new(&dims, &strides, start)
    }

    /// The first element, if the selection is one run of the input's memory.
    fn run(&self, desc: &TensorDesc) -> Option<usize> {
        let rank = desc.shape.rank();
        let own = desc.layout.strides(&desc.shape);
        let order = desc.layout.order(rank);
        let mut inner_full = true;
        let mut start = 0;
        for &a in order[..rank].iter().rev() {
            let t = self.taken[a];
            let full = t == Taken::all(desc.shape[a]);
            if !full {
                if t.step != 1 || !inner_full && t.count != 1 {
                    return None;
                }
                start += t.begin as usize * own[a];
                inner_full = false;
            } else if !inner_full && desc.shape[a] != 1 {
                return None;
            }
        }
        Some(start)
    }
}

impl Operator for Slice {
    fn infer(&self, inputs: &Facts<'_>) -> InferResult {
        let desc = inputs.desc(0)?;
        Ok(vec![desc.with_shape(self.select(inputs)?.shape)])
    }

    fn layouts(&self, inputs: &Facts<'_>, outputs: &[TensorDesc]) -> Layouts {
        let same_rank = inputs.get(0).is_some_and(|f| f.desc.shape.rank() == outputs[0].shape.rank());
        let axes_kept = match self.form {
            Form::Masks { shrink, new_axis, .. } => shrink == 0 && new_axis == 0,
            _ => true,
        };
        if same_rank && axes_kept {
            Layouts::follow(inputs, outputs.len())
        } else {
            Layouts::plain(inputs.len(), outputs.len())
        }
    }

    fn alias(&self, inputs: &Facts<'_>, outputs: &[TensorDesc]) -> Option<SmallVec<[Alias; 2]>> {
        let desc = inputs.get(0)?.desc;
        if outputs.first()?.shape.count() == 0 {
            return None;
        }
        let offset = self.select(inputs).ok()?.run(&desc)?;
        Some(smallvec::smallvec![Alias { input: 0, offset }])
    }

    fn prepare(&self, context: &PrepareContext<'_>) -> OpResult<Box<dyn Kernel>> {
        let desc = context.inputs.desc(0)?;
        let selection =
            self.select(&context.inputs).map_err(|_| OpError::unsupported("bounds that are not known"))?;
        Ok(Box::new(CopyKernel { copy: selection.copy(&desc), size: desc.dtype.size(), label: "slice" }))
    }
}

/// `Slice` (ONNX `Split`) and `Unpack`: the pieces of input 0 along an axis.
pub(super) struct Split {
    axis: i64,
    outputs: usize,
    points: Vec<i64>,
    source: NetSource,
    /// Pieces of length 1 that lose the axis.
    unpack: bool,
}

impl Split {
    pub(super) fn new(source: &OpSource<'_>) -> OpResult<Self> {
        let table = source.param(TableKind::Slice)?;
        Ok(Self {
            axis: table.get(slice::AXIS).into(),
            outputs: source.outputs,
            points: ints(table.get(slice::SLICE_POINTS)).unwrap_or_default(),
            source: table.get(slice::SOURCE_TYPE),
            unpack: false,
        })
    }

    pub(super) fn unpack(source: &OpSource<'_>) -> OpResult<Self> {
        let axis = match source.main {
            Some(table) if table.kind() == TableKind::Axis => table.get(axis_param::AXIS).into(),
            _ => source.param(TableKind::PackParam)?.get(pack_param::AXIS).into(),
        };
        let outputs = source.outputs;
        Ok(Self { axis, outputs, points: Vec::new(), source: NetSource::ONNX, unpack: true })
    }

    /// Whether it cuts the channels of images.
    pub(super) fn cuts_channels(&self) -> bool {
        !self.unpack && matches!(self.axis, 1 | -3)
    }

    fn sizes(&self, inputs: &Facts<'_>, length: usize) -> InferResult<Vec<usize>> {
        let (n, total) = (self.outputs, length as i64);
        let bad =
            |sizes: &[i64]| OpError::value(1, format!("sizes {sizes:?} of {n} pieces do not fill {length}"));
        let mut sizes: Vec<i64> = if self.unpack {
            vec![1; n]
        } else if inputs.get(1).is_some() {
            inputs.integers(1)?
        } else {
            match (&self.points[..], self.source) {
                ([], _) => equal_parts(total, n),
                (points, NetSource::CAFFE) => {
                    let bounds: Vec<i64> =
                        [0].into_iter().chain(points.iter().copied()).chain([total]).collect();
                    bounds.windows(2).map(|w| w[1] - w[0]).collect()
                }
                ([_], NetSource::TENSORFLOW) => equal_parts(total, n),
                (&[size], _) if n > 1 => {
                    let size = size.max(1);
                    (0..n as i64).map(|i| (total - i * size).clamp(0, size)).collect()
                }
                (points, _) => points.to_vec(),
            }
        };
        if let Some(open) = sizes.iter().position(|&s| s == -1) {
            let rest: i64 = sizes.iter().filter(|&&s| s > 0).sum();
            sizes[open] = total - rest;
        }
        if sizes.len() != n || sizes.iter().any(|&s| s < 0) || sizes.iter().sum::<i64>() != total {
            return Err(bad(&sizes).into());
        }
        Ok(sizes.iter().map(|&s| s as usize).collect())
    }
}

/// `n` parts of length `ceil(total / n)`, the last one(s) what remains.
fn equal_parts(total: i64, n: usize) -> Vec<i64> {
    let size = (total + n as i64 - 1) / (n as i64).max(1);
    (0..n as i64).map(|i| (total - i * size).clamp(0, size)).collect()
}

impl Operator for Split {
    fn infer(&self, inputs: &Facts<'_>) -> InferResult {
        let desc = inputs.desc(0)?;
        let position = axis(self.axis, desc.shape.rank())?;
        let sizes = self.sizes(inputs, desc.shape[position])?;
        sizes
            .iter()
            .map(|&size| {
                let mut dims = desc.shape.dims().to_vec();
                if self.unpack {
                    dims.remove(position);
                } else {
                    dims[position] = size;
                }
                Ok(desc.with_shape(Shape::new(&dims)?))
            })
            .collect()
    }

    fn layouts(&self, inputs: &Facts<'_>, outputs: &[TensorDesc]) -> Layouts {
        if self.unpack {
            Layouts::plain(inputs.len(), outputs.len())
        } else {
            Layouts::follow(inputs, outputs.len())
        }
    }

    fn alias(&self, inputs: &Facts<'_>, outputs: &[TensorDesc]) -> Option<SmallVec<[Alias; 2]>> {
        let desc = inputs.get(0)?.desc;
        let position = axis(self.axis, desc.shape.rank()).ok()?;
        let (outer, _, inner) = split_physical(&desc, position);
        if outer != 1 {
            return None;
        }
        let mut offset = 0;
        let mut next = |out: &TensorDesc| {
            let start = offset;
            offset += if self.unpack { inner } else { out.shape[position] * inner };
            Alias { input: 0, offset: start }
        };
        Some(outputs.iter().map(&mut next).collect())
    }

    fn prepare(&self, context: &PrepareContext<'_>) -> OpResult<Box<dyn Kernel>> {
        let desc = context.inputs.desc(0)?;
        let position = axis(self.axis, desc.shape.rank())?;
        let (_, length, inner) = split_physical(&desc, position);
        let size = desc.dtype.size() * inner;
        let pieces =
            context.outputs.iter().map(|out| size * if self.unpack { 1 } else { out.shape[position] });
        Ok(Box::new(SplitKernel { pieces: pieces.collect(), row: size * length }))
    }
}

struct SplitKernel {
    /// Bytes of each output's piece of a row.
    pieces: Vec<usize>,
    row: usize,
}

impl Kernel for SplitKernel {
    fn label(&self) -> std::borrow::Cow<'static, str> {
        "split".into()
    }

    fn run(&self, io: &mut StepIo<'_, '_>) -> OpResult<()> {
        let source = io.input(0).bytes();
        let mut at = 0;
        for (out, &piece) in io.outputs.iter_mut().zip(&self.pieces) {
            if piece > 0 {
                let start = at;
                super::support::for_each_outer(io.parallel, out.bytes(), piece, |index, out| {
                    out.copy_from_slice(&source[index * self.row + start..][..piece]);
                });
            }
            at += piece;
        }
        Ok(())
    }
}

/// `Reverse`: input 0 backwards along the axes in input 1.
pub(super) struct Reverse;

impl Reverse {
    pub(super) fn new(source: &OpSource<'_>) -> OpResult<Self> {
        source.expect_outputs(1)?;
        Ok(Self)
    }
}

impl Operator for Reverse {
    fn infer(&self, inputs: &Facts<'_>) -> InferResult {
        let desc = inputs.desc(0)?;
        super::support::axes(&inputs.integers(1)?, desc.shape.rank())?;
        Ok(vec![desc])
    }

    fn prepare(&self, context: &PrepareContext<'_>) -> OpResult<Box<dyn Kernel>> {
        let desc = context.inputs.desc(0)?;
        let list = context.inputs.integers(1).map_err(|_| OpError::unsupported("axes that are not known"))?;
        let axes = super::support::axes(&list, desc.shape.rank())?;
        let mut strides = signed(&desc.shape.strides()[..desc.shape.rank()]);
        let mut start = 0;
        for &a in axes.iter().filter(|&&a| desc.shape[a] > 0) {
            start += strides[a] * (desc.shape[a] as isize - 1);
            strides[a] = -strides[a];
        }
        let copy = StridedCopy::new(&desc.shape, &strides, start);
        Ok(Box::new(CopyKernel { copy, size: desc.dtype.size(), label: "reverse" }))
    }
}
