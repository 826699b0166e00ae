//! Half-quadratic quantization: the offset of each block is optimized for a norm that forgives outliers.
//!
//! Badri & Shaji, "Half-Quadratic Quantization of Large Machine Learning Models" (2023). With `r = 1 / scale`
//! fixed by the range of the block and `L = 2^b - 1`, each iteration computes
//!
//! ```text
//! q = clamp(round(w * r + z), 0, L)            round: half away from zero
//! e = w - (q - z) / r
//! e' = sign(e) * max(|e| - |e|^(p-1) / beta, 0)
//! z = mean(q - (w - e') * r)
//! ```
//!
//! and the block decodes as `min + scale * index` with `min = -z / r`. Two variants are values here:
//! [`MnnHqq`] repeats what MNN's converter computes, [`ReferenceHqq`] is the published algorithm.
//!
//! `e'` is exactly 0 while `|e| < beta^(-1/(2-p))` (0.17 at the defaults), which real weights hardly exceed;
//! then an iteration needs no power function. Means are taken over 16 interleaved partial sums, and the power is
//! computed here from additions and multiplications, so every CPU gives the same bits.

use super::{Block, BlockQuantizer};
use crate::quant::affine::{
    self, Affine, Encode, LANES, clamp, encode_chunks, fold_lanes, fold_magnitudes, magnitude_bits,
    round_half_away, to_code,
};
use crate::quant::spec::BitWidth;

/// Norm exponent `p` of the published defaults; MNN fixes the same.
const LP_NORM: f64 = 0.7;
/// `beta` of the published defaults; MNN fixes the same.
const BETA: f64 = 10.0;
/// Iterations of the published defaults; MNN fixes the same.
const ITERATIONS: u32 = 20;

/// HQQ as MNN's converter computes it (`tools/converter/source/common/HQQQuantizer.cpp`).
///
/// `scale = max((max - min) * (1 / L), 1e-7)`, 20 iterations with `p = 0.7`, `beta = 10`, no early stop; then
/// `scale = 1 / r`, `min = -(z * scale)`, `code = clamp(round((w - min) * r - 2^(b-1)))`. The rule for dead
/// blocks does not apply. MNN sums the mean in another order: `min` agrees within 6e-8.
#[derive(Clone, Copy, Debug)]
pub struct MnnHqq {
    /// Bits per code.
    pub bits: BitWidth,
}

/// `clamp(round((w - min) * r - half))`: unlike the plain rule, rounds after the shift.
#[derive(Clone, Copy)]
struct Shifted {
    min: f32,
    r: f32,
    half: f32,
}

impl Encode for Shifted {
    #[inline(always)]
    fn code(self, w: f32) -> i8 {
        to_code(round_half_away(clamp((w - self.min) * self.r - self.half, -self.half, self.half - 1.0)))
    }
}

impl BlockQuantizer for MnnHqq {
    #[inline(always)]
    fn quantize(self, Block { weights, codes, scratch }: Block<'_>) -> Affine {
        let (low, high) = affine::min_max(weights);
        let scale = (high - low) * (1.0 / self.bits.steps());
        let scale = if scale > 1e-7 { scale } else { 1e-7 };
        let r = 1.0 / scale;
        let step = Step { steps: self.bits.steps(), r, inverse: 1.0 / r, shrink: Shrink::new(LP_NORM, BETA) };
        scale_into(weights, r, scratch);
        let mut z = r * -low;
        for _ in 0..ITERATIONS {
            let next = step.run(weights, scratch, z).zero;
            if next == z {
                break; // A fixed point: the remaining iterations would repeat it.
            }
            z = next;
        }
        let affine = Affine { scale: step.inverse, min: -(z * step.inverse) };
        let half = self.bits.half();
        encode_chunks(Shifted { min: affine.min, r, half }, weights, codes);
        affine
    }
}

/// HQQ as published: `beta` grows by `kappa`, iterations stop once the mean absolute error no longer falls, the
/// best offset is kept.
///
/// `r` is limited to 2e4 as in the reference implementation, except that a block narrower than that limit allows
/// keeps its own scale (the limit would erase it), and a constant block is stored exactly with scale 0.
/// The error that decides is the group's own; the reference implementation averages it over the tensor.
#[derive(Clone, Copy, Debug)]
pub struct ReferenceHqq {
    /// Bits per code.
    pub bits: BitWidth,
    /// Norm exponent `p`, in (0, 1).
    pub lp_norm: f64,
    /// Weight of the quadratic term at the first iteration.
    pub beta: f64,
    /// Factor on `beta` after each iteration.
    pub kappa: f64,
    /// Largest number of iterations.
    pub iterations: u32,
}

impl ReferenceHqq {
    /// The published defaults: `p = 0.7`, `beta = 10`, `kappa = 1.01`, 20 iterations.
    pub fn new(bits: BitWidth) -> Self {
        Self { bits, lp_norm: LP_NORM, beta: BETA, kappa: 1.01, iterations: ITERATIONS }
    }
}

impl BlockQuantizer for ReferenceHqq {
    #[inline(always)]
    fn quantize(self, Block { weights, codes, scratch }: Block<'_>) -> Affine {
        let (low, high) = affine::min_max(weights);
        let r = self.bits.steps() / (high - low);
        if !r.is_finite() {
            codes.fill(self.bits.lowest());
            return Affine { scale: 0.0, min: low };
        }
        let inverse = 1.0 / r;
        scale_into(weights, r, scratch);
        let mut beta = self.beta;
        let mut z = r * -low;
        let (mut best, mut best_error) = (z, f32::INFINITY);
        for _ in 0..=self.iterations {
            let step = Step { steps: self.bits.steps(), r, inverse, shrink: Shrink::new(self.lp_norm, beta) };
            let outcome = step.run(weights, scratch, z);
            if outcome.error >= best_error {
                break;
            }
            (best, best_error) = (z, outcome.error);
            z = outcome.zero;
            beta *= self.kappa;
        }
        let affine = Affine { scale: inverse, min: -(best * inverse) };
        affine::encode_asymmetric(self.bits, affine, weights, codes);
        affine
    }
}

#[inline(always)]
fn scale_into(weights: &[f32], r: f32, scaled: &mut [f32]) {
    for (x, w) in scaled.iter_mut().zip(weights) {
        *x = w * r;
    }
}

/// One iteration with fixed scale.
#[derive(Clone, Copy)]
struct Step {
    steps: f32,
    r: f32,
    inverse: f32,
    shrink: Shrink,
}

/// What an iteration gives.
struct Outcome {
    /// The next `z`.
    zero: f32,
    /// Sum of `|w * r - (q - z)|` of the offset that entered: the absolute error in steps.
    error: f32,
}

impl Step {
    /// `scaled` is `w * r`.
    #[inline(always)]
    fn run(self, weights: &[f32], scaled: &[f32], z: f32) -> Outcome {
        let (mut sum, mut error, mut largest) = ([0.0_f32; LANES], [0.0_f32; LANES], [0_u32; LANES]);
        let (chunks, tail) = scaled.as_chunks::<LANES>();
        for x in chunks {
            for lane in 0..LANES {
                let t = x[lane] + z;
                let q = round_half_away(clamp(t, 0.0, self.steps));
                let residual = (t - q).abs();
                sum[lane] += q - x[lane];
                error[lane] += residual;
                largest[lane] = largest[lane].max(magnitude_bits(residual));
            }
        }
        let (mut sum, mut error, mut largest) =
            (fold_lanes(sum), fold_lanes(error), fold_magnitudes(largest));
        for x in tail {
            let t = x + z;
            let q = round_half_away(clamp(t, 0.0, self.steps));
            let residual = (t - q).abs();
            sum += q - x;
            error += residual;
            largest = if residual > largest { residual } else { largest };
        }
        let sum = if largest * self.inverse < self.shrink.inactive_below {
            sum
        } else {
            self.shrunk_sum(weights, scaled, z)
        };
        Outcome { zero: sum / weights.len() as f32, error }
    }

    /// Sum of `q - (w - e') * r` when some residual is large enough to be shrunk to a value other than 0.
    #[inline(always)]
    fn shrunk_sum(self, weights: &[f32], scaled: &[f32], z: f32) -> f32 {
        let mut sum = [0.0_f32; LANES];
        let (chunks, tail) = weights.as_chunks::<LANES>();
        let (scaled_chunks, scaled_tail) = scaled.as_chunks::<LANES>();
        for (w, x) in chunks.iter().zip(scaled_chunks) {
            for lane in 0..LANES {
                sum[lane] += self.shrunk_term(w[lane], x[lane], z);
            }
        }
        let mut sum = fold_lanes(sum);
        for (&w, &x) in tail.iter().zip(scaled_tail) {
            sum += self.shrunk_term(w, x, z);
        }
        sum
    }

    #[inline(always)]
    fn shrunk_term(self, w: f32, x: f32, z: f32) -> f32 {
        let q = round_half_away(clamp(x + z, 0.0, self.steps));
        let e = w - (q - z) * self.inverse;
        q - (w - self.shrink.apply(e)) * self.r
    }
}

/// The generalized soft threshold `sign(e) * max(|e| - |e|^(p-1) / beta, 0)`.
#[derive(Clone, Copy)]
struct Shrink {
    exponent: f64,
    inverse_beta: f32,
    /// Below this magnitude the result is 0 for sure: `beta^(-1/(2-p))`, less a margin for rounding.
    inactive_below: f32,
}

impl Shrink {
    #[inline(always)]
    fn new(lp_norm: f64, beta: f64) -> Self {
        Self {
            exponent: lp_norm - 1.0,
            inverse_beta: (1.0 / beta) as f32,
            inactive_below: (power(beta, -1.0 / (2.0 - lp_norm)) * 0.999) as f32,
        }
    }

    #[inline(always)]
    fn apply(self, e: f32) -> f32 {
        let magnitude = e.abs();
        let base = if magnitude > 1e-8 { magnitude } else { 1e-8 };
        let shrunk = magnitude - self.inverse_beta * power(f64::from(base), self.exponent) as f32;
        if shrunk > 0.0 { shrunk.copysign(e) } else { 0.0 }
    }
}

/// `x^y` for normal `x > 0` and `|y log2 x| < 1000`, within 1e-11 relative, from additions and multiplications.
///
/// `log2` by the series of `atanh` on `[sqrt(1/2), sqrt(2))`, `exp2` by the Taylor series on `[-1/2, 1/2]`.
#[inline(always)]
fn power(x: f64, y: f64) -> f64 {
    const SQRT_HALF_BITS: u64 = 0x3fe6_a09e_667f_3bcd;
    let shifted = x.to_bits().wrapping_sub(SQRT_HALF_BITS);
    let exponent = (shifted as i64) >> 52;
    let mantissa = f64::from_bits((shifted & 0x000f_ffff_ffff_ffff) + SQRT_HALF_BITS);
    let t = (mantissa - 1.0) / (mantissa + 1.0);
    let t2 = t * t;
    let mut series = 1.0 / 17.0;
    for k in [15.0, 13.0, 11.0, 9.0, 7.0, 5.0, 3.0, 1.0] {
        series = series * t2 + 1.0 / k;
    }
    let log2 = exponent as f64 + t * series * (2.0 * std::f64::consts::LOG2_E);
    let product = log2 * y;
    // Adding 1.5 * 2^52 rounds to an integer and leaves it in the low bits.
    const MAGIC: f64 = 6_755_399_441_055_744.0;
    let shifted = product + MAGIC;
    let fraction = (product - (shifted - MAGIC)) * std::f64::consts::LN_2;
    let mut exp = 1.0;
    for k in [11.0, 10.0, 9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0] {
        exp = exp * (fraction / k) + 1.0;
    }
    let integer = shifted.to_bits().wrapping_sub(MAGIC.to_bits());
    exp * f64::from_bits(integer.wrapping_add(1023) << 52)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn power_agrees_with_the_library() {
        for y in [-0.3, -0.5, -1.0 / 1.3, 0.7, 2.0] {
            for i in 0..4000 {
                let x = 10_f64.powf(f64::from(i) * 0.01 - 20.0);
                let (got, want) = (power(x, y), x.powf(y));
                assert!((got / want - 1.0).abs() < 1e-11, "{x}^{y}: {got} != {want}");
            }
        }
    }

    #[test]
    fn shrinking_is_inactive_below_its_threshold() {
        let shrink = Shrink::new(LP_NORM, BETA);
        assert!((shrink.inactive_below - 0.17).abs() < 1e-3);
        assert_eq!(shrink.apply(shrink.inactive_below), 0.0);
        assert_eq!(shrink.apply(0.0), 0.0);
        let want = 0.5 - 0.5_f32.powf(-0.3) / 10.0;
        assert!((shrink.apply(0.5) - want).abs() < 1e-6);
        assert!((shrink.apply(-0.5) + want).abs() < 1e-6);
    }

    #[test]
    fn mnn_codes_round_after_the_offset() {
        // Residuals of the iterations cancel, so z stays 0; index 1.5 becomes code round(-0.5) = -1. The codes
        // are those of a converter run.
        let mut weights = [0.0_f32; 16];
        weights[..5].copy_from_slice(&[0.0, 3.0 / 64.0, 1.5 / 64.0, 1.25 / 64.0, 1.25 / 64.0]);
        let mut codes = [0; 16];
        let hqq = MnnHqq { bits: BitWidth::ALL[0] };
        let affine = hqq.quantize(Block { weights: &weights, codes: &mut codes, scratch: &mut [0.0; 16] });
        assert_eq!(codes[..5], [-2, 1, -1, -1, -1]);
        assert_eq!(affine.scale, 1.0 / 64.0);
        assert_eq!(affine.min, 0.0);
    }

    #[test]
    fn reference_never_ends_above_round_to_nearest() {
        let weights: Vec<f32> = (0..257).map(|i| ((i * i) as f32 * 0.7).sin().powi(3) * 0.05).collect();
        let mut scratch = vec![0.0; weights.len()];
        for bits in BitWidth::ALL {
            let error = |affine: Affine, codes: &[i8]| -> f64 {
                let offset = affine::offset(bits, crate::quant::Scheme::Asymmetric, affine);
                let decoded = codes.iter().map(|&c| affine::decode(affine, offset, c));
                weights.iter().zip(decoded).map(|(w, d)| f64::from((w - d).abs())).sum()
            };
            let mut codes = vec![0; weights.len()];
            let hqq = ReferenceHqq::new(bits);
            let ours = hqq.quantize(Block { weights: &weights, codes: &mut codes, scratch: &mut scratch });
            let ours = error(ours, &codes);
            let rtn = super::super::rtn::RoundToNearest { bits, scheme: crate::quant::Scheme::Asymmetric };
            let plain = rtn.quantize(Block { weights: &weights, codes: &mut codes, scratch: &mut scratch });
            assert!(ours <= error(plain, &codes) * (1.0 + 1e-6));
        }
    }
}
