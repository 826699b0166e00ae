//! What is applied to the output of an operator before it is stored, as data.

use std::sync::Arc;

use mnnq_kernels::elementwise::{Binary, Broadcast, Unary, binary_in_place, unary_in_place};
use mnnq_kernels::elementwise_i8::{AddI8, TableI8};
use smallvec::SmallVec;

use super::operator::StepIo;
use super::support::{CHUNK, kernels};
use crate::tensor::TensorView;

/// A function of one float.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Activation {
    /// A function of the kernel library.
    Function(Unary),
    /// `1 - erf(x)`.
    Erfc,
    /// The inverse of erf.
    Erfinv,
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

impl Activation {
    /// Applies the function to every element.
    pub fn apply(&self, data: &mut [f32]) {
        match *self {
            Self::Function(function) => unary_in_place(kernels().elementwise_f32, function, data),
            Self::Erfc => data.iter_mut().for_each(|x| *x = super::special::erfc(f64::from(*x)) as f32),
            Self::Erfinv => data.iter_mut().for_each(|x| *x = super::special::erfinv(f64::from(*x)) as f32),
        }
    }

    /// A word for the profile.
    #[must_use]
    pub fn describe(&self) -> String {
        match self {
            Self::Function(Unary::Clamp { lo, hi }) => format!("clamp({lo},{hi})"),
            Self::Function(function) => {
                let text = format!("{function:?}");
                text.split_whitespace().next().unwrap_or_default().to_lowercase()
            }
            Self::Erfc => "erfc".to_owned(),
            Self::Erfinv => "erfinv".to_owned(),
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

/// One step of an [`Epilogue`] on codes.
#[derive(Debug, Clone, PartialEq)]
pub enum CodeStep {
    /// Adds this input of the step: codes of the shape and layout of the output, as operand `b`.
    Add {
        /// Position of the input.
        input: usize,
        /// The sum.
        how: AddI8,
    },
    /// A function of each code.
    Table(Arc<TableI8>),
}

/// Steps applied in order to each element of an output.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Epilogue {
    /// The steps, of a float output.
    pub steps: SmallVec<[EpilogueStep; 2]>,
    /// The steps, of an output of codes. No sum comes after a function.
    pub codes: SmallVec<[CodeStep; 1]>,
}

impl Epilogue {
    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty() && self.codes.is_empty()
    }

    /// Inputs of the step that the steps read.
    #[must_use]
    pub fn inputs(&self) -> usize {
        let reads = |step: &&EpilogueStep| !matches!(step, EpilogueStep::Activation(_));
        self.steps.iter().filter(reads).count()
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
        io.parallel.for_each_chunk(io.outputs[0].data::<f32>(), CHUNK, |chunk, data| {
            bound.apply(chunk * CHUNK, data);
        });
    }

    /// The steps in words, for the profile.
    #[must_use]
    pub fn describe(&self) -> String {
        let mut text = String::new();
        for step in &self.steps {
            text.push('+');
            match step {
                EpilogueStep::Activation(activation) => text.push_str(&activation.describe()),
                EpilogueStep::Add { .. } => text.push_str("add"),
                EpilogueStep::Mul { .. } => text.push_str("mul"),
            }
        }
        for step in &self.codes {
            text.push_str(match step {
                CodeStep::Add { .. } => "+add",
                CodeStep::Table(_) => "+table",
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
            let (function, input) = match *step {
                EpilogueStep::Activation(activation) => {
                    activation.apply(data);
                    continue;
                }
                EpilogueStep::Add { input } => (Binary::Add, input),
                EpilogueStep::Mul { input } => (Binary::Mul, input),
            };
            let other = &self.operand(input)[start..start + data.len()];
            binary_in_place(
                kernels().elementwise_f32,
                function,
                data,
                other,
                Broadcast::Same,
                data.len().max(1),
            );
        }
    }

    fn operand(&self, input: usize) -> &[f32] {
        match self.inputs.get(input) {
            Some(Some(view)) => view.data(),
            _ => panic!("operand {input} of an epilogue is absent"),
        }
    }
}
