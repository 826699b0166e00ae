//! The specification: three plain loops.

/// `out[i, j] = sum over p of a[i * a_stride + p] * b[p * n + j]`, accumulated in f64 and rounded once.
///
/// # Shapes
/// `a`: `m` rows of `k` at distance `a_stride`; `b`: `[k, n]`; the result: `[m, n]`.
///
/// # Panics
/// If a slice is too short.
pub fn gemm_f32_reference(m: usize, n: usize, k: usize, a: &[f32], a_stride: usize, b: &[f32]) -> Vec<f32> {
    let mut out = Vec::with_capacity(m * n);
    for i in 0..m {
        for j in 0..n {
            let sum: f64 = (0..k).map(|p| f64::from(a[i * a_stride + p]) * f64::from(b[p * n + j])).sum();
            out.push(sum as f32);
        }
    }
    out
}
