//! Quantizers: the formulas, their parameters and the methods that choose them.
//!
//! A formula has one owner: [`affine`] for the mapping between weights and codes, one file per method in
//! [`weight`]. This module knows matrices and numbers; it must not know graphs or files.

pub mod affine;
pub mod difference;
pub mod error;
pub mod linalg;
pub mod moments;
pub mod observer;
pub mod spec;
pub mod weight;

pub use error::QuantError;
pub use spec::{BitWidth, Granularity, ScaleStorage, Scheme, WeightMethod, WeightQuantSpec};
