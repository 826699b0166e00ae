//! Quantizers and the graph runtime.
//!
//! * [`tensor`]: element types, shapes, layouts, views.
//! * [`graph`]: a model as operators and the tensors between them.
//! * [`ops`]: the operators.
//! * [`quant`]: quantizers of weights and activations.
//! * [`runtime`]: planning and running; [`Session`](runtime::Session) is where users start.
#![deny(unsafe_code)]

pub mod graph;
pub mod ops;
pub mod quant;
pub mod runtime;
pub mod tensor;
