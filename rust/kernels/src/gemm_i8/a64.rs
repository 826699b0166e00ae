//! aarch64: plain Advanced SIMD, `sdot` and `smmla`.
//!
//! The intrinsics of the last two are not stable, so each is one instruction of inline assembly; the register
//! allocator, load pairing and address folding stay with the compiler.

#![allow(
    clippy::needless_range_loop,
    reason = "counted loops over register tiles are what the compiler unrolls"
)]

use std::arch::aarch64::*;
use std::arch::asm;

use super::dot::{CHUNK, Dot, LINE, TileArgs, copy_bytes, copy_wide, tile};
use super::kernels::Geometry;

/// Both operands widened to 16 bits and multiplied by lane.
#[derive(Clone, Copy)]
struct Wide;

impl Dot for Wide {
    const LANES: usize = 8;
    const GROUP: usize = 1;
    const A_BYTES: usize = 2;
    const STEPS: usize = 8;
    const A_SHIFT: i32 = 0;
    type I = (int32x4_t, int32x4_t);
    type B = int16x8_t;
    type A = int16x8_t;

    #[inline(always)]
    unsafe fn load_i32(self, from: *const i32) -> Self::I {
        // SAFETY: the caller vouches for the memory; every aarch64 CPU that runs this has Advanced SIMD.
        unsafe { (vld1q_s32(from), vld1q_s32(from.add(4))) }
    }
    #[inline(always)]
    unsafe fn store_i32(self, to: *mut i32, x: Self::I) {
        // SAFETY: as in `load_i32`.
        unsafe {
            vst1q_s32(to, x.0);
            vst1q_s32(to.add(4), x.1);
        }
    }
    #[inline(always)]
    unsafe fn load_b(self, from: *const i8) -> Self::B {
        // SAFETY: as in `load_i32`.
        unsafe { vmovl_s8(vld1_s8(from)) }
    }
    #[inline(always)]
    unsafe fn load_a(self, from: *const u8) -> Self::A {
        // SAFETY: as in `load_i32`.
        unsafe { vreinterpretq_s16_u8(vld1q_u8(from)) }
    }
    #[inline(always)]
    unsafe fn dot<const STEP: usize>(self, acc: Self::I, a: Self::A, b: Self::B) -> Self::I {
        // SAFETY: as in `load_i32`.
        unsafe {
            macro_rules! lane {
                ($lane:literal) => {
                    (
                        vmlal_laneq_s16::<$lane>(acc.0, vget_low_s16(b), a),
                        vmlal_high_laneq_s16::<$lane>(acc.1, b, a),
                    )
                };
            }
            match STEP {
                0 => lane!(0),
                1 => lane!(1),
                2 => lane!(2),
                3 => lane!(3),
                4 => lane!(4),
                5 => lane!(5),
                6 => lane!(6),
                _ => lane!(7),
            }
        }
    }
}

/// `sdot` by lane: four groups of A per register.
#[derive(Clone, Copy)]
struct Sdot;

impl Dot for Sdot {
    const LANES: usize = 4;
    const GROUP: usize = 4;
    const A_BYTES: usize = 1;
    const STEPS: usize = 4;
    const A_SHIFT: i32 = 0;
    type I = int32x4_t;
    type B = int8x16_t;
    type A = int8x16_t;

    #[inline(always)]
    unsafe fn load_i32(self, from: *const i32) -> Self::I {
        // SAFETY: the caller vouches for the memory, and a microkernel runs only on a CPU that has the instructions.
        unsafe { vld1q_s32(from) }
    }
    #[inline(always)]
    unsafe fn store_i32(self, to: *mut i32, x: Self::I) {
        // SAFETY: as in `load_i32`.
        unsafe { vst1q_s32(to, x) }
    }
    #[inline(always)]
    unsafe fn load_b(self, from: *const i8) -> Self::B {
        // SAFETY: as in `load_i32`.
        unsafe { vld1q_s8(from) }
    }
    #[inline(always)]
    unsafe fn load_a(self, from: *const u8) -> Self::A {
        // SAFETY: as in `load_i32`.
        unsafe { vld1q_s8(from.cast()) }
    }
    #[inline(always)]
    unsafe fn dot<const STEP: usize>(self, acc: Self::I, a: Self::A, b: Self::B) -> Self::I {
        let mut sum = acc;
        // SAFETY: one instruction on registers, of a CPU that has it; the microkernel enables `dotprod`.
        unsafe {
            asm!("sdot {s:v}.4s, {b:v}.16b, {a:v}.4b[{l}]", s = inout(vreg) sum, a = in(vreg) a, b = in(vreg) b,
                 l = const STEP, options(pure, nomem, nostack, preserves_flags));
        }
        sum
    }
}

pub(super) const GEOMETRY_WIDE: Geometry = Geometry::of::<Wide>(2, 1);
pub(super) const GEOMETRY_SDOT: Geometry = Geometry::of::<Sdot>(4, 1);
pub(super) const GEOMETRY_SMMLA: Geometry =
    Geometry { lanes: 2, group: 8, a_bytes: 1, steps: 1, a_shift: 0, panel_vectors: 4, row_unit: 2 };

/// # Safety
/// As [`TileFn`](super::dot::TileFn).
#[target_feature(enable = "neon")]
pub(super) unsafe fn tile_wide<const MR: usize, const NT: usize>(args: &TileArgs) {
    // SAFETY: the caller keeps the contract of `TileFn`.
    unsafe { tile::<Wide, MR, NT, 2>(Wide, args) }
}

/// # Safety
/// As [`TileFn`](super::dot::TileFn); the CPU has `sdot`.
#[target_feature(enable = "neon,dotprod")]
pub(super) unsafe fn tile_sdot<const MR: usize, const NT: usize>(args: &TileArgs) {
    // SAFETY: the caller keeps the contract of `TileFn`.
    unsafe { tile::<Sdot, MR, NT, 4>(Sdot, args) }
}

/// Two rows by two columns, eight products each.
///
/// # Safety
/// The CPU has `smmla`, and the caller is compiled for it.
#[inline]
#[target_feature(enable = "neon,i8mm")]
unsafe fn smmla(acc: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
    let mut sum = acc;
    // SAFETY: one instruction on registers, of a CPU that has it.
    unsafe {
        asm!("smmla {s:v}.4s, {a:v}.16b, {b:v}.16b", s = inout(vreg) sum, a = in(vreg) a, b = in(vreg) b,
             options(pure, nomem, nostack, preserves_flags));
    }
    sum
}

/// `MR` rows (in pairs; an odd last row is computed with whatever follows it and not stored) and `NT` pairs of columns
/// out of panels of four pairs.
///
/// # Safety
/// As [`TileFn`](super::dot::TileFn); the CPU has `smmla`. `a` is readable for whole pairs of rows.
#[target_feature(enable = "neon,i8mm")]
pub(super) unsafe fn tile_smmla<const MR: usize, const NT: usize>(args: &TileArgs) {
    const MOST_PAIRS: usize = 4;
    let pairs = const { MR.div_ceil(2) };
    // SAFETY: the caller vouches for all the memory that the arguments describe.
    unsafe {
        let mut acc = [[vdupq_n_s32(0); NT]; MOST_PAIRS];
        for v in 0..NT {
            let init = vld1_s32(args.init.add(2 * v));
            for i in 0..pairs {
                acc[i][v] = vcombine_s32(init, init);
            }
        }
        let (mut b, mut chunk, mut left) = (args.b, args.a, args.groups);
        while left > 0 {
            let groups = left.min(CHUNK / 8);
            left -= groups;
            let mut from = chunk;
            chunk = chunk.add(args.chunk_pitch);
            for _ in 0..groups {
                let mut columns = [vld1q_s8(b); NT];
                for v in 1..NT {
                    columns[v] = vld1q_s8(b.add((v / 4) * args.panel_pitch + (v % 4) * 16));
                }
                for i in 0..pairs {
                    let a = vld1q_s8(from.add(i * 2 * LINE).cast());
                    for v in 0..NT {
                        acc[i][v] = smmla(acc[i][v], a, columns[v]);
                    }
                }
                from = from.add(16);
                b = b.add(64);
            }
        }
        for i in 0..MR {
            for v in 0..NT {
                let pair = acc[i / 2][v];
                let row = if i % 2 == 0 { vget_low_s32(pair) } else { vget_high_s32(pair) };
                vst1_s32(args.out.add(i * args.out_pitch + 2 * v), row);
            }
        }
    }
}

/// # Safety
/// As [`CopyFn`](super::dot::CopyFn).
#[target_feature(enable = "neon")]
pub(super) unsafe fn copy_wide_fn(line: *mut u8, at: usize, from: *const i8, len: usize) {
    // SAFETY: the caller keeps the contract.
    unsafe { copy_wide(line, at, from, len) }
}

/// # Safety
/// As [`CopyFn`](super::dot::CopyFn).
#[target_feature(enable = "neon")]
pub(super) unsafe fn copy_sdot(line: *mut u8, at: usize, from: *const i8, len: usize) {
    // SAFETY: the caller keeps the contract.
    unsafe { copy_bytes::<0>(line, at, from, len) }
}

/// Calls `body(first, place, count)` for the runs of at most eight codes that lie side by side in a line of a pair.
#[inline(always)]
fn pair_runs(at: usize, len: usize, mut body: impl FnMut(usize, usize, usize)) {
    let mut first = 0;
    while first < len {
        let k = at + first;
        let count = (8 - k % 8).min(len - first);
        body(first, k / 8 * 16 + k % 8, count);
        first += count;
    }
}

/// Groups of eight codes of the two rows of a pair alternate.
///
/// # Safety
/// As [`CopyFn`](super::dot::CopyFn).
pub(super) unsafe fn copy_smmla(line: *mut u8, at: usize, from: *const i8, len: usize) {
    pair_runs(at, len, |first, place, count| {
        // SAFETY: the ranges are the caller's promise.
        unsafe {
            let (from, to) = (from.add(first), line.add(place));
            if count == 8 {
                to.cast::<[i8; 8]>().write_unaligned(from.cast::<[i8; 8]>().read_unaligned());
            } else {
                to.cast::<i8>().copy_from_nonoverlapping(from, count);
            }
        }
    });
}

/// # Safety
/// As [`FillFn`](super::dot::FillFn).
pub(super) unsafe fn fill_smmla(line: *mut u8, at: usize, value: i8, len: usize) {
    pair_runs(at, len, |_, place, count| {
        // SAFETY: the range is the caller's promise.
        unsafe { line.add(place).write_bytes(value as u8, count) }
    });
}
