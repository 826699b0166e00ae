//! x86: `vpmaddubsw` for nibbles (products of at most 15 * 128 cannot saturate 16 bits), `vpmaddwd` on even and odd
//! bytes for wider codes, `vpdpbusd` for both where the CPU has it.

use std::arch::x86_64::*;

use super::micro::{BlockDot, I, TileArgs, tile};
use crate::cpu::{Avx2, Avx512};

/// Four activations, broadcast.
///
/// # Safety
/// `a` must be readable for eight codes, and the caller compiled for AVX2.
#[inline(always)]
unsafe fn four<const HALF: usize>(a: *const i8) -> i32 {
    // SAFETY: the caller vouches for eight codes.
    unsafe { a.add(4 * HALF).cast::<i32>().read_unaligned() }
}

/// What does not depend on the dot product of a set of 256-bit instructions.
macro_rules! common_256 {
    () => {
        type S = Avx2;
        type B = __m256i;
        type A = *const i8;
        const WIDE_ZERO: i32 = 128;

        #[inline(always)]
        fn simd(self) -> Avx2 {
            self.0
        }
        #[inline(always)]
        unsafe fn load(self, from: *const u8) -> Self::B {
            // SAFETY: the token proves the CPU feature; the caller vouches for the memory.
            unsafe { _mm256_loadu_si256(from.cast()) }
        }
        #[inline(always)]
        fn prefetch(self, ahead: *const u8) {
            // SAFETY: a prefetch may name any address.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(ahead.cast()) }
        }
        #[inline(always)]
        fn low(self, b: Self::B) -> Self::B {
            // SAFETY: the token proves the CPU feature that the intrinsic needs.
            unsafe { _mm256_and_si256(b, _mm256_set1_epi8(15)) }
        }
        #[inline(always)]
        fn high(self, b: Self::B) -> Self::B {
            // SAFETY: the token proves the CPU feature that the intrinsic needs.
            unsafe { _mm256_and_si256(_mm256_srli_epi16::<4>(b), _mm256_set1_epi8(15)) }
        }
        #[inline(always)]
        unsafe fn load_a(self, from: *const i8) -> Self::A {
            from
        }
    };
}

/// The same for 512-bit instructions.
macro_rules! common_512 {
    () => {
        type S = Avx512;
        type B = __m512i;
        type A = *const i8;
        const WIDE_ZERO: i32 = 128;

        #[inline(always)]
        fn simd(self) -> Avx512 {
            self.0
        }
        #[inline(always)]
        unsafe fn load(self, from: *const u8) -> Self::B {
            // SAFETY: the token proves the CPU feature; the caller vouches for the memory.
            unsafe { _mm512_loadu_si512(from.cast()) }
        }
        #[inline(always)]
        fn prefetch(self, ahead: *const u8) {
            // SAFETY: a prefetch may name any address.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(ahead.cast()) }
        }
        #[inline(always)]
        fn low(self, b: Self::B) -> Self::B {
            // SAFETY: the token proves the CPU feature that the intrinsic needs.
            unsafe { _mm512_and_si512(b, _mm512_set1_epi8(15)) }
        }
        #[inline(always)]
        fn high(self, b: Self::B) -> Self::B {
            // SAFETY: the token proves the CPU feature that the intrinsic needs.
            unsafe { _mm512_and_si512(_mm512_srli_epi16::<4>(b), _mm512_set1_epi8(15)) }
        }
        #[inline(always)]
        unsafe fn load_a(self, from: *const i8) -> Self::A {
            from
        }
    };
}

#[derive(Clone, Copy)]
struct Madd256(Avx2);

impl BlockDot for Madd256 {
    common_256!();

    #[inline(always)]
    unsafe fn dot_nibbles<const HALF: usize>(self, acc: I<Self>, a: Self::A, b: Self::B) -> I<Self> {
        // SAFETY: the token proves the CPU feature; the caller vouches for the activations.
        unsafe {
            let pairs = _mm256_maddubs_epi16(b, _mm256_set1_epi32(four::<HALF>(a)));
            _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
        }
    }
    #[inline(always)]
    unsafe fn dot_bytes<const HALF: usize>(self, acc: I<Self>, a: Self::A, b: Self::B) -> I<Self> {
        // SAFETY: as in `dot_nibbles`.
        unsafe {
            let a = _mm256_set1_epi32(four::<HALF>(a));
            let even = _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(a));
            let odd = _mm256_srai_epi16::<8>(a);
            let sum = _mm256_madd_epi16(_mm256_and_si256(b, _mm256_set1_epi16(255)), even);
            let sum = _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_srli_epi16::<8>(b), odd));
            _mm256_add_epi32(acc, sum)
        }
    }
}

#[derive(Clone, Copy)]
struct Madd512(Avx512);

impl BlockDot for Madd512 {
    common_512!();

    #[inline(always)]
    unsafe fn dot_nibbles<const HALF: usize>(self, acc: I<Self>, a: Self::A, b: Self::B) -> I<Self> {
        // SAFETY: the token proves the CPU feature; the caller vouches for the activations.
        unsafe {
            let pairs = _mm512_maddubs_epi16(b, _mm512_set1_epi32(four::<HALF>(a)));
            _mm512_add_epi32(acc, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)))
        }
    }
    #[inline(always)]
    unsafe fn dot_bytes<const HALF: usize>(self, acc: I<Self>, a: Self::A, b: Self::B) -> I<Self> {
        // SAFETY: as in `dot_nibbles`.
        unsafe {
            let a = _mm512_set1_epi32(four::<HALF>(a));
            let even = _mm512_srai_epi16::<8>(_mm512_slli_epi16::<8>(a));
            let odd = _mm512_srai_epi16::<8>(a);
            let sum = _mm512_madd_epi16(_mm512_and_si512(b, _mm512_set1_epi16(255)), even);
            let sum = _mm512_add_epi32(sum, _mm512_madd_epi16(_mm512_srli_epi16::<8>(b), odd));
            _mm512_add_epi32(acc, sum)
        }
    }
}

/// Made only by microkernels that are compiled for AVX-VNNI.
#[derive(Clone, Copy)]
struct Vnni256(Avx2);

impl BlockDot for Vnni256 {
    common_256!();

    #[inline(always)]
    unsafe fn dot_nibbles<const HALF: usize>(self, acc: I<Self>, a: Self::A, b: Self::B) -> I<Self> {
        // SAFETY: the microkernel runs only on a CPU that has the instruction; the caller vouches for the activations.
        unsafe { _mm256_dpbusd_avx_epi32(acc, b, _mm256_set1_epi32(four::<HALF>(a))) }
    }
    #[inline(always)]
    unsafe fn dot_bytes<const HALF: usize>(self, acc: I<Self>, a: Self::A, b: Self::B) -> I<Self> {
        // SAFETY: the same contract.
        unsafe { self.dot_nibbles::<HALF>(acc, a, b) }
    }
}

/// Made only by microkernels that are compiled for AVX-512 VNNI.
#[derive(Clone, Copy)]
struct Vnni512(Avx512);

impl BlockDot for Vnni512 {
    common_512!();

    #[inline(always)]
    unsafe fn dot_nibbles<const HALF: usize>(self, acc: I<Self>, a: Self::A, b: Self::B) -> I<Self> {
        // SAFETY: the microkernel runs only on a CPU that has the instruction; the caller vouches for the activations.
        unsafe { _mm512_dpbusd_epi32(acc, b, _mm512_set1_epi32(four::<HALF>(a))) }
    }
    #[inline(always)]
    unsafe fn dot_bytes<const HALF: usize>(self, acc: I<Self>, a: Self::A, b: Self::B) -> I<Self> {
        // SAFETY: the same contract.
        unsafe { self.dot_nibbles::<HALF>(acc, a, b) }
    }
}

pub(super) const WIDE_ZERO: i32 = 128;

/// # Safety
/// As [`TileFn`](super::micro::TileFn); the CPU has AVX2.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn tile_madd_256<const NIBBLES: bool, const MR: usize, const NT: usize>(args: &TileArgs) {
    // SAFETY: the caller keeps the contract of `TileFn`; a kernel exists only with its token.
    unsafe { tile::<Madd256, NIBBLES, MR, NT>(Madd256(Avx2::assume()), args) }
}

/// # Safety
/// As [`TileFn`](super::micro::TileFn); the CPU has AVX-512.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
pub(super) unsafe fn tile_madd_512<const NIBBLES: bool, const MR: usize, const NT: usize>(args: &TileArgs) {
    // SAFETY: the caller keeps the contract of `TileFn`; a kernel exists only with its token.
    unsafe { tile::<Madd512, NIBBLES, MR, NT>(Madd512(Avx512::assume()), args) }
}

/// # Safety
/// As [`TileFn`](super::micro::TileFn); the CPU has AVX-VNNI.
#[target_feature(enable = "avxvnni,avx2,fma,f16c")]
pub(super) unsafe fn tile_vnni_256<const NIBBLES: bool, const MR: usize, const NT: usize>(args: &TileArgs) {
    // SAFETY: the caller keeps the contract of `TileFn`; a kernel exists only with its token.
    unsafe { tile::<Vnni256, NIBBLES, MR, NT>(Vnni256(Avx2::assume()), args) }
}

/// # Safety
/// As [`TileFn`](super::micro::TileFn); the CPU has AVX-512 VNNI.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
pub(super) unsafe fn tile_vnni_512<const NIBBLES: bool, const MR: usize, const NT: usize>(args: &TileArgs) {
    // SAFETY: the caller keeps the contract of `TileFn`; a kernel exists only with its token.
    unsafe { tile::<Vnni512, NIBBLES, MR, NT>(Vnni512(Avx512::assume()), args) }
}
