//! Reductions over one axis of `[outer, len, inner]` data.

use crate::error::KernelError;
use crate::pool::{maximum, minimum};
use crate::simd::{Simd, SimdOp, VectorIsa};

const FAMILY: &str = "reduce_f32";

/// Sums longer than this are summed in parts, which bounds the rounding error.
const PART: usize = 256;

/// What the values of the axis become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reduce {
    /// The sum.
    Sum,
    /// The sum divided by the length.
    Mean,
    /// The sum of squares.
    SumOfSquares,
    /// The sum of absolute values.
    SumOfMagnitudes,
    /// The product.
    Product,
    /// The largest; NaN if there is one. Minus infinity over nothing.
    Max,
    /// The smallest; NaN if there is one. Infinity over nothing.
    Min,
}

impl Reduce {
    fn start(self) -> f32 {
        match self {
            Self::Product => 1.0,
            Self::Max => f32::NEG_INFINITY,
            Self::Min => f32::INFINITY,
            _ => 0.0,
        }
    }

    /// Adds a value.
    #[inline(always)]
    fn step<S: Simd>(self, s: S, acc: S::F, x: S::F) -> S::F {
        match self {
            Self::Sum | Self::Mean => s.add(acc, x),
            Self::SumOfSquares => s.fma(x, x, acc),
            Self::SumOfMagnitudes => s.add(acc, s.abs(x)),
            Self::Product => s.mul(acc, x),
            Self::Max => maximum(s, acc, x),
            Self::Min => minimum(s, acc, x),
        }
    }

    /// Joins two partial results.
    #[inline(always)]
    fn join<S: Simd>(self, s: S, a: S::F, b: S::F) -> S::F {
        match self {
            Self::SumOfSquares | Self::SumOfMagnitudes => s.add(a, b),
            _ => self.step(s, a, b),
        }
    }

    fn join_one(self, a: f32, b: f32) -> f32 {
        match self {
            Self::Product => a * b,
            Self::Max if a.is_nan() || b.is_nan() => f32::NAN,
            Self::Max => a.max(b),
            Self::Min if a.is_nan() || b.is_nan() => f32::NAN,
            Self::Min => a.min(b),
            _ => a + b,
        }
    }
}

/// `out[o, i] = reduce over l of x[o, l, i]`.
///
/// # Shapes
/// `x`: `[outer, len, inner]`, `out`: `[outer, inner]`, both contiguous. Global pooling of NHWC images is
/// `[batch, height * width, channels]`.
///
/// # Errors
/// [`KernelError::Size`] if a length does not fit.
pub fn reduce_f32(
    isa: VectorIsa,
    kind: Reduce,
    [outer, len, inner]: [usize; 3],
    x: &[f32],
    out: &mut [f32],
) -> Result<(), KernelError> {
    let overflow = KernelError::Value { kernel: FAMILY, what: "the tensor is larger than the address space" };
    let per_outer = len.checked_mul(inner).ok_or(overflow.clone())?;
    let wanted = outer.checked_mul(per_outer).ok_or(overflow.clone())?;
    KernelError::check(FAMILY, "length of the input", x.len(), wanted)?;
    KernelError::check(FAMILY, "length of the output", out.len(), outer.checked_mul(inner).ok_or(overflow)?)?;
    for index in 0..if inner == 0 { 0 } else { outer } {
        let x = &x[index * per_outer..][..per_outer];
        let out = &mut out[index * inner..][..inner];
        if inner == 1 {
            out[0] = isa.run(Horizontal { kind, x });
        } else {
            isa.run(Vertical { kind, x, out });
        }
        if kind == Reduce::Mean {
            out.iter_mut().for_each(|x| *x /= len as f32);
        }
    }
    Ok(())
}

/// The values of one slice.
pub(crate) struct Horizontal<'a> {
    pub(crate) kind: Reduce,
    pub(crate) x: &'a [f32],
}

impl SimdOp for Horizontal<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let Self { kind, x } = self;
        let mut total = s.splat(kind.start());
        let whole = x.len() - x.len() % (4 * S::LANES);
        // Parts bound the error of sums; within a part four chains hide the latency.
        for part in x[..whole].chunks(PART * S::LANES) {
            let mut acc = [s.splat(kind.start()); 4];
            for line in part.chunks_exact(4 * S::LANES) {
                for (chain, acc) in acc.iter_mut().enumerate() {
                    *acc = kind.step(s, *acc, s.load_slice(&line[chain * S::LANES..]));
                }
            }
            let pair = [kind.join(s, acc[0], acc[1]), kind.join(s, acc[2], acc[3])];
            total = kind.join(s, total, kind.join(s, pair[0], pair[1]));
        }
        let mut rest = x[whole..].chunks_exact(S::LANES);
        for line in &mut rest {
            total = kind.step(s, total, s.load_slice(line));
        }
        let mut lanes = s.lanes(total);
        let mut width = S::LANES;
        while width > 1 {
            width /= 2;
            for lane in 0..width {
                lanes[lane] = kind.join_one(lanes[lane], lanes[lane + width]);
            }
        }
        let mut result = lanes[0];
        for &x in rest.remainder() {
            let value = match kind {
                Reduce::SumOfSquares => x * x,
                Reduce::SumOfMagnitudes => x.abs(),
                _ => x,
            };
            result = kind.join_one(result, value);
        }
        result
    }
}

/// Columns of a matrix, each to one value.
struct Vertical<'a> {
    kind: Reduce,
    x: &'a [f32],
    out: &'a mut [f32],
}

impl SimdOp for Vertical<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { kind, x, out } = self;
        let inner = out.len();
        let width = 4 * S::LANES;
        for (block, out) in out.chunks_mut(width).enumerate() {
            let first = block * width;
            let mut total = [s.splat(kind.start()); 4];
            for part in x.chunks(PART * inner) {
                let mut acc = [s.splat(kind.start()); 4];
                for row in part.chunks_exact(inner) {
                    let row = &row[first..first + out.len()];
                    if out.len() == width {
                        for (v, acc) in acc.iter_mut().enumerate() {
                            *acc = kind.step(s, *acc, s.load_slice(&row[v * S::LANES..]));
                        }
                    } else {
                        for (acc, values) in acc.iter_mut().zip(row.chunks(S::LANES)) {
                            *acc = kind.step(s, *acc, s.load_tail(values));
                        }
                    }
                }
                for (total, acc) in total.iter_mut().zip(acc) {
                    *total = kind.join(s, *total, acc);
                }
            }
            for (total, out) in total.iter().zip(out.chunks_mut(S::LANES)) {
                s.store_tail(out, *total);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Guarded, Rng, SIZES, assert_close};

    const KINDS: [Reduce; 7] = [
        Reduce::Sum,
        Reduce::Mean,
        Reduce::SumOfSquares,
        Reduce::SumOfMagnitudes,
        Reduce::Product,
        Reduce::Max,
        Reduce::Min,
    ];

    fn reference(kind: Reduce, values: &[f64]) -> f32 {
        let sum: f64 = values.iter().sum();
        let result = match kind {
            Reduce::Sum => sum,
            Reduce::Mean => sum / values.len() as f64,
            Reduce::SumOfSquares => values.iter().map(|x| x * x).sum(),
            Reduce::SumOfMagnitudes => values.iter().map(|x| x.abs()).sum(),
            Reduce::Product => values.iter().product(),
            Reduce::Max => values.iter().copied().fold(f64::NEG_INFINITY, f64::max),
            Reduce::Min => values.iter().copied().fold(f64::INFINITY, f64::min),
        };
        result as f32
    }

    #[test]
    fn every_kind_length_and_layout_is_right() {
        let mut rng = Rng::new(9);
        crate::for_each_vector_isa!(|isa| {
            for kind in KINDS {
                for &len in SIZES.iter().chain(&[600, 1025]) {
                    for (outer, inner) in [(2, 1), (1, 5), (2, 67), (0, 3), (3, 0)] {
                        let x = rng.floats(outer * len * inner, -1.1, 1.1);
                        let mut out = Guarded::new(outer * inner, 7.0, 9.0);
                        reduce_f32(isa, kind, [outer, len, inner], &x, out.get_mut()).unwrap();
                        out.check();
                        let want: Vec<f32> = (0..outer * inner)
                            .map(|i| {
                                let at = |l: usize| f64::from(x[(i / inner * len + l) * inner + i % inner]);
                                reference(kind, &(0..len).map(at).collect::<Vec<_>>())
                            })
                            .collect();
                        let what = format!("{kind:?} [{outer}, {len}, {inner}] on {}", isa.level());
                        assert_close(out.get(), &want, 2e-5, 1e-5, &what);
                    }
                }
            }
        });
    }

    /// Relative error allowed for 2^20 equal summands, the worst case of systematic rounding; a plain loop is off by
    /// 4e-2.
    const LONG_SUM_BUDGET: f64 = 1e-4;

    #[test]
    fn long_sums_keep_their_precision() {
        let len = 1 << 20;
        let x = vec![0.1_f32; 3 * len];
        let exact = f64::from(0.1_f32) * len as f64;
        crate::for_each_vector_isa!(|isa| {
            for layout in [[3, len, 1], [1, len, 3]] {
                let mut out = [0.0; 3];
                reduce_f32(isa, Reduce::Sum, layout, &x, &mut out).unwrap();
                assert!(
                    out.iter().all(|&sum| (f64::from(sum) - exact).abs() < LONG_SUM_BUDGET * exact),
                    "{layout:?} {out:?}"
                );
            }
        });
    }

    #[test]
    fn extremes_keep_nan() {
        crate::for_each_vector_isa!(|isa| {
            for kind in [Reduce::Max, Reduce::Min] {
                for position in [0, 7, 16, 39, 40] {
                    let mut x = vec![0.5; 41];
                    x[position] = f32::NAN;
                    let mut out = [0.0];
                    reduce_f32(isa, kind, [1, 41, 1], &x, &mut out).unwrap();
                    assert!(out[0].is_nan(), "{kind:?} {position}");
                }
            }
        });
    }
}
