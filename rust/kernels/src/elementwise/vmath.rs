//! Transcendental functions on vectors, for every [`Simd`].
//!
//! Each function states its largest error against the exact result, found by the tests over the whole range.
//! The polynomials are minimax fits made for this project (weighted least squares on Chebyshev nodes, reweighted
//! towards equal ripple); their own error is far below half a unit in the last place.

use crate::simd::Simd;

/// `c[0] + c[1] x + c[2] x^2 + ...` by Horner's rule.
#[inline(always)]
pub(crate) fn polynomial<S: Simd, const N: usize>(s: S, x: S::F, coefficients: [f32; N]) -> S::F {
    let mut sum = s.splat(coefficients[N - 1]);
    let mut index = N - 1;
    while index > 0 {
        index -= 1;
        sum = s.fma(sum, x, s.splat(coefficients[index]));
    }
    sum
}

/// `1 / x`, by division.
#[inline(always)]
pub(crate) fn reciprocal<S: Simd>(s: S, x: S::F) -> S::F {
    s.div(s.splat(1.0), x)
}

/// `e^x`: at most 2 ulp (4 without fused multiply-add); infinity above 88.73, gradual underflow to 0.
#[inline(always)]
pub fn exp<S: Simd>(s: S, x: S::F) -> S::F {
    // x = n ln 2 + r with |r| <= ln(2) / 2; ln 2 is split so that n * LN2_HI is exact.
    const LN2_HI: f32 = 0.693_359_4;
    const LN2_LO: f32 = -2.121_944_4e-4;
    let x = s.at_most(s.at_least(x, s.splat(-104.0)), s.splat(89.0));
    let n = s.round_even(s.mul(x, s.splat(std::f32::consts::LOG2_E)));
    let r = s.fma(n, s.splat(-LN2_HI), x);
    let r = s.fma(n, s.splat(-LN2_LO), r);
    let tail = polynomial(
        s,
        r,
        [0.5, 0.166_666_67, 0.041_666_254, 0.008_333_263, 0.001_394_722_5, 0.000_199_193_78],
    );
    let value = s.add(s.fma(s.mul(r, r), tail, r), s.splat(1.0));
    s.scale_exponent(value, n)
}

/// Natural logarithm: at most 2 ulp; -infinity at 0, NaN below, denormals included.
#[inline(always)]
pub fn log<S: Simd>(s: S, x: S::F) -> S::F {
    const LN2_HI: f32 = 0.693_359_4;
    const LN2_LO: f32 = -2.121_944_4e-4;
    let denormal = s.lt(x, s.splat(f32::MIN_POSITIVE));
    let scaled = s.select(denormal, s.mul(x, s.splat(8_388_608.0)), x);
    // scaled = 2^e * m with m in [sqrt(1/2), sqrt(2)).
    let bits = s.sub_i(s.bits(scaled), s.splat_i(0x3f35_04f3));
    let exponent = s.to_float(s.shr_i::<23>(bits));
    let exponent = s.add(exponent, s.select(denormal, s.splat(-23.0), s.splat(0.0)));
    let m = s.as_float(s.add_i(s.and_i(bits, s.splat_i(0x7f_ffff)), s.splat_i(0x3f35_04f3)));
    let f = s.sub(m, s.splat(1.0));
    let p = polynomial(
        s,
        f,
        [
            0.333_333_1,
            -0.249_999_87,
            0.200_022_27,
            -0.166_692_5,
            0.142_186_55,
            -0.123_843_685,
            0.118_730_13,
            -0.117_897_05,
            0.069_151_655,
        ],
    );
    let square = s.mul(f, f);
    let mut y = s.mul(s.mul(square, f), p);
    y = s.fma(exponent, s.splat(LN2_LO), y);
    y = s.fma(square, s.splat(-0.5), y);
    y = s.fma(exponent, s.splat(LN2_HI), s.add(f, y));
    y = s.select(s.lt(x, s.splat(f32::INFINITY)), y, x);
    y = s.select(s.eq(x, s.splat(0.0)), s.splat(f32::NEG_INFINITY), y);
    s.select(s.lt(x, s.splat(0.0)), s.splat(f32::NAN), y)
}

/// `1 / (1 + e^-x)`: at most 4 ulp where the result is a normal number.
#[inline(always)]
pub fn sigmoid<S: Simd>(s: S, x: S::F) -> S::F {
    reciprocal(s, s.add(s.splat(1.0), exp(s, s.neg(x))))
}

/// Hyperbolic tangent: at most 3 ulp.
#[inline(always)]
pub fn tanh<S: Simd>(s: S, x: S::F) -> S::F {
    let magnitude = s.abs(x);
    let q = s.mul(x, x);
    let p = polynomial(
        s,
        q,
        [-0.333_333_28, 0.133_331_58, -0.053_940_564, 0.021_666_346, -0.008_091_965, 0.002_064_662],
    );
    let small = s.fma(s.mul(x, q), p, x);
    let e = exp(s, s.add(magnitude, magnitude));
    let large = s.sub(s.splat(1.0), s.div(s.splat(2.0), s.add(e, s.splat(1.0))));
    // NaN fails the comparison and takes the second branch, where it stays NaN.
    s.select(s.lt(magnitude, s.splat(0.625)), small, s.copysign(large, x))
}

/// `erf(x)` for `|x| <= 1`.
#[inline(always)]
fn erf_small<S: Simd>(s: S, x: S::F) -> S::F {
    let p = polynomial(
        s,
        s.mul(x, x),
        [
            std::f32::consts::FRAC_2_SQRT_PI,
            -0.376_126_38,
            0.112_837_83,
            -0.026_865_445,
            0.005_221_075,
            -0.000_848_471_1,
            0.000_112_705_434,
            -9.680_134e-6,
        ],
    );
    s.mul(x, p)
}

/// `erfc(z) = exp(-z^2) t P(t)`, `t = 1 / (1 + 0.4 z)`, for `z >= 0.9`.
#[inline(always)]
fn erfc_tail<S: Simd>(s: S, z: S::F) -> S::F {
    let t = reciprocal(s, s.fma(z, s.splat(0.4), s.splat(1.0)));
    let p = polynomial(
        s,
        t,
        [
            0.225_681_99,
            0.225_510_03,
            0.209_545_73,
            0.158_884_33,
            0.173_260_4,
            -0.068_332_07,
            0.241_740_22,
            -0.228_435_77,
            0.062_158_93,
        ],
    );
    s.mul(exp(s, s.neg(s.mul(z, z))), s.mul(t, p))
}

/// Error function: at most 3 ulp.
#[inline(always)]
pub fn erf<S: Simd>(s: S, x: S::F) -> S::F {
    let magnitude = s.abs(x);
    let large = s.sub(s.splat(1.0), erfc_tail(s, magnitude));
    s.select(s.lt(magnitude, s.splat(0.9)), erf_small(s, x), s.copysign(large, x))
}

/// `x/2 (1 + erf(x / sqrt 2))`: absolute error at most `2.5e-7 max(1, |x|)`. The negative tail keeps its relative
/// accuracy (it is not computed as a difference).
#[inline(always)]
pub fn gelu<S: Simd>(s: S, x: S::F) -> S::F {
    let z = s.mul(x, s.splat(std::f32::consts::FRAC_1_SQRT_2));
    let magnitude = s.abs(z);
    let tail = erfc_tail(s, magnitude);
    let upper = s.select(s.lt(z, s.splat(0.0)), tail, s.sub(s.splat(2.0), tail));
    let middle = s.add(s.splat(1.0), erf_small(s, z));
    let factor = s.select(s.lt(magnitude, s.splat(0.9)), middle, upper);
    let y = s.mul(s.mul(x, s.splat(0.5)), factor);
    // -infinity * 0 above; the limit is -0.
    s.select(s.lt(x, s.splat(-40.0)), s.splat(-0.0), y)
}

/// GELU as MNN's `UnaryOp GELU` computes it: the tanh form, with tanh replaced by a rational function.
///
/// `u = clamp(0.79788458 x (1 + 0.044715 x^2), -5, 5)`, `y = x/2 (1 + t)`,
/// `t = u (135135 + u^2 (17325 + u^2 (378 + u^2))) / (135135 + u^2 (62370 + u^2 (3150 + 28 u^2)))`.
#[inline(always)]
pub fn gelu_mnn<S: Simd>(s: S, x: S::F) -> S::F {
    let cubic = s.fma(s.mul(x, x), s.splat(0.044_715), s.splat(1.0));
    let u = s.mul(s.mul(x, s.splat(0.797_884_6)), cubic);
    let u = s.at_most(s.at_least(u, s.splat(-5.0)), s.splat(5.0));
    let q = s.mul(u, u);
    let above = s.mul(u, polynomial(s, q, [135_135.0, 17_325.0, 378.0, 1.0]));
    let below = polynomial(s, q, [135_135.0, 62_370.0, 3_150.0, 28.0]);
    s.mul(s.mul(x, s.splat(0.5)), s.add(s.splat(1.0), s.div(above, below)))
}

/// `x/2 (1 + tanh(0.79788456 (x + 0.044715 x^3)))`, ONNX `Gelu(approximate="tanh")`: absolute error at most
/// `2.5e-7 max(1, |x|)`.
#[inline(always)]
pub fn gelu_tanh<S: Simd>(s: S, x: S::F) -> S::F {
    let cubic = s.fma(s.mul(x, x), s.splat(0.044_715), s.splat(1.0));
    let u = s.mul(s.mul(x, s.splat(0.797_884_6)), cubic);
    s.mul(s.mul(x, s.splat(0.5)), s.add(s.splat(1.0), tanh(s, u)))
}

/// `ln(1 + e^x)`, as `max(x, 0) + ln(1 + e^-|x|)`: relative error at most 4e-7 where the result exceeds 1e-6.
#[inline(always)]
pub fn softplus<S: Simd>(s: S, x: S::F) -> S::F {
    let e = exp(s, s.neg(s.abs(x)));
    // ln(1 + e) = ln(w) e / (w - 1) with w = 1 + e as rounded (Kahan's correction); e itself when w = 1.
    let w = s.add(e, s.splat(1.0));
    let corrected = s.div(s.mul(log(s, w), e), s.sub(w, s.splat(1.0)));
    let logarithm = s.select(s.eq(w, s.splat(1.0)), e, corrected);
    s.add(s.at_least(x, s.splat(0.0)), logarithm)
}
