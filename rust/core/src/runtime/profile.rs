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

/// What running a model on inputs of some shapes takes.
#[derive(Debug, Clone)]
pub struct PlanInfo {
    /// Bytes of all intermediate tensors and scratch memory together, as the plan lays them out.
    pub arena_bytes: usize,
    /// Products that convolutions, matrix products and the like sum.
    pub multiply_adds: u64,
    /// Steps.
    pub steps: usize,
    /// The outputs: name and description, `None` where only running tells.
    pub outputs: Vec<(String, Option<TensorDesc>)>,
    /// Whether this is all. Otherwise further steps depend on contents that only running gives.
    pub complete: bool,
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
