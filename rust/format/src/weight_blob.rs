//! The layout of quantized weights in a file: header, value table, packed codes, sparse steps, scales.
//!
//! This module is the only owner of that layout. It turns [`QuantizedWeights`] into the bytes and scales of an
//! `IDSTQuan` table and back. Payloads come from untrusted files: every length, position and table index is
//! checked before use.
//!
//! | storage type | buffer |
//! | --- | --- |
//! | 1 | dims, value table, dense indices |
//! | 2 | dims, sparse steps, value table, indices of the listed entries |
//! | 3 | half floats, nothing else |
//! | 4 | int8 codes, nothing else |
#![deny(clippy::as_conversions, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

mod decode;
mod encode;

pub use decode::{Description, decode, decode_half, decode_sparse_float, describe};
pub use encode::{EncodeOptions, EncodedWeights, ScaleStorage, encode, half_bytes, half_table};

/// The code that stands for zero in an asymmetric row: `round(-min / scale) - 2^(bits-1)`, rounding half away
/// from zero, or `-2^(bits-1)` for a row without extent (`scale <= 1e-6`). It can lie outside of the codes.
pub(crate) fn zero_code(min: f32, scale: f32, bits: u8) -> i32 {
    let half = f32::from(crate::quantized::half(bits));
    let zero = if scale <= 1e-6 { -half } else { (-min / scale).round() - half };
    saturate_i32(zero)
}

/// The integer nearest to zero at or below |x|, saturated; 0 for NaN.
#[expect(clippy::as_conversions, reason = "float to int `as` saturates and maps NaN to 0, which is wanted")]
fn saturate_i32(x: f32) -> i32 {
    x as i32
}
