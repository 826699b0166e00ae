//! Statistics of activations, and ranges from them.
//!
//! [`Histogram`] counts; [`TensorStatistics`] adds what else a method needs; [`ranges`] and [`kl`] choose ranges. All of it
//! is constant in size however many samples are seen, and statistics of parts of the data merge to those of the whole.

pub mod channels;
pub mod encoding;
pub mod histogram;
pub mod kl;
pub mod ranges;
pub mod statistics;

pub use channels::ChannelStatistics;
pub use histogram::{HALF, Histogram, NotFinite};
pub use ranges::{Codes, Grid};
pub use statistics::{Method, Moving, TensorStatistics};
