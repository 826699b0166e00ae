//! Softmax and its logarithm over one axis.

use crate::elementwise::vmath;
use crate::error::KernelError;
use crate::pool::maximum;
use crate::simd::{Simd, SimdOp, VectorIsa};

const FAMILY: &str = "softmax_f32";

/// What is computed from `e_l = exp(x_l - max)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Softmax {
    /// `e_l / sum e`.
    Probabilities,
    /// `x_l - max - ln(sum e)`.
    LogProbabilities,
}

/// Softmax over `l` of `x[o, l, i]`.
///
/// Minus infinity is a value with probability 0; where all values of a row are minus infinity, or one is NaN or
/// infinity, the row is NaN, as the formula says.
///
/// # Shapes
/// `x`, `out`: `[outer, len, inner]`, contiguous.
///
/// # Errors
/// [`KernelError::Size`] if a length does not fit.
pub fn softmax_f32(
    isa: VectorIsa,
    kind: Softmax,
    [outer, len, inner]: [usize; 3],
    x: &[f32],
    out: &mut [f32],
) -> Result<(), KernelError> {
    let overflow = KernelError::Value { kernel: FAMILY, what: "the tensor is larger than the address space" };
    let slab = len.checked_mul(inner).ok_or(overflow.clone())?;
    let wanted = outer.checked_mul(slab).ok_or(overflow)?;
    KernelError::check(FAMILY, "length of the input", x.len(), wanted)?;
    KernelError::check(FAMILY, "length of the output", out.len(), wanted)?;
    if wanted > 0 {
        for (x, out) in x.chunks_exact(slab).zip(out.chunks_exact_mut(slab)) {
            if inner == 1 {
                isa.run(Row { kind, x, out });
            } else {
                isa.run(Columns { kind, inner, x, out });
            }
        }
    }
    Ok(())
}

/// One contiguous row.
struct Row<'a> {
    kind: Softmax,
    x: &'a [f32],
    out: &'a mut [f32],
}

impl SimdOp for Row<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { kind, x, out } = self;
        let whole = x.len() - x.len() % S::LANES;
        let (x_main, x_tail) = x.split_at(whole);
        let mut largest = s.splat(f32::NEG_INFINITY);
        for line in x_main.chunks_exact(S::LANES) {
            largest = maximum(s, largest, s.load_slice(line));
        }
        let lanes = s.lanes(largest);
        let all = lanes[..S::LANES].iter().chain(x_tail);
        let largest = all.fold(f32::NEG_INFINITY, |a, &b| if a.is_nan() || b < a { a } else { b });
        let largest_v = s.splat(largest);
        let mut sum = s.splat(0.0);
        for (line, out) in x_main.chunks_exact(S::LANES).zip(out.chunks_exact_mut(S::LANES)) {
            let e = vmath::exp(s, s.sub(s.load_slice(line), largest_v));
            sum = s.add(sum, e);
            s.store_slice(out, e);
        }
        let mut sum = s.sum_lanes(sum);
        if !x_tail.is_empty() {
            let e = vmath::exp(s, s.sub(s.load_tail(x_tail), largest_v));
            sum += s.lanes(e)[..x_tail.len()].iter().sum::<f32>();
            s.store_tail(&mut out[whole..], e);
        }
        let (logarithm, factor) = (s.splat(sum.ln()), 1.0 / sum);
        for (line, out) in x.chunks(S::LANES).zip(out.chunks_mut(S::LANES)) {
            let y = match kind {
                Softmax::Probabilities => s.mul(s.load_tail(out), s.splat(factor)),
                Softmax::LogProbabilities => s.sub(s.sub(s.load_tail(line), largest_v), logarithm),
            };
            s.store_tail(out, y);
        }
    }
}

/// A matrix `[len, inner]`, column by column.
struct Columns<'a> {
    kind: Softmax,
    inner: usize,
    x: &'a [f32],
    out: &'a mut [f32],
}

impl SimdOp for Columns<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { kind, inner, x, out } = self;
        for first in (0..inner).step_by(S::LANES) {
            let span = first..inner.min(first + S::LANES);
            let mut largest = s.splat(f32::NEG_INFINITY);
            for row in x.chunks_exact(inner) {
                largest = maximum(s, largest, s.load_tail(&row[span.clone()]));
            }
            let mut sum = s.splat(0.0);
            for (row, out) in x.chunks_exact(inner).zip(out.chunks_exact_mut(inner)) {
                let e = vmath::exp(s, s.sub(s.load_tail(&row[span.clone()]), largest));
                sum = s.add(sum, e);
                s.store_tail(&mut out[span.clone()], e);
            }
            let (logarithm, factor) = (vmath::log(s, sum), vmath::reciprocal(s, sum));
            for (row, out) in x.chunks_exact(inner).zip(out.chunks_exact_mut(inner)) {
                let out = &mut out[span.clone()];
                let y = match kind {
                    Softmax::Probabilities => s.mul(s.load_tail(out), factor),
                    Softmax::LogProbabilities => {
                        s.sub(s.sub(s.load_tail(&row[span.clone()]), largest), logarithm)
                    }
                };
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
    fn every_length_and_layout_is_right() {
        let mut rng = Rng::new(2);
        crate::for_each_vector_isa!(|isa| {
            for kind in [Softmax::Probabilities, Softmax::LogProbabilities] {
                for &len in SIZES {
                    for (outer, inner) in [(3, 1), (2, 5), (1, 33), (0, 2), (2, 0)] {
                        let x = rng.floats(outer * len * inner, -30.0, 30.0);
                        let mut out = Guarded::new(x.len(), 0.0, 4.0);
                        softmax_f32(isa, kind, [outer, len, inner], &x, out.get_mut()).unwrap();
                        out.check();
                        let at = |o: usize, l: usize, i: usize| f64::from(x[(o * len + l) * inner + i]);
                        let mut want = vec![0.0; x.len()];
                        for o in 0..outer {
                            for i in 0..inner {
                                let sum: f64 = (0..len).map(|l| at(o, l, i).exp()).sum();
                                for l in 0..len {
                                    want[(o * len + l) * inner + i] = match kind {
                                        Softmax::Probabilities => at(o, l, i).exp() / sum,
                                        Softmax::LogProbabilities => at(o, l, i) - sum.ln(),
                                    }
                                        as f32;
                                }
                            }
                        }
                        let what = format!("{kind:?} [{outer}, {len}, {inner}] on {}", isa.level());
                        assert_close(out.get(), &want, 2e-7, 2e-6, &what);
                    }
                }
            }
        });
    }

    #[test]
    fn masked_values_have_probability_zero_and_nan_spreads() {
        crate::for_each_vector_isa!(|isa| {
            for layout in [[1, 18, 1], [1, 9, 2]] {
                let mut x = vec![1.0; 18];
                x[2..].fill(f32::NEG_INFINITY);
                let mut out = vec![9.0; 18];
                softmax_f32(isa, Softmax::Probabilities, layout, &x, &mut out).unwrap();
                assert!(
                    (out[..2].iter().sum::<f32>() - layout[2] as f32).abs() < 1e-6
                        && out[2..].iter().all(|&p| p == 0.0)
                );
                x[4] = f32::NAN;
                softmax_f32(isa, Softmax::Probabilities, layout, &x, &mut out).unwrap();
                assert!(out.iter().step_by(layout[2]).all(|p| p.is_nan()), "{layout:?} {out:?}");
            }
        });
    }
}
