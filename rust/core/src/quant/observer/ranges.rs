//! From the statistics of a tensor to the codes that represent it.
//!
//! Codes are `clamp(round(x / scale) + zero, min, max)`; zero is always a code, as padding needs.

use super::histogram::Histogram;

/// How an activation is quantized: `real = (code - zero) * scale`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Codes {
    /// Distance of two codes.
    pub scale: f32,
    /// The code of 0.
    pub zero: i32,
    /// Smallest code.
    pub min: i32,
    /// Largest code.
    pub max: i32,
}

/// The codes to choose from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grid {
    /// Zero point 0 and as many codes below as above.
    pub symmetric: bool,
    /// Smallest code.
    pub min: i32,
    /// Largest code.
    pub max: i32,
}

impl Grid {
    /// The codes for values between `low` and `high`, a range that is widened to hold 0.
    #[must_use]
    pub fn codes(self, low: f64, high: f64) -> Codes {
        let (low, high) = (low.min(0.0), high.max(0.0));
        let (min, max) = (self.min, self.max);
        let (scale, zero) = if self.symmetric {
            (low.abs().max(high) / f64::from(max), 0)
        } else {
            let scale = (high - low) / f64::from(max - min);
            let zero = if scale > 0.0 { (f64::from(min) - low / scale).round() } else { f64::from(min) };
            (scale, zero.clamp(f64::from(min), f64::from(max)) as i32)
        };
        // A tensor of zeros has any scale.
        let scale = if scale >= f64::from(f32::MIN_POSITIVE) { scale as f32 } else { 1.0 };
        Codes { scale, zero, min, max }
    }
}

/// The whole range.
#[must_use]
pub fn whole(histogram: &Histogram) -> (f64, f64) {
    if histogram.count() == 0 {
        return (0.0, 0.0);
    }
    (f64::from(histogram.min()).min(0.0), f64::from(histogram.max()).max(0.0))
}

/// The range that holds `percent` of the values: the same share is cut at both ends.
#[must_use]
pub fn percentile(histogram: &Histogram, percent: f64) -> (f64, f64) {
    let (low, high) = whole(histogram);
    let cut = histogram.count() as f64 * (1.0 - percent / 100.0) / 2.0;
    let half = histogram.width() / 2.0;
    let bins = with_zeros(histogram);
    let reach = |bins: &mut dyn Iterator<Item = &(f64, u64)>| {
        let mut seen = 0.0;
        for &(centre, count) in bins {
            seen += count as f64;
            if seen > cut {
                return centre;
            }
        }
        0.0
    };
    let from = reach(&mut bins.iter()) - half;
    let to = reach(&mut bins.iter().rev()) + half;
    (from.clamp(low, 0.0), to.clamp(0.0, high))
}

fn with_zeros(histogram: &Histogram) -> Vec<(f64, u64)> {
    let mut bins: Vec<(f64, u64)> = histogram.bins().collect();
    if histogram.zeros() > 0 {
        let at = bins.partition_point(|&(centre, _)| centre < 0.0);
        bins.insert(at, (0.0, histogram.zeros()));
    }
    bins
}

/// Sums over the bins above and below a limit, so that the error of a clipped range is found at once.
struct Tails {
    /// Upper edges of the bins on this side, away from zero.
    edges: Vec<f64>,
    /// Values beyond the n-th edge: their number, sum and sum of squares (magnitudes).
    beyond: Vec<[f64; 3]>,
}

impl Tails {
    /// The tail of positive (`sign` 1) or negative (`sign` -1) values, whose largest magnitude is `largest`.
    fn new(bins: &[(f64, u64)], half: f64, sign: f64, largest: f64) -> Self {
        let mut side: Vec<(f64, f64)> = bins
            .iter()
            .map(|&(centre, count)| (sign * centre, count as f64))
            .filter(|&(centre, _)| centre > 0.0)
            .collect();
        side.sort_by(|a, b| b.0.total_cmp(&a.0));
        let (mut edges, mut beyond) = (Vec::new(), Vec::new());
        let mut sums = [0.0; 3];
        for (centre, count) in side {
            edges.push((centre + half).min(largest));
            beyond.push(sums);
            let variance = half * half / 3.0;
            sums =
                [sums[0] + count, sums[1] + count * centre, sums[2] + count * (centre * centre + variance)];
        }
        edges.push(0.0);
        beyond.push(sums);
        Self { edges, beyond }
    }

    /// Number of values beyond a limit, and the squared error of clipping them to it.
    fn clip(&self, limit: f64) -> (f64, f64) {
        let index = self.edges.partition_point(|&edge| edge > limit);
        let [count, sum, squares] = self.beyond[index.min(self.beyond.len() - 1)];
        (count, (squares - 2.0 * limit * sum + limit * limit * count).max(0.0))
    }
}

/// Expected squared error of ranges.
struct Objective {
    positive: Tails,
    negative: Tails,
    /// Number of values that are not zero.
    count: f64,
    grid: Grid,
    /// Weight of the error of clipping against that of rounding.
    clipping: f64,
}

impl Objective {
    fn new(histogram: &Histogram, grid: Grid, clipping: f64) -> Self {
        let bins: Vec<(f64, u64)> = histogram.bins().collect();
        let half = histogram.width() / 2.0;
        let (low, high) = whole(histogram);
        Self {
            positive: Tails::new(&bins, half, 1.0, high),
            negative: Tails::new(&bins, half, -1.0, -low),
            count: bins.iter().map(|&(_, count)| count as f64).sum(),
            grid,
            clipping,
        }
    }

    /// The squared error of the range: rounding inside, clipping outside. Zero itself is exact.
    fn error(&self, low: f64, high: f64) -> f64 {
        let codes = self.grid.codes(low, high);
        let scale = f64::from(codes.scale);
        let (low, high) =
            (f64::from(codes.min - codes.zero) * scale, f64::from(codes.max - codes.zero) * scale);
        let (above, clipped_above) = self.positive.clip(high);
        let (below, clipped_below) = self.negative.clip(-low);
        let inside = self.count - above - below;
        inside * scale * scale / 12.0 + self.clipping * (clipped_above + clipped_below)
    }
}

/// The range with the smallest expected squared error.
///
/// Coarse to fine over both ends as shares of the whole range (one share for symmetric codes). `clipping` weighs the error
/// of values beyond the range: rounding errors are independent and average out in the sums of the next layer, those of
/// clipping have one sign; 1 is the plain squared error.
#[must_use]
pub fn least_squares(histogram: &Histogram, grid: Grid, clipping: f64) -> (f64, f64) {
    let (low, high) = whole(histogram);
    if low == 0.0 && high == 0.0 {
        return (low, high);
    }
    let objective = Objective::new(histogram, grid, clipping);
    let (mut best, mut least) = ((1.0, 1.0), objective.error(low, high));
    let mut centre = (0.5, 0.5);
    let mut reach = 0.5;
    for round in 0..5 {
        let points = if round == 0 { 24 } else { 8 };
        let at = |middle: f64, i: i32| {
            let share = middle + reach * (f64::from(i) / f64::from(points) * 2.0 - 1.0);
            share.clamp(1.0 / 4096.0, 1.0)
        };
        for i in 0..=points {
            for j in 0..=points {
                let share = (at(centre.0, i), at(centre.1, j));
                let one_sided = (low == 0.0 && i != 0) || (high == 0.0 && j != 0);
                if one_sided || (grid.symmetric && i != j) {
                    continue;
                }
                let error = objective.error(low * share.0, high * share.1);
                if error < least {
                    (best, least) = (share, error);
                }
            }
        }
        centre = best;
        reach /= if round == 0 { 10.0 } else { 3.0 };
    }
    if grid.symmetric {
        let limit = low.abs().max(high) * best.0;
        return (low.max(-limit), high.min(limit));
    }
    (low * best.0, high * best.1)
}

/// Least squares between values and symmetric codes, alternating: codes for a scale, the best scale for these codes.
///
/// Starts from `max abs(x) / (2.5 c)` for the largest code c and makes 300 rounds, as MNN's tool does; a value stands at
/// the centre of its bin. Returns the range.
#[must_use]
pub fn alternating(histogram: &Histogram, largest: i32) -> (f64, f64) {
    let (low, high) = whole(histogram);
    let limit = f64::from(largest);
    let mut scale = low.abs().max(high) / (2.5 * limit);
    if scale == 0.0 {
        return (0.0, 0.0);
    }
    for _ in 0..300 {
        let (mut cross, mut squares) = (0.0, 0.0);
        for (centre, count) in histogram.bins() {
            let code = (centre / scale).round().clamp(-limit, limit);
            cross += count as f64 * code * centre;
            squares += count as f64 * code * code;
        }
        if squares == 0.0 {
            break;
        }
        let next = cross / squares;
        if next == scale {
            break;
        }
        scale = next;
    }
    let reach = scale * limit;
    (-reach, reach)
}

/// What codes do to the values: sum of squares, sum of squared errors, share of values beyond the codes.
#[must_use]
pub fn error(histogram: &Histogram, codes: Codes) -> (f64, f64, f64) {
    let grid = Grid { symmetric: codes.zero == 0 && codes.min == -codes.max, min: codes.min, max: codes.max };
    let objective = Objective::new(histogram, grid, 1.0);
    let scale = f64::from(codes.scale);
    let high = f64::from(codes.max - codes.zero) * scale;
    let low = f64::from(codes.min - codes.zero) * scale;
    let (above, clipped_above) = objective.positive.clip(high + scale / 2.0);
    let (below, clipped_below) = objective.negative.clip(-low + scale / 2.0);
    let inside = objective.count - above - below;
    let signal = objective.positive.clip(0.0).1 + objective.negative.clip(0.0).1;
    let noise = inside * scale * scale / 12.0 + clipped_above + clipped_below;
    (signal, noise, (above + below) / (histogram.count().max(1)) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ASYMMETRIC: Grid = Grid { symmetric: false, min: -128, max: 127 };
    const SYMMETRIC: Grid = Grid { symmetric: true, min: -127, max: 127 };

    /// Roughly normal values.
    fn normal(count: usize, seed: u64) -> Vec<f32> {
        let mut state = seed;
        let mut uniform = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f64 / f64::from(1 << 24)
        };
        (0..count).map(|_| ((0..12).map(|_| uniform()).sum::<f64>() - 6.0) as f32).collect()
    }

    fn histogram(values: &[f32]) -> Histogram {
        let mut histogram = Histogram::default();
        histogram.add(values).unwrap();
        histogram
    }

    fn sqnr(values: &[f32], codes: Codes) -> f64 {
        let (mut signal, mut noise) = (0.0, 0.0);
        for &x in values {
            let code =
                ((x / codes.scale).round() + codes.zero as f32).clamp(codes.min as f32, codes.max as f32);
            let back = (code - codes.zero as f32) * codes.scale;
            signal += f64::from(x).powi(2);
            noise += (f64::from(x) - f64::from(back)).powi(2);
        }
        10.0 * (signal / noise).log10()
    }

    fn chosen(values: &[f32], grid: Grid, range: (f64, f64)) -> f64 {
        sqnr(values, grid.codes(range.0, range.1))
    }

    #[test]
    fn least_squares_beats_the_whole_range() {
        let gauss = normal(50_000, 1);
        let relu: Vec<f32> = gauss.iter().map(|x| x.max(0.0)).collect();
        let h = histogram(&relu);
        let best = chosen(&relu, ASYMMETRIC, least_squares(&h, ASYMMETRIC, 1.0));
        assert!(best >= chosen(&relu, ASYMMETRIC, whole(&h)) - 0.05, "{best}");
        assert!(
            best > chosen(&relu, SYMMETRIC, least_squares(&h, SYMMETRIC, 1.0)) + 4.0,
            "one side has twice the codes"
        );
        let mut outliers = gauss.clone();
        outliers.extend([30.0, -40.0]);
        let h = histogram(&outliers);
        let best = chosen(&outliers, SYMMETRIC, least_squares(&h, SYMMETRIC, 1.0));
        // Two values so far out cost more than the codes they take.
        assert!(best >= chosen(&outliers, SYMMETRIC, whole(&h)) - 0.05, "{best}");
        let narrow = least_squares(&histogram(&gauss), SYMMETRIC, 1.0);
        assert!(best > chosen(&outliers, SYMMETRIC, narrow) + 1.0, "{best}");
    }

    #[test]
    fn least_squares_is_near_the_best_of_a_fine_grid() {
        let mut values = normal(20_000, 7);
        values.iter_mut().for_each(|x| *x = x.powi(3));
        let h = histogram(&values);
        let found = chosen(&values, SYMMETRIC, least_squares(&h, SYMMETRIC, 1.0));
        let (low, high) = whole(&h);
        let best = (1..=400)
            .map(|i| f64::from(i) / 400.0 * low.abs().max(high))
            .map(|limit| chosen(&values, SYMMETRIC, (-limit, limit)))
            .fold(f64::NEG_INFINITY, f64::max);
        assert!(found > best - 0.1, "{found} against {best}");
        let alternating = chosen(&values, SYMMETRIC, alternating(&h, 127));
        assert!(alternating > best - 3.0, "{alternating} against {best}");
    }

    #[test]
    fn zero_is_a_code() {
        for (low, high) in [(-1.0, 3.0), (0.0, 6.0), (-5.0, 0.0), (0.5, 2.0), (-0.3, 1e-3), (0.0, 0.0)] {
            let codes = ASYMMETRIC.codes(low, high);
            assert!((-128..=127).contains(&codes.zero), "{codes:?}");
            assert!(codes.scale > 0.0);
        }
        assert_eq!(ASYMMETRIC.codes(0.0, 6.0).zero, -128);
        assert_eq!(SYMMETRIC.codes(-2.0, 1.0), Codes { scale: 2.0 / 127.0, zero: 0, min: -127, max: 127 });
    }

    #[test]
    fn quantiles() {
        let values: Vec<f32> = (1..=10_000).map(|i| i as f32).collect();
        let h = histogram(&values);
        let (low, high) = percentile(&h, 99.0);
        assert_eq!(low, 0.0);
        assert!((high - 9950.0).abs() <= h.width() + 1.0, "{high}");
        assert_eq!(percentile(&h, 100.0), (0.0, 10_000.0));
    }

    #[test]
    fn predicted_error_is_the_real_one() {
        let values = normal(50_000, 3);
        let h = histogram(&values);
        for limit in [1.5, 3.0, 6.0] {
            let codes = ASYMMETRIC.codes(-limit, limit);
            let (signal, noise, overflow) = error(&h, codes);
            let want = sqnr(&values, codes);
            assert!((10.0 * (signal / noise).log10() - want).abs() < 0.3, "{limit}");
            let beyond = values.iter().filter(|x| f64::from(x.abs()) > limit).count() as f64 / 50_000.0;
            assert!((overflow - beyond).abs() < 0.01, "{overflow} {beyond}");
        }
    }
}
