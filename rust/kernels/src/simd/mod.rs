//! Vector loops written once: the [`Simd`] trait, its implementations, and the dispatch over them.
//!
//! A loop is a value that implements [`SimdOp`]; [`VectorIsa::run`] runs it inside a function compiled for the chosen
//! instruction set. Everything in between has to be `#[inline(always)]`: code that is not inlined into that function
//! is compiled for the baseline and is slow (never wrong). For that reason per-lane functions are values with a
//! generic method rather than closures.

mod portable;

#[cfg(target_arch = "x86_64")]
mod x86_avx2;
#[cfg(target_arch = "x86_64")]
mod x86_avx512;

#[cfg(target_arch = "aarch64")]
mod a64_neon;

use crate::cpu::IsaLevel;
#[cfg(target_arch = "aarch64")]
use crate::cpu::Neon;
#[cfg(target_arch = "x86_64")]
use crate::cpu::{Avx2, Avx512};

pub use portable::Portable;

/// The largest [`Simd::LANES`] of any implementation; scratch lines of this many elements hold any vector.
pub const MAX_LANES: usize = 16;

/// Vectors of `f32` (and `i32` of the same width) on one instruction set.
///
/// A value of the implementing type proves that the instructions are available. Lane-wise arithmetic is IEEE binary32
/// with rounding to nearest even; [`fma`](Self::fma) rounds once where the instruction set has it and twice on
/// [`Portable`].
pub trait Simd: Copy + Send + Sync + 'static {
    /// Lanes of a vector: 4, 8 or 16.
    const LANES: usize;
    /// A vector of `LANES` `f32`.
    type F: Copy;
    /// A vector of `LANES` `i32`.
    type I: Copy;
    /// One truth value per lane.
    type M: Copy;

    /// All lanes `x`.
    fn splat(self, x: f32) -> Self::F;
    /// `LANES` values from `from`.
    ///
    /// # Safety
    /// `from` must be valid for reading `LANES` values; no alignment is needed.
    unsafe fn load(self, from: *const f32) -> Self::F;
    /// `LANES` values to `to`.
    ///
    /// # Safety
    /// `to` must be valid for writing `LANES` values; no alignment is needed.
    unsafe fn store(self, to: *mut f32, x: Self::F);
    /// The first `count < LANES` values from `from`, 0 in the other lanes.
    ///
    /// # Safety
    /// `count <= LANES` and `from` must be valid for reading `count` values.
    unsafe fn load_partial(self, from: *const f32, count: usize) -> Self::F;
    /// The first `count` lanes to `to`.
    ///
    /// # Safety
    /// `count <= LANES` and `to` must be valid for writing `count` values.
    unsafe fn store_partial(self, to: *mut f32, count: usize, x: Self::F);

    /// `a + b`.
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a - b`.
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a * b`.
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a / b`.
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c`.
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// The larger of a bound and a value; a NaN in `x` stays a NaN. `bound` must not be NaN.
    fn at_least(self, x: Self::F, bound: Self::F) -> Self::F;
    /// The smaller of a bound and a value; a NaN in `x` stays a NaN. `bound` must not be NaN.
    fn at_most(self, x: Self::F, bound: Self::F) -> Self::F;
    /// Square root, correctly rounded.
    fn sqrt(self, a: Self::F) -> Self::F;
    /// Absolute value.
    fn abs(self, a: Self::F) -> Self::F;
    /// Sign change.
    fn neg(self, a: Self::F) -> Self::F;
    /// The magnitude of `a` with the sign bit of `sign`.
    fn copysign(self, a: Self::F, sign: Self::F) -> Self::F;
    /// Largest integer not above.
    fn floor(self, a: Self::F) -> Self::F;
    /// Smallest integer not below.
    fn ceil(self, a: Self::F) -> Self::F;
    /// Nearest integer, halves to even.
    fn round_even(self, a: Self::F) -> Self::F;

    /// `a < b`, false where unordered.
    fn lt(self, a: Self::F, b: Self::F) -> Self::M;
    /// `a == b`, false where unordered.
    fn eq(self, a: Self::F, b: Self::F) -> Self::M;
    /// `a` where the mask is set, else `b`.
    fn select(self, mask: Self::M, a: Self::F, b: Self::F) -> Self::F;

    /// All lanes `x`.
    fn splat_i(self, x: i32) -> Self::I;
    /// Reinterprets the bits.
    fn bits(self, a: Self::F) -> Self::I;
    /// Reinterprets the bits.
    fn as_float(self, a: Self::I) -> Self::F;
    /// Wrapping sum.
    fn add_i(self, a: Self::I, b: Self::I) -> Self::I;
    /// Wrapping difference.
    fn sub_i(self, a: Self::I, b: Self::I) -> Self::I;
    /// Bitwise and.
    fn and_i(self, a: Self::I, b: Self::I) -> Self::I;
    /// Left shift by the constant `BITS`.
    fn shl_i<const BITS: u32>(self, a: Self::I) -> Self::I;
    /// Arithmetic right shift by the constant `BITS`.
    fn shr_i<const BITS: u32>(self, a: Self::I) -> Self::I;
    /// Integers to floats, exact up to 2^24.
    fn to_float(self, a: Self::I) -> Self::F;
    /// Nearest integers (halves to even) of floats within the range of `i32`.
    fn to_int(self, a: Self::F) -> Self::I;
    /// The integer part of floats within the range of `i32` (towards zero).
    fn trunc_int(self, a: Self::F) -> Self::I;
    /// `x * 2^n` for whole `n` in `-150..=128` and `x` in `[0.5, 2]`, with gradual underflow.
    #[inline(always)]
    fn scale_exponent(self, x: Self::F, n: Self::F) -> Self::F {
        // 2^n in two factors, because it need not be a normal number.
        let n = self.to_int(n);
        let half = self.shr_i::<1>(n);
        let bias = self.splat_i(127);
        let first = self.as_float(self.shl_i::<23>(self.add_i(half, bias)));
        let second = self.as_float(self.shl_i::<23>(self.add_i(self.sub_i(n, half), bias)));
        self.mul(self.mul(x, first), second)
    }
    /// The first `count` signed bytes from `from`, widened; 0 in the other lanes.
    ///
    /// # Safety
    /// `count <= LANES` and `from` must be valid for reading `count` bytes.
    unsafe fn load_i8(self, from: *const i8, count: usize) -> Self::I;
    /// The lowest byte of each of the first `count` lanes to `to`.
    ///
    /// # Safety
    /// `count <= LANES` and `to` must be valid for writing `count` bytes.
    unsafe fn store_i8(self, to: *mut i8, count: usize, x: Self::I);

    /// The nearest integer, halves away from zero, of values of magnitude below 2^22.
    ///
    /// `trunc(x + copysign(0.5 - 2^-25, x))`: with 0.5 itself the largest value below 0.5 would round up.
    #[inline(always)]
    fn round_away(self, x: Self::F) -> Self::I {
        self.trunc_int(self.add(x, self.copysign(self.splat(0.5_f32.next_down()), x)))
    }

    /// Sum of the lanes in a fixed order (pairwise by halves).
    #[inline(always)]
    fn sum_lanes(self, a: Self::F) -> f32 {
        let mut lanes = self.lanes(a);
        let mut width = Self::LANES;
        while width > 1 {
            width /= 2;
            for i in 0..width {
                lanes[i] += lanes[i + width];
            }
        }
        lanes[0]
    }

    /// The lanes as an array, of which the first `LANES` values count.
    #[inline(always)]
    fn lanes(self, a: Self::F) -> [f32; MAX_LANES] {
        let mut lanes = [0.0; MAX_LANES];
        // SAFETY: the array holds MAX_LANES >= LANES values.
        unsafe { self.store(lanes.as_mut_ptr(), a) };
        lanes
    }

    /// `LANES` values from the start of a slice.
    ///
    /// # Panics
    /// If the slice is shorter than a vector.
    #[inline(always)]
    fn load_slice(self, from: &[f32]) -> Self::F {
        assert!(from.len() >= Self::LANES);
        // SAFETY: the slice holds LANES values, as just checked.
        unsafe { self.load(from.as_ptr()) }
    }

    /// `LANES` values to the start of a slice.
    ///
    /// # Panics
    /// If the slice is shorter than a vector.
    #[inline(always)]
    fn store_slice(self, to: &mut [f32], x: Self::F) {
        assert!(to.len() >= Self::LANES);
        // SAFETY: the slice holds LANES values, as just checked.
        unsafe { self.store(to.as_mut_ptr(), x) }
    }

    /// Up to `LANES` values from a slice, 0 in the lanes beyond its end.
    #[inline(always)]
    fn load_tail(self, from: &[f32]) -> Self::F {
        // A whole vector is worth the branch: masked accesses are slow on some CPUs.
        if from.len() >= Self::LANES {
            return self.load_slice(from);
        }
        // SAFETY: the count is the length of the slice, below LANES.
        unsafe { self.load_partial(from.as_ptr(), from.len()) }
    }

    /// As many lanes as the slice has room for.
    #[inline(always)]
    fn store_tail(self, to: &mut [f32], x: Self::F) {
        if to.len() >= Self::LANES {
            return self.store_slice(to, x);
        }
        // SAFETY: the count is the length of the slice, below LANES.
        unsafe { self.store_partial(to.as_mut_ptr(), to.len(), x) }
    }
}

/// A loop that is generic over the instruction set; run it with [`VectorIsa::run`].
pub trait SimdOp {
    /// What the loop returns.
    type Output;
    /// The loop. Implementations must be `#[inline(always)]`, see the module documentation.
    fn run<S: Simd>(self, simd: S) -> Self::Output;
}

/// The instruction set of a vector loop, with the proof that it may run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum VectorIsa {
    /// Plain code over four lanes, for every CPU.
    Portable,
    /// 256-bit vectors with fused multiply-add.
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
    /// 512-bit vectors.
    #[cfg(target_arch = "x86_64")]
    Avx512(Avx512),
    /// 128-bit vectors of aarch64.
    #[cfg(target_arch = "aarch64")]
    Neon(Neon),
}

impl VectorIsa {
    /// Every instruction set that may run here, the best last.
    pub fn all_available() -> Vec<Self> {
        #[allow(unused_mut, reason = "other architectures have the portable loops only")]
        let mut all = vec![Self::Portable];
        #[cfg(target_arch = "x86_64")]
        {
            all.extend(Avx2::detect().map(Self::Avx2));
            all.extend(Avx512::detect().map(Self::Avx512));
        }
        #[cfg(target_arch = "aarch64")]
        all.extend(Neon::detect().map(Self::Neon));
        all
    }

    /// The level that this set of instructions belongs to.
    pub fn level(self) -> IsaLevel {
        match self {
            Self::Portable => IsaLevel::Baseline,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(_) => IsaLevel::Avx2,
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(_) => IsaLevel::Avx512,
            #[cfg(target_arch = "aarch64")]
            Self::Neon(_) => IsaLevel::Neon,
        }
    }

    /// Lanes of a vector.
    pub fn lanes(self) -> usize {
        match self {
            Self::Portable => Portable::LANES,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(_) => Avx2::LANES,
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(_) => Avx512::LANES,
            #[cfg(target_arch = "aarch64")]
            Self::Neon(_) => Neon::LANES,
        }
    }

    /// Runs the loop in code compiled for this instruction set.
    #[inline]
    pub fn run<O: SimdOp>(self, op: O) -> O::Output {
        match self {
            Self::Portable => op.run(Portable),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(token) => x86_avx2::run(token, op),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(token) => x86_avx512::run(token, op),
            #[cfg(target_arch = "aarch64")]
            Self::Neon(token) => a64_neon::run(token, op),
        }
    }
}

#[cfg(test)]
mod tests;
