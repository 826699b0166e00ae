//! Means and extremes per channel.

/// Sums are kept in units of `2^-UNIT`.
const UNIT: i32 = 40;

/// Mean, smallest and largest value of each channel.
///
/// Sums are whole numbers of `2^-40`, so that neither order nor partition of the data matters; what a sample adds is
/// rounded to that unit.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ChannelStatistics {
    sums: Vec<i128>,
    /// Values per channel.
    count: u64,
    min: Vec<f32>,
    max: Vec<f32>,
}

impl ChannelStatistics {
    /// Adds `[outer, channels, inner]` values. Tensors of different numbers of channels do not mix: the first one counts,
    /// and `false` says that this one did not fit.
    pub fn add(&mut self, values: &[f32], channels: usize, inner: usize) -> bool {
        if channels == 0 || inner == 0 || values.is_empty() {
            return true;
        }
        if self.sums.is_empty() {
            self.sums = vec![0; channels];
            self.min = vec![f32::INFINITY; channels];
            self.max = vec![f32::NEG_INFINITY; channels];
        }
        if self.sums.len() != channels {
            return false;
        }
        let mut sums = vec![0.0_f64; channels];
        for block in values.chunks_exact(channels * inner) {
            if inner == 1 {
                let parts = sums.iter_mut().zip(&mut self.min).zip(&mut self.max).zip(block);
                for (((sum, min), max), &x) in parts {
                    *sum += f64::from(x);
                    *min = if x < *min { x } else { *min };
                    *max = if x > *max { x } else { *max };
                }
                continue;
            }
            for (channel, row) in block.chunks_exact(inner).enumerate() {
                for &x in row {
                    sums[channel] += f64::from(x);
                    self.min[channel] = self.min[channel].min(x);
                    self.max[channel] = self.max[channel].max(x);
                }
            }
        }
        self.count += (values.len() / channels) as u64;
        let unit = f64::from(UNIT).exp2();
        for (total, sum) in self.sums.iter_mut().zip(sums) {
            *total = total.saturating_add((sum * unit).round() as i128);
        }
        true
    }

    /// Adds the statistics of other data; `false` if they have another number of channels.
    pub fn merge(&mut self, other: &Self) -> bool {
        if other.sums.is_empty() {
            return true;
        }
        if self.sums.is_empty() {
            *self = other.clone();
            return true;
        }
        if self.sums.len() != other.sums.len() {
            return false;
        }
        for (a, b) in self.sums.iter_mut().zip(&other.sums) {
            *a = a.saturating_add(*b);
        }
        self.min.iter_mut().zip(&other.min).for_each(|(a, &b)| *a = a.min(b));
        self.max.iter_mut().zip(&other.max).for_each(|(a, &b)| *a = a.max(b));
        self.count += other.count;
        true
    }

    /// Sums in units of `2^-40`, and values per channel.
    pub(super) fn parts(&self) -> (&[i128], u64) {
        (&self.sums, self.count)
    }

    pub(super) fn from_parts(sums: Vec<i128>, count: u64, min: Vec<f32>, max: Vec<f32>) -> Self {
        Self { sums, count, min, max }
    }

    /// Mean of each channel.
    #[must_use]
    pub fn means(&self) -> Vec<f64> {
        let unit = f64::from(-UNIT).exp2() / (self.count.max(1)) as f64;
        self.sums.iter().map(|&sum| sum as f64 * unit).collect()
    }

    /// Smallest value of each channel.
    #[must_use]
    pub fn min(&self) -> &[f32] {
        &self.min
    }

    /// Largest value of each channel.
    #[must_use]
    pub fn max(&self) -> &[f32] {
        &self.max
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_and_extremes_in_both_layouts() {
        // [2, 3, 2] by rows, and the same channels-last.
        let planar = [1.0, 2.0, 10.0, 20.0, -1.0, -2.0, 3.0, 4.0, 30.0, 40.0, -3.0, 5.0];
        let last = [1.0, 10.0, -1.0, 2.0, 20.0, -2.0, 3.0, 30.0, -3.0, 4.0, 40.0, 5.0];
        let (mut a, mut b) = (ChannelStatistics::default(), ChannelStatistics::default());
        assert!(a.add(&planar, 3, 2) && b.add(&last, 3, 1));
        assert_eq!(a, b);
        assert_eq!(a.means(), [2.5, 25.0, -0.25]);
        assert_eq!((a.min(), a.max()), (&[1.0, 10.0, -3.0][..], &[4.0, 40.0, 5.0][..]));
        assert!(!a.add(&planar, 4, 3));
    }

    #[test]
    fn merging_does_not_depend_on_order() {
        let data: Vec<f32> = (0..300).map(|i| (i as f32 * 0.7).sin() * 3.3).collect();
        let mut whole = ChannelStatistics::default();
        data.chunks(30).for_each(|part| assert!(whole.add(part, 3, 1)));
        let parts: Vec<ChannelStatistics> = data
            .chunks(30)
            .map(|part| {
                let mut one = ChannelStatistics::default();
                assert!(one.add(part, 3, 1));
                one
            })
            .collect();
        let mut merged = ChannelStatistics::default();
        parts.iter().rev().for_each(|part| assert!(merged.merge(part)));
        assert_eq!(merged, whole);
    }
}
