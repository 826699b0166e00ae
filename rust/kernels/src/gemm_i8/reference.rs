//! The specification of the sums.

/// `out[i * n + j] = sum over p of (a[i * a_stride + p] - zero) * b[j * k + p]`, in plain loops.
///
/// # Shapes
/// `a`: `[m, k]` with rows at distance `a_stride`; `b`: `[n, k]`, one row per output column; the result: `[m, n]`.
///
/// # Panics
/// If a slice is too short.
pub fn gemm_i8_reference([m, n, k]: [usize; 3], a: &[i8], a_stride: usize, b: &[i8], zero: i32) -> Vec<i32> {
    let mut out = Vec::with_capacity(m * n);
    for i in 0..m {
        for j in 0..n {
            let mut sum = 0_i32;
            for p in 0..k {
                let code = i32::from(a[i * a_stride + p]) - zero;
                sum = sum.wrapping_add(code * i32::from(b[j * k + p]));
            }
            out.push(sum);
        }
    }
    out
}
