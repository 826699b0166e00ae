use super::*;
use crate::elementwise::Unary;
use crate::geometry::Window;
use crate::parallel::{ScopedThreads, Serial};
use crate::testing::{Guarded, Rng, assert_close};

/// The formula of [`conv_f32`] in plain loops, without epilogue.
pub(crate) fn reference(g: &Sliding, input: &[f32], weights: &[f32], oc: usize, groups: usize) -> Vec<f32> {
    let (ic_group, oc_group) = (g.channels / groups, oc / groups);
    let mut out = Vec::new();
    for b in 0..g.batch {
        for y in 0..g.out_height {
            for x in 0..g.out_width {
                for o in 0..oc {
                    let mut sum = 0.0_f64;
                    for ky in 0..g.vertical.kernel {
                        for kx in 0..g.horizontal.kernel {
                            let iy = g.vertical.start(y) + (ky * g.vertical.dilation) as isize;
                            let ix = g.horizontal.start(x) + (kx * g.horizontal.dilation) as isize;
                            if iy < 0 || ix < 0 || iy >= g.height as isize || ix >= g.width as isize {
                                continue;
                            }
                            let pixel = (b * g.height + iy as usize) * g.width + ix as usize;
                            for i in 0..ic_group {
                                let tap = ky * g.horizontal.kernel + kx;
                                let w = weights[(o * ic_group + i) * g.taps() + tap];
                                let v = input[pixel * g.channels + o / oc_group * ic_group + i];
                                sum += f64::from(w) * f64::from(v);
                            }
                        }
                    }
                    out.push(sum as f32);
                }
            }
        }
    }
    out
}

fn check(kernel: &GemmF32, g: &Sliding, oc: usize, groups: usize, threads: usize) {
    let mut rng = Rng::new(7);
    let ic = g.channels / groups;
    let input = rng.floats(g.batch * g.height * g.width * g.channels, -1.0, 1.0);
    let weights = rng.floats(oc * ic * g.taps(), -1.0, 1.0);
    let (scale, bias) = (rng.floats(oc, 0.5, 1.5), rng.floats(oc, -1.0, 1.0));
    let residual = rng.floats(g.out_pixels() * oc, -1.0, 1.0);
    let epilogue = Epilogue {
        scale: Some(&scale),
        bias: Some(&bias),
        activation: Unary::Identity,
        residual: Some(Residual { data: &residual, row_stride: oc, then: Unary::Relu }),
    };
    let packed = PackedConv::new(kernel, &weights, [oc, ic, g.taps()], groups).unwrap();
    let mut out = Guarded::new(g.out_pixels() * oc, f32::NAN, -3.0);
    let mut scratch = vec![f32::NAN; threads * conv_scratch_len()];
    let executor: &dyn Executor = if threads == 1 { &Serial } else { &ScopedThreads(threads) };
    conv_f32(kernel, g, &input, &packed, &epilogue, out.get_mut(), &mut scratch, executor).unwrap();
    out.check();
    assert_eq!(packed.weights(), weights);
    let mut fresh = Guarded::new(g.out_pixels() * oc, f32::NAN, -3.0);
    let dims = [oc, ic, g.taps()];
    let mut scratch = vec![f32::NAN; conv_fresh_scratch_len(kernel, dims, groups, threads).unwrap()];
    let call = (&mut scratch[..], fresh.get_mut());
    conv_fresh_f32(kernel, g, &input, &weights, dims, groups, &epilogue, call.1, call.0, executor).unwrap();
    fresh.check();
    assert_eq!(fresh.get(), out.get(), "packed now and before");
    let sums = reference(g, &input, &weights, oc, groups);
    let want: Vec<f32> = sums
        .iter()
        .enumerate()
        .map(|(i, &sum)| {
            epilogue.reference(sum, i / oc, i % oc, |f, x| if f == Unary::Relu { x.max(0.0) } else { x })
        })
        .collect();
    let what = format!("{kernel:?} {g:?} oc {oc} groups {groups}");
    assert_close(out.get(), &want, 2e-5, 1e-5, &what);
}

#[test]
fn every_window_channel_count_and_group_count_is_right() {
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
    for kernel in GemmF32::all_available() {
        for (vertical, horizontal) in windows {
            for (ic, oc, groups) in [(1, 1, 1), (3, 17, 1), (8, 33, 1), (6, 4, 2), (4, 8, 4), (24, 36, 12)] {
                let g = Sliding::new([2, 7, 9, ic], vertical, horizontal).unwrap();
                check(&kernel, &g, oc, groups, 1);
            }
        }
    }
}

#[test]
fn scaled_inputs_are_products() {
    for kernel in GemmF32::all_available() {
        for (batch, pixels, ic, oc) in [(1, 49, 300, 20), (3, 7, 17, 33), (2, 130, 32, 16)] {
            let g = Sliding::new([batch, 1, pixels, ic], Window::POINT, Window::POINT).unwrap();
            let mut rng = Rng::new(3);
            let input = rng.floats(batch * pixels * ic, -1.0, 1.0);
            let scale = rng.floats(batch * ic, 0.0, 1.0);
            let weights = rng.floats(oc * ic, -1.0, 1.0);
            let packed = PackedConv::new(&kernel, &weights, [oc, ic, 1], 1).unwrap();
            let product = |(i, x): (usize, &f32)| x * scale[i / (pixels * ic) * ic + i % ic];
            let scaled: Vec<f32> = input.iter().enumerate().map(product).collect();
            let want = reference(&g, &scaled, &weights, oc, 1);
            let mut out = Guarded::new(batch * pixels * oc, f32::NAN, -3.0);
            let mut scratch = vec![f32::NAN; 2 * conv_scratch_len()];
            let (epilogue, threads) = (Epilogue::default(), ScopedThreads(2));
            conv_scaled_f32(
                &kernel,
                &g,
                &input,
                &scale,
                &packed,
                &epilogue,
                out.get_mut(),
                &mut scratch,
                &threads,
            )
            .unwrap();
            out.check();
            assert_close(out.get(), &want, 2e-5, 1e-5, &format!("{kernel:?} {g:?}"));
        }
        let window = Window::new(3, 1, 1);
        let g = Sliding::new([1, 4, 4, 2], window, window).unwrap();
        let packed = PackedConv::new(&kernel, &[0.0; 18], [1, 2, 9], 1).unwrap();
        let (mut out, mut scratch) = ([0.0; 16], vec![0.0; conv_scratch_len()]);
        let epilogue = Epilogue::default();
        let refused = conv_scaled_f32(
            &kernel,
            &g,
            &[0.0; 32],
            &[0.0; 2],
            &packed,
            &epilogue,
            &mut out,
            &mut scratch,
            &Serial,
        );
        assert!(refused.is_err());
    }
}

#[test]
fn blocks_of_k_cut_windows_anywhere() {
    for kernel in GemmF32::all_available() {
        for ic in [40, 67, 129] {
            let g = Sliding::new([1, 5, 6, ic], Window::new(3, 1, 1), Window::new(3, 1, 1)).unwrap();
            check(&kernel, &g, 20, 1, 1);
            let dilated = Window { dilation: 2, ..Window::new(3, 1, 2) };
            check(&kernel, &Sliding::new([1, 5, 6, ic], dilated, dilated).unwrap(), 20, 1, 3);
        }
    }
}

#[test]
fn arguments_that_do_not_fit_are_refused() {
    let kernel = GemmF32::new(VectorIsa::Portable);
    let packed = PackedConv::new(&kernel, &[0.0; 18], [2, 1, 9], 1).unwrap();
    let g = Sliding::new([1, 4, 4, 1], Window::new(3, 1, 1), Window::new(3, 1, 1)).unwrap();
    let mut scratch = vec![0.0; conv_scratch_len()];
    let epilogue = Epilogue::default();
    let mut run = |g: &Sliding, input: usize, out: usize| {
        let (input, mut out) = (vec![0.0; input], vec![0.0; out]);
        conv_f32(&kernel, g, &input, &packed, &epilogue, &mut out, &mut scratch, &Serial)
    };
    assert!(run(&g, 16, 32).is_ok());
    assert!(run(&g, 15, 32).is_err() && run(&g, 16, 31).is_err());
    assert!(run(&Sliding { vertical: Window::new(2, 1, 1), ..g }, 16, 32).is_err());
    let zero_stride = Sliding { vertical: Window { stride: 0, ..g.vertical }, ..g };
    assert!(run(&zero_stride, 16, 32).is_err());
    assert!(PackedConv::new(&kernel, &[0.0; 18], [2, 1, 9], 3).is_err());
}
