//! A histogram of signed values that finds its own range.

use mnnq_kernels::multiversion::{Level, Loop, dispatch};
use rayon::prelude::*;

use crate::quant::affine::min_max;

/// Bins on each side of zero.
pub const HALF: usize = 2048;

/// Smallest and largest exponent of a bin's width: those of normal floats, with room for the range.
const EXPONENTS: std::ops::RangeInclusive<i32> = -126..=117;

/// Elements that are looked at twice while they are in cache.
const CHUNK: usize = 2048;

/// Counters that work side by side, so that equal values in a row do not wait for each other.
const LANES: usize = 4;

/// Fewest values that are worth a second thread.
const PARALLEL: usize = 1 << 14;

/// Counters of the bins, several each.
type Lanes = [[u32; 2 * HALF]; LANES];

/// A value that is infinite or not a number.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
#[error("a value is {value}")]
pub struct NotFinite {
    /// The value.
    pub value: f32,
}

/// Counts of values in [`HALF`] bins on each side of zero, of one width, a power of two.
///
/// Bin `i` holds `(i - HALF) w <= x < (i - HALF + 1) w`; exact zeros are counted apart. The width is the smallest power of
/// two with which all values seen fit; when a value does not fit, bins are merged by pairs. As
/// `floor(x / w)` is exact for a power of two, the counts are those that the last width would have given from the start:
/// neither the order of the values nor their partition into merged histograms matters.
#[derive(Debug, Clone, PartialEq)]
pub struct Histogram {
    /// Width of a bin is `2^exponent`; `None` while there are only zeros.
    exponent: Option<i32>,
    /// `2 * HALF` counts; empty while there are only zeros.
    counts: Vec<u64>,
    zeros: u64,
    min: f32,
    max: f32,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { exponent: None, counts: Vec::new(), zeros: 0, min: f32::INFINITY, max: f32::NEG_INFINITY }
    }
}

impl Histogram {
    /// From its parts, as [`parts`](Self::parts) gives them; `None` if they do not fit together.
    #[must_use]
    pub fn from_parts(
        exponent: Option<i32>,
        counts: Vec<u64>,
        zeros: u64,
        min: f32,
        max: f32,
    ) -> Option<Self> {
        let fits = match exponent {
            Some(exponent) => EXPONENTS.contains(&exponent) && counts.len() == 2 * HALF,
            None => counts.is_empty(),
        };
        (fits && !min.is_nan() && !max.is_nan()).then_some(Self { exponent, counts, zeros, min, max })
    }

    /// Exponent, counts, zeros, smallest and largest value.
    #[must_use]
    pub fn parts(&self) -> (Option<i32>, &[u64], u64, f32, f32) {
        (self.exponent, &self.counts, self.zeros, self.min, self.max)
    }

    /// Number of values.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.zeros + self.counts.iter().sum::<u64>()
    }

    /// Number of exact zeros.
    #[must_use]
    pub fn zeros(&self) -> u64 {
        self.zeros
    }

    /// Smallest value; infinity if there is none.
    #[must_use]
    pub fn min(&self) -> f32 {
        self.min
    }

    /// Largest value; negative infinity if there is none.
    #[must_use]
    pub fn max(&self) -> f32 {
        self.max
    }

    /// Width of the bins; 0 while there are only zeros.
    #[must_use]
    pub fn width(&self) -> f64 {
        self.exponent.map_or(0.0, |exponent| f64::from(exponent).exp2())
    }

    /// Bins that hold something: their centres and counts, ascending. Exact zeros are one more, of width 0.
    pub fn bins(&self) -> impl Iterator<Item = (f64, u64)> + '_ {
        let width = self.width();
        self.counts
            .iter()
            .enumerate()
            .filter(|&(_, &count)| count > 0)
            .map(move |(index, &count)| ((index as f64 - HALF as f64 + 0.5) * width, count))
    }

    /// Counts values.
    ///
    /// # Errors
    /// [`NotFinite`] if a value is infinite or not a number; what came before it may have been counted.
    pub fn add(&mut self, values: &[f32]) -> Result<(), NotFinite> {
        let mut lanes: Box<Lanes> = Box::new([[0; 2 * HALF]; LANES]);
        // 32-bit counters of one lane cannot overflow below this many values.
        for part in values.chunks(1 << 30) {
            for chunk in part.chunks(CHUNK) {
                let (min, max) = dispatch(Level::best(), Extremes(chunk));
                if !(min.is_finite() && max.is_finite()) {
                    let value = chunk.iter().copied().find(|x| !x.is_finite()).unwrap_or(f32::NAN);
                    return Err(NotFinite { value });
                }
                self.min = self.min.min(min);
                self.max = self.max.max(max);
                if min == 0.0 && max == 0.0 {
                    self.zeros += chunk.len() as u64;
                    continue;
                }
                if needed(min, max) > self.exponent {
                    self.collect(&mut lanes);
                    self.widen(needed(min, max).unwrap_or(*EXPONENTS.start()));
                }
                let scale = (-f64::from(self.exponent.unwrap_or(0))).exp2() as f32;
                self.zeros += dispatch(Level::best(), Count { chunk, scale, lanes: &mut lanes });
            }
            self.collect(&mut lanes);
        }
        Ok(())
    }

    /// Counts values with up to `threads` threads of the pool in force; the counts are those of [`add`](Self::add).
    ///
    /// # Errors
    /// [`NotFinite`], as there.
    pub fn add_parallel(&mut self, values: &[f32], threads: usize) -> Result<(), NotFinite> {
        if threads < 2 || values.len() < PARALLEL {
            return self.add(values);
        }
        let parts: Vec<Self> = values
            .par_chunks(values.len().div_ceil(threads))
            .map(|part| {
                let mut one = Self::default();
                one.add(part).map(|()| one)
            })
            .collect::<Result<_, _>>()?;
        parts.iter().for_each(|part| self.merge(part));
        Ok(())
    }

    /// Adds the counts of another histogram.
    pub fn merge(&mut self, other: &Self) {
        self.min = self.min.min(other.min);
        self.max = self.max.max(other.max);
        self.zeros += other.zeros;
        let Some(theirs) = other.exponent else { return };
        self.widen(theirs);
        let shift = self.exponent.unwrap_or(theirs) - theirs;
        for (index, &count) in other.counts.iter().enumerate().filter(|&(_, &count)| count > 0) {
            self.counts[target(index, shift)] += count;
        }
    }

    /// Moves the counts of the lanes into the histogram.
    fn collect(&mut self, lanes: &mut Lanes) {
        if self.counts.is_empty() {
            return;
        }
        let [first, second, third, fourth] = lanes;
        for (index, count) in self.counts.iter_mut().enumerate() {
            // Zeros were counted in the lanes and taken off the first: the sum is right although one lane may have wrapped.
            let pairs = (first[index].wrapping_add(second[index]), third[index].wrapping_add(fourth[index]));
            *count += u64::from(pairs.0.wrapping_add(pairs.1));
        }
        for lane in lanes {
            lane.fill(0);
        }
    }

    /// Makes bins at least `2^exponent` wide.
    fn widen(&mut self, exponent: i32) {
        match self.exponent {
            None => self.counts = vec![0; 2 * HALF],
            Some(now) if now >= exponent => return,
            Some(now) => {
                let old = std::mem::replace(&mut self.counts, vec![0; 2 * HALF]);
                for (index, count) in old.into_iter().enumerate().filter(|&(_, count)| count > 0) {
                    self.counts[target(index, exponent - now)] += count;
                }
            }
        }
        self.exponent = Some(exponent);
    }
}

/// Where bin `index` goes when the width grows by `2^shift`.
fn target(index: usize, shift: i32) -> usize {
    let signed = index as i64 - HALF as i64;
    let moved = signed >> shift.clamp(0, 63);
    usize::try_from(moved + HALF as i64).unwrap_or(0)
}

/// The exponent that values between these need; `None` if both are zero.
fn needed(min: f32, max: f32) -> Option<i32> {
    // floor(max / w) < HALF and floor(min / w) >= -HALF.
    let fits = |exponent: i32| {
        let range = (f64::from(exponent) + (HALF as f64).log2()).exp2();
        f64::from(max) < range && f64::from(min) >= -range
    };
    let largest = f64::from(max.abs().max(min.abs()));
    if largest == 0.0 {
        return None;
    }
    let guess = (largest.log2() - (HALF as f64).log2()).floor() as i32 - 1;
    let guess = guess.clamp(*EXPONENTS.start(), *EXPONENTS.end());
    Some((guess..=*EXPONENTS.end()).find(|&exponent| fits(exponent)).unwrap_or(*EXPONENTS.end()))
}

/// Smallest and largest value; not finite if any is not; zeros for no values.
struct Extremes<'a>(&'a [f32]);

impl Loop for Extremes<'_> {
    type Output = (f32, f32);

    #[inline(always)]
    fn run(self) -> (f32, f32) {
        if self.0.is_empty() {
            return (0.0, 0.0);
        }
        // As integers: NaN lies beyond the infinities then, and minima can be taken in any order.
        min_max(self.0)
    }
}

/// Counts the values that are not zero; returns the number of zeros.
struct Count<'a> {
    chunk: &'a [f32],
    /// `1 / width`, exact.
    scale: f32,
    lanes: &'a mut Lanes,
}

impl Loop for Count<'_> {
    type Output = u64;

    #[inline(always)]
    fn run(self) -> u64 {
        let mut bins = [0_u16; CHUNK];
        let bins = &mut bins[..self.chunk.len()];
        let mut zeros = 0_u32;
        for (bin, &x) in bins.iter_mut().zip(self.chunk) {
            // Above 2^23 floats are whole numbers, and the number of the bin is what is in the lowest bits.
            let place = (x * self.scale).floor() + (HALF as f32 + 8_388_608.0);
            *bin = place.to_bits() as u16;
            zeros += u32::from(x == 0.0);
        }
        let [first, second, third, fourth] = self.lanes;
        let add = |lane: &mut [u32; 2 * HALF], bin: u16| {
            let count = &mut lane[usize::from(bin) % (2 * HALF)];
            *count = count.wrapping_add(1);
        };
        let (quads, tail) = bins.as_chunks::<LANES>();
        for &[a, b, c, d] in quads {
            add(first, a);
            add(second, b);
            add(third, c);
            add(fourth, d);
        }
        for &bin in tail {
            add(first, bin);
        }
        // Zeros lie in the first bin above zero; they are counted apart.
        first[HALF] = first[HALF].wrapping_sub(zeros);
        u64::from(zeros)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(count: usize, seed: u64, scale: f32) -> Vec<f32> {
        let mut state = seed;
        (0..count)
            .map(|i| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let x = ((state >> 40) as f32 / (1 << 24) as f32 - 0.4) * scale;
                if i % 5 == 0 { 0.0 } else { x }
            })
            .collect()
    }

    /// One value at a time, with the width of the end known.
    fn plain(values: &[f32], exponent: i32) -> (Vec<u64>, u64) {
        let (mut counts, mut zeros) = (vec![0; 2 * HALF], 0);
        for &x in values {
            if x == 0.0 {
                zeros += 1;
            } else {
                let bin = (f64::from(x) / f64::from(exponent).exp2()).floor() + HALF as f64;
                counts[bin as usize] += 1;
            }
        }
        (counts, zeros)
    }

    #[test]
    fn counts_as_if_the_width_had_been_known() {
        let mut all = values(5000, 1, 0.01);
        all.extend(values(5000, 2, 3.0));
        all.extend(values(777, 3, 100.0));
        let mut histogram = Histogram::default();
        for part in all.chunks(313) {
            histogram.add(part).unwrap();
        }
        let mut parallel = Histogram::default();
        for part in [&all[..], &all[..9000]].concat().repeat(3).chunks(40_000) {
            parallel.add_parallel(part, 3).unwrap();
        }
        let mut alone = Histogram::default();
        alone.add(&[&all[..], &all[..9000]].concat().repeat(3)).unwrap();
        assert_eq!(parallel, alone);
        let (exponent, counts, zeros, min, max) = histogram.parts();
        let (want, want_zeros) = plain(&all, exponent.unwrap());
        assert_eq!((counts, zeros), (&want[..], want_zeros));
        assert_eq!(histogram.count(), all.len() as u64);
        assert_eq!(min, all.iter().copied().fold(f32::INFINITY, f32::min));
        assert_eq!(max, all.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        // The width is the smallest that fits.
        let reach = f64::from(exponent.unwrap() - 1).exp2() * HALF as f64;
        assert!(f64::from(max.max(-min)) >= reach);
    }

    #[test]
    fn merging_is_exact_and_order_does_not_matter() {
        let parts = [values(4000, 4, 7.0), values(100, 5, 4000.0), vec![0.0; 50], values(9000, 6, 0.3)];
        let mut whole = Histogram::default();
        parts.iter().for_each(|part| whole.add(part).unwrap());
        for order in [[0, 1, 2, 3], [3, 2, 1, 0], [1, 3, 0, 2], [2, 0, 3, 1]] {
            let mut merged = Histogram::default();
            for index in order {
                let mut one = Histogram::default();
                one.add(&parts[index]).unwrap();
                merged.merge(&one);
            }
            assert_eq!(merged, whole);
        }
    }

    #[test]
    fn zeros_alone_have_no_width() {
        let mut histogram = Histogram::default();
        histogram.add(&[0.0, -0.0, 0.0]).unwrap();
        assert_eq!(histogram.parts(), (None, &[][..], 3, 0.0, 0.0));
        histogram.add(&[1.0]).unwrap();
        assert_eq!((histogram.count(), histogram.zeros()), (4, 3));
    }

    #[test]
    fn bounds_of_the_bins() {
        for x in [1.0_f32, -1.0, 2048.0, -2048.0, f32::MAX, f32::MIN, f32::MIN_POSITIVE, 1e-45, -1e-45] {
            let mut histogram = Histogram::default();
            histogram.add(&[x]).unwrap();
            let (centre, count) = histogram.bins().next().unwrap();
            assert_eq!(count, 1, "{x}");
            assert!((centre - f64::from(x)).abs() <= histogram.width(), "{x} {centre}");
        }
    }

    #[test]
    fn refuses_what_is_not_finite() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut data = vec![1.0; 40];
            data[37] = bad;
            assert!(Histogram::default().add(&data).is_err(), "{bad}");
        }
    }
}
