//! The smallest squared error per block: many starting grids, least squares from the best of them, then small
//! moves of the two ends of the grid.
//!
//! A block decodes as `offset + scale * code` (`offset = 0` when symmetric). For given codes `q` the best parameters
//! are closed form; with `t = (w - offset) / scale` and residuals `d = t - q` they are, relative to the current ones,
//!
//! ```text
//! asymmetric:  slope = 1 + Cov(d, q) / Var(q),   intercept = mean d - (slope - 1) mean q
//! symmetric:   slope = 1 + sum d q / sum q^2,    intercept = 0
//! ```
//!
//! (least squares on residuals, which are small, so f32 sums suffice). One pass over the block therefore gives the
//! codes of a grid, its best refit and the error of that refit; a pass with the refit grid is the next round of
//! alternating least squares. The method
//!
//! 1. makes such a pass for a coarse set of clipped ranges (symmetric: magnitudes, with either sign, because the
//!    code range `-2^(b-1)..2^(b-1)-1` is lopsided), starting with the full range;
//! 2. alternates from the best few until the error stops falling;
//! 3. moves the ends of the best grid by fractions of a step, and repeats from the best of those while it helps.
//!
//! Squared error is in units of the block's range, so the result does not depend on the magnitude of the weights.

use super::{Block, BlockQuantizer};
use crate::quant::affine::{self, Affine, LANES, clamp, fold_lanes};
use crate::quant::spec::{BitWidth, Scheme};

/// Most starts from which least squares run to convergence.
const STARTS: usize = 6;
/// Most rounds of alternating least squares from one start.
const ROUNDS: usize = 12;
/// Most times the ends of the grid are moved.
const MOVES: usize = 4;
/// Moves of one end of the grid, in steps: up to 3 bits, where blocks have many local optima, and beyond.
const FINE_SHIFTS: [f32; 5] = [-0.5, -0.25, 0.0, 0.25, 0.5];
const SHIFTS: [f32; 3] = [-0.35, 0.0, 0.35];
/// An error must fall below this fraction of the last one for another round.
const PROGRESS: f32 = 1.0 - 1e-5;

/// Grid search and least squares.
#[derive(Clone, Copy, Debug)]
pub struct Search {
    /// Bits per code.
    pub bits: BitWidth,
    /// Scale only, or scale and offset.
    pub scheme: Scheme,
    /// Points per end of the coarse grid of clipped ranges.
    points: usize,
    /// The smallest fraction of the range among them.
    narrowest: f32,
    /// Starts from the coarse grid.
    starts: usize,
    /// Moves of one end.
    shifts: &'static [f32],
}

/// A grid with the squared error of its refit codes, in units of the squared range of the block.
#[derive(Clone, Copy)]
struct Candidate {
    offset: f32,
    scale: f32,
    error: f32,
}

impl Candidate {
    const NONE: Self = Self { offset: 0.0, scale: 0.0, error: f32::INFINITY };
}

/// Partial sums over codes `q` and residuals `d` in steps.
#[derive(Clone, Copy, Default)]
struct Sums {
    d: [f32; LANES],
    dd: [f32; LANES],
    q: [f32; LANES],
    qq: [f32; LANES],
    dq: [f32; LANES],
}

impl Sums {
    #[inline(always)]
    fn add(&mut self, w: &[f32; LANES], offset: f32, inverse: f32, half: f32) {
        for (lane, w) in w.iter().enumerate() {
            let t = (w - offset) * inverse;
            let q = clamp(t, -half, half - 1.0).round_ties_even();
            let d = t - q;
            self.d[lane] += d;
            self.dd[lane] += d * d;
            self.q[lane] += q;
            self.qq[lane] += q * q;
            self.dq[lane] += d * q;
        }
    }
}

/// The best few candidates, best first.
struct Best([Candidate; STARTS]);

impl Best {
    #[inline(always)]
    fn insert(&mut self, candidate: Candidate) {
        let mut place = STARTS;
        while place > 0 && candidate.error < self.0[place - 1].error {
            place -= 1;
        }
        if place < STARTS {
            self.0.copy_within(place..STARTS - 1, place + 1);
            self.0[place] = candidate;
        }
    }
}

impl Search {
    /// The search for `bits`: the fewer the bits, the more of the range is worth clipping.
    pub fn new(bits: BitWidth, scheme: Scheme) -> Self {
        let (points, narrowest, starts) = match bits.get() {
            2 | 3 => (9, 0.2, STARTS),
            4 => (7, 0.2, 3),
            5 | 6 => (6, 0.5, 3),
            _ => (4, 0.85, 3),
        };
        let shifts = if bits.get() <= 3 { &FINE_SHIFTS[..] } else { &SHIFTS[..] };
        Self { bits, scheme, points, narrowest, starts, shifts }
    }

    /// The fraction of the range of coarse grid point `i`; the first is 1.
    #[inline(always)]
    fn fraction(self, i: usize, points: usize) -> f32 {
        1.0 - (1.0 - self.narrowest) * (i as f32 / (points - 1) as f32)
    }

    /// The grid whose codes span `low..=high`.
    #[inline(always)]
    fn between(self, low: f32, high: f32) -> Candidate {
        let scale = (high - low) / self.bits.steps();
        Candidate { offset: low + self.bits.half() * scale, scale, error: f32::INFINITY }
    }

    /// Codes of a grid, its best refit, and the error of that.
    #[inline(always)]
    fn refit(self, weights: &[f32], inverse_range: f32, grid: Candidate) -> Candidate {
        let half = self.bits.half();
        let inverse = 1.0 / grid.scale;
        let mut sums = Sums::default();
        let (chunks, tail) = weights.as_chunks::<LANES>();
        for w in chunks {
            sums.add(w, grid.offset, inverse, half);
        }
        if !tail.is_empty() {
            // A weight equal to the offset has code 0 and no residual: it adds nothing.
            let mut padded = [grid.offset; LANES];
            padded[..tail.len()].copy_from_slice(tail);
            sums.add(&padded, grid.offset, inverse, half);
        }
        let n = weights.len() as f32;
        let (sd, sdd, sq) = (fold_lanes(sums.d), fold_lanes(sums.dd), fold_lanes(sums.q));
        let (sqq, sdq) = (fold_lanes(sums.qq), fold_lanes(sums.dq));
        let (spread, shared, residual) = match self.scheme {
            Scheme::Symmetric => (sqq, sdq, sdd),
            Scheme::Asymmetric => (sqq - sq * sq / n, sdq - sd * sq / n, sdd - sd * sd / n),
        };
        let (slope, explained) =
            if spread > 0.0 { (shared / spread, shared * shared / spread) } else { (0.0, 0.0) };
        let intercept = match self.scheme {
            Scheme::Symmetric => 0.0,
            Scheme::Asymmetric => (sd - slope * sq) / n,
        };
        let relative = grid.scale * inverse_range;
        let error = residual - explained;
        let error = if error > 0.0 { error } else { 0.0 };
        Candidate {
            offset: grid.offset + intercept * grid.scale,
            scale: grid.scale + slope * grid.scale,
            error: error * relative * relative,
        }
    }

    /// Alternates codes and parameters until the error stops falling.
    #[inline(always)]
    fn converge(self, weights: &[f32], inverse_range: f32, start: Candidate) -> Candidate {
        let mut best = start;
        for _ in 0..ROUNDS {
            let next = self.refit(weights, inverse_range, best);
            let progress = next.error < best.error * PROGRESS;
            if !progress || next.scale == 0.0 {
                break;
            }
            best = next;
        }
        best
    }

    /// The best few of the coarse set, one refit each.
    #[inline(always)]
    fn coarse(self, weights: &[f32], (low, high): (f32, f32), inverse_range: f32) -> Best {
        let mut best = Best([Candidate::NONE; STARTS]);
        match self.scheme {
            Scheme::Asymmetric => {
                let center = mean(weights);
                // Sums of huge weights overflow; any point of the range will do.
                let center = if center.is_finite() { center } else { 0.5 * low + 0.5 * high };
                for i in 0..self.points * self.points {
                    let left = self.fraction(i / self.points, self.points);
                    let right = self.fraction(i % self.points, self.points);
                    let grid = self.between(center + left * (low - center), center + right * (high - center));
                    best.insert(self.refit(weights, inverse_range, grid));
                }
            }
            Scheme::Symmetric => {
                let widest = if -low > high { -low } else { high };
                // The first scale makes the largest magnitude fit the longer side of the codes exactly.
                let points = 2 * self.points;
                for i in 0..2 * (points + 1) {
                    let scale = match i / 2 {
                        0 => widest / self.bits.half(),
                        i => widest / (self.bits.half() - 1.0) * self.fraction(i - 1, points),
                    };
                    let scale = if i % 2 == 0 { scale } else { -scale };
                    let grid = Candidate { offset: 0.0, scale, error: f32::INFINITY };
                    best.insert(self.refit(weights, inverse_range, grid));
                }
            }
        }
        best
    }

    /// The best few of the grids whose ends lie some fraction of a step away, one refit each.
    #[inline(always)]
    fn neighbours(self, weights: &[f32], inverse_range: f32, of: Candidate) -> Best {
        let mut best = Best([Candidate::NONE; STARTS]);
        match self.scheme {
            Scheme::Asymmetric => {
                let low = of.offset - self.bits.half() * of.scale;
                let high = low + self.bits.steps() * of.scale;
                for &left in self.shifts {
                    for &right in self.shifts {
                        if left == 0.0 && right == 0.0 {
                            continue;
                        }
                        let grid = self.between(low + left * of.scale, high + right * of.scale);
                        best.insert(self.refit(weights, inverse_range, grid));
                    }
                }
            }
            Scheme::Symmetric => {
                for &shift in self.shifts {
                    let grid = Candidate { scale: of.scale * (1.0 + shift / self.bits.half()), ..of };
                    best.insert(self.refit(weights, inverse_range, grid));
                }
            }
        }
        best
    }
}

impl BlockQuantizer for Search {
    #[inline(always)]
    fn quantize(self, Block { weights, codes, .. }: Block<'_>) -> Affine {
        let (low, high) = affine::min_max(weights);
        let range = match self.scheme {
            Scheme::Asymmetric => high - low,
            Scheme::Symmetric => {
                if -low > high {
                    -low
                } else {
                    high
                }
            }
        };
        if range <= f32::MIN_POSITIVE * 1024.0 {
            // Any code will do without a scale; these are the ones that the sparse layout leaves out.
            codes.fill(if self.scheme == Scheme::Symmetric { 0 } else { self.bits.lowest() });
            return Affine { scale: 0.0, min: low };
        }
        let inverse_range = 1.0 / range;
        let mut best = Candidate::NONE;
        for start in self.coarse(weights, (low, high), inverse_range).0.into_iter().take(self.starts) {
            let end = self.converge(weights, inverse_range, start);
            best = if end.error < best.error { end } else { best };
        }
        for _ in 0..MOVES {
            let before = best;
            for start in
                self.neighbours(weights, inverse_range, before).0.into_iter().take(self.starts.div_ceil(2))
            {
                let end = self.converge(weights, inverse_range, start);
                best = if end.error < best.error { end } else { best };
            }
            let progress = best.error < before.error * PROGRESS;
            if !progress {
                break;
            }
        }
        let affine = Affine { scale: best.scale, min: best.offset - self.bits.half() * best.scale };
        match self.scheme {
            Scheme::Symmetric => affine::encode_symmetric(self.bits, affine.scale, weights, codes),
            Scheme::Asymmetric => affine::encode_asymmetric(self.bits, affine, weights, codes),
        }
        affine
    }
}

/// Mean over interleaved partial sums.
#[inline(always)]
fn mean(x: &[f32]) -> f32 {
    let mut sum = [0.0_f32; LANES];
    let (chunks, tail) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for lane in 0..LANES {
            sum[lane] += chunk[lane];
        }
    }
    let mut sum = fold_lanes(sum);
    for x in tail {
        sum += x;
    }
    sum / x.len() as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(search: Search, weights: &[f32]) -> f64 {
        let mut codes = vec![0; weights.len()];
        let affine = search.quantize(Block { weights, codes: &mut codes, scratch: &mut [] });
        let offset = affine::offset(search.bits, search.scheme, affine);
        let decoded = codes.iter().map(|&c| affine::decode(affine, offset, c));
        weights.iter().zip(decoded).map(|(w, d)| f64::from(w - d).powi(2)).sum()
    }

    #[test]
    fn weights_on_a_grid_are_found_exactly() {
        for bits in BitWidth::ALL {
            for scheme in [Scheme::Symmetric, Scheme::Asymmetric] {
                let offset = if scheme == Scheme::Symmetric { 0.0 } else { 0.3 };
                let weights: Vec<f32> =
                    (bits.lowest()..=bits.highest()).map(|c| f32::from(c) * 0.01 + offset).collect();
                let scale: f64 = weights.iter().map(|w| f64::from(w * w)).sum();
                assert!(error(Search::new(bits, scheme), &weights) < 1e-11 * scale, "{bits:?} {scheme:?}");
            }
        }
    }

    #[test]
    fn magnitude_and_place_of_the_weights_do_not_matter() {
        let weights: Vec<f32> = (0..64).map(|i| (i as f32 * 2.3).sin().powi(3)).collect();
        let search = Search::new(BitWidth::ALL[1], Scheme::Asymmetric);
        let reference = error(search, &weights);
        for factor in [1e-12_f32, 1e-3, 1e12] {
            let scaled: Vec<f32> = weights.iter().map(|w| w * factor).collect();
            let relative = error(search, &scaled) / f64::from(factor).powi(2) / reference;
            assert!((relative - 1.0).abs() < 0.02, "{factor}: {relative}");
        }
    }

    #[test]
    fn constant_and_tiny_blocks_are_stored_without_a_scale() {
        let mut codes = [0; 4];
        for (scheme, w, want) in [
            (Scheme::Asymmetric, 0.25_f32, -8_i8),
            (Scheme::Asymmetric, -0.0, -8),
            (Scheme::Symmetric, 0.0, 0),
            (Scheme::Symmetric, 1e-42, 0),
        ] {
            let search = Search::new(BitWidth::ALL[2], scheme);
            let affine = search.quantize(Block { weights: &[w; 4], codes: &mut codes, scratch: &mut [] });
            assert_eq!((affine.scale, codes), (0.0, [want; 4]));
        }
    }
}
