//! `Padding`.

use std::borrow::Cow;

use mnnq_format::schema::{PadValueMode, TableKind, pad_param};
use smallvec::SmallVec;

use super::error::{OpError, OpResult};
use super::operator::{Facts, InferResult, Kernel, Layouts, Operator, PrepareContext, StepIo};
use super::registry::OpSource;
use super::support::for_each_outer;
use crate::tensor::{MAX_RANK, Shape, TensorDesc};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Constant,
    /// Mirrored without the border element.
    Reflect,
    /// Mirrored with the border element.
    Symmetric,
    Edge,
}

/// `Padding(x, pads [b0, e0, b1, e1, ..][, value])`; negative pads crop.
pub(super) struct Pad {
    mode: Mode,
    has_value: bool,
}

impl Pad {
    pub(super) fn new(source: &OpSource<'_>) -> OpResult<Self> {
        source.expect_outputs(1)?;
        let mode = match source.optional_param(TableKind::PadParam)?.map(|t| t.get(pad_param::MODE)) {
            None | Some(PadValueMode::CONSTANT) => Mode::Constant,
            Some(PadValueMode::REFLECT) => Mode::Reflect,
            Some(PadValueMode::SYMMETRIC) => Mode::Symmetric,
            Some(PadValueMode::EDGE) => Mode::Edge,
            Some(other) => return Err(OpError::attribute("mode", other, "a code of PadValueMode")),
        };
        Ok(Self { mode, has_value: source.inputs > 2 })
    }

    /// Per axis: for each output position, the input position it is taken from.
    fn maps(&self, inputs: &Facts<'_>) -> InferResult<SmallVec<[Vec<Option<usize>>; MAX_RANK]>> {
        let shape = inputs.shape(0)?;
        let pads = inputs.integers(1)?;
        if pads.len() != 2 * shape.rank() {
            let problem = format!("{} pads for rank {}", pads.len(), shape.rank());
            return Err(OpError::value(1, problem).into());
        }
        let mut maps = SmallVec::new();
        for (&length, pads) in shape.iter().zip(pads.chunks_exact(2)) {
            let n = length as i64;
            let total = n.saturating_add(pads[0]).saturating_add(pads[1]);
            if !(0..=1 << 31).contains(&total) {
                return Err(OpError::value(1, format!("pads {pads:?} of an axis of {length}")).into());
            }
            let mirror = |p: i64| match self.mode {
                _ if (0..n).contains(&p) => Some(p),
                Mode::Constant => None,
                Mode::Edge => Some(p.clamp(0, n - 1)),
                Mode::Reflect => Some(if p < 0 { -p } else { 2 * (n - 1) - p }),
                Mode::Symmetric => Some(if p < 0 { -p - 1 } else { 2 * n - 1 - p }),
            };
            // Pads come from the file: an axis may be longer than memory.
            let mut map: Vec<Option<i64>> = Vec::new();
            map.try_reserve_exact(total as usize).map_err(|_| {
                OpError::value(1, format!("pads {pads:?} of an axis of {length}, more than memory holds"))
            })?;
            map.extend((0..total).map(|p| mirror(p - pads[0])));
            if map.iter().flatten().any(|p| !(0..n).contains(p)) {
                return Err(
                    OpError::value(1, format!("pads {pads:?} mirror beyond an axis of {length}")).into()
                );
            }
            maps.push(map.into_iter().map(|p| p.map(|p| p as usize)).collect());
        }
        Ok(maps)
    }
}

impl Operator for Pad {
    fn infer(&self, inputs: &Facts<'_>) -> InferResult {
        let desc = inputs.desc(0)?;
        if let Some(value) = inputs.get(2).filter(|_| self.has_value) {
            if value.desc.dtype != desc.dtype {
                let (wanted, got) = (desc.dtype.to_string(), value.desc.dtype);
                return Err(OpError::InputType { input: 2, wanted, got }.into());
            }
            if value.desc.shape.count() != 1 {
                return Err(OpError::shape(2, value.desc.shape, "one element").into());
            }
        }
        let dims: SmallVec<[usize; MAX_RANK]> = self.maps(inputs)?.iter().map(Vec::len).collect();
        Ok(vec![desc.with_shape(Shape::new(&dims)?)])
    }

    fn layouts(&self, inputs: &Facts<'_>, outputs: &[TensorDesc]) -> Layouts {
        Layouts::follow(inputs, outputs.len())
    }

    fn prepare(&self, context: &PrepareContext<'_>) -> OpResult<Box<dyn Kernel>> {
        let desc = context.inputs.desc(0)?;
        let maps = self.maps(&context.inputs).map_err(|_| OpError::unsupported("pads that are not known"))?;
        let rank = desc.shape.rank();
        let own = desc.layout.strides(&desc.shape);
        let order = desc.layout.order(rank);
        let size = desc.dtype.size();
        let mut axes: SmallVec<[Vec<Option<usize>>; MAX_RANK]> = SmallVec::new();
        for &axis in &order[..rank] {
            axes.push(maps[axis].iter().map(|p| p.map(|p| p * own[axis] * size)).collect());
        }
        let row = axes.pop().unwrap_or_else(|| vec![Some(0)]);
        let has_value = self.has_value && context.inputs.get(2).is_some();
        Ok(Box::new(PadKernel { axes, row, size, has_value }))
    }
}

struct PadKernel {
    /// Per axis in memory order but the last: byte offset in the input of each output position.
    axes: SmallVec<[Vec<Option<usize>>; MAX_RANK]>,
    /// The same for the last axis.
    row: Vec<Option<usize>>,
    size: usize,
    has_value: bool,
}

impl Kernel for PadKernel {
    fn label(&self) -> Cow<'static, str> {
        "pad".into()
    }

    fn run(&self, io: &mut StepIo<'_, '_>) -> OpResult<()> {
        let source = io.input(0).bytes();
        let zero = [0_u8; 8];
        let value = if self.has_value { io.input(2).bytes() } else { &zero[..self.size] };
        let size = self.size;
        for_each_outer(io.parallel, io.outputs[0].bytes(), self.row.len() * size, |index, out| {
            let mut rest = index;
            let mut start = Some(0);
            for map in self.axes.iter().rev() {
                let at = map[rest % map.len()];
                rest /= map.len();
                start = start.zip(at).map(|(start, at)| start + at);
            }
            let Some(start) = start else {
                out.chunks_exact_mut(size).for_each(|element| element.copy_from_slice(value));
                return;
            };
            let mut at = 0;
            while at < self.row.len() {
                let Some(first) = self.row[at] else {
                    out[at * size..][..size].copy_from_slice(value);
                    at += 1;
                    continue;
                };
                // Runs of neighbours are copied at once.
                let run = self.row[at..]
                    .iter()
                    .enumerate()
                    .take_while(|(i, p)| **p == Some(first + i * size))
                    .count();
                out[at * size..][..run * size].copy_from_slice(&source[start + first..][..run * size]);
                at += run;
            }
        });
        Ok(())
    }
}
