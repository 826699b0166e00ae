//! Symmetric codes with one scale per row, limited to `-limit..=limit`: weights of statically quantized layers.
//!
//! `w' = scale * code`, `code = clamp(round(w / scale), -limit, limit)`, halves away from zero. Runtimes negate codes, so the code range
//! is the same on both sides; the [block quantizers](super) use one code more.

use mnnq_kernels::multiversion::{Level, Loop, dispatch};
use rayon::prelude::*;

use crate::quant::affine::{
    LANES, all_finite, clamp, fold_lanes, fold_lanes_f64, max_abs, round_half_away, to_code,
};
use crate::quant::error::QuantError;

/// Shares of the largest magnitude that the search tries as ranges: 100 % down to 70 %.
const SHARES: usize = 31;

/// Rounds of the alternating method at most; MNN's tool makes 1000, rows are stationary much earlier.
const ROUNDS: usize = 300;

/// Elements whose squares are summed in single precision.
const CHUNK: usize = 512;

/// How the scale of a row is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowScale {
    /// The largest magnitude gets the largest code.
    MaxAbs,
    /// The share of that scale with the smallest squared error, and a least-squares step from there.
    Search,
    /// Least squares between weights and codes, alternating, from `max abs(w) / (1.25 limit)`.
    Alternating,
}

impl RowScale {
    /// The method of that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "max_abs" => Self::MaxAbs,
            "search" => Self::Search,
            "admm" => Self::Alternating,
            _ => return None,
        })
    }
}

/// Codes of rows and what they lose.
#[derive(Clone, Debug, PartialEq)]
pub struct RowCodes {
    /// `[rows, row_len]`.
    pub codes: Vec<i8>,
    /// `[rows]`; 0 where all weights of the row are (almost) zero.
    pub scales: Vec<f32>,
    /// `sum (w - w')^2`.
    pub error: f64,
    /// `sum w^2`.
    pub power: f64,
}

/// Quantizes rows.
///
/// `limit` is the largest code, 1 to 127; `floor` the smallest scale of each row. Results do not depend on the number of threads nor on
/// the CPU.
///
/// # Errors
/// If a weight is not finite, or lengths do not fit.
pub fn quantize_rows(
    weights: &[f32],
    row_len: usize,
    method: RowScale,
    limit: u8,
    floor: Option<&[f32]>,
) -> Result<RowCodes, QuantError> {
    let rows = weights.len().checked_div(row_len).unwrap_or(0);
    if rows * row_len != weights.len() || floor.is_some_and(|floor| floor.len() != rows) {
        let len = weights.len();
        return Err(QuantError::Strides { rows, row_len, row_stride: row_len, col_stride: 1, len });
    }
    if let Some(at) = first_bad(weights) {
        return Err(QuantError::NonFinite { row: at / row_len, col: at % row_len, value: weights[at] });
    }
    let mut found =
        RowCodes { codes: vec![0; weights.len()], scales: vec![0.0; rows], error: 0.0, power: 0.0 };
    if weights.is_empty() {
        return Ok(found);
    }
    let sums: Vec<(f64, f64)> =
        (found.codes.par_chunks_mut(row_len), &mut found.scales, weights.par_chunks(row_len))
            .into_par_iter()
            .enumerate()
            .map(|(row, (codes, scale, weights))| {
                let floor = floor.map_or(0.0, |floor| floor[row]);
                dispatch(Level::best(), Row { weights, codes, scale, method, limit: f32::from(limit), floor })
            })
            .collect();
    for (error, power) in sums {
        found.error += error;
        found.power += power;
    }
    Ok(found)
}

/// Where the first infinite value or NaN is.
fn first_bad(weights: &[f32]) -> Option<usize> {
    if all_finite(weights) { None } else { weights.iter().position(|w| !w.is_finite()) }
}

/// One row.
struct Row<'a> {
    weights: &'a [f32],
    codes: &'a mut [i8],
    scale: &'a mut f32,
    method: RowScale,
    limit: f32,
    floor: f32,
}

impl Loop for Row<'_> {
    type Output = (f64, f64);

    #[inline(always)]
    fn run(self) -> (f64, f64) {
        let Row { weights, limit, .. } = self;
        let largest = max_abs(weights);
        // A scale that underflows would erase the row or divide by nothing.
        let plain = if largest / limit >= f32::MIN_POSITIVE { largest / limit } else { 0.0 };
        let chosen = match self.method {
            RowScale::MaxAbs => plain,
            RowScale::Search => search(weights, plain, limit),
            RowScale::Alternating => alternate(weights, largest / (1.25 * limit), limit),
        };
        let scale = if chosen > self.floor { chosen } else { self.floor };
        *self.scale = scale;
        encode(weights, scale, limit, self.codes)
    }
}

#[inline(always)]
fn search(weights: &[f32], plain: f32, limit: f32) -> f32 {
    let (mut best, mut least) = (plain, f64::INFINITY);
    for step in 0..SHARES {
        let scale = plain * (1.0 - 0.3 * step as f64 / (SHARES - 1) as f64) as f32;
        let error = squared_error(weights, scale, limit);
        if error < least {
            (best, least) = (scale, error);
        }
    }
    let refined = least_squares(weights, best, limit);
    if squared_error(weights, refined, limit) < least { refined } else { best }
}

#[inline(always)]
fn alternate(weights: &[f32], start: f32, limit: f32) -> f32 {
    let mut scale = start;
    for _ in 0..ROUNDS {
        let next = least_squares(weights, scale, limit);
        if next == scale {
            break;
        }
        scale = next;
    }
    scale
}

/// Passes 16 elements at a time, the rest filled up with zeros, and calls `flush` between chunks.
#[inline(always)]
fn by_lanes(weights: &[f32], mut each: impl FnMut(&[f32; LANES], bool)) {
    for chunk in weights.chunks(CHUNK) {
        let (vectors, tail) = chunk.as_chunks::<LANES>();
        let mut last = [0.0; LANES];
        last[..tail.len()].copy_from_slice(tail);
        for vector in vectors {
            each(vector, false);
        }
        each(&last, true);
    }
}

/// `sum (w - w')^2`; halves are rounded to even.
#[inline(always)]
fn squared_error(weights: &[f32], scale: f32, limit: f32) -> f64 {
    let safe = if scale > 0.0 { scale } else { 1.0 };
    let (mut total, mut lanes) = (0.0, [0.0_f32; LANES]);
    by_lanes(weights, |vector, end| {
        for (sum, &w) in lanes.iter_mut().zip(vector) {
            let d = w - clamp((w / safe).round_ties_even(), -limit, limit) * safe;
            *sum += d * d;
        }
        if end {
            total += f64::from(fold_lanes(lanes));
            lanes = [0.0; LANES];
        }
    });
    total
}

/// The best scale for the codes of a scale: `sum w q / sum q^2`.
#[inline(always)]
fn least_squares(weights: &[f32], scale: f32, limit: f32) -> f32 {
    let safe = if scale > 0.0 { scale } else { 1.0 };
    let (mut cross, mut power) = ([0.0_f64; LANES], [0.0_f64; LANES]);
    by_lanes(weights, |vector, _| {
        for ((cross, power), &w) in cross.iter_mut().zip(&mut power).zip(vector) {
            let q = clamp((w / safe).round_ties_even(), -limit, limit);
            *cross += f64::from(q) * f64::from(w);
            *power += f64::from(q * q);
        }
    });
    let power = fold_lanes_f64(power);
    if power > 0.0 { (fold_lanes_f64(cross) / power) as f32 } else { scale }
}

/// Codes of a row, the squared error and the sum of squares.
#[inline(always)]
fn encode(weights: &[f32], scale: f32, limit: f32, codes: &mut [i8]) -> (f64, f64) {
    let (mut error, mut power) = ([0.0_f64; LANES], [0.0_f64; LANES]);
    let live = scale > 0.0;
    let safe = if live { scale } else { 1.0 };
    let mut one = |w: f32, code: &mut i8, lane: usize| {
        let q = if live { clamp(round_half_away(w / safe), -limit, limit) } else { 0.0 };
        *code = to_code(q);
        let d = f64::from(w) - f64::from(q) * f64::from(scale);
        error[lane] += d * d;
        power[lane] += f64::from(w) * f64::from(w);
    };
    let ((vectors, tail), (outs, out_tail)) = (weights.as_chunks::<LANES>(), codes.as_chunks_mut::<LANES>());
    for (vector, out) in vectors.iter().zip(outs) {
        for lane in 0..LANES {
            one(vector[lane], &mut out[lane], lane);
        }
    }
    for (lane, (&w, code)) in tail.iter().zip(out_tail).enumerate() {
        one(w, code, lane);
    }
    (fold_lanes_f64(error), fold_lanes_f64(power))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn weights(count: usize) -> Vec<f32> {
        let mut state = 5_u64;
        let mut uniform = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1 << 24) as f32 - 0.5
        };
        (0..count).map(|_| (uniform() + uniform() + uniform()).powi(3)).collect()
    }

    /// The rule term by term.
    fn plain_error(row: &[f32], scale: f32, limit: f32) -> f64 {
        row.iter()
            .map(|&w| {
                let q = (w / scale).round().clamp(-limit, limit);
                (f64::from(w) - f64::from(q) * f64::from(scale)).powi(2)
            })
            .sum()
    }

    #[test]
    fn search_is_never_worse_than_the_largest_magnitude() {
        let data = weights(8 * 333);
        for limit in [127, 7, 3] {
            let plain = quantize_rows(&data, 333, RowScale::MaxAbs, limit, None).unwrap();
            let found = quantize_rows(&data, 333, RowScale::Search, limit, None).unwrap();
            assert!(found.error <= plain.error && found.power == plain.power, "{limit}");
            let bound = f32::from(limit);
            let sum: f64 =
                data.chunks(333).zip(&found.scales).map(|(row, &s)| plain_error(row, s, bound)).sum();
            assert!((sum - found.error).abs() <= 1e-9 * sum, "{sum} {}", found.error);
            assert!(found.codes.iter().all(|&code| code.unsigned_abs() <= limit));
            let best = (600..=1000)
                .map(|i| plain_error(&data[..333], plain.scales[0] * i as f32 / 1000.0, bound))
                .fold(f64::INFINITY, f64::min);
            assert!(plain_error(&data[..333], found.scales[0], bound) <= best * 1.1, "{limit}");
        }
    }

    #[test]
    fn alternating_ends_where_it_stays() {
        let data = weights(500);
        let found = quantize_rows(&data, 500, RowScale::Alternating, 7, None).unwrap();
        let (cross, power) = data.iter().zip(&found.codes).fold((0.0, 0.0), |(a, b), (&w, &q)| {
            (a + f64::from(w) * f64::from(q), b + f64::from(q) * f64::from(q))
        });
        assert!((cross / power - f64::from(found.scales[0])).abs() < 1e-6 * cross / power);
    }

    #[test]
    fn rows_of_zeros_floors_and_bad_values() {
        let found =
            quantize_rows(&[0.0, 0.0, 1e-42, -1e-42, 1.0, -0.5], 2, RowScale::Search, 127, None).unwrap();
        assert_eq!(found.scales[..2], [0.0, 0.0]);
        assert_eq!(found.codes, [0, 0, 0, 0, 127, -64]);
        let floor = [0.0, 0.25, 0.25];
        let found =
            quantize_rows(&[0.0, 0.0, 0.1, 0.2, 1.0, -0.5], 2, RowScale::MaxAbs, 127, Some(&floor)).unwrap();
        assert_eq!(found.scales, [0.0, 0.25, 0.25]);
        assert_eq!(found.codes, [0, 0, 0, 1, 4, -2]);
        assert!(quantize_rows(&[1.0, f32::NAN], 2, RowScale::Search, 127, None).is_err());
        assert!(quantize_rows(&[1.0; 5], 2, RowScale::Search, 127, None).is_err());
        assert!(quantize_rows(&[], 4, RowScale::Search, 127, None).unwrap().codes.is_empty());
    }
}
