//! Depthwise kernels of aarch64.

use std::arch::aarch64::*;
use std::arch::asm;

use super::micro::{LaneDot, StripArgs, sum_strip};

/// Interleaves by one structured store; every CPU with Advanced SIMD has it.
///
/// # Safety
/// As [`InterleaveFn`](super::micro::InterleaveFn).
pub(super) unsafe fn interleave(
    rows: [*const i8; 4],
    steps: [usize; 4],
    columns: usize,
    to: *mut u8,
    pitch: usize,
) {
    // SAFETY: a kernel that uses this exists only with the token of Advanced SIMD; the caller vouches for the lines
    // of every column.
    unsafe {
        for column in 0..columns {
            let load = |i: usize| vld1q_u8(rows[i].add(column * steps[i]).cast());
            vst4q_u8(to.add(column * pitch), uint8x16x4_t(load(0), load(1), load(2), load(3)));
        }
    }
}

macro_rules! lanes {
    () => {
        const LANES: usize = 4;
        type I = int32x4_t;
        type W = int8x16_t;

        #[inline(always)]
        unsafe fn load_i32(self, from: *const i32) -> Self::I {
            // SAFETY: the caller vouches for the memory; the kernel runs only where its instructions exist.
            unsafe { vld1q_s32(from) }
        }
        #[inline(always)]
        unsafe fn store_i32(self, to: *mut i32, x: Self::I) {
            // SAFETY: as in `load_i32`.
            unsafe { vst1q_s32(to, x) }
        }
        #[inline(always)]
        unsafe fn load_w(self, from: *const i8) -> Self::W {
            // SAFETY: as in `load_i32`.
            unsafe { vld1q_s8(from) }
        }
    };
}

#[derive(Clone, Copy)]
struct Wide;

impl LaneDot for Wide {
    lanes!();

    #[inline(always)]
    unsafe fn dot(self, acc: Self::I, x: *const u8, w: Self::W) -> Self::I {
        // SAFETY: as in `load_i32`.
        unsafe {
            let x = vld1q_s8(x.cast());
            let first = vpaddlq_s16(vmull_s8(vget_low_s8(x), vget_low_s8(w)));
            let second = vpaddlq_s16(vmull_high_s8(x, w));
            vaddq_s32(acc, vpaddq_s32(first, second))
        }
    }
}

#[derive(Clone, Copy)]
struct Sdot;

impl LaneDot for Sdot {
    lanes!();

    #[inline(always)]
    unsafe fn dot(self, acc: Self::I, x: *const u8, w: Self::W) -> Self::I {
        let mut sum = acc;
        // SAFETY: as in `load_i32`; one instruction on registers, of a CPU that has it.
        unsafe {
            let x = vld1q_s8(x.cast());
            asm!("sdot {s:v}.4s, {x:v}.16b, {w:v}.16b", s = inout(vreg) sum, x = in(vreg) x, w = in(vreg) w,
                 options(pure, nomem, nostack, preserves_flags));
        }
        sum
    }
}

/// # Safety
/// As [`StripFn`](super::micro::StripFn).
#[target_feature(enable = "neon")]
pub(super) unsafe fn wide<const TAPS: usize>(args: &StripArgs) {
    // SAFETY: the caller keeps the contract.
    unsafe { sum_strip::<Wide, 4, 4, TAPS>(Wide, args) }
}

/// # Safety
/// As [`StripFn`](super::micro::StripFn); the CPU has `sdot`.
#[target_feature(enable = "neon,dotprod")]
pub(super) unsafe fn sdot<const TAPS: usize>(args: &StripArgs) {
    // SAFETY: the caller keeps the contract.
    unsafe { sum_strip::<Sdot, 4, 4, TAPS>(Sdot, args) }
}
