//! Layer and root-mean-square normalization of rows.

use crate::error::KernelError;
use crate::reduce::{Horizontal, Reduce};
use crate::simd::{Simd, SimdOp, VectorIsa};

const FAMILY: &str = "normalize_f32";

/// How a row is centred and scaled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Normalize {
    /// `(x - mean) / sqrt(variance + epsilon)`, variance over the row (divided by its length).
    Layer,
    /// `x / sqrt(mean of squares + epsilon)`.
    RootMeanSquare,
}

/// `out[r, c] = normalize(x[r, ..])[c] * gamma[c] + beta[c]`.
///
/// # Shapes
/// `x`, `out`: `[rows, columns]`, contiguous; `gamma`, `beta`: `[columns]`, 1 and 0 if absent. The variance is computed
/// from the differences to the mean, in a second pass.
///
/// # Errors
/// [`KernelError::Size`] if a length does not fit.
#[allow(clippy::too_many_arguments, reason = "the parameters of the operator")]
pub fn normalize_f32(
    isa: VectorIsa,
    kind: Normalize,
    columns: usize,
    x: &[f32],
    gamma: Option<&[f32]>,
    beta: Option<&[f32]>,
    epsilon: f32,
    out: &mut [f32],
) -> Result<(), KernelError> {
    KernelError::check(FAMILY, "length of the output", out.len(), x.len())?;
    if x.is_empty() {
        return Ok(());
    }
    if columns == 0 || !x.len().is_multiple_of(columns) {
        return Err(KernelError::Value { kernel: FAMILY, what: "the columns do not divide the length" });
    }
    for (what, vector) in [("length of gamma", gamma), ("length of beta", beta)] {
        if let Some(vector) = vector {
            KernelError::check(FAMILY, what, vector.len(), columns)?;
        }
    }
    isa.run(Rows { kind, columns, x, gamma, beta, epsilon, out });
    Ok(())
}

struct Rows<'a> {
    kind: Normalize,
    columns: usize,
    x: &'a [f32],
    gamma: Option<&'a [f32]>,
    beta: Option<&'a [f32]>,
    epsilon: f32,
    out: &'a mut [f32],
}

impl SimdOp for Rows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let columns = self.columns;
        let count = columns as f32;
        for (x, out) in self.x.chunks_exact(columns).zip(self.out.chunks_exact_mut(columns)) {
            let mean = match self.kind {
                Normalize::Layer => Horizontal { kind: Reduce::Sum, x }.run(s) / count,
                Normalize::RootMeanSquare => 0.0,
            };
            let mean = s.splat(mean);
            for (x, out) in x.chunks(S::LANES).zip(out.chunks_mut(S::LANES)) {
                s.store_tail(out, s.sub(s.load_tail(x), mean));
            }
            let squares = Horizontal { kind: Reduce::SumOfSquares, x: out }.run(s);
            let factor = s.splat(1.0 / (squares / count + self.epsilon).sqrt());
            for (index, out) in out.chunks_mut(S::LANES).enumerate() {
                let span = index * S::LANES..index * S::LANES + out.len();
                let mut y = s.mul(s.load_tail(out), factor);
                if let Some(gamma) = self.gamma {
                    y = s.mul(y, s.load_tail(&gamma[span.clone()]));
                }
                if let Some(beta) = self.beta {
                    y = s.add(y, s.load_tail(&beta[span]));
                }
                s.store_tail(out, y);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Guarded, Rng, SIZES, assert_close};

    #[test]
    fn every_length_is_right() {
        let mut rng = Rng::new(2);
        crate::for_each_vector_isa!(|isa| {
            for kind in [Normalize::Layer, Normalize::RootMeanSquare] {
                for &columns in SIZES.iter().skip(1) {
                    let x = rng.floats(3 * columns, -2.0, 5.0);
                    let (gamma, beta) = (rng.floats(columns, 0.5, 2.0), rng.floats(columns, -1.0, 1.0));
                    for affine in [false, true] {
                        let mut out = Guarded::new(x.len(), 0.0, 4.0);
                        let (g, b) = (affine.then_some(&gamma[..]), affine.then_some(&beta[..]));
                        normalize_f32(isa, kind, columns, &x, g, b, 1e-5, out.get_mut()).unwrap();
                        out.check();
                        let mut want = Vec::new();
                        for row in x.chunks(columns) {
                            let n = columns as f64;
                            let mean = row.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
                            let mean = if kind == Normalize::Layer { mean } else { 0.0 };
                            let square = row.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / n;
                            for (c, &x) in row.iter().enumerate() {
                                let y = (f64::from(x) - mean) / (square + 1e-5).sqrt();
                                let y = if affine { y * f64::from(gamma[c]) + f64::from(beta[c]) } else { y };
                                want.push(y as f32);
                            }
                        }
                        let what = format!("{kind:?} {columns} on {}", isa.level());
                        assert_close(out.get(), &want, 2e-5, 1e-5, &what);
                    }
                }
            }
        });
    }

    #[test]
    fn a_wrong_gamma_is_refused() {
        let mut out = [0.0; 4];
        let isa = VectorIsa::Portable;
        assert!(
            normalize_f32(isa, Normalize::Layer, 2, &[0.0; 4], Some(&[1.0]), None, 0.0, &mut out).is_err()
        );
        assert!(normalize_f32(isa, Normalize::Layer, 3, &[0.0; 4], None, None, 0.0, &mut out).is_err());
    }
}
