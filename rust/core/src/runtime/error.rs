//! What can be wrong with a model, a feed or a run.

use mnnq_format::FormatError;

use crate::ops::OpError;
use crate::tensor::{DType, Shape, ShapeError, TensorError};

/// An error of the runtime.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RuntimeError {
    /// The file cannot be read or breaks the format.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// The model uses operators or attributes that are not supported.
    #[error("{} not supported:\n  {}", problems.len(), problems.join("\n  "))]
    Unsupported {
        /// One line per problem, with the node.
        problems: Vec<String>,
    },
    /// The graph breaks a rule that the file format does not.
    #[error("{place}: {problem}")]
    Graph {
        /// Node or tensor.
        place: String,
        /// What is wrong.
        problem: String,
    },
    /// An operator cannot be planned or run.
    #[error("{op_type} {node:?}: {source}")]
    Op {
        /// Name of the node.
        node: String,
        /// Its operator type.
        op_type: String,
        /// What is wrong.
        source: OpError,
    },
    /// An input of the model was not given.
    #[error("input {name:?} is missing; the model needs {wanted}")]
    MissingInput {
        /// The input.
        name: String,
        /// Its type and shape.
        wanted: String,
    },
    /// A tensor was given that is no input of the model.
    #[error("{name:?} is no input of the model; its inputs are {known:?}")]
    UnknownInput {
        /// The name given.
        name: String,
        /// The inputs of the model.
        known: Vec<String>,
    },
    /// An input of the wrong type was given.
    #[error("input {name:?} is {got}, wanted {wanted}")]
    InputType {
        /// The input.
        name: String,
        /// Its type in the model.
        wanted: DType,
        /// The type given.
        got: String,
    },
    /// An input of the wrong shape was given.
    #[error("input {name:?} has shape {got}, wanted {wanted:?} (-1: any)")]
    InputShape {
        /// The input.
        name: String,
        /// Its shape in the model.
        wanted: Vec<i64>,
        /// The shape given.
        got: Box<Shape>,
    },
    /// An input holds NaN.
    #[error("input {name:?} holds NaN, first at element {index}; the option allow_nan admits it")]
    NanInput {
        /// The input.
        name: String,
        /// Position of the first NaN, in row-major order.
        index: usize,
    },
    /// An output that the model does not have was asked for.
    #[error("{name:?} is no output of the model; its outputs are {known:?}")]
    UnknownOutput {
        /// The name asked for.
        name: String,
        /// The outputs of the model.
        known: Vec<String>,
    },
    /// An option has a value that it cannot have.
    #[error("option {key} is {got}, wanted {wanted}")]
    Option {
        /// The option.
        key: &'static str,
        /// Its value.
        got: String,
        /// The values allowed.
        wanted: String,
    },
    /// The threads of a session cannot be started.
    #[error("cannot start {threads} threads: {problem}")]
    Threads {
        /// Their number.
        threads: usize,
        /// What the operating system says.
        problem: String,
    },
    /// The tensors of a run need more memory than there is.
    #[error("not enough memory: {bytes} bytes more are needed for tensors of these shapes")]
    Memory {
        /// What could not be had.
        bytes: usize,
    },
    /// Shapes that cannot be.
    #[error(transparent)]
    Shape(#[from] ShapeError),
    /// Contents that do not fit their shape.
    #[error(transparent)]
    Tensor(#[from] TensorError),
    /// A panic inside the runtime, i.e. a bug.
    #[error("internal error: {problem}")]
    Internal {
        /// What happened.
        problem: String,
    },
}
