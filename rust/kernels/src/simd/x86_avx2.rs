//! AVX2 and FMA: eight lanes.

use std::arch::x86_64::*;

use super::{Simd, SimdOp};
use crate::cpu::Avx2;

/// Runs the loop in a function compiled for these instructions.
#[inline]
pub(super) fn run<O: SimdOp>(token: Avx2, op: O) -> O::Output {
    #[target_feature(enable = "avx2,fma,f16c")]
    fn compiled<O: SimdOp>(token: Avx2, op: O) -> O::Output {
        op.run(token)
    }
    // SAFETY: the token exists, so the CPU has every feature that `compiled` enables.
    unsafe { compiled(token, op) }
}

/// Lane mask of the first `count` lanes.
#[inline(always)]
fn first_lanes(count: usize) -> __m256i {
    // SAFETY: called with an `Avx2` token at hand only, which proves AVX2.
    unsafe { _mm256_cmpgt_epi32(_mm256_set1_epi32(count as i32), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)) }
}

impl Simd for Avx2 {
    const LANES: usize = 8;
    type F = __m256;
    type I = __m256i;
    type M = __m256;

    #[inline(always)]
    fn splat(self, x: f32) -> Self::F {
        // SAFETY: the token proves the CPU feature that the intrinsic needs.
        unsafe { _mm256_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> Self::F {
        // SAFETY: the token proves the CPU feature; the caller vouches for the memory.
        unsafe { _mm256_loadu_ps(from) }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32, x: Self::F) {
        // SAFETY: the token proves the CPU feature; the caller vouches for the memory.
        unsafe { _mm256_storeu_ps(to, x) }
    }
    #[inline(always)]
    unsafe fn load_partial(self, from: *const f32, count: usize) -> Self::F {
        // SAFETY: the token proves the CPU feature; the caller vouches for the memory.
        // Lanes that are masked off are not accessed.
        unsafe { _mm256_maskload_ps(from, first_lanes(count)) }
    }
    #[inline(always)]
    unsafe fn store_partial(self, to: *mut f32, count: usize, x: Self::F) {
        // SAFETY: the token proves the CPU feature; the caller vouches for the memory.
        // Lanes that are masked off are not accessed.
        unsafe { _mm256_maskstore_ps(to, first_lanes(count), x) }
    }

    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: the token proves the CPU feature that the intrinsic needs.
        unsafe { _mm256_add_ps(a, b) }
    }
    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: the token proves the CPU feature that the intrinsic needs.
        unsafe { _mm256_sub_ps(a, b) }
    }
    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: the token proves the CPU feature that the intrinsic needs.
        unsafe { _mm256_mul_ps(a, b) }
    }
    #[inline(always)]
    fn div(self, a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: the token proves the CPU feature that the intrinsic needs.
        unsafe { _mm256_div_ps(a, b) }
    }
    #[inline(always)]
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        // SAFETY: the token proves the CPU feature that the intrinsic needs.
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }
    // The instruction returns its second operand when either is NaN.
    #[inline(always)]
    fn at_least(self, x: Self::F, bound: Self::F) -> Self::F {
        // SAFETY: the token proves the CPU feature that the intrinsic needs.
        unsafe { _mm256_max_ps(bound, x) }
    }
    #[inline(always)]
    fn at_most(self, x: Self::F, bound: Self::F) -> Self::F {
        // SAFETY: the token proves the CPU feature that the intrinsic needs.
        unsafe { _mm256_min_ps(bound, x) }
    }
    #[inline(always)]
    fn sqrt(self, a: Self::F) -> Self::F {
        // SAFETY: the token proves the CPU feature that the intrinsic needs.
        unsafe { _mm256_sqrt_ps(a) }
    }
    #[inline(always)]
    fn abs(self, a: Self::F) -> Self::F {
        // SAFETY: the token proves the CPU feature that the intrinsic needs.
        unsafe { _mm256_andnot_ps(_mm256_set1_ps(-0.0), a) }
    }
    #[inline(always)]
    fn neg(self, a: Self::F) -> Self::F {
        // SAFETY: the token proves the CPU feature that the intrinsic needs.
        unsafe { _mm256_xor_ps(_mm256_set1_ps(-0.0), a) }
    }
    #[inline(always)]
    fn copysign(self, a: Self::F, sign: Self::F) -> Self::F {
        // SAFETY: the token proves the CPU feature that the intrinsic needs.
        unsafe {
            let bit = _mm256_set1_ps(-0.0);
            _mm256_or_ps(_mm256_andnot_ps(bit, a), _mm256_and_ps(bit, sign))
        }
    }
    #[inline(always)]
    fn floor(self, a: Self::F) -> Self::F {
        // SAFETY: the token proves the CPU feature that the intrinsic needs.
        unsafe { _mm256_round_ps::<{ _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC }>(a) }
    }
    #[inline(always)]
    fn ceil(self, a: Self::F) -> Self::F {
        // SAFETY: the token proves the CPU feature that the intrinsic needs.
        unsafe { _mm256_round_ps::<{ _MM_FROUND_TO_POS_INF | _MM_FROUND_NO_EXC }>(a) }
    }
    #[inline(always)]
    fn round_even(self, a: Self::F) -> Self::F {
        // SAFETY: the token proves the CPU feature that the intrinsic needs.
        unsafe { _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a) }
    }

    #[inline(always)]
    fn lt(self, a: Self::F, b: Self::F) -> Self::M {
        // SAFETY: the token proves the CPU feature that the intrinsic needs.
        unsafe { _mm256_cmp_ps::<_CMP_LT_OQ>(a, b) }
    }
    #[inline(always)]
    fn eq(self, a: Self::F, b: Self::F) -> Self::M {
        // SAFETY: the token proves the CPU feature that the intrinsic needs.
        unsafe { _mm256_cmp_ps::<_CMP_EQ_OQ>(a, b) }
    }
    #[inline(always)]
    fn select(self, mask: Self::M, a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: the token proves the CPU feature that the intrinsic needs.
        unsafe { _mm256_blendv_ps(b, a, mask) }
    }

    #[inline(always)]
    fn splat_i(self, x: i32) -> Self::I {
        // SAFETY: the token proves the CPU feature that the intrinsic needs.
        unsafe { _mm256_set1_epi32(x) }
    }
    #[inline(always)]
    fn bits(self, a: Self::F) -> Self::I {
        // SAFETY: the token proves the CPU feature that the intrinsic needs.
        unsafe { _mm256_castps_si256(a) }
    }
    #[inline(always)]
    fn as_float(self, a: Self::I) -> Self::F {
        // SAFETY: the token proves the CPU feature that the intrinsic needs.
        unsafe { _mm256_castsi256_ps(a) }
    }
    #[inline(always)]
    fn add_i(self, a: Self::I, b: Self::I) -> Self::I {
        // SAFETY: the token proves the CPU feature that the intrinsic needs.
        unsafe { _mm256_add_epi32(a, b) }
    }
    #[inline(always)]
    fn sub_i(self, a: Self::I, b: Self::I) -> Self::I {
        // SAFETY: the token proves the CPU feature that the intrinsic needs.
        unsafe { _mm256_sub_epi32(a, b) }
    }
    #[inline(always)]
    fn and_i(self, a: Self::I, b: Self::I) -> Self::I {
        // SAFETY: the token proves the CPU feature that the intrinsic needs.
        unsafe { _mm256_and_si256(a, b) }
    }
    #[inline(always)]
    fn shl_i<const BITS: u32>(self, a: Self::I) -> Self::I {
        // SAFETY: the token proves the CPU feature that the intrinsic needs.
        unsafe { _mm256_sll_epi32(a, _mm_cvtsi32_si128(BITS as i32)) }
    }
    #[inline(always)]
    fn shr_i<const BITS: u32>(self, a: Self::I) -> Self::I {
        // SAFETY: the token proves the CPU feature that the intrinsic needs.
        unsafe { _mm256_sra_epi32(a, _mm_cvtsi32_si128(BITS as i32)) }
    }
    #[inline(always)]
    fn to_float(self, a: Self::I) -> Self::F {
        // SAFETY: the token proves the CPU feature that the intrinsic needs.
        unsafe { _mm256_cvtepi32_ps(a) }
    }
    #[inline(always)]
    fn to_int(self, a: Self::F) -> Self::I {
        // SAFETY: the token proves the CPU feature that the intrinsic needs.
        unsafe { _mm256_cvtps_epi32(a) }
    }

    #[inline(always)]
    fn trunc_int(self, a: Self::F) -> Self::I {
        // SAFETY: the token proves the CPU feature that the intrinsic needs.
        unsafe { _mm256_cvttps_epi32(a) }
    }
    #[inline(always)]
    unsafe fn load_i8(self, from: *const i8, count: usize) -> Self::I {
        let mut bytes = [0_i8; 8];
        // SAFETY: the token proves the CPU features; the caller vouches for `count <= 8` bytes.
        unsafe {
            if count == 8 {
                return _mm256_cvtepi8_epi32(_mm_loadl_epi64(from.cast()));
            }
            std::ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), count);
            _mm256_cvtepi8_epi32(_mm_loadl_epi64(bytes.as_ptr().cast()))
        }
    }
    #[inline(always)]
    unsafe fn store_i8(self, to: *mut i8, count: usize, x: Self::I) {
        let mut bytes = [0_i8; 8];
        // SAFETY: the token proves the CPU features; the caller vouches for `count <= 8` bytes.
        unsafe {
            let pick = _mm256_set1_epi32(0x0c08_0400);
            let quads = _mm256_shuffle_epi8(x, pick);
            let low = _mm256_castsi256_si128(quads);
            let both = _mm_unpacklo_epi32(low, _mm256_extracti128_si256::<1>(quads));
            if count == 8 {
                return _mm_storel_epi64(to.cast(), both);
            }
            _mm_storel_epi64(bytes.as_mut_ptr().cast(), both);
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, count);
        }
    }
}
