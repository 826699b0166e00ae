//! Helpers for tests and benchmarks of this crate and of `core` (cargo feature `testing`).
//!
//! [`Rng`] makes reproducible data, [`Guarded`] catches writes outside an output, [`SIZES`] holds awkward lengths, and
//! [`for_each_vector_isa!`](crate::for_each_vector_isa) runs a body once per available instruction set.

/// Lengths around the vector and tile sizes of all kernels: 0, 1, one less and one more than powers of two, and sizes
/// with several kinds of remainder.
pub const SIZES: &[usize] =
    &[0, 1, 2, 3, 4, 5, 7, 8, 9, 12, 15, 16, 17, 23, 31, 32, 33, 47, 63, 64, 65, 100, 129];

/// A small seeded generator (SplitMix64): equal seeds give equal data on every platform.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// A generator with this seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 random bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A value in `[lo, hi)`.
    pub fn float(&mut self, lo: f32, hi: f32) -> f32 {
        let unit = (self.next_u64() >> 40) as f32 / (1_u32 << 24) as f32;
        lo + (hi - lo) * unit
    }

    /// `count` values in `[lo, hi)`.
    pub fn floats(&mut self, count: usize, lo: f32, hi: f32) -> Vec<f32> {
        (0..count).map(|_| self.float(lo, hi)).collect()
    }

    /// An integer in `[lo, hi]`.
    pub fn integer(&mut self, lo: i64, hi: i64) -> i64 {
        let span = (hi - lo + 1) as u64;
        lo + (self.next_u64() % span) as i64
    }

    /// `count` signed bytes over the whole range, extremes included.
    pub fn bytes_i8(&mut self, count: usize) -> Vec<i8> {
        (0..count).map(|_| (self.next_u64() >> 56) as u8 as i8).collect()
    }

    /// `count` unsigned bytes over the whole range, extremes included.
    pub fn bytes_u8(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| (self.next_u64() >> 56) as u8).collect()
    }

    /// One of the values.
    pub fn choose<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.next_u64() as usize % from.len()]
    }
}

/// A buffer with guard elements on both sides, to catch writes past its ends.
///
/// The payload starts at an odd element, so it is never aligned to a vector.
#[derive(Clone, Debug)]
pub struct Guarded<T> {
    data: Vec<T>,
    guard: T,
    len: usize,
}

const GUARD_ELEMENTS: usize = 67;

impl<T: Copy + PartialEq + std::fmt::Debug> Guarded<T> {
    /// `len` elements of `fill` between guards of `guard`.
    pub fn new(len: usize, fill: T, guard: T) -> Self {
        let mut data = vec![guard; len + 2 * GUARD_ELEMENTS];
        data[GUARD_ELEMENTS..GUARD_ELEMENTS + len].fill(fill);
        Self { data, guard, len }
    }

    /// The payload.
    pub fn get(&self) -> &[T] {
        &self.data[GUARD_ELEMENTS..GUARD_ELEMENTS + self.len]
    }

    /// The payload, to be written.
    pub fn get_mut(&mut self) -> &mut [T] {
        &mut self.data[GUARD_ELEMENTS..GUARD_ELEMENTS + self.len]
    }

    /// Checks the guards.
    ///
    /// # Panics
    /// If a guard element was overwritten.
    #[track_caller]
    pub fn check(&self) {
        let after = GUARD_ELEMENTS + self.len;
        for (index, value) in self.data.iter().enumerate() {
            if index < GUARD_ELEMENTS || index >= after {
                let offset = index as isize - GUARD_ELEMENTS as isize;
                assert!(*value == self.guard, "element {offset} of a buffer of {} was overwritten", self.len);
            }
        }
    }
}

/// Checks two results element by element: `|got - want| <= absolute + relative * |want|`, NaN equal to NaN and equal
/// infinities allowed.
///
/// # Panics
/// At the first element that is off, with its index and both values.
#[track_caller]
pub fn assert_close(got: &[f32], want: &[f32], absolute: f32, relative: f32, what: &str) {
    assert_eq!(got.len(), want.len(), "{what}: lengths differ");
    for (index, (&g, &w)) in got.iter().zip(want).enumerate() {
        let close = g == w || (g.is_nan() && w.is_nan()) || (g - w).abs() <= absolute + relative * w.abs();
        assert!(close, "{what}: element {index} is {g}, expected {w}");
    }
}

/// Distance of `got` from the exact value in units in the last place of the `f32` next to it (at least that of the
/// smallest normal number).
pub fn ulps(got: f32, exact: f64) -> f64 {
    let magnitude = exact.abs().max(f64::from(f32::MIN_POSITIVE));
    let ulp = 2f64.powi(magnitude.log2().floor() as i32 - 23);
    (f64::from(got) - exact).abs() / ulp
}

/// Runs the body once per instruction set that may run here, with the name bound to the
/// [`VectorIsa`](crate::simd::VectorIsa).
///
/// This is the parity macro of the vector kernels: the body compares with a plain reference.
#[macro_export]
macro_rules! for_each_vector_isa {
    (|$isa:ident| $body:block) => {
        for $isa in $crate::simd::VectorIsa::all_available() {
            $body
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guards_notice_a_write_past_the_end() {
        let mut buffer = Guarded::new(3, 0_u8, 0xa5);
        buffer.get_mut().fill(1);
        buffer.check();
        buffer.data[GUARD_ELEMENTS + 3] = 0;
        assert!(std::panic::catch_unwind(|| buffer.check()).is_err());
    }

    #[test]
    fn ulps_counts_neighbours() {
        assert_eq!(ulps(1.0 + f32::EPSILON, 1.0), 1.0);
        assert_eq!(ulps(-2.0, -2.0), 0.0);
    }
}
