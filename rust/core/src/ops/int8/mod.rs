//! Operators on the codes of offline-quantized tensors.
//!
//! Which node runs on codes is decided when the graph is built (`graph/int8.rs`); the operators here take and give int8
//! tensors and know the quantization of both. `docs/int8.md` has the arithmetic.

mod conv;
mod convert;
mod elementwise;
mod pool;

use mnnq_kernels::quantize_rows::StaticCodes;

use super::epilogue::QuantInfo;
use super::registry::OpSource;

pub(super) use conv::{IntConv, IntQuant};
pub(crate) use convert::{dequantize, quantize};
pub(crate) use elementwise::{binary, rescale, table};
pub(crate) use pool::pool;

impl QuantInfo {
    /// Scale, zero point and bounds as the kernels take them.
    #[must_use]
    pub fn codes(&self) -> StaticCodes {
        let code = |x: f32| x.clamp(-128.0, 127.0) as i32;
        StaticCodes { scale: self.scale, zero: code(self.zero), lo: code(self.min), hi: code(self.max) }
    }

    /// Whether two tensors have the same real numbers for the same codes.
    #[must_use]
    pub fn same_grid(&self, other: &Self) -> bool {
        self.scale == other.scale && self.zero == other.zero
    }

    /// Whether rounding a number of this tensor to the grid of the other gives the same code: the same codes, and scales
    /// that differ by at most 1e-5 of them, so that no code moves by more than 255e-5.
    #[must_use]
    pub fn same_codes(&self, other: &Self) -> bool {
        let near = (self.scale - other.scale).abs() <= 1e-5 * other.scale;
        near && (self.zero, self.min, self.max) == (other.zero, other.min, other.max)
    }
}

/// Quantization of an input and of the output, if the tensors are described.
pub(crate) fn described(source: &OpSource<'_>, input: usize) -> Option<(QuantInfo, QuantInfo)> {
    Some((source.input_quant.get(input).copied().flatten()?, source.output_quant.first().copied().flatten()?))
}
