//! How far decoded weights are from the weights.

use crate::quant::affine::{self, Affine, LANES, fold_lanes_f64, fold_magnitudes, magnitude_bits};

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

/// Partial sums of a row, in f64: the square of an f32 is exact there.
pub(super) struct ErrorLanes {
    error: [f64; LANES],
    weight: [f64; LANES],
    largest: [u32; LANES],
    /// What does not fill a vector.
    rest: WeightError,
}

impl ErrorLanes {
    #[inline(always)]
    pub(super) fn new() -> Self {
        Self { error: [0.0; LANES], weight: [0.0; LANES], largest: [0; LANES], rest: WeightError::default() }
    }

    /// Adds a block.
    #[inline(always)]
    pub(super) fn add(&mut self, affine: Affine, offset: f32, weights: &[f32], codes: &[i8]) {
        let (weight_chunks, weight_tail) = weights.as_chunks::<LANES>();
        let (code_chunks, code_tail) = codes.as_chunks::<LANES>();
        let (mut error, mut weight, mut largest) = (self.error, self.weight, self.largest);
        for (w, c) in weight_chunks.iter().zip(code_chunks) {
            let mut e = [0.0_f32; LANES];
            for lane in 0..LANES {
                e[lane] = w[lane] - affine::decode(affine, offset, c[lane]);
            }
            for lane in 0..LANES {
                largest[lane] = largest[lane].max(magnitude_bits(e[lane]));
                error[lane] += f64::from(e[lane]) * f64::from(e[lane]);
                weight[lane] += f64::from(w[lane]) * f64::from(w[lane]);
            }
        }
        (self.error, self.weight, self.largest) = (error, weight, largest);
        for (&w, &c) in weight_tail.iter().zip(code_tail) {
            let e = f64::from(w - affine::decode(affine, offset, c));
            self.rest = self.rest.merge(WeightError {
                squared_error: e * e,
                squared_weight: f64::from(w) * f64::from(w),
                max_abs_error: e.abs(),
            });
        }
    }

    #[inline(always)]
    pub(super) fn finish(self) -> WeightError {
        self.rest.merge(WeightError {
            squared_error: fold_lanes_f64(self.error),
            squared_weight: fold_lanes_f64(self.weight),
            max_abs_error: f64::from(fold_magnitudes(self.largest)),
        })
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
        let mut lanes = ErrorLanes::new();
        lanes.add(affine, 0.0, &weights, &codes);
        let got = lanes.finish();
        let want = WeightError { squared_error: 4.0, squared_weight: 2470.0, max_abs_error: 2.0 };
        assert_eq!(got, want);
        assert!((got.sqnr_db() - 10.0 * (2470.0_f64 / 4.0).log10()).abs() < 1e-9);
        assert_eq!(WeightError::default().relative_rms(), 0.0);
        assert_eq!(WeightError::default().sqnr_db(), f64::INFINITY);
        assert_eq!(got.merge(got).squared_error, 8.0);
        assert_eq!(got.merge(got).max_abs_error, 2.0);
    }
}
