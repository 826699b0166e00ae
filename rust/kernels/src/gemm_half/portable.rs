//! Plain code: what the other kernels are compared with.

use super::kernels::{A_STRIDE, TileArgs};
use crate::gemm_f32::micro::{finish, load_columns, store_columns};
use crate::simd::{Portable, Simd};

pub(super) const NR: usize = 2 * Portable::LANES;

/// The nearest bfloat16, halves to even; NaN stays NaN.
pub(super) fn to_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    if x.is_nan() {
        return (bits >> 16) as u16 | 0x40;
    }
    ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16
}

pub(super) fn round_bf16(from: &[f32], to: &mut [u16]) {
    for (x, half) in from.iter().zip(to) {
        *half = to_bf16(*x);
    }
}

fn from_bf16(half: u16) -> f32 {
    f32::from_bits(u32::from(half) << 16)
}

/// # Safety
/// As [`TileFn`](super::kernels::TileFn).
pub(super) unsafe fn tile_plain<const MR: usize, const NV: usize>(args: &TileArgs) {
    let s = Portable;
    let lanes = Portable::LANES;
    let mut acc = [[s.splat(0.0); NV]; MR];
    // SAFETY: the caller vouches for all the memory that the arguments describe.
    unsafe {
        for (i, row) in acc.iter_mut().enumerate() {
            for (v, sum) in row.iter_mut().enumerate() {
                if args.accumulate {
                    *sum = load_columns(s, args.c.add(i * args.c_stride), v, args.columns);
                }
                let mut sums = s.lanes(*sum);
                for group in 0..args.groups {
                    for part in 0..2 {
                        let a = from_bf16(*args.a.add(i * A_STRIDE + 2 * group + part));
                        for (lane, sum) in sums[..lanes].iter_mut().enumerate() {
                            let at = (group * NR + v * lanes + lane) * 2 + part;
                            *sum += a * from_bf16(*args.b.add(at));
                        }
                    }
                }
                *sum = s.load(sums.as_ptr());
            }
        }
        if let Some(epilogue) = &args.epilogue {
            finish(s, &mut acc, epilogue, args.columns);
        }
        for (i, row) in acc.iter().enumerate() {
            store_columns(s, args.c.add(i * args.c_stride), row, args.columns);
        }
    }
}
