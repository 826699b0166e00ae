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
    /// An input of a calibrated layer does not fit it.
    #[error("an input of shape {shape:?} does not fit a layer of {channels} input channels{what}")]
    Sample {
        /// Shape of the input.
        shape: Vec<usize>,
        /// Input channels of the layer.
        channels: usize,
        /// What else is wrong, after a comma or empty.
        what: &'static str,
    },
    /// A value of a calibrated layer's input is infinite or not a number.
    #[error("the layer's input holds {value} on a calibration sample; its statistics need finite values")]
    NonFiniteSample {
        /// The value found.
        value: f32,
    },
    /// A matrix does not fit the statistics of its inputs.
    #[error(
        "a weight matrix [{rows}, {row_len}] does not fit statistics of {groups} groups of {columns} inputs"
    )]
    Statistics {
        /// Rows of the matrix.
        rows: usize,
        /// Elements per row.
        row_len: usize,
        /// Groups of the statistics.
        groups: usize,
        /// Inputs per group.
        columns: usize,
    },
    /// Kernels do not fit the blocks, or their correlation is none.
    #[error("blocks of {block} weights cannot be kernels of {taps} taps with a correlation of {correlation}")]
    Taps {
        /// Weights per kernel.
        taps: usize,
        /// Weights per block.
        block: usize,
        /// Correlation of the inputs of a kernel.
        correlation: f64,
    },
    /// Statistics were collected from nothing.
    #[error("no calibration data was collected for the layer")]
    NoData,
    /// A kernel refused its arguments.
    #[error("{reason}")]
    Kernel {
        /// What the kernel said.
        reason: String,
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
    /// An error of a kernel.
    pub(super) fn kernel(error: impl std::fmt::Display) -> Self {
        Self::Kernel { reason: error.to_string() }
    }

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
            Self::Sample { .. } | Self::NonFiniteSample { .. } | Self::Statistics { .. } | Self::NoData => {
                "calib"
            }
            Self::Taps { .. } => "taps",
            Self::Threads { .. } | Self::Kernel { .. } => "threads",
        }
    }
}
