//! Commands for tensors of known shapes.

use smallvec::SmallVec;

use super::Buffer;
use super::command::{Access, Action, Command, Fuse};
use crate::ops::epilogue::Epilogue;
use crate::ops::error::{OpError, OpResult};
use crate::ops::operator::{Fact, Facts, InferError, Kernel, Operator, PrepareContext};
use crate::ops::support::{Nest, StridedCopy};
use crate::tensor::{DType, MAX_RANK, Shape, TensorDesc, TensorView};

/// Alignment of the parts of scratch memory.
const ALIGN: usize = 64;

/// Turns the error of a shape rule into one of an operator.
pub(super) fn planning_error(error: InferError) -> OpError {
    match error {
        InferError::Op(error) => error,
        InferError::NeedsValue(_) | InferError::Dynamic => {
            OpError::unsupported("a command whose result has no fixed shape")
        }
    }
}

/// A box of a tensor that moves with the iteration.
pub(super) struct Place {
    pub(super) buffer: Buffer,
    index: Option<usize>,
    step: i64,
    offset: i64,
    /// First and last element of the box, from its start.
    lo: i64,
    hi: i64,
    /// Elements of the tensor.
    count: i64,
}

/// Where the start of a box is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Start {
    /// The whole box is in the tensor; its start.
    Inside(usize),
    /// The start is not in the tensor.
    Outside,
}

impl Place {
    fn new(access: &Access, desc: &TensorDesc, size: [usize; 3], strides: [i64; 3]) -> OpResult<Self> {
        let too_large = || OpError::attribute("stride", format!("{strides:?}"), "a box in memory");
        let (mut lo, mut hi) = (0_i64, 0_i64);
        for (stride, length) in strides.into_iter().zip(size) {
            let reach = i64::try_from(length)
                .ok()
                .and_then(|length| stride.checked_mul(length - 1))
                .ok_or_else(too_large)?;
            let end = if reach < 0 { &mut lo } else { &mut hi };
            *end = end.checked_add(reach).ok_or_else(too_large)?;
        }
        let &Access { buffer, index, step, offset, .. } = access;
        let count = i64::try_from(desc.shape.count()).unwrap_or(i64::MAX);
        Ok(Self { buffer, index, step, offset, lo, hi, count })
    }

    /// The box of iteration `iteration`.
    ///
    /// # Errors
    /// [`OpError::Attribute`] if a part of it is outside of the tensor.
    pub(super) fn locate(&self, iteration: usize, inputs: &[Option<TensorView<'_>>]) -> OpResult<Start> {
        let at = match self.index {
            Some(input) => {
                let indices = inputs.get(input).copied().flatten().ok_or(OpError::MissingInput { input })?;
                let indices = indices.data::<i32>();
                i64::from(*indices.get(iteration).ok_or_else(|| OpError::value(input, "too few indices"))?)
            }
            None => iteration as i64,
        };
        self.start(at)
    }

    /// The box at position `at`, below 2^31 in size as all numbers of the file.
    fn start(&self, at: i64) -> OpResult<Start> {
        let start = at.saturating_mul(self.step).saturating_add(self.offset);
        if start.saturating_add(self.lo) >= 0 && start.saturating_add(self.hi) < self.count {
            return Ok(Start::Inside(start as usize));
        }
        if start >= 0 && start < self.count {
            let got = format!("elements {} to {}", start + self.lo, start.saturating_add(self.hi));
            return Err(OpError::attribute("view", got, format!("below {}", self.count)));
        }
        Ok(Start::Outside)
    }

    /// Checks what does not depend on contents.
    fn check(&self, iterations: usize, inputs: &Facts<'_>) -> OpResult<()> {
        if iterations == 0 {
            return Ok(());
        }
        if let Some(input) = self.index {
            let desc = inputs.typed(input, DType::I32)?;
            if desc.shape.count() < iterations {
                return Err(OpError::shape(input, desc.shape, format!("{iterations} indices")));
            }
            return Ok(());
        }
        for iteration in [0, iterations - 1] {
            if self.start(iteration as i64)? == Start::Outside {
                let got = format!("offset {} and step {}", self.offset, self.step);
                return Err(OpError::attribute("view", got, format!("a box within {} elements", self.count)));
            }
        }
        Ok(())
    }
}

/// How the kernel of a command gets what it reads.
pub(super) enum Feed {
    /// As it lies in memory.
    Direct(TensorDesc),
    /// Copied to scratch memory first, at this byte.
    Gathered { desc: TensorDesc, copy: StridedCopy, at: usize },
}

/// One thing that a command reads.
pub(super) struct Source {
    pub(super) place: Place,
    pub(super) feed: Feed,
}

impl Source {
    /// First byte that a copy may read, from the start of the box.
    pub(super) fn first(&self, start: usize) -> usize {
        (start as i64 + self.place.lo) as usize
    }
}

/// How results get into the target.
pub(super) enum Store {
    /// The kernel writes there.
    Direct,
    /// They are copied, or combined with what is there.
    Scattered { nest: Box<Nest<2>>, fuse: Option<Fuse> },
}

/// A command ready to run.
pub(super) struct Prepared {
    pub(super) target: Place,
    /// Type of the target, and shape of the result.
    pub(super) result: TensorDesc,
    pub(super) sources: SmallVec<[Source; 3]>,
    /// `None` for copies.
    pub(super) kernel: Option<Box<dyn Kernel>>,
    pub(super) store: Store,
    /// Bytes of scratch for what is gathered, and for the result.
    pub(super) gathered: usize,
    pub(super) staged: usize,
}

/// The shape of a box without gaps, 1 along axes that it is stretched over; `None` if there are gaps.
fn dense(size: [usize; 3], strides: [i64; 3]) -> Option<[usize; 3]> {
    let mut dims = size;
    let mut wanted = 1_i64;
    for axis in (0..3).rev() {
        if strides[axis] == 0 {
            dims[axis] = 1;
        }
        if dims[axis] != 1 && strides[axis] != wanted {
            return None;
        }
        wanted = wanted.checked_mul(i64::try_from(dims[axis]).ok()?)?;
    }
    Some(dims)
}

fn row_major(size: [usize; 3]) -> [i64; 3] {
    let [_, rows, columns] = size.map(|n| i64::try_from(n).unwrap_or(i64::MAX));
    [rows.saturating_mul(columns), columns, 1]
}

/// What preparing a command needs to know.
pub(super) struct Preparation<'a> {
    pub(super) context: &'a PrepareContext<'a>,
    pub(super) iterations: usize,
}

impl Preparation<'_> {
    fn desc(&self, buffer: Buffer) -> OpResult<TensorDesc> {
        match buffer {
            Buffer::Input(input) => self.context.inputs.desc(input),
            Buffer::Output(output) => Ok(self.context.outputs[output]),
        }
    }

    /// A command for these shapes; `None` if there is nothing to do.
    pub(super) fn prepare(&self, command: &Command) -> OpResult<Option<Prepared>> {
        let [z, y, x] = command.size;
        if command.size.contains(&0) {
            return Ok(None);
        }
        match &command.action {
            Action::Zero => Ok(None),
            Action::Copy => self.elementwise(command, None).map(Some),
            Action::Elementwise(operator) => self.elementwise(command, Some(operator.as_ref())).map(Some),
            Action::Product { operator, transpose_a, transpose_b, transpose_out } => {
                let flip = |flip: bool, [rows, columns]: [usize; 2]| {
                    if flip { [columns, rows] } else { [rows, columns] }
                };
                let shapes = [flip(*transpose_a, [z, y]), flip(*transpose_b, [y, x])];
                self.product(command, operator.as_ref(), shapes, *transpose_out).map(Some)
            }
        }
    }

    fn place(&self, access: &Access, size: [usize; 3], strides: [i64; 3]) -> OpResult<Place> {
        let place = Place::new(access, &self.desc(access.buffer)?, size, strides)?;
        place.check(self.iterations, &self.context.inputs)?;
        Ok(place)
    }

    fn elementwise(&self, command: &Command, operator: Option<&dyn Operator>) -> OpResult<Prepared> {
        let (size, target) = (command.size, &command.target);
        // A command writes, or adds up, what is there; no honest one does more.
        let largest = std::iter::once(target).chain(&command.sources).map(|access| self.desc(access.buffer));
        let largest = largest.collect::<OpResult<Vec<_>>>()?.iter().map(|desc| desc.shape.count()).max();
        let count = size.iter().try_fold(1_usize, |count, &n| count.checked_mul(n));
        let full = Shape::new(&size)?;
        if count.is_none_or(|count| Some(count) > largest) {
            return Err(OpError::attribute("size", full, "no more elements than the tensors have"));
        }
        let mut sources: SmallVec<[Source; 3]> = SmallVec::new();
        let (mut gathered, mut stretched) = (0, [true; 3]);
        for (position, access) in command.sources.iter().enumerate() {
            let place = self.place(access, size, access.strides)?;
            let desc = self.desc(access.buffer)?;
            let plain = if operator.is_some() { dense(size, access.strides) } else { Some(size) };
            let plain = plain.filter(|_| access.buffer != target.buffer);
            let last = position + 1 == command.sources.len();
            // The result has the size of the box only if some operand has, along each axis.
            let covers =
                |dims: [usize; 3]| !last || (0..3).all(|axis| dims[axis] == size[axis] || !stretched[axis]);
            let feed = match plain.filter(|&dims| covers(dims)) {
                Some(dims) => {
                    (0..3).for_each(|axis| stretched[axis] &= dims[axis] != size[axis]);
                    Feed::Direct(desc.with_shape(Shape::new(&dims)?))
                }
                None => {
                    stretched = [false; 3];
                    let strides = access.strides.map(|stride| stride as isize);
                    let copy = StridedCopy::new(&size, &strides, -place.lo as isize);
                    let (at, desc) = (gathered, desc.with_shape(full));
                    gathered += desc.byte_len().next_multiple_of(ALIGN);
                    Feed::Gathered { desc, copy, at }
                }
            };
            sources.push(Source { place, feed });
        }
        let descs: SmallVec<[TensorDesc; 3]> = sources.iter().map(Source::desc).collect();
        let (kernel, result) = match operator {
            None => (None, descs[0].with_shape(full)),
            Some(operator) => self.inner(operator, &descs)?,
        };
        self.finish(command, (size, target.strides), sources, (kernel, result), gathered)
    }

    fn product(
        &self,
        command: &Command,
        operator: &dyn Operator,
        matrices: [[usize; 2]; 2],
        transpose_out: bool,
    ) -> OpResult<Prepared> {
        let [m, _, n] = command.size;
        let bias = [n];
        let (mut sources, mut gathered) = (SmallVec::new(), 0);
        for (position, access) in command.sources.iter().enumerate() {
            let dims: &[usize] = matrices.get(position).map_or(&bias, |matrix| matrix);
            let size = match *dims {
                [rows, columns] => [1, rows, columns],
                _ => [1, 1, n],
            };
            let place = self.place(access, size, row_major(size))?;
            let desc = self.desc(access.buffer)?.with_shape(Shape::new(dims)?);
            let feed = if access.buffer == command.target.buffer {
                let at = gathered;
                gathered += desc.byte_len().next_multiple_of(ALIGN);
                let strides = row_major(size).map(|stride| stride as isize);
                Feed::Gathered { desc, copy: StridedCopy::new(&size, &strides, 0), at }
            } else {
                Feed::Direct(desc)
            };
            sources.push(Source { place, feed });
        }
        let descs: SmallVec<[TensorDesc; 3]> = sources.iter().map(Source::desc).collect();
        let (kernel, result) = self.inner(operator, &descs)?;
        let rows = i64::try_from(m).unwrap_or(i64::MAX);
        let columns = i64::try_from(n).unwrap_or(i64::MAX);
        let strides = if transpose_out { [0, 1, rows] } else { [0, columns, 1] };
        self.finish(command, ([1, m, n], strides), sources, (kernel, result), gathered)
    }

    /// The kernel of an operator on tensors of these shapes, and its result.
    fn inner(
        &self,
        operator: &dyn Operator,
        descs: &[TensorDesc],
    ) -> OpResult<(Option<Box<dyn Kernel>>, TensorDesc)> {
        let facts: Vec<Option<Fact<'_>>> =
            descs.iter().map(|&desc| Some(Fact { desc, value: None })).collect();
        let inputs = Facts::new(&facts);
        let outputs = operator.infer(&inputs).map_err(planning_error)?;
        let &[output] = &outputs[..] else {
            return Err(OpError::OutputCount { wanted: 1, got: outputs.len() });
        };
        let output = TensorDesc::new(output.dtype, output.shape);
        let (epilogue, options) = (Epilogue::default(), self.context.options);
        let context = PrepareContext {
            inputs,
            outputs: &[output],
            epilogue: &epilogue,
            input_scale: None,
            options,
            quantized: None,
        };
        Ok((Some(operator.prepare(&context)?), output))
    }

    /// The command with the way its result takes. The result has the target's `size`.
    fn finish(
        &self,
        command: &Command,
        (size, strides): ([usize; 3], [i64; 3]),
        sources: SmallVec<[Source; 3]>,
        (kernel, result): (Option<Box<dyn Kernel>>, TensorDesc),
        gathered: usize,
    ) -> OpResult<Prepared> {
        let wanted = self.desc(command.target.buffer)?.dtype;
        if result.dtype != wanted {
            let got = format!("{} for a tensor of {wanted}", result.dtype);
            return Err(OpError::unsupported(format!("a command that gives {got}")));
        }
        if command.fuse.is_some() && !matches!(result.dtype, DType::F32 | DType::I32) {
            return Err(OpError::unsupported(format!("fuse of {}", result.dtype)));
        }
        let target = self.place(&command.target, size, strides)?;
        let whole = strides == row_major(size) || dense(size, strides) == Some(size);
        let direct = kernel.is_some() && command.fuse.is_none() && whole;
        let (store, staged) = if direct {
            (Store::Direct, 0)
        } else {
            // A copy that needs no fuse goes from where the source is.
            let from = match &sources[0].feed {
                Feed::Direct(_) if kernel.is_none() => command.sources[0].strides,
                _ => row_major(size),
            };
            let [to, from] = [strides, from].map(|strides| strides.map(|stride| stride as isize));
            let staged = if kernel.is_some() { result.byte_len().next_multiple_of(ALIGN) } else { 0 };
            let nest = Box::new(Nest::new(&size, [&to, &from]));
            (Store::Scattered { nest, fuse: command.fuse }, staged)
        };
        Ok(Prepared { target, result, sources, kernel, store, gathered, staged })
    }
}

impl Source {
    /// What the kernel is given.
    pub(super) fn desc(&self) -> TensorDesc {
        match &self.feed {
            Feed::Direct(desc) | Feed::Gathered { desc, .. } => *desc,
        }
    }
}

const _: () = assert!(MAX_RANK >= 3);
