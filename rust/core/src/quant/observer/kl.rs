//! Thresholds by the Kullback-Leibler divergence between a distribution of magnitudes and its quantized form.

/// Levels of the quantized distribution.
const LEVELS: usize = 128;

/// What every bin of MNN's histograms starts with.
const FLOOR: f64 = 1e-7;

/// Values up to this magnitude do not count in MNN's histograms.
pub const MNN_IGNORED: f32 = 1e-6;

/// Bins of MNN's histograms.
pub const MNN_BINS: usize = 2048;

/// MNN's rule: the number of bins to keep, from counts of magnitudes in equal bins.
///
/// For every i from 128 on, P is the first i bins with the mass beyond them added to the last, Q these bins averaged over
/// 128 equal intervals (bins at a boundary count by their share). The first i with the smallest `sum P log(P / Q)` wins.
/// Every bin starts at 1e-7, so that none is empty.
#[must_use]
pub fn mnn_threshold(counts: &[u64]) -> usize {
    let total: f64 = counts.iter().map(|&count| count as f64 + FLOOR).sum();
    let mass: Vec<f64> = counts.iter().map(|&count| (count as f64 + FLOOR) / total).collect();
    threshold(&mass, LEVELS, 1, |_| false)
}

/// The same idea without its defects: zeros do not take part, and empty bins receive no mass.
///
/// `counts` are those of magnitudes in equal bins, exact zeros left out. Returns the number of bins to keep. The number of
/// levels is that of the codes on one side.
#[must_use]
pub fn threshold_of(counts: &[u64], levels: usize) -> usize {
    let last = counts.iter().rposition(|&count| count > 0).map_or(0, |index| index + 1);
    let total: f64 = counts.iter().map(|&count| count as f64).sum();
    if last <= levels || total == 0.0 {
        return last.max(1);
    }
    let mass: Vec<f64> = counts[..last].iter().map(|&count| count as f64 / total).collect();
    let kept = threshold(&mass, levels, (last / 512).max(1), |mass| mass == 0.0);
    if kept + (last / 512).max(1) >= last { last } else { kept }
}

/// The smallest divergence over the numbers of bins kept.
fn threshold(mass: &[f64], levels: usize, stride: usize, empty: impl Fn(f64) -> bool) -> usize {
    let sums = Sums::new(mass, empty);
    let bins = mass.len();
    let (mut best, mut least) = (bins.saturating_sub(1).max(1), f64::INFINITY);
    for kept in (levels..bins).step_by(stride) {
        let divergence = sums.divergence(kept, levels);
        if divergence < least {
            (best, least) = (kept, divergence);
        }
    }
    best
}

/// Sums over the first bins, so that those of any interval are differences.
struct Sums<'a> {
    mass: &'a [f64],
    /// Whether a bin is empty and receives no mass.
    empty: Vec<bool>,
    /// `sum m`.
    total: Vec<f64>,
    /// Bins that are not empty.
    filled: Vec<f64>,
    /// `sum m ln m`.
    entropy: Vec<f64>,
}

impl<'a> Sums<'a> {
    fn new(mass: &'a [f64], empty: impl Fn(f64) -> bool) -> Self {
        let mut sums = Self {
            mass,
            empty: mass.iter().map(|&m| empty(m)).collect(),
            total: vec![0.0],
            filled: vec![0.0],
            entropy: vec![0.0],
        };
        for (index, &m) in mass.iter().enumerate() {
            sums.total.push(sums.total[index] + m);
            sums.filled.push(sums.filled[index] + if sums.empty[index] { 0.0 } else { 1.0 });
            sums.entropy.push(sums.entropy[index] + if m > 0.0 { m * m.ln() } else { 0.0 });
        }
        sums
    }

    /// `sum P log(P / Q)` for the first bins with the tail added to the last.
    ///
    /// Bins that lie in one level have its mean as Q, so that their sum is `sum m ln m - ln(mean) sum m`; those that a boundary cuts
    /// and the last one are summed one by one.
    fn divergence(&self, kept: usize, levels: usize) -> f64 {
        let width = kept as f64 / levels as f64;
        let last = kept - 1;
        let mut divergence = 0.0;
        // The bin that the end of the level before has cut, and what it has of Q so far.
        let mut cut: Option<(usize, f64)> = None;
        let mut of_last = 0.0;
        for level in 0..levels {
            let (start, end) = (level as f64 * width, (level as f64 + 1.0) * width);
            let (from, to) = ((start.ceil() as usize).min(kept), (end.floor() as usize).min(kept));
            // Shares of the bins that the boundaries cut.
            let left = if from > 0 && !self.empty[from - 1] { (from as f64 - start).max(0.0) } else { 0.0 };
            let right = if to < kept && !self.empty[to] { (end - to as f64).max(0.0) } else { 0.0 };
            let (mut sum, mut weight) = (0.0, 0.0);
            if to > from {
                sum = self.total[to] - self.total[from];
                weight = self.filled[to] - self.filled[from];
            }
            if left > 0.0 {
                sum += left * self.mass[from - 1];
                weight += left;
            }
            if right > 0.0 {
                sum += right * self.mass[to];
                weight += right;
            }
            let mean = if weight > 0.0 { sum / weight } else { 0.0 };
            if let Some((bin, part)) = cut.take() {
                let q = part + if left > 0.0 && bin + 1 == from { left * mean } else { 0.0 };
                if bin == last { of_last = q } else { divergence += term(self.mass[bin], q) }
            }
            let inner = to.min(last);
            if inner > from && mean > 0.0 {
                let (m, entropy) =
                    (self.total[inner] - self.total[from], self.entropy[inner] - self.entropy[from]);
                divergence += entropy - m * mean.ln();
            }
            if to == kept && from < kept && !self.empty[last] {
                of_last = mean;
            }
            if right > 0.0 {
                cut = Some((to, right * mean));
            }
        }
        if let Some((bin, q)) = cut {
            if bin == last { of_last += q } else { divergence += term(self.mass[bin], q) }
        }
        let tail = (self.total[self.mass.len()] - self.total[kept]).max(0.0);
        divergence + term(self.mass[last] + tail, of_last)
    }
}

/// What a bin adds to the divergence.
fn term(p: f64, q: f64) -> f64 {
    if p <= 0.0 {
        0.0
    } else if q > 0.0 {
        p * (p / q).ln()
    } else {
        1.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The rule written down term by term.
    fn literal(counts: &[u64]) -> usize {
        let total: f64 = counts.iter().map(|&c| c as f64 + FLOOR).sum();
        let p: Vec<f64> = counts.iter().map(|&c| (c as f64 + FLOOR) / total).collect();
        let (mut best, mut least) = (counts.len() - 1, f64::INFINITY);
        for kept in LEVELS..counts.len() {
            let mut clipped = p[..kept].to_vec();
            clipped[kept - 1] += p[kept..].iter().sum::<f64>();
            let share =
                |bin: usize, from: f64, to: f64| (to.min(bin as f64 + 1.0) - from.max(bin as f64)).max(0.0);
            let per = kept as f64 / LEVELS as f64;
            let mut q = vec![0.0; kept];
            for level in 0..LEVELS {
                let (from, to) = (level as f64 * per, (level as f64 + 1.0) * per);
                let sum: f64 = (0..kept).map(|bin| share(bin, from, to) * p[bin]).sum();
                for (bin, q) in q.iter_mut().enumerate() {
                    *q += share(bin, from, to) * sum / per;
                }
            }
            let d: f64 = clipped.iter().zip(&q).map(|(&p, &q)| p * (p / q).ln()).sum();
            if d < least - 1e-15 {
                (best, least) = (kept, d);
            }
        }
        best
    }

    #[test]
    fn follows_the_rule() {
        for tail in [3.0, 9.0] {
            let counts: Vec<u64> =
                (0..400).map(|i| (1e6 * (-f64::from(i) / (400.0 / tail)).exp()) as u64).collect();
            assert_eq!(mnn_threshold(&counts), literal(&counts), "{tail}");
        }
    }

    #[test]
    fn sums_over_intervals_give_what_single_bins_give() {
        let empty = |m: f64| m == 0.0;
        let mass: Vec<f64> = (0..300)
            .map(|i| if i % 3 == 1 || (40..70).contains(&i) { 0.0 } else { 1.0 / f64::from(i + 9) })
            .collect();
        let sums = Sums::new(&mass, empty);
        for (levels, kept) in [(127, 127), (127, 128), (127, 200), (64, 299), (20, 61), (33, 290)] {
            let width = kept as f64 / levels as f64;
            let share = |bin: usize, level: usize| {
                let (from, to) = (level as f64 * width, (level + 1) as f64 * width);
                let share = (to.min(bin as f64 + 1.0) - from.max(bin as f64)).max(0.0);
                if empty(mass[bin]) { 0.0 } else { share }
            };
            let means: Vec<f64> = (0..levels)
                .map(|level| {
                    let (sum, weight) = (0..kept)
                        .map(|bin| (share(bin, level) * mass[bin], share(bin, level)))
                        .fold((0.0, 0.0), |a, b| (a.0 + b.0, a.1 + b.1));
                    if weight > 0.0 { sum / weight } else { 0.0 }
                })
                .collect();
            let want: f64 = (0..kept)
                .map(|bin| {
                    let q = (0..levels).map(|level| share(bin, level) * means[level]).sum();
                    let tail: f64 = if bin + 1 == kept { mass[kept..].iter().sum() } else { 0.0 };
                    term(mass[bin] + tail, q)
                })
                .sum();
            let found = sums.divergence(kept, levels);
            assert!((found - want).abs() < 1e-9, "{levels} {kept}: {found} {want}");
        }
    }

    #[test]
    fn cuts_rare_outliers_and_keeps_even_distributions() {
        let mut counts = vec![1000; 2048];
        assert!(threshold_of(&counts, 127) > 1900);
        counts[600..].fill(0);
        counts[2047] = 1;
        let kept = threshold_of(&counts, 127);
        assert!((590..=660).contains(&kept), "{kept}");
        assert_eq!(threshold_of(&[0, 0, 5, 0], 127), 3);
        assert_eq!(threshold_of(&[0; 10], 127), 1);
    }
}
