//! Every kernel of the machine against the reference.

use super::*;
use crate::elementwise::{Unary, unary};
use crate::parallel::{Executor, ScopedThreads, Serial};
use crate::simd::VectorIsa;
use crate::testing::{Guarded, Rng, assert_close};
use crate::{Epilogue, KernelError, Residual};

fn scalar(f: Unary, x: f32) -> f32 {
    let mut y = [0.0];
    unary(VectorIsa::Portable, f, &[x], &mut y);
    y[0]
}

struct Case<'a> {
    m: usize,
    n: usize,
    k: usize,
    /// Added to the row distances of A, of the residual and of the output.
    gap: usize,
    epilogue: Epilogue<'a>,
    threads: usize,
}

/// Runs a case and compares; returns the output with its gaps.
fn check(kernel: &GemmF32, case: &Case<'_>, rng: &mut Rng) -> Vec<f32> {
    let &Case { m, n, k, gap, epilogue, threads } = case;
    let a = rng.floats(m * (k + gap), -1.0, 1.0);
    let b = rng.floats(k * n, -1.0, 1.0);
    let packed = PackedB::from_rows(kernel, &b, k, n, n).unwrap();
    let stride = n + gap;
    let mut out = Guarded::new(m.saturating_sub(1) * stride + if m > 0 { n } else { 0 }, 5.5, -99.0);
    let mut scratch = vec![f32::NAN; scratch_len() * threads];
    let executor: &dyn Executor = if threads == 1 { &Serial } else { &ScopedThreads(threads) };
    gemm_f32(kernel, m, &a, k + gap, &packed, &epilogue, out.get_mut(), stride, &mut scratch, executor)
        .unwrap();
    out.check();
    let sums = gemm_f32_reference(m, n, k, &a, k + gap, &b);
    for i in 0..m {
        let want: Vec<f32> = (0..n).map(|j| epilogue.reference(sums[i * n + j], i, j, scalar)).collect();
        let what = format!("{kernel:?} {m}x{n}x{k} gap {gap} threads {threads} row {i}");
        let tolerance = 1e-6 * (k as f32).sqrt() + 2e-6;
        assert_close(&out.get()[i * stride..][..n], &want, tolerance, 1e-5, &what);
        if i + 1 < m {
            let after = &out.get()[i * stride + n..(i + 1) * stride];
            assert!(after.iter().all(|&x| x == 5.5), "{what}: wrote between rows");
        }
    }
    out.get().to_vec()
}

#[test]
fn every_m_and_n_up_to_two_tiles_plus_one_is_right() {
    for kernel in GemmF32::all_available() {
        let mut rng = Rng::new(1);
        for m in 0..=2 * kernel.mr() + 1 {
            for n in 0..=2 * kernel.nr() + 1 {
                let k = (m * 7 + n) % 5;
                let case = Case { m, n, k, gap: 0, epilogue: Epilogue::default(), threads: 1 };
                check(&kernel, &case, &mut rng);
            }
        }
    }
}

#[test]
fn every_k_around_a_block_is_right_with_strides() {
    for kernel in GemmF32::all_available() {
        let mut rng = Rng::new(2);
        for k in (0..20).chain([255, 256, 257, 511, 512, 513, 700]) {
            let bias = rng.floats(21, -1.0, 1.0);
            let epilogue = Epilogue::new(Some(&bias), Unary::Relu);
            check(&kernel, &Case { m: 17, n: 21, k, gap: 3, epilogue, threads: 1 }, &mut rng);
        }
    }
}

#[test]
fn every_combination_of_epilogue_steps_is_right() {
    let (m, n) = (19, 37);
    let mut rng = Rng::new(3);
    let scale = rng.floats(n, 0.5, 2.0);
    let bias = rng.floats(n, -1.0, 1.0);
    let data = rng.floats(m * (n + 2), -1.0, 1.0);
    let functions =
        [Unary::Identity, Unary::Relu, Unary::Clamp { lo: -0.5, hi: 0.5 }, Unary::Silu, Unary::Gelu];
    for kernel in GemmF32::all_available() {
        for with in 0..4 {
            for activation in functions {
                for then in [None, Some(Unary::Identity), Some(Unary::Relu), Some(Unary::Tanh)] {
                    let residual = then.map(|then| Residual { data: &data, row_stride: n + 2, then });
                    let epilogue = Epilogue {
                        scale: (with & 1 != 0).then_some(&scale[..]),
                        bias: (with & 2 != 0).then_some(&bias[..]),
                        activation,
                        residual,
                    };
                    for k in [3, 300] {
                        check(&kernel, &Case { m, n, k, gap: 0, epilogue, threads: 1 }, &mut rng);
                    }
                }
            }
        }
    }
}

#[test]
fn the_result_does_not_depend_on_the_number_of_threads() {
    for kernel in GemmF32::all_available() {
        for (m, n, k) in [(1, 300, 600), (49, 200, 300), (300, 33, 70), (129, 129, 129)] {
            let run = |threads| {
                let case = Case { m, n, k, gap: 1, epilogue: Epilogue::default(), threads };
                check(&kernel, &case, &mut Rng::new(4))
            };
            let serial = run(1);
            assert_eq!(serial, run(2));
            assert_eq!(serial, run(5));
        }
    }
}

#[test]
fn packing_rows_and_columns_gives_the_same_data() {
    let (k, n) = (13, 45);
    let b = Rng::new(6).floats(k * n, -1.0, 1.0);
    let mut transposed = vec![0.0; n * k];
    for p in 0..k {
        for j in 0..n {
            transposed[j * k + p] = b[p * n + j];
        }
    }
    for kernel in GemmF32::all_available() {
        let rows = PackedB::from_rows(&kernel, &b, k, n, n).unwrap();
        let columns = PackedB::from_columns(&kernel, &transposed, k, n, k).unwrap();
        for first in (0..n).step_by(kernel.nr()) {
            assert_eq!(rows.panel(first, 0), columns.panel(first, 0));
        }
    }
}

#[test]
fn arguments_that_do_not_fit_are_refused() {
    let kernel = GemmF32::new(VectorIsa::Portable);
    let packed = PackedB::from_rows(&kernel, &[0.0; 6], 2, 3, 3).unwrap();
    let mut scratch = vec![0.0; scratch_len()];
    let mut run = |a: &[f32], out: &mut [f32], bias: Option<&[f32]>| {
        let epilogue = Epilogue::new(bias, Unary::Identity);
        gemm_f32(&kernel, 2, a, 2, &packed, &epilogue, out, 3, &mut scratch, &Serial)
    };
    assert!(run(&[0.0; 4], &mut [0.0; 6], None).is_ok());
    for error in [
        run(&[0.0; 3], &mut [0.0; 6], None),
        run(&[0.0; 4], &mut [0.0; 5], None),
        run(&[0.0; 4], &mut [0.0; 6], Some(&[0.0; 2])),
    ] {
        assert!(matches!(error, Err(KernelError::Size { .. })), "{error:?}");
    }
    assert!(PackedB::from_rows(&kernel, &[0.0; 5], 2, 3, 3).is_err());
    for other in GemmF32::all_available() {
        let foreign = PackedB::from_rows(&other, &[0.0; 6], 2, 3, 3).unwrap();
        let epilogue = Epilogue::default();
        let mut out = [0.0; 6];
        let result =
            gemm_f32(&kernel, 2, &[0.0; 4], 2, &foreign, &epilogue, &mut out, 3, &mut scratch, &Serial);
        assert_eq!(result.is_ok(), other.name() == kernel.name());
    }
}
