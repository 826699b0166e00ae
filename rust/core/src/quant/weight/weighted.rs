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

use mnnq_kernels::multiversion::{Level, Loop, dispatch};
use rayon::prelude::*;

use super::{QuantizedMatrix, StridedMatrix, WeightMethod, nearest_half, recode, round_to_half};
use crate::quant::affine::{self, Affine, LANES};
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
    let (mut codes, mut scale, min) = start.weights.into_parts();
    let mut min = min.unwrap_or_else(|| vec![0.0; scale.len()]);
    let level = Level::best();
    codes
        .par_chunks_mut(columns)
        .zip(scale.par_chunks_mut(blocks))
        .zip(min.par_chunks_mut(blocks))
        .zip(weight.par_chunks(columns))
        .enumerate()
        .try_for_each(|(row, (((codes, scale), min), weights))| {
            let mut room = vec![0_i8; block];
            let row_fit = FitRow {
                spec: &spec,
                block,
                weights,
                power: &power,
                codes: &mut *codes,
                scale: &mut *scale,
                min: &mut *min,
                room: &mut room,
            };
            dispatch(level, row_fit);
            if spec.scale_storage == ScaleStorage::F16 {
                round_to_half(nearest_half, row, scale, min)?;
                recode(spec.bits, spec.scheme, block, weights, codes, scale, min);
            }
            Ok::<(), QuantError>(())
        })?;
    Ok(QuantizedMatrix::fitted(&spec, weight, [rows, columns, block], codes, scale, min))
}

/// One row while its blocks are fitted, compiled for the CPU at hand.
struct FitRow<'a> {
    spec: &'a WeightQuantSpec,
    block: usize,
    weights: &'a [f32],
    power: &'a [f64],
    codes: &'a mut [i8],
    scale: &'a mut [f32],
    min: &'a mut [f32],
    room: &'a mut [i8],
}

impl Loop for FitRow<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for i in 0..self.scale.len() {
            let part = i * self.block..(i + 1) * self.block;
            let fit = Fit::new(self.spec, &self.weights[part.clone()], &self.power[part.clone()]);
            let start = Affine { scale: self.scale[i], min: self.min[i] };
            let found = fit.run(start, &mut self.codes[part], self.room);
            (self.scale[i], self.min[i]) = (found.scale, found.min);
        }
    }
}

/// One block while it is fitted.
struct Fit<'a> {
    spec: &'a WeightQuantSpec,
    weights: &'a [f32],
    power: &'a [f64],
    /// `sum p`.
    total: f64,
    /// `sum p w`.
    weight: f64,
}

impl<'a> Fit<'a> {
    #[inline(always)]
    fn new(spec: &'a WeightQuantSpec, weights: &'a [f32], power: &'a [f64]) -> Self {
        let [total, weight] = sums(weights, power, |w, p| [p, p * f64::from(w)]);
        Self { spec, weights, power, total, weight }
    }

    /// Improves parameters and codes; `room` is as long as `codes`.
    #[inline(always)]
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

    #[inline(always)]
    fn error(&self, affine: Affine, codes: &[i8]) -> f64 {
        let offset = affine::offset(self.spec.bits, self.spec.scheme, affine);
        let [error] = coded_sums(self.weights, codes, self.power, |w, code, p| {
            let e = f64::from(w - affine::decode(affine, offset, code));
            [p * e * e]
        });
        error
    }

    /// Weighted least squares; none where the codes do not determine a grid.
    #[inline(always)]
    fn refit(&self, codes: &[i8]) -> Option<Affine> {
        let symmetric = self.spec.scheme == Scheme::Symmetric;
        let first = if symmetric { 0.0 } else { f64::from(self.spec.bits.half()) };
        let [pq, pqq, pqw] = coded_sums(self.weights, codes, self.power, |w, code, p| {
            let q = f64::from(code) + first;
            let pq = p * q;
            [pq, pq * q, pq * f64::from(w)]
        });
        let fitted = if symmetric {
            Affine { scale: (pqw / pqq) as f32, min: 0.0 }
        } else {
            let determinant = self.total * pqq - pq * pq;
            if determinant <= 1e-9 * self.total * pqq {
                return None;
            }
            let scale = (self.total * pqw - pq * self.weight) / determinant;
            Affine { scale: scale as f32, min: ((self.weight - scale * pq) / self.total) as f32 }
        };
        (fitted.scale.is_normal() && fitted.min.is_finite()).then_some(fitted)
    }
}

/// Sums of terms over weights and powers, in the fixed order of [`affine::LANES`].
#[inline(always)]
fn sums<const N: usize>(weights: &[f32], power: &[f64], term: impl Fn(f32, f64) -> [f64; N]) -> [f64; N] {
    let mut lanes = [[0.0_f64; LANES]; N];
    let (weight_chunks, weight_tail) = weights.as_chunks::<LANES>();
    let (power_chunks, power_tail) = power.as_chunks::<LANES>();
    for (w, p) in weight_chunks.iter().zip(power_chunks) {
        for lane in 0..LANES {
            let terms = term(w[lane], p[lane]);
            for (lanes, term) in lanes.iter_mut().zip(terms) {
                lanes[lane] += term;
            }
        }
    }
    let mut out = lanes.map(affine::fold_lanes_f64);
    for (&w, &p) in weight_tail.iter().zip(power_tail) {
        out.iter_mut().zip(term(w, p)).for_each(|(sum, term)| *sum += term);
    }
    out
}

/// The same, over codes too.
#[inline(always)]
fn coded_sums<const N: usize>(
    weights: &[f32],
    codes: &[i8],
    power: &[f64],
    term: impl Fn(f32, i8, f64) -> [f64; N],
) -> [f64; N] {
    let mut lanes = [[0.0_f64; LANES]; N];
    let (weight_chunks, weight_tail) = weights.as_chunks::<LANES>();
    let (code_chunks, code_tail) = codes.as_chunks::<LANES>();
    let (power_chunks, power_tail) = power.as_chunks::<LANES>();
    for ((w, c), p) in weight_chunks.iter().zip(code_chunks).zip(power_chunks) {
        for lane in 0..LANES {
            let terms = term(w[lane], c[lane], p[lane]);
            for (lanes, term) in lanes.iter_mut().zip(terms) {
                lanes[lane] += term;
            }
        }
    }
    let mut out = lanes.map(affine::fold_lanes_f64);
    for ((&w, &c), &p) in weight_tail.iter().zip(code_tail).zip(power_tail) {
        out.iter_mut().zip(term(w, c, p)).for_each(|(sum, term)| *sum += term);
    }
    out
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
