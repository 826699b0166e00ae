//! Hot loops over slices, chosen at run time for the CPU they run on.
//!
//! This crate knows slices and strides. It must not know graphs, files or tensor types.
pub mod multiversion;
