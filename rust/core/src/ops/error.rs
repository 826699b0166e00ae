//! What can be wrong with one operator.

use mnnq_format::FormatError;
use mnnq_kernels::KernelError;

use crate::tensor::{DType, Shape, ShapeError, TensorError};

/// Short for results of operators.
pub type OpResult<T> = Result<T, OpError>;

/// An operator that cannot be built, planned or run. The node's name is added by the graph.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpError {
    /// The operator's parameter table is missing or of another kind.
    #[error("the parameter table is {got}, wanted {wanted}")]
    Parameter {
        /// The table wanted.
        wanted: &'static str,
        /// What the file has.
        got: String,
    },
    /// A field of the parameter table has a value that the operator cannot have.
    #[error("{key} is {got}, wanted {wanted}")]
    Attribute {
        /// The field.
        key: &'static str,
        /// Its value.
        got: String,
        /// The values allowed.
        wanted: String,
    },
    /// The operator is known, this use of it is not supported.
    #[error("{what} is not supported")]
    Unsupported {
        /// The use.
        what: String,
    },
    /// A mandatory input is absent.
    #[error("input {input} is absent")]
    MissingInput {
        /// Position of the input.
        input: usize,
    },
    /// Wrong number of outputs.
    #[error("{got} outputs, wanted {wanted}")]
    OutputCount {
        /// Outputs the operator has.
        wanted: usize,
        /// Outputs in the file.
        got: usize,
    },
    /// An input has the wrong element type.
    #[error("input {input} is {got}, wanted {wanted}")]
    InputType {
        /// Position of the input.
        input: usize,
        /// Types allowed.
        wanted: String,
        /// Its type.
        got: DType,
    },
    /// An input has a shape that the operator cannot take.
    #[error("input {input} has shape {got}, wanted {wanted}")]
    InputShape {
        /// Position of the input.
        input: usize,
        /// Its shape.
        got: Box<Shape>,
        /// In words, the shapes allowed.
        wanted: String,
    },
    /// An axis outside the tensor.
    #[error("axis {axis} is outside of rank {rank}")]
    Axis {
        /// The axis.
        axis: i64,
        /// The rank.
        rank: usize,
    },
    /// A value in an input that the operator cannot take.
    #[error("input {input}: {problem}")]
    InputValue {
        /// Position of the input.
        input: usize,
        /// What is wrong.
        problem: String,
    },
    /// A body graph cannot be planned or run.
    #[error("subgraph {name:?}: {problem}")]
    Subgraph {
        /// The subgraph.
        name: String,
        /// Its error.
        problem: String,
    },
    /// The loops of a run take more iterations than the options allow.
    #[error(
        "the loops of this run take more than {limit} iterations (option max_loop_iterations); the condition may never fail"
    )]
    Iterations {
        /// Iterations allowed.
        limit: u64,
    },
    /// Shapes that cannot be.
    #[error(transparent)]
    Shape(#[from] ShapeError),
    /// Contents that do not fit their shape.
    #[error(transparent)]
    Tensor(#[from] TensorError),
    /// A kernel refuses its arguments.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The parameter table breaks the format.
    #[error(transparent)]
    Format(#[from] FormatError),
}

impl OpError {
    /// [`OpError::Unsupported`].
    pub fn unsupported(what: impl Into<String>) -> Self {
        Self::Unsupported { what: what.into() }
    }

    /// [`OpError::Attribute`].
    pub fn attribute(key: &'static str, got: impl ToString, wanted: impl Into<String>) -> Self {
        Self::Attribute { key, got: got.to_string(), wanted: wanted.into() }
    }

    /// [`OpError::InputShape`].
    pub fn shape(input: usize, got: Shape, wanted: impl Into<String>) -> Self {
        Self::InputShape { input, got: Box::new(got), wanted: wanted.into() }
    }

    /// [`OpError::InputValue`].
    pub fn value(input: usize, problem: impl Into<String>) -> Self {
        Self::InputValue { input, problem: problem.into() }
    }
}
