//! How far decoded weights are from the weights.

use crate::quant::affine::{self, Affine, LANES, fold_lanes_f64, fold_max};
use crate::quant::spec::{BitWidth, Scheme};

/// Sums over a set of weights `w` and their decoded values `d`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct WeightError {
    /// `sum (w - d)^2`.
    pub squared_error: f64,
    /// `sum w^2`.
    pub squared_weight: f64,
    /// `max |w - d|`.
    pub max_abs_error: f64,
}

impl WeightError {
    /// `sqrt(sum (w - d)^2 / sum w^2)`; 0 when nothing is lost, infinite when all weights are 0 and decode to others.
    pub fn relative_rms(&self) -> f64 {
        if self.squared_error == 0.0 { 0.0 } else { (self.squared_error / self.squared_weight).sqrt() }
    }

    /// Signal to noise in dB, `10 log10(sum w^2 / sum (w - d)^2)`; infinite when nothing is lost.
    pub fn sqnr_db(&self) -> f64 {
        -20.0 * self.relative_rms().log10()
    }

    /// Adds the figures of further weights.
    #[must_use]
    #[inline(always)]
    pub fn merge(self, other: Self) -> Self {
        Self {
            squared_error: self.squared_error + other.squared_error,
            squared_weight: self.squared_weight + other.squared_weight,
            max_abs_error: self.max_abs_error.max(other.max_abs_error),
        }
    }
}

impl WeightError {
    /// The figures of a block, summed in f64: the square of an f32 is exact there.
    #[inline(always)]
    pub(super) fn of_block(
        bits: BitWidth,
        scheme: Scheme,
        affine: Affine,
        weights: &[f32],
        codes: &[i8],
    ) -> Self {
        let offset = affine::offset(bits, scheme, affine);
        let (weight_chunks, weight_tail) = weights.as_chunks::<LANES>();
        let (code_chunks, code_tail) = codes.as_chunks::<LANES>();
        let (mut error, mut weight, mut largest) = ([0.0_f64; LANES], [0.0_f64; LANES], [0.0_f32; LANES]);
        for (w, c) in weight_chunks.iter().zip(code_chunks) {
            for lane in 0..LANES {
                let e = w[lane] - affine::decode(affine, offset, c[lane]);
                largest[lane] = if e.abs() > largest[lane] { e.abs() } else { largest[lane] };
                error[lane] += f64::from(e) * f64::from(e);
                weight[lane] += f64::from(w[lane]) * f64::from(w[lane]);
            }
        }
        let mut total = Self {
            squared_error: fold_lanes_f64(error),
            squared_weight: fold_lanes_f64(weight),
            max_abs_error: f64::from(fold_max(largest)),
        };
        for (&w, &c) in weight_tail.iter().zip(code_tail) {
            let e = f64::from(w - affine::decode(affine, offset, c));
            total.squared_error += e * e;
            total.squared_weight += f64::from(w) * f64::from(w);
            total.max_abs_error = total.max_abs_error.max(e.abs());
        }
        total
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_of_a_known_case() {
        let weights: Vec<f32> = (0..20).map(|i| i as f32).collect();
        let codes: Vec<i8> = (0..20).map(|i| if i == 3 { 5 } else { i }).collect();
        let affine = Affine { scale: 1.0, min: 0.0 };
        let got = WeightError::of_block(BitWidth::ALL[6], Scheme::Symmetric, affine, &weights, &codes);
        let want = WeightError { squared_error: 4.0, squared_weight: 2470.0, max_abs_error: 2.0 };
        assert_eq!(got, want);
        assert!((got.sqnr_db() - 10.0 * (2470.0_f64 / 4.0).log10()).abs() < 1e-9);
        assert_eq!(WeightError::default().relative_rms(), 0.0);
        assert_eq!(WeightError::default().sqnr_db(), f64::INFINITY);
        assert_eq!(got.merge(got).squared_error, 8.0);
        assert_eq!(got.merge(got).max_abs_error, 2.0);
    }
}
