//! Quantizers and the graph runtime.
#![deny(unsafe_code)]
pub mod quant;
