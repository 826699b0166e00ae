//! Functions against f64 over their whole range, binary broadcasts against a plain loop.

use super::*;
use crate::for_each_vector_isa;
use crate::simd::VectorIsa;
use crate::testing::{Guarded, Rng, SIZES, ulps};

/// Finite floats of both signs: every exponent, evenly in the bit pattern.
fn samples(step: usize) -> Vec<f32> {
    let positive = (0..=f32::MAX.to_bits()).step_by(step).map(f32::from_bits);
    let mut all: Vec<f32> = positive.flat_map(|x| [x, -x]).collect();
    let mut rng = Rng::new(5);
    all.extend(rng.floats(20_000, -12.0, 12.0));
    all.extend(rng.floats(5_000, -110.0, 110.0));
    all
}

fn apply(isa: VectorIsa, f: Unary, x: &[f32]) -> Vec<f32> {
    let mut out = vec![f32::NAN; x.len()];
    unary(isa, f, x, &mut out);
    out
}

/// Every how-many-th bit pattern is tested; emulated processors are slow.
const STEP: usize = if cfg!(target_arch = "x86_64") { 20_011 } else { 400_009 };

/// erfc by its continued fraction, erf by its series: about 1e-14 relative.
fn erfc64(x: f64) -> f64 {
    if x < 2.0 {
        return 1.0 - erf64(x);
    }
    let mut fraction = 0.0;
    for k in (1..=120).rev() {
        fraction = f64::from(k) / 2.0 / (x + fraction);
    }
    (-x * x).exp() / std::f64::consts::PI.sqrt() / (x + fraction)
}

fn erf64(x: f64) -> f64 {
    if x.abs() >= 2.0 {
        return x.signum() * (1.0 - erfc64(x.abs()));
    }
    let (mut term, mut sum) = (x, x);
    for n in 1..80 {
        term *= -x * x / f64::from(n);
        sum += term / f64::from(2 * n + 1);
    }
    sum * 2.0 / std::f64::consts::PI.sqrt()
}

struct Budget {
    f: Unary,
    exact: fn(f64) -> f64,
    /// Largest error in ulp of the result, where it is finite and normal.
    ulp: f64,
    domain: std::ops::Range<f64>,
}

const BUDGETS: &[Budget] = &[
    Budget { f: Unary::Exp, exact: f64::exp, ulp: 2.0, domain: -150.0..150.0 },
    Budget { f: Unary::Log, exact: f64::ln, ulp: 2.0, domain: 1e-46..1e39 },
    Budget { f: Unary::Sigmoid, exact: |x| 1.0 / (1.0 + (-x).exp()), ulp: 4.0, domain: -87.0..1e39 },
    Budget { f: Unary::Tanh, exact: f64::tanh, ulp: 3.0, domain: -1e39..1e39 },
    Budget { f: Unary::Erf, exact: erf64, ulp: 3.0, domain: -1e39..1e39 },
    Budget { f: Unary::Silu, exact: |x| x / (1.0 + (-x).exp()), ulp: 4.0, domain: -80.0..1e39 },
    Budget { f: Unary::Sqrt, exact: f64::sqrt, ulp: 0.5, domain: 0.0..1e39 },
    Budget { f: Unary::Rsqrt, exact: |x| 1.0 / x.sqrt(), ulp: 1.5, domain: 1e-37..1e39 },
    Budget { f: Unary::Reciprocal, exact: |x| 1.0 / x, ulp: 0.5, domain: 1e-37..1e37 },
    Budget {
        f: Unary::HardSwish,
        exact: |x| x * (x + 3.0).clamp(0.0, 6.0) / 6.0,
        ulp: 3.0,
        domain: -2.0..1e37,
    },
];

#[test]
fn transcendental_functions_stay_within_their_ulp_budgets_over_the_whole_range() {
    let x = samples(STEP);
    for_each_vector_isa!(|isa| {
        for budget in BUDGETS {
            let got = apply(isa, budget.f, &x);
            let mut worst = (0.0, 0.0);
            for (&x, &got) in x.iter().zip(&got) {
                let exact = (budget.exact)(f64::from(x));
                if !budget.domain.contains(&f64::from(x)) {
                    continue;
                }
                if exact.abs() > f64::from(f32::MAX) {
                    assert_eq!(f64::from(got), exact.signum() * f64::INFINITY, "{:?}({x})", budget.f);
                    continue;
                }
                let error = ulps(got, exact);
                if error > worst.0 {
                    worst = (error, x);
                }
            }
            // Plain multiply and add round once more per step.
            let allowed = if isa == VectorIsa::Portable { 2.0 * budget.ulp } else { budget.ulp };
            assert!(worst.0 <= allowed, "{:?} on {}: {} ulp at {}", budget.f, isa.level(), worst.0, worst.1);
        }
    });
}

#[test]
fn gelu_forms_stay_within_their_absolute_budget() {
    type Exact = fn(f64) -> f64;
    let forms: [(Unary, Exact, f64); 3] = [
        (Unary::Gelu, |x| 0.5 * x * erfc64(-x / 2f64.sqrt()), 2.5e-7),
        (
            Unary::GeluTanh,
            |x| 0.5 * x * (1.0 + (0.797_884_560_8 * (x + 0.044_715 * x * x * x)).tanh()),
            2.5e-7,
        ),
        // MNN's rational form is at most 1.8e-4 from the exact tanh form, and 5e-6 relative beyond the clamp.
        (Unary::GeluMnn, |x| 0.5 * x * (1.0 + (0.797_884_560_8 * (x + 0.044_715 * x * x * x)).tanh()), 2e-4),
    ];
    let x: Vec<f32> = samples(200_003).into_iter().filter(|x| x.abs() < 1e15).collect();
    let exact = forms.map(|(_, exact, _)| x.iter().map(|&x| exact(f64::from(x))).collect::<Vec<f64>>());
    for_each_vector_isa!(|isa| {
        for ((f, _, budget), exact) in forms.into_iter().zip(&exact) {
            for ((&x, got), exact) in x.iter().zip(apply(isa, f, &x)).zip(exact) {
                let error = (f64::from(got) - exact).abs() / f64::from(x.abs().max(1.0));
                assert!(error <= budget, "{f:?}({x}) = {got} on {}: error {error:e}", isa.level());
            }
        }
    });
}

#[test]
fn special_values_are_those_of_the_standard_library() {
    let x = [f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 0.0, -0.0, -1.0, 1e-45, -1e-45, f32::MAX, f32::MIN];
    type Plain = fn(f32) -> f32;
    let cases: &[(Unary, Plain)] = &[
        (Unary::Exp, f32::exp),
        (Unary::Log, f32::ln),
        (Unary::Tanh, f32::tanh),
        (Unary::Sqrt, f32::sqrt),
        (Unary::Sigmoid, |x| 1.0 / (1.0 + (-x).exp())),
        (Unary::Relu, |x| if x < 0.0 { 0.0 } else { x }),
        (Unary::Silu, |x| if x == f32::NEG_INFINITY { 0.0 } else { x / (1.0 + (-x).exp()) }),
        (Unary::Gelu, |x| {
            if x < -40.0 { 0.0 } else { 0.5 * x * (1.0 + erf64(f64::from(x) * 0.5f64.sqrt()) as f32) }
        }),
        (Unary::Erf, |x| erf64(f64::from(x)) as f32),
        (Unary::RoundAway, f32::round),
        (Unary::RoundEven, f32::round_ties_even),
    ];
    for_each_vector_isa!(|isa| {
        for (f, want) in cases {
            for (&x, got) in x.iter().zip(apply(isa, *f, &x)) {
                let want = want(x);
                let close = (got - want).abs() <= 2e-7 * want.abs();
                assert!(
                    got == want || close || (got.is_nan() && want.is_nan()),
                    "{f:?}({x}) = {got}, not {want}"
                );
            }
        }
    });
}

#[test]
fn simple_functions_equal_their_formula() {
    let mut rng = Rng::new(3);
    let mut x = rng.floats(300, -8.0, 8.0);
    x.extend([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 0.499_999_97, 8_388_609.0, -3.0, 3.0]);
    type Plain = fn(f32) -> f32;
    let cases: &[(Unary, Plain)] = &[
        (Unary::Identity, |x| x),
        (Unary::Clamp { lo: 0.0, hi: 6.0 }, |x| x.clamp(0.0, 6.0)),
        (Unary::LeakyRelu { slope: 0.1 }, |x| if x < 0.0 { 0.1 * x } else { x }),
        (Unary::Elu { alpha: 0.5 }, |x| if x < 0.0 { 0.5 * x.exp_m1() } else { x }),
        (Unary::Selu { alpha: 1.67, gamma: 1.05 }, |x| 1.05 * if x < 0.0 { 1.67 * x.exp_m1() } else { x }),
        (Unary::HardSigmoid { alpha: 0.2, beta: 0.5 }, |x| (0.2 * x + 0.5).clamp(0.0, 1.0)),
        (Unary::HardSwish, |x| x * (x + 3.0).clamp(0.0, 6.0) / 6.0),
        (Unary::Mish, |x| x * x.exp().ln_1p().tanh()),
        (Unary::Softplus, |x| x.exp().ln_1p()),
        (Unary::Square, |x| x * x),
        (Unary::Abs, f32::abs),
        (Unary::Neg, |x| -x),
        (Unary::Sign, |x| if x == 0.0 { 0.0 } else { x.signum() }),
        (Unary::Floor, f32::floor),
        (Unary::Ceil, f32::ceil),
        (Unary::RoundEven, f32::round_ties_even),
        (Unary::RoundAway, f32::round),
        (Unary::Sin, f32::sin),
        (Unary::Atanh, f32::atanh),
        (Unary::Expm1, f32::exp_m1),
    ];
    for_each_vector_isa!(|isa| {
        for (f, want) in cases {
            let want: Vec<f32> = x.iter().map(|&x| want(x)).collect();
            let what = format!("{f:?} on {}", isa.level());
            crate::testing::assert_close(&apply(isa, *f, &x), &want, 3e-7, 1e-6, &what);
            let mut in_place = x.clone();
            unary_in_place(isa, *f, &mut in_place);
            crate::testing::assert_close(&in_place, &want, 3e-7, 1e-6, &what);
        }
    });
}

#[test]
fn every_length_is_written_exactly() {
    for_each_vector_isa!(|isa| {
        for &len in SIZES {
            let x = Rng::new(len as u64).floats(len, -3.0, 3.0);
            let mut out = Guarded::new(len, f32::MAX, -77.0);
            unary(isa, Unary::Neg, &x, out.get_mut());
            out.check();
            assert!(out.get().iter().zip(&x).all(|(&y, &x)| y == -x));
        }
    });
}

#[test]
fn binary_functions_follow_their_broadcast() {
    type Plain = fn(f32, f32) -> f32;
    let functions: &[(Binary, Plain)] = &[
        (Binary::Add, |a, b| a + b),
        (Binary::Sub, |a, b| a - b),
        (Binary::Mul, |a, b| a * b),
        (Binary::Div, |a, b| a / b),
        (Binary::Min, f32::min),
        (Binary::Max, f32::max),
        (Binary::SquaredDifference, |a, b| (a - b) * (a - b)),
        (Binary::Pow, f32::powf),
        (Binary::Atan2, f32::atan2),
        (Binary::FloorMod, |a, b| a - b * (a / b).floor()),
        (Binary::FMod, |a, b| a - b * (a / b).trunc()),
        (Binary::FloorDiv, |a, b| (a / b).floor()),
        (Binary::SiluMul, |a, b| a / (1.0 + (-a).exp()) * b),
    ];
    let mut rng = Rng::new(8);
    for_each_vector_isa!(|isa| {
        for &(f, plain) in functions {
            for (rows, columns) in [(1, 1), (3, 5), (2, 16), (5, 33), (0, 4)] {
                let lo = if f == Binary::Pow { 0.1 } else { -4.0 };
                let a = rng.floats(rows * columns, lo, 4.0);
                for broadcast in [Broadcast::Same, Broadcast::Scalar, Broadcast::PerRow, Broadcast::PerColumn]
                {
                    let len = match broadcast {
                        Broadcast::Same => rows * columns,
                        Broadcast::Scalar => 1,
                        Broadcast::PerRow => rows,
                        Broadcast::PerColumn => columns,
                    };
                    let b = rng.floats(len, 0.3, 4.0);
                    let index = |i: usize| match broadcast {
                        Broadcast::Same => i,
                        Broadcast::Scalar => 0,
                        Broadcast::PerRow => i / columns,
                        Broadcast::PerColumn => i % columns,
                    };
                    let want: Vec<f32> = a.iter().enumerate().map(|(i, &a)| plain(a, b[index(i)])).collect();
                    let mut out = Guarded::new(a.len(), 0.0, 9.0);
                    binary(isa, f, &a, &b, broadcast, columns, out.get_mut());
                    out.check();
                    let what = format!("{f:?} {broadcast:?} {rows}x{columns}");
                    crate::testing::assert_close(out.get(), &want, 2e-6, 2e-6, &what);
                    let mut in_place = a.clone();
                    binary_in_place(isa, f, &mut in_place, &b, broadcast, columns);
                    assert_eq!(in_place, out.get());
                }
            }
        }
    });
}

#[test]
fn minimum_and_maximum_propagate_nan() {
    let (a, b) = ([f32::NAN, 1.0, f32::NAN, 2.0], [1.0, f32::NAN, f32::NAN, 1.0]);
    for_each_vector_isa!(|isa| {
        for (f, last) in [(Binary::Min, 1.0), (Binary::Max, 2.0)] {
            let mut out = [0.0; 4];
            binary(isa, f, &a, &b, Broadcast::Same, 4, &mut out);
            assert!(out[..3].iter().all(|x| x.is_nan()) && out[3] == last, "{out:?}");
        }
    });
}
