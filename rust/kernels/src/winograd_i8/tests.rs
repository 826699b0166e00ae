//! Every kernel of the machine against the direct formula in plain loops.

use super::*;
use crate::conv_i8::tests::reference;
use crate::gemm_i8::Requantize;
use crate::geometry::Window;
use crate::parallel::{ScopedThreads, Serial};
use crate::testing::{Guarded, Rng};

fn run(kernel: &WinogradI8, g: &Sliding, input: &[i8], weights: &[i8], oc: usize, zero: i32, threads: usize) {
    let what = format!("{kernel:?} {g:?} oc {oc} zero {zero} threads {threads}");
    let mut packed = PackedWinogradI8::new(kernel, weights, oc, g.channels, zero).unwrap();
    let mut scratch = vec![0x5555_5555; threads * packed.scratch_len()];
    let executor: &dyn Executor = if threads == 1 { &Serial } else { &ScopedThreads(threads) };
    let mut want = reference(g, input, weights, [oc, 1], [zero, zero]);
    let mut out = Guarded::new(g.out_pixels() * oc, 1, -1);
    let output = Output::Int32 { data: out.get_mut(), row_stride: oc };
    winograd_i8(g, input, zero as i8, &packed, output, &mut scratch, executor).unwrap();
    out.check();
    assert_eq!(out.get(), &want[..], "{what}");

    let offsets: Vec<i32> = (0..oc as i32).map(|o| 1000 - 77 * o).collect();
    packed.add_offsets(&offsets).unwrap();
    for (index, sum) in want.iter_mut().enumerate() {
        *sum += offsets[index % oc];
    }
    let mut rng = Rng::new(3);
    let (scale, bias) = (rng.floats(oc, 1e-5, 1e-3), rng.floats(oc, -5.0, 5.0));
    let requantize = Requantize { lo: -128, ..Requantize::new(&scale, Some(&bias), -3) };
    let mut codes = Guarded::new(g.out_pixels() * oc, 1, -1);
    let output = Output::Int8 { data: codes.get_mut(), row_stride: oc, requantize };
    winograd_i8(g, input, zero as i8, &packed, output, &mut scratch, executor).unwrap();
    codes.check();
    for (index, &code) in codes.get().iter().enumerate() {
        assert_eq!(code, requantize.reference(want[index], index / oc, index % oc), "{what} {index}");
    }
}

#[test]
fn every_size_padding_and_channel_count_is_exact() {
    let mut rng = Rng::new(11);
    for kernel in WinogradI8::all_available() {
        for (size, ic, oc) in [
            ([1, 4, 4], 16, 16),
            ([2, 7, 9], 5, 33),
            ([1, 14, 13], 32, 8),
            ([1, 3, 2], 17, 3),
            ([3, 6, 6], 20, 48),
            ([1, 3, 40], 3, 7),
            ([1, 5, 5], 270, 40),
        ] {
            for (pad, end, zero) in [(1, 1, 0), (0, 0, 5), (2, 0, -128), (0, 2, 127)] {
                let window = Window { pad_end: end, ..Window::new(3, 1, pad) };
                let Ok(g) = Sliding::new([size[0], size[1], size[2], ic], window, window) else { continue };
                let input = rng.bytes_i8(g.batch * g.height * g.width * ic);
                let weights = rng.bytes_i8(oc * ic * 9);
                for threads in [1, 3] {
                    run(&kernel, &g, &input, &weights, oc, zero, threads);
                }
            }
        }
    }
}

#[test]
fn the_largest_sums_are_exact_although_products_leave_32_bits() {
    let window = Window::new(3, 1, 1);
    for kernel in WinogradI8::all_available() {
        for (input, weight) in [(-128, -128), (-128, 127), (127, -128), (127, 127)] {
            // 227 channels of the largest codes; then signs that make the transformed values largest.
            let g = Sliding::new([1, 8, 8, 227], window, window).unwrap();
            let codes = vec![input; 64 * 227];
            run(&kernel, &g, &codes, &vec![weight; 2 * 227 * 9], 2, input.into(), 1);
            let codes: Vec<i8> = (0..64 * 227)
                .map(|i| if (i / 227 + i / 227 / 8) % 2 == 0 { input } else { !input })
                .collect();
            let weights: Vec<i8> =
                (0..2 * 227 * 9).map(|i| if i % 9 % 2 == 0 { weight } else { !weight }).collect();
            run(&kernel, &g, &codes, &weights, 2, 0, 1);
        }
    }
}

#[test]
fn arguments_that_do_not_fit_are_refused() {
    for kernel in WinogradI8::all_available() {
        assert!(PackedWinogradI8::new(&kernel, &[0; 17], 1, 2, 0).is_err());
        assert!(PackedWinogradI8::new(&kernel, &[0; 18], 1, 2, 128).is_err());
        // One channel too many for the largest codes.
        assert!(PackedWinogradI8::is_exact(&[-128; 227 * 9], 227));
        assert!(!PackedWinogradI8::is_exact(&[-128; 228 * 9], 228));
        assert!(PackedWinogradI8::new(&kernel, &[-128; 228 * 9], 1, 228, 0).is_err());
        let packed = PackedWinogradI8::new(&kernel, &[0; 18], 1, 2, 0).unwrap();
        let run = |stride: usize, input: usize, scratch: usize, out: usize| {
            let window = Window::new(3, stride, 1);
            let g = Sliding::new([1, 4, 4, 2], window, window).unwrap();
            let (input, mut out, mut scratch) = (vec![0; input], vec![0; out], vec![0; scratch]);
            let output = Output::Int32 { data: &mut out, row_stride: 1 };
            winograd_i8(&g, &input, 0, &packed, output, &mut scratch, &Serial)
        };
        let len = packed.scratch_len();
        assert!(run(1, 32, len, 16).is_ok());
        assert!(run(2, 32, len, 16).is_err());
        assert!(run(1, 31, len, 16).is_err());
        assert!(run(1, 32, len - 1, 16).is_err());
        assert!(run(1, 32, len, 15).is_err());
    }
}
