//! CPU features, the ordered ISA levels, and the tokens that prove a feature.
//!
//! A kernel for an instruction set takes a token ([`Avx2`], [`Avx512`], [`Neon`] ...). Only `detect()` makes one, so
//! whoever holds a token may enter code compiled for those instructions.
//!
//! The environment variable [`ISA_VARIABLE`] (`MNNQ_ISA`) names a level and *caps* what is used: it can lower the
//! level and never raises it. It is read once, at first use. A value that names no level of this architecture is an
//! [`IsaOverrideError`], which [`cpu`] and [`crate::KernelSet::get`] return instead of guessing.

use std::fmt;
use std::str::FromStr;
use std::sync::OnceLock;

/// Name of the environment variable that lowers the ISA level.
pub const ISA_VARIABLE: &str = "MNNQ_ISA";

/// An instruction-set level. Levels of one architecture are ordered: a cap at a level also forbids all later ones.
///
/// `AvxVnni` (256-bit VNNI of CPUs without AVX-512) sorts below `Avx512`, so that the cap `avxvnni` means "nothing
/// that uses 512-bit registers".
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum IsaLevel {
    /// What every CPU of the architecture has: SSE2 on x86-64, nothing beyond plain code elsewhere.
    Baseline,
    /// x86: AVX2, FMA and F16C.
    Avx2,
    /// x86: `Avx2` and the 256-bit AVX-VNNI dot products.
    AvxVnni,
    /// x86: AVX-512 F, BW, DQ and VL.
    Avx512,
    /// x86: `Avx512` and VNNI dot products.
    Avx512Vnni,
    /// x86: `Avx512` and bfloat16 dot products.
    Avx512Bf16,
    /// aarch64: Advanced SIMD.
    Neon,
    /// aarch64: half-precision arithmetic.
    Fp16,
    /// aarch64: `sdot`/`udot`.
    Dotprod,
    /// aarch64: int8 matrix multiply.
    I8mm,
}

impl IsaLevel {
    /// All levels that exist on this architecture, lowest first.
    pub const ALL: &'static [IsaLevel] = if cfg!(target_arch = "x86_64") {
        &[Self::Baseline, Self::Avx2, Self::AvxVnni, Self::Avx512, Self::Avx512Vnni, Self::Avx512Bf16]
    } else if cfg!(target_arch = "aarch64") {
        &[Self::Baseline, Self::Neon, Self::Fp16, Self::Dotprod, Self::I8mm]
    } else {
        &[Self::Baseline]
    };

    /// The name used in `MNNQ_ISA`, in kernel names and by `mnnq info`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Baseline => "baseline",
            Self::Avx2 => "avx2",
            Self::AvxVnni => "avxvnni",
            Self::Avx512 => "avx512",
            Self::Avx512Vnni => "avx512vnni",
            Self::Avx512Bf16 => "avx512bf16",
            Self::Neon => "neon",
            Self::Fp16 => "fp16",
            Self::Dotprod => "dotprod",
            Self::I8mm => "i8mm",
        }
    }
}

impl fmt::Display for IsaLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// `MNNQ_ISA` (or a session option) names no ISA level of this architecture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IsaOverrideError {
    /// The text that was given.
    pub value: String,
}

impl fmt::Display for IsaOverrideError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{ISA_VARIABLE}: unknown ISA level {:?}; this architecture has: ", self.value)?;
        for (index, level) in IsaLevel::ALL.iter().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            write!(f, "{comma}{level}")?;
        }
        Ok(())
    }
}

impl std::error::Error for IsaOverrideError {}

impl FromStr for IsaLevel {
    type Err = IsaOverrideError;

    /// Parses a level of *this* architecture, ignoring case and surrounding blanks.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wanted = text.trim();
        Self::ALL
            .iter()
            .copied()
            .find(|level| level.name().eq_ignore_ascii_case(wanted))
            .ok_or_else(|| IsaOverrideError { value: text.to_owned() })
    }
}

/// What the CPU has and what mnnq may use of it.
#[derive(Clone, Debug)]
pub struct Cpu {
    present: Vec<IsaLevel>,
    requested: Option<IsaLevel>,
}

impl Cpu {
    fn probe(requested: Option<IsaLevel>) -> Self {
        Self { present: present_levels(), requested }
    }

    /// Levels that the hardware has, lowest first, whatever `MNNQ_ISA` says.
    pub fn present(&self) -> &[IsaLevel] {
        &self.present
    }

    /// The level named by `MNNQ_ISA`, if any. It has no effect when the hardware does not reach it.
    pub fn requested(&self) -> Option<IsaLevel> {
        self.requested
    }

    /// Whether kernels of this level may run: the hardware has it and the override allows it.
    pub fn allows(&self, level: IsaLevel) -> bool {
        self.present.contains(&level) && self.requested.is_none_or(|cap| level <= cap)
    }

    /// The highest level in use.
    pub fn level(&self) -> IsaLevel {
        self.present.iter().copied().filter(|&level| self.allows(level)).max().unwrap_or(IsaLevel::Baseline)
    }
}

#[cfg(target_arch = "x86_64")]
fn present_levels() -> Vec<IsaLevel> {
    let avx2 = is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("f16c");
    let avx512 = avx2
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl");
    collect_levels(&[
        (IsaLevel::Avx2, avx2),
        (IsaLevel::AvxVnni, avx2 && is_x86_feature_detected!("avxvnni")),
        (IsaLevel::Avx512, avx512),
        (IsaLevel::Avx512Vnni, avx512 && is_x86_feature_detected!("avx512vnni")),
        (IsaLevel::Avx512Bf16, avx512 && is_x86_feature_detected!("avx512bf16")),
    ])
}

#[cfg(target_arch = "aarch64")]
fn present_levels() -> Vec<IsaLevel> {
    use std::arch::is_aarch64_feature_detected;
    let neon = is_aarch64_feature_detected!("neon");
    collect_levels(&[
        (IsaLevel::Neon, neon),
        (IsaLevel::Fp16, neon && is_aarch64_feature_detected!("fp16")),
        (IsaLevel::Dotprod, neon && is_aarch64_feature_detected!("dotprod")),
        (IsaLevel::I8mm, neon && is_aarch64_feature_detected!("i8mm")),
    ])
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn present_levels() -> Vec<IsaLevel> {
    collect_levels(&[])
}

fn collect_levels(found: &[(IsaLevel, bool)]) -> Vec<IsaLevel> {
    std::iter::once(IsaLevel::Baseline)
        .chain(found.iter().filter(|(_, has)| *has).map(|(level, _)| *level))
        .collect()
}

/// The CPU as seen through `MNNQ_ISA`, read once.
///
/// # Errors
/// [`IsaOverrideError`] when `MNNQ_ISA` is set to something that is no level of this architecture (an empty value
/// counts as unset). The error is the same at every call.
pub fn cpu() -> Result<&'static Cpu, &'static IsaOverrideError> {
    static CPU: OnceLock<Result<Cpu, IsaOverrideError>> = OnceLock::new();
    CPU.get_or_init(|| {
        let requested = match std::env::var_os(ISA_VARIABLE) {
            Some(value) if !value.is_empty() => Some(value.to_string_lossy().parse()?),
            _ => None,
        };
        Ok(Cpu::probe(requested))
    })
    .as_ref()
}

/// Whether `level` may be used; with an unreadable override only the baseline is.
fn allowed(level: IsaLevel) -> bool {
    cpu().is_ok_and(|cpu| cpu.allows(level))
}

/// Declares a token: a zero-sized value that proves a level.
macro_rules! token {
    ($(#[$doc:meta])* $name:ident, $level:ident $(, implies $weaker:ident by $method:ident)?) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub struct $name(());

        impl $name {
            /// The level that this token proves.
            pub const LEVEL: IsaLevel = IsaLevel::$level;

            /// The token, if the CPU has the features and `MNNQ_ISA` allows them.
            pub fn detect() -> Option<Self> {
                allowed(Self::LEVEL).then_some(Self(()))
            }

            /// The token, where a function compiled for these instructions already runs.
            ///
            /// # Safety
            /// The CPU must have the features.
            #[allow(dead_code, reason = "not every level has kernels that need it")]
            #[inline(always)]
            pub(crate) unsafe fn assume() -> Self {
                Self(())
            }

            $(
                /// The weaker token that this one implies.
                pub fn $method(self) -> $weaker {
                    $weaker(())
                }
            )?
        }
    };
}

#[cfg(target_arch = "x86_64")]
mod tokens {
    use super::{IsaLevel, allowed};
    token!(
        /// Proof that this CPU has AVX2, FMA and F16C.
        Avx2,
        Avx2
    );
    token!(
        /// Proof that this CPU has AVX-VNNI (256-bit), besides what [`Avx2`] proves.
        AvxVnni, AvxVnni, implies Avx2 by avx2
    );
    token!(
        /// Proof that this CPU has AVX-512 F, BW, DQ and VL, besides what [`Avx2`] proves.
        Avx512, Avx512, implies Avx2 by avx2
    );
    token!(
        /// Proof that this CPU has AVX-512 VNNI, besides what [`Avx512`] proves.
        Avx512Vnni, Avx512Vnni, implies Avx512 by avx512
    );
    token!(
        /// Proof that this CPU has AVX-512 BF16, besides what [`Avx512`] proves.
        Avx512Bf16, Avx512Bf16, implies Avx512 by avx512
    );
}

#[cfg(target_arch = "aarch64")]
mod tokens {
    use super::{IsaLevel, allowed};
    token!(
        /// Proof that this CPU has Advanced SIMD.
        Neon,
        Neon
    );
    token!(
        /// Proof that this CPU has half-precision arithmetic, besides what [`Neon`] proves.
        NeonFp16, Fp16, implies Neon by neon
    );
    token!(
        /// Proof that this CPU has `sdot` and `udot`, besides what [`Neon`] proves.
        NeonDotprod, Dotprod, implies Neon by neon
    );
    token!(
        /// Proof that this CPU has the int8 matrix multiply, besides what [`Neon`] proves.
        NeonI8mm, I8mm, implies Neon by neon
    );
}

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
pub use tokens::*;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn level_names_round_trip_and_are_ordered() {
        for pair in IsaLevel::ALL.windows(2) {
            assert!(pair[0] < pair[1]);
        }
        for &level in IsaLevel::ALL {
            assert_eq!(level.name().to_uppercase().parse(), Ok(level));
        }
    }

    #[test]
    fn an_unknown_level_is_an_error_that_lists_the_known_ones() {
        let error = "avx1024".parse::<IsaLevel>().unwrap_err();
        let text = error.to_string();
        assert!(text.contains("\"avx1024\"") && text.contains("baseline"), "{text}");
    }

    /// Emulated CPUs are named in the environment, lest a broken detection skip their kernels unseen.
    #[test]
    fn the_level_is_the_expected_one() {
        if let Ok(expected) = std::env::var("MNNQ_EXPECT_ISA") {
            assert_eq!(cpu().unwrap().level().name(), expected);
        }
    }

    #[test]
    fn the_override_lowers_and_never_raises() {
        let free = Cpu::probe(None);
        for &cap in IsaLevel::ALL {
            let capped = Cpu::probe(Some(cap));
            assert!(capped.level() <= cap && capped.level() <= free.level());
            for &level in IsaLevel::ALL {
                assert_eq!(capped.allows(level), free.allows(level) && level <= cap);
            }
        }
    }

    #[test]
    fn a_level_that_the_cpu_lacks_stays_off_even_if_requested() {
        let mut cpu = Cpu::probe(IsaLevel::ALL.last().copied());
        cpu.present = vec![IsaLevel::Baseline];
        assert_eq!(cpu.level(), IsaLevel::Baseline);
    }
}
