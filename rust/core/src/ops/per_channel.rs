//! Functions with one parameter per channel (axis 1): `Scale` and `PReLU`.

use std::borrow::Cow;

use mnnq_format::schema::{TableKind, p_relu, scale};

use super::epilogue::Epilogue;
use super::error::{OpError, OpResult};
use super::operator::{Facts, InferResult, Kernel, Layouts, Operator, PrepareContext, StepIo};
use super::registry::OpSource;
use super::support::{floats, for_each_outer, split_physical};
use crate::tensor::{DType, TensorDesc};

#[derive(Debug, Clone)]
enum Function {
    /// `x * scale[c] + bias[c]`
    Affine { scale: Vec<f32>, bias: Vec<f32> },
    /// `x` if positive, else `x * slope[c]`
    PRelu { slope: Vec<f32> },
}

impl Function {
    fn channels(&self) -> usize {
        match self {
            Self::Affine { scale, .. } => scale.len(),
            Self::PRelu { slope } => slope.len(),
        }
    }

    /// One channel after the other.
    fn along(&self, data: &mut [f32]) {
        match self {
            Self::Affine { scale, bias } => {
                for ((x, scale), bias) in data.iter_mut().zip(scale).zip(bias) {
                    *x = *x * scale + bias;
                }
            }
            Self::PRelu { slope } => {
                for (x, slope) in data.iter_mut().zip(slope) {
                    *x = if *x < 0.0 { *x * slope } else { *x };
                }
            }
        }
    }

    /// All of one channel.
    fn within(&self, channel: usize, data: &mut [f32]) {
        match self {
            Self::Affine { scale, bias } => {
                let (scale, bias) = (scale[channel], bias[channel]);
                data.iter_mut().for_each(|x| *x = *x * scale + bias);
            }
            Self::PRelu { slope } => {
                let slope = slope[channel];
                data.iter_mut().for_each(|x| *x = if *x < 0.0 { *x * slope } else { *x });
            }
        }
    }
}

/// `Scale`: `y = x * scaleData[c] + biasData[c]`, c along axis 1.
impl PerChannel {
    pub(super) fn scale(source: &OpSource<'_>) -> OpResult<Self> {
        source.expect_outputs(1)?;
        let table = source.param(TableKind::Scale)?;
        let scale = floats(table.get(scale::SCALE_DATA));
        let mut bias = floats(table.get(scale::BIAS_DATA));
        if bias.is_empty() {
            bias = vec![0.0; scale.len()];
        }
        if bias.len() != scale.len() {
            return Err(OpError::attribute("biasData", bias.len(), format!("{} values", scale.len())));
        }
        Ok(Self { name: "scale", function: Function::Affine { scale, bias } })
    }
}

/// `PReLU`: `y = x` if positive, else `x * slope[c]`, c along axis 1.
impl PerChannel {
    pub(super) fn prelu(source: &OpSource<'_>) -> OpResult<Self> {
        source.expect_outputs(1)?;
        let slope = floats(source.param(TableKind::PRelu)?.get(p_relu::SLOPE));
        if slope.is_empty() {
            return Err(OpError::attribute("slope", "empty", "one value per channel"));
        }
        Ok(Self { name: "prelu", function: Function::PRelu { slope } })
    }
}

pub(super) struct PerChannel {
    name: &'static str,
    function: Function,
}

impl Operator for PerChannel {
    fn infer(&self, inputs: &Facts<'_>) -> InferResult {
        let desc = inputs.typed(0, DType::F32)?;
        let channels = self.function.channels();
        if desc.shape.rank() < 2 || (desc.shape[1] != channels && channels != 1) {
            return Err(OpError::shape(0, desc.shape, format!("{channels} channels in axis 1")).into());
        }
        Ok(vec![desc])
    }

    fn layouts(&self, inputs: &Facts<'_>, outputs: &[TensorDesc]) -> Layouts {
        Layouts::follow(inputs, outputs.len())
    }

    fn in_place(&self) -> &'static [usize] {
        &[0]
    }

    fn accepts_epilogue(&self) -> bool {
        true
    }

    fn prepare(&self, context: &PrepareContext<'_>) -> OpResult<Box<dyn Kernel>> {
        let desc = context.inputs.desc(0)?;
        let (_, channels, inner) = split_physical(&desc, 1);
        let mut function = self.function.clone();
        if function.channels() == 1 && channels != 1 {
            let repeat = |v: &mut Vec<f32>| *v = vec![v[0]; channels];
            match &mut function {
                Function::Affine { scale, bias } => [scale, bias].into_iter().for_each(repeat),
                Function::PRelu { slope } => repeat(slope),
            }
        }
        Ok(Box::new(PerChannelKernel {
            name: self.name,
            function,
            channels,
            inner,
            epilogue: context.epilogue.clone(),
        }))
    }
}

struct PerChannelKernel {
    name: &'static str,
    function: Function,
    channels: usize,
    inner: usize,
    epilogue: Epilogue,
}

impl Kernel for PerChannelKernel {
    fn label(&self) -> Cow<'static, str> {
        format!("{} f32{}", self.name, self.epilogue.describe()).into()
    }

    fn run(&self, io: &mut StepIo<'_, '_>) -> OpResult<()> {
        let source = io.optional(0).map(|view| view.data::<f32>());
        let epilogue = self.epilogue.bind(io.inputs);
        let len = if self.inner == 1 { self.channels } else { self.inner };
        for_each_outer(io.parallel, io.outputs[0].data::<f32>(), len, |index, out| {
            if let Some(source) = source {
                out.copy_from_slice(&source[index * len..][..len]);
            }
            if self.inner == 1 {
                self.function.along(out);
            } else {
                self.function.within(index % self.channels, out);
            }
            epilogue.apply(index * len, out);
        });
        Ok(())
    }
}
