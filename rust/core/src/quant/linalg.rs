//! The little dense linear algebra that calibration needs: products, Cholesky factors, triangular solves.
//!
//! Matrices are row-major slices. Sums run in a fixed order, so that results do not depend on the number of threads.

use mnnq_kernels::elementwise::Unary;
use mnnq_kernels::gemm_f32::{PackedB, gemm_f32, scratch_len};
use mnnq_kernels::multiversion::{Level, Loop, dispatch};
use mnnq_kernels::parallel::Executor;
use mnnq_kernels::{AlignedVec, Epilogue, KernelSet};
use rayon::prelude::*;

use super::affine::{LANES, fold_lanes_f64};
use super::error::QuantError;

/// Columns of a Cholesky factor that are computed together.
const PANEL: usize = 32;
/// Rows of a panel that share the reads of another row.
const SHARED: usize = 4;

/// Lends the threads of the current rayon pool to kernels.
#[derive(Clone, Copy, Debug)]
pub struct Threads;

impl Executor for Threads {
    fn threads(&self) -> usize {
        rayon::current_num_threads()
    }

    fn run(&self, body: &(dyn Fn() + Sync)) {
        rayon::broadcast(|_| body());
    }
}

/// `out[i, j] = sum_p a[i, p] b[j, p]` for `a: [m, k]` with row distance `a_stride` and `b: [n, k]` with `b_stride`.
///
/// # Errors
/// [`QuantError::Kernel`] if this CPU has no kernel or a slice is too short.
pub fn product_transposed(
    (a, a_stride, m): (&[f32], usize, usize),
    (b, b_stride, n): (&[f32], usize, usize),
    k: usize,
    out: &mut [f32],
) -> Result<(), QuantError> {
    let kernel = &KernelSet::get().map_err(QuantError::kernel)?.gemm_f32;
    let packed = PackedB::from_columns(kernel, b, k, n, b_stride).map_err(QuantError::kernel)?;
    let mut scratch = AlignedVec::zeros(scratch_len() * rayon::current_num_threads());
    let epilogue = Epilogue::new(None, Unary::Identity);
    gemm_f32(kernel, m, a, a_stride, &packed, &epilogue, out, n, scratch.as_mut_slice(), &Threads)
        .map_err(QuantError::kernel)
}

/// `sum a[i] b[i]`.
#[inline(always)]
fn dot(a: &[f64], b: &[f64]) -> f64 {
    let mut lanes = [0.0_f64; LANES];
    let ((a_chunks, a_tail), (b_chunks, b_tail)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    for (a, b) in a_chunks.iter().zip(b_chunks) {
        for lane in 0..LANES {
            lanes[lane] += a[lane] * b[lane];
        }
    }
    let tail: f64 = a_tail.iter().zip(b_tail).map(|(a, b)| a * b).sum();
    fold_lanes_f64(lanes) + tail
}

/// Dot products of one row with several; one read of `a` serves all.
#[inline(always)]
fn dots(a: &[f64], b: [&[f64]; SHARED]) -> [f64; SHARED] {
    const WIDE: usize = 8;
    let mut lanes = [[0.0_f64; WIDE]; SHARED];
    let (a_chunks, a_tail) = a.as_chunks::<WIDE>();
    let rows = b.map(|row| row[..a.len()].as_chunks::<WIDE>());
    for (i, a) in a_chunks.iter().enumerate() {
        for (sum, (chunks, _)) in lanes.iter_mut().zip(&rows) {
            for lane in 0..WIDE {
                sum[lane] += a[lane] * chunks[i][lane];
            }
        }
    }
    let mut out = [0.0; SHARED];
    for ((out, lanes), (_, tail)) in out.iter_mut().zip(&lanes).zip(&rows) {
        *out = lanes.iter().sum::<f64>() + a_tail.iter().zip(*tail).map(|(a, b)| a * b).sum::<f64>();
    }
    out
}

/// Rows below a panel of a Cholesky factor.
struct BelowPanel<'a> {
    /// Rows `0..first + width` of the factor.
    above: &'a [f64],
    row: &'a mut [f64],
    first: usize,
    width: usize,
}

impl Loop for BelowPanel<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let n = self.row.len();
        let above = |j: usize| &self.above[j * n..(j + 1) * n];
        let (first, end) = (self.first, self.first + self.width);
        // What the columns before the panel take off, four columns at a time.
        let mut j = first;
        while j + SHARED <= end {
            let rows = [above(j), above(j + 1), above(j + 2), above(j + 3)];
            let sums = dots(&self.row[..first], rows);
            for (x, sum) in self.row[j..j + SHARED].iter_mut().zip(sums) {
                *x -= sum;
            }
            j += SHARED;
        }
        for j in j..end {
            self.row[j] -= dot(&self.row[..first], &above(j)[..first]);
        }
        for j in first..end {
            let (known, rest) = self.row.split_at_mut(j);
            let sum = dot(&known[first..], &above(j)[first..j]);
            rest[0] = (rest[0] - sum) / above(j)[j];
        }
    }
}

/// Factors a symmetric positive definite `a: [n, n]` in place as `L L^T`, `L` lower triangular; reads and writes the
/// lower triangle only.
///
/// Returns false when a pivot is not positive; `a` is then partly overwritten.
pub fn cholesky(a: &mut [f64], n: usize) -> bool {
    let level = Level::best();
    for first in (0..n).step_by(PANEL) {
        let width = PANEL.min(n - first);
        for i in first..first + width {
            let (above, below) = a.split_at_mut(i * n);
            let row = &mut below[..n];
            dispatch(level, BelowPanel { above, row, first, width: i - first });
            let pivot = row[i] - dot(&row[..i], &row[..i]);
            if pivot.is_nan() || pivot <= 0.0 {
                return false;
            }
            row[i] = pivot.sqrt();
        }
        let (above, below) = a.split_at_mut((first + width) * n);
        below.par_chunks_mut(n).for_each(|row| {
            dispatch(level, BelowPanel { above, row, first, width });
        });
    }
    true
}

/// `y[i] += factor * x[i]`.
#[inline(always)]
pub(super) fn add_scaled(y: &mut [f32], factor: f32, x: &[f32]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y += factor * x;
    }
}

/// `sum a[i] b[i]` in single precision.
#[inline(always)]
pub(super) fn dot_f32(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0_f32; LANES];
    let ((a_chunks, a_tail), (b_chunks, b_tail)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    for (a, b) in a_chunks.iter().zip(b_chunks) {
        for lane in 0..LANES {
            lanes[lane] += a[lane] * b[lane];
        }
    }
    let tail: f32 = a_tail.iter().zip(b_tail).map(|(a, b)| a * b).sum();
    super::affine::fold_lanes(lanes) + tail
}

/// Solves `x L L^T = b` for some rows, in place.
pub(super) struct SolveRows<'a> {
    /// `[n, n]`, lower triangular.
    pub(super) factor: &'a [f32],
    /// `[rows, n]`: b, then x.
    pub(super) rows: &'a mut [f32],
    /// Columns.
    pub(super) n: usize,
}

impl Loop for SolveRows<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let n = self.n;
        for i in 0..n {
            let line = &self.factor[i * n..][..=i];
            for row in self.rows.chunks_exact_mut(n) {
                row[i] = (row[i] - dot_f32(&line[..i], &row[..i])) / line[i];
            }
        }
        for i in (0..n).rev() {
            let line = &self.factor[i * n..][..=i];
            for row in self.rows.chunks_exact_mut(n) {
                let x = row[i] / line[i];
                row[i] = x;
                add_scaled(&mut row[..i], -x, &line[..i]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(n: usize) -> Vec<f64> {
        (0..n).map(|i| ((i * i + 3 * i) as f64 * 0.731).sin()).collect()
    }

    /// `X X^T + I` for a random `X: [n, n]`.
    fn definite(n: usize) -> Vec<f64> {
        let x = noise(n * n);
        let mut a = vec![0.0; n * n];
        for i in 0..n {
            for j in 0..n {
                let sum: f64 = (0..n).map(|p| x[i * n + p] * x[j * n + p]).sum();
                a[i * n + j] = sum + f64::from(u8::from(i == j));
            }
        }
        a
    }

    #[test]
    fn factors_multiply_back() {
        for n in [1, 2, 31, 32, 33, 70, 129] {
            let a = definite(n);
            let mut factor = a.clone();
            assert!(cholesky(&mut factor, n));
            for i in 0..n {
                for j in 0..=i {
                    let sum: f64 = (0..=j).map(|p| factor[i * n + p] * factor[j * n + p]).sum();
                    assert!((sum - a[i * n + j]).abs() < 1e-10 * n as f64, "{n}: {i} {j}");
                }
            }
        }
    }

    #[test]
    fn indefinite_matrices_are_refused() {
        for n in [3, 40, 100] {
            let mut a = definite(n);
            a[n * n - 1] = -1.0;
            assert!(!cholesky(&mut a, n));
            let mut a = definite(n);
            a[(n - 1) * n] = f64::NAN;
            assert!(!cholesky(&mut a, n));
        }
    }

    #[test]
    fn solved_rows_satisfy_the_equations() {
        let n = 45;
        let a = definite(n);
        let mut factor = a.clone();
        assert!(cholesky(&mut factor, n));
        let factor: Vec<f32> = factor.iter().map(|&x| x as f32).collect();
        let b: Vec<f32> = noise(3 * n).iter().map(|&x| x as f32).collect();
        let mut x = b.clone();
        dispatch(Level::best(), SolveRows { factor: &factor, rows: &mut x, n });
        for (x, b) in x.chunks_exact(n).zip(b.chunks_exact(n)) {
            for j in 0..n {
                let sum: f64 = (0..n).map(|i| f64::from(x[i]) * a[i * n + j]).sum();
                assert!((sum - f64::from(b[j])).abs() < 1e-4, "{j}: {sum} {}", b[j]);
            }
        }
    }

    #[test]
    fn products_are_those_of_the_definition() {
        let (m, n, k) = (5, 7, 19);
        let a: Vec<f32> = noise(m * 20).iter().map(|&x| x as f32).collect();
        let b: Vec<f32> = noise(n * 21).iter().map(|&x| x as f32 + 0.5).collect();
        let mut out = vec![0.0; m * n];
        product_transposed((&a, 20, m), (&b, 21, n), k, &mut out).unwrap();
        for i in 0..m {
            for j in 0..n {
                let want: f32 = (0..k).map(|p| a[i * 20 + p] * b[j * 21 + p]).sum();
                assert!((out[i * n + j] - want).abs() < 1e-4);
            }
        }
    }
}
