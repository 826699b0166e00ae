//! Every kernel of the machine against the formula, and against each other bit for bit.

use super::*;
use crate::elementwise::Unary;
use crate::parallel::{Executor, ScopedThreads, Serial};
use crate::quantize_rows::{RowCodes, RowQuantizer, RowScheme, quantize_rows};
use crate::simd::VectorIsa;
use crate::testing::{Guarded, Rng, assert_close};
use crate::{Epilogue, KernelError};

struct Case {
    m: usize,
    n: usize,
    k: usize,
    block: usize,
    bits: u32,
    offsets: bool,
    scheme: RowScheme,
    threads: usize,
}

/// Runs a case on every kernel.
fn check(case: &Case, seed: u64) {
    let &Case { m, n, k, block, bits, offsets, scheme, threads } = case;
    let mut rng = Rng::new(seed);
    let blocks = k.div_ceil(block);
    let half = 1_i64 << (bits - 1);
    let codes: Vec<i8> = (0..n * k).map(|_| rng.integer(-half, half - 1) as i8).collect();
    let scales = rng.floats(n * blocks, 0.01, 0.1);
    let shifts = rng.floats(n * blocks, -0.2, 0.2);
    let weights = BlockWeights {
        codes: &codes,
        n,
        k,
        block,
        bits,
        scales: &scales,
        offsets: offsets.then_some(&shifts[..]),
    };
    let x = rng.floats(m * k, -1.0, 3.0);
    let (mut q, mut row_scales, mut row_offsets) = (vec![0; m * (k + 3)], vec![0.0; m], vec![0.0; m]);
    let mut sums = vec![0; m * blocks];
    let out = RowCodes {
        codes: &mut q,
        row_stride: k + 3,
        scales: &mut row_scales,
        offsets: &mut row_offsets,
        sums: &mut sums,
    };
    let how = RowQuantizer { scheme, per_tensor: false, block };
    quantize_rows(VectorIsa::Portable, how, &x, [m, k], k, out, &Serial).unwrap();
    let rows = BlockRows {
        m,
        codes: &q,
        row_stride: k + 3,
        scales: &row_scales,
        offsets: (scheme != RowScheme::Symmetric).then_some(&row_offsets[..]),
        sums: &sums,
    };
    let bias = rng.floats(n, -1.0, 1.0);
    let epilogue = Epilogue::new(Some(&bias), Unary::Relu);
    let mut want = Vec::new();
    for i in 0..m {
        for j in 0..n {
            let mut sum = 0.0_f64;
            for p in 0..k {
                let b = j * blocks + p / block;
                let w = f64::from(codes[j * k + p]) * f64::from(scales[b])
                    + if offsets { f64::from(shifts[b]) } else { 0.0 };
                sum += w
                    * (f64::from(q[i * (k + 3) + p]) * f64::from(row_scales[i]) + f64::from(row_offsets[i]));
            }
            want.push((sum + f64::from(bias[j])).max(0.0) as f32);
        }
    }
    let executor: &dyn Executor = if threads == 1 { &Serial } else { &ScopedThreads(threads) };
    let mut first: Option<Vec<f32>> = None;
    for kernel in GemmW4::all_available() {
        let packed = PackedBlocks::new(&kernel, &weights).unwrap();
        assert_eq!(packed.is_nibbles(), bits <= 4);
        let stride = n + 2;
        let mut out = Guarded::new((m - 1) * stride + n, 9.5, -9.5);
        let mut scratch = vec![55; gemm_w4_scratch_len(m, &packed)];
        gemm_w4(&kernel, &rows, &packed, &epilogue, out.get_mut(), stride, &mut scratch, executor).unwrap();
        out.check();
        let what = format!("{kernel:?} {m}x{n}x{k} block {block} bits {bits} offsets {offsets} {scheme:?}");
        let mut got = Vec::new();
        for i in 0..m {
            got.extend_from_slice(&out.get()[i * stride..][..n]);
            if i + 1 < m {
                assert_eq!(out.get()[i * stride + n..(i + 1) * stride], [9.5; 2], "{what}");
            }
        }
        let magnitude = 1e-6 * k as f32 * f32::from(1_u16 << bits);
        assert_close(&got, &want, 2e-5 + magnitude, 1e-5, &what);
        let first = first.get_or_insert_with(|| got.clone());
        assert_eq!(&got, first, "{what}");
    }
}

#[test]
fn every_bit_width_block_and_scheme_is_right_and_equal_on_every_kernel() {
    for bits in 2..=8 {
        for block in [16, 32, 64, 128, 96] {
            for scheme in [RowScheme::Symmetric, RowScheme::Asymmetric] {
                for offsets in [false, true] {
                    let case = Case { m: 3, n: 37, k: 256, block, bits, offsets, scheme, threads: 1 };
                    check(&case, u64::from(bits));
                }
            }
        }
    }
}

#[test]
fn every_row_and_column_count_is_right() {
    for m in (1..14).chain([25]) {
        for n in [1, 7, 8, 15, 16, 17, 31, 32, 33, 64, 127, 128, 129, 160] {
            let case = Case {
                m,
                n,
                k: 64,
                block: 32,
                bits: if n % 2 == 0 { 8 } else { 4 },
                offsets: m % 2 == 0,
                scheme: RowScheme::Asymmetric,
                threads: 1 + m % 3,
            };
            check(&case, n as u64);
        }
    }
}

#[test]
fn lengths_that_are_no_multiple_of_eight_or_of_the_block_are_padded() {
    for (k, block) in [(1, 1), (7, 7), (9, 4), (100, 32), (33, 33), (30, 12), (40, 64), (23, 8)] {
        for bits in [4, 8] {
            let scheme = RowScheme::Symmetric;
            check(&Case { m: 2, n: 19, k, block, bits, offsets: true, scheme, threads: 1 }, k as u64);
        }
    }
}

#[test]
fn extreme_codes_are_exact() {
    for bits in [4, 8] {
        for (q, p) in [(-128, -1), (127, -1), (-128, 1), (127, 1)] {
            let (m, n, k, block) = (3, 33, 512, 512);
            let half = 1_i32 << (bits - 1);
            let p = if p < 0 { -half } else { half - 1 };
            let weights = BlockWeights {
                codes: &vec![p as i8; n * k],
                n,
                k,
                block,
                bits,
                scales: &vec![1.0; n],
                offsets: None,
            };
            let sums = vec![q * k as i32; m];
            let rows = BlockRows {
                m,
                codes: &vec![q as i8; m * k],
                row_stride: k,
                scales: &[1.0],
                offsets: None,
                sums: &sums,
            };
            for kernel in GemmW4::all_available() {
                let packed = PackedBlocks::new(&kernel, &weights).unwrap();
                let mut out = vec![0.0; m * n];
                gemm_w4(&kernel, &rows, &packed, &Epilogue::default(), &mut out, n, &mut [], &Serial)
                    .unwrap();
                assert!(out.iter().all(|&y| y == (q * p * k as i32) as f32), "{kernel:?} {q} {p}");
            }
        }
    }
}

#[test]
fn arguments_that_do_not_fit_are_refused() {
    let kernel = GemmW4::all_available()[0];
    let good =
        BlockWeights { codes: &[1; 32], n: 2, k: 16, block: 8, bits: 4, scales: &[1.0; 4], offsets: None };
    let packed = PackedBlocks::new(&kernel, &good).unwrap();
    for bad in [
        BlockWeights { codes: &[1; 31], ..good },
        BlockWeights { codes: &[8; 32], ..good },
        BlockWeights { bits: 9, ..good },
        BlockWeights { bits: 1, ..good },
        BlockWeights { block: 0, ..good },
        BlockWeights { scales: &[1.0; 3], ..good },
        BlockWeights { offsets: Some(&[1.0; 3]), ..good },
    ] {
        assert!(PackedBlocks::new(&kernel, &bad).is_err(), "{bad:?}");
    }
    let rows =
        BlockRows { m: 1, codes: &[0; 16], row_stride: 16, scales: &[1.0], offsets: None, sums: &[0; 2] };
    let run = |rows: &BlockRows<'_>, out: usize| {
        gemm_w4(&kernel, rows, &packed, &Epilogue::default(), &mut vec![0.0; out], 2, &mut [], &Serial)
    };
    assert!(run(&rows, 2).is_ok());
    assert!(run(&rows, 1).is_err());
    assert!(run(&BlockRows { codes: &[0; 15], ..rows }, 2).is_err());
    assert!(run(&BlockRows { sums: &[0; 1], ..rows }, 2).is_err());
    for other in &GemmW4::all_available()[1..] {
        let mut out = [0.0; 2];
        let result = gemm_w4(other, &rows, &packed, &Epilogue::default(), &mut out, 2, &mut [], &Serial);
        assert!(matches!(result, Err(KernelError::PackedForOther { .. })));
    }
}
