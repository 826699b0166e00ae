//! Plain code for every CPU.

use super::micro::{BlockDot, I, TileArgs, tile};
use crate::simd::Portable;

#[derive(Clone, Copy)]
struct Plain;

impl BlockDot for Plain {
    type S = Portable;
    type B = [u8; 16];
    type A = *const i8;
    const WIDE_ZERO: i32 = 128;

    #[inline(always)]
    fn simd(self) -> Portable {
        Portable
    }
    #[inline(always)]
    unsafe fn load(self, from: *const u8) -> Self::B {
        // SAFETY: the caller vouches for 16 bytes.
        unsafe { from.cast::<[u8; 16]>().read() }
    }
    #[inline(always)]
    fn low(self, b: Self::B) -> Self::B {
        b.map(|x| x & 15)
    }
    #[inline(always)]
    fn high(self, b: Self::B) -> Self::B {
        b.map(|x| x >> 4)
    }
    #[inline(always)]
    unsafe fn load_a(self, from: *const i8) -> Self::A {
        from
    }
    #[inline(always)]
    unsafe fn dot_nibbles<const HALF: usize>(self, acc: I<Self>, a: Self::A, b: Self::B) -> I<Self> {
        // SAFETY: the caller vouches for eight codes.
        let a = unsafe { a.add(4 * HALF).cast::<[i8; 4]>().read() };
        std::array::from_fn(|j| {
            (0..4).fold(acc[j], |sum, g| sum.wrapping_add(i32::from(a[g]) * i32::from(b[4 * j + g])))
        })
    }
    #[inline(always)]
    unsafe fn dot_bytes<const HALF: usize>(self, acc: I<Self>, a: Self::A, b: Self::B) -> I<Self> {
        // SAFETY: the same contract.
        unsafe { self.dot_nibbles::<HALF>(acc, a, b) }
    }
}

pub(super) const WIDE_ZERO: i32 = Plain::WIDE_ZERO;

/// # Safety
/// As [`TileFn`](super::micro::TileFn).
pub(super) unsafe fn tile_plain<const NIBBLES: bool, const MR: usize, const NT: usize>(args: &TileArgs) {
    // SAFETY: the caller keeps the contract of `TileFn`.
    unsafe { tile::<Plain, NIBBLES, MR, NT>(Plain, args) }
}
