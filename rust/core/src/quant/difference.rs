//! How far values are from their references: the sums behind cosine and signal to noise ratio.

use mnnq_kernels::multiversion::{Level, Loop, dispatch};

use super::affine::{LANES, fold_lanes_f64};

/// Sums over pairs of values, of one tensor and any number of samples.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Difference {
    /// Largest `|y - ref|`.
    pub largest: f64,
    /// Largest `|ref|`.
    pub peak: f64,
    /// `sum (y - ref)^2`.
    pub error: f64,
    /// `sum ref^2`.
    pub power: f64,
    /// `sum y^2`.
    pub norm: f64,
    /// `sum y ref`.
    pub dot: f64,
}

/// What stands in for a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotFinite {
    /// A reference is infinite or not a number.
    #[error("the reference is not finite")]
    Reference,
    /// A value is infinite or not a number.
    #[error("a value is not finite")]
    Value,
}

/// Values that compare with floats.
#[derive(Debug, Clone, Copy)]
pub enum Values<'a> {
    /// Plain floats.
    Floats(&'a [f32]),
    /// Codes that stand for `(code - zero) * scale`.
    Codes {
        /// The codes.
        codes: &'a [i8],
        /// Distance of two codes.
        scale: f32,
        /// The code of 0.
        zero: f32,
    },
}

impl Values<'_> {
    /// Number of values.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Values::Floats(values) => values.len(),
            Values::Codes { codes, .. } => codes.len(),
        }
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Compares as many values as both have.
///
/// # Errors
/// [`NotFinite`].
pub fn difference(reference: &[f32], values: Values<'_>) -> Result<Difference, NotFinite> {
    match values {
        Values::Floats(values) => dispatch(Level::best(), Floats { reference, values }),
        Values::Codes { codes, scale, zero } => {
            dispatch(Level::best(), Codes { reference, codes, scale, zero })
        }
    }
}

struct Floats<'a> {
    reference: &'a [f32],
    values: &'a [f32],
}

impl Loop for Floats<'_> {
    type Output = Result<Difference, NotFinite>;

    #[inline(always)]
    fn run(self) -> Self::Output {
        let mut sums = Sums::default();
        let ((refs, ref_tail), (values, tail)) = (self.reference.as_chunks(), self.values.as_chunks());
        for (r, v) in refs.iter().zip(values) {
            sums.add(r, v);
        }
        sums.add_tail(ref_tail, tail);
        sums.finish()
    }
}

struct Codes<'a> {
    reference: &'a [f32],
    codes: &'a [i8],
    scale: f32,
    zero: f32,
}

impl Loop for Codes<'_> {
    type Output = Result<Difference, NotFinite>;

    #[inline(always)]
    fn run(self) -> Self::Output {
        let mut sums = Sums::default();
        let ((refs, ref_tail), (codes, tail)) = (self.reference.as_chunks(), self.codes.as_chunks::<LANES>());
        let real = |code: i8| (f32::from(code) - self.zero) * self.scale;
        for (r, c) in refs.iter().zip(codes) {
            sums.add(r, &c.map(real));
        }
        let mut values = [0.0; LANES];
        for (value, &code) in values.iter_mut().zip(tail) {
            *value = real(code);
        }
        sums.add_tail(ref_tail, &values[..tail.len()]);
        sums.finish()
    }
}

#[derive(Default)]
struct Sums {
    largest: [f32; LANES],
    peak: [f32; LANES],
    bad_reference: [f32; LANES],
    bad_value: [f32; LANES],
    error: [f64; LANES],
    power: [f64; LANES],
    norm: [f64; LANES],
    dot: [f64; LANES],
}

impl Sums {
    #[inline(always)]
    fn add(&mut self, reference: &[f32; LANES], values: &[f32; LANES]) {
        for lane in 0..LANES {
            let (r, v) = (reference[lane], values[lane]);
            let (d, m) = ((v - r).abs(), r.abs());
            self.largest[lane] = if d > self.largest[lane] { d } else { self.largest[lane] };
            self.peak[lane] = if m > self.peak[lane] { m } else { self.peak[lane] };
            // 0 for finite values, and not a number otherwise.
            self.bad_reference[lane] += r * 0.0;
            self.bad_value[lane] += v * 0.0;
            let (r, v) = (f64::from(r), f64::from(v));
            self.error[lane] += (v - r) * (v - r);
            self.power[lane] += r * r;
            self.norm[lane] += v * v;
            self.dot[lane] += r * v;
        }
    }

    #[inline(always)]
    fn add_tail(&mut self, reference: &[f32], values: &[f32]) {
        let (mut r, mut v) = ([0.0; LANES], [0.0; LANES]);
        let count = reference.len().min(values.len());
        r[..count].copy_from_slice(&reference[..count]);
        v[..count].copy_from_slice(&values[..count]);
        self.add(&r, &v);
    }

    #[inline(always)]
    fn finish(self) -> Result<Difference, NotFinite> {
        if self.bad_reference.iter().any(|x| x.is_nan()) {
            return Err(NotFinite::Reference);
        }
        if self.bad_value.iter().any(|x| x.is_nan()) {
            return Err(NotFinite::Value);
        }
        let largest = |lanes: [f32; LANES]| f64::from(lanes.into_iter().fold(0.0, f32::max));
        Ok(Difference {
            largest: largest(self.largest),
            peak: largest(self.peak),
            error: fold_lanes_f64(self.error),
            power: fold_lanes_f64(self.power),
            norm: fold_lanes_f64(self.norm),
            dot: fold_lanes_f64(self.dot),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_those_of_the_formulas() {
        let reference: Vec<f32> = (0..77).map(|i| (i as f32 * 0.7).sin() * 3.0).collect();
        let codes: Vec<i8> = reference.iter().map(|x| (x / 0.03).round() as i8 + 5).collect();
        let values: Vec<f32> = codes.iter().map(|&c| (f32::from(c) - 5.0) * 0.03).collect();
        let found = difference(&reference, Values::Floats(&values)).unwrap();
        assert_eq!(
            difference(&reference, Values::Codes { codes: &codes, scale: 0.03, zero: 5.0 }).unwrap(),
            found
        );
        let pairs = || reference.iter().zip(&values).map(|(&r, &v)| (f64::from(r), f64::from(v)));
        let near = |a: f64, b: f64| assert!((a - b).abs() <= 1e-12 * b.abs().max(1e-3), "{a} {b}");
        near(found.error, pairs().map(|(r, v)| (v - r).powi(2)).sum());
        near(found.power, pairs().map(|(r, _)| r * r).sum());
        near(found.norm, pairs().map(|(_, v)| v * v).sum());
        near(found.dot, pairs().map(|(r, v)| r * v).sum());
        assert!((found.largest - pairs().map(|(r, v)| (v - r).abs()).fold(0.0, f64::max)).abs() < 1e-6);
        assert_eq!(found.peak, pairs().map(|(r, _)| r.abs()).fold(0.0, f64::max));
    }

    #[test]
    fn says_what_is_not_finite() {
        let (good, mut bad) = ([1.0; 40], [1.0; 40]);
        for at in [0, 20, 39] {
            for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                bad = [1.0; 40];
                bad[at] = value;
                assert_eq!(difference(&bad, Values::Floats(&good)), Err(NotFinite::Reference));
                assert_eq!(difference(&good, Values::Floats(&bad)), Err(NotFinite::Value));
            }
        }
        assert_eq!(
            difference(&bad, Values::Codes { codes: &[0; 40], scale: 1.0, zero: 0.0 }),
            Err(NotFinite::Reference)
        );
        assert_eq!(difference(&[], Values::Floats(&[])), Ok(Difference::default()));
    }
}
