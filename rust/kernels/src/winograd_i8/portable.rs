//! Plain code for every CPU.

use crate::gemm_i8::dot::{Dot, TileArgs, tile};

#[derive(Clone, Copy)]
struct Portable;

impl Dot for Portable {
    const LANES: usize = 4;
    const GROUP: usize = 2;
    const A_BYTES: usize = 2;
    const B_BYTES: usize = 2;
    const A_SHIFT: i32 = 0;
    type I = [i32; 4];
    type B = [i16; 8];
    type A = [i16; 2];

    #[inline(always)]
    unsafe fn load_i32(self, from: *const i32) -> Self::I {
        // SAFETY: the caller vouches for four values.
        unsafe { from.cast::<[i32; 4]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store_i32(self, to: *mut i32, x: Self::I) {
        // SAFETY: the caller vouches for four values.
        unsafe { to.cast::<[i32; 4]>().write_unaligned(x) }
    }
    #[inline(always)]
    unsafe fn load_b(self, from: *const i8) -> Self::B {
        // SAFETY: the caller vouches for eight elements.
        unsafe { from.cast::<[i16; 8]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn load_a(self, from: *const u8) -> Self::A {
        // SAFETY: the caller vouches for two elements.
        unsafe { from.cast::<[i16; 2]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn dot<const STEP: usize>(self, acc: Self::I, a: Self::A, b: Self::B) -> Self::I {
        std::array::from_fn(|j| {
            (0..2).fold(acc[j], |sum, g| sum.wrapping_add(i32::from(a[g]) * i32::from(b[2 * j + g])))
        })
    }
}

/// # Safety
/// As [`TileFn`](crate::gemm_i8::dot::TileFn).
pub(super) unsafe fn tile_plain<const MR: usize, const NT: usize>(args: &TileArgs) {
    // SAFETY: the caller keeps the contract of `TileFn`.
    unsafe { tile::<Portable, MR, NT, 2>(Portable, args) }
}
