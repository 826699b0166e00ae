//! A plan and how it runs.
//!
//! A plan is a chain of segments. Most have one; a segment ends early where shapes depend on contents that only
//! running gives. Then its [`Continuation`] looks up (or makes) the next segment by these contents.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use smallvec::SmallVec;

use super::arena::{Arena, LINE_BYTES, Line};
use super::error::RuntimeError;
use super::parallel::Parallel;
use super::planner::PlanState;
use crate::graph::ValueId;
use crate::ops::{Kernel, Operator, QuantInfo, StepIo};
use crate::tensor::{DType, Tensor, TensorDesc, TensorView, TensorViewMut};

/// Where a tensor is: some memory and the first byte in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) memory: Memory,
    pub(crate) offset: usize,
}

/// Memory that tensors are in. Frames are the segments of a run, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Memory {
    /// The n-th input of the run.
    Input(usize),
    /// The arena of a frame.
    Arena { frame: usize },
    /// Among the constants of a frame's segment.
    Const { frame: usize, index: usize },
    /// Made by an operator with outputs of unknown shape, after the steps of a frame.
    Owned { frame: usize, index: usize },
}

impl Memory {
    /// The place at the start of the memory.
    pub(crate) fn start(self) -> Place {
        Place { memory: self, offset: 0 }
    }
}

/// A tensor and where it is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Located {
    pub(crate) place: Place,
    pub(crate) desc: TensorDesc,
}

impl Located {
    /// The tensor, given the memory it is in.
    fn of<'a>(&self, memory: &'a [u8]) -> TensorView<'a> {
        TensorView::new(self.desc, &memory[self.place.offset..self.place.offset + self.desc.byte_len()])
    }
}

/// An input of a step.
pub(crate) enum StepInput {
    /// Absent, or overwritten in place.
    Absent,
    /// In the arena of the running segment: in this piece, from this byte of it.
    Local { piece: usize, offset: usize, desc: TensorDesc },
    /// Elsewhere.
    Far(Located),
}

/// What a piece of the arena is to a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// Holds the n-th output.
    Output(usize),
    /// Scratch memory.
    Scratch,
    /// Holds inputs.
    Shared,
}

/// A range of lines of the arena that a step uses. The pieces of a step are disjoint and sorted.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Piece {
    pub(crate) start: usize,
    pub(crate) lines: usize,
    pub(crate) role: Role,
}

/// One kernel with its tensors.
pub(crate) struct Step {
    pub(crate) kernel: Box<dyn Kernel>,
    pub(crate) inputs: SmallVec<[StepInput; 4]>,
    pub(crate) outputs: SmallVec<[TensorDesc; 2]>,
    pub(crate) in_place: Option<usize>,
    pub(crate) pieces: SmallVec<[Piece; 6]>,
    pub(crate) scratch: usize,
    pub(crate) node: String,
    pub(crate) op_type: String,
    pub(crate) nanoseconds: AtomicU64,
    pub(crate) runs: AtomicU64,
}

/// A tensor to be shown to an observer once `after` steps have run.
pub(crate) struct Tap {
    pub(crate) after: usize,
    pub(crate) name: String,
    pub(crate) tensor: Located,
    /// How to make real numbers of it, if it holds codes.
    pub(crate) quant: Option<QuantInfo>,
}

impl Tap {
    /// Shows the tensor, codes as the real numbers that they stand for.
    fn show(&self, tensor: TensorView<'_>, observer: &mut Observer<'_>) -> Result<(), RuntimeError> {
        let Some(quant) = self.quant.filter(|_| tensor.desc().dtype == DType::I8) else {
            observer(&self.name, tensor);
            return Ok(());
        };
        let desc = tensor.desc();
        let real: Vec<f32> =
            tensor.data::<i8>().iter().map(|&code| (f32::from(code) - quant.zero) * quant.scale).collect();
        let desc = TensorDesc { dtype: DType::F32, ..desc };
        observer(&self.name, TensorView::new(desc, bytemuck::cast_slice(&real)));
        Ok(())
    }
}

/// Steps that run without any decision between them.
pub(crate) struct Segment {
    pub(crate) steps: Vec<Step>,
    pub(crate) constants: Vec<Tensor>,
    pub(crate) lines: usize,
    pub(crate) arenas: Mutex<Vec<Arena>>,
    /// Outputs of the graph: position among those asked for, and where they are.
    pub(crate) results: Vec<(usize, Located)>,
    /// Contents of results that are known without running.
    pub(crate) known_results: Vec<(usize, Tensor)>,
    pub(crate) taps: Vec<Tap>,
    pub(crate) next: Option<Continuation>,
}

/// An operator whose output shapes are known only by running it.
pub(crate) struct DynamicOp {
    pub(crate) operator: Arc<dyn Operator>,
    pub(crate) inputs: Vec<Option<Located>>,
    pub(crate) outputs: Vec<ValueId>,
    pub(crate) node: String,
    pub(crate) op_type: String,
}

/// What follows a segment, by what it has computed.
pub(crate) struct Continuation {
    /// Tensors whose contents the next segment depends on.
    pub(crate) needs: Vec<(ValueId, Located)>,
    pub(crate) dynamic: Vec<DynamicOp>,
    pub(crate) state: PlanState,
    pub(crate) cache: Mutex<Vec<(Key, Arc<Segment>)>>,
}

/// Contents of the needed tensors, descriptions of the dynamic ones.
pub(crate) struct Key {
    pub(crate) values: Vec<Tensor>,
    pub(crate) descs: Vec<TensorDesc>,
}

/// A segment that has run, with its memory.
pub(crate) struct Frame {
    pub(crate) segment: Arc<Segment>,
    pub(crate) arena: Arena,
    pub(crate) owned: Vec<Tensor>,
}

impl Drop for Frame {
    /// Gives the memory back to the segment for the next run.
    fn drop(&mut self) {
        let arena = std::mem::replace(&mut self.arena, Arena::empty());
        let mut arenas = self.segment.arenas.lock().unwrap_or_else(PoisonError::into_inner);
        if arenas.len() < Segment::SPARE_ARENAS {
            arenas.push(arena);
        }
    }
}

/// Sees tensors while a plan runs: name and contents.
pub type Observer<'a> = &'a mut (dyn FnMut(&str, TensorView<'_>) + Send);

/// Finds the tensor at a place.
pub(crate) fn view<'a>(located: &Located, frames: &'a [Frame], feeds: &[TensorView<'a>]) -> TensorView<'a> {
    let bytes: &'a [u8] = match located.place.memory {
        Memory::Input(index) => feeds[index].bytes(),
        Memory::Arena { frame } => frames[frame].arena.bytes(),
        Memory::Const { frame, index } => frames[frame].segment.constants[index].bytes(),
        Memory::Owned { frame, index } => frames[frame].owned[index].bytes(),
    };
    located.of(bytes)
}

impl Segment {
    const SPARE_ARENAS: usize = 16;

    fn arena(&self) -> Result<Arena, RuntimeError> {
        let spare = self.arenas.lock().unwrap_or_else(PoisonError::into_inner).pop();
        spare.map_or_else(|| Arena::try_new(self.lines), Ok)
    }

    /// Runs the steps as the next frame.
    pub(crate) fn run<'f>(
        self: &Arc<Self>,
        frames: &mut SmallVec<[Frame; 1]>,
        feeds: &[TensorView<'f>],
        parallel: &Parallel,
        mut observer: Option<&mut Observer<'_>>,
    ) -> Result<(), RuntimeError> {
        let frame = Frame { segment: self.clone(), arena: self.arena()?, owned: Vec::new() };
        frames.push(frame);
        let mut taps = self.taps.iter().peekable();
        for (done, step) in self.steps.iter().map(Some).chain([None]).enumerate() {
            while let (Some(tap), Some(observer)) = (taps.next_if(|tap| tap.after <= done), observer.as_mut())
            {
                tap.show(view(&tap.tensor, frames, feeds), observer)?;
            }
            if let Some(step) = step {
                let start = Instant::now();
                step.run(frames, feeds, parallel)?;
                let spent = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
                step.nanoseconds.fetch_add(spent, Ordering::Relaxed);
                step.runs.fetch_add(1, Ordering::Relaxed);
            }
        }
        Ok(())
    }
}

impl Step {
    fn run(
        &self,
        frames: &mut SmallVec<[Frame; 1]>,
        feeds: &[TensorView<'_>],
        parallel: &Parallel,
    ) -> Result<(), RuntimeError> {
        let Some((current, earlier)) = frames.split_last_mut() else { return Ok(()) };
        let depth = earlier.len();
        let (segment, arena) = (&current.segment, &mut current.arena);
        let mut outputs: SmallVec<[Option<TensorViewMut<'_>>; 2]> =
            self.outputs.iter().map(|_| None).collect();
        let mut scratch: &mut [u8] = &mut [];
        let mut shared: SmallVec<[&[u8]; 6]> = SmallVec::new();
        let (mut rest, mut at): (&mut [Line], usize) = (arena.lines_mut(), 0);
        for piece in &self.pieces {
            let (mine, tail) = std::mem::take(&mut rest)[piece.start - at..].split_at_mut(piece.lines);
            (rest, at) = (tail, piece.start + piece.lines);
            let bytes: &mut [u8] = bytemuck::cast_slice_mut(mine);
            match piece.role {
                Role::Output(index) => {
                    let desc = self.outputs[index];
                    outputs[index] = Some(TensorViewMut::new(desc, &mut bytes[..desc.byte_len()]));
                    shared.push(&[]);
                }
                Role::Scratch => {
                    scratch = &mut bytes[..self.scratch];
                    shared.push(&[]);
                }
                Role::Shared => shared.push(bytes),
            }
        }
        let inputs: SmallVec<[Option<TensorView<'_>>; 4]> = self
            .inputs
            .iter()
            .map(|input| match input {
                StepInput::Absent => None,
                StepInput::Local { piece, offset, desc } => {
                    Some(TensorView::new(*desc, &shared[*piece][*offset..*offset + desc.byte_len()]))
                }
                StepInput::Far(located) => Some(match located.place.memory {
                    Memory::Const { frame, index } if frame == depth => {
                        located.of(segment.constants[index].bytes())
                    }
                    _ => view(located, earlier, feeds),
                }),
            })
            .collect();
        let mut outputs: SmallVec<[TensorViewMut<'_>; 2]> = outputs.into_iter().flatten().collect();
        let mut io =
            StepIo { inputs: &inputs, outputs: &mut outputs, in_place: self.in_place, scratch, parallel };
        self.kernel.run(&mut io).map_err(|source| RuntimeError::Op {
            node: self.node.clone(),
            op_type: self.op_type.clone(),
            source,
        })
    }
}

/// Lines for so many bytes; at least one, so that every tensor has memory of its own.
pub(crate) fn lines_for(bytes: usize) -> usize {
    bytes.div_ceil(LINE_BYTES).max(1)
}
