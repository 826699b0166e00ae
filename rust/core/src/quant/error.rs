//! What can go wrong while quantizing.

use thiserror::Error;

/// An error of the quantizers.
#[derive(Debug, Error, Clone, PartialEq)]
#[non_exhaustive]
pub enum QuantError {
    /// The bit width is not supported.
    #[error("bit width {bits} is not supported; use 2 to 8")]
    BitWidth {
        /// What was asked for.
        bits: u32,
    },
    /// The block length does not divide the rows.
    #[error(
        "block length {len} does not divide the row length {row_len}; use a divisor, or one block per channel"
    )]
    BlockLength {
        /// The block length asked for.
        len: usize,
        /// Elements per row.
        row_len: usize,
    },
    /// No method has this name.
    #[error("unknown weight quantization method {name:?}; use \"rtn\", \"hqq\", \"hqq_ref\" or \"search\"")]
    UnknownMethod {
        /// The name asked for.
        name: String,
    },
    /// The method fits an offset, which a symmetric file cannot store.
    #[error("method {method:?} optimizes the offset and needs the asymmetric scheme")]
    NeedsAsymmetric {
        /// The method's name.
        method: &'static str,
    },
    /// Not available with one scale for the whole tensor.
    #[error("{what} works per row; it cannot be combined with one scale per tensor")]
    NeedsPerRow {
        /// The method or option.
        what: &'static str,
    },
    /// The matrix has no elements.
    #[error("the weight matrix [{rows}, {row_len}] is empty")]
    Empty {
        /// Rows of the matrix.
        rows: usize,
        /// Elements per row.
        row_len: usize,
    },
    /// The matrix reaches beyond its data.
    #[error(
        "a matrix [{rows}, {row_len}] with strides [{row_stride}, {col_stride}] does not fit in {len} elements"
    )]
    Strides {
        /// Rows of the matrix.
        rows: usize,
        /// Elements per row.
        row_len: usize,
        /// Elements between consecutive rows.
        row_stride: usize,
        /// Elements between consecutive elements of a row.
        col_stride: usize,
        /// Elements there are.
        len: usize,
    },
    /// A weight is infinite or not a number.
    #[error("weight [{row}, {col}] is {value}; quantization needs finite weights")]
    NonFinite {
        /// Row (output channel).
        row: usize,
        /// Position in the row.
        col: usize,
        /// The value found.
        value: f32,
    },
    /// The range of a block, or a parameter derived from it, is beyond the floats it is computed in.
    #[error("the weights of row {row} are too large: the scale of block {block} overflows a 32-bit float")]
    RangeOverflow {
        /// Row (output channel).
        row: usize,
        /// Block in the row.
        block: usize,
    },
    /// A scale or minimum is beyond half floats.
    #[error(
        "row {row}, block {block}: scale {scale:e} or minimum {min:e} exceeds the largest half float, 65504; \
         store the scales as 32-bit floats"
    )]
    HalfOverflow {
        /// Row (output channel).
        row: usize,
        /// Block in the row.
        block: usize,
        /// The scale as computed.
        scale: f32,
        /// The minimum as computed (0 when symmetric).
        min: f32,
    },
    /// The thread pool could not be started.
    #[error("cannot start {threads} threads: {reason}")]
    Threads {
        /// Threads asked for.
        threads: usize,
        /// What the system said.
        reason: String,
    },
}

impl QuantError {
    /// The option the error is about, by its name in the Python interface; `weight` for the matrix itself.
    pub fn key(&self) -> &'static str {
        match self {
            Self::BitWidth { .. } => "bits",
            Self::BlockLength { .. } => "block",
            Self::UnknownMethod { .. } | Self::NeedsAsymmetric { .. } | Self::NeedsPerRow { .. } => "method",
            Self::Empty { .. }
            | Self::Strides { .. }
            | Self::NonFinite { .. }
            | Self::RangeOverflow { .. } => "weight",
            Self::HalfOverflow { .. } => "fp16_scales",
            Self::Threads { .. } => "threads",
        }
    }
}
