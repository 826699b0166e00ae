//! Plain code for every CPU.

use super::dot::{Dot, TileArgs, copy_bytes, tile};
use super::kernels::Geometry;

#[derive(Clone, Copy)]
struct Portable;

impl Dot for Portable {
    const LANES: usize = 4;
    const GROUP: usize = 4;
    const A_BYTES: usize = 1;
    const A_SHIFT: i32 = 0;
    type I = [i32; 4];
    type B = [i8; 16];
    type A = [i8; 4];

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
        // SAFETY: the caller vouches for 16 bytes.
        unsafe { from.cast::<[i8; 16]>().read() }
    }
    #[inline(always)]
    unsafe fn load_a(self, from: *const u8) -> Self::A {
        // SAFETY: the caller vouches for four bytes.
        unsafe { from.cast::<[i8; 4]>().read() }
    }
    #[inline(always)]
    unsafe fn dot<const STEP: usize>(self, acc: Self::I, a: Self::A, b: Self::B) -> Self::I {
        std::array::from_fn(|j| {
            (0..4).fold(acc[j], |sum, g| sum.wrapping_add(i32::from(a[g]) * i32::from(b[4 * j + g])))
        })
    }
}

pub(super) const GEOMETRY: Geometry = Geometry::of::<Portable>(2, 1);

/// # Safety
/// As [`TileFn`](super::dot::TileFn).
pub(super) unsafe fn tile_fn<const MR: usize, const NT: usize>(args: &TileArgs) {
    // SAFETY: the caller keeps the contract of `TileFn`.
    unsafe { tile::<Portable, MR, NT, 2>(Portable, args) }
}

/// # Safety
/// As [`CopyFn`](super::dot::CopyFn).
pub(super) unsafe fn copy(line: *mut u8, at: usize, from: *const i8, len: usize) {
    // SAFETY: the caller keeps the contract.
    unsafe { copy_bytes::<0>(line, at, from, len) }
}
