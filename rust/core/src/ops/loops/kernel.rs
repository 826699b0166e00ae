//! Running the commands of a loop.

use std::borrow::Cow;

use smallvec::SmallVec;

use super::command::{Action, Fuse};
use super::prepared::{Feed, Preparation, Prepared, Start, Store};
use super::{Buffer, CommandLoop};
use crate::ops::epilogue::Epilogue;
use crate::ops::error::{OpError, OpResult};
use crate::ops::operator::{Kernel, PrepareContext, StepIo};
use crate::ops::support::Nest;
use crate::tensor::{DType, TensorView, TensorViewMut};

/// A step before the first iteration.
enum Initial {
    Zero { output: usize },
    Run(Box<Prepared>),
}

/// A loop for tensors of known shapes.
pub(super) struct LoopKernel {
    /// Per output, the input that it starts as a copy of.
    starts: Vec<Option<usize>>,
    initial: Vec<Initial>,
    commands: Vec<Prepared>,
    iterations: usize,
    /// Iterations that count against the budget of the run: those that no tensor bounds.
    counted: usize,
    epilogue: Epilogue,
    words: String,
}

impl LoopKernel {
    pub(super) fn new(all: &CommandLoop, context: &PrepareContext<'_>) -> OpResult<Self> {
        for (output, start) in all.starts.iter().enumerate() {
            let Some(input) = *start else { continue };
            let (got, wanted) = (context.inputs.desc(input)?, context.outputs[output]);
            if got.dtype != wanted.dtype || got.shape.count() != wanted.shape.count() {
                return Err(OpError::shape(
                    input,
                    got.shape,
                    format!("{}, as output {output}", wanted.shape),
                ));
            }
        }
        let once = Preparation { context, iterations: 1 };
        let mut initial = Vec::new();
        for command in &all.initial {
            match (&command.action, command.target.buffer) {
                (Action::Zero, Buffer::Output(output)) => initial.push(Initial::Zero { output }),
                _ => initial.extend(once.prepare(command)?.map(|command| Initial::Run(Box::new(command)))),
            }
        }
        let every = Preparation { context, iterations: all.iterations };
        let mut commands = Vec::new();
        if all.iterations > 0 {
            for command in &all.commands {
                commands.extend(every.prepare(command)?);
            }
        }
        let counted = all.iterations > 1 && !all.commands.iter().any(super::Command::is_indexed);
        let iterations = if commands.is_empty() { 0 } else { all.iterations };
        let kernels = commands.iter().map(|command| match &command.kernel {
            Some(kernel) => kernel.label(),
            None => "copy".into(),
        });
        let words = kernels.collect::<Vec<_>>().join("; ");
        Ok(Self {
            starts: all.starts.clone(),
            initial,
            counted: if counted { iterations } else { 0 },
            iterations,
            words: format!("{iterations} times: {words}{}", context.epilogue.describe()),
            commands,
            epilogue: context.epilogue.clone(),
        })
    }

    fn all(&self) -> impl Iterator<Item = &Prepared> {
        let initial = self.initial.iter().filter_map(|initial| match initial {
            Initial::Run(command) => Some(command.as_ref()),
            Initial::Zero { .. } => None,
        });
        initial.chain(&self.commands)
    }
}

impl Kernel for LoopKernel {
    fn label(&self) -> Cow<'static, str> {
        const LONGEST: usize = 160;
        let mut words: String = self.words.chars().take(LONGEST).collect();
        if words.len() < self.words.len() {
            words.push_str(" ...");
        }
        words.into()
    }

    fn scratch(&self) -> usize {
        self.all().map(Prepared::scratch).max().unwrap_or(0)
    }

    fn multiply_adds(&self) -> u64 {
        let once = |command: &Prepared| command.kernel.as_ref().map_or(0, |kernel| kernel.multiply_adds());
        let sum = self.commands.iter().map(once).fold(0_u64, u64::saturating_add);
        sum.saturating_mul(self.iterations as u64)
    }

    fn run(&self, io: &mut StepIo<'_, '_>) -> OpResult<()> {
        for (output, start) in io.outputs.iter_mut().zip(&self.starts) {
            match start.and_then(|input| io.inputs.get(input).copied().flatten()) {
                Some(view) => output.bytes().copy_from_slice(view.bytes()),
                None => output.bytes().fill(0),
            }
        }
        for initial in &self.initial {
            match initial {
                Initial::Zero { output } => io.outputs[*output].bytes().fill(0),
                Initial::Run(command) => command.run(0, io)?,
            }
        }
        io.parallel.take_iterations(self.counted as u64)?;
        for iteration in 0..self.iterations {
            for command in &self.commands {
                command.run(iteration, io)?;
            }
        }
        self.epilogue.apply_all(io);
        Ok(())
    }
}

impl Prepared {
    /// Bytes of scratch.
    fn scratch(&self) -> usize {
        self.gathered + self.staged + self.kernel.as_ref().map_or(0, |kernel| kernel.scratch())
    }

    fn run(&self, iteration: usize, io: &mut StepIo<'_, '_>) -> OpResult<()> {
        let outside = || OpError::attribute("view", "a box outside of its tensor", "inside");
        let target_start = match self.target.locate(iteration, io.inputs)? {
            Start::Inside(start) => start,
            // A copy to nowhere is left out.
            Start::Outside if self.kernel.is_none() => return Ok(()),
            Start::Outside => return Err(outside()),
        };
        let mut starts: SmallVec<[usize; 3]> = SmallVec::new();
        for source in &self.sources {
            match source.place.locate(iteration, io.inputs)? {
                Start::Inside(start) => starts.push(start),
                // A copy from nowhere gives zeros.
                Start::Outside if self.kernel.is_none() => break,
                Start::Outside => return Err(outside()),
            }
        }
        let Buffer::Output(output) = self.target.buffer else { return Err(outside()) };
        let inputs = io.inputs;
        let (gathered, rest) = io.scratch.split_at_mut(self.gathered);
        let (staged, scratch) = rest.split_at_mut(self.staged);
        let size = self.result.dtype.size();
        for (source, &start) in self.sources.iter().zip(&starts) {
            let Feed::Gathered { desc, copy, at } = &source.feed else { continue };
            let bytes = match source.place.buffer {
                Buffer::Input(input) => view(inputs, input)?.bytes(),
                Buffer::Output(output) => io.outputs[output].bytes(),
            };
            let element = desc.dtype.size();
            let target = &mut gathered[*at..][..desc.byte_len()];
            copy.run(element, &bytes[source.first(start) * element..], target, io.parallel);
        }
        let gathered = &*gathered;
        let (before, rest) = io.outputs.split_at_mut(output);
        let Some((target, after)) = rest.split_first_mut() else { return Err(outside()) };
        let others = Others { inputs, before, after };
        let target = target.bytes();
        let Some(kernel) = &self.kernel else {
            let Store::Scattered { nest, fuse } = &self.store else { return Err(outside()) };
            let element = (self.result.dtype, size);
            let Some(&start) = starts.first() else {
                return scatter(nest, element, None, (target, target_start), *fuse);
            };
            let source = match &self.sources[0].feed {
                Feed::Gathered { desc, at, .. } => (&gathered[*at..][..desc.byte_len()], 0),
                Feed::Direct(_) => (others.bytes(self.sources[0].place.buffer)?, start),
            };
            return scatter(nest, element, Some(source), (target, target_start), *fuse);
        };
        let mut views: SmallVec<[Option<TensorView<'_>>; 3]> = SmallVec::new();
        for (source, &start) in self.sources.iter().zip(&starts) {
            views.push(Some(match &source.feed {
                Feed::Gathered { desc, at, .. } => {
                    TensorView::new(*desc, &gathered[*at..][..desc.byte_len()])
                }
                Feed::Direct(desc) => {
                    let bytes = others.bytes(source.place.buffer)?;
                    TensorView::new(*desc, &bytes[start * desc.dtype.size()..][..desc.byte_len()])
                }
            }));
        }
        let result = match &self.store {
            Store::Direct => &mut target[target_start * size..],
            Store::Scattered { .. } => &mut *staged,
        };
        let result = TensorViewMut::new(self.result, &mut result[..self.result.byte_len()]);
        kernel.run(&mut StepIo {
            inputs: &views,
            outputs: &mut [result],
            in_place: None,
            scratch: &mut scratch[..kernel.scratch()],
            parallel: io.parallel,
        })?;
        match &self.store {
            Store::Direct => Ok(()),
            Store::Scattered { nest, fuse } => {
                let source = Some((&*staged, 0));
                scatter(nest, (self.result.dtype, size), source, (target, target_start), *fuse)
            }
        }
    }
}

fn view<'b>(inputs: &[Option<TensorView<'b>>], input: usize) -> OpResult<TensorView<'b>> {
    inputs.get(input).copied().flatten().ok_or(OpError::MissingInput { input })
}

/// The tensors of a loop but the one that is written.
struct Others<'a, 'b> {
    inputs: &'a [Option<TensorView<'b>>],
    before: &'a [TensorViewMut<'b>],
    after: &'a [TensorViewMut<'b>],
}

impl<'a> Others<'a, '_> {
    fn bytes(&self, buffer: Buffer) -> OpResult<&'a [u8]> {
        let written = || OpError::unsupported("a command that reads what it writes");
        match buffer {
            Buffer::Input(input) => Ok(view(self.inputs, input)?.bytes()),
            Buffer::Output(output) => {
                let after = || self.after.get(output.checked_sub(self.before.len() + 1)?);
                let found = self.before.get(output).or_else(after);
                found.map(|output| output.view().bytes()).ok_or_else(written)
            }
        }
    }
}

/// Copies a box, or zeros, into a target from an element on, or combines it with what is there.
fn scatter(
    nest: &Nest<2>,
    (dtype, size): (DType, usize),
    source: Option<(&[u8], usize)>,
    target: (&mut [u8], usize),
    fuse: Option<Fuse>,
) -> OpResult<()> {
    match (fuse, dtype, size) {
        (None, _, 4) => replace::<u32>(nest, source, target),
        (None, _, 2) => replace::<u16>(nest, source, target),
        (None, ..) => replace::<u8>(nest, source, target),
        (Some(fuse), DType::F32, _) => combine::<f32>(nest, source, target, fuse.floats()),
        (Some(fuse), DType::I32, _) => combine::<i32>(nest, source, target, fuse.integers()),
        (Some(_), ..) => return Err(OpError::unsupported(format!("fuse of {dtype}"))),
    }
    Ok(())
}

/// Calls `visit` for every row: position in the target and in the source, length.
fn rows(nest: &Nest<2>, starts: [usize; 2], mut visit: impl FnMut([isize; 2], usize)) {
    let count = nest.dims.iter().product();
    let [to, from] = starts.map(|start| start as isize);
    nest.rows(0, count, |_, [t, s], len| visit([to + t, from + s], len));
}

fn replace<T: bytemuck::Pod>(nest: &Nest<2>, source: Option<(&[u8], usize)>, target: (&mut [u8], usize)) {
    let data: &mut [T] = bytemuck::cast_slice_mut(target.0);
    let (values, from): (&[T], usize) =
        source.map_or((&[], 0), |(bytes, from)| (bytemuck::cast_slice(bytes), from));
    let [to_step, from_step] = nest.inner();
    rows(nest, [target.1, from], |[to, from], len| {
        if source.is_none() {
            (0..len as isize).for_each(|i| data[(to + i * to_step) as usize] = T::zeroed());
        } else if [to_step, from_step] == [1, 1] {
            data[to as usize..][..len].copy_from_slice(&values[from as usize..][..len]);
        } else {
            for i in 0..len as isize {
                data[(to + i * to_step) as usize] = values[(from + i * from_step) as usize];
            }
        }
    });
}

fn combine<T: bytemuck::Pod>(
    nest: &Nest<2>,
    source: Option<(&[u8], usize)>,
    target: (&mut [u8], usize),
    function: fn(T, T) -> T,
) {
    let data: &mut [T] = bytemuck::cast_slice_mut(target.0);
    let (values, from): (&[T], usize) =
        source.map_or((&[], 0), |(bytes, from)| (bytemuck::cast_slice(bytes), from));
    let [to_step, from_step] = nest.inner();
    rows(nest, [target.1, from], |[to, from], len| {
        for i in 0..len as isize {
            let other = values.get((from + i * from_step) as usize).copied().unwrap_or_else(T::zeroed);
            let value = &mut data[(to + i * to_step) as usize];
            *value = function(*value, other);
        }
    });
}

impl Fuse {
    fn floats(self) -> fn(f32, f32) -> f32 {
        match self {
            Self::Add => |a, b| a + b,
            Self::Sub => |a, b| a - b,
            Self::Mul => |a, b| a * b,
            Self::Min => f32::min,
            Self::Max => f32::max,
        }
    }

    fn integers(self) -> fn(i32, i32) -> i32 {
        match self {
            Self::Add => i32::wrapping_add,
            Self::Sub => i32::wrapping_sub,
            Self::Mul => i32::wrapping_mul,
            Self::Min => i32::min,
            Self::Max => i32::max,
        }
    }
}
