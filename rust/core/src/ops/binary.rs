//! Functions of two elements with NumPy's broadcasting: `BinaryOp`, `Eltwise`.

use std::borrow::Cow;
use std::ops::{BitAnd, BitOr, BitXor};

use mnnq_format::schema::{BinaryOpOperation, EltwiseType, TableKind, binary_op, eltwise};
use mnnq_kernels::elementwise::{Binary as Function, Broadcast, Unary, binary, binary_in_place};

use super::epilogue::{Activation, Epilogue};
use super::error::{OpError, OpResult};
use super::operator::{AsEpilogue, Facts, InferResult, Kernel, Layouts, Operator, PrepareContext, StepIo};
use super::registry::OpSource;
use super::support::{CHUNK, Nest, broadcast_strides, floats, kernels, largest_layout, signed};
use crate::tensor::{DType, TensorDesc};

/// What a binary operator computes.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Code {
    /// A function that floats and integers have.
    Arithmetic(Function),
    /// 1 where true, else 0.
    Compare(Comparison),
    /// Of the bits of integers.
    Bits(Bits),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessEqual,
    Greater,
    GreaterEqual,
    /// Operands are true unless 0.
    Or,
    Xor,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Bits {
    And,
    Or,
    Xor,
    Left,
    Right,
}

/// `BinaryOp` and `Eltwise`: `y = f(a, b)`, both operands stretched to a common shape and of one type.
///
/// Comparisons give INT32 0 or 1. Integer division truncates. MOD has the sign of the divisor for integers and that of
/// the dividend for floats, FLOORMOD the other way, which is how MNN's runtime has them.
pub(super) struct Binary {
    code: Code,
    activation: Option<Activation>,
}

impl Binary {
    /// `BinaryOp`.
    pub(super) fn new(source: &OpSource<'_>) -> OpResult<Self> {
        source.expect_outputs(1)?;
        let table = source.param(TableKind::BinaryOp)?;
        let code = table.get(binary_op::OP_TYPE);
        let activation = match table.get(binary_op::ACTIVATION_TYPE) {
            0 => None,
            1 => Some(Activation::Function(Unary::Relu)),
            other => return Err(OpError::attribute("activationType", other, "0 or 1")),
        };
        let code = Self::code(code)
            .ok_or_else(|| OpError::attribute("opType", code, "a code of BinaryOpOperation"))?;
        Ok(Self { code, activation })
    }

    /// `Eltwise`, of old files.
    pub(super) fn eltwise(source: &OpSource<'_>) -> OpResult<Self> {
        let table = source.param(TableKind::Eltwise)?;
        let kind = table.get(eltwise::TYPE);
        let code = match kind {
            EltwiseType::PROD => Function::Mul,
            EltwiseType::SUM => Function::Add,
            EltwiseType::MAXIMUM => Function::Max,
            EltwiseType::SUB => Function::Sub,
            _ => return Err(OpError::attribute("type", kind, "a code of EltwiseType")),
        };
        if source.inputs != 2 {
            return Err(OpError::unsupported(format!("{} inputs", source.inputs)));
        }
        if floats(table.get(eltwise::COEFF)).iter().any(|&c| c != 1.0) {
            return Err(OpError::unsupported("coeff other than 1"));
        }
        Ok(Self { code: Code::Arithmetic(code), activation: None })
    }

    fn code(code: BinaryOpOperation) -> Option<Code> {
        use BinaryOpOperation as Op;
        Some(match code {
            Op::ADD => Code::Arithmetic(Function::Add),
            Op::SUB => Code::Arithmetic(Function::Sub),
            Op::MUL => Code::Arithmetic(Function::Mul),
            Op::DIV | Op::REALDIV => Code::Arithmetic(Function::Div),
            Op::POW => Code::Arithmetic(Function::Pow),
            Op::MINIMUM | Op::MIN_TEMP => Code::Arithmetic(Function::Min),
            Op::MAXIMUM | Op::MAX_TEMP => Code::Arithmetic(Function::Max),
            Op::FLOORDIV => Code::Arithmetic(Function::FloorDiv),
            Op::SquaredDifference => Code::Arithmetic(Function::SquaredDifference),
            Op::FLOORMOD => Code::Arithmetic(Function::FloorMod),
            Op::MOD => Code::Arithmetic(Function::FMod),
            Op::ATAN2 => Code::Arithmetic(Function::Atan2),
            Op::MUL_SILU => Code::Arithmetic(Function::SiluMul),
            Op::GREATER => Code::Compare(Comparison::Greater),
            Op::GREATER_EQUAL => Code::Compare(Comparison::GreaterEqual),
            Op::LESS => Code::Compare(Comparison::Less),
            Op::LESS_EQUAL => Code::Compare(Comparison::LessEqual),
            Op::EQUAL => Code::Compare(Comparison::Equal),
            Op::NOTEQUAL => Code::Compare(Comparison::NotEqual),
            Op::LOGICALOR => Code::Compare(Comparison::Or),
            Op::LOGICALXOR => Code::Compare(Comparison::Xor),
            Op::BITWISE_AND => Code::Bits(Bits::And),
            Op::BITWISE_OR => Code::Bits(Bits::Or),
            Op::BITWISE_XOR => Code::Bits(Bits::Xor),
            Op::LEFTSHIFT => Code::Bits(Bits::Left),
            Op::RIGHTSHIFT => Code::Bits(Bits::Right),
            _ => return None,
        })
    }
}

/// Layouts of an element-wise operator: that of the largest input for the output, any for the inputs.
pub(super) fn elementwise_layouts(inputs: &Facts<'_>, outputs: &[TensorDesc]) -> Layouts {
    let mut layouts = Layouts::plain(inputs.len(), outputs.len());
    let Some(out) = outputs.first() else { return layouts };
    let descs: Vec<TensorDesc> = inputs.iter().flatten().map(|fact| fact.desc).collect();
    let full = descs.iter().filter(|desc| desc.shape.rank() == out.shape.rank());
    let layout = largest_layout(full);
    layouts.outputs.fill(layout);
    for (wish, fact) in layouts.inputs.iter_mut().zip(inputs.iter()) {
        // A large operand in another layout is worth converting: the loop then runs along memory.
        let convert = fact.is_some_and(|fact| {
            fact.desc.shape.rank() == out.shape.rank() && 4 * fact.desc.shape.count() > out.shape.count()
        });
        *wish = convert.then_some(layout);
    }
    layouts
}

impl Operator for Binary {
    fn infer(&self, inputs: &Facts<'_>) -> InferResult {
        let (a, b) = (inputs.desc(0)?, inputs.desc(1)?);
        if a.dtype != b.dtype {
            return Err(OpError::InputType { input: 1, wanted: a.dtype.to_string(), got: b.dtype }.into());
        }
        let wrong = |wanted: &str| OpError::InputType { input: 0, wanted: wanted.to_owned(), got: a.dtype };
        let dtype = match (self.code, a.dtype) {
            (_, DType::F16) => return Err(wrong("float32 or an integer type").into()),
            (Code::Bits(_), DType::F32) => return Err(wrong("an integer type").into()),
            (Code::Arithmetic(Function::Atan2 | Function::SiluMul), d) if d != DType::F32 => {
                return Err(wrong("float32").into());
            }
            (Code::Compare(_), _) => DType::I32,
            (_, dtype) => dtype,
        };
        if self.activation.is_some() && dtype != DType::F32 && dtype != DType::I32 {
            return Err(wrong("float32 or int32").into());
        }
        Ok(vec![TensorDesc::new(dtype, a.shape.broadcast(&b.shape)?)])
    }

    fn layouts(&self, inputs: &Facts<'_>, outputs: &[TensorDesc]) -> Layouts {
        elementwise_layouts(inputs, outputs)
    }

    fn in_place(&self) -> &'static [usize] {
        if matches!(self.code, Code::Arithmetic(_)) { &[0, 1] } else { &[] }
    }

    fn accepts_epilogue(&self) -> bool {
        matches!(self.code, Code::Arithmetic(_))
    }

    fn as_epilogue(&self) -> Option<AsEpilogue> {
        match self.code {
            Code::Arithmetic(Function::Add) => Some(AsEpilogue::Add(self.activation)),
            Code::Arithmetic(Function::Mul) => Some(AsEpilogue::Mul(self.activation)),
            _ => None,
        }
    }

    fn prepare(&self, context: &PrepareContext<'_>) -> OpResult<Box<dyn Kernel>> {
        let (a, b) = (context.inputs.desc(0)?, context.inputs.desc(1)?);
        let out = context.outputs[0];
        let rank = out.shape.rank();
        let dims = out.layout.physical(&out.shape);
        let strides = [broadcast_strides(&a, &out), broadcast_strides(&b, &out)];
        let strides = strides.map(|s| signed(&s[..rank]));
        let nest = Nest::new(&dims[..rank], [&strides[0], &strides[1]]);
        let mut epilogue = context.epilogue.clone();
        if let Some(activation) = self.activation {
            epilogue.steps.insert(0, super::epilogue::EpilogueStep::Activation(activation));
        }
        let code = self.code;
        Ok(match (code, a.dtype) {
            (Code::Arithmetic(function), DType::F32) => Box::new(FloatBinary { function, nest, epilogue }),
            (code, dtype) => Box::new(TypedBinary { code, dtype, nest, relu: self.activation.is_some() }),
        })
    }
}

struct FloatBinary {
    function: Function,
    nest: Nest<2>,
    epilogue: Epilogue,
}

impl Kernel for FloatBinary {
    fn label(&self) -> Cow<'static, str> {
        format!("binary f32 {:?}{}", self.function, self.epilogue.describe()).to_lowercase().into()
    }

    fn run(&self, io: &mut StepIo<'_, '_>) -> OpResult<()> {
        let (a, b) = (io.optional(0).map(|v| v.data::<f32>()), io.optional(1).map(|v| v.data::<f32>()));
        let epilogue = self.epilogue.bind(io.inputs);
        let chunk = CHUNK.div_ceil(self.nest.row().max(1)).max(1) * self.nest.row();
        io.parallel.for_each_chunk(io.outputs[0].data::<f32>(), chunk.clamp(1, 4 * CHUNK), |index, out| {
            let first = index * chunk.clamp(1, 4 * CHUNK);
            if self.rows_at_once(a, b, first, out) {
                epilogue.apply(first, out);
                return;
            }
            self.nest.rows(first, out.len(), |at, offsets, len| {
                let out = &mut out[at - first..][..len];
                match (a, b) {
                    (Some(a), Some(b)) => self.row(&a[offsets[0] as usize..], &b[offsets[1] as usize..], out),
                    (None, Some(b)) => self.row_in_place(&b[offsets[1] as usize..], out, false),
                    (Some(a), None) => self.row_in_place(&a[offsets[0] as usize..], out, true),
                    (None, None) => {}
                }
            });
            epilogue.apply(first, out);
        });
        Ok(())
    }
}

impl FloatBinary {
    /// Whole short rows with a second operand that is one row, or one value per row, in a single loop.
    fn rows_at_once(&self, a: Option<&[f32]>, b: Option<&[f32]>, first: usize, out: &mut [f32]) -> bool {
        let (row, isa) = (self.nest.row(), kernels().elementwise_f32);
        let [[a_outer, b_outer], [1, b_inner]] = self.nest.strides[..] else { return false };
        let whole = row > 0 && first.is_multiple_of(row) && out.len().is_multiple_of(row);
        if !whole || usize::try_from(a_outer) != Ok(row) {
            return false;
        }
        let Some(b) = b else { return false };
        let (b, broadcast) = match [b_outer, b_inner] {
            [0, 1] => (&b[..row], Broadcast::PerColumn),
            [1, 0] => (&b[first / row..][..out.len() / row], Broadcast::PerRow),
            _ => return false,
        };
        match a {
            Some(a) => binary(isa, self.function, &a[first..][..out.len()], b, broadcast, row, out),
            None => binary_in_place(isa, self.function, out, b, broadcast, row),
        }
        true
    }

    fn row(&self, a: &[f32], b: &[f32], out: &mut [f32]) {
        let (isa, len) = (kernels().elementwise_f32, out.len());
        match self.nest.inner() {
            [1, 1] => binary(isa, self.function, &a[..len], &b[..len], Broadcast::Same, len, out),
            [1, 0] => binary(isa, self.function, &a[..len], &b[..1], Broadcast::Scalar, len, out),
            [sa, sb] => {
                gather(a, sa, out);
                if sb == 0 {
                    binary_in_place(isa, self.function, out, &b[..1], Broadcast::Scalar, len);
                } else if sb == 1 {
                    binary_in_place(isa, self.function, out, &b[..len], Broadcast::Same, len);
                } else {
                    for (i, x) in out.iter_mut().enumerate() {
                        let y = b[(i as isize * sb) as usize];
                        binary_in_place(
                            isa,
                            self.function,
                            std::slice::from_mut(x),
                            &[y],
                            Broadcast::Scalar,
                            1,
                        );
                    }
                }
            }
        }
    }

    /// One operand is the output itself (of its size, so not stretched); the other one is `other`.
    fn row_in_place(&self, other: &[f32], out: &mut [f32], swapped: bool) {
        let (isa, len) = (kernels().elementwise_f32, out.len());
        let step = self.nest.inner()[usize::from(!swapped)];
        let mut buffer = [0.0_f32; 256];
        for (index, out) in out.chunks_mut(buffer.len()).enumerate() {
            let start = index * buffer.len();
            let buffer = &mut buffer[..out.len()];
            gather(&other[(start as isize * step) as usize..], step, buffer);
            if swapped {
                binary_in_place(isa, self.function, buffer, out, Broadcast::Same, buffer.len());
                out.copy_from_slice(buffer);
            } else {
                binary_in_place(isa, self.function, out, buffer, Broadcast::Same, out.len());
            }
        }
        debug_assert!(len > 0);
    }
}

fn gather<T: Copy>(source: &[T], step: isize, out: &mut [T]) {
    match step {
        1 => out.copy_from_slice(&source[..out.len()]),
        0 => out.fill(source[0]),
        _ => out.iter_mut().enumerate().for_each(|(i, x)| *x = source[(i as isize * step) as usize]),
    }
}

/// Integers, and comparisons of anything.
struct TypedBinary {
    code: Code,
    dtype: DType,
    nest: Nest<2>,
    relu: bool,
}

impl Kernel for TypedBinary {
    fn label(&self) -> Cow<'static, str> {
        format!("binary {} {:?}", self.dtype, self.code).to_lowercase().into()
    }

    fn run(&self, io: &mut StepIo<'_, '_>) -> OpResult<()> {
        match self.dtype {
            DType::F32 => self.typed::<f32>(io),
            DType::I32 => self.typed::<i32>(io),
            DType::U8 => self.typed::<u8>(io),
            DType::I8 => self.typed::<i8>(io),
            DType::F16 => Err(OpError::unsupported("arithmetic in float16")),
        }
    }
}

/// Arithmetic of one integer type, wrapping; floats only compare.
trait Operand: crate::tensor::Element + Default {
    fn arithmetic(function: Function, a: Self, b: Self) -> Self;
    fn bits(bits: Bits, a: Self, b: Self) -> Self;
}

impl Operand for f32 {
    fn arithmetic(_: Function, a: Self, _: Self) -> Self {
        a
    }
    fn bits(_: Bits, a: Self, _: Self) -> Self {
        a
    }
}

macro_rules! integer_operand {
    ($($ty:ty),*) => {$(
        impl Operand for $ty {
            fn arithmetic(function: Function, a: Self, b: Self) -> Self {
                match function {
                    Function::Add => a.wrapping_add(b),
                    Function::Sub => a.wrapping_sub(b),
                    Function::Mul => a.wrapping_mul(b),
                    Function::Div => if b == 0 { 0 } else { a.wrapping_div(b) },
                    Function::Min => a.min(b),
                    Function::Max => a.max(b),
                    Function::SquaredDifference => a.wrapping_sub(b).wrapping_mul(a.wrapping_sub(b)),
                    Function::Pow => power(i64::from(a), i64::from(b)) as $ty,
                    Function::FloorDiv => {
                        if b == 0 { 0 } else { i64::from(a).div_euclid_floor(i64::from(b)) as $ty }
                    }
                    // MOD and FLOORMOD change places between integers and floats.
                    Function::FloorMod => if b == 0 { 0 } else { a.wrapping_rem(b) },
                    Function::FMod => {
                        let (a, b) = (i64::from(a), i64::from(b));
                        if b == 0 { 0 } else { (a - a.div_euclid_floor(b) * b) as $ty }
                    }
                    _ => a,
                }
            }

            fn bits(bits: Bits, a: Self, b: Self) -> Self {
                match bits {
                    Bits::And => a.bitand(b),
                    Bits::Or => a.bitor(b),
                    Bits::Xor => a.bitxor(b),
                    Bits::Left => u32::try_from(b).ok().and_then(|b| a.checked_shl(b)).unwrap_or(0),
                    Bits::Right => u32::try_from(b).ok().and_then(|b| a.checked_shr(b)).unwrap_or(0),
                }
            }
        }
    )*};
}

integer_operand!(i32, u8, i8);

trait FloorDiv {
    fn div_euclid_floor(self, other: Self) -> Self;
}

impl FloorDiv for i64 {
    /// Division rounding down.
    fn div_euclid_floor(self, other: Self) -> Self {
        let quotient = self / other;
        if (self % other != 0) && ((self < 0) != (other < 0)) { quotient - 1 } else { quotient }
    }
}

/// `a^b`, wrapping; negative exponents truncate toward zero.
fn power(a: i64, b: i64) -> i64 {
    match (a, u32::try_from(b)) {
        (_, Ok(b)) => a.wrapping_pow(b),
        (1, _) => 1,
        (-1, _) => 1 - 2 * (b & 1),
        _ => 0,
    }
}

impl TypedBinary {
    fn typed<T: Operand>(&self, io: &mut StepIo<'_, '_>) -> OpResult<()> {
        let zero = T::default();
        match self.code {
            Code::Arithmetic(function) => {
                let relu = self.relu;
                self.map::<T, T>(io, |a, b| {
                    let y = T::arithmetic(function, a, b);
                    if relu && y < zero { zero } else { y }
                });
            }
            Code::Bits(bits) => self.map::<T, T>(io, |a, b| T::bits(bits, a, b)),
            Code::Compare(comparison) => match comparison {
                Comparison::Equal => self.map::<T, i32>(io, |a, b| i32::from(a == b)),
                Comparison::NotEqual => self.map::<T, i32>(io, |a, b| i32::from(a != b)),
                Comparison::Less => self.map::<T, i32>(io, |a, b| i32::from(a < b)),
                Comparison::LessEqual => self.map::<T, i32>(io, |a, b| i32::from(a <= b)),
                Comparison::Greater => self.map::<T, i32>(io, |a, b| i32::from(a > b)),
                Comparison::GreaterEqual => self.map::<T, i32>(io, |a, b| i32::from(a >= b)),
                Comparison::Or => self.map::<T, i32>(io, |a, b| i32::from(a != zero || b != zero)),
                Comparison::Xor => self.map::<T, i32>(io, |a, b| i32::from((a != zero) != (b != zero))),
            },
        }
        Ok(())
    }

    fn map<T: Operand, O: crate::tensor::Element>(
        &self,
        io: &mut StepIo<'_, '_>,
        function: impl Fn(T, T) -> O + Sync + Send,
    ) {
        let (a, b) = (io.optional(0).map(|v| v.data::<T>()), io.optional(1).map(|v| v.data::<T>()));
        let [sa, sb] = self.nest.inner();
        let out = io.outputs[0].data::<O>();
        if a.is_none() || b.is_none() {
            // In place: input and output have the same type, so the output is read as the operand.
            let (other, swapped) = (a.or(b).unwrap_or_default(), a.is_some());
            let step = if swapped { sa } else { sb };
            let own: &mut [T] = bytemuck::cast_slice_mut(out);
            let len = own.len();
            self.nest.rows(0, len, |at, offsets, len| {
                let start = offsets[usize::from(!swapped)];
                for (i, x) in own[at..at + len].iter_mut().enumerate() {
                    let y = other[(start + i as isize * step) as usize];
                    let value = if swapped { function(y, *x) } else { function(*x, y) };
                    *x = bytemuck::cast(value);
                }
            });
            return;
        }
        let (a, b) = (a.unwrap_or_default(), b.unwrap_or_default());
        io.parallel.for_each_chunk(out, CHUNK, |chunk, out| {
            let first = chunk * CHUNK;
            self.nest.rows(first, out.len(), |at, offsets, len| {
                for (i, x) in out[at - first..][..len].iter_mut().enumerate() {
                    let i = i as isize;
                    *x = function(a[(offsets[0] + i * sa) as usize], b[(offsets[1] + i * sb) as usize]);
                }
            });
        });
    }
}
