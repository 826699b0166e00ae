//! The table of chosen kernels: one field per kernel family, filled once.

use std::sync::OnceLock;

use crate::cpu::{self, IsaLevel, IsaOverrideError};
use crate::depthwise_i8::DepthwiseI8;
use crate::gemm_f32::GemmF32;
use crate::gemm_half::GemmHalf;
use crate::gemm_i8::GemmI8;
use crate::gemm_w4::GemmW4;
use crate::simd::VectorIsa;
use crate::winograd_i8::WinogradI8;

/// The kernel chosen for each family.
///
/// A family is added by a field here, its choice in [`KernelSet::choose`] and its line in [`KernelSet::list`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct KernelSet {
    /// Float matrix product; also used by convolution.
    pub gemm_f32: GemmF32,
    /// Products in 16-bit floats, convolutions included.
    pub gemm_half: GemmHalf,
    /// Int8 matrix product; also used by convolution.
    pub gemm_i8: GemmI8,
    /// Matrix product of block-wise weights of 2 to 8 bits and int8 activations.
    pub gemm_w4: GemmW4,
    /// Depthwise convolution of float activations.
    pub depthwise_f32: VectorIsa,
    /// Depthwise convolution of int8 activations.
    pub depthwise_i8: DepthwiseI8,
    /// Convolution of int8 activations by Winograd's algorithm.
    pub winograd_i8: WinogradI8,
    /// Unary and binary element-wise functions.
    pub elementwise_f32: VectorIsa,
    /// Max and average pooling.
    pub pool_f32: VectorIsa,
    /// Reductions, softmax and normalizations.
    pub reduce_f32: VectorIsa,
}

/// One line of [`KernelSet::list`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelChoice {
    /// The kernel family, for example `gemm_f32`.
    pub family: &'static str,
    /// The chosen kernel, for example `gemm_f32_avx512_14x32`.
    pub kernel: String,
}

impl KernelSet {
    /// The best kernels that this CPU and `MNNQ_ISA` allow, chosen at the first call.
    ///
    /// # Errors
    /// [`IsaOverrideError`] when `MNNQ_ISA` is set to something unknown.
    pub fn get() -> Result<&'static Self, &'static IsaOverrideError> {
        static CHOSEN: OnceLock<KernelSet> = OnceLock::new();
        let level = cpu::cpu()?.level();
        Ok(CHOSEN.get_or_init(|| Self::at_most(level)))
    }

    /// The best kernels among those of levels up to `cap`. It never goes beyond what the CPU and `MNNQ_ISA` allow.
    pub fn at_most(cap: IsaLevel) -> Self {
        Self::choose(cap)
    }

    /// One set per instruction-set level that may run here, the lowest first. For tests.
    pub fn all_available() -> Vec<Self> {
        let allowed =
            |level: IsaLevel| level == IsaLevel::Baseline || cpu::cpu().is_ok_and(|cpu| cpu.allows(level));
        IsaLevel::ALL.iter().filter(|&&level| allowed(level)).map(|&level| Self::at_most(level)).collect()
    }

    fn choose(cap: IsaLevel) -> Self {
        let vector = VectorIsa::all_available()
            .into_iter()
            .rfind(|isa| isa.level() <= cap)
            .unwrap_or(VectorIsa::Portable);
        Self {
            gemm_f32: GemmF32::new(vector),
            gemm_half: GemmHalf::at_most(cap),
            gemm_i8: GemmI8::at_most(cap),
            gemm_w4: GemmW4::at_most(cap),
            depthwise_f32: vector,
            depthwise_i8: DepthwiseI8::at_most(cap),
            winograd_i8: WinogradI8::at_most(cap),
            elementwise_f32: vector,
            pool_f32: vector,
            reduce_f32: vector,
        }
    }

    /// The chosen kernel of every family, for `mnnq info`.
    pub fn list(&self) -> Vec<KernelChoice> {
        let vector = |family: &'static str, isa: VectorIsa| KernelChoice {
            family,
            kernel: format!("{family}_{}", isa.level()),
        };
        vec![
            KernelChoice { family: "gemm_f32", kernel: self.gemm_f32.name().to_owned() },
            KernelChoice { family: "gemm_half", kernel: self.gemm_half.name().to_owned() },
            KernelChoice { family: "gemm_i8", kernel: self.gemm_i8.name().to_owned() },
            KernelChoice { family: "gemm_w4", kernel: self.gemm_w4.name().to_owned() },
            vector("depthwise_f32", self.depthwise_f32),
            KernelChoice { family: "depthwise_i8", kernel: self.depthwise_i8.name().to_owned() },
            KernelChoice { family: "winograd_i8", kernel: self.winograd_i8.name().to_owned() },
            vector("elementwise_f32", self.elementwise_f32),
            vector("pool_f32", self.pool_f32),
            vector("reduce_f32", self.reduce_f32),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_set_is_listable_and_capped() {
        let baseline = KernelSet::at_most(IsaLevel::Baseline);
        for choice in baseline.list() {
            assert!(choice.kernel.starts_with(choice.family), "{choice:?}");
            assert!(choice.kernel.contains("baseline"), "{choice:?}");
        }
        let sets = KernelSet::all_available();
        let best = |choices: Vec<KernelChoice>| choices.into_iter().map(|c| c.kernel).collect::<Vec<_>>();
        if let (Some(last), Ok(chosen)) = (sets.last(), KernelSet::get()) {
            assert_eq!(best(last.list()), best(chosen.list()));
        }
        assert!(!sets.is_empty());
    }
}
