//! A `.mnn` file in and out: schema, verified reading, writing, weight payloads.
//!
//! This crate knows bytes. It must not compute: no quantizer, no operator lives here.
//!
//! * [`read`], [`read_file`]: bytes or a file to a [`Model`], everything checked.
//! * [`model`], [`schema`]: the model as an owned tree with typed access.
//! * [`writer`]: a [`Model`] to a file.
//! * [`weight_blob`], [`conv_weights`](mod@conv_weights), [`blob`]: weights and tensor data as numbers.
#![deny(unsafe_code)]

pub mod bitpack;
pub mod blob;
pub mod conv_weights;
pub mod error;
pub mod external;
mod mapping;
pub mod model;
pub mod quantized;
pub mod reader;
pub mod schema;
pub mod validate;
pub mod weight_blob;
pub mod writer;

pub use conv_weights::{ConvWeights, conv_weights, describe_conv_weights};
pub use error::{FormatError, Problem, Result};
pub use external::{SideFile, read_file};
pub use model::{Model, Numbers, Table, Value};
pub use quantized::QuantizedWeights;
pub use reader::{ReadLimits, read};
pub use validate::validate;
pub use writer::{WriteOptions, to_bytes, write_file};
