//! Compiles one portable loop once per instruction-set level and picks the copy at run time.
//!
//! The loops that quantize weights are plain Rust over slices; what they need is wider registers, not
//! intrinsics. A caller implements [`Loop`] with an `#[inline(always)]` body; [`dispatch`] inlines that body
//! into functions compiled for each [`Level`], where LLVM vectorizes it for that level. This module knows
//! no formula.
//!
//! # Same bits on every level
//! Rust never contracts `a * b + c` into a fused operation and never reorders floating-point sums, so a loop
//! that fixes its own reduction order (16 accumulators, for example) returns the same bits on every level.

use std::sync::OnceLock;

use crate::simd::VectorIsa;

/// A computation that [`dispatch`] compiles once per [`Level`].
///
/// Mark the implementation of [`run`](Self::run) and every function it calls in its hot loop
/// `#[inline(always)]`: a function that is not inlined is compiled for the baseline.
pub trait Loop {
    /// What the computation returns.
    type Output;

    /// Runs the computation.
    fn run(self) -> Self::Output;
}

/// An instruction-set level this CPU has: a value exists only if the CPU can run it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Level(Kind);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Baseline,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl Level {
    /// What every CPU of the target has (SSE2 on x86-64, NEON on aarch64).
    pub const BASELINE: Self = Self(Kind::Baseline);

    /// All levels of this CPU that `MNNQ_ISA` allows, lowest first; for tests and benchmarks.
    pub fn available() -> Vec<Self> {
        #[allow(unused_mut, reason = "only x86-64 has more than one level")]
        let mut levels = vec![Self::BASELINE];
        #[cfg(target_arch = "x86_64")]
        {
            levels.extend(crate::cpu::Avx2::detect().map(|_| Self(Kind::Avx2)));
            levels.extend(crate::cpu::Avx512::detect().map(|_| Self(Kind::Avx512)));
        }
        levels
    }

    /// The highest of them, detected once.
    pub fn best() -> Self {
        static BEST: OnceLock<Level> = OnceLock::new();
        *BEST.get_or_init(|| Self::available().last().copied().unwrap_or(Self::BASELINE))
    }

    /// Its name: `baseline`, `avx2` or `avx512`.
    pub fn name(self) -> &'static str {
        match self.0 {
            Kind::Baseline => "baseline",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 => "avx512",
        }
    }
}

impl From<VectorIsa> for Level {
    fn from(isa: VectorIsa) -> Self {
        Self(match isa {
            #[cfg(target_arch = "x86_64")]
            VectorIsa::Avx2(_) => Kind::Avx2,
            #[cfg(target_arch = "x86_64")]
            VectorIsa::Avx512(_) => Kind::Avx512,
            _ => Kind::Baseline,
        })
    }
}

/// Runs `work` compiled for `level`.
#[inline]
pub fn dispatch<L: Loop>(level: Level, work: L) -> L::Output {
    match level.0 {
        Kind::Baseline => work.run(),
        // SAFETY: a `Level` of this kind is made only from a token of the features that `run_avx2` enables.
        #[cfg(target_arch = "x86_64")]
        Kind::Avx2 => unsafe { run_avx2(work) },
        // SAFETY: a `Level` of this kind is made only from a token of the features that `run_avx512` enables.
        #[cfg(target_arch = "x86_64")]
        Kind::Avx512 => unsafe { run_avx512(work) },
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn run_avx2<L: Loop>(work: L) -> L::Output {
    work.run()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn run_avx512<L: Loop>(work: L) -> L::Output {
    work.run()
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Sum<'a>(&'a [f32]);

    impl Loop for Sum<'_> {
        type Output = f32;

        #[inline(always)]
        fn run(self) -> f32 {
            let (chunks, tail) = self.0.as_chunks::<16>();
            let mut lanes = [0.0_f32; 16];
            for chunk in chunks {
                for (lane, x) in lanes.iter_mut().zip(chunk) {
                    *lane += x * x * 1.1 + x;
                }
            }
            lanes.iter().chain(tail).sum()
        }
    }

    #[test]
    fn returns_the_same_bits_on_every_level() {
        let data: Vec<f32> = (0..1000).map(|i| (i as f32 * 0.37).sin() * 1e3).collect();
        let want = Sum(&data).run();
        for level in Level::available() {
            assert_eq!(dispatch(level, Sum(&data)).to_bits(), want.to_bits(), "{}", level.name());
        }
    }

    #[test]
    fn best_is_the_last_available_level() {
        assert_eq!(Level::available().last(), Some(&Level::best()));
    }
}
