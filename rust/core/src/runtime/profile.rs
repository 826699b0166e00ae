//! What ran and how long.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::plan::Step;
use crate::tensor::TensorDesc;

/// One step of a plan: what ran, on what, how long.
#[derive(Debug, Clone)]
pub struct StepProfile {
    /// Name of the node.
    pub node: String,
    /// Its operator type, or "layout" for a conversion that the planner has inserted.
    pub op_type: String,
    /// The kernel: algorithm, types, fused steps, what the modes did.
    pub kernel: String,
    /// The outputs.
    pub outputs: Vec<TensorDesc>,
    /// How often it has run.
    pub runs: u64,
    /// Time spent in all runs.
    pub time: Duration,
}

impl StepProfile {
    pub(crate) fn of(step: &Step) -> Self {
        Self {
            node: step.node.clone(),
            op_type: step.op_type.clone(),
            kernel: step.kernel.label().into_owned(),
            outputs: step.outputs.to_vec(),
            runs: step.runs.load(Ordering::Relaxed),
            time: Duration::from_nanos(step.nanoseconds.load(Ordering::Relaxed)),
        }
    }
}
