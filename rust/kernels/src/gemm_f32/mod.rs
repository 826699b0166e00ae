//! Float matrix product with prepacked weights and a fused epilogue.
//!
//! `C[m, n] = epilogue(A[m, k] B[k, n])`.
//!
//! | step | where | what |
//! | --- | --- | --- |
//! | weights | [`PackedB`] | panels of `nr` columns, once, at load |
//! | rows of A | `RowSource::pack` | a block of rows and [`K_BLOCK`](micro::K_BLOCK) columns is copied, row by row, into scratch; the row distance is a constant |
//! | tile | `micro::tile` | `mr x nr` accumulators in registers, A broadcast, B streamed |
//! | epilogue | `micro::finish`, or a pass over the finished tile | see [`Epilogue`] |
//!
//! A convolution is the same product with another `RowSource` (see [`crate::conv_f32`]). Each element is summed over
//! `k` in ascending order in blocks that depend on `k` only: results do not depend on the number of threads.

mod driver;
mod kernels;
pub(crate) mod micro;
mod pack;
mod reference;
#[cfg(test)]
mod tests;

#[cfg(doc)]
use crate::epilogue::Epilogue;
pub(crate) use driver::{Output, product, product_view, tile_epilogue};
pub use driver::{gemm_f32, gemm_view_f32, scratch_len};
pub use kernels::GemmF32;
pub(crate) use pack::{MatrixRows, RowSource, ScaledRows, copy_run};
pub use pack::{PackedB, PackedView};
pub use reference::gemm_f32_reference;
