//! Element-wise int8 operators against their formulas.

use super::*;
use crate::geometry::Window;
use crate::parallel::{ScopedThreads, Serial};
use crate::testing::{Guarded, Rng, SIZES};

#[test]
fn sums_are_those_of_the_formula_on_every_instruction_set() {
    let mut rng = Rng::new(1);
    for &len in SIZES {
        let (a, b) = (rng.bytes_i8(len), rng.bytes_i8(len));
        let plain = AddI8 { a_scale: 0.5, a_zero: 0, b_scale: 0.5, b_zero: 0, zero: 0, lo: -127, hi: 127 };
        for how in [
            plain,
            AddI8 { a_zero: -128, b_zero: 127, zero: -128, lo: -128, ..plain },
            AddI8 { a_scale: 1.37, b_scale: -0.21, zero: 5, lo: 5, ..plain },
        ] {
            crate::for_each_vector_isa!(|isa| {
                let mut out = Guarded::new(len, 0, 99);
                add_i8(isa, how, &a, &b, out.get_mut(), &ScopedThreads(2)).unwrap();
                out.check();
                for i in 0..len {
                    assert_eq!(out.get()[i], how.reference(a[i], b[i]), "{isa:?} {how:?}");
                }
            });
        }
        let mut out = vec![0; len + 1];
        assert!(add_i8(VectorIsa::Portable, plain, &a, &b, &mut out, &Serial).is_err());
    }
}

#[test]
fn tables_hold_the_function_of_every_code() {
    let to = StaticCodes { scale: 0.02, zero: -3, lo: -127, hi: 127 };
    let table = TableI8::of_real(0.1, 4, to, |x| x.tanh());
    let codes: Vec<i8> = (-128..=127).collect();
    let mut out = vec![0; 256];
    lookup_i8(VectorIsa::Portable, &table, &codes, &mut out, &Serial).unwrap();
    for (&code, &got) in codes.iter().zip(&out) {
        let real = ((f32::from(code) - 4.0) * 0.1).tanh();
        let want = ((real / 0.02).round() as i32 - 3).clamp(-127, 127);
        assert_eq!(i32::from(got), want, "{code}");
    }
    let same = StaticCodes { scale: 0.5, zero: 7, lo: -128, hi: 127 };
    let identity = TableI8::rescale(0.5, 7, same);
    assert!(codes.iter().all(|&code| identity.get(code) == code));
    assert!(lookup_i8(VectorIsa::Portable, &table, &codes, &mut out[1..], &Serial).is_err());
}

#[test]
fn tables_and_products_are_those_of_the_formulas_on_every_instruction_set() {
    let mut rng = Rng::new(7);
    let table = TableI8::new(|code| code.wrapping_mul(37).wrapping_add(11));
    let same = TableI8::new(|code| code);
    assert_eq!(table.then(&same), table);
    let how = MulI8 { scale: 0.0173, a_zero: -3, b_zero: 120, zero: 7, lo: -128, hi: 127 };
    for &len in SIZES {
        let codes = rng.bytes_i8(len);
        let all: Vec<i8> = codes.iter().copied().chain(-128..=127).collect();
        crate::for_each_vector_isa!(|isa| {
            let mut out = Guarded::new(all.len(), 0, 3);
            lookup_i8(isa, &table, &all, out.get_mut(), &Serial).unwrap();
            out.check();
            assert!(all.iter().zip(out.get()).all(|(&x, &y)| table.get(x) == y), "{isa:?}");
            if len == 0 {
                continue;
            }
            let a = Rng::new(9).bytes_i8(3 * len);
            let mut out = Guarded::new(3 * len, 0, 3);
            mul_i8(isa, how, &a, &codes, out.get_mut(), &ScopedThreads(2)).unwrap();
            out.check();
            for (i, &got) in out.get().iter().enumerate() {
                assert_eq!(got, how.reference(a[i], codes[i % len]), "{isa:?}");
            }
            assert!(
                mul_i8(isa, how, &a[1..], &codes, &mut vec![0; 3 * len - 1], &Serial).is_err() || len == 1
            );
        });
    }
}

#[test]
fn images_are_quantized_and_their_channels_brought_together() {
    let codes = StaticCodes { scale: 0.03, zero: 5, lo: -128, hi: 100 };
    let mut rng = Rng::new(3);
    for channels in 1..=4 {
        for pixels in [0, 1, 37, PIXELS, 2 * PIXELS + 5] {
            let x = rng.floats(2 * channels * pixels, -5.0, 5.0);
            let mut plain = vec![0; x.len()];
            crate::quantize_rows::quantize_static(VectorIsa::Portable, codes, &x, &mut plain, &Serial)
                .unwrap();
            crate::for_each_vector_isa!(|isa| {
                let mut out = Guarded::new(x.len(), 0, 3);
                quantize_interleaved(isa, codes, &x, [channels, pixels], out.get_mut(), &ScopedThreads(2))
                    .unwrap();
                out.check();
                for (i, &code) in plain.iter().enumerate() {
                    let (b, c, p) = (i / (channels * pixels), i / pixels % channels, i % pixels);
                    assert_eq!(out.get()[(b * pixels + p) * channels + c], code);
                }
            });
        }
    }
    assert!(
        quantize_interleaved(VectorIsa::Portable, codes, &[0.0; 5], [5, 1], &mut [0; 5], &Serial).is_err()
    );
}

#[test]
fn rows_are_joined_at_their_columns() {
    let double = TableI8::new(|code| code.saturating_mul(2));
    let mut out = vec![9; 3 * 5];
    concat_i8(None, &[1, 2, 3, 4, 5, 6], 2, &mut out, 5, 0).unwrap();
    concat_i8(Some(&double), &[10, 20, 100, 0, 1, 2], 2, &mut out, 5, 3).unwrap();
    assert_eq!(out, [1, 2, 9, 20, 40, 3, 4, 9, 127, 0, 5, 6, 9, 2, 4]);
    assert!(concat_i8(None, &[0; 6], 2, &mut out, 5, 4).is_err());
    assert!(concat_i8(None, &[0; 5], 2, &mut out, 5, 0).is_err());
    assert!(concat_i8(None, &[0; 8], 2, &mut out, 5, 0).is_err());
}

fn pool_reference(kind: Pool, g: &Sliding, zero: i8, input: &[i8]) -> Vec<i8> {
    let mut out = Vec::new();
    for pixel in 0..g.out_pixels() {
        let (b, y, x) =
            (pixel / g.out_width / g.out_height, pixel / g.out_width % g.out_height, pixel % g.out_width);
        for c in 0..g.channels {
            let (mut largest, mut sum, mut inside, mut padded) = (-128_i8, 0_i64, 0_i64, 0_i64);
            for tap in 0..g.taps() {
                let (ky, kx) = (tap / g.horizontal.kernel, tap % g.horizontal.kernel);
                let iy = g.vertical.start(y) + (ky * g.vertical.dilation) as isize;
                let ix = g.horizontal.start(x) + (kx * g.horizontal.dilation) as isize;
                let (h, w) = (g.height as isize, g.width as isize);
                if iy < h + g.vertical.pad_end as isize && ix < w + g.horizontal.pad_end as isize {
                    padded += 1;
                }
                if iy >= 0 && ix >= 0 && iy < h && ix < w {
                    let from = (b * g.height + iy as usize) * g.width + ix as usize;
                    let v = input[from * g.channels + c];
                    largest = largest.max(v);
                    sum += i64::from(v) - i64::from(zero);
                    inside += 1;
                }
            }
            let count = if kind == Pool::AverageExcludePadding { inside } else { padded }.max(1);
            // Twice the magnitude plus the divisor, over twice the divisor: half away from zero in integers.
            let mean = sum.signum() * ((2 * sum.abs() + count) / (2 * count));
            out.push(if kind == Pool::Max { largest } else { (mean + i64::from(zero)) as i8 });
        }
    }
    out
}

#[test]
fn every_pooling_window_and_kind_is_exact_on_every_level() {
    let windows = [
        Window::new(2, 2, 0),
        Window::new(3, 2, 1),
        Window::new(3, 1, 1),
        Window { pad_begin: 0, pad_end: 1, ..Window::new(3, 2, 0) },
        Window { dilation: 2, ..Window::new(2, 1, 1) },
    ];
    let mut rng = Rng::new(4);
    for level in Level::available() {
        for window in windows {
            for channels in [1, 3, 16, 67] {
                let mut g = Sliding::new([2, 7, 10, channels], window, window).unwrap();
                let input = rng.bytes_i8(2 * 7 * 10 * channels);
                for ceiling in [0, 1] {
                    g.out_height += ceiling;
                    g.out_width += ceiling;
                    for kind in [Pool::Max, Pool::AverageExcludePadding, Pool::AverageIncludePadding] {
                        for zero in [-128, 0, 5] {
                            let mut out = Guarded::new(g.out_pixels() * channels, 0, 77);
                            pool_i8(level, kind, &g, zero, &input, out.get_mut(), &ScopedThreads(2)).unwrap();
                            out.check();
                            let want = pool_reference(kind, &g, zero, &input);
                            assert_eq!(out.get(), &want[..], "{} {kind:?} {g:?}", level.name());
                        }
                    }
                }
            }
        }
    }
}
