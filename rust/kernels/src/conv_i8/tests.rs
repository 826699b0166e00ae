//! Every kernel of the machine against the formula in plain loops.

use super::*;
use crate::Epilogue;
use crate::gemm_i8::{Dequantize, Requantize};
use crate::parallel::{ScopedThreads, Serial};
use crate::testing::{Guarded, Rng};

/// The sums of [`conv_i8`].
pub(crate) fn reference(
    g: &Sliding,
    input: &[i8],
    weights: &[i8],
    [oc, groups]: [usize; 2],
    [zero, padding]: [i32; 2],
) -> Vec<i32> {
    let (ic_group, oc_group) = (g.channels / groups, oc / groups);
    let mut out = Vec::new();
    for pixel in 0..g.out_pixels() {
        let (b, y, x) =
            (pixel / g.out_width / g.out_height, pixel / g.out_width % g.out_height, pixel % g.out_width);
        for o in 0..oc {
            let mut sum = 0;
            for tap in 0..g.taps() {
                let (ky, kx) = (tap / g.horizontal.kernel, tap % g.horizontal.kernel);
                let iy = g.vertical.start(y) + (ky * g.vertical.dilation) as isize;
                let ix = g.horizontal.start(x) + (kx * g.horizontal.dilation) as isize;
                let outside = iy < 0 || ix < 0 || iy >= g.height as isize || ix >= g.width as isize;
                for i in 0..ic_group {
                    let code = if outside {
                        padding
                    } else {
                        let from = (b * g.height + iy as usize) * g.width + ix as usize;
                        i32::from(input[from * g.channels + o / oc_group * ic_group + i])
                    };
                    sum += (code - zero) * i32::from(weights[(o * ic_group + i) * g.taps() + tap]);
                }
            }
            out.push(sum);
        }
    }
    out
}

fn check(kernel: &GemmI8, g: &Sliding, [oc, groups]: [usize; 2], zero: i32, threads: usize) {
    let mut rng = Rng::new(7);
    let ic = g.channels / groups;
    let input = rng.bytes_i8(g.batch * g.height * g.width * g.channels);
    let weights = rng.bytes_i8(oc * ic * g.taps());
    let packed = PackedConvI8::new(kernel, &weights, [oc, ic, g.taps()], groups, zero).unwrap();
    let mut out = Guarded::new(g.out_pixels() * oc, 1, -1);
    let mut scratch = vec![0x55; threads * packed.scratch_len(kernel)];
    let executor: &dyn Executor = if threads == 1 { &Serial } else { &ScopedThreads(threads) };
    let output = Output::Int32 { data: out.get_mut(), row_stride: oc };
    conv_i8(kernel, g, &input, zero as i8, &packed, output, &mut scratch, executor).unwrap();
    out.check();
    let want = reference(g, &input, &weights, [oc, groups], [zero, zero]);
    assert_eq!(out.get(), &want[..], "{kernel:?} {g:?} oc {oc} groups {groups}");

    let scale = rng.floats(oc, 1e-5, 1e-3);
    let requantize = Requantize { lo: -128, ..Requantize::new(&scale, None, -3) };
    let mut codes = Guarded::new(g.out_pixels() * oc, 1, -1);
    let output = Output::Int8 { data: codes.get_mut(), row_stride: oc, requantize };
    conv_i8(kernel, g, &input, zero as i8, &packed, output, &mut scratch, executor).unwrap();
    codes.check();
    for (index, &code) in codes.get().iter().enumerate() {
        assert_eq!(
            code,
            requantize.reference(want[index], index / oc, index % oc),
            "{kernel:?} {g:?} {index}"
        );
    }
}

#[test]
fn every_window_channel_count_and_group_count_is_exact() {
    let window = |kernel, stride, dilation, pad_begin, pad_end| Window {
        kernel,
        stride,
        dilation,
        pad_begin,
        pad_end,
    };
    let windows = [
        (window(1, 1, 1, 0, 0), window(1, 1, 1, 0, 0)),
        (window(1, 2, 1, 0, 0), window(1, 2, 1, 0, 0)),
        (window(3, 1, 1, 1, 1), window(3, 1, 1, 1, 1)),
        (window(3, 2, 1, 1, 0), window(3, 2, 1, 0, 1)),
        (window(3, 1, 2, 2, 2), window(3, 1, 3, 3, 0)),
        (window(7, 2, 1, 3, 3), window(7, 2, 1, 3, 3)),
        (window(1, 1, 1, 0, 0), window(5, 1, 1, 2, 2)),
        (window(2, 3, 1, 4, 4), window(3, 4, 1, 6, 5)),
    ];
    for kernel in GemmI8::all_available() {
        for (vertical, horizontal) in windows {
            for (ic, oc, groups) in [(1, 1, 1), (3, 17, 1), (8, 33, 1), (6, 4, 2), (4, 8, 4)] {
                let g = Sliding::new([2, 7, 9, ic], vertical, horizontal).unwrap();
                check(&kernel, &g, [oc, groups], 5, 1);
            }
        }
    }
}

#[test]
fn chunks_cut_windows_anywhere() {
    for kernel in GemmI8::all_available() {
        for ic in [40, 67, 129] {
            let g = Sliding::new([1, 5, 6, ic], Window::new(3, 1, 1), Window::new(3, 1, 1)).unwrap();
            check(&kernel, &g, [20, 1], -128, 1);
            let dilated = Window { dilation: 2, ..Window::new(3, 1, 2) };
            check(&kernel, &Sliding::new([1, 5, 6, ic], dilated, dilated).unwrap(), [20, 1], 127, 3);
        }
    }
}

#[test]
fn groups_take_their_part_of_a_float_epilogue() {
    let g = Sliding::new([1, 4, 5, 6], Window::new(3, 1, 1), Window::new(3, 1, 1)).unwrap();
    let mut rng = Rng::new(8);
    let (oc, groups, pixels) = (10, 2, g.out_pixels());
    let (input, weights) = (rng.bytes_i8(120), rng.bytes_i8(oc * 3 * 9));
    let (scale, bias) = (rng.floats(oc, 0.1, 1.0), rng.floats(oc, -1.0, 1.0));
    let sums = reference(&g, &input, &weights, [oc, groups], [0, 0]);
    for kernel in GemmI8::all_available() {
        let packed = PackedConvI8::new(&kernel, &weights, [oc, 3, 9], groups, 0).unwrap();
        let mut out = vec![0.0; pixels * oc];
        let mut scratch = vec![0; packed.scratch_len(&kernel)];
        let epilogue = Epilogue::new(Some(&bias), crate::elementwise::Unary::Relu);
        let dequantize = Dequantize::symmetric(&[0.5], &scale, epilogue);
        let output = Output::Float { data: &mut out, row_stride: oc, dequantize };
        conv_i8(&kernel, &g, &input, 0, &packed, output, &mut scratch, &Serial).unwrap();
        for (index, &value) in out.iter().enumerate() {
            let o = index % oc;
            assert_eq!(value, (sums[index] as f32 * scale[o] * 0.5 + bias[o]).max(0.0));
        }
    }
}

#[test]
fn arguments_that_do_not_fit_are_refused() {
    let kernel = GemmI8::all_available()[0];
    let packed = PackedConvI8::new(&kernel, &[0; 18], [2, 1, 9], 1, 0).unwrap();
    let g = Sliding::new([1, 4, 4, 1], Window::new(3, 1, 1), Window::new(3, 1, 1)).unwrap();
    let mut scratch = vec![0; packed.scratch_len(&kernel)];
    let mut run = |g: &Sliding, input: usize, out: usize| {
        let (input, mut out) = (vec![0; input], vec![0; out]);
        let output = Output::Int32 { data: &mut out, row_stride: 2 };
        conv_i8(&kernel, g, &input, 0, &packed, output, &mut scratch, &Serial)
    };
    assert!(run(&g, 16, 32).is_ok());
    assert!(run(&g, 15, 32).is_err() && run(&g, 16, 31).is_err());
    assert!(run(&Sliding { vertical: Window::new(2, 1, 1), ..g }, 16, 32).is_err());
    let zero_stride = Sliding { vertical: Window { stride: 0, ..g.vertical }, ..g };
    assert!(run(&zero_stride, 16, 32).is_err());
    assert!(PackedConvI8::new(&kernel, &[0; 18], [2, 1, 9], 3, 0).is_err());
}
