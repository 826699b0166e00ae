//! Binary functions with the broadcasts that matter.

use crate::simd::{Simd, SimdOp, VectorIsa};

/// A function of two values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Binary {
    /// `a + b`.
    Add,
    /// `a - b`.
    Sub,
    /// `a * b`.
    Mul,
    /// `a / b`.
    Div,
    /// The smaller one; NaN if either is NaN.
    Min,
    /// The larger one; NaN if either is NaN.
    Max,
    /// `(a - b)^2`.
    SquaredDifference,
    /// `a^b`, by the scalar library.
    Pow,
    /// Angle of the point `(b, a)`, by the scalar library.
    Atan2,
    /// Remainder with the sign of the divisor `b` (Python's `%`, ONNX `Mod` for floats with `fmod = 0`, MNN's MOD).
    FloorMod,
    /// Remainder with the sign of the dividend `a` (C's `fmod`).
    FMod,
    /// `floor(a / b)`.
    FloorDiv,
    /// `a * b * sigmoid(a)`: MNN's fused gate, `silu(a) * b`.
    SiluMul,
}

/// How `b` is stretched to the `[rows, columns]` of `a` and the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Broadcast {
    /// `b` has the shape of `a`.
    Same,
    /// `b` is one value.
    Scalar,
    /// `b: [rows]`, one value per row.
    PerRow,
    /// `b: [columns]`, one value per column (for example per channel of NHWC data).
    PerColumn,
}

trait Lanewise2: Copy {
    fn apply<S: Simd>(self, s: S, a: S::F, b: S::F) -> S::F;
}

macro_rules! lanewise2 {
    ($($name:ident |$s:ident, $a:ident, $b:ident| $body:expr;)+) => {
        $(
            #[derive(Clone, Copy)]
            struct $name;
            impl Lanewise2 for $name {
                #[inline(always)]
                fn apply<S: Simd>(self, $s: S, $a: S::F, $b: S::F) -> S::F {
                    $body
                }
            }
        )+
    };
}

lanewise2! {
    Add |s, a, b| s.add(a, b);
    Sub |s, a, b| s.sub(a, b);
    Mul |s, a, b| s.mul(a, b);
    Div |s, a, b| s.div(a, b);
    // `a + b` is NaN where the two are unordered; equality is handled by the comparison being strict.
    Min |s, a, b| s.select(s.lt(a, b), a, s.select(s.lt(b, a), b, s.select(s.eq(a, b), a, s.add(a, b))));
    Max |s, a, b| s.select(s.lt(b, a), a, s.select(s.lt(a, b), b, s.select(s.eq(a, b), a, s.add(a, b))));
    SquaredDifference |s, a, b| { let d = s.sub(a, b); s.mul(d, d) };
    FloorDiv |s, a, b| s.floor(s.div(a, b));
    SiluMul |s, a, b| {
        let e = super::vmath::exp(s, s.neg(a));
        let gate = s.select(s.lt(a, s.splat(-1e4)), s.splat(-0.0), s.div(a, s.add(s.splat(1.0), e)));
        s.mul(gate, b)
    };
}

/// The other operand of a row.
#[derive(Clone, Copy)]
enum Row<'a> {
    Values(&'a [f32]),
    One(f32),
}

struct MapRow<'a, F> {
    f: F,
    /// `None`: the first operand is what `out` holds.
    a: Option<&'a [f32]>,
    b: Row<'a>,
    out: &'a mut [f32],
}

impl<F: Lanewise2> SimdOp for MapRow<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { f, a, b, out } = self;
        let whole = out.len() - out.len() % S::LANES;
        for start in (0..whole).step_by(S::LANES) {
            let span = start..start + S::LANES;
            let x = s.load_slice(a.map_or(&out[span.clone()], |a| &a[span.clone()]));
            let y = match b {
                Row::Values(b) => s.load_slice(&b[span.clone()]),
                Row::One(b) => s.splat(b),
            };
            s.store_slice(&mut out[span], f.apply(s, x, y));
        }
        if whole < out.len() {
            let x = s.load_tail(a.map_or(&out[whole..], |a| &a[whole..]));
            let y = match b {
                Row::Values(b) => s.load_tail(&b[whole..]),
                Row::One(b) => s.splat(b),
            };
            s.store_tail(&mut out[whole..], f.apply(s, x, y));
        }
    }
}

/// Rows of `columns` values whose other operand is the same in every row, or one value per row.
struct MapRows<'a, F> {
    f: F,
    a: Option<&'a [f32]>,
    b: &'a [f32],
    per_row: bool,
    columns: usize,
    out: &'a mut [f32],
}

impl<F: Lanewise2> SimdOp for MapRows<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { f, a, b, per_row, columns, out } = self;
        for (index, out) in out.chunks_exact_mut(columns).enumerate() {
            let a = a.map(|a| &a[index * columns..][..columns]);
            let b = if per_row { Row::One(b[index]) } else { Row::Values(b) };
            MapRow { f, a, b, out }.run(s);
        }
    }
}

/// Remainder with the sign of the divisor.
fn floor_mod(a: f32, b: f32) -> f32 {
    let r = a % b;
    if r != 0.0 && (r < 0.0) != (b < 0.0) { r + b } else { r }
}

fn row(isa: VectorIsa, f: Binary, a: Option<&[f32]>, b: Row<'_>, out: &mut [f32]) {
    macro_rules! scalar {
        ($f:expr) => {
            for i in 0..out.len() {
                let y = match b {
                    Row::Values(b) => b[i],
                    Row::One(b) => b,
                };
                out[i] = $f(a.map_or(out[i], |a| a[i]), y);
            }
        };
    }
    match f {
        Binary::Add => isa.run(MapRow { f: Add, a, b, out }),
        Binary::Sub => isa.run(MapRow { f: Sub, a, b, out }),
        Binary::Mul => isa.run(MapRow { f: Mul, a, b, out }),
        Binary::Div => isa.run(MapRow { f: Div, a, b, out }),
        Binary::Min => isa.run(MapRow { f: Min, a, b, out }),
        Binary::Max => isa.run(MapRow { f: Max, a, b, out }),
        Binary::SquaredDifference => isa.run(MapRow { f: SquaredDifference, a, b, out }),
        Binary::FloorDiv => isa.run(MapRow { f: FloorDiv, a, b, out }),
        Binary::SiluMul => isa.run(MapRow { f: SiluMul, a, b, out }),
        Binary::Pow => scalar!(f32::powf),
        Binary::Atan2 => scalar!(f32::atan2),
        Binary::FloorMod => scalar!(floor_mod),
        Binary::FMod => scalar!(|a: f32, b: f32| a % b),
    }
}

/// `out[r, c] = f(a[r, c], b[...])`, with `b` stretched as `broadcast` says.
///
/// # Shapes
/// `a`, `out`: `[rows, columns]`, contiguous, `rows = a.len() / columns`. `b`: see [`Broadcast`].
///
/// # Panics
/// If the lengths do not fit.
pub fn binary(
    isa: VectorIsa,
    f: Binary,
    a: &[f32],
    b: &[f32],
    broadcast: Broadcast,
    columns: usize,
    out: &mut [f32],
) {
    assert_eq!(a.len(), out.len(), "binary: input and output lengths differ");
    broadcast_rows(isa, f, Some(a), b, broadcast, columns, out);
}

/// `a[r, c] = f(a[r, c], b[...])`; see [`binary`].
///
/// # Panics
/// If the lengths do not fit.
pub fn binary_in_place(
    isa: VectorIsa,
    f: Binary,
    a: &mut [f32],
    b: &[f32],
    broadcast: Broadcast,
    columns: usize,
) {
    broadcast_rows(isa, f, None, b, broadcast, columns, a);
}

fn broadcast_rows(
    isa: VectorIsa,
    f: Binary,
    a: Option<&[f32]>,
    b: &[f32],
    broadcast: Broadcast,
    columns: usize,
    out: &mut [f32],
) {
    if out.is_empty() {
        return;
    }
    assert!(columns > 0 && out.len().is_multiple_of(columns), "binary: columns do not divide the length");
    let expected = match broadcast {
        Broadcast::Same => out.len(),
        Broadcast::Scalar => 1,
        Broadcast::PerRow => out.len() / columns,
        Broadcast::PerColumn => columns,
    };
    assert_eq!(b.len(), expected, "binary: the second operand has the wrong length");
    match broadcast {
        Broadcast::Same => row(isa, f, a, Row::Values(b), out),
        Broadcast::Scalar => row(isa, f, a, Row::One(b[0]), out),
        Broadcast::PerRow | Broadcast::PerColumn => {
            let per_row = broadcast == Broadcast::PerRow;
            macro_rules! vector {
                ($f:expr) => {
                    isa.run(MapRows { f: $f, a, b, per_row, columns, out })
                };
            }
            match f {
                Binary::Add => return vector!(Add),
                Binary::Sub => return vector!(Sub),
                Binary::Mul => return vector!(Mul),
                Binary::Div => return vector!(Div),
                Binary::Min => return vector!(Min),
                Binary::Max => return vector!(Max),
                _ => {}
            }
            for (index, out) in out.chunks_exact_mut(columns).enumerate() {
                let a = a.map(|a| &a[index * columns..][..columns]);
                let b = if broadcast == Broadcast::PerRow { Row::One(b[index]) } else { Row::Values(b) };
                row(isa, f, a, b, out);
            }
        }
    }
}
