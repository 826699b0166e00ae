//! A `.mnn` file in and out: schema, verified reading, writing, weight payloads.
//!
//! This crate knows bytes. It must not compute: no quantizer, no operator lives here.
#![deny(unsafe_code)]

pub mod bitpack;
pub mod error;
pub mod quantized;
pub mod weight_blob;

pub use error::{FormatError, Problem, Result};
pub use quantized::QuantizedWeights;
