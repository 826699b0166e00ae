//! AVX-512 BF16: two products of bfloat16 numbers per lane and instruction, added to an `f32` sum.

use std::arch::x86_64::*;

use super::kernels::{A_STRIDE, TileArgs};
use crate::cpu::{Avx512, Avx512Bf16};
use crate::gemm_f32::micro::{finish, load_columns, store_columns};
use crate::simd::Simd;

pub(super) const NR: usize = 2 * Avx512::LANES;

/// Elements that weights are fetched ahead of their use.
const AHEAD: usize = 1024;

/// # Safety
/// As [`TileFn`](super::kernels::TileFn); the CPU has AVX-512 BF16.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")]
#[allow(
    clippy::needless_range_loop,
    reason = "counted loops over register tiles are what the compiler unrolls"
)]
pub(super) unsafe fn tile_bf16<const MR: usize, const NV: usize>(args: &TileArgs) {
    let mut acc = [[_mm512_setzero_ps(); NV]; MR];
    // SAFETY: the caller vouches for all the memory that the arguments describe; a kernel exists only with its token.
    unsafe {
        let s = Avx512::assume();
        if args.accumulate {
            for i in 0..MR {
                for v in 0..NV {
                    acc[i][v] = load_columns(s, args.c.add(i * args.c_stride), v, args.columns);
                }
            }
        }
        let (mut a, mut b) = (args.a, args.b);
        for _ in 0..args.groups {
            let mut pairs = [_mm512_setzero_si512(); NV];
            for v in 0..NV {
                _mm_prefetch::<_MM_HINT_T0>(b.wrapping_add(2 * v * Avx512::LANES + AHEAD).cast());
                pairs[v] = _mm512_loadu_si512(b.add(2 * v * Avx512::LANES).cast());
            }
            for i in 0..MR {
                let x = _mm512_set1_epi32(a.add(i * A_STRIDE).cast::<i32>().read_unaligned());
                for v in 0..NV {
                    // The types differ in name only.
                    let x = std::mem::transmute::<__m512i, __m512bh>(x);
                    let y = std::mem::transmute::<__m512i, __m512bh>(pairs[v]);
                    acc[i][v] = _mm512_dpbf16_ps(acc[i][v], x, y);
                }
            }
            a = a.add(2);
            b = b.add(2 * NR);
        }
        if let Some(epilogue) = &args.epilogue {
            finish(s, &mut acc, epilogue, args.columns);
        }
        for i in 0..MR {
            store_columns(s, args.c.add(i * args.c_stride), &acc[i], args.columns);
        }
    }
}

/// The nearest bfloat16 numbers, halves to even.
pub(super) fn round_bf16(from: &[f32], to: &mut [u16]) {
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")]
    fn compiled(from: &[f32], to: &mut [u16]) {
        let (from, rest) = from.as_chunks::<16>();
        let (to, end) = to.as_chunks_mut::<16>();
        for (x, halves) in from.iter().zip(to) {
            // SAFETY: the arrays hold sixteen values each.
            unsafe {
                let rounded = _mm512_cvtneps_pbh(_mm512_loadu_ps(x.as_ptr()));
                _mm256_storeu_si256(
                    halves.as_mut_ptr().cast(),
                    std::mem::transmute::<__m256bh, __m256i>(rounded),
                );
            }
        }
        super::portable::round_bf16(rest, end);
    }
    if Avx512Bf16::detect().is_some() {
        // SAFETY: the token was just made, so the CPU has every feature that `compiled` enables.
        unsafe { compiled(from, to) }
    } else {
        super::portable::round_bf16(from, to);
    }
}
