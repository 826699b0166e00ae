//! SSE2 (which every x86-64 CPU has), AVX2 and AVX-512 BW without VNNI: both operands are widened to 16 bits and multiplied by `vpmaddwd`, which is exact.
//!
//! The 8-bit `vpmaddubsw` would be faster and saturates at 16 bits, so that full-range codes give wrong sums.

use std::arch::x86_64::*;

use super::dot::{Dot, TileArgs, copy_wide, tile};
use super::kernels::Geometry;
use super::x86_vectors::{broadcast_groups, shuffled, shuffled_groups, vectors};

#[derive(Clone, Copy)]
struct Wide128;

impl Dot for Wide128 {
    vectors!(__m128i, 4, _mm_loadu_si128, _mm_storeu_si128);
    shuffled_groups!();
    const GROUP: usize = 2;
    const A_BYTES: usize = 2;
    const A_SHIFT: i32 = 0;

    #[inline(always)]
    unsafe fn load_b(self, from: *const i8) -> Self::B {
        // SAFETY: as in `load_i32`.
        unsafe {
            let codes = _mm_loadl_epi64(from.cast());
            _mm_srai_epi16::<8>(_mm_unpacklo_epi8(codes, codes))
        }
    }
    #[inline(always)]
    unsafe fn dot<const STEP: usize>(self, acc: Self::I, a: Self::A, b: Self::B) -> Self::I {
        // SAFETY: as in `load_i32`.
        unsafe { _mm_add_epi32(acc, _mm_madd_epi16(shuffled!(STEP, a), b)) }
    }
}

#[derive(Clone, Copy)]
struct Wide256;

impl Dot for Wide256 {
    vectors!(__m256i, 8, _mm256_loadu_si256, _mm256_storeu_si256);
    broadcast_groups!();
    const GROUP: usize = 2;
    const A_BYTES: usize = 2;
    const A_SHIFT: i32 = 0;

    #[inline(always)]
    unsafe fn load_b(self, from: *const i8) -> Self::B {
        // SAFETY: as in `load_i32`.
        unsafe { _mm256_cvtepi8_epi16(_mm_loadu_si128(from.cast())) }
    }
    #[inline(always)]
    unsafe fn dot<const STEP: usize>(self, acc: Self::I, a: Self::A, b: Self::B) -> Self::I {
        // SAFETY: as in `load_i32`.
        unsafe { _mm256_add_epi32(acc, _mm256_madd_epi16(_mm256_set1_epi32(a.read_unaligned()), b)) }
    }
}

#[derive(Clone, Copy)]
struct Wide512;

impl Dot for Wide512 {
    vectors!(__m512i, 16, _mm512_loadu_si512, _mm512_storeu_si512);
    broadcast_groups!();
    const GROUP: usize = 2;
    const A_BYTES: usize = 2;
    const A_SHIFT: i32 = 0;

    #[inline(always)]
    unsafe fn load_b(self, from: *const i8) -> Self::B {
        // SAFETY: as in `load_i32`.
        unsafe { _mm512_cvtepi8_epi16(_mm256_loadu_si256(from.cast())) }
    }
    #[inline(always)]
    unsafe fn dot<const STEP: usize>(self, acc: Self::I, a: Self::A, b: Self::B) -> Self::I {
        // SAFETY: as in `load_i32`.
        unsafe { _mm512_add_epi32(acc, _mm512_madd_epi16(_mm512_set1_epi32(a.read_unaligned()), b)) }
    }
}

pub(super) const GEOMETRY_128: Geometry = Geometry::of::<Wide128>(2, 1);
pub(super) const GEOMETRY_256: Geometry = Geometry::of::<Wide256>(2, 1);
pub(super) const GEOMETRY_512: Geometry = Geometry::of::<Wide512>(2, 1);

/// # Safety
/// As [`TileFn`](super::dot::TileFn).
pub(super) unsafe fn tile_128<const MR: usize, const NT: usize>(args: &TileArgs) {
    // SAFETY: the caller keeps the contract of `TileFn`.
    unsafe { tile::<Wide128, MR, NT, 2>(Wide128, args) }
}

/// # Safety
/// As [`TileFn`](super::dot::TileFn); the CPU has AVX2.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn tile_256<const MR: usize, const NT: usize>(args: &TileArgs) {
    // SAFETY: the caller keeps the contract of `TileFn`.
    unsafe { tile::<Wide256, MR, NT, 2>(Wide256, args) }
}

/// # Safety
/// As [`TileFn`](super::dot::TileFn); the CPU has AVX-512.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
pub(super) unsafe fn tile_512<const MR: usize, const NT: usize>(args: &TileArgs) {
    // SAFETY: the caller keeps the contract of `TileFn`.
    unsafe { tile::<Wide512, MR, NT, 2>(Wide512, args) }
}

/// # Safety
/// As [`CopyFn`](super::dot::CopyFn).
pub(super) unsafe fn copy_128(line: *mut u8, at: usize, from: *const i8, len: usize) {
    // SAFETY: the caller keeps the contract.
    unsafe { copy_wide(line, at, from, len) }
}

/// # Safety
/// As [`CopyFn`](super::dot::CopyFn); the CPU has AVX2.
#[target_feature(enable = "avx2")]
pub(super) unsafe fn copy_256(line: *mut u8, at: usize, from: *const i8, len: usize) {
    // SAFETY: the caller keeps the contract.
    unsafe { copy_wide(line, at, from, len) }
}

/// # Safety
/// As [`CopyFn`](super::dot::CopyFn); the CPU has AVX-512.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
pub(super) unsafe fn copy_512(line: *mut u8, at: usize, from: *const i8, len: usize) {
    // SAFETY: the caller keeps the contract.
    unsafe { copy_wide(line, at, from, len) }
}
