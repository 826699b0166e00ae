//! `While` with a `LoopParam`: the commands into which MNN's converter turns batched products, gathers, scatters,
//! cumulated sums, recurrent networks and broadcasts when it writes files with fixed shapes.
//!
//! A loop runs its commands in order, `loopNumber` times, over tensors that it knows as slots. A command reads boxes of one
//! to three tensors and writes a box of another one; which boxes, may depend on the iteration ([`command::Access`]).
//! Tensors that are inputs and outputs at once, or that an earlier operator has written, are changed in place in the file; here
//! they are an input and an output of the node, and the output starts as a copy of the input ([`tensors`]).

mod command;
mod kernel;
mod prepared;
mod products;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use mnnq_format::model::{Numbers, Table};
use mnnq_format::schema::{DataType, Field, TableKind, blob, loop_param, region_command, tensor_describe};

use self::command::{Command, Reader};
use super::error::{OpError, OpResult};
use super::operator::{Facts, InferResult, Kernel, Operator, PrepareContext};
use super::registry::{OpSource, Subgraphs};
use super::support::ints;
use crate::tensor::{DType, Shape, TensorDesc};

/// A tensor of a loop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Buffer {
    /// An input of the node, which is only read.
    Input(usize),
    /// An output of the node.
    Output(usize),
}

/// Numbers of the inputs that the commands write.
fn written(main: &Table, inputs: &[Option<usize>]) -> Vec<usize> {
    let slots = ints(main.get(loop_param::INPUT_INDEXES)).unwrap_or_default();
    let slots: HashMap<i64, usize> = slots.into_iter().zip(0..).collect();
    let commands = main.get(loop_param::COMMANDS).unwrap_or_default();
    let initial = main.get(loop_param::INIT_COMMAND).unwrap_or_default();
    let targets = commands.iter().chain(initial).filter_map(|command| {
        let indexes = command.get(region_command::INDEXES).and_then(Numbers::as_i32)?;
        let input = *slots.get(&i64::from(*indexes.first()?))?;
        inputs.get(input).copied().flatten()
    });
    targets.collect()
}

/// The inputs and outputs of a loop, by their numbers in the file, with the hidden ones behind: outputs for inputs that the
/// commands change, and inputs for outputs that exist (`exists`) before the loop.
pub(crate) fn tensors(
    main: &Table,
    mut inputs: Vec<Option<usize>>,
    mut outputs: Vec<usize>,
    exists: impl Fn(usize) -> bool,
) -> (Vec<Option<usize>>, Vec<usize>) {
    let mut known: HashSet<usize> = outputs.iter().copied().collect();
    outputs.extend(written(main, &inputs).into_iter().filter(|&tensor| known.insert(tensor)));
    let read: HashSet<Option<usize>> = inputs.iter().copied().collect();
    let start = |tensor: &usize| exists(*tensor) && !read.contains(&Some(*tensor));
    inputs.extend(outputs.iter().copied().filter(start).map(Some));
    (inputs, outputs)
}

/// What an output is.
#[derive(Debug, Clone, Copy)]
enum Output {
    /// The file says.
    Described(TensorDesc),
    /// As this input, which it starts as a copy of.
    Input(usize),
}

/// A loop of commands.
struct CommandLoop {
    outputs: Vec<Output>,
    /// Per output, the input that it starts as a copy of.
    starts: Vec<Option<usize>>,
    initial: Vec<Command>,
    commands: Vec<Command>,
    iterations: usize,
}

/// Builds a loop of commands.
pub(super) fn create(source: &OpSource<'_>, subgraphs: &mut dyn Subgraphs) -> OpResult<Arc<dyn Operator>> {
    let table = source.param(TableKind::LoopParam)?;
    let mut inputs = HashMap::new();
    for (input, tensor) in source.input_tensors.iter().enumerate() {
        inputs.entry(*tensor).or_insert(input);
    }
    let starts: Vec<Option<usize>> =
        source.output_tensors.iter().map(|&tensor| inputs.get(&Some(tensor)).copied()).collect();
    let outputs = starts
        .iter()
        .enumerate()
        .map(|(output, &start)| described(source, table, output, start))
        .collect::<OpResult<_>>()?;
    let reader = reader(source, table)?;
    let iterations = table.get(loop_param::LOOP_NUMBER);
    let iterations = usize::try_from(iterations)
        .map_err(|_| OpError::attribute("loopNumber", iterations, "at least 0"))?;
    Ok(Arc::new(CommandLoop {
        outputs,
        starts,
        initial: reader.initial(table)?,
        commands: reader.commands(table, subgraphs)?,
        iterations,
    }))
}

/// The description of an output: that of the loop, that of the file, or that of the input it is.
fn described(source: &OpSource<'_>, table: &Table, output: usize, start: Option<usize>) -> OpResult<Output> {
    let own = table.get(loop_param::EXTRA_TENSOR_INFOS).unwrap_or_default().get(output);
    let Some(describe) = own.or_else(|| source.described.get(output).copied().flatten()) else {
        return start
            .map(Output::Input)
            .ok_or_else(|| OpError::unsupported(format!("a loop whose output {output} is not described")));
    };
    let blob = describe.get(tensor_describe::BLOB);
    let dims = blob.and_then(|blob| ints(blob.get(blob::DIMS))).unwrap_or_default();
    let wire = blob.map_or(DataType::DT_FLOAT, |blob| blob.get(blob::DATA_TYPE));
    let dtype = DType::from_wire(wire).filter(|&dtype| dtype != DType::F16);
    let dtype = dtype.ok_or_else(|| OpError::attribute("dataType", wire, "a number type"))?;
    Ok(Output::Described(TensorDesc::new(dtype, Shape::from_signed(&dims)?)))
}

/// The slots of a loop. Slots of one tensor are one buffer, that of the output if there is one.
fn reader<'a, 'b>(source: &'a OpSource<'b>, table: &Table) -> OpResult<Reader<'a, 'b>> {
    let mut written = HashMap::new();
    for (output, &tensor) in source.output_tensors.iter().enumerate() {
        if written.insert(tensor, output).is_some() {
            return Err(OpError::attribute("outputIndexes", format!("tensor {tensor} twice"), "each once"));
        }
    }
    let inputs = source.input_tensors.iter().enumerate().map(|(input, tensor)| {
        tensor
            .map(|tensor| written.get(&tensor).map_or(Buffer::Input(input), |&output| Buffer::Output(output)))
    });
    let outputs = (0..source.outputs).map(|output| Some(Buffer::Output(output)));
    let mut reader = Reader { source, slots: HashMap::new(), inputs: 0 };
    reader.inputs = assign(&mut reader.slots, table, ("inputIndexes", loop_param::INPUT_INDEXES), inputs)?;
    assign(&mut reader.slots, table, ("outputIndexes", loop_param::OUTPUT_INDEXES), outputs)?;
    Ok(reader)
}

/// Gives slots to tensors, in the order of a list of slots; their number.
fn assign(
    slots: &mut HashMap<i64, Buffer>,
    table: &Table,
    (key, field): (&'static str, Field<Vec<i32>>),
    buffers: impl ExactSizeIterator<Item = Option<Buffer>>,
) -> OpResult<usize> {
    let list = ints(table.get(field)).unwrap_or_default();
    let (wanted, got) = (buffers.len(), list.len());
    if got > wanted {
        return Err(OpError::attribute(
            key,
            format!("{got} slots"),
            format!("at most {wanted}, one per tensor"),
        ));
    }
    let count = i64::from(table.get(loop_param::TENSOR_NUMBER));
    if count < 0 {
        return Err(OpError::attribute("tensorNumber", count, "at least 0"));
    }
    for (&slot, buffer) in list.iter().zip(buffers) {
        let Some(buffer) = buffer else { continue };
        if !(0..count).contains(&slot) || slots.insert(slot, buffer).is_some() {
            return Err(OpError::attribute(key, slot, format!("each number below {count} once")));
        }
    }
    Ok(got)
}

impl Operator for CommandLoop {
    fn infer(&self, inputs: &Facts<'_>) -> InferResult {
        let output = |output: &Output| match *output {
            Output::Described(desc) => Ok(desc),
            Output::Input(input) => inputs.desc(input),
        };
        Ok(self.outputs.iter().map(output).collect::<OpResult<_>>()?)
    }

    fn accepts_epilogue(&self) -> bool {
        self.outputs.len() == 1
    }

    fn prepare(&self, context: &PrepareContext<'_>) -> OpResult<Box<dyn Kernel>> {
        match products::batched(self, context)? {
            Some(kernel) => Ok(kernel),
            None => Ok(Box::new(kernel::LoopKernel::new(self, context)?)),
        }
    }
}

impl Command {
    /// Whether its target, and what it reads, is chosen by an index tensor.
    fn is_indexed(&self) -> bool {
        std::iter::once(&self.target).chain(&self.sources).any(|access| access.index.is_some())
    }
}
