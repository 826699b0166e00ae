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
    let bins = mass.len();
    let (mut best, mut least) = (bins.saturating_sub(1).max(1), f64::INFINITY);
    let mut prefix = vec![0.0; bins + 1];
    for (index, &m) in mass.iter().enumerate() {
        prefix[index + 1] = prefix[index] + m;
    }
    for kept in (levels..bins).step_by(stride) {
        let tail = (prefix[bins] - prefix[kept]).max(0.0);
        let divergence = divergence(&mass[..kept], tail, levels, &empty);
        if divergence < least {
            (best, least) = (kept, divergence);
        }
    }
    best
}

/// `sum P log(P / Q)` for the first bins with the tail added to the last.
fn divergence(mass: &[f64], tail: f64, levels: usize, empty: &impl Fn(f64) -> bool) -> f64 {
    let kept = mass.len();
    let width = kept as f64 / levels as f64;
    let mut quantized = vec![0.0; kept];
    for level in 0..levels {
        let (start, end) = (level as f64 * width, (level as f64 + 1.0) * width);
        let (first, last) = (start.ceil() as usize, (end.floor() as usize).min(kept));
        // Shares of the bins that the boundaries cut.
        let left = (first as f64 - start).max(0.0);
        let right = (end - last as f64).max(0.0);
        let mut sum: f64 = mass[first.min(kept)..last].iter().sum();
        let mut weight: f64 = mass[first.min(kept)..last].iter().filter(|&&m| !empty(m)).count() as f64;
        if left > 0.0 && first > 0 && !empty(mass[first - 1]) {
            sum += left * mass[first - 1];
            weight += left;
        }
        if right > 0.0 && last < kept && !empty(mass[last]) {
            sum += right * mass[last];
            weight += right;
        }
        if weight == 0.0 {
            continue;
        }
        let mean = sum / weight;
        for (q, &m) in quantized[first.min(kept)..last].iter_mut().zip(&mass[first.min(kept)..last]) {
            if !empty(m) {
                *q += mean;
            }
        }
        if left > 0.0 && first > 0 && !empty(mass[first - 1]) {
            quantized[first - 1] += left * mean;
        }
        if right > 0.0 && last < kept && !empty(mass[last]) {
            quantized[last] += right * mean;
        }
    }
    let mut total = 0.0;
    for (index, (&m, &q)) in mass.iter().zip(&quantized).enumerate() {
        let p = if index + 1 == kept { m + tail } else { m };
        if p <= 0.0 {
            continue;
        }
        total += if q > 0.0 { p * (p / q).ln() } else { 1.0 };
    }
    total
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
