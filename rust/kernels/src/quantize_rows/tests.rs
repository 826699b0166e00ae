use super::*;
use crate::parallel::{ScopedThreads, Serial};
use crate::testing::{Guarded, Rng, SIZES};

/// The formulas of [`RowScheme`], value by value.
fn reference(p: Parameters, x: f32) -> i8 {
    let v = (x - p.minimum) * p.inverse + p.shift;
    let v = if v.is_nan() { 0.0 } else { v.clamp(-1e6, 1e6) };
    (v.round_ties_even() as i32 + p.zero).clamp(p.lowest, 127) as i8
}

#[test]
fn codes_scales_offsets_and_sums_are_those_of_the_formula_on_every_instruction_set() {
    for scheme in [RowScheme::Symmetric, RowScheme::Asymmetric, RowScheme::ZeroPoint] {
        for per_tensor in [false, true] {
            for &k in SIZES {
                for block in [0, 8, 32] {
                    let (m, gap) = (3, 5);
                    let mut rng = Rng::new(k as u64 + 1);
                    let mut x = rng.floats(m * (k + gap), -3.0, 5.0);
                    if k > 9 {
                        x[4] = f32::NAN;
                    }
                    let how = RowQuantizer { scheme, per_tensor, block };
                    let blocks = how.blocks(k);
                    let ranges = if per_tensor { 1 } else { m };
                    for isa in VectorIsa::all_available() {
                        for threads in [1, 2] {
                            let mut codes = Guarded::new(m * (k + 1), 99, 55);
                            let mut scales = vec![0.0; ranges];
                            let mut offsets = vec![0.0; ranges];
                            let mut sums = vec![-7; m * blocks];
                            let out = RowCodes {
                                codes: codes.get_mut(),
                                row_stride: k + 1,
                                scales: &mut scales,
                                offsets: &mut offsets,
                                sums: &mut sums,
                            };
                            quantize_rows(isa, how, &x, [m, k], k + gap, out, &ScopedThreads(threads))
                                .unwrap();
                            codes.check();
                            for i in 0..m {
                                let of_rows = if per_tensor { 0..m } else { i..i + 1 };
                                let range = of_rows
                                    .flat_map(|r| &x[r * (k + gap)..][..k])
                                    .fold((f32::INFINITY, f32::NEG_INFINITY), |a, &v| {
                                        (a.0.min(v), a.1.max(v))
                                    });
                                let p = parameters(scheme, range);
                                let at = if per_tensor { 0 } else { i };
                                assert_eq!((scales[at], offsets[at]), (p.scale, p.offset));
                                let want: Vec<i8> =
                                    x[i * (k + gap)..][..k].iter().map(|&v| reference(p, v)).collect();
                                let got = &codes.get()[i * (k + 1)..][..k + 1];
                                assert_eq!(&got[..k], &want[..], "{isa:?} {how:?} k {k}");
                                assert_eq!(got[k], 99);
                                let length = if block == 0 { k.max(1) } else { block };
                                let parts =
                                    want.chunks(length).map(|b| b.iter().map(|&c| i32::from(c)).sum());
                                let mut want_sums: Vec<i32> = parts.collect();
                                want_sums.resize(blocks, 0);
                                assert_eq!(&sums[i * blocks..][..blocks], &want_sums[..]);
                            }
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn the_error_is_at_most_half_a_step_and_zero_is_exact_where_promised() {
    let x = Rng::new(9).floats(1000, 0.7, 3.1);
    for scheme in [RowScheme::Symmetric, RowScheme::Asymmetric, RowScheme::ZeroPoint] {
        let (mut codes, mut scale, mut offset) = (vec![0; 1000], [0.0], [0.0]);
        let out = RowCodes {
            codes: &mut codes,
            row_stride: 1000,
            scales: &mut scale,
            offsets: &mut offset,
            sums: &mut [],
        };
        let how = RowQuantizer { scheme, per_tensor: false, block: 0 };
        quantize_rows(VectorIsa::Portable, how, &x, [1, 1000], 1000, out, &Serial).unwrap();
        let (scale, offset) = (scale[0], offset[0]);
        for (&code, &x) in codes.iter().zip(&x) {
            let error = (f32::from(code) * scale + offset - x).abs();
            assert!(error <= 0.5001 * scale, "{scheme:?}: {x} is off by {error}, step {scale}");
        }
        if scheme == RowScheme::ZeroPoint {
            assert_eq!(f32::from(zero_code(scale, offset)) * scale + offset, 0.0);
        }
    }
}

#[test]
fn constant_and_empty_rows_keep_their_value() {
    for value in [0.0, 5e-8] {
        for scheme in [RowScheme::Symmetric, RowScheme::Asymmetric, RowScheme::ZeroPoint] {
            let p = parameters(scheme, (value, value));
            let back = f32::from(reference(p, value)) * p.scale + p.offset;
            assert!((back - value).abs() < 1e-7, "{scheme:?} {value} -> {back}");
        }
    }
}

#[test]
fn static_codes_are_those_of_the_formula_and_back() {
    let mut x = Rng::new(3).floats(133, -9.0, 9.0);
    x.extend([f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 0.25, -0.25, 0.75]);
    let codes = StaticCodes { scale: 0.5, zero: 3, lo: -10, hi: 20 };
    for isa in VectorIsa::all_available() {
        let mut out = vec![0; x.len()];
        quantize_static(isa, codes, &x, &mut out, &Serial).unwrap();
        let mut back = vec![0.0; x.len()];
        dequantize_static(isa, 0.5, 3, &out, &mut back, &Serial).unwrap();
        for i in 0..x.len() {
            let v = if x[i].is_nan() { 0.0 } else { (x[i] / 0.5).round() };
            let want = (v + 3.0).clamp(-10.0, 20.0);
            assert_eq!(f32::from(out[i]), want, "{isa:?} {}", x[i]);
            assert_eq!(back[i], (want - 3.0) * 0.5);
        }
        assert!(quantize_static(isa, StaticCodes { hi: 128, ..codes }, &x, &mut out, &Serial).is_err());
        assert!(quantize_static(isa, codes, &x[1..], &mut out, &Serial).is_err());
    }
}
