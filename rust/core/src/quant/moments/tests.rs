use super::*;

fn noise(n: usize, seed: usize) -> Vec<f32> {
    (0..n).map(|i| (((i + seed) * (i + 3 * seed + 1)) as f32 * 0.017).sin() + 2.0).collect()
}

/// What the windows meet, by the definition: `[positions][groups * columns]`.
fn columns(x: &[f32], images: &Images<'_>, taps: Taps) -> Vec<Vec<f64>> {
    let [n, c, h, w] = images.shape;
    let mut out = Vec::new();
    for i in 0..n {
        for oy in 0..images.outputs[0] {
            for ox in 0..images.outputs[1] {
                let mut column = Vec::new();
                for ch in 0..c {
                    for ky in 0..taps.kernel[0] {
                        for kx in 0..taps.kernel[1] {
                            let y = (oy * taps.stride[0] + ky * taps.dilation[0]) as isize
                                - images.pad[0] as isize;
                            let z = (ox * taps.stride[1] + kx * taps.dilation[1]) as isize
                                - images.pad[1] as isize;
                            let inside = y >= 0 && z >= 0 && y < h as isize && z < w as isize;
                            let at = |y: isize, z: isize| ((i * c + ch) * h + y as usize) * w + z as usize;
                            column.push(if inside { f64::from(x[at(y, z)]) } else { 0.0 });
                        }
                    }
                }
                out.push(column);
            }
        }
    }
    out
}

fn covariance(a: &[Vec<f64>], b: &[Vec<f64>], i: usize, j: usize) -> f64 {
    let n = a.len() as f64;
    let mean = |x: &[Vec<f64>], i: usize| x.iter().map(|x| x[i]).sum::<f64>() / n;
    let (a_mean, b_mean) = (mean(a, i), mean(b, j));
    a.iter().zip(b).map(|(a, b)| (a[i] - a_mean) * (b[j] - b_mean)).sum::<f64>() / n
}

#[test]
fn statistics_are_those_of_the_definition() {
    let cases = [
        ([2, 4, 9, 7], 2, [3, 3], [2, 1], [1, 2], [1, 2], [5, 5]),
        ([3, 6, 5, 5], 6, [3, 3], [1, 1], [1, 1], [1, 1], [5, 5]),
        ([1, 60, 12, 13], 1, [1, 1], [1, 1], [1, 1], [0, 0], [12, 13]),
        ([300, 50, 1, 1], 1, [1, 1], [1, 1], [1, 1], [0, 0], [1, 1]),
        ([1, 8, 20, 20], 1, [3, 3], [1, 1], [1, 1], [0, 0], [18, 18]),
    ];
    for (shape, groups, kernel, stride, dilation, pad, outputs) in cases {
        let taps = Taps { kernel, stride, dilation };
        let length = shape.iter().product();
        let (actual, exact) = (noise(length, 1), noise(length, 2));
        let images = Images { actual: &actual, exact: Some(&exact), shape, pad, outputs, rows: [1, 0] };
        let mut moments = Moments::new(shape[1], groups, taps, true).unwrap();
        moments.add(&images).unwrap();
        let got = moments.finish().unwrap();
        let x = columns(&actual, &images, taps);
        let d: Vec<Vec<f64>> = columns(&exact, &images, taps)
            .iter()
            .zip(&x)
            .map(|(e, x)| e.iter().zip(x).map(|(e, x)| e - x).collect())
            .collect();
        let delta = got.delta.as_ref().unwrap();
        assert_eq!(got.count, x.len());
        for group in 0..groups {
            for i in 0..got.columns {
                let a = group * got.columns + i;
                let mean = x.iter().map(|x| x[a]).sum::<f64>() / x.len() as f64;
                assert!((got.mean[a] - mean).abs() < 1e-5);
                for j in 0..got.columns {
                    let b = group * got.columns + j;
                    let to = a * got.columns + j;
                    assert!((got.second[to] - covariance(&x, &x, a, b)).abs() < 1e-4, "{shape:?} {a} {b}");
                    assert!((delta.cross[to] - covariance(&d, &x, a, b)).abs() < 1e-4, "{shape:?} {a} {b}");
                }
            }
        }
    }
}

#[test]
fn parts_merge_to_the_whole() {
    let taps = Taps { kernel: [3, 1], stride: [1, 1], dilation: [1, 1] };
    let collect = |images: &[usize]| {
        let mut moments = Moments::new(4, 2, taps, true).unwrap();
        for &i in images {
            let (actual, exact) = (noise(4 * 30, i), noise(4 * 30, i + 7));
            let shape = [1, 4, 6, 5];
            moments
                .add(&Images {
                    actual: &actual,
                    exact: Some(&exact),
                    shape,
                    pad: [1, 0],
                    outputs: [6, 5],
                    rows: [1, 0],
                })
                .unwrap();
        }
        moments.finish().unwrap()
    };
    let whole = collect(&[1, 2, 3, 4, 5]);
    let mut parts = collect(&[1, 2]);
    parts.merge(&collect(&[3, 4, 5])).unwrap();
    assert_eq!(parts.count, whole.count);
    let close = |a: &[f64], b: &[f64]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-5);
    assert!(close(&parts.mean, &whole.mean) && close(&parts.second, &whole.second));
    let (a, b) = (parts.delta.unwrap(), whole.delta.unwrap());
    assert!(close(&a.mean, &b.mean) && close(&a.cross, &b.cross));
}

#[test]
fn wrong_inputs_are_refused() {
    let taps = Taps { kernel: [1, 1], stride: [1, 1], dilation: [1, 1] };
    assert!(matches!(Moments::new(5, 2, taps, false), Err(QuantError::Sample { .. })));
    let new = || Moments::new(4, 1, taps, false).unwrap();
    assert!(matches!(new().finish(), Err(QuantError::NoData)));
    let images =
        |actual, shape| Images { actual, exact: None, shape, pad: [0, 0], outputs: [1, 1], rows: [1, 0] };
    assert!(new().add(&images(&[0.0; 3], [1, 3, 1, 1])).is_err());
    assert!(new().add(&images(&[0.0; 3], [1, 4, 1, 1])).is_err());
    let nan = [0.0, f32::NAN, 0.0, 0.0];
    assert!(matches!(new().add(&images(&nan, [1, 4, 1, 1])), Err(QuantError::NonFiniteSample { .. })));
}
