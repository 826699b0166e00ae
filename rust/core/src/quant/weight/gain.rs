//! Gain and mean correction: a quantized row keeps the gain and the mean of the row it came from.
//!
//! A quantizer that minimizes the squared error attenuates: `<w, d> = |d|^2 < |w|^2` for weights `w` and decoded
//! weights `d`, and a chain of layers multiplies the attenuations. Scales and minima are floats, so the
//! correction costs nothing in the file. Per row (all its blocks together), with means removed:
//!
//! ```text
//! g = sum (w - mean w)^2 / sum (w - mean w)(d - mean d)
//! scale <- g * scale
//! min   <- g * min + (mean w - g * mean d)        asymmetric only
//! ```
//!
//! A symmetric row has no offset to correct: there `g = sum w^2 / sum w d`. Rows whose denominator is not
//! positive (all weights decode to one value) are left alone.

use crate::quant::affine::{self, Affine, LANES, fold_lanes_f64};
use crate::quant::spec::{BitWidth, Scheme};

/// Sums over a row.
struct Moments {
    weight: f64,
    decoded: f64,
    weight_weight: f64,
    weight_decoded: f64,
}

impl Moments {
    #[inline(always)]
    fn of_row(bits: BitWidth, scheme: Scheme, blocks: &RowBlocks<'_>) -> Self {
        let mut total = Self { weight: 0.0, decoded: 0.0, weight_weight: 0.0, weight_decoded: 0.0 };
        for (i, (weights, codes)) in
            blocks.weights.chunks_exact(blocks.block).zip(blocks.codes.chunks_exact(blocks.block)).enumerate()
        {
            let affine = blocks.affine(i);
            total.add_block(affine, affine::offset(bits, scheme, affine), weights, codes);
        }
        total
    }

    #[inline(always)]
    fn add_block(&mut self, affine: Affine, offset: f32, weights: &[f32], codes: &[i8]) {
        let (mut sw, mut sd) = ([0.0_f64; LANES], [0.0_f64; LANES]);
        let (mut sww, mut swd) = ([0.0_f64; LANES], [0.0_f64; LANES]);
        let (weight_chunks, weight_tail) = weights.as_chunks::<LANES>();
        let (code_chunks, code_tail) = codes.as_chunks::<LANES>();
        for (w, c) in weight_chunks.iter().zip(code_chunks) {
            for lane in 0..LANES {
                let d = f64::from(affine::decode(affine, offset, c[lane]));
                let w = f64::from(w[lane]);
                sw[lane] += w;
                sd[lane] += d;
                sww[lane] += w * w;
                swd[lane] += w * d;
            }
        }
        self.weight += fold_lanes_f64(sw);
        self.decoded += fold_lanes_f64(sd);
        self.weight_weight += fold_lanes_f64(sww);
        self.weight_decoded += fold_lanes_f64(swd);
        for (&w, &c) in weight_tail.iter().zip(code_tail) {
            let (w, d) = (f64::from(w), f64::from(affine::decode(affine, offset, c)));
            self.weight += w;
            self.decoded += d;
            self.weight_weight += w * w;
            self.weight_decoded += w * d;
        }
    }
}

/// One row with its codes and parameters.
pub(super) struct RowBlocks<'a> {
    /// `[row_len]`.
    pub(super) weights: &'a [f32],
    /// `[row_len]`.
    pub(super) codes: &'a [i8],
    /// Elements per block.
    pub(super) block: usize,
    /// `[row_len / block]`.
    pub(super) scale: &'a mut [f32],
    /// `[row_len / block]`, or empty when symmetric.
    pub(super) min: &'a mut [f32],
}

impl RowBlocks<'_> {
    #[inline(always)]
    pub(super) fn affine(&self, i: usize) -> Affine {
        Affine { scale: self.scale[i], min: self.min.get(i).copied().unwrap_or(0.0) }
    }

    /// Applies the correction to the parameters; codes stay. A row whose corrected parameters would not fit in 32 bits
    /// is left as it is.
    #[inline(always)]
    pub(super) fn correct_gain(&mut self, bits: BitWidth, scheme: Scheme) {
        let moments = Moments::of_row(bits, scheme, self);
        let n = self.weights.len() as f64;
        let (numerator, denominator) = match scheme {
            Scheme::Symmetric => (moments.weight_weight, moments.weight_decoded),
            Scheme::Asymmetric => (
                moments.weight_weight - moments.weight * moments.weight / n,
                moments.weight_decoded - moments.weight * moments.decoded / n,
            ),
        };
        let gain = numerator / denominator;
        if !(gain.is_finite() && gain > 0.0 && denominator > 0.0) {
            return;
        }
        let shift = (moments.weight - gain * moments.decoded) / n;
        let corrected_scale = |scale: f32| (gain * f64::from(scale)) as f32;
        let corrected_min = |min: f32| (gain * f64::from(min) + shift) as f32;
        let fits = self.scale.iter().all(|&scale| corrected_scale(scale).is_finite())
            && self.min.iter().all(|&min| corrected_min(min).is_finite());
        if !fits {
            return;
        }
        for scale in self.scale.iter_mut() {
            *scale = corrected_scale(*scale);
        }
        for min in self.min.iter_mut() {
            *min = corrected_min(*min);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn corrected_rows_have_unit_gain_and_no_mean_error() {
        let bits = BitWidth::ALL[0];
        let weights: Vec<f32> = (0..96).map(|i| (i as f32 * 1.7).sin() * 0.1 + 0.02).collect();
        for scheme in [Scheme::Symmetric, Scheme::Asymmetric] {
            let codes: Vec<i8> = weights.iter().map(|w| ((w * 15.0).round() as i8).clamp(-2, 1)).collect();
            let mut scale = [0.05_f32, 0.04, 0.06];
            let mut min = [-0.1_f32, -0.09, -0.11];
            let min = if scheme == Scheme::Symmetric { &mut [][..] } else { &mut min[..] };
            let mut row = RowBlocks { weights: &weights, codes: &codes, block: 32, scale: &mut scale, min };
            row.correct_gain(bits, scheme);
            let moments = Moments::of_row(bits, scheme, &row);
            let n = weights.len() as f64;
            if scheme == Scheme::Asymmetric {
                assert!((moments.weight - moments.decoded).abs() < 1e-5);
                let variance = moments.weight_weight - moments.weight * moments.weight / n;
                let covariance = moments.weight_decoded - moments.weight * moments.decoded / n;
                assert!((variance / covariance - 1.0).abs() < 1e-5);
            } else {
                assert!((moments.weight_weight / moments.weight_decoded - 1.0).abs() < 1e-5);
            }
        }
    }

    #[test]
    fn a_row_whose_correction_would_overflow_is_left_alone() {
        let mut weights = [0.0_f32; 37];
        (weights[13], weights[36]) = (-3.166_811_3e38, 1.349_473_9e38);
        let mut codes = [0_i8; 37];
        (codes[13], codes[36]) = (-2, 1);
        let (mut scale, mut min) = ([1.5e38_f32], [-3.1e38_f32]);
        let mut row =
            RowBlocks { weights: &weights, codes: &codes, block: 37, scale: &mut scale, min: &mut min };
        row.correct_gain(BitWidth::ALL[0], Scheme::Asymmetric);
        assert!(scale[0].is_finite() && min[0].is_finite());
    }

    #[test]
    fn a_row_that_decodes_to_one_value_is_left_alone() {
        let (mut scale, mut min) = ([0.0_f32], [0.25_f32]);
        let mut row =
            RowBlocks { weights: &[0.25; 8], codes: &[-8; 8], block: 8, scale: &mut scale, min: &mut min };
        row.correct_gain(BitWidth::ALL[2], Scheme::Asymmetric);
        assert_eq!((scale, min), ([0.0], [0.25]));
    }
}
