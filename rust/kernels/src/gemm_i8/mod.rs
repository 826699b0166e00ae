//! Int8 matrix product with prepacked weights, exact in 32-bit integers, and a fused epilogue.
//!
//! `C[m, n] = epilogue(sum over k of (A[m, k] - zero) B[k, n])`.
//!
//! | step | where | what |
//! | --- | --- | --- |
//! | weights | [`PackedI8`] | panels of `nr` columns in groups of `k`, once, at load; column sums and input zero point become the value that each sum starts from |
//! | rows of A | `RowSource` | a block of rows is copied to scratch in chunks of 512 bytes, shifted or widened as the instructions want |
//! | tile | `dot::tile` | `mr x nr` sums in registers over the whole of `k` |
//! | epilogue | `dequantize`, `requantize` | over the tile while it is in the first-level cache; see [`Output`] |
//!
//! | kernel | instructions | operands |
//! | --- | --- | --- |
//! | `baseline` | plain code | i8 x i8 |
//! | `avx2`, `avx512` | `vpmaddwd` | both widened to i16 |
//! | `avxvnni`, `avx512vnni` | `vpdpbusd` | A as u8 (code + 128), B as i8 |
//! | `neon` | `smlal` by lane | both widened to i16 |
//! | `dotprod` | `sdot` by lane | i8 x i8 |
//! | `i8mm` | `smmla` | i8 x i8, pairs of rows and columns |
//!
//! Every kernel returns the same integers. The epilogues are single multiplications and additions in `f32`, in a fixed
//! order and without fused operations, so int8 outputs are equal bit for bit too, on every instruction set and for
//! every number of threads.

#[cfg(target_arch = "aarch64")]
mod a64;
mod dequantize;
pub(crate) mod dot;
mod driver;
mod epilogue;
mod kernels;
mod pack;
mod portable;
mod reference;
mod requantize;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
mod x86_finish;
#[cfg(target_arch = "x86_64")]
mod x86_finish_narrow;
#[cfg(target_arch = "x86_64")]
pub(crate) mod x86_vectors;
#[cfg(target_arch = "x86_64")]
mod x86_vnni;
#[cfg(target_arch = "x86_64")]
mod x86_wide;

pub use dequantize::Dequantize;
pub(crate) use dequantize::{FloatTile, check_rows, finish_float};
pub(crate) use driver::product;
pub use driver::{gemm_i8, scratch_len};
pub use epilogue::Output;
pub(crate) use epilogue::{SharedOutput, Tile};
pub use kernels::GemmI8;
pub use pack::PackedI8;
pub(crate) use pack::{Block, MOST_K, MatrixRows, RowSource, check_zero};
pub use reference::gemm_i8_reference;
pub use requantize::{Requantize, ResidualI8, requantize_parameters};
