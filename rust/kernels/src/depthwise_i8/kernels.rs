//! The kernels of this family: one entry per instruction set.

#[cfg(target_arch = "aarch64")]
use super::a64;
use super::micro::{InterleaveFn, LINE_UNIT, StripArgs, StripFn, interleave_plain, strip_plain};
#[cfg(target_arch = "x86_64")]
use super::x86;
use crate::choice::choice;
use crate::cpu::IsaLevel;
use crate::simd::VectorIsa;

/// An int8 depthwise kernel, with the proof that it may run.
#[derive(Clone, Copy)]
pub struct DepthwiseI8 {
    name: &'static str,
    level: IsaLevel,
    isa: VectorIsa,
    /// Channels of a strip: a multiple of `unit`.
    strip: usize,
    /// What interleaving adds to the codes.
    shift: i32,
    /// Channels that are interleaved at a time.
    unit: usize,
    interleave: InterleaveFn,
    /// For windows three wide and at most four high, by the quarters of a strip that are used.
    three: [StripFn; 4],
    /// For any windows.
    any: [StripFn; 4],
}

fn baseline() -> DepthwiseI8 {
    DepthwiseI8 {
        name: "depthwise_i8_baseline",
        level: IsaLevel::Baseline,
        isa: VectorIsa::Portable,
        strip: 16,
        shift: 0,
        unit: LINE_UNIT,
        interleave: interleave_plain,
        three: [strip_plain::<3>; 4],
        any: [strip_plain::<0>; 4],
    }
}

/// Kernels for one to four vectors of a strip of four.
#[cfg(target_arch = "x86_64")]
macro_rules! by_quarter {
    ($kernel:path, $taps:literal) => {{
        use $kernel as kernel;
        [kernel::<1, $taps>, kernel::<2, $taps>, kernel::<3, $taps>, kernel::<4, $taps>]
    }};
}

/// Kernels for one or two vectors of a strip of two.
#[cfg(target_arch = "x86_64")]
macro_rules! by_half {
    ($kernel:path, $taps:literal) => {{
        use $kernel as kernel;
        [kernel::<1, $taps>, kernel::<1, $taps>, kernel::<2, $taps>, kernel::<2, $taps>]
    }};
}

#[cfg(target_arch = "x86_64")]
fn of_architecture() -> Vec<DepthwiseI8> {
    use crate::cpu::{Avx2, Avx512, Avx512Vnni, AvxVnni};
    // SSE2 is part of x86-64, so this one needs no proof.
    let mut all = vec![DepthwiseI8 {
        name: "depthwise_i8_baseline_sse2",
        level: IsaLevel::Baseline,
        isa: VectorIsa::Portable,
        strip: 16,
        shift: 0,
        unit: LINE_UNIT,
        interleave: x86::interleave::<0>,
        three: by_quarter!(x86::wide_128, 3),
        any: by_quarter!(x86::wide_128, 0),
    }];
    all.extend(Avx2::detect().map(|token| DepthwiseI8 {
        name: "depthwise_i8_avx2",
        level: Avx2::LEVEL,
        isa: VectorIsa::Avx2(token),
        strip: 16,
        shift: 0,
        unit: LINE_UNIT,
        interleave: x86::interleave::<0>,
        three: by_half!(x86::wide_256, 3),
        any: by_half!(x86::wide_256, 0),
    }));
    all.extend(AvxVnni::detect().map(|token| DepthwiseI8 {
        name: "depthwise_i8_avxvnni",
        level: AvxVnni::LEVEL,
        isa: VectorIsa::Avx2(token.avx2()),
        strip: 16,
        shift: 128,
        unit: LINE_UNIT,
        interleave: x86::interleave::<-128>,
        three: by_half!(x86::vnni_256, 3),
        any: by_half!(x86::vnni_256, 0),
    }));
    all.extend(Avx512::detect().map(|token| DepthwiseI8 {
        name: "depthwise_i8_avx512",
        level: Avx512::LEVEL,
        isa: VectorIsa::Avx512(token),
        strip: 64,
        shift: 0,
        unit: 64,
        interleave: x86::interleave_64::<0>,
        three: by_quarter!(x86::wide_512, 3),
        any: by_quarter!(x86::wide_512, 0),
    }));
    all.extend(Avx512Vnni::detect().map(|token| DepthwiseI8 {
        name: "depthwise_i8_avx512vnni",
        level: Avx512Vnni::LEVEL,
        isa: VectorIsa::Avx512(token.avx512()),
        strip: 64,
        shift: 128,
        unit: 64,
        interleave: x86::interleave_64::<-128>,
        three: by_quarter!(x86::vnni_512, 3),
        any: by_quarter!(x86::vnni_512, 0),
    }));
    all
}

#[cfg(target_arch = "aarch64")]
fn of_architecture() -> Vec<DepthwiseI8> {
    use crate::cpu::{Neon, NeonDotprod};
    let mut all = Vec::new();
    all.extend(Neon::detect().map(|token| DepthwiseI8 {
        name: "depthwise_i8_neon",
        level: Neon::LEVEL,
        isa: VectorIsa::Neon(token),
        strip: 16,
        shift: 0,
        unit: LINE_UNIT,
        interleave: a64::interleave,
        three: [a64::wide::<3>; 4],
        any: [a64::wide::<0>; 4],
    }));
    all.extend(NeonDotprod::detect().map(|token| DepthwiseI8 {
        name: "depthwise_i8_dotprod",
        level: NeonDotprod::LEVEL,
        isa: VectorIsa::Neon(token.neon()),
        strip: 16,
        shift: 0,
        unit: LINE_UNIT,
        interleave: a64::interleave,
        three: [a64::sdot::<3>; 4],
        any: [a64::sdot::<0>; 4],
    }));
    all
}

choice!(
    DepthwiseI8,
    name: "For example `depthwise_i8_avx512vnni`.",
    isa: "The instruction set of the epilogues."
);

impl DepthwiseI8 {
    /// Channels of a strip.
    pub(super) fn strip(&self) -> usize {
        self.strip
    }

    pub(super) fn shift(&self) -> i32 {
        self.shift
    }

    /// Channels that are interleaved at a time.
    pub(super) fn unit(&self) -> usize {
        self.unit
    }

    /// See [`InterleaveFn`].
    ///
    /// # Safety
    /// As [`InterleaveFn`].
    #[inline]
    pub(super) unsafe fn interleave(
        &self,
        rows: [*const i8; 4],
        steps: [usize; 4],
        columns: usize,
        to: *mut u8,
        pitch: usize,
    ) {
        // SAFETY: the caller keeps the contract; the kernel exists, so its instructions do.
        unsafe { (self.interleave)(rows, steps, columns, to, pitch) };
    }

    /// The sums of a segment, of the first `channels` of the strip at least.
    ///
    /// # Safety
    /// Everything that the arguments describe must be readable, `out` writable for a strip per pixel.
    pub(super) unsafe fn sum_strip(&self, args: &StripArgs, channels: usize) {
        let quarter = (4 * channels).div_ceil(self.strip).clamp(1, 4) - 1;
        let kernels = if args.kernel_width == 3 && args.groups == 1 { &self.three } else { &self.any };
        let kernel = kernels[quarter];
        // SAFETY: the kernel exists, so its instructions do; the memory is the caller's promise.
        unsafe { kernel(args) }
    }
}
