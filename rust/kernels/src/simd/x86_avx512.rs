//! AVX-512: sixteen lanes.

use std::arch::x86_64::*;

use super::{Simd, SimdOp};
use crate::cpu::Avx512;

/// Runs the loop in a function compiled for these instructions.
#[inline]
pub(super) fn run<O: SimdOp>(token: Avx512, op: O) -> O::Output {
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
    fn compiled<O: SimdOp>(token: Avx512, op: O) -> O::Output {
        op.run(token)
    }
    // SAFETY: the token exists, so the CPU has every feature that `compiled` enables.
    unsafe { compiled(token, op) }
}

impl Simd for Avx512 {
    const LANES: usize = 16;
    type F = __m512;
    type I = __m512i;
    type M = __mmask16;

    #[inline(always)]
    fn splat(self, x: f32) -> Self::F {
        // SAFETY: the token proves the CPU feature that the intrinsic needs.
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> Self::F {
        // SAFETY: the token proves the CPU feature; the caller vouches for the memory.
        unsafe { _mm512_loadu_ps(from) }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32, x: Self::F) {
        // SAFETY: the token proves the CPU feature; the caller vouches for the memory.
        unsafe { _mm512_storeu_ps(to, x) }
    }
    #[inline(always)]
    unsafe fn load_partial(self, from: *const f32, count: usize) -> Self::F {
        // SAFETY: the token proves the CPU feature; the caller vouches for the memory.
        // Lanes that are masked off are not accessed.
        unsafe { _mm512_maskz_loadu_ps(((1_u32 << count) - 1) as u16, from) }
    }
    #[inline(always)]
    unsafe fn store_partial(self, to: *mut f32, count: usize, x: Self::F) {
        // SAFETY: the token proves the CPU feature; the caller vouches for the memory.
        // Lanes that are masked off are not accessed.
        unsafe { _mm512_mask_storeu_ps(to, ((1_u32 << count) - 1) as u16, x) }
    }

    #[inline(always)]
    fn scale_exponent(self, x: Self::F, n: Self::F) -> Self::F {
        // SAFETY: the token proves the CPU feature that the intrinsic needs.
        unsafe { _mm512_scalef_ps(x, n) }
    }
    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: the token proves the CPU feature that the intrinsic needs.
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: the token proves the CPU feature that the intrinsic needs.
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: the token proves the CPU feature that the intrinsic needs.
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    fn div(self, a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: the token proves the CPU feature that the intrinsic needs.
        unsafe { _mm512_div_ps(a, b) }
    }
    #[inline(always)]
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        // SAFETY: the token proves the CPU feature that the intrinsic needs.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    // The instruction returns its second operand when either is NaN.
    #[inline(always)]
    fn at_least(self, x: Self::F, bound: Self::F) -> Self::F {
        // SAFETY: the token proves the CPU feature that the intrinsic needs.
        unsafe { _mm512_max_ps(bound, x) }
    }
    #[inline(always)]
    fn at_most(self, x: Self::F, bound: Self::F) -> Self::F {
        // SAFETY: the token proves the CPU feature that the intrinsic needs.
        unsafe { _mm512_min_ps(bound, x) }
    }
    #[inline(always)]
    fn sqrt(self, a: Self::F) -> Self::F {
        // SAFETY: the token proves the CPU feature that the intrinsic needs.
        unsafe { _mm512_sqrt_ps(a) }
    }
    #[inline(always)]
    fn abs(self, a: Self::F) -> Self::F {
        // SAFETY: the token proves the CPU feature that the intrinsic needs.
        unsafe { _mm512_abs_ps(a) }
    }
    #[inline(always)]
    fn neg(self, a: Self::F) -> Self::F {
        // SAFETY: the token proves the CPU feature that the intrinsic needs.
        unsafe { _mm512_xor_ps(_mm512_set1_ps(-0.0), a) }
    }
    #[inline(always)]
    fn copysign(self, a: Self::F, sign: Self::F) -> Self::F {
        // SAFETY: the token proves the CPU feature that the intrinsic needs.
        unsafe {
            let bit = _mm512_set1_ps(-0.0);
            _mm512_or_ps(_mm512_andnot_ps(bit, a), _mm512_and_ps(bit, sign))
        }
    }
    #[inline(always)]
    fn floor(self, a: Self::F) -> Self::F {
        // SAFETY: the token proves the CPU feature that the intrinsic needs.
        unsafe { _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC }>(a) }
    }
    #[inline(always)]
    fn ceil(self, a: Self::F) -> Self::F {
        // SAFETY: the token proves the CPU feature that the intrinsic needs.
        unsafe { _mm512_roundscale_ps::<{ _MM_FROUND_TO_POS_INF | _MM_FROUND_NO_EXC }>(a) }
    }
    #[inline(always)]
    fn round_even(self, a: Self::F) -> Self::F {
        // SAFETY: the token proves the CPU feature that the intrinsic needs.
        unsafe { _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a) }
    }

    #[inline(always)]
    fn lt(self, a: Self::F, b: Self::F) -> Self::M {
        // SAFETY: the token proves the CPU feature that the intrinsic needs.
        unsafe { _mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b) }
    }
    #[inline(always)]
    fn eq(self, a: Self::F, b: Self::F) -> Self::M {
        // SAFETY: the token proves the CPU feature that the intrinsic needs.
        unsafe { _mm512_cmp_ps_mask::<_CMP_EQ_OQ>(a, b) }
    }
    #[inline(always)]
    fn select(self, mask: Self::M, a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: the token proves the CPU feature that the intrinsic needs.
        unsafe { _mm512_mask_blend_ps(mask, b, a) }
    }

    #[inline(always)]
    fn splat_i(self, x: i32) -> Self::I {
        // SAFETY: the token proves the CPU feature that the intrinsic needs.
        unsafe { _mm512_set1_epi32(x) }
    }
    #[inline(always)]
    fn bits(self, a: Self::F) -> Self::I {
        // SAFETY: the token proves the CPU feature that the intrinsic needs.
        unsafe { _mm512_castps_si512(a) }
    }
    #[inline(always)]
    fn as_float(self, a: Self::I) -> Self::F {
        // SAFETY: the token proves the CPU feature that the intrinsic needs.
        unsafe { _mm512_castsi512_ps(a) }
    }
    #[inline(always)]
    fn add_i(self, a: Self::I, b: Self::I) -> Self::I {
        // SAFETY: the token proves the CPU feature that the intrinsic needs.
        unsafe { _mm512_add_epi32(a, b) }
    }
    #[inline(always)]
    fn sub_i(self, a: Self::I, b: Self::I) -> Self::I {
        // SAFETY: the token proves the CPU feature that the intrinsic needs.
        unsafe { _mm512_sub_epi32(a, b) }
    }
    #[inline(always)]
    fn and_i(self, a: Self::I, b: Self::I) -> Self::I {
        // SAFETY: the token proves the CPU feature that the intrinsic needs.
        unsafe { _mm512_and_si512(a, b) }
    }
    #[inline(always)]
    fn shl_i<const BITS: u32>(self, a: Self::I) -> Self::I {
        // SAFETY: the token proves the CPU feature that the intrinsic needs.
        unsafe { _mm512_sll_epi32(a, _mm_cvtsi32_si128(BITS as i32)) }
    }
    #[inline(always)]
    fn shr_i<const BITS: u32>(self, a: Self::I) -> Self::I {
        // SAFETY: the token proves the CPU feature that the intrinsic needs.
        unsafe { _mm512_sra_epi32(a, _mm_cvtsi32_si128(BITS as i32)) }
    }
    #[inline(always)]
    fn to_float(self, a: Self::I) -> Self::F {
        // SAFETY: the token proves the CPU feature that the intrinsic needs.
        unsafe { _mm512_cvtepi32_ps(a) }
    }
    #[inline(always)]
    fn to_int(self, a: Self::F) -> Self::I {
        // SAFETY: the token proves the CPU feature that the intrinsic needs.
        unsafe { _mm512_cvtps_epi32(a) }
    }

    #[inline(always)]
    fn trunc_int(self, a: Self::F) -> Self::I {
        // SAFETY: the token proves the CPU feature that the intrinsic needs.
        unsafe { _mm512_cvttps_epi32(a) }
    }
    #[inline(always)]
    unsafe fn load_i8(self, from: *const i8, count: usize) -> Self::I {
        // SAFETY: the token proves the CPU features; the caller vouches for `count` bytes, and lanes that are masked
        // off are not accessed.
        unsafe {
            _mm512_cvtepi8_epi32(if count == 16 {
                _mm_loadu_si128(from.cast())
            } else {
                _mm_maskz_loadu_epi8(((1_u32 << count) - 1) as u16, from)
            })
        }
    }
    #[inline(always)]
    unsafe fn store_i8(self, to: *mut i8, count: usize, x: Self::I) {
        // SAFETY: as in `load_i8`.
        unsafe {
            let bytes = _mm512_cvtepi32_epi8(x);
            if count == 16 {
                _mm_storeu_si128(to.cast(), bytes);
            } else {
                _mm_mask_storeu_epi8(to, ((1_u32 << count) - 1) as u16, bytes);
            }
        }
    }
}
