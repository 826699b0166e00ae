//! Search for kernels whose taps see inputs that go together.
//!
//! Neighbouring positions of a feature map resemble each other, so that errors of one kernel's taps add up where they have one
//! sign and cancel where they do not. With correlation `r` between any two taps of a kernel of `k` taps, and input channels
//! taken for unrelated, the squared output error of a row is, up to a factor,
//!
//! ```text
//! sum over kernels c of   (1 - r) sum_i e_ci^2 + r (sum_i e_ci)^2,      e = w - w'
//! ```
//!
//! Per block, from the result of the [search](super::search): every code moves to its best value given the others (the
//! curvature is 1, so that is the nearest to `w' + (1 - r) e_ci + r sum_i e_ci`) until none does; then scale and minimum are
//! fitted by least squares under the same measure; and again, until the error falls no more. Every step lowers it.

use rayon::prelude::*;

use super::gain::RowBlocks;
use super::{QuantizedMatrix, StridedMatrix, WeightMethod, nearest_half, round_to_half};
use crate::quant::affine::{self, Affine};
use crate::quant::error::QuantError;
use crate::quant::spec::{ScaleStorage, Scheme, WeightQuantSpec};

/// Most rounds of moving codes and refitting.
const ROUNDS: usize = 8;
/// Most sweeps over the codes per round.
const SWEEPS: usize = 6;
/// Share by which a move must lower the error of its kernel, so that rounding cannot make it go in circles.
const LEAST_GAIN: f64 = 1e-9;

/// Quantizes `weight: [rows, columns]`, whose rows are kernels of `taps` weights each, for inputs of correlation
/// `correlation` within a kernel.
///
/// `spec.method` is ignored: the method is the search. With `spec.gain_correction` scales and minima are corrected at the end.
/// Uses the rayon pool of the caller.
///
/// # Errors
/// What [`quantize`](super::quantize) reports; [`QuantError::Taps`] if blocks are not made of whole kernels, or the correlation
/// is not in `0..1`.
pub fn quantize_correlated(
    weight: &[f32],
    rows: usize,
    spec: &WeightQuantSpec,
    taps: usize,
    correlation: f64,
) -> Result<QuantizedMatrix, QuantError> {
    let columns = weight.len() / rows.max(1);
    let spec = WeightQuantSpec { method: WeightMethod::Search, ..*spec };
    let plain = WeightQuantSpec { gain_correction: false, scale_storage: ScaleStorage::F32, ..spec };
    let start = super::quantize(&StridedMatrix::row_major(weight, [rows, columns])?, &plain, None)?;
    let block = start.block_len;
    if taps == 0 || !block.is_multiple_of(taps) || !(0.0..1.0).contains(&correlation) {
        return Err(QuantError::Taps { taps, block, correlation });
    }
    let blocks = columns / block;
    let asymmetric = spec.scheme == Scheme::Asymmetric;
    let (mut codes, mut scale, min) = start.weights.into_parts();
    let mut min = min.unwrap_or_else(|| vec![0.0; scale.len()]);
    codes
        .par_chunks_mut(columns)
        .zip(scale.par_chunks_mut(blocks))
        .zip(min.par_chunks_mut(blocks))
        .zip(weight.par_chunks(columns))
        .enumerate()
        .try_for_each(|(row, (((codes, scale), min), weights))| {
            let fit = |i: usize| {
                let weights = &weights[i * block..][..block];
                Fit { spec: &spec, weights, taps, own: 1.0 - correlation, shared: correlation }
            };
            for i in 0..blocks {
                let found =
                    fit(i).run(Affine { scale: scale[i], min: min[i] }, &mut codes[i * block..][..block]);
                (scale[i], min[i]) = (found.scale, found.min);
            }
            if spec.gain_correction {
                let min = if asymmetric { &mut *min } else { &mut [] };
                RowBlocks { weights, codes, block, scale, min }.correct_gain(spec.bits, spec.scheme);
            }
            if spec.scale_storage == ScaleStorage::F16 {
                round_to_half(nearest_half, row, scale, min)?;
                // With corrected gain the best codes would undo the correction.
                for i in 0..if spec.gain_correction { 0 } else { blocks } {
                    let affine = Affine { scale: scale[i], min: min[i] };
                    fit(i).settle(affine, &mut codes[i * block..][..block]);
                }
            }
            Ok::<(), QuantError>(())
        })?;
    Ok(QuantizedMatrix::fitted(&spec, weight, [rows, columns, block], codes, scale, min))
}

/// One block while it is fitted.
struct Fit<'a> {
    spec: &'a WeightQuantSpec,
    weights: &'a [f32],
    taps: usize,
    /// Weight of the squares of errors, `1 - r`.
    own: f64,
    /// Weight of the squares of the kernels' sums of errors, `r`.
    shared: f64,
}

impl Fit<'_> {
    /// Improves parameters and codes.
    fn run(&self, start: Affine, codes: &mut [i8]) -> Affine {
        let (mut best, mut least) = (start, self.error(start, codes));
        let mut room = codes.to_vec();
        let mut affine = start;
        for _ in 0..ROUNDS {
            if !(least.is_finite() && least > 0.0) {
                break;
            }
            self.settle(affine, &mut room);
            let moved = self.error(affine, &room);
            if moved < least {
                (best, least) = (affine, moved);
                codes.copy_from_slice(&room);
            }
            let Some(next) = self.refit(&room) else { break };
            let error = self.error(next, &room);
            if error.is_nan() || error >= least {
                break;
            }
            (best, least, affine) = (next, error, next);
            codes.copy_from_slice(&room);
        }
        best
    }

    /// What `affine` stands for in double precision: step, and weight of code 0 as a reader computes it.
    fn grid(&self, affine: Affine) -> (f64, f64) {
        let offset = affine::offset(self.spec.bits, self.spec.scheme, affine);
        (f64::from(affine.scale), f64::from(offset))
    }

    /// Moves every code to its best value given the others of its kernel, until none moves.
    fn settle(&self, affine: Affine, codes: &mut [i8]) {
        let (scale, offset) = self.grid(affine);
        if scale == 0.0 {
            return;
        }
        let half = f64::from(self.spec.bits.half());
        for (weights, codes) in self.weights.chunks_exact(self.taps).zip(codes.chunks_exact_mut(self.taps)) {
            let decoded = |code: i8| f64::from(code) * scale + offset;
            let mut sum: f64 = weights.iter().zip(&*codes).map(|(&w, &c)| f64::from(w) - decoded(c)).sum();
            for _ in 0..SWEEPS {
                let mut moved = false;
                for (&w, code) in weights.iter().zip(codes.iter_mut()) {
                    let old = decoded(*code);
                    let gradient = self.own * (f64::from(w) - old) + self.shared * sum;
                    let wanted = ((old + gradient - offset) / scale).round();
                    // A NaN, from weights beyond what squares can hold, stays where it is.
                    if !wanted.is_finite() {
                        continue;
                    }
                    let new = wanted.clamp(-half, half - 1.0) as i8;
                    let step = decoded(new) - old;
                    if new != *code && step * (2.0 * gradient - step) > LEAST_GAIN * step * step {
                        (*code, moved) = (new, true);
                        sum -= step;
                    }
                }
                if !moved {
                    break;
                }
            }
        }
    }

    fn error(&self, affine: Affine, codes: &[i8]) -> f64 {
        let (scale, offset) = self.grid(affine);
        let (mut squares, mut sums) = (0.0, 0.0);
        for (weights, codes) in self.weights.chunks_exact(self.taps).zip(codes.chunks_exact(self.taps)) {
            let mut sum = 0.0;
            for (&w, &code) in weights.iter().zip(codes) {
                let error = f64::from(w) - (f64::from(code) * scale + offset);
                squares += error * error;
                sum += error;
            }
            sums += sum * sum;
        }
        self.own * squares + self.shared * sums
    }

    /// Least squares for scale and minimum given the codes; none where the codes do not determine a grid.
    fn refit(&self, codes: &[i8]) -> Option<Affine> {
        let symmetric = self.spec.scheme == Scheme::Symmetric;
        let half = if symmetric { 0.0 } else { f64::from(self.spec.bits.half()) };
        let (mut qq, mut q1, mut qw, mut w1) = (0.0, 0.0, 0.0, 0.0);
        for (weights, codes) in self.weights.chunks_exact(self.taps).zip(codes.chunks_exact(self.taps)) {
            let (mut codes_sum, mut weights_sum) = (0.0, 0.0);
            for (&w, &code) in weights.iter().zip(codes) {
                let (w, q) = (f64::from(w), f64::from(code) + half);
                qq += self.own * q * q;
                qw += self.own * q * w;
                codes_sum += q;
                weights_sum += w;
            }
            qq += self.shared * codes_sum * codes_sum;
            qw += self.shared * codes_sum * weights_sum;
            q1 += codes_sum;
            w1 += weights_sum;
        }
        let fitted = if symmetric {
            Affine { scale: (qw / qq) as f32, min: 0.0 }
        } else {
            // Sums against a constant: each weight counts 1 - r of itself and r of its kernel, k times.
            let each = self.own + self.shared * self.taps as f64;
            let (q1, w1, ones) = (each * q1, each * w1, each * self.weights.len() as f64);
            let determinant = ones * qq - q1 * q1;
            if determinant <= 1e-9 * ones * qq {
                return None;
            }
            let scale = (ones * qw - q1 * w1) / determinant;
            Affine { scale: scale as f32, min: ((w1 - scale * q1) / ones) as f32 }
        };
        (fitted.scale.is_normal() && fitted.min.is_finite()).then_some(fitted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::spec::{BitWidth, Granularity};

    const R: f64 = 0.3;

    fn spec(
        bits: u32,
        scheme: Scheme,
        scale_storage: ScaleStorage,
        gain_correction: bool,
    ) -> WeightQuantSpec {
        WeightQuantSpec {
            bits: BitWidth::new(bits).unwrap(),
            scheme,
            granularity: Granularity::PerBlock { len: 16 * 9 },
            method: WeightMethod::Search,
            scale_storage,
            gain_correction,
        }
    }

    fn weights(count: usize) -> Vec<f32> {
        let mut state = 7_u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 24) as f32 - 0.5
        };
        (0..count).map(|_| next() + next() + next()).collect()
    }

    fn decoded(result: &QuantizedMatrix) -> Vec<f32> {
        let (codes, block) = (result.weights.codes(), result.block_len);
        let weights = codes.iter().enumerate();
        weights
            .map(|(i, &code)| {
                f32::from(code) * result.weights.scale()[i / block] + result.weights.offset(i / block)
            })
            .collect()
    }

    fn correlated(result: &QuantizedMatrix, weights: &[f32]) -> f64 {
        let errors: Vec<f64> =
            decoded(result).iter().zip(weights).map(|(d, w)| f64::from(*w) - f64::from(*d)).collect();
        let kernels = errors.chunks(9);
        kernels
            .map(|e| (1.0 - R) * e.iter().map(|e| e * e).sum::<f64>() + R * e.iter().sum::<f64>().powi(2))
            .sum()
    }

    #[test]
    fn errors_of_a_kernel_cancel() {
        let (rows, columns) = (12, 2 * 16 * 9);
        let weights = weights(rows * columns);
        for (bits, scheme) in [(3, Scheme::Symmetric), (3, Scheme::Asymmetric), (8, Scheme::Asymmetric)] {
            for storage in [ScaleStorage::F32, ScaleStorage::F16] {
                let spec = spec(bits, scheme, storage, false);
                let source = StridedMatrix::row_major(&weights, [rows, columns]).unwrap();
                let plain = super::super::quantize(&source, &spec, None).unwrap();
                let found = quantize_correlated(&weights, rows, &spec, 9, R).unwrap();
                let (before, after) = (correlated(&plain, &weights), correlated(&found, &weights));
                assert!(after < 0.9 * before, "{bits} {scheme:?} {storage:?}: {before} -> {after}");
                assert!(found.error().squared_error < 1.4 * plain.error().squared_error);
            }
        }
    }

    #[test]
    fn without_correlation_it_is_hardly_other_than_the_search() {
        let weights = weights(8 * 144);
        let spec = spec(4, Scheme::Asymmetric, ScaleStorage::F32, false);
        let source = StridedMatrix::row_major(&weights, [8, 144]).unwrap();
        let plain = super::super::quantize(&source, &spec, None).unwrap();
        let found = quantize_correlated(&weights, 8, &spec, 9, 0.0).unwrap();
        assert!(found.error().squared_error <= plain.error().squared_error * (1.0 + 1e-6));
    }

    #[test]
    fn gains_are_corrected() {
        let weights = weights(144);
        let spec = spec(2, Scheme::Asymmetric, ScaleStorage::F32, true);
        let found = decoded(&quantize_correlated(&weights, 1, &spec, 9, R).unwrap());
        let mean = |x: &[f32]| x.iter().map(|&x| f64::from(x)).sum::<f64>() / x.len() as f64;
        let (w, d) = (mean(&weights), mean(&found));
        assert!((w - d).abs() < 1e-5);
        let sum = |other: &[f32], m: f64| -> f64 {
            weights.iter().zip(other).map(|(a, b)| (f64::from(*a) - w) * (f64::from(*b) - m)).sum()
        };
        assert!((sum(&weights, w) / sum(&found, d) - 1.0).abs() < 1e-4);
    }

    #[test]
    fn extreme_blocks_stay_sane() {
        let spec = spec(4, Scheme::Asymmetric, ScaleStorage::F32, false);
        let constant = [0.25_f32; 144];
        assert_eq!(quantize_correlated(&constant, 1, &spec, 9, R).unwrap().error().squared_error, 0.0);
        for size in [1e-18_f32, 1e-12, 1e30, 1e37] {
            let weights: Vec<f32> = weights(144).iter().map(|w| w * size).collect();
            let found = quantize_correlated(&weights, 1, &spec, 9, R).unwrap();
            let worst =
                decoded(&found).iter().zip(&weights).map(|(d, w)| (d - w).abs() / size).fold(0.0, f32::max);
            assert!(worst < 0.5, "{size}: {worst}");
        }
        assert!(quantize_correlated(&[f32::NAN; 144], 1, &spec, 9, R).is_err());
        for (taps, correlation) in [(0, R), (7, R), (9, 1.0), (9, f64::NAN), (9, -0.1)] {
            let result = quantize_correlated(&constant, 1, &spec, taps, correlation);
            assert!(matches!(result, Err(QuantError::Taps { .. })));
        }
    }
}
