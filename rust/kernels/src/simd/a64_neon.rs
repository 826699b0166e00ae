//! Advanced SIMD of aarch64: four lanes.

use std::arch::aarch64::*;

use super::{Simd, SimdOp};
use crate::cpu::Neon;

/// Runs the loop in a function compiled for these instructions.
#[inline]
pub(super) fn run<O: SimdOp>(token: Neon, op: O) -> O::Output {
    #[target_feature(enable = "neon")]
    fn compiled<O: SimdOp>(token: Neon, op: O) -> O::Output {
        op.run(token)
    }
    // SAFETY: the token exists, so the CPU has the feature that `compiled` enables.
    unsafe { compiled(token, op) }
}

impl Simd for Neon {
    const LANES: usize = 4;
    type F = float32x4_t;
    type I = int32x4_t;
    type M = uint32x4_t;

    #[inline(always)]
    fn splat(self, x: f32) -> Self::F {
        // SAFETY: the token proves the CPU feature that the intrinsic needs.
        unsafe { vdupq_n_f32(x) }
    }
    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> Self::F {
        // SAFETY: the token proves the CPU feature; the caller vouches for the memory.
        unsafe { vld1q_f32(from) }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32, x: Self::F) {
        // SAFETY: the token proves the CPU feature; the caller vouches for the memory.
        unsafe { vst1q_f32(to, x) }
    }
    #[inline(always)]
    unsafe fn load_partial(self, from: *const f32, count: usize) -> Self::F {
        let mut x = [0.0_f32; 4];
        // SAFETY: the token proves the CPU feature; the caller promises `count <= 4` readable values.
        unsafe {
            std::ptr::copy_nonoverlapping(from, x.as_mut_ptr(), count);
            vld1q_f32(x.as_ptr())
        }
    }
    #[inline(always)]
    unsafe fn store_partial(self, to: *mut f32, count: usize, x: Self::F) {
        let mut lanes = [0.0_f32; 4];
        // SAFETY: the token proves the CPU feature; the caller promises `count <= 4` writable values.
        unsafe {
            vst1q_f32(lanes.as_mut_ptr(), x);
            std::ptr::copy_nonoverlapping(lanes.as_ptr(), to, count);
        }
    }

    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: the token proves the CPU feature that the intrinsic needs.
        unsafe { vaddq_f32(a, b) }
    }
    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: the token proves the CPU feature that the intrinsic needs.
        unsafe { vsubq_f32(a, b) }
    }
    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: the token proves the CPU feature that the intrinsic needs.
        unsafe { vmulq_f32(a, b) }
    }
    #[inline(always)]
    fn div(self, a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: the token proves the CPU feature that the intrinsic needs.
        unsafe { vdivq_f32(a, b) }
    }
    #[inline(always)]
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        // SAFETY: the token proves the CPU feature that the intrinsic needs.
        unsafe { vfmaq_f32(c, a, b) }
    }
    // FMAX and FMIN return NaN when either operand is NaN.
    #[inline(always)]
    fn at_least(self, x: Self::F, bound: Self::F) -> Self::F {
        // SAFETY: the token proves the CPU feature that the intrinsic needs.
        unsafe { vmaxq_f32(x, bound) }
    }
    #[inline(always)]
    fn at_most(self, x: Self::F, bound: Self::F) -> Self::F {
        // SAFETY: the token proves the CPU feature that the intrinsic needs.
        unsafe { vminq_f32(x, bound) }
    }
    #[inline(always)]
    fn sqrt(self, a: Self::F) -> Self::F {
        // SAFETY: the token proves the CPU feature that the intrinsic needs.
        unsafe { vsqrtq_f32(a) }
    }
    #[inline(always)]
    fn abs(self, a: Self::F) -> Self::F {
        // SAFETY: the token proves the CPU feature that the intrinsic needs.
        unsafe { vabsq_f32(a) }
    }
    #[inline(always)]
    fn neg(self, a: Self::F) -> Self::F {
        // SAFETY: the token proves the CPU feature that the intrinsic needs.
        unsafe { vnegq_f32(a) }
    }
    #[inline(always)]
    fn copysign(self, a: Self::F, sign: Self::F) -> Self::F {
        // SAFETY: the token proves the CPU feature that the intrinsic needs.
        unsafe { vbslq_f32(vdupq_n_u32(0x8000_0000), sign, a) }
    }
    #[inline(always)]
    fn floor(self, a: Self::F) -> Self::F {
        // SAFETY: the token proves the CPU feature that the intrinsic needs.
        unsafe { vrndmq_f32(a) }
    }
    #[inline(always)]
    fn ceil(self, a: Self::F) -> Self::F {
        // SAFETY: the token proves the CPU feature that the intrinsic needs.
        unsafe { vrndpq_f32(a) }
    }
    #[inline(always)]
    fn round_even(self, a: Self::F) -> Self::F {
        // SAFETY: the token proves the CPU feature that the intrinsic needs.
        unsafe { vrndnq_f32(a) }
    }

    #[inline(always)]
    fn lt(self, a: Self::F, b: Self::F) -> Self::M {
        // SAFETY: the token proves the CPU feature that the intrinsic needs.
        unsafe { vcltq_f32(a, b) }
    }
    #[inline(always)]
    fn eq(self, a: Self::F, b: Self::F) -> Self::M {
        // SAFETY: the token proves the CPU feature that the intrinsic needs.
        unsafe { vceqq_f32(a, b) }
    }
    #[inline(always)]
    fn select(self, mask: Self::M, a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: the token proves the CPU feature that the intrinsic needs.
        unsafe { vbslq_f32(mask, a, b) }
    }

    #[inline(always)]
    fn splat_i(self, x: i32) -> Self::I {
        // SAFETY: the token proves the CPU feature that the intrinsic needs.
        unsafe { vdupq_n_s32(x) }
    }
    #[inline(always)]
    fn bits(self, a: Self::F) -> Self::I {
        // SAFETY: the token proves the CPU feature that the intrinsic needs.
        unsafe { vreinterpretq_s32_f32(a) }
    }
    #[inline(always)]
    fn as_float(self, a: Self::I) -> Self::F {
        // SAFETY: the token proves the CPU feature that the intrinsic needs.
        unsafe { vreinterpretq_f32_s32(a) }
    }
    #[inline(always)]
    fn add_i(self, a: Self::I, b: Self::I) -> Self::I {
        // SAFETY: the token proves the CPU feature that the intrinsic needs.
        unsafe { vaddq_s32(a, b) }
    }
    #[inline(always)]
    fn sub_i(self, a: Self::I, b: Self::I) -> Self::I {
        // SAFETY: the token proves the CPU feature that the intrinsic needs.
        unsafe { vsubq_s32(a, b) }
    }
    #[inline(always)]
    fn and_i(self, a: Self::I, b: Self::I) -> Self::I {
        // SAFETY: the token proves the CPU feature that the intrinsic needs.
        unsafe { vandq_s32(a, b) }
    }
    #[inline(always)]
    fn shl_i<const BITS: u32>(self, a: Self::I) -> Self::I {
        // SAFETY: the token proves the CPU feature that the intrinsic needs.
        unsafe { vshlq_s32(a, vdupq_n_s32(BITS as i32)) }
    }
    // A negative count shifts right.
    #[inline(always)]
    fn shr_i<const BITS: u32>(self, a: Self::I) -> Self::I {
        // SAFETY: the token proves the CPU feature that the intrinsic needs.
        unsafe { vshlq_s32(a, vdupq_n_s32(-(BITS as i32))) }
    }
    #[inline(always)]
    fn to_float(self, a: Self::I) -> Self::F {
        // SAFETY: the token proves the CPU feature that the intrinsic needs.
        unsafe { vcvtq_f32_s32(a) }
    }
    #[inline(always)]
    fn to_int(self, a: Self::F) -> Self::I {
        // SAFETY: the token proves the CPU feature that the intrinsic needs.
        unsafe { vcvtnq_s32_f32(a) }
    }

    #[inline(always)]
    fn trunc_int(self, a: Self::F) -> Self::I {
        // SAFETY: the token proves the CPU feature that the intrinsic needs.
        unsafe { vcvtq_s32_f32(a) }
    }
    #[inline(always)]
    unsafe fn load_i8(self, from: *const i8, count: usize) -> Self::I {
        let mut bytes = [0_i8; 8];
        // SAFETY: the token proves the CPU feature; the caller vouches for `count <= 4` bytes.
        unsafe {
            if count == 4 {
                from.cast::<[u8; 4]>().copy_to_nonoverlapping(bytes.as_mut_ptr().cast(), 1);
            } else {
                from.copy_to_nonoverlapping(bytes.as_mut_ptr(), count);
            }
            vmovl_s16(vget_low_s16(vmovl_s8(vld1_s8(bytes.as_ptr()))))
        }
    }
    #[inline(always)]
    unsafe fn store_i8(self, to: *mut i8, count: usize, x: Self::I) {
        let mut bytes = [0_i8; 8];
        // SAFETY: the token proves the CPU feature; the caller vouches for `count <= 4` bytes.
        unsafe {
            let half = vmovn_s32(x);
            vst1_s8(bytes.as_mut_ptr(), vmovn_s16(vcombine_s16(half, half)));
            if count == 4 {
                bytes.as_ptr().cast::<[u8; 4]>().copy_to_nonoverlapping(to.cast(), 1);
            } else {
                bytes.as_ptr().copy_to_nonoverlapping(to, count);
            }
        }
    }
}
