//! What several operators need: kernels of this machine, axes, strided loops.

use half::f16;
use mnnq_kernels::KernelSet;
use mnnq_kernels::cpu::IsaLevel;
use smallvec::SmallVec;

use super::error::{OpError, OpResult};
use crate::runtime::parallel::Parallel;
use crate::tensor::{DType, Layout, MAX_RANK, Shape, TensorDesc};

/// Elements that one task of an element-wise loop works on: a few pages, well inside the first cache level.
pub(crate) const CHUNK: usize = 4096;

/// The kernels of this machine. Sessions have checked that the choice is valid.
pub(crate) fn kernels() -> &'static KernelSet {
    static LOWEST: std::sync::OnceLock<KernelSet> = std::sync::OnceLock::new();
    KernelSet::get().unwrap_or_else(|_| LOWEST.get_or_init(|| KernelSet::at_most(IsaLevel::Baseline)))
}

/// The axis as a position; negative axes count from the end.
pub(crate) fn axis(axis: i64, rank: usize) -> OpResult<usize> {
    let signed = rank as i64;
    let position = if axis < 0 { axis + signed } else { axis };
    if (0..signed).contains(&position) { Ok(position as usize) } else { Err(OpError::Axis { axis, rank }) }
}

/// The axes as positions, ascending, each once.
pub(crate) fn axes(list: &[i64], rank: usize) -> OpResult<SmallVec<[usize; MAX_RANK]>> {
    let mut found: SmallVec<[usize; MAX_RANK]> =
        list.iter().map(|&a| axis(a, rank)).collect::<OpResult<_>>()?;
    found.sort_unstable();
    found.dedup();
    Ok(found)
}

/// The i32 vector of a field as i64.
pub(crate) fn ints(numbers: Option<&mnnq_format::Numbers>) -> Option<Vec<i64>> {
    numbers.and_then(|n| n.as_i32().map(|n| n.iter().map(|&v| i64::from(v)).collect()))
}

/// The f32 vector of a field; empty if absent.
pub(crate) fn floats(numbers: Option<&mnnq_format::Numbers>) -> Vec<f32> {
    numbers.and_then(|n| n.as_f32().map(|n| n.into_owned())).unwrap_or_default()
}

/// Strides of an operand for a loop over `out` in memory order, 0 along axes it is stretched over.
pub(crate) fn broadcast_strides(operand: &TensorDesc, out: &TensorDesc) -> [usize; MAX_RANK] {
    let rank = out.shape.rank();
    let lead = rank - operand.shape.rank().min(rank);
    let own = operand.layout.strides(&operand.shape);
    let order = out.layout.order(rank);
    let mut strides = [0; MAX_RANK];
    for (slot, &axis) in strides.iter_mut().zip(&order).take(rank) {
        if axis >= lead && operand.shape[axis - lead] != 1 {
            *slot = own[axis - lead];
        }
    }
    strides
}

/// A loop nest over a row-major output of `dims` with `N` operands at other strides. Neighbouring axes along which
/// all operands run on are merged, so that the innermost loop is as long as it can be.
#[derive(Debug, Clone)]
pub(crate) struct Nest<const N: usize> {
    /// Lengths, outermost first; the last one is the row.
    pub(crate) dims: SmallVec<[usize; MAX_RANK]>,
    /// Per axis, the stride of each operand.
    pub(crate) strides: SmallVec<[[isize; N]; MAX_RANK]>,
}

impl<const N: usize> Nest<N> {
    /// A nest; `strides[n][axis]`.
    pub(crate) fn new(dims: &[usize], strides: [&[isize]; N]) -> Self {
        let mut nest = Self { dims: SmallVec::new(), strides: SmallVec::new() };
        for (axis, &length) in dims.iter().enumerate() {
            if length == 1 {
                continue;
            }
            let steps: [isize; N] = std::array::from_fn(|n| strides[n][axis]);
            let merges = nest.strides.last().is_some_and(|last| {
                last.iter().zip(&steps).all(|(&outer, &inner)| outer == inner * length as isize)
            });
            match (merges, nest.dims.last_mut(), nest.strides.last_mut()) {
                (true, Some(last), Some(outer)) => {
                    *last *= length;
                    *outer = steps;
                }
                _ => {
                    nest.dims.push(length);
                    nest.strides.push(steps);
                }
            }
        }
        if nest.dims.is_empty() {
            nest.dims.push(1);
            nest.strides.push([0; N]);
        }
        nest
    }

    /// Length of a row.
    pub(crate) fn row(&self) -> usize {
        self.dims.last().copied().unwrap_or(1)
    }

    /// Strides inside a row.
    pub(crate) fn inner(&self) -> [isize; N] {
        self.strides.last().copied().unwrap_or([0; N])
    }

    /// Calls `visit(position in the output, operand offsets, length)` for the pieces of rows that lie in
    /// `start..start + len` of the output.
    pub(crate) fn rows(&self, start: usize, len: usize, mut visit: impl FnMut(usize, [isize; N], usize)) {
        let row = self.row();
        if len == 0 || row == 0 {
            return;
        }
        let (outer, inner) = (self.dims.len() - 1, self.inner());
        let mut index = [0_usize; MAX_RANK];
        let mut rest = start / row;
        let mut offset = [0_isize; N];
        for axis in (0..outer).rev() {
            index[axis] = rest % self.dims[axis];
            rest /= self.dims[axis];
            for (o, s) in offset.iter_mut().zip(self.strides[axis]) {
                *o += s * index[axis] as isize;
            }
        }
        let (mut at, end) = (start, start + len);
        while at < end {
            let skip = at % row;
            let piece = (row - skip).min(end - at);
            let mut here = offset;
            for (o, s) in here.iter_mut().zip(inner) {
                *o += s * skip as isize;
            }
            visit(at, here, piece);
            at += piece;
            for axis in (0..outer).rev() {
                index[axis] += 1;
                let steps = self.strides[axis];
                if index[axis] < self.dims[axis] {
                    offset.iter_mut().zip(steps).for_each(|(o, s)| *o += s);
                    break;
                }
                index[axis] = 0;
                let back = (self.dims[axis] - 1) as isize;
                offset.iter_mut().zip(steps).for_each(|(o, s)| *o -= s * back);
            }
        }
    }
}

/// Copies elements to a row-major output from any strides (also 0 and negative).
#[derive(Debug, Clone)]
pub(crate) struct StridedCopy {
    nest: Nest<1>,
    /// Position of the first element in the source.
    start: isize,
}

impl StridedCopy {
    /// Output of shape `dims`; source element of output index `i`: `start + sum(i[a] * strides[a])`.
    pub(crate) fn new(dims: &[usize], strides: &[isize], start: isize) -> Self {
        Self { nest: Nest::new(dims, [strides]), start }
    }

    /// Copies elements of `size` bytes.
    pub(crate) fn run(&self, size: usize, source: &[u8], target: &mut [u8], parallel: &Parallel) {
        if target.is_empty() {
            return;
        }
        match size {
            4 => self.copy::<u32>(bytemuck::cast_slice(source), bytemuck::cast_slice_mut(target), parallel),
            2 => self.copy::<u16>(bytemuck::cast_slice(source), bytemuck::cast_slice_mut(target), parallel),
            _ => self.copy::<u8>(source, target, parallel),
        }
    }

    fn copy<T: Copy + Send + Sync>(&self, source: &[T], target: &mut [T], parallel: &Parallel) {
        let row = self.nest.row();
        let chunk = (4 * CHUNK).div_ceil(row).max(1) * row;
        let step = self.nest.inner()[0];
        let outer = self.nest.dims.len() - 1;
        if step != 1 && outer > 0 && self.nest.strides[outer - 1][0] == 1 {
            let rows = self.nest.dims[outer - 1];
            let chunk = (4 * CHUNK).div_ceil(row).clamp(1, rows.max(1)) * row;
            if rows.is_multiple_of(chunk / row) || outer == 1 {
                parallel
                    .for_each_chunk(target, chunk, |index, out| self.transpose(source, index * chunk, out));
                return;
            }
            parallel.for_each_chunk(target, rows * row, |index, out| {
                self.transpose(source, index * rows * row, out);
            });
            return;
        }
        parallel.for_each_chunk(target, chunk, |index, out| {
            let first = index * chunk;
            self.nest.rows(first, out.len(), |at, [offset], len| {
                let out = &mut out[at - first..][..len];
                let from = self.start + offset;
                match step {
                    1 => out.copy_from_slice(&source[from as usize..][..len]),
                    0 => out.fill(source[from as usize]),
                    _ => {
                        let mut from = from;
                        for value in out {
                            *value = source[from as usize];
                            from += step;
                        }
                    }
                }
            });
        });
    }

    /// Copies whole rows that are columns of the source, in square blocks.
    fn transpose<T: Copy>(&self, source: &[T], first: usize, out: &mut [T]) {
        const BLOCK: usize = 16;
        let row = self.nest.row();
        let step = self.nest.inner()[0];
        let mut origin = 0;
        self.nest.rows(first, 1, |_, [offset], _| origin = self.start + offset);
        let rows = out.len() / row;
        match (row, usize::try_from(origin), usize::try_from(step)) {
            (2, Ok(origin), Ok(step)) => return interleave::<T, 2>(&source[origin..], step, out),
            (3, Ok(origin), Ok(step)) => return interleave::<T, 3>(&source[origin..], step, out),
            (4, Ok(origin), Ok(step)) => return interleave::<T, 4>(&source[origin..], step, out),
            _ => {}
        }
        for r0 in (0..rows).step_by(BLOCK) {
            for c0 in (0..row).step_by(BLOCK) {
                for r in r0..(r0 + BLOCK).min(rows) {
                    let line = &mut out[r * row..][..row];
                    for (c, value) in line.iter_mut().enumerate().take((c0 + BLOCK).min(row)).skip(c0) {
                        *value = source[(origin + r as isize + c as isize * step) as usize];
                    }
                }
            }
        }
    }
}

/// `R` planes, `step` elements apart, to `R` neighbouring values per element of a plane.
fn interleave<T: Copy, const R: usize>(source: &[T], step: usize, out: &mut [T]) {
    let (pixels, _) = out.as_chunks_mut::<R>();
    let planes: [&[T]; R] = std::array::from_fn(|r| &source[r * step..][..pixels.len()]);
    for (index, pixel) in pixels.iter_mut().enumerate() {
        *pixel = std::array::from_fn(|r| planes[r][index]);
    }
}

/// Scratch memory as numbers.
pub(crate) fn typed<T: bytemuck::Pod>(scratch: &mut [u8]) -> &mut [T] {
    if scratch.is_empty() { &mut [] } else { bytemuck::cast_slice_mut(scratch) }
}

/// Strides as signed numbers.
pub(crate) fn signed(strides: &[usize]) -> SmallVec<[isize; MAX_RANK]> {
    strides.iter().map(|&s| s as isize).collect()
}

/// The layout most of the data comes in, for operators that take any: that of the largest input.
pub(crate) fn largest_layout<'a>(inputs: impl Iterator<Item = &'a TensorDesc>) -> Layout {
    inputs
        .max_by_key(|desc| (desc.shape.count(), desc.layout == Layout::ChannelsLast))
        .map_or(Layout::Plain, |d| d.layout)
}

/// Reads one float or integer as f32.
pub(crate) fn scalar_f32(tensor: &crate::tensor::Tensor) -> Option<f32> {
    match tensor.desc().dtype {
        DType::F32 => tensor.data::<f32>().first().copied(),
        DType::F16 => tensor.data::<f16>().first().map(|v| v.to_f32()),
        DType::I32 => tensor.data::<i32>().first().map(|&v| v as f32),
        DType::U8 => tensor.data::<u8>().first().map(|&v| v.into()),
        DType::I8 => tensor.data::<i8>().first().map(|&v| v.into()),
    }
}

/// `[outer, axis, inner]` of a row-major shape.
pub(crate) fn split_at_axis(shape: &Shape, axis: usize) -> (usize, usize, usize) {
    (shape.span(0..axis), shape[axis], shape.span(axis + 1..shape.rank()))
}

/// `[outer, axis, inner]` of a shape in memory order, if `axis` is one axis of memory.
pub(crate) fn split_physical(desc: &TensorDesc, axis: usize) -> (usize, usize, usize) {
    let order = desc.layout.order(desc.shape.rank());
    let dims = desc.layout.physical(&desc.shape);
    let rank = desc.shape.rank();
    let position = order[..rank].iter().position(|&a| a == axis).unwrap_or(axis);
    (dims[..position].iter().product(), dims[position], dims[position + 1..rank].iter().product())
}

/// A pointer-free way to hand out columns: calls `work(outer, inner)` ... for each outer index in parallel.
pub(crate) fn for_each_outer<T: Send>(
    parallel: &Parallel,
    data: &mut [T],
    len: usize,
    work: impl Fn(usize, &mut [T]) + Sync + Send,
) {
    if len == 0 {
        return;
    }
    let group = CHUNK.div_ceil(len).max(1);
    parallel.for_each_chunk(data, group * len, |chunk, data| {
        for (index, piece) in data.chunks_mut(len).enumerate() {
            work(chunk * group + index, piece);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn copy(dims: &[usize], strides: &[isize], start: isize, source: &[u8]) -> Vec<u8> {
        let mut out = vec![0; dims.iter().product()];
        StridedCopy::new(dims, strides, start).run(1, source, &mut out, &Parallel::single());
        out
    }

    #[test]
    fn copies_transposed_reversed_and_stretched() {
        let source: Vec<u8> = (0..24).collect();
        assert_eq!(copy(&[3, 2], &[1, 3], 0, &source), [0, 3, 1, 4, 2, 5]);
        assert_eq!(copy(&[4], &[-2], 7, &source), [7, 5, 3, 1]);
        assert_eq!(copy(&[2, 3], &[1, 0], 4, &source), [4, 4, 4, 5, 5, 5]);
        assert_eq!(copy(&[], &[], 9, &source), [9]);
    }

    #[test]
    fn transposes_large_matrices_in_any_split() {
        for (n, rows, columns) in [(1, 700, 37), (3, 1000, 40), (2, 8192, 3), (5, 17, 300)] {
            let source: Vec<u8> = (0..n * rows * columns).map(|i| (i * 7 % 251) as u8).collect();
            let (r, c) = (rows as isize, columns as isize);
            let got = copy(&[n, rows, columns], &[r * c, 1, r], 0, &source);
            for b in 0..n {
                for i in 0..rows {
                    for j in 0..columns {
                        let want = source[b * rows * columns + j * rows + i];
                        assert_eq!(got[b * rows * columns + i * columns + j], want, "{b} {i} {j}");
                    }
                }
            }
        }
    }

    #[test]
    fn nests_merge_axes_that_run_on() {
        let nest = Nest::new(&[2, 3, 4], [&[12, 4, 1], &[0, 0, 1]]);
        assert_eq!(nest.dims[..], [6, 4]);
        let nest = Nest::new(&[2, 1, 4], [&[4, 9, 1]]);
        assert_eq!(nest.dims[..], [8]);
    }

    #[test]
    fn axes_count_from_both_ends() {
        assert_eq!((axis(-1, 3).unwrap(), axis(2, 3).unwrap()), (2, 2));
        assert!(axis(3, 3).is_err() && axis(-4, 3).is_err() && axis(0, 0).is_err());
    }
}
