//! aarch64: widening multiplications, and `sdot` where the CPU has it (one instruction of inline assembly, because its
//! intrinsic is not stable).

use std::arch::aarch64::*;
use std::arch::asm;

use super::micro::{BlockDot, I, TileArgs, tile};
use crate::cpu::Neon;

/// What does not depend on the dot product.
macro_rules! common {
    () => {
        type S = Neon;
        type B = int8x16_t;
        type A = int8x8_t;
        const WIDE_ZERO: i32 = 0;

        #[inline(always)]
        fn simd(self) -> Neon {
            self.0
        }
        #[inline(always)]
        unsafe fn load(self, from: *const u8) -> Self::B {
            // SAFETY: the token proves the CPU feature; the caller vouches for the memory.
            unsafe { vld1q_s8(from.cast()) }
        }
        #[inline(always)]
        fn low(self, b: Self::B) -> Self::B {
            // SAFETY: the token proves the CPU feature that the intrinsic needs.
            unsafe { vandq_s8(b, vdupq_n_s8(15)) }
        }
        #[inline(always)]
        fn high(self, b: Self::B) -> Self::B {
            // SAFETY: the token proves the CPU feature that the intrinsic needs.
            unsafe { vreinterpretq_s8_u8(vshrq_n_u8::<4>(vreinterpretq_u8_s8(b))) }
        }
        #[inline(always)]
        unsafe fn load_a(self, from: *const i8) -> Self::A {
            // SAFETY: the token proves the CPU feature; the caller vouches for the memory.
            unsafe { vld1_s8(from) }
        }
        #[inline(always)]
        unsafe fn dot_bytes<const HALF: usize>(self, acc: I<Self>, a: Self::A, b: Self::B) -> I<Self> {
            // SAFETY: the same contract; both operands are signed bytes.
            unsafe { self.dot_nibbles::<HALF>(acc, a, b) }
        }
    };
}

#[derive(Clone, Copy)]
struct Wide(Neon);

impl BlockDot for Wide {
    common!();

    #[inline(always)]
    unsafe fn dot_nibbles<const HALF: usize>(self, acc: I<Self>, a: Self::A, b: Self::B) -> I<Self> {
        // SAFETY: the token proves the CPU feature that the intrinsics need.
        unsafe {
            let quads = vreinterpret_s32_s8(a);
            let four = if HALF == 0 { vdup_lane_s32::<0>(quads) } else { vdup_lane_s32::<1>(quads) };
            let four = vreinterpret_s8_s32(four);
            // Pairs of products are widened to 32 bits, so that no code is too large.
            let first = vpaddlq_s16(vmull_s8(vget_low_s8(b), four));
            let second = vpaddlq_s16(vmull_s8(vget_high_s8(b), four));
            vaddq_s32(acc, vpaddq_s32(first, second))
        }
    }
}

/// Made only by microkernels that are compiled for `sdot`.
#[derive(Clone, Copy)]
struct Sdot(Neon);

impl BlockDot for Sdot {
    common!();

    #[inline(always)]
    unsafe fn dot_nibbles<const HALF: usize>(self, acc: I<Self>, a: Self::A, b: Self::B) -> I<Self> {
        let mut sum = acc;
        // SAFETY: one instruction on registers, of a CPU that has it; the microkernel enables `dotprod`.
        unsafe {
            // The upper half is not used; a load of eight bytes leaves it 0.
            let a = vcombine_s8(a, vdup_n_s8(0));
            asm!("sdot {s:v}.4s, {b:v}.16b, {a:v}.4b[{l}]", s = inout(vreg) sum, a = in(vreg) a, b = in(vreg) b,
                 l = const HALF, options(pure, nomem, nostack, preserves_flags));
        }
        sum
    }
}

pub(super) const WIDE_ZERO: i32 = 0;

/// # Safety
/// As [`TileFn`](super::micro::TileFn).
#[target_feature(enable = "neon")]
pub(super) unsafe fn tile_wide<const NIBBLES: bool, const MR: usize, const NT: usize>(args: &TileArgs) {
    // SAFETY: the caller keeps the contract of `TileFn`; a kernel exists only with its token.
    unsafe { tile::<Wide, NIBBLES, MR, NT>(Wide(Neon::assume()), args) }
}

/// # Safety
/// As [`TileFn`](super::micro::TileFn); the CPU has `sdot`.
#[target_feature(enable = "neon,dotprod")]
pub(super) unsafe fn tile_sdot<const NIBBLES: bool, const MR: usize, const NT: usize>(args: &TileArgs) {
    // SAFETY: the caller keeps the contract of `TileFn`; a kernel exists only with its token.
    unsafe { tile::<Sdot, NIBBLES, MR, NT>(Sdot(Neon::assume()), args) }
}
