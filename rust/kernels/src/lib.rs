//! Hot loops over slices, chosen at run time for the CPU they run on.
//!
//! This crate knows slices and strides. It must not know graphs, files or tensor types.
//!
//! [`KernelSet::get`] names the kernel of each family for this CPU; the functions of the family modules take it. Images
//! are NHWC. Threads come from the caller, as an [`Executor`](parallel::Executor).
//!
//! ```
//! use mnnq_kernels::elementwise::Unary;
//! use mnnq_kernels::gemm_f32::{PackedB, gemm_f32, scratch_len};
//! use mnnq_kernels::parallel::Serial;
//! use mnnq_kernels::{AlignedVec, Epilogue, KernelSet};
//!
//! let kernel = &KernelSet::get()?.gemm_f32;
//! // Two output channels of three inputs each, as networks store them; packed once.
//! let weights = PackedB::from_columns(kernel, &[1.0, 0.0, -1.0, 2.0, 2.0, 2.0], 3, 2, 3)?;
//! let epilogue = Epilogue::new(Some(&[0.0, 10.0]), Unary::Relu);
//! let mut scratch = AlignedVec::zeros(scratch_len());
//! let mut out = [0.0; 2];
//! gemm_f32(kernel, 1, &[1.0, 2.0, 3.0], 3, &weights, &epilogue, &mut out, 2, &mut scratch, &Serial)?;
//! assert_eq!(out, [0.0, 22.0]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod aligned;
mod choice;
pub mod conv_f32;
pub mod conv_i8;
pub mod cpu;
pub mod depthwise_f32;
pub mod depthwise_i8;
mod dispatch;
pub mod elementwise;
pub mod elementwise_i8;
mod epilogue;
mod error;
pub mod gemm_f32;
pub mod gemm_half;
pub mod gemm_i8;
pub mod gemm_w4;
pub mod geometry;
pub mod half_rows;
pub mod multiversion;
pub mod normalize;
pub mod parallel;
pub mod pool;
pub mod quantize_rows;
pub mod quantize_windows;
pub mod reduce;
pub mod simd;
pub mod softmax;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod transpose;
pub mod winograd_f32;
pub mod winograd_i8;

pub use aligned::{AlignedBytes, AlignedVec};
pub use dispatch::{KernelChoice, KernelSet};
pub use epilogue::{Epilogue, Residual};
pub use error::KernelError;
