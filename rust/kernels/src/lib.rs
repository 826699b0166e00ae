//! Hot loops over slices, chosen at run time for the CPU they run on.
//!
//! This crate knows slices and strides. It must not know graphs, files or tensor types.

mod aligned;
pub mod conv_f32;
pub mod cpu;
pub mod depthwise_f32;
mod dispatch;
pub mod elementwise;
mod epilogue;
mod error;
pub mod gemm_f32;
pub mod geometry;
pub mod half_rows;
pub mod multiversion;
pub mod normalize;
pub mod parallel;
pub mod pool;
pub mod reduce;
pub mod simd;
pub mod softmax;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod transpose;

pub use aligned::AlignedVec;
pub use dispatch::{KernelChoice, KernelSet};
pub use epilogue::{Epilogue, Residual};
pub use error::KernelError;
