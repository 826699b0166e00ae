//! Search with inputs of unequal power: what an input hardly uses may be rounded worse.
//!
//! With `p_k` the mean square of input `k` and inputs taken for uncorrelated, the squared output error of a row is
//! `sum_k p_k (w_k - w'_k)^2`. Behind a normalization the powers are known without data: `gamma^2 + beta^2`. Per
//! block, from the result of the [search](super::search): weighted least squares for scale and minimum given the codes,
//!
//! ```text
//! scale = (P sum p q w - sum p q sum p w) / (P sum p q^2 - (sum p q)^2),   min = (sum p w - scale sum p q) / P
//! ```
//!
//! with `P = sum p` and q the codes counted from 0 (symmetric: `scale = sum p q w / sum p q^2`), then the nearest codes,
//! until the error falls no more; the best is kept.

use mnnq_format::QuantizedWeights;
use rayon::prelude::*;

use super::stats::ErrorLanes;
use super::{QuantizedMatrix, StridedMatrix, WeightError, WeightMethod, nearest_half, recode, round_to_half};
use crate::quant::affine::{self, Affine};
use crate::quant::error::QuantError;
use crate::quant::spec::{ScaleStorage, Scheme, WeightQuantSpec};

/// Most rounds of refitting.
const ROUNDS: usize = 12;
/// Powers below this share of the mean count as this much, so that no input is given up.
const LEAST_POWER: f64 = 1e-2;

/// Quantizes `weight: [rows, power.len()]` for inputs of mean squares `power`.
///
/// `spec.method` and `spec.gain_correction` are ignored: the method is the search, and outputs stay as near as they can be.
/// Powers without a positive finite mean count as equal. Uses the rayon pool of the caller.
///
/// # Errors
/// What [`quantize`](super::quantize) reports; [`QuantError::Statistics`] if there is not one power per column.
pub fn quantize_weighted(
    weight: &[f32],
    rows: usize,
    spec: &WeightQuantSpec,
    power: &[f64],
) -> Result<QuantizedMatrix, QuantError> {
    let columns = power.len();
    let spec = WeightQuantSpec { method: WeightMethod::Search, gain_correction: false, ..*spec };
    if weight.len() != rows * columns {
        return Err(QuantError::Statistics { rows, row_len: weight.len() / rows.max(1), groups: 1, columns });
    }
    let start = super::quantize(&StridedMatrix::row_major(weight, [rows, columns])?, &spec, None)?;
    let mean = power.iter().sum::<f64>() / columns as f64;
    if !(mean.is_finite() && mean > 0.0) {
        return Ok(start);
    }
    let power: Vec<f64> = power.iter().map(|p| (p / mean).max(LEAST_POWER)).collect();
    let (block, blocks) = (start.block_len, columns / start.block_len);
    let asymmetric = spec.scheme == Scheme::Asymmetric;
    let (mut codes, mut scale, min) = start.weights.into_parts();
    let mut min = min.unwrap_or_else(|| vec![0.0; scale.len()]);
    let mut row_errors = vec![WeightError::default(); rows];
    codes
        .par_chunks_mut(columns)
        .zip(scale.par_chunks_mut(blocks))
        .zip(min.par_chunks_mut(blocks))
        .zip(weight.par_chunks(columns))
        .zip(row_errors.par_iter_mut())
        .enumerate()
        .try_for_each(|(row, ((((codes, scale), min), weights), error))| {
            let mut room = vec![0_i8; block];
            for i in 0..blocks {
                let part = i * block..(i + 1) * block;
                let fit = Fit { spec: &spec, weights: &weights[part.clone()], power: &power[part.clone()] };
                let found = fit.run(Affine { scale: scale[i], min: min[i] }, &mut codes[part], &mut room);
                (scale[i], min[i]) = (found.scale, found.min);
            }
            if spec.scale_storage == ScaleStorage::F16 {
                round_to_half(nearest_half, row, scale, min)?;
                recode(spec.bits, spec.scheme, block, weights, codes, scale, min);
            }
            let mut lanes = ErrorLanes::new();
            for (i, (weights, codes)) in
                weights.chunks_exact(block).zip(codes.chunks_exact(block)).enumerate()
            {
                let affine = Affine { scale: scale[i], min: min[i] };
                lanes.add(affine, affine::offset(spec.bits, spec.scheme, affine), weights, codes);
            }
            *error = lanes.finish();
            Ok::<(), QuantError>(())
        })?;
    let weights = QuantizedWeights::new(spec.bits.get(), codes, scale, asymmetric.then_some(min))
        .unwrap_or_else(|error| unreachable!("codes are clamped and lengths those of the start: {error}"));
    Ok(QuantizedMatrix { weights, rows, row_len: columns, block_len: block, row_errors })
}

/// One block while it is fitted.
struct Fit<'a> {
    spec: &'a WeightQuantSpec,
    weights: &'a [f32],
    power: &'a [f64],
}

impl Fit<'_> {
    /// Improves parameters and codes; `room` is as long as `codes`.
    fn run(&self, start: Affine, codes: &mut [i8], room: &mut [i8]) -> Affine {
        let mut best = start;
        let mut least = self.error(best, codes);
        for _ in 0..ROUNDS {
            let Some(next) = self.refit(codes) else { break };
            match self.spec.scheme {
                Scheme::Symmetric => affine::encode_symmetric(self.spec.bits, next.scale, self.weights, room),
                Scheme::Asymmetric => affine::encode_asymmetric(self.spec.bits, next, self.weights, room),
            }
            let error = self.error(next, room);
            if error.is_nan() || error >= least {
                break;
            }
            (best, least) = (next, error);
            codes.copy_from_slice(room);
        }
        best
    }

    fn error(&self, affine: Affine, codes: &[i8]) -> f64 {
        let offset = affine::offset(self.spec.bits, self.spec.scheme, affine);
        let errors = self.weights.iter().zip(codes).map(|(w, &c)| w - affine::decode(affine, offset, c));
        errors.zip(self.power).map(|(e, p)| p * f64::from(e) * f64::from(e)).sum()
    }

    /// Weighted least squares; none where the codes do not determine a grid.
    fn refit(&self, codes: &[i8]) -> Option<Affine> {
        let half = f64::from(self.spec.bits.half());
        let symmetric = self.spec.scheme == Scheme::Symmetric;
        let (mut p, mut pw, mut pq, mut pqq, mut pqw) = (0.0, 0.0, 0.0, 0.0, 0.0);
        for ((&w, &code), &power) in self.weights.iter().zip(codes).zip(self.power) {
            let (w, q) = (f64::from(w), f64::from(code) + if symmetric { 0.0 } else { half });
            p += power;
            pw += power * w;
            pq += power * q;
            pqq += power * q * q;
            pqw += power * q * w;
        }
        let fitted = if symmetric {
            Affine { scale: (pqw / pqq) as f32, min: 0.0 }
        } else {
            let determinant = p * pqq - pq * pq;
            if determinant <= 1e-9 * p * pqq {
                return None;
            }
            let scale = (p * pqw - pq * pw) / determinant;
            Affine { scale: scale as f32, min: ((pw - scale * pq) / p) as f32 }
        };
        (fitted.scale.is_normal() && fitted.min.is_finite()).then_some(fitted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::spec::{BitWidth, Granularity};

    fn spec(scheme: Scheme, scale_storage: ScaleStorage) -> WeightQuantSpec {
        WeightQuantSpec {
            bits: BitWidth::new(3).unwrap(),
            scheme,
            granularity: Granularity::PerBlock { len: 32 },
            method: WeightMethod::Search,
            scale_storage,
            gain_correction: false,
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

    fn weighted(result: &QuantizedMatrix, weights: &[f32], power: &[f64]) -> f64 {
        let (codes, block) = (result.weights.codes(), result.block_len);
        let decoded = codes.iter().enumerate().map(|(i, &code)| {
            f32::from(code) * result.weights.scale()[i / block] + result.weights.offset(i / block)
        });
        let errors = weights.iter().zip(decoded).enumerate();
        errors.map(|(i, (w, d))| power[i % power.len()] * f64::from(w - d).powi(2)).sum()
    }

    #[test]
    fn inputs_of_more_power_are_rounded_better() {
        let (rows, columns) = (40, 64);
        let weights = weights(rows * columns);
        let power: Vec<f64> = (0..columns).map(|k| if k % 8 == 0 { 25.0 } else { 0.2 }).collect();
        for scheme in [Scheme::Symmetric, Scheme::Asymmetric] {
            for storage in [ScaleStorage::F32, ScaleStorage::F16] {
                let spec = spec(scheme, storage);
                let source = StridedMatrix::row_major(&weights, [rows, columns]).unwrap();
                let plain = super::super::quantize(&source, &spec, None).unwrap();
                let found = quantize_weighted(&weights, rows, &spec, &power).unwrap();
                let (before, after) =
                    (weighted(&plain, &weights, &power), weighted(&found, &weights, &power));
                assert!(after < 0.93 * before, "{scheme:?} {storage:?}: {before} -> {after}");
            }
        }
    }

    #[test]
    fn without_powers_it_is_the_search() {
        let weights = weights(4 * 32);
        let spec = spec(Scheme::Asymmetric, ScaleStorage::F32);
        let plain = StridedMatrix::row_major(&weights, [4, 32]).unwrap();
        let plain = super::super::quantize(&plain, &spec, None).unwrap();
        for power in [[0.0; 32], [f64::NAN; 32]] {
            let found = quantize_weighted(&weights, 4, &spec, &power).unwrap();
            assert_eq!(found.weights.codes(), plain.weights.codes());
        }
        assert!(quantize_weighted(&weights, 4, &spec, &[1.0; 31]).is_err());
    }

    #[test]
    fn constant_blocks_stay_exact() {
        let weights = [0.25_f32; 64];
        let found =
            quantize_weighted(&weights, 1, &spec(Scheme::Asymmetric, ScaleStorage::F32), &[1.0; 64]).unwrap();
        assert_eq!(found.error().squared_error, 0.0);
    }
}
