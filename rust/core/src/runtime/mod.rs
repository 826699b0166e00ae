//! Planning and running graphs.

pub(crate) mod arena;
pub mod config;
pub mod error;
pub mod executor;
pub(crate) mod host;
mod lifetimes;
mod lower;
pub mod parallel;
pub(crate) mod plan;
mod planner;
pub mod profile;
pub mod session;

pub use config::{DynamicMode, Int8Mode, MemoryMode, PrecisionMode, SessionOptions};
pub use error::RuntimeError;
pub use executor::Executor;
pub use parallel::Parallel;
pub use plan::Observer;
pub use profile::{PlanInfo, StepProfile};
pub use session::{Consumer, Session, TensorInfo};
