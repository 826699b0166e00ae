//! Hot loops over slices, chosen at run time for the CPU they run on.
//!
//! This crate knows slices and strides. It must not know graphs, files or tensor types.

pub mod cpu;
mod dispatch;
pub mod multiversion;
pub mod simd;
#[cfg(any(test, feature = "testing"))]
pub mod testing;

pub use dispatch::{KernelChoice, KernelSet};
