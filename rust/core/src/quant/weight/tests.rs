//! Properties of all methods through the driver.

use proptest::prelude::*;

use super::*;

fn spec(bits: u32, scheme: Scheme, method: WeightMethod) -> WeightQuantSpec {
    WeightQuantSpec { scheme, method, ..WeightQuantSpec::new(BitWidth::new(bits).unwrap()) }
}

fn noise(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2).wrapping_add(1);
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 24) as f32
    };
    (0..n).map(|_| (uniform() + uniform() + uniform() + uniform() - 2.0) * 0.05).collect()
}

const ALL: [(Scheme, WeightMethod); 6] = [
    (Scheme::Symmetric, WeightMethod::RoundToNearest),
    (Scheme::Asymmetric, WeightMethod::RoundToNearest),
    (Scheme::Asymmetric, WeightMethod::Hqq),
    (Scheme::Asymmetric, WeightMethod::HqqReference),
    (Scheme::Symmetric, WeightMethod::Search),
    (Scheme::Asymmetric, WeightMethod::Search),
];

#[test]
fn levels_layouts_and_threads_give_the_same_bits() {
    let (rows, row_len) = (37, 96);
    for scale in [1.0, 60.0] {
        // With the large factor HQQ's shrinkage is active.
        let data: Vec<f32> = noise(rows * row_len, 3).iter().map(|w| w * scale).collect();
        let mut transposed = vec![0.0; data.len()];
        for (i, w) in data.iter().enumerate() {
            transposed[i % row_len * rows + i / row_len] = *w;
        }
        let plain = StridedMatrix::row_major(&data, [rows, row_len]).unwrap();
        let across = StridedMatrix::new(&transposed, [rows, row_len], [1, rows]).unwrap();
        for (scheme, method) in ALL {
            for granularity in [Granularity::PerChannel, Granularity::PerBlock { len: 24 }] {
                let spec = WeightQuantSpec { granularity, gain_correction: true, ..spec(3, scheme, method) };
                let want = quantize_at(Level::BASELINE, &plain, &spec, Some(1)).unwrap();
                for level in Level::available() {
                    for threads in [Some(1), Some(3), None] {
                        for source in [&plain as &dyn WeightSource, &across] {
                            let got = quantize_at(level, source, &spec, threads).unwrap();
                            assert_eq!(got.weights, want.weights, "{} {spec:?}", level.name());
                            assert_eq!(got.row_errors, want.row_errors, "{} {spec:?}", level.name());
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn error_figures_are_those_of_the_decoded_weights() {
    let data = noise(8 * 48, 9);
    let source = StridedMatrix::row_major(&data, [8, 48]).unwrap();
    for (scheme, method) in ALL {
        for scale_storage in [ScaleStorage::F32, ScaleStorage::F16] {
            let spec = WeightQuantSpec {
                scale_storage,
                granularity: Granularity::PerBlock { len: 16 },
                ..spec(4, scheme, method)
            };
            let got = quantize(&source, &spec, Some(1)).unwrap();
            let mut want = WeightError::default();
            for (w, d) in data.iter().zip(got.weights.dequantize()) {
                let e = f64::from(w - d);
                want = want.merge(WeightError {
                    squared_error: e * e,
                    squared_weight: f64::from(*w).powi(2),
                    max_abs_error: e.abs(),
                });
            }
            let error = got.error();
            assert!((error.squared_error / want.squared_error - 1.0).abs() < 1e-12);
            assert!((error.squared_weight / want.squared_weight - 1.0).abs() < 1e-12);
            assert_eq!(error.max_abs_error, want.max_abs_error);
            if scale_storage == ScaleStorage::F16 {
                let params = got.weights.scale().iter().chain(got.weights.min().unwrap_or_default());
                assert!(params.into_iter().all(|&p| f16::from_f32(p).to_f32() == p));
            }
        }
    }
}

#[test]
fn half_scales_keep_the_codes_of_round_to_nearest() {
    let data = noise(4 * 64, 5);
    let source = StridedMatrix::row_major(&data, [4, 64]).unwrap();
    let plain = spec(8, Scheme::Asymmetric, WeightMethod::RoundToNearest);
    let half = WeightQuantSpec { scale_storage: ScaleStorage::F16, ..plain };
    let (plain, half) = (quantize(&source, &plain, None).unwrap(), quantize(&source, &half, None).unwrap());
    assert_eq!(plain.weights.codes(), half.weights.codes());
    assert_ne!(plain.weights.scale(), half.weights.scale());
}

#[test]
fn one_scale_per_tensor_is_repeated_for_every_row() {
    let mut data = noise(5 * 40, 6);
    data[77] = 3.0;
    let source = StridedMatrix::row_major(&data, [5, 40]).unwrap();
    for scheme in [Scheme::Symmetric, Scheme::Asymmetric] {
        let per_tensor = WeightQuantSpec {
            granularity: Granularity::PerTensor,
            ..spec(8, scheme, WeightMethod::RoundToNearest)
        };
        let got = quantize(&source, &per_tensor, None).unwrap();
        let flat = StridedMatrix::row_major(&data, [1, 200]).unwrap();
        let want = quantize(&flat, &spec(8, scheme, WeightMethod::RoundToNearest), None).unwrap();
        assert_eq!(got.weights.codes(), want.weights.codes());
        assert_eq!(got.weights.scale(), [want.weights.scale()[0]; 5]);
        let method = WeightQuantSpec { method: WeightMethod::Search, ..per_tensor };
        assert!(matches!(quantize(&source, &method, None), Err(QuantError::NeedsPerRow { what: "search" })));
    }
}

#[test]
fn bad_weights_are_named() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut data = noise(200 * 30, 1);
        data[150 * 30 + 7] = bad;
        data[199 * 30] = bad;
        let source = StridedMatrix::row_major(&data, [200, 30]).unwrap();
        for granularity in [Granularity::PerTensor, Granularity::PerChannel] {
            for threads in [Some(1), Some(2)] {
                let spec = WeightQuantSpec { granularity, ..WeightQuantSpec::new(BitWidth::ALL[6]) };
                let error = quantize(&source, &spec, threads).unwrap_err();
                assert!(matches!(error, QuantError::NonFinite { row: 150, col: 7, .. }), "{error}");
            }
        }
    }
    let data = [f32::MAX, f32::MIN, 0.0, 1.0];
    let source = StridedMatrix::row_major(&data, [1, 4]).unwrap();
    for (scheme, method) in ALL {
        match quantize(&source, &spec(4, scheme, method), None) {
            Err(error) => assert_eq!(error, QuantError::RangeOverflow { row: 0, block: 0 }),
            Ok(_) => assert_eq!(scheme, Scheme::Symmetric, "{method:?}"),
        }
    }
    let data = [1e6_f32, -1e6, 0.0, 1.0];
    let source = StridedMatrix::row_major(&data, [1, 4]).unwrap();
    let half = WeightQuantSpec { scale_storage: ScaleStorage::F16, ..WeightQuantSpec::new(BitWidth::ALL[6]) };
    assert!(matches!(quantize(&source, &half, None), Err(QuantError::HalfOverflow { row: 0, block: 0, .. })));
}

#[test]
fn search_beats_the_other_methods_on_noise() {
    let data = noise(16 * 256, 21);
    let source = StridedMatrix::row_major(&data, [16, 256]).unwrap();
    for bits in 2..=8 {
        for granularity in [Granularity::PerChannel, Granularity::PerBlock { len: 32 }] {
            let error = |scheme, method| {
                let spec = WeightQuantSpec { granularity, ..spec(bits, scheme, method) };
                quantize(&source, &spec, None).unwrap().error().relative_rms()
            };
            let search = error(Scheme::Asymmetric, WeightMethod::Search);
            for method in [WeightMethod::RoundToNearest, WeightMethod::Hqq, WeightMethod::HqqReference] {
                let other = error(Scheme::Asymmetric, method);
                assert!(search < other, "{bits} bit {granularity:?}: {search} against {method:?} {other}");
            }
            let symmetric = error(Scheme::Symmetric, WeightMethod::Search);
            assert!(symmetric < error(Scheme::Symmetric, WeightMethod::RoundToNearest));
        }
    }
}

proptest! {
    #[test]
    fn round_to_nearest_errs_by_half_a_step_at_most(
        data in prop::collection::vec(-1e3_f32..1e3, 1..200),
        magnitude in -10_i32..10,
        bits in 2_u32..=8,
        symmetric: bool,
    ) {
        let data: Vec<f32> = data.iter().map(|w| w * 2_f32.powi(magnitude)).collect();
        let scheme = if symmetric { Scheme::Symmetric } else { Scheme::Asymmetric };
        let source = StridedMatrix::row_major(&data, [1, data.len()]).unwrap();
        let got = quantize(&source, &spec(bits, scheme, WeightMethod::RoundToNearest), Some(1)).unwrap();
        let scale = got.weights.scale()[0];
        let largest = data.iter().fold(0.0_f32, |a, w| a.max(w.abs()));
        if scale > affine::DEAD_SCALE {
            for (w, d) in data.iter().zip(got.weights.dequantize()) {
                prop_assert!((w - d).abs() <= 0.5 * scale + largest * 4e-7, "{w} -> {d}, scale {scale}");
            }
        } else {
            prop_assert!(got.weights.codes().iter().all(|&c| c == got.weights.codes()[0]));
        }
    }

    #[test]
    fn any_finite_weights_quantize_or_overflow(
        data in prop::collection::vec(any::<f32>().prop_filter("finite", |w| w.is_finite()), 1..80),
        bits in 2_u32..=8,
        which in 0_usize..ALL.len(),
        gain: bool,
    ) {
        let (scheme, method) = ALL[which];
        let source = StridedMatrix::row_major(&data, [1, data.len()]).unwrap();
        let spec = WeightQuantSpec { gain_correction: gain, ..spec(bits, scheme, method) };
        match quantize(&source, &spec, Some(1)) {
            Ok(got) => {
                let (lo, hi) = (spec.bits.lowest(), spec.bits.highest());
                prop_assert!(got.weights.codes().iter().all(|c| (lo..=hi).contains(c)));
                prop_assert!(got.weights.scale().iter().all(|s| s.is_finite()));
                prop_assert!(got.weights.min().unwrap_or_default().iter().all(|m| m.is_finite()));
            }
            Err(error) => prop_assert_eq!(error, QuantError::RangeOverflow { row: 0, block: 0 }),
        }
    }
}

#[test]
fn truncation_to_half_never_grows_and_moves_less_than_one_unit() {
    for bits in 0..=u16::MAX {
        let half = f16::from_bits(bits);
        if !half.is_finite() || half.to_bits() & 0x7fff == 0x7bff {
            continue;
        }
        let exact = half.to_f32();
        assert_eq!(truncate_to_half(exact).to_bits(), exact.to_bits());
        let next = f16::from_bits(bits + 1).to_f32();
        for fraction in [0.01, 0.5, 0.99] {
            let between = exact + (next - exact) * fraction;
            assert_eq!(truncate_to_half(between), exact, "{between}");
            let nearest = if fraction < 0.5 { exact } else { next };
            assert!(fraction == 0.5 || nearest_half(between) == nearest);
        }
    }
}
