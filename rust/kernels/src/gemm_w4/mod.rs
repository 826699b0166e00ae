//! Products of block-wise quantized weights of 2 to 8 bits and int8 activations.
//!
//! Weights `w = scale p + offset` have a scale (and an offset) per output column and block of `k`, activations
//! `x = row_scale q + row_offset` per row. With blocks `b` of `k`:
//!
//! ```text
//! out = epilogue(row_scale * sum over b of (scale_b P_b + offset_b X_b) + row_offset * W)
//! P_b = sum over k in b of q p      exact, in 32-bit integers
//! X_b = sum over k in b of q        once per row, from quantize_rows
//! W   = sum over k of w             once per column, at load
//! ```
//!
//! Codes of up to four bits stay nibbles in memory and are split in registers; wider ones are bytes. Stored unsigned (`u
//! = p + 8` or `p + 128`), they are the unsigned operand of `vpdpbusd` and the activations need no shift: `P = U - 8 X`
//! is where the sums of a block start.
//!
//! A panel of columns is one stream of memory: for each block its codes, scales and offsets. One row is multiplied
//! with several panels at a time, to keep loads of several streams under way; more rows share the split codes.
//!
//! Sums of blocks are added in `f32` in the order of `k`, without fused operations: the results are equal bit for bit
//! on every instruction set and for every number of threads.

#[cfg(target_arch = "aarch64")]
mod a64;
mod driver;
mod kernels;
mod micro;
mod pack;
mod portable;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
mod x86;

pub use driver::{BlockRows, gemm_w4, gemm_w4_scratch_len};
pub use kernels::GemmW4;
pub use pack::{BlockWeights, PackedBlocks};
