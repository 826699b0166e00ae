//! Statistics as bytes, so that they can travel between processes. Little-endian, no compatibility between versions.

use super::channels::ChannelStatistics;
use super::histogram::{HALF, Histogram};
use super::kl;
use super::statistics::{Moving, TensorStatistics};

/// Bytes that are no statistics of this version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("these bytes are no statistics of this version of mnnq")]
pub struct Damaged;

/// Appends values to bytes.
#[derive(Debug, Default)]
pub struct Writer(Vec<u8>);

impl Writer {
    /// The bytes.
    #[must_use]
    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    /// A number.
    pub fn u64(&mut self, value: u64) {
        self.0.extend(value.to_le_bytes());
    }

    /// A number.
    pub fn f64(&mut self, value: f64) {
        self.u64(value.to_bits());
    }

    /// A text.
    pub fn text(&mut self, text: &str) {
        self.u64(text.len() as u64);
        self.0.extend(text.as_bytes());
    }

    fn counts(&mut self, counts: &[u64]) {
        // Most bins are empty: pairs of position and count.
        let full: Vec<(usize, u64)> = counts.iter().copied().enumerate().filter(|&(_, n)| n > 0).collect();
        self.u64(full.len() as u64);
        for (index, count) in full {
            self.u64(index as u64);
            self.u64(count);
        }
    }

    /// Statistics of a tensor.
    pub fn tensor(&mut self, statistics: &TensorStatistics) {
        let (exponent, counts, zeros, min, max) = statistics.histogram.parts();
        self.u64(exponent.map_or(u64::MAX, |exponent| (i64::from(exponent) + 1024).cast_unsigned()));
        self.u64(zeros);
        self.f64(min.into());
        self.f64(max.into());
        self.counts(counts);
        let (count, first, added) = statistics.moving.parts();
        self.u64(count);
        first.into_iter().chain(added).for_each(|x| self.f64(x));
        self.u64(statistics.area);
        match &statistics.magnitudes {
            None => self.f64(0.0),
            Some((limit, counts)) => {
                self.f64(f64::from(*limit));
                self.counts(counts);
            }
        }
    }

    /// Statistics of channels.
    pub fn channels(&mut self, statistics: &ChannelStatistics) {
        let (sums, count) = statistics.parts();
        self.u64(sums.len() as u64);
        self.u64(count);
        for ((&sum, &min), &max) in sums.iter().zip(statistics.min()).zip(statistics.max()) {
            self.0.extend(sum.to_le_bytes());
            self.f64(min.into());
            self.f64(max.into());
        }
    }
}

/// Reads what a [`Writer`] has written.
#[derive(Debug)]
pub struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// A reader of these bytes.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// Whether everything has been read.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.0.is_empty()
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], Damaged> {
        if self.0.len() < len {
            return Err(Damaged);
        }
        let (head, tail) = self.0.split_at(len);
        self.0 = tail;
        Ok(head)
    }

    /// A number.
    ///
    /// # Errors
    /// [`Damaged`], as all readers.
    pub fn u64(&mut self) -> Result<u64, Damaged> {
        Ok(u64::from_le_bytes(self.take(8)?.try_into().map_err(|_| Damaged)?))
    }

    /// A number.
    ///
    /// # Errors
    /// [`Damaged`].
    pub fn f64(&mut self) -> Result<f64, Damaged> {
        self.u64().map(f64::from_bits)
    }

    /// A text.
    ///
    /// # Errors
    /// [`Damaged`].
    pub fn text(&mut self) -> Result<String, Damaged> {
        let len = usize::try_from(self.u64()?).map_err(|_| Damaged)?;
        String::from_utf8(self.take(len)?.to_vec()).map_err(|_| Damaged)
    }

    fn counts(&mut self, len: usize) -> Result<Vec<u64>, Damaged> {
        let mut counts = vec![0; len];
        for _ in 0..self.u64()? {
            let (index, count) = (self.u64()?, self.u64()?);
            let index = usize::try_from(index).map_err(|_| Damaged)?;
            *counts.get_mut(index).ok_or(Damaged)? = count;
        }
        Ok(counts)
    }

    /// Statistics of a tensor.
    ///
    /// # Errors
    /// [`Damaged`].
    pub fn tensor(&mut self) -> Result<TensorStatistics, Damaged> {
        let exponent = match self.u64()? {
            u64::MAX => None,
            code => Some(i32::try_from(code.cast_signed() - 1024).map_err(|_| Damaged)?),
        };
        let (zeros, min, max) = (self.u64()?, self.f64()? as f32, self.f64()? as f32);
        let counts = self.counts(if exponent.is_some() { 2 * HALF } else { 0 })?;
        let histogram = Histogram::from_parts(exponent, counts, zeros, min, max).ok_or(Damaged)?;
        let count = self.u64()?;
        let mut numbers = [0.0; 4];
        for number in &mut numbers {
            *number = self.f64()?;
        }
        let [a, b, c, d] = numbers;
        let area = self.u64()?;
        let limit = self.f64()? as f32;
        let magnitudes = if limit > 0.0 { Some((limit, self.counts(kl::MNN_BINS)?)) } else { None };
        Ok(TensorStatistics {
            histogram,
            moving: Moving::from_parts(count, [a, b], [c, d]),
            magnitudes,
            area,
        })
    }

    /// Statistics of channels.
    ///
    /// # Errors
    /// [`Damaged`].
    pub fn channels(&mut self) -> Result<ChannelStatistics, Damaged> {
        let (len, count) = (self.u64()?, self.u64()?);
        let (mut sums, mut min, mut max) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..len {
            sums.push(i128::from_le_bytes(self.take(16)?.try_into().map_err(|_| Damaged)?));
            min.push(self.f64()? as f32);
            max.push(self.f64()? as f32);
        }
        Ok(ChannelStatistics::from_parts(sums, count, min, max))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn travels_unchanged() {
        let mut tensor = TensorStatistics { area: 9, ..TensorStatistics::default() };
        tensor.magnitudes = Some((2.0, vec![0; kl::MNN_BINS]));
        tensor.add(&[0.0, 1.5, -0.25, 1e-3], 0.99, 1).unwrap();
        let mut channels = ChannelStatistics::default();
        assert!(channels.add(&[1.0, 2.0, 3.0, -4.0], 2, 1));
        let mut writer = Writer::default();
        writer.text("täg");
        writer.tensor(&tensor);
        writer.tensor(&TensorStatistics::default());
        writer.channels(&channels);
        let bytes = writer.into_bytes();
        let mut reader = Reader::new(&bytes);
        assert_eq!(reader.text().unwrap(), "täg");
        assert_eq!(reader.tensor().unwrap(), tensor);
        assert_eq!(reader.tensor().unwrap(), TensorStatistics::default());
        assert_eq!(reader.channels().unwrap(), channels);
        assert!(reader.is_done());
        for cut in 0..bytes.len() {
            let mut reader = Reader::new(&bytes[..cut]);
            let read = reader.text().and_then(|_| reader.tensor()).and_then(|_| reader.tensor());
            assert!(read.and_then(|_| reader.channels()).is_err(), "{cut}");
        }
    }
}
