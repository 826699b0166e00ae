//! Matrix product in 16-bit floats: both operands rounded to half precision, sums in single precision.
//!
//! `C[m, n] = epilogue(sum over k of half(A[m, k]) half(B[k, n]))`, A and C in `f32` in memory.
//!
//! | kernel | instructions | operands | sums |
//! | --- | --- | --- | --- |
//! | `avx512bf16` | `vdpbf16ps` | bfloat16, pairs of `k` | `f32` |
//! | `fp16` (aarch64) | `fmla .8h` | binary16 | binary16 over [`FLUSH`] products, then `f32` |
//! | `baseline` | plain code, for tests | bfloat16 | `f32` |
//!
//! bfloat16 has the range of `f32` and 8 significant bits. binary16 has 11 and ends at 65504: larger activations become
//! infinite. Rows are packed as by [`gemm_f32`](crate::gemm_f32) and rounded on the way; a convolution is the same product over windows
//! ([`conv_half`]). Every element is summed over `k` in ascending order in blocks that depend on `k` only: results do not
//! depend on the number of threads.

#[cfg(target_arch = "aarch64")]
mod a64;
mod conv;
mod driver;
mod kernels;
mod pack;
mod portable;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
mod x86;

pub use conv::{PackedConvHalf, conv_half};
pub use driver::{gemm_half, scratch_len};
pub use kernels::GemmHalf;
pub use pack::PackedHalf;

/// Products that are summed in binary16 before they are added to the sum in `f32`.
pub const FLUSH: usize = 32;
