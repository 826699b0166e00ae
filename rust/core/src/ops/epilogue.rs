//! What is applied to the output of an operator before it is stored, as data.

use smallvec::SmallVec;

use super::operator::StepIo;
use super::unary::UnaryFn;
use crate::tensor::TensorView;

/// A function of one float.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Activation {
    /// `max(x, 0) + slope * min(x, 0)`.
    Relu {
        /// Slope for negative values.
        slope: f32,
    },
    /// `min(max(x, min), max)`.
    Clip {
        /// Lower bound.
        min: f32,
        /// Upper bound.
        max: f32,
    },
    /// One of the unary functions.
    Unary(UnaryFn),
    /// To the integers of a quantized tensor and back:
    /// `(clamp(round(x / scale) + zero, min, max) - zero) * scale`, rounding half away from zero.
    FakeQuant(QuantInfo),
}

/// How a tensor of an offline-quantized model is quantized: `real = (code - zero) * scale`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct QuantInfo {
    /// Distance of two codes.
    pub scale: f32,
    /// The code of 0.
    pub zero: f32,
    /// Smallest code.
    pub min: f32,
    /// Largest code.
    pub max: f32,
}

impl QuantInfo {
    /// The code of a value, as an integer-valued float.
    #[must_use]
    pub fn code(&self, x: f32) -> f32 {
        ((x / self.scale).round() + self.zero).clamp(self.min, self.max)
    }

    /// The value of a code.
    #[must_use]
    pub fn real(&self, code: f32) -> f32 {
        (code - self.zero) * self.scale
    }
}

impl Activation {
    /// Applies the function to every element.
    pub fn apply(&self, data: &mut [f32]) {
        match *self {
            Self::Relu { slope: 0.0 } => data.iter_mut().for_each(|x| *x = x.max(0.0)),
            Self::Relu { slope } => data.iter_mut().for_each(|x| *x = if *x < 0.0 { *x * slope } else { *x }),
            Self::Clip { min, max } => data.iter_mut().for_each(|x| *x = x.max(min).min(max)),
            Self::Unary(function) => function.apply(data),
            Self::FakeQuant(info) => data.iter_mut().for_each(|x| *x = info.real(info.code(*x))),
        }
    }
}

/// One step of an [`Epilogue`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum EpilogueStep {
    /// A function of each element.
    Activation(Activation),
    /// Adds this input of the step: a tensor of the shape and layout of the output.
    Add {
        /// Position of the input.
        input: usize,
    },
    /// Multiplies by this input of the step: a tensor of the shape and layout of the output.
    Mul {
        /// Position of the input.
        input: usize,
    },
}

/// Steps applied in order to each element of a float output.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Epilogue {
    /// The steps.
    pub steps: SmallVec<[EpilogueStep; 2]>,
}

impl Epilogue {
    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// The epilogue with the tensors of a running step.
    #[must_use]
    pub fn bind<'a, 'b>(&'a self, inputs: &'a [Option<TensorView<'b>>]) -> BoundEpilogue<'a, 'b> {
        BoundEpilogue { steps: &self.steps, inputs }
    }

    /// Applies the steps to the whole of output 0.
    pub fn apply_all(&self, io: &mut StepIo<'_, '_>) {
        if self.is_empty() {
            return;
        }
        let bound = self.bind(io.inputs);
        io.parallel.for_each_chunk(io.outputs[0].data::<f32>(), 4096, |chunk, data| {
            bound.apply(chunk * 4096, data);
        });
    }

    /// The steps in words, for the profile.
    #[must_use]
    pub fn describe(&self) -> String {
        let mut text = String::new();
        for step in &self.steps {
            text.push_str(match step {
                EpilogueStep::Activation(Activation::Relu { .. }) => "+relu",
                EpilogueStep::Activation(Activation::Clip { .. }) => "+clip",
                EpilogueStep::Activation(Activation::Unary(_)) => "+unary",
                EpilogueStep::Activation(Activation::FakeQuant(_)) => "+quantize",
                EpilogueStep::Add { .. } => "+add",
                EpilogueStep::Mul { .. } => "+mul",
            });
        }
        text
    }
}

/// An [`Epilogue`] that can be applied.
#[derive(Clone, Copy)]
pub struct BoundEpilogue<'a, 'b> {
    steps: &'a [EpilogueStep],
    inputs: &'a [Option<TensorView<'b>>],
}

impl BoundEpilogue<'_, '_> {
    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// Applies the steps to elements of the output that start at flat position `start` in memory order.
    pub fn apply(&self, start: usize, data: &mut [f32]) {
        for step in self.steps {
            match *step {
                EpilogueStep::Activation(activation) => activation.apply(data),
                EpilogueStep::Add { input } => {
                    let other = &self.operand(input)[start..start + data.len()];
                    data.iter_mut().zip(other).for_each(|(x, y)| *x += y);
                }
                EpilogueStep::Mul { input } => {
                    let other = &self.operand(input)[start..start + data.len()];
                    data.iter_mut().zip(other).for_each(|(x, y)| *x *= y);
                }
            }
        }
    }

    fn operand(&self, input: usize) -> &[f32] {
        match self.inputs.get(input) {
            Some(Some(view)) => view.data(),
            _ => panic!("operand {input} of an epilogue is absent"),
        }
    }
}
