//! `LayerNorm`, also as root-mean-square normalization.

use std::borrow::Cow;

use mnnq_format::schema::{TableKind, layer_norm};
use mnnq_kernels::normalize::{Normalize, normalize_f32};

use super::error::{OpError, OpResult};
use super::operator::{Facts, InferResult, Kernel, Operator, PrepareContext, StepIo};
use super::registry::OpSource;
use super::support::{CHUNK, floats, ints, kernels};
use crate::runtime::config::PrecisionMode;
use crate::tensor::{DType, Shape};

/// `LayerNorm(axis list, epsilon, gamma, beta)` over the innermost axes listed:
/// `(x - mean) / sqrt(variance + epsilon) * gamma + beta`; with useRMSNorm `x / sqrt(mean(x^2) + epsilon)`.
pub(super) struct LayerNorm {
    axes: Vec<i64>,
    epsilon: f32,
    gamma: Option<Vec<f32>>,
    beta: Option<Vec<f32>>,
    kind: Normalize,
}

impl LayerNorm {
    pub(super) fn new(source: &OpSource<'_>) -> OpResult<Self> {
        source.expect_outputs(1)?;
        let table = source.param(TableKind::LayerNorm)?;
        let axes = ints(table.get(layer_norm::AXIS)).unwrap_or_default();
        if axes.is_empty() {
            return Err(OpError::attribute("axis", "empty", "the innermost axes"));
        }
        if table.get(layer_norm::GROUP) > 1 {
            return Err(OpError::unsupported(format!("group {}", table.get(layer_norm::GROUP))));
        }
        let values = |field| Some(floats(table.get(field))).filter(|values| !values.is_empty());
        let rms = table.get(layer_norm::USE_RMS_NORM);
        Ok(Self {
            axes,
            epsilon: table.get(layer_norm::EPSILON),
            gamma: values(layer_norm::GAMMA),
            beta: values(layer_norm::BETA).filter(|beta| !(rms && beta.iter().all(|&b| b == 0.0))),
            kind: if rms { Normalize::RootMeanSquare } else { Normalize::Layer },
        })
    }

    /// Elements that are normalized together.
    fn columns(&self, shape: &Shape) -> OpResult<usize> {
        let rank = shape.rank();
        let axes = super::support::axes(&self.axes, rank)?;
        let first = rank - axes.len();
        if axes.iter().copied().ne(first..rank) {
            return Err(OpError::attribute("axis", format!("{:?}", self.axes), "the innermost axes"));
        }
        let columns = shape.span(first..rank);
        for values in [&self.gamma, &self.beta].into_iter().flatten() {
            if values.len() != columns {
                return Err(OpError::shape(0, *shape, format!("{} elements per row", values.len())));
            }
        }
        Ok(columns)
    }
}

impl Operator for LayerNorm {
    fn infer(&self, inputs: &Facts<'_>) -> InferResult {
        let desc = inputs.typed(0, DType::F32)?;
        self.columns(&desc.shape)?;
        Ok(vec![desc])
    }

    fn prepare(&self, context: &PrepareContext<'_>) -> OpResult<Box<dyn Kernel>> {
        let columns = self.columns(&context.inputs.shape(0)?)?;
        Ok(Box::new(LayerNormKernel {
            columns,
            epsilon: self.epsilon,
            gamma: self.gamma.clone(),
            beta: self.beta.clone(),
            kind: self.kind,
            double: context.options.precision == PrecisionMode::High,
        }))
    }
}

struct LayerNormKernel {
    columns: usize,
    epsilon: f32,
    gamma: Option<Vec<f32>>,
    beta: Option<Vec<f32>>,
    kind: Normalize,
    double: bool,
}

impl Kernel for LayerNormKernel {
    fn label(&self) -> Cow<'static, str> {
        let kind = if self.kind == Normalize::Layer { "layer norm" } else { "rms norm" };
        let sums = if self.double { ", sums in float64" } else { "" };
        format!("{kind} f32 {}{sums}", kernels().reduce_f32.level()).into()
    }

    fn run(&self, io: &mut StepIo<'_, '_>) -> OpResult<()> {
        let x = io.input(0).data::<f32>();
        if self.columns == 0 {
            return Ok(());
        }
        let len = CHUNK.div_ceil(self.columns).max(1) * self.columns;
        let failed = std::sync::Mutex::new(None);
        io.parallel.for_each_chunk(io.outputs[0].data::<f32>(), len, |index, out| {
            let x = &x[index * len..][..out.len()];
            if self.double {
                self.in_double(x, out);
                return;
            }
            let (isa, gamma, beta) = (kernels().reduce_f32, self.gamma.as_deref(), self.beta.as_deref());
            let done = normalize_f32(isa, self.kind, self.columns, x, gamma, beta, self.epsilon, out);
            if let Err(error) = done {
                *failed.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(error);
            }
        });
        match failed.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner) {
            Some(error) => Err(error.into()),
            None => Ok(()),
        }
    }
}

impl LayerNormKernel {
    fn in_double(&self, x: &[f32], out: &mut [f32]) {
        for (x, out) in x.chunks_exact(self.columns).zip(out.chunks_exact_mut(self.columns)) {
            let n = self.columns as f64;
            let mean = match self.kind {
                Normalize::Layer => x.iter().map(|&v| f64::from(v)).sum::<f64>() / n,
                Normalize::RootMeanSquare => 0.0,
            };
            let variance = x.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / n;
            let scale = 1.0 / (variance + f64::from(self.epsilon)).sqrt();
            for (c, (out, &x)) in out.iter_mut().zip(x).enumerate() {
                let gamma = self.gamma.as_ref().map_or(1.0, |gamma| f64::from(gamma[c]));
                let beta = self.beta.as_ref().map_or(0.0, |beta| f64::from(beta[c]));
                *out = ((f64::from(x) - mean) * scale * gamma + beta) as f32;
            }
        }
    }
}
