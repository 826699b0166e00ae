//! All that is known of a tensor, and the codes each method chooses for it.

use super::histogram::{HALF, Histogram, NotFinite};
use super::kl;
use super::ranges::{self, Codes, Grid};

/// How a range is chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Method {
    /// The whole range.
    MinMax,
    /// The range that holds this percentage of the values.
    Percentile(f64),
    /// The range with the smallest expected squared error.
    LeastSquares {
        /// Weight of clipping against rounding.
        clipping: f64,
    },
    /// The threshold with the smallest Kullback-Leibler divergence.
    KullbackLeibler,
    /// Alternating least squares.
    Alternating,
    /// Ranges of the samples, averaged.
    Moving,
}

impl Method {
    /// The method of that name.
    #[must_use]
    pub fn parse(name: &str, percent: f64, clipping: f64) -> Option<Self> {
        Some(match name {
            "minmax" => Self::MinMax,
            "percentile" => Self::Percentile(percent),
            "mse" => Self::LeastSquares { clipping },
            "kl" => Self::KullbackLeibler,
            "admm" => Self::Alternating,
            "ema" => Self::Moving,
            _ => return None,
        })
    }
}

/// Ranges of samples, averaged with a momentum: the first sets the value, each further one moves it by `1 - momentum`.
///
/// Each range holds 0 and is moved so that 0 is a code of 255 before it counts (MNN's rule).
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Moving {
    count: u64,
    first: [f64; 2],
    /// What the samples behind the first have added.
    added: [f64; 2],
}

impl Moving {
    /// Adds the range of one sample.
    pub fn add(&mut self, low: f32, high: f32, momentum: f64) {
        let nudged = nudge(f64::from(low).min(0.0), f64::from(high).max(0.0));
        if self.count == 0 {
            *self = Self { count: 1, first: nudged, added: [0.0; 2] };
            return;
        }
        for (added, now) in self.added.iter_mut().zip(nudged) {
            *added = momentum * *added + (1.0 - momentum) * now;
        }
        self.count += 1;
    }

    /// Adds samples that come behind these.
    pub fn merge(&mut self, behind: &Self, momentum: f64) {
        if behind.count == 0 {
            return;
        }
        if self.count == 0 {
            *self = *behind;
            return;
        }
        let fade = |count: u64| momentum.powf(count as f64);
        for side in 0..2 {
            let first = (1.0 - momentum) * behind.first[side] * fade(behind.count - 1);
            self.added[side] = self.added[side] * fade(behind.count) + first + behind.added[side];
        }
        self.count += behind.count;
    }

    /// The averaged range.
    #[must_use]
    pub fn range(&self, momentum: f64) -> (f64, f64) {
        if self.count == 0 {
            return (0.0, 0.0);
        }
        let fade = momentum.powf((self.count - 1) as f64);
        (self.first[0] * fade + self.added[0], self.first[1] * fade + self.added[1])
    }

    /// Its numbers: count, first range, added range.
    #[must_use]
    pub fn parts(&self) -> (u64, [f64; 2], [f64; 2]) {
        (self.count, self.first, self.added)
    }

    /// From its numbers.
    #[must_use]
    pub fn from_parts(count: u64, first: [f64; 2], added: [f64; 2]) -> Self {
        Self { count, first, added }
    }
}

/// Moves a range so that 0 is one of 255 codes.
fn nudge(low: f64, high: f64) -> [f64; 2] {
    let scale = (high - low) / 254.0;
    if scale == 0.0 {
        return [0.0, 0.0];
    }
    let zero = (-low / scale - 127.0).round();
    [(-127.0 - zero) * scale, (127.0 - zero) * scale]
}

/// Statistics of one tensor.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct TensorStatistics {
    /// Counts of the values.
    pub histogram: Histogram,
    /// Averaged ranges of the samples.
    pub moving: Moving,
    /// Counts of magnitudes in [`kl::MNN_BINS`] equal bins up to a limit known beforehand, for MNN's own rule.
    pub magnitudes: Option<(f32, Vec<u64>)>,
    /// Elements of the two innermost axes of the tensor (height times width), 1 where there are fewer axes.
    pub area: u64,
}

impl TensorStatistics {
    /// Adds a sample, with up to `threads` threads; the result does not depend on them.
    ///
    /// # Errors
    /// [`NotFinite`].
    pub fn add(&mut self, values: &[f32], momentum: f64, threads: usize) -> Result<(), NotFinite> {
        if values.is_empty() {
            return Ok(());
        }
        let mut sample = Histogram::default();
        let target = if self.histogram.count() == 0 { &mut self.histogram } else { &mut sample };
        target.add_parallel(values, threads)?;
        let (low, high) = (target.min(), target.max());
        if sample.count() > 0 {
            self.histogram.merge(&sample);
        }
        self.moving.add(low, high, momentum);
        if let Some((limit, counts)) = &mut self.magnitudes {
            let factor = kl::MNN_BINS as f32 / *limit;
            for x in values.iter().map(|x| x.abs()).filter(|&x| x > kl::MNN_IGNORED) {
                let bin = ((x * factor) as usize).min(counts.len() - 1);
                counts[bin] += 1;
            }
        }
        Ok(())
    }

    /// Adds the statistics of samples that come behind these.
    pub fn merge(&mut self, behind: &Self, momentum: f64) {
        self.histogram.merge(&behind.histogram);
        self.moving.merge(&behind.moving, momentum);
        self.area = self.area.max(behind.area);
        match (&mut self.magnitudes, &behind.magnitudes) {
            (Some((_, mine)), Some((_, theirs))) => mine.iter_mut().zip(theirs).for_each(|(a, b)| *a += b),
            (mine @ None, theirs) => mine.clone_from(theirs),
            (Some(_), None) => {}
        }
    }

    /// The range a method chooses. `momentum` is that of the samples.
    #[must_use]
    pub fn range(&self, method: Method, grid: Grid, momentum: f64) -> (f64, f64) {
        let histogram = &self.histogram;
        match method {
            Method::MinMax => ranges::whole(histogram),
            Method::Percentile(percent) => ranges::percentile(histogram, percent),
            Method::LeastSquares { clipping } => ranges::least_squares(histogram, grid, clipping),
            Method::KullbackLeibler => self.divergence_range(grid),
            Method::Alternating => ranges::alternating(histogram, grid.max),
            Method::Moving => self.moving.range(momentum),
        }
    }

    /// The range by divergence, cut on both sides at one magnitude.
    fn divergence_range(&self, grid: Grid) -> (f64, f64) {
        let (low, high) = ranges::whole(&self.histogram);
        let width = self.histogram.width();
        let (_, counts, ..) = self.histogram.parts();
        if counts.is_empty() {
            return (low, high);
        }
        let magnitudes: Vec<u64> = (0..HALF).map(|i| counts[HALF + i] + counts[HALF - 1 - i]).collect();
        let one_sided = low == 0.0 || high == 0.0;
        let levels = if one_sided && !grid.symmetric { grid.max - grid.min } else { grid.max };
        let limit = kl::threshold_of(&magnitudes, levels as usize) as f64 * width;
        (low.max(-limit), high.min(limit))
    }

    /// MNN's own scale by divergence, and whether the histogram for it is there: `(i + 0.5) M / 2048 / clamp`, where i
    /// is the number of bins kept, or 2047 for tensors of fewer than 100 pixels.
    #[must_use]
    pub fn mnn_divergence(&self, clamp: i32) -> Option<Codes> {
        let (limit, counts) = self.magnitudes.as_ref()?;
        let bins = kl::MNN_BINS;
        let kept = if self.area < 100 { bins - 1 } else { kl::mnn_threshold(counts) };
        let scale = (kept as f32 + 0.5) * (limit / bins as f32) / clamp as f32;
        Some(Codes { scale, zero: 0, min: -clamp, max: clamp })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRID: Grid = Grid { symmetric: false, min: -128, max: 127 };

    #[test]
    fn moving_ranges_merge_to_those_of_the_whole() {
        let samples: Vec<(f32, f32)> = (0..40).map(|i| (-0.1 * i as f32, 3.0 + (i % 7) as f32)).collect();
        let mut whole = Moving::default();
        samples.iter().for_each(|&(low, high)| whole.add(low, high, 0.9));
        let mut merged = Moving::default();
        for part in samples.chunks(9) {
            let mut one = Moving::default();
            part.iter().for_each(|&(low, high)| one.add(low, high, 0.9));
            merged.merge(&one, 0.9);
        }
        let (a, b) = (whole.range(0.9), merged.range(0.9));
        assert!((a.0 - b.0).abs() < 1e-12 && (a.1 - b.1).abs() < 1e-12, "{a:?} {b:?}");
        let mut first = Moving::default();
        first.add(0.0, 2.54, 0.9);
        assert_eq!(first.range(0.9), (0.0, f64::from(2.54_f32)));
    }

    #[test]
    fn every_method_gives_a_range_within_the_values() {
        let values: Vec<f32> =
            (0..20_000).map(|i| ((i as f32 * 0.37).sin() * 2.0).max(-0.5).powi(3)).collect();
        let mut statistics = TensorStatistics::default();
        values.chunks(5000).for_each(|part| statistics.add(part, 0.99, 1).unwrap());
        for method in [
            Method::MinMax,
            Method::Percentile(99.9),
            Method::LeastSquares { clipping: 1.0 },
            Method::KullbackLeibler,
            Method::Moving,
        ] {
            let (low, high) = statistics.range(method, GRID, 0.99);
            assert!((-0.2..=0.0).contains(&low) && high > 1.0 && high < 8.2, "{method:?} {low} {high}");
        }
    }

    #[test]
    fn the_rule_of_mnn_needs_its_own_counts() {
        let mut statistics = TensorStatistics { area: 400, ..TensorStatistics::default() };
        assert!(statistics.mnn_divergence(127).is_none());
        statistics.magnitudes = Some((4.0, vec![0; kl::MNN_BINS]));
        let values: Vec<f32> = (0..4000).map(|i| i as f32 / 1000.0).collect();
        statistics.add(&values, 0.99, 1).unwrap();
        let codes = statistics.mnn_divergence(127).unwrap();
        assert!(codes.scale > 3.5 / 127.0 && codes.scale <= 4.0 / 127.0, "{codes:?}");
        statistics.area = 1;
        assert_eq!(statistics.mnn_divergence(127).unwrap().scale, 2047.5 * (4.0 / 2048.0) / 127.0);
    }
}
