//! Convolutions on quantized weights in integers, with activations quantized while running.
//!
//! | part | what |
//! | --- | --- |
//! | `rows` | the quantized copy of an activation, made once for all consumers that want the same ([`QuantizedRows`]) |
//! | `weights` | weights in few bits, packed for the integer kernels |
//! | `conv` | the kernel: rows as they are (1 x 1), or windows quantized on the way |
//! | `cost` | whether a layer is faster in integers or in floats on this CPU |
//!
//! With `x = s q + c` for a row of activations and `w = a p + b` for a block of weights,
//! `y = bias + s sum_b (a_b sum q p + b_b sum q) + c sum w`: integer products, the rest per row, block or column.

mod conv;
pub(crate) mod cost;
mod rows;
mod weights;

pub(super) use conv::{IntegerConv, shared_rows};
pub(crate) use rows::{QuantizedRows, quantize_kernel};
pub(super) use weights::DynamicWeights;
