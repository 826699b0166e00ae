//! Every kernel of the machine against the reference, bit for bit.

use super::*;
use crate::elementwise::Unary;
use crate::elementwise_i8::{AddI8, TableI8};
use crate::parallel::{Executor, ScopedThreads, Serial};
use crate::testing::{Guarded, Rng, assert_close};
use crate::{Epilogue, KernelError, Residual};

/// Codes of which many are extreme.
fn codes(rng: &mut Rng, count: usize) -> Vec<i8> {
    let mut codes = rng.bytes_i8(count);
    for code in codes.iter_mut() {
        if rng.next_u64().is_multiple_of(3) {
            *code = rng.choose(&[-128, -128, -127, 127, 127, 0]);
        }
    }
    codes
}

struct Case {
    m: usize,
    n: usize,
    k: usize,
    gap: usize,
    zero: i32,
    threads: usize,
}

impl Case {
    fn new(m: usize, n: usize, k: usize) -> Self {
        Self { m, n, k, gap: 0, zero: 0, threads: 1 }
    }
}

struct Data {
    a: Vec<i8>,
    b: Vec<i8>,
    sums: Vec<i32>,
}

fn data(case: &Case, rng: &mut Rng) -> Data {
    let &Case { m, n, k, gap, zero, .. } = case;
    let a = codes(rng, m * (k + gap));
    let b = codes(rng, n * k);
    let sums = gemm_i8_reference([m, n, k], &a, k + gap, &b, zero);
    Data { a, b, sums }
}

fn run(kernel: &GemmI8, case: &Case, data: &Data, output: Output<'_>) {
    let &Case { m, n, k, gap, zero, threads } = case;
    let packed = PackedI8::new(kernel, &data.b, k, n, k, zero).unwrap();
    let mut scratch = vec![0xa5; scratch_len(kernel, k) * threads];
    let executor: &dyn Executor = if threads == 1 { &Serial } else { &ScopedThreads(threads) };
    gemm_i8(kernel, m, &data.a, k + gap, &packed, output, &mut scratch, executor).unwrap();
}

fn check_sums(kernel: &GemmI8, case: &Case, rng: &mut Rng) {
    let data = data(case, rng);
    let (m, n, stride) = (case.m, case.n, case.n + case.gap);
    let mut out = Guarded::new(m.saturating_sub(1) * stride + if m > 0 { n } else { 0 }, 77, -1);
    run(kernel, case, &data, Output::Int32 { data: out.get_mut(), row_stride: stride });
    out.check();
    for i in 0..m {
        let what = format!("{kernel:?} {m}x{n}x{} zero {} row {i}", case.k, case.zero);
        assert_eq!(&out.get()[i * stride..][..n], &data.sums[i * n..][..n], "{what}");
        if i + 1 < m {
            assert!(out.get()[i * stride + n..(i + 1) * stride].iter().all(|&x| x == 77), "{what}: gap");
        }
    }
}

#[test]
fn every_m_and_n_up_to_two_tiles_plus_one_gives_the_exact_sums() {
    for kernel in GemmI8::all_available() {
        let mut rng = Rng::new(1);
        for m in 0..=2 * kernel.mr() + 1 {
            for n in 0..=2 * kernel.nr() + 1 {
                let k = (m * 7 + n) % 11;
                check_sums(&kernel, &Case { zero: 3, ..Case::new(m, n, k) }, &mut rng);
            }
        }
    }
}

#[test]
fn every_k_around_a_chunk_gives_the_exact_sums() {
    for kernel in GemmI8::all_available() {
        let mut rng = Rng::new(2);
        for k in (0..40).chain([63, 64, 65, 255, 256, 257, 511, 512, 513, 1023, 1025, 1600]) {
            check_sums(&kernel, &Case { gap: 3, zero: -128, ..Case::new(17, 21, k) }, &mut rng);
        }
    }
}

#[test]
fn few_rows_over_many_panels_give_the_exact_sums() {
    for kernel in GemmI8::all_available() {
        let mut rng = Rng::new(3);
        for m in 1..5 {
            for n in [4, 5, 8, 9].map(|panels| panels * kernel.nr() + 3) {
                for threads in [1, 3] {
                    let case = Case { gap: 1, zero: 127, threads, ..Case::new(m, n, 700) };
                    check_sums(&kernel, &case, &mut rng);
                }
            }
        }
    }
}

#[test]
fn blocks_and_threads_give_the_exact_sums() {
    for kernel in GemmI8::all_available() {
        let mut rng = Rng::new(4);
        for (m, n, k) in [(1, 600, 2000), (300, 33, 1100), (129, 129, 129), (37, 40, 6000)] {
            for threads in [1, 2, 5] {
                check_sums(&kernel, &Case { threads, ..Case::new(m, n, k) }, &mut rng);
            }
        }
    }
}

#[test]
fn all_extreme_codes_give_the_exact_sums() {
    for kernel in GemmI8::all_available() {
        for (x, w) in [(-128, -128), (-128, 127), (127, -128), (127, 127)] {
            let (m, n, k) = (15, 33, 513);
            for zero in [-128, 0, 127] {
                let case = Case { zero, ..Case::new(m, n, k) };
                let sums = vec![(i32::from(x) - zero) * i32::from(w) * k as i32; m * n];
                let data = Data { a: vec![x; m * k], b: vec![w; n * k], sums };
                let mut out = vec![0; m * n];
                run(&kernel, &case, &data, Output::Int32 { data: &mut out, row_stride: n });
                assert_eq!(out, data.sums, "{kernel:?} {x} {w} {zero}");
            }
        }
    }
}

#[test]
fn requantized_codes_are_those_of_the_formula_on_every_kernel() {
    let (m, n, k) = (31, 71, 300);
    let mut rng = Rng::new(5);
    let scale = rng.floats(n, 1e-5, 4e-4);
    let bias = rng.floats(n, -30.0, 30.0);
    let residual = codes(&mut rng, m * (n + 1));
    for (zero, lo, hi) in
        [(0, -127, 127), (-128, -128, 127), (-5, -5, 127), (100, -128, 110), (127, 127, 127)]
    {
        let table = TableI8::new(|code| code.wrapping_mul(5));
        for with in 0..16 {
            // Zero points that cancel have a path of their own.
            let (a_zero, b_zero) = if with & 8 != 0 { (zero, 0) } else { (3, 11) };
            let requantize = Requantize {
                bias: (with & 1 != 0).then_some(&bias[..]),
                lo,
                hi,
                residual: (with & 2 != 0).then_some(ResidualI8 {
                    data: &residual,
                    row_stride: n + 1,
                    how: AddI8 { a_scale: 0.7, a_zero, b_scale: 0.37, b_zero, zero: -9, lo: -9, hi: 120 },
                }),
                table: (with & 4 != 0).then_some(&table),
                ..Requantize::new(&scale, None, zero)
            };
            let case = Case { zero: 7, gap: 2, ..Case::new(m, n, k) };
            let data = data(&case, &mut rng);
            for kernel in GemmI8::all_available() {
                let mut out = Guarded::new(m * n, 55, 66);
                run(&kernel, &case, &data, Output::Int8 { data: out.get_mut(), row_stride: n, requantize });
                out.check();
                for (index, &code) in out.get().iter().enumerate() {
                    let want = requantize.reference(data.sums[index], index / n, index % n);
                    assert_eq!(code, want, "{kernel:?} element {index}");
                }
            }
        }
    }
}

#[test]
fn codes_are_those_of_the_formula_in_f64_but_next_to_halves() {
    let (channels, per_channel) = (64, 4000);
    let mut rng = Rng::new(12);
    let weight_scale = rng.floats(channels, 1e-3, 1e-2);
    let real_bias = rng.floats(channels, -1.0, 1.0);
    let (scale_in, scale_out) = (0.043_f32, 0.071_f32);
    let (scale, bias) = requantize_parameters(scale_in, &weight_scale, &real_bias, scale_out).unwrap();
    let requantize = Requantize::new(&scale, Some(&bias), 0);
    let mut differ = 0;
    for c in 0..channels {
        for _ in 0..per_channel {
            let acc = rng.integer(-40_000, 40_000) as i32;
            let real =
                f64::from(acc) * f64::from(weight_scale[c]) * f64::from(scale_in) + f64::from(real_bias[c]);
            let exact = real / f64::from(scale_out);
            let got = f64::from(requantize.reference(acc, 0, c));
            if got != exact.round().clamp(-127.0, 127.0) {
                differ += 1;
                let from_half = (exact.abs().fract() - 0.5).abs();
                assert!(from_half <= exact.abs().max(1.0) * 2.4e-7, "{exact} became {got}");
            }
        }
    }
    assert!(differ <= channels * per_channel / 10_000, "{differ} codes differ");
    assert!(requantize_parameters(1.0, &weight_scale, &real_bias[1..], 1.0).is_err());
    assert!(requantize_parameters(1.0, &weight_scale, &real_bias, 0.0).is_err());
}

#[test]
fn exact_halves_round_away_from_zero_on_every_kernel() {
    // Sums 0, 1, 2 ... with scale 1/2, and sums far outside the range of a code.
    let n = 17;
    let b: Vec<i8> = (0..n).map(|j| j - 8).collect();
    let scale = vec![0.5; n as usize];
    for kernel in GemmI8::all_available() {
        for x in [1, -1, 3, 127] {
            let case = Case::new(1, n as usize, 1);
            let data = Data { a: vec![x], b: b.clone(), sums: Vec::new() };
            let mut out = vec![0; n as usize];
            let requantize = Requantize::new(&scale, None, 0);
            run(&kernel, &case, &data, Output::Int8 { data: &mut out, row_stride: n as usize, requantize });
            for (code, w) in out.iter().zip(&b) {
                let want = (f64::from(x) * f64::from(*w) * 0.5).round().clamp(-127.0, 127.0);
                assert_eq!(f64::from(*code), want, "{kernel:?} {x} {w}");
            }
        }
    }
}

#[test]
fn dequantized_values_are_those_of_the_formula_and_equal_on_every_kernel() {
    let (m, n, k) = (9, 50, 130);
    let mut rng = Rng::new(6);
    let case = Case::new(m, n, k);
    let data = data(&case, &mut rng);
    let (row_scale, row_offset) = (rng.floats(m, 0.01, 0.1), rng.floats(m, -1.0, 1.0));
    let (column_scale, column_offset) = (rng.floats(n, 0.01, 0.1), rng.floats(n, -1.0, 1.0));
    let row_sum: Vec<i32> = data.a.chunks(k).map(|row| row.iter().map(|&x| i32::from(x)).sum()).collect();
    let real = |i: usize, j: usize, p: usize| {
        let x = f64::from(row_scale[i]) * f64::from(data.a[i * k + p]) + f64::from(row_offset[i]);
        let w = f64::from(column_scale[j]) * f64::from(data.b[j * k + p]) + f64::from(column_offset[j]);
        (x, w)
    };
    let column_sum: Vec<f32> = (0..n).map(|j| (0..k).map(|p| real(0, j, p).1).sum::<f64>() as f32).collect();
    let (bias, other) = (rng.floats(n, -1.0, 1.0), rng.floats(m * n, -1.0, 1.0));
    for activation in [Unary::Identity, Unary::Relu, Unary::Silu] {
        for residual in [None, Some(Residual { data: &other, row_stride: n, then: Unary::Relu })] {
            let epilogue = Epilogue { scale: None, bias: Some(&bias), activation, residual };
            let dequantize = Dequantize {
                row_scale: &row_scale,
                row_offset: Some(&row_offset),
                row_sum: Some(&row_sum),
                column_scale: &column_scale,
                column_offset: Some(&column_offset),
                column_sum: Some(&column_sum),
                epilogue,
            };
            let mut want = Vec::new();
            for i in 0..m {
                for j in 0..n {
                    let sum: f64 = (0..k).map(|p| real(i, j, p)).map(|(x, w)| x * w).sum();
                    let act = |f: Unary, x: f32| match f {
                        Unary::Relu => x.max(0.0),
                        Unary::Silu => x / (1.0 + (-x).exp()),
                        _ => x,
                    };
                    want.push(epilogue.reference(sum as f32, i, j, act));
                }
            }
            let mut first: Option<Vec<f32>> = None;
            for kernel in GemmI8::all_available() {
                let mut out = Guarded::new(m * n, f32::NAN, 3.0);
                run(&kernel, &case, &data, Output::Float { data: out.get_mut(), row_stride: n, dequantize });
                out.check();
                assert_close(out.get(), &want, 0.02, 1e-4, &format!("{kernel:?} {activation:?}"));
                if activation != Unary::Silu {
                    let first = first.get_or_insert_with(|| out.get().to_vec());
                    assert_eq!(out.get(), &first[..], "{kernel:?} {activation:?}");
                }
            }
        }
    }
}

#[test]
fn arguments_that_do_not_fit_are_refused() {
    let all = GemmI8::all_available();
    let kernel = &all[0];
    assert!(PackedI8::new(kernel, &[0; 5], 2, 3, 2, 0).is_err());
    assert!(PackedI8::new(kernel, &[0; 6], 2, 3, 2, 128).is_err());
    assert!(PackedI8::new(kernel, &[0; 70_000], 70_000, 1, 70_000, 0).is_err());
    let packed = PackedI8::new(kernel, &[0; 6], 2, 3, 2, 0).unwrap();
    let mut scratch = vec![0; scratch_len(kernel, 2)];
    let scale = [1.0; 3];
    let mut int8 = |a: usize, out: usize, how: Requantize<'_>| {
        let (a, mut out) = (vec![0; a], vec![0; out]);
        let output = Output::Int8 { data: &mut out, row_stride: 3, requantize: how };
        gemm_i8(kernel, 2, &a, 2, &packed, output, &mut scratch, &Serial)
    };
    let good = Requantize::new(&scale, None, 0);
    assert!(int8(4, 6, good).is_ok());
    assert!(int8(3, 6, good).is_err() && int8(4, 5, good).is_err());
    assert!(int8(4, 6, Requantize { scale: &scale[..2], ..good }).is_err());
    assert!(int8(4, 6, Requantize { lo: 5, hi: 4, ..good }).is_err());
    assert!(int8(4, 6, Requantize { hi: 128, ..good }).is_err());
    for other in &all[1..] {
        let mut out = [0; 6];
        let output = Output::Int32 { data: &mut out, row_stride: 3 };
        let mut scratch = vec![0; scratch_len(other, 2)];
        let result = gemm_i8(other, 2, &[0; 4], 2, &packed, output, &mut scratch, &Serial);
        assert!(matches!(result, Err(KernelError::PackedForOther { .. })));
    }
}
