//! Functions of one element: `UnaryOp` and the activations that are operators of their own.

use std::borrow::Cow;

use mnnq_format::schema::{OpType, TableKind, UnaryOpOperation, elu, relu, relu6, selu, unary_op};
use mnnq_kernels::elementwise::Unary as Function;

use super::epilogue::{Activation, Epilogue};
use super::error::{OpError, OpResult};
use super::operator::{AsEpilogue, Facts, InferResult, Kernel, Layouts, Operator, PrepareContext, StepIo};
use super::registry::OpSource;
use super::support::CHUNK;
use crate::tensor::{DType, TensorDesc};

/// `UnaryOp`, `ReLU`, `ReLU6`, `ELU`, `Selu`, `Sigmoid`, `TanH`, `AbsVal`: `y = f(x)`.
///
/// Floats take every function; integers ABS, NEG, SQUARE, SIGN and RELU (slope 0).
pub(super) struct Unary {
    activation: Activation,
}

impl Unary {
    /// `UnaryOp`.
    pub(super) fn new(source: &OpSource<'_>) -> OpResult<Self> {
        source.expect_outputs(1)?;
        let table = source.param(TableKind::UnaryOp)?;
        let code = table.get(unary_op::OP_TYPE);
        let activation =
            function(code).ok_or_else(|| OpError::attribute("opType", code, "a code of UnaryOpOperation"))?;
        Ok(Self { activation })
    }

    /// What it computes.
    pub(super) fn activation(&self) -> Activation {
        self.activation
    }

    /// The operators that are one function.
    pub(super) fn plain(source: &OpSource<'_>) -> OpResult<Self> {
        source.expect_outputs(1)?;
        let function = match source.op_type {
            OpType::AbsVal => Function::Abs,
            OpType::Sigmoid => Function::Sigmoid,
            OpType::TanH => Function::Tanh,
            OpType::ReLU => match source.optional_param(TableKind::Relu)?.map_or(0.0, |t| t.get(relu::SLOPE))
            {
                0.0 => Function::Relu,
                slope => Function::LeakyRelu { slope },
            },
            OpType::ReLU6 => {
                let table = source.optional_param(TableKind::Relu6)?;
                let bounds = table.map(|t| (t.get(relu6::MIN_VALUE), t.get(relu6::MAX_VALUE)));
                let (lo, hi) = bounds.unwrap_or((0.0, 6.0));
                if lo.is_nan() || hi.is_nan() {
                    return Err(OpError::attribute("minValue, maxValue", format!("{lo}, {hi}"), "numbers"));
                }
                Function::Clamp { lo, hi }
            }
            OpType::ELU => {
                let alpha = source.param(TableKind::ELU)?.get(elu::ALPHA);
                Function::Elu { alpha }
            }
            _ => {
                let table = source.param(TableKind::Selu)?;
                Function::Selu { alpha: table.get(selu::ALPHA), gamma: table.get(selu::SCALE) }
            }
        };
        Ok(Self { activation: Activation::Function(function) })
    }
}

/// The function of a code. GELU is MNN's approximation, GELU_STANDARD the exact one; ROUND takes halves away from zero.
fn function(code: UnaryOpOperation) -> Option<Activation> {
    use UnaryOpOperation as Op;
    Some(Activation::Function(match code {
        Op::ABS => Function::Abs,
        Op::NEG => Function::Neg,
        Op::FLOOR => Function::Floor,
        Op::CEIL => Function::Ceil,
        Op::SQUARE => Function::Square,
        Op::SQRT => Function::Sqrt,
        Op::RSQRT => Function::Rsqrt,
        Op::EXP => Function::Exp,
        Op::LOG => Function::Log,
        Op::SIN => Function::Sin,
        Op::COS => Function::Cos,
        Op::TAN => Function::Tan,
        Op::ASIN => Function::Asin,
        Op::ACOS => Function::Acos,
        Op::ATAN => Function::Atan,
        Op::RECIPROCAL => Function::Reciprocal,
        Op::LOG1P => Function::Log1p,
        Op::BNLL => Function::Softplus,
        Op::ACOSH => Function::Acosh,
        Op::SINH => Function::Sinh,
        Op::ASINH => Function::Asinh,
        Op::ATANH => Function::Atanh,
        Op::SIGN => Function::Sign,
        Op::ROUND => Function::RoundAway,
        Op::COSH => Function::Cosh,
        Op::ERF => Function::Erf,
        Op::EXPM1 => Function::Expm1,
        Op::SIGMOID => Function::Sigmoid,
        Op::TANH => Function::Tanh,
        Op::HARDSWISH => Function::HardSwish,
        Op::GELU => Function::GeluMnn,
        Op::GELU_STANDARD => Function::Gelu,
        Op::SILU => Function::Silu,
        Op::ERFC => return Some(Activation::Erfc),
        Op::ERFINV => return Some(Activation::Erfinv),
        _ => return None,
    }))
}

/// The integer form of a function, if it has one.
fn integer_function(activation: Activation) -> Option<fn(i32) -> i32> {
    let Activation::Function(function) = activation else { return None };
    Some(match function {
        Function::Abs => i32::wrapping_abs,
        Function::Neg => i32::wrapping_neg,
        Function::Square => |x| x.wrapping_mul(x),
        Function::Sign => i32::signum,
        Function::Relu => |x| x.max(0),
        Function::Floor | Function::Ceil | Function::RoundEven | Function::RoundAway => |x| x,
        _ => return None,
    })
}

impl Operator for Unary {
    fn infer(&self, inputs: &Facts<'_>) -> InferResult {
        let desc = inputs.desc(0)?;
        let supported = match desc.dtype {
            DType::F32 => true,
            DType::I32 => integer_function(self.activation).is_some(),
            _ => false,
        };
        if !supported {
            let wanted = format!("a type that {} takes", self.activation.describe());
            return Err(OpError::InputType { input: 0, wanted, got: desc.dtype }.into());
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

    fn as_epilogue(&self) -> Option<AsEpilogue> {
        Some(AsEpilogue::Activation(self.activation))
    }

    fn prepare(&self, context: &PrepareContext<'_>) -> OpResult<Box<dyn Kernel>> {
        if context.inputs.desc(0)?.dtype == DType::I32 {
            let function = integer_function(self.activation)
                .ok_or_else(|| OpError::unsupported(format!("{} of integers", self.activation.describe())))?;
            return Ok(Box::new(IntegerUnary { function }));
        }
        Ok(Box::new(FloatUnary { activation: self.activation, epilogue: context.epilogue.clone() }))
    }
}

struct FloatUnary {
    activation: Activation,
    epilogue: Epilogue,
}

impl Kernel for FloatUnary {
    fn label(&self) -> Cow<'static, str> {
        format!("unary f32 {}{}", self.activation.describe(), self.epilogue.describe()).into()
    }

    fn run(&self, io: &mut StepIo<'_, '_>) -> OpResult<()> {
        let source = io.optional(0).map(|view| view.data::<f32>());
        let epilogue = self.epilogue.bind(io.inputs);
        io.parallel.for_each_chunk(io.outputs[0].data::<f32>(), CHUNK, |chunk, out| {
            if let Some(source) = source {
                out.copy_from_slice(&source[chunk * CHUNK..][..out.len()]);
            }
            self.activation.apply(out);
            epilogue.apply(chunk * CHUNK, out);
        });
        Ok(())
    }
}

struct IntegerUnary {
    function: fn(i32) -> i32,
}

impl Kernel for IntegerUnary {
    fn label(&self) -> Cow<'static, str> {
        "unary i32".into()
    }

    fn run(&self, io: &mut StepIo<'_, '_>) -> OpResult<()> {
        let source = io.optional(0).map(|view| view.data::<i32>());
        let out = io.outputs[0].data::<i32>();
        if let Some(source) = source {
            out.copy_from_slice(source);
        }
        out.iter_mut().for_each(|x| *x = (self.function)(*x));
        Ok(())
    }
}
