//! Unary functions as data.

use super::vmath;
use crate::simd::{Simd, SimdOp, VectorIsa};

/// A function of one value.
///
/// It is also the activation of an epilogue. Parameters are part of the value. NaN inputs give NaN unless said
/// otherwise.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Unary {
    /// `x`.
    Identity,
    /// `max(x, 0)`.
    Relu,
    /// `min(max(x, lo), hi)`; ReLU6 is `Clamp { lo: 0.0, hi: 6.0 }`.
    Clamp {
        /// Lower bound, not NaN; may be minus infinity.
        lo: f32,
        /// Upper bound, not NaN; may be infinity.
        hi: f32,
    },
    /// `x` where positive, else `slope * x`.
    LeakyRelu {
        /// Slope below zero.
        slope: f32,
    },
    /// `x` where positive, else `alpha (e^x - 1)`.
    Elu {
        /// Negated limit at minus infinity.
        alpha: f32,
    },
    /// `gamma x` where positive, else `gamma alpha (e^x - 1)`.
    Selu {
        /// Negated limit at minus infinity, before `gamma`.
        alpha: f32,
        /// Scale of both branches.
        gamma: f32,
    },
    /// [`vmath::sigmoid`].
    Sigmoid,
    /// `min(max(alpha x + beta, 0), 1)`.
    HardSigmoid {
        /// Slope.
        alpha: f32,
        /// Offset.
        beta: f32,
    },
    /// `x sigmoid(x)`.
    Silu,
    /// `x min(max(x + 3, 0), 6) / 6`.
    HardSwish,
    /// `x tanh(softplus(x))`.
    Mish,
    /// `ln(1 + e^x)`.
    Softplus,
    /// GELU with the exact error function, [`vmath::gelu`].
    Gelu,
    /// GELU by tanh, [`vmath::gelu_tanh`].
    GeluTanh,
    /// GELU as MNN's `UnaryOp GELU` computes it, [`vmath::gelu_mnn`].
    GeluMnn,
    /// [`vmath::tanh`].
    Tanh,
    /// [`vmath::erf`].
    Erf,
    /// [`vmath::exp`].
    Exp,
    /// [`vmath::log`].
    Log,
    /// Square root, correctly rounded.
    Sqrt,
    /// `1 / sqrt(x)`, by division.
    Rsqrt,
    /// `1 / x`, by division.
    Reciprocal,
    /// `x^2`.
    Square,
    /// Absolute value.
    Abs,
    /// `-x`.
    Neg,
    /// -1, 0 or 1; NaN gives 0.
    Sign,
    /// Largest integer not above.
    Floor,
    /// Smallest integer not below.
    Ceil,
    /// Nearest integer, halves to even (ONNX).
    RoundEven,
    /// Nearest integer, halves away from zero (MNN).
    RoundAway,
    /// `e^x - 1`, by the scalar library.
    Expm1,
    /// `ln(1 + x)`, by the scalar library.
    Log1p,
    /// Sine, by the scalar library (as the following ones).
    Sin,
    /// Cosine.
    Cos,
    /// Tangent.
    Tan,
    /// Inverse sine.
    Asin,
    /// Inverse cosine.
    Acos,
    /// Inverse tangent.
    Atan,
    /// Hyperbolic sine.
    Sinh,
    /// Hyperbolic cosine.
    Cosh,
    /// Inverse hyperbolic sine.
    Asinh,
    /// Inverse hyperbolic cosine.
    Acosh,
    /// Inverse hyperbolic tangent.
    Atanh,
}

impl Unary {
    /// The bounds, if this function only clamps: those run inside the microkernels.
    pub fn as_clamp(self) -> Option<(f32, f32)> {
        match self {
            Self::Identity => Some((f32::NEG_INFINITY, f32::INFINITY)),
            Self::Relu => Some((0.0, f32::INFINITY)),
            Self::Clamp { lo, hi } => Some((lo, hi)),
            _ => None,
        }
    }
}

/// A lane-wise function: what [`Unary`] values become inside a loop.
trait Lanewise: Copy {
    fn apply<S: Simd>(self, s: S, x: S::F) -> S::F;
}

/// Calls `$run!(f)` with `f` bound to the [`Lanewise`] value of a function, or `$scalar!(f)` with a `fn(f32) -> f32`.
macro_rules! with_lanewise {
    ($unary:expr, $run:ident, $scalar:ident) => {{
        use $crate::elementwise::unary::lanes::*;
        match $unary {
            Unary::Identity => $run!(Identity),
            Unary::Relu => $run!(Clamp(0.0, f32::INFINITY)),
            Unary::Clamp { lo, hi } => $run!(Clamp(lo, hi)),
            Unary::LeakyRelu { slope } => $run!(LeakyRelu(slope)),
            Unary::Elu { alpha } => $run!(Selu(alpha, 1.0)),
            Unary::Selu { alpha, gamma } => $run!(Selu(alpha, gamma)),
            Unary::Sigmoid => $run!(Sigmoid),
            Unary::HardSigmoid { alpha, beta } => $run!(HardSigmoid(alpha, beta)),
            Unary::Silu => $run!(Silu),
            Unary::HardSwish => $run!(HardSwish),
            Unary::Mish => $run!(Mish),
            Unary::Softplus => $run!(Softplus),
            Unary::Gelu => $run!(Gelu),
            Unary::GeluTanh => $run!(GeluTanh),
            Unary::GeluMnn => $run!(GeluMnn),
            Unary::Tanh => $run!(Tanh),
            Unary::Erf => $run!(Erf),
            Unary::Exp => $run!(Exp),
            Unary::Log => $run!(Log),
            Unary::Sqrt => $run!(Sqrt),
            Unary::Rsqrt => $run!(Rsqrt),
            Unary::Reciprocal => $run!(Reciprocal),
            Unary::Square => $run!(Square),
            Unary::Abs => $run!(Abs),
            Unary::Neg => $run!(Neg),
            Unary::Sign => $run!(Sign),
            Unary::Floor => $run!(Floor),
            Unary::Ceil => $run!(Ceil),
            Unary::RoundEven => $run!(RoundEven),
            Unary::RoundAway => $run!(RoundAway),
            Unary::Expm1 => $scalar!(f32::exp_m1),
            Unary::Log1p => $scalar!(f32::ln_1p),
            Unary::Sin => $scalar!(f32::sin),
            Unary::Cos => $scalar!(f32::cos),
            Unary::Tan => $scalar!(f32::tan),
            Unary::Asin => $scalar!(f32::asin),
            Unary::Acos => $scalar!(f32::acos),
            Unary::Atan => $scalar!(f32::atan),
            Unary::Sinh => $scalar!(f32::sinh),
            Unary::Cosh => $scalar!(f32::cosh),
            Unary::Asinh => $scalar!(f32::asinh),
            Unary::Acosh => $scalar!(f32::acosh),
            Unary::Atanh => $scalar!(f32::atanh),
        }
    }};
}

/// The lane-wise functions, one type each.
mod lanes {
    use super::{Lanewise, Simd, vmath};

    macro_rules! lanewise {
        ($($name:ident $(($($field:ident),+))? |$s:ident, $x:ident| $body:expr;)+) => {
            $(
                #[derive(Clone, Copy)]
                pub(crate) struct $name $(($(pub(crate) lanewise!(@f32 $field)),+))?;
                impl Lanewise for $name {
                    #[inline(always)]
                    fn apply<S: Simd>(self, $s: S, $x: S::F) -> S::F {
                        $(let Self($($field),+) = self;)?
                        $body
                    }
                }
            )+
        };
        (@f32 $field:ident) => { f32 };
    }

    lanewise! {
        Identity |_s, x| x;
        Clamp(lo, hi) |s, x| s.at_most(s.at_least(x, s.splat(lo)), s.splat(hi));
        LeakyRelu(slope) |s, x| s.select(s.lt(x, s.splat(0.0)), s.mul(x, s.splat(slope)), x);
        Selu(alpha, gamma) |s, x| {
            let below = s.mul(s.splat(alpha), s.sub(vmath::exp(s, x), s.splat(1.0)));
            s.mul(s.splat(gamma), s.select(s.lt(x, s.splat(0.0)), below, x))
        };
        Sigmoid |s, x| vmath::sigmoid(s, x);
        HardSigmoid(alpha, beta) |s, x| {
            let y = s.fma(x, s.splat(alpha), s.splat(beta));
            s.at_most(s.at_least(y, s.splat(0.0)), s.splat(1.0))
        };
        Silu |s, x| {
            // Division of x keeps the result 0, not NaN, where e^-x overflows; -infinity gives -0.
            let y = s.div(x, s.add(s.splat(1.0), vmath::exp(s, s.neg(x))));
            s.select(s.lt(x, s.splat(-1e4)), s.splat(-0.0), y)
        };
        HardSwish |s, x| {
            let gate = s.at_most(s.at_least(s.add(x, s.splat(3.0)), s.splat(0.0)), s.splat(6.0));
            s.mul(s.mul(x, gate), s.splat(1.0 / 6.0))
        };
        Mish |s, x| s.mul(x, vmath::tanh(s, vmath::softplus(s, x)));
        Softplus |s, x| vmath::softplus(s, x);
        Gelu |s, x| vmath::gelu(s, x);
        GeluTanh |s, x| vmath::gelu_tanh(s, x);
        GeluMnn |s, x| vmath::gelu_mnn(s, x);
        Tanh |s, x| vmath::tanh(s, x);
        Erf |s, x| vmath::erf(s, x);
        Exp |s, x| vmath::exp(s, x);
        Log |s, x| vmath::log(s, x);
        Sqrt |s, x| s.sqrt(x);
        Rsqrt |s, x| vmath::reciprocal(s, s.sqrt(x));
        Reciprocal |s, x| vmath::reciprocal(s, x);
        Square |s, x| s.mul(x, x);
        Abs |s, x| s.abs(x);
        Neg |s, x| s.neg(x);
        Sign |s, x| {
            let zero = s.splat(0.0);
            let positive = s.select(s.lt(zero, x), s.splat(1.0), zero);
            s.select(s.lt(x, zero), s.splat(-1.0), positive)
        };
        Floor |s, x| s.floor(x);
        Ceil |s, x| s.ceil(x);
        RoundEven |s, x| s.round_even(x);
        RoundAway |s, x| {
            // The integer part is exact, so is the fraction.
            let magnitude = s.abs(x);
            let whole = s.floor(magnitude);
            let up = s.lt(s.sub(magnitude, whole), s.splat(0.5));
            s.copysign(s.select(up, whole, s.add(whole, s.splat(1.0))), x)
        };
    }
}

struct Map<'a, F> {
    f: F,
    x: &'a [f32],
    out: &'a mut [f32],
}

impl<F: Lanewise> SimdOp for Map<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { f, x, out } = self;
        let (mut x, mut out) = (x, out);
        while x.len() >= S::LANES {
            let (x_head, x_rest) = x.split_at(S::LANES);
            let (out_head, out_rest) = out.split_at_mut(S::LANES);
            s.store_slice(out_head, f.apply(s, s.load_slice(x_head)));
            (x, out) = (x_rest, out_rest);
        }
        if !x.is_empty() {
            s.store_tail(out, f.apply(s, s.load_tail(x)));
        }
    }
}

struct MapInPlace<'a, F> {
    f: F,
    x: &'a mut [f32],
}

impl<F: Lanewise> SimdOp for MapInPlace<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { f, x } = self;
        let mut chunks = x.chunks_exact_mut(S::LANES);
        for chunk in &mut chunks {
            let y = f.apply(s, s.load_slice(chunk));
            s.store_slice(chunk, y);
        }
        let tail = chunks.into_remainder();
        if !tail.is_empty() {
            let y = f.apply(s, s.load_tail(tail));
            s.store_tail(tail, y);
        }
    }
}

struct MapRows<F> {
    f: F,
    x: *mut f32,
    rows: usize,
    columns: usize,
    stride: usize,
}

impl<F: Lanewise> SimdOp for MapRows<F> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { f, x, rows, columns, stride } = self;
        let whole = columns - columns % S::LANES;
        for row in 0..rows {
            // SAFETY: `unary_rows_in_place` passes on its caller's promise that every row holds `columns` values.
            unsafe {
                let row = x.add(row * stride);
                for column in (0..whole).step_by(S::LANES) {
                    s.store(row.add(column), f.apply(s, s.load(row.add(column))));
                }
                if whole < columns {
                    let (tail, count) = (row.add(whole), columns - whole);
                    s.store_partial(tail, count, f.apply(s, s.load_partial(tail, count)));
                }
            }
        }
    }
}

/// `x[r, c] = f(x[r, c])` for a block of a matrix whose rows are `stride` elements apart.
///
/// # Safety
/// `x` must be valid for reading and writing `columns` values in each of the `rows`, and nobody else may use them.
pub(crate) unsafe fn unary_rows_in_place(
    isa: VectorIsa,
    f: Unary,
    x: *mut f32,
    [rows, columns]: [usize; 2],
    stride: usize,
) {
    let [rows, columns] = if stride == columns { [1, rows * columns] } else { [rows, columns] };
    macro_rules! vector {
        ($f:expr) => {
            isa.run(MapRows { f: $f, x, rows, columns, stride })
        };
    }
    macro_rules! scalar {
        ($f:expr) => {
            for row in 0..rows {
                // SAFETY: the caller vouches for the rows.
                let row = unsafe { std::slice::from_raw_parts_mut(x.add(row * stride), columns) };
                row.iter_mut().for_each(|x| *x = $f(*x));
            }
        };
    }
    if f != Unary::Identity {
        with_lanewise!(f, vector, scalar)
    }
}

/// `out[i] = f(x[i])`.
///
/// # Panics
/// If the lengths differ.
pub fn unary(isa: VectorIsa, f: Unary, x: &[f32], out: &mut [f32]) {
    assert_eq!(x.len(), out.len(), "unary: input and output lengths differ");
    macro_rules! vector {
        ($f:expr) => {
            isa.run(Map { f: $f, x, out })
        };
    }
    macro_rules! scalar {
        ($f:expr) => {
            out.iter_mut().zip(x).for_each(|(out, &x)| *out = $f(x))
        };
    }
    with_lanewise!(f, vector, scalar)
}

/// `x[i] = f(x[i])`.
pub fn unary_in_place(isa: VectorIsa, f: Unary, x: &mut [f32]) {
    macro_rules! vector {
        ($f:expr) => {
            isa.run(MapInPlace { f: $f, x })
        };
    }
    macro_rules! scalar {
        ($f:expr) => {
            x.iter_mut().for_each(|x| *x = $f(*x))
        };
    }
    if f != Unary::Identity {
        with_lanewise!(f, vector, scalar)
    }
}
