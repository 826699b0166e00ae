//! aarch64 with half-precision arithmetic: eight binary16 products per instruction.
//!
//! Sums of [`FLUSH`] products stay in binary16, where they lose at most a few bits; they are then widened and added to
//! sums in `f32`.

use std::arch::aarch64::*;
use std::arch::asm;

use super::FLUSH;
use super::kernels::{A_STRIDE, TileArgs};
use crate::cpu::{Neon, NeonFp16};
use crate::gemm_f32::micro::{finish, load_columns, store_columns};
use crate::simd::Simd;

/// Two vectors of eight.
pub(super) const NR: usize = 16;

/// `acc + a[LANE] * b`.
#[inline]
#[target_feature(enable = "neon,fp16")]
fn fmla<const LANE: i32>(acc: uint16x8_t, a: uint16x8_t, b: uint16x8_t) -> uint16x8_t {
    let mut r = acc;
    // SAFETY: one arithmetic instruction on registers; the feature is enabled. The lane operand has to lie in the lower
    // sixteen registers.
    unsafe {
        asm!("fmla {r:v}.8h, {b:v}.8h, {a:v}.h[{l}]", r = inout(vreg) r, b = in(vreg) b, a = in(vreg_low16) a,
             l = const LANE, options(pure, nomem, nostack, preserves_flags));
    }
    r
}

/// The lower and upper half as `f32`.
#[inline]
#[target_feature(enable = "neon,fp16")]
fn widen(x: uint16x8_t) -> [float32x4_t; 2] {
    let (low, high);
    // SAFETY: conversions between registers.
    unsafe {
        asm!("fcvtl {l:v}.4s, {x:v}.4h", "fcvtl2 {h:v}.4s, {x:v}.8h", l = out(vreg) low, h = lateout(vreg) high,
             x = in(vreg) x, options(pure, nomem, nostack, preserves_flags));
    }
    [low, high]
}

/// # Safety
/// As [`TileFn`](super::kernels::TileFn); the CPU has half-precision arithmetic.
#[target_feature(enable = "neon,fp16")]
#[allow(
    clippy::needless_range_loop,
    reason = "counted loops over register tiles are what the compiler unrolls"
)]
pub(super) unsafe fn tile_fp16<const MR: usize, const NV: usize>(args: &TileArgs) {
    // SAFETY: the caller vouches for all the memory that the arguments describe; a kernel exists only with its token.
    unsafe {
        let s = Neon::assume();
        let mut sums = [[[s.splat(0.0); 2]; NV]; MR];
        if args.accumulate {
            for i in 0..MR {
                let row = args.c.add(i * args.c_stride);
                for v in 0..NV {
                    for half in 0..2 {
                        if (2 * v + half) * 4 < args.columns {
                            sums[i][v][half] = load_columns(s, row, 2 * v + half, args.columns);
                        }
                    }
                }
            }
        }
        let (mut a, mut b) = (args.a, args.b);
        let mut left = args.groups;
        while left > 0 {
            // Rows of A and panels of B are padded with zeros to eight products.
            let count = left.min(FLUSH).next_multiple_of(8);
            left = left.saturating_sub(count);
            let mut acc = [[vdupq_n_u16(0); NV]; MR];
            for _ in 0..count / 8 {
                let mut x = [vdupq_n_u16(0); MR];
                for i in 0..MR {
                    x[i] = vld1q_u16(a.add(i * A_STRIDE));
                }
                macro_rules! step {
                    ($($lane:literal)+) => {$(
                        for v in 0..NV {
                            let y = vld1q_u16(b.add($lane * NR + 8 * v));
                            for i in 0..MR {
                                acc[i][v] = fmla::<$lane>(acc[i][v], x[i], y);
                            }
                        }
                    )+};
                }
                step!(0 1 2 3 4 5 6 7);
                a = a.add(8);
                b = b.add(8 * NR);
            }
            for i in 0..MR {
                for v in 0..NV {
                    let wide = widen(acc[i][v]);
                    for half in 0..2 {
                        sums[i][v][half] = s.add(sums[i][v][half], wide[half]);
                    }
                }
            }
        }
        store(s, args, &sums);
    }
}

/// Applies the epilogue and stores the vectors that have columns.
///
/// # Safety
/// As [`tile_fp16`].
#[inline]
#[target_feature(enable = "neon")]
unsafe fn store<const MR: usize, const NV: usize>(
    s: Neon,
    args: &TileArgs,
    sums: &[[[float32x4_t; 2]; NV]; MR],
) {
    let vectors = args.columns.div_ceil(4);
    // SAFETY: as promised by the caller; vectors beyond the columns are not touched.
    unsafe {
        match vectors {
            1 => part::<MR, NV, 1>(s, args, sums),
            2 => part::<MR, NV, 2>(s, args, sums),
            3 => part::<MR, NV, 3>(s, args, sums),
            _ => part::<MR, NV, 4>(s, args, sums),
        }
    }
}

/// [`store`] for `N` vectors of four columns.
///
/// # Safety
/// As [`tile_fp16`].
#[inline]
#[target_feature(enable = "neon")]
unsafe fn part<const MR: usize, const NV: usize, const N: usize>(
    s: Neon,
    args: &TileArgs,
    sums: &[[[float32x4_t; 2]; NV]; MR],
) {
    let mut acc = [[s.splat(0.0); N]; MR];
    for (row, from) in acc.iter_mut().zip(sums) {
        for (to, value) in row.iter_mut().zip(from.iter().flatten()) {
            *to = *value;
        }
    }
    // SAFETY: as promised by the caller.
    unsafe {
        if let Some(epilogue) = &args.epilogue {
            finish(s, &mut acc, epilogue, args.columns);
        }
        for (i, row) in acc.iter().enumerate() {
            store_columns(s, args.c.add(i * args.c_stride), row, args.columns);
        }
    }
}

/// The nearest binary16 numbers, halves to even; values beyond 65504 become infinite.
pub(super) fn round_fp16(from: &[f32], to: &mut [u16]) {
    debug_assert!(NeonFp16::detect().is_some());
    for (x, half) in from.iter().zip(to) {
        *half = half::f16::from_f32(*x).to_bits();
    }
}
