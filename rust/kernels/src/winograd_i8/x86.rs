//! x86: products of pairs of 16-bit operands, `vpmaddwd`, or `vpdpwssd` where the CPU has it.

use std::arch::x86_64::*;

use crate::gemm_i8::dot::{Dot, TileArgs, tile};
use crate::gemm_i8::x86_vectors::{broadcast_groups, shuffled, shuffled_groups, vectors};

/// The operands: 16 bits, two channels of a column side by side.
macro_rules! pairs {
    ($load:ident) => {
        const GROUP: usize = 2;
        const A_BYTES: usize = 2;
        const B_BYTES: usize = 2;
        const A_SHIFT: i32 = 0;

        #[inline(always)]
        unsafe fn load_b(self, from: *const i8) -> Self::B {
            // SAFETY: the caller vouches for the memory; a microkernel runs only on a CPU that has its instructions.
            unsafe { $load(from.cast()) }
        }
    };
}

#[derive(Clone, Copy)]
struct Madd128;

impl Dot for Madd128 {
    vectors!(__m128i, 4, _mm_loadu_si128, _mm_storeu_si128);
    shuffled_groups!();
    pairs!(_mm_loadu_si128);

    #[inline(always)]
    unsafe fn dot<const STEP: usize>(self, acc: Self::I, a: Self::A, b: Self::B) -> Self::I {
        // SAFETY: SSE2 is part of x86-64.
        unsafe { _mm_add_epi32(acc, _mm_madd_epi16(shuffled!(STEP, a), b)) }
    }
}

#[derive(Clone, Copy)]
struct Madd256;

impl Dot for Madd256 {
    vectors!(__m256i, 8, _mm256_loadu_si256, _mm256_storeu_si256);
    broadcast_groups!();
    pairs!(_mm256_loadu_si256);

    #[inline(always)]
    unsafe fn dot<const STEP: usize>(self, acc: Self::I, a: Self::A, b: Self::B) -> Self::I {
        // SAFETY: as in `load_i32`.
        unsafe { _mm256_add_epi32(acc, _mm256_madd_epi16(_mm256_set1_epi32(a.read_unaligned()), b)) }
    }
}

#[derive(Clone, Copy)]
struct Madd512;

impl Dot for Madd512 {
    vectors!(__m512i, 16, _mm512_loadu_si512, _mm512_storeu_si512);
    broadcast_groups!();
    pairs!(_mm512_loadu_si512);

    #[inline(always)]
    unsafe fn dot<const STEP: usize>(self, acc: Self::I, a: Self::A, b: Self::B) -> Self::I {
        // SAFETY: as in `load_i32`.
        unsafe { _mm512_add_epi32(acc, _mm512_madd_epi16(_mm512_set1_epi32(a.read_unaligned()), b)) }
    }
}

#[derive(Clone, Copy)]
struct Vnni256;

impl Dot for Vnni256 {
    vectors!(__m256i, 8, _mm256_loadu_si256, _mm256_storeu_si256);
    broadcast_groups!();
    pairs!(_mm256_loadu_si256);

    #[inline(always)]
    unsafe fn dot<const STEP: usize>(self, acc: Self::I, a: Self::A, b: Self::B) -> Self::I {
        // SAFETY: as in `load_i32`.
        unsafe { _mm256_dpwssd_avx_epi32(acc, _mm256_set1_epi32(a.read_unaligned()), b) }
    }
}

#[derive(Clone, Copy)]
struct Vnni512;

impl Dot for Vnni512 {
    vectors!(__m512i, 16, _mm512_loadu_si512, _mm512_storeu_si512);
    broadcast_groups!();
    pairs!(_mm512_loadu_si512);

    #[inline(always)]
    unsafe fn dot<const STEP: usize>(self, acc: Self::I, a: Self::A, b: Self::B) -> Self::I {
        // SAFETY: as in `load_i32`.
        unsafe { _mm512_dpwssd_epi32(acc, _mm512_set1_epi32(a.read_unaligned()), b) }
    }
}

/// # Safety
/// As [`TileFn`](crate::gemm_i8::dot::TileFn).
pub(super) unsafe fn madd_128<const MR: usize, const NT: usize>(args: &TileArgs) {
    // SAFETY: the caller keeps the contract of `TileFn`.
    unsafe { tile::<Madd128, MR, NT, 2>(Madd128, args) }
}

/// # Safety
/// As [`TileFn`](crate::gemm_i8::dot::TileFn); the CPU has AVX2.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn madd_256<const MR: usize, const NT: usize>(args: &TileArgs) {
    // SAFETY: the caller keeps the contract of `TileFn`.
    unsafe { tile::<Madd256, MR, NT, 2>(Madd256, args) }
}

/// # Safety
/// As [`TileFn`](crate::gemm_i8::dot::TileFn); the CPU has AVX-512.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
pub(super) unsafe fn madd_512<const MR: usize, const NT: usize>(args: &TileArgs) {
    // SAFETY: the caller keeps the contract of `TileFn`.
    unsafe { tile::<Madd512, MR, NT, 2>(Madd512, args) }
}

/// # Safety
/// As [`TileFn`](crate::gemm_i8::dot::TileFn); the CPU has AVX-VNNI.
#[target_feature(enable = "avxvnni,avx2,fma,f16c")]
pub(super) unsafe fn vnni_256<const MR: usize, const NT: usize>(args: &TileArgs) {
    // SAFETY: the caller keeps the contract of `TileFn`.
    unsafe { tile::<Vnni256, MR, NT, 2>(Vnni256, args) }
}

/// # Safety
/// As [`TileFn`](crate::gemm_i8::dot::TileFn); the CPU has AVX-512 VNNI.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
pub(super) unsafe fn vnni_512<const MR: usize, const NT: usize>(args: &TileArgs) {
    // SAFETY: the caller keeps the contract of `TileFn`.
    unsafe { tile::<Vnni512, MR, NT, 2>(Vnni512, args) }
}
