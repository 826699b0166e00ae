//! Every kernel of the machine against the formula on rounded operands.

use super::*;
use crate::elementwise::Unary;
use crate::geometry::{Sliding, Window};
use crate::parallel::{Executor, ScopedThreads, Serial};
use crate::testing::{Guarded, Rng, assert_close};
use crate::{Epilogue, KernelError, Residual};

/// The value that a kernel computes with.
fn rounded(kernel: &GemmHalf, x: f32) -> f32 {
    let mut half = [0];
    (kernel.round)(&[x], &mut half);
    if kernel.format() == "bfloat16" {
        f32::from_bits(u32::from(half[0]) << 16)
    } else {
        half::f16::from_bits(half[0]).to_f32()
    }
}

/// Largest error of an element: of sums in `f32`, or of [`FLUSH`] products in binary16.
fn tolerance(kernel: &GemmHalf, k: usize) -> f32 {
    let step = if kernel.format() == "bfloat16" { 4e-7 } else { 2e-3 };
    step * ((k + 8) as f32).sqrt()
}

fn relu(f: Unary, x: f32) -> f32 {
    if f == Unary::Relu { x.max(0.0) } else { x }
}

fn check(kernel: &GemmHalf, [m, n, k]: [usize; 3], gap: usize, threads: usize, rng: &mut Rng) {
    let a = rng.floats(m * (k + gap), -1.0, 1.0);
    let bt = rng.floats(n * k, -1.0, 1.0);
    let packed = PackedHalf::from_columns(kernel, &bt, k, n, k).unwrap();
    let (scale, bias) = (rng.floats(n, 0.5, 1.5), rng.floats(n, -1.0, 1.0));
    let stride = n + gap;
    let residual = rng.floats(m * stride, -1.0, 1.0);
    let epilogue = Epilogue {
        scale: Some(&scale),
        bias: Some(&bias),
        activation: Unary::Relu,
        residual: Some(Residual { data: &residual, row_stride: stride, then: Unary::Relu }),
    };
    let mut out = Guarded::new((m.max(1) - 1) * stride + if m > 0 { n } else { 0 }, 5.5, -99.0);
    let mut scratch = vec![f32::NAN; scratch_len() * threads];
    let executor: &dyn Executor = if threads == 1 { &Serial } else { &ScopedThreads(threads) };
    gemm_half(kernel, m, &a, k + gap, &packed, &epilogue, out.get_mut(), stride, &mut scratch, executor)
        .unwrap();
    out.check();
    let half_a: Vec<f32> = a.iter().map(|&x| rounded(kernel, x)).collect();
    let half_b: Vec<f32> = bt.iter().map(|&x| rounded(kernel, x)).collect();
    for i in 0..m {
        let want: Vec<f32> = (0..n)
            .map(|j| {
                let sum: f64 =
                    (0..k).map(|p| f64::from(half_a[i * (k + gap) + p]) * f64::from(half_b[j * k + p])).sum();
                epilogue.reference(sum as f32, i, j, relu)
            })
            .collect();
        let what = format!("{kernel:?} {m}x{n}x{k} gap {gap} threads {threads} row {i}");
        assert_close(&out.get()[i * stride..][..n], &want, tolerance(kernel, k), 1e-5, &what);
        if i + 1 < m {
            let after = &out.get()[i * stride + n..(i + 1) * stride];
            assert!(after.iter().all(|&x| x == 5.5), "{what}: wrote between rows");
        }
    }
}

#[test]
fn every_row_and_column_count_is_right() {
    for kernel in GemmHalf::all_available() {
        let mut rng = Rng::new(1);
        for m in 0..=2 * kernel.mr() + 1 {
            for n in (0..=kernel.nr() + 3).chain([2 * kernel.nr() + 1]) {
                check(&kernel, [m, n, (m * 7 + n) % 19], 0, 1, &mut rng);
            }
        }
    }
}

#[test]
fn every_length_of_sums_row_distance_and_number_of_threads_is_right() {
    for kernel in GemmHalf::all_available() {
        let mut rng = Rng::new(2);
        for k in (0..70).chain([255, 256, 257, 511, 512, 513, 700, 1024, 1100]) {
            check(&kernel, [5, 19, k], 3, 1, &mut rng);
        }
        for threads in [2, 3] {
            check(&kernel, [130, 70, 600], 1, threads, &mut rng);
            check(&kernel, [1, 300, 300], 0, threads, &mut rng);
        }
    }
}

#[test]
fn threads_change_no_bit() {
    for kernel in GemmHalf::all_available() {
        let mut rng = Rng::new(3);
        let (m, n, k) = (150, 100, 700);
        let (a, b) = (rng.floats(m * k, -1.0, 1.0), rng.floats(k * n, -1.0, 1.0));
        let packed = PackedHalf::from_rows(&kernel, &b, k, n, n).unwrap();
        let run = |threads: usize| {
            let (mut out, mut scratch) = (vec![0.0; m * n], vec![0.0; scratch_len() * threads]);
            let epilogue = Epilogue::default();
            let executor = ScopedThreads(threads);
            gemm_half(&kernel, m, &a, k, &packed, &epilogue, &mut out, n, &mut scratch, &executor).unwrap();
            out
        };
        let one = run(1);
        assert!((2..4).all(|threads| run(threads) == one));
    }
}

#[test]
fn rounding_is_to_the_nearest_even_number() {
    let values = [0.0, -0.0, 1.0, 1.003_906_2, 1.011_718_8, 1.004, -3.25, 65504.0, 1e-3, f32::INFINITY];
    for kernel in GemmHalf::all_available() {
        let mut rng = Rng::new(4);
        for x in values.into_iter().chain(rng.floats(1000, -100.0, 100.0)) {
            let want = if kernel.format() == "bfloat16" {
                half::bf16::from_f32(x).to_f32()
            } else {
                half::f16::from_f32(x).to_f32()
            };
            assert_eq!(rounded(&kernel, x), want, "{kernel:?} {x}");
        }
        assert!(rounded(&kernel, f32::NAN).is_nan());
    }
}

#[test]
fn convolutions_are_those_of_rounded_operands() {
    let windows = [
        (Window::POINT, Window::POINT),
        (Window::new(3, 1, 1), Window::new(3, 2, 1)),
        (Window::new(7, 2, 3), Window { dilation: 2, ..Window::new(3, 1, 2) }),
    ];
    for kernel in GemmHalf::all_available() {
        for (vertical, horizontal) in windows {
            for (ic, oc, groups) in [(3, 17, 1), (40, 33, 1), (6, 4, 2)] {
                let g = Sliding::new([2, 7, 9, ic], vertical, horizontal).unwrap();
                let mut rng = Rng::new(7);
                let input = rng.floats(2 * 7 * 9 * ic, -1.0, 1.0);
                let weights = rng.floats(oc * ic / groups * g.taps(), -1.0, 1.0);
                let packed =
                    PackedConvHalf::new(&kernel, &weights, [oc, ic / groups, g.taps()], groups).unwrap();
                let mut out = Guarded::new(g.out_pixels() * oc, f32::NAN, -3.0);
                let mut scratch = vec![f32::NAN; 2 * scratch_len()];
                let epilogue = Epilogue::default();
                let executor = ScopedThreads(2);
                conv_half(&kernel, &g, &input, &packed, &epilogue, out.get_mut(), &mut scratch, &executor)
                    .unwrap();
                out.check();
                let round = |v: &[f32]| v.iter().map(|&x| rounded(&kernel, x)).collect::<Vec<_>>();
                let want =
                    crate::conv_f32::tests::reference(&g, &round(&input), &round(&weights), oc, groups);
                let k = ic / groups * g.taps();
                assert_close(out.get(), &want, tolerance(&kernel, k), 1e-5, &format!("{kernel:?} {g:?}"));
            }
        }
    }
}

#[test]
fn arguments_that_do_not_fit_are_refused() {
    for kernel in GemmHalf::all_available() {
        let packed = PackedHalf::from_rows(&kernel, &[0.0; 6], 2, 3, 3).unwrap();
        let mut scratch = vec![0.0; scratch_len()];
        let run = |a: usize, out: usize, scratch: &mut [f32]| {
            let (a, mut out) = (vec![0.0; a], vec![0.0; out]);
            gemm_half(&kernel, 2, &a, 2, &packed, &Epilogue::default(), &mut out, 3, scratch, &Serial)
        };
        assert!(run(4, 6, &mut scratch).is_ok());
        assert!(run(3, 6, &mut scratch).is_err() && run(4, 5, &mut scratch).is_err());
        assert!(run(4, 6, &mut []).is_err());
        assert!(PackedHalf::from_rows(&kernel, &[0.0; 5], 2, 3, 3).is_err());
        assert!(PackedConvHalf::new(&kernel, &[0.0; 18], [2, 1, 9], 3).is_err());
        for other in GemmHalf::all_available() {
            let (mut out, epilogue) = ([0.0; 6], Epilogue::default());
            let result =
                gemm_half(&other, 2, &[0.0; 4], 2, &packed, &epilogue, &mut out, 3, &mut scratch, &Serial);
            let foreign = matches!(result, Err(KernelError::PackedForOther { .. }));
            assert_eq!(foreign, other.name() != kernel.name());
        }
    }
}
