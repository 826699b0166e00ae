//! Every kernel of the machine against the formula in plain loops.

use super::*;
use crate::gemm_i8::Requantize;
use crate::geometry::Window;
use crate::parallel::{ScopedThreads, Serial};
use crate::testing::{Guarded, Rng};

fn reference(g: &Sliding, input: &[i8], weights: &[i8], [zero, padding]: [i32; 2]) -> Vec<i32> {
    let mut out = Vec::new();
    for pixel in 0..g.out_pixels() {
        let (b, y, x) =
            (pixel / g.out_width / g.out_height, pixel / g.out_width % g.out_height, pixel % g.out_width);
        for c in 0..g.channels {
            let mut sum = 0;
            for tap in 0..g.taps() {
                let (ky, kx) = (tap / g.horizontal.kernel, tap % g.horizontal.kernel);
                let iy = g.vertical.start(y) + (ky * g.vertical.dilation) as isize;
                let ix = g.horizontal.start(x) + (kx * g.horizontal.dilation) as isize;
                let outside = iy < 0 || ix < 0 || iy >= g.height as isize || ix >= g.width as isize;
                let code = if outside {
                    padding
                } else {
                    let from = (b * g.height + iy as usize) * g.width + ix as usize;
                    i32::from(input[from * g.channels + c])
                };
                sum += (code - zero) * i32::from(weights[c * g.taps() + tap]);
            }
            out.push(sum);
        }
    }
    out
}

fn check(kernel: &DepthwiseI8, g: &Sliding, zero: i32, threads: usize) {
    let mut rng = Rng::new(11);
    let c = g.channels;
    let mut input = rng.bytes_i8(g.batch * g.height * g.width * c);
    let mut weights = rng.bytes_i8(c * g.taps());
    for extreme in input.iter_mut().chain(weights.iter_mut()).step_by(3) {
        *extreme = rng.choose(&[-128, 127]);
    }
    let window = [g.vertical.kernel, g.horizontal.kernel];
    let packed = PackedDepthwiseI8::new(kernel, &weights, c, window, zero).unwrap();
    let executor: &dyn Executor = if threads == 1 { &Serial } else { &ScopedThreads(threads) };
    let mut scratch = vec![0x77; threads * packed.scratch_len(kernel, g)];
    let mut out = Guarded::new(g.out_pixels() * c, 1, -1);
    let output = Output::Int32 { data: out.get_mut(), row_stride: c };
    depthwise_i8(kernel, g, &input, zero as i8, &packed, output, &mut scratch, executor).unwrap();
    out.check();
    let want = reference(g, &input, &weights, [zero, zero]);
    assert_eq!(out.get(), &want[..], "{kernel:?} {g:?}");

    let (scale, bias) = (rng.floats(c, 1e-4, 1e-2), rng.floats(c, -9.0, 9.0));
    let requantize = Requantize::new(&scale, Some(&bias), 4);
    let mut codes = Guarded::new(g.out_pixels() * c, 1, -1);
    let output = Output::Int8 { data: codes.get_mut(), row_stride: c, requantize };
    depthwise_i8(kernel, g, &input, zero as i8, &packed, output, &mut scratch, executor).unwrap();
    codes.check();
    for (index, &code) in codes.get().iter().enumerate() {
        assert_eq!(code, requantize.reference(want[index], index / c, index % c), "{kernel:?} {g:?} {index}");
    }
}

#[test]
fn every_window_and_channel_count_is_exact() {
    let windows = [
        (Window::new(3, 1, 1), Window::new(3, 1, 1)),
        (Window::new(3, 2, 1), Window::new(3, 2, 1)),
        (Window::new(5, 1, 2), Window::new(5, 1, 2)),
        (Window::new(5, 2, 2), Window::new(5, 2, 2)),
        (Window::new(7, 1, 3), Window::new(3, 1, 0)),
        (Window::new(1, 1, 0), Window::new(4, 3, 5)),
        (Window { dilation: 2, ..Window::new(3, 1, 2) }, Window { dilation: 3, ..Window::new(3, 2, 6) }),
        (Window { pad_begin: 0, ..Window::new(3, 2, 1) }, Window { pad_end: 0, ..Window::new(3, 1, 1) }),
        (Window::new(9, 1, 4), Window::new(9, 1, 4)),
    ];
    for kernel in DepthwiseI8::all_available() {
        for (vertical, horizontal) in windows {
            for channels in [1, 3, 16, 17, 40, 64, 100] {
                let g = Sliding::new([2, 6, 9, channels], vertical, horizontal).unwrap();
                check(&kernel, &g, 7, 1);
            }
        }
    }
}

#[test]
fn long_rows_and_threads_are_exact() {
    for kernel in DepthwiseI8::all_available() {
        for zero in [-128, 0, 127] {
            let g = Sliding::new([1, 9, 75, 70], Window::new(3, 1, 1), Window::new(3, 1, 1)).unwrap();
            check(&kernel, &g, zero, 3);
            let g = Sliding::new([1, 9, 75, 33], Window::new(5, 2, 2), Window::new(5, 2, 2)).unwrap();
            check(&kernel, &g, zero, 2);
        }
    }
}

#[test]
fn arguments_that_do_not_fit_are_refused() {
    let all = DepthwiseI8::all_available();
    let kernel = &all[0];
    let packed = PackedDepthwiseI8::new(kernel, &[0; 18], 2, [3, 3], 0).unwrap();
    assert!(PackedDepthwiseI8::new(kernel, &[0; 17], 2, [3, 3], 0).is_err());
    assert!(PackedDepthwiseI8::new(kernel, &[0; 18], 2, [3, 3], 200).is_err());
    assert!(PackedDepthwiseI8::new(kernel, &[], 2, [0, 3], 0).is_err());
    let g = Sliding::new([1, 4, 4, 2], Window::new(3, 1, 1), Window::new(3, 1, 1)).unwrap();
    let run = |kernel: &DepthwiseI8, g: &Sliding, input: usize, out: usize, scratch: usize| {
        let (input, mut out, mut scratch) = (vec![0; input], vec![0; out], vec![0; scratch]);
        let output = Output::Int32 { data: &mut out, row_stride: 2 };
        depthwise_i8(kernel, g, &input, 0, &packed, output, &mut scratch, &Serial)
    };
    let need = packed.scratch_len(kernel, &g);
    assert!(run(kernel, &g, 32, 32, need).is_ok());
    assert!(run(kernel, &g, 31, 32, need).is_err());
    assert!(run(kernel, &g, 32, 31, need).is_err());
    assert!(run(kernel, &g, 32, 32, need - 1).is_err());
    assert!(run(kernel, &Sliding { vertical: Window::new(5, 1, 2), ..g }, 32, 32, 4 * need).is_err());
    for other in &all[1..] {
        let result = run(other, &g, 32, 32, 16 * need);
        assert!(matches!(result, Err(KernelError::PackedForOther { .. })));
    }
}
