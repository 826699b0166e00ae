//! The mapping between weights and codes: the formulas every method and every test refers to.
//!
//! With `b` bits, codes are `-2^(b-1) ..= 2^(b-1) - 1`; `index = code + 2^(b-1)` counts from 0. All arithmetic
//! is f32 in the order written here, because files are compared bit for bit:
//!
//! * symmetric: `w = scale * code`, `code = clamp(round(w / scale))`;
//! * asymmetric: `w = min + scale * index`, `index = clamp(round((w - min) / scale))`.
//!
//! A reader computes the asymmetric weight as `code * scale + (min + 2^(b-1) * scale)`; so do the error figures.
//!
//! `round` is half away from zero (MNN: `source/core/IDSTEncoder.hpp`, `WriteCQBlobs`). Functions of the hot
//! loops are `#[inline(always)]` so that [`mnnq_kernels::multiversion::dispatch`] compiles them per level.

use std::hint::black_box;

use super::spec::{BitWidth, Scheme};

/// Accumulators of a reduction: element `i` of a block goes to lane `i % LANES` on every CPU; what is left beyond the
/// last full vector is added at the end, one by one.
pub const LANES: usize = 16;

/// Blocks whose scale is not above this carry one constant code (MNN's rule for dead channels).
pub const DEAD_SCALE: f32 = 1e-6;

/// Parameters of one block.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Affine {
    /// Size of one step. May be negative in a symmetric block and 0 in a constant one.
    pub scale: f32,
    /// Weight of index 0; 0 and unused in a symmetric block.
    pub min: f32,
}

/// Rounds half away from zero.
#[inline(always)]
pub fn round_half_away(x: f32) -> f32 {
    x.round()
}

/// `x` limited to `[lo, hi]`; NaN becomes `lo`.
#[inline(always)]
pub fn clamp(x: f32, lo: f32, hi: f32) -> f32 {
    let x = if x > lo { x } else { lo };
    if x < hi { x } else { hi }
}

/// The integral float `x` in `-128..=127` as an integer.
///
/// Adding 1.5·2^23 leaves `x` in the low bits of the mantissa, in two's complement: a conversion that
/// vectorizes on every instruction set.
#[inline(always)]
pub fn to_code(x: f32) -> i8 {
    ((x + 12_582_912.0).to_bits() & 0xff) as u8 as i8
}

/// Codes of a block on the symmetric grid `w = scale * code`, in the full range `-2^(b-1)..=2^(b-1)-1`.
///
/// `scale` must not be 0. `weights` and `codes` have the same length.
#[inline(always)]
pub fn encode_symmetric(bits: BitWidth, scale: f32, weights: &[f32], codes: &mut [i8]) {
    let (lo, hi) = (-bits.half(), bits.half() - 1.0);
    let encode = Symmetric { scale, lo, hi };
    encode_chunks(encode, weights, codes);
}

/// Codes of a block on the asymmetric grid `w = min + scale * index`.
///
/// `scale` must not be 0. `weights` and `codes` have the same length.
#[inline(always)]
pub fn encode_asymmetric(bits: BitWidth, affine: Affine, weights: &[f32], codes: &mut [i8]) {
    let encode = Asymmetric { affine, steps: bits.steps(), half: bits.half() };
    encode_chunks(encode, weights, codes);
}

/// Code of one weight.
pub(super) trait Encode: Copy {
    fn code(self, w: f32) -> i8;
}

#[derive(Clone, Copy)]
struct Symmetric {
    scale: f32,
    lo: f32,
    hi: f32,
}

impl Encode for Symmetric {
    #[inline(always)]
    fn code(self, w: f32) -> i8 {
        to_code(round_half_away(clamp(w / self.scale, self.lo, self.hi)))
    }
}

#[derive(Clone, Copy)]
struct Asymmetric {
    affine: Affine,
    steps: f32,
    half: f32,
}

impl Encode for Asymmetric {
    #[inline(always)]
    fn code(self, w: f32) -> i8 {
        let index = round_half_away(clamp((w - self.affine.min) / self.affine.scale, 0.0, self.steps));
        to_code(index - self.half)
    }
}

/// Encodes by whole vectors. Left to itself, the vectorizer picks the width of the codes and sends short blocks to its
/// scalar remainder, or vectorizes across chunks with strided accesses; the black box keeps it to one chunk at a time.
#[inline(always)]
pub(super) fn encode_chunks<E: Encode>(encode: E, weights: &[f32], codes: &mut [i8]) {
    let (weight_chunks, weight_tail) = weights.as_chunks::<LANES>();
    let (code_chunks, code_tail) = codes.as_chunks_mut::<LANES>();
    for (c, w) in code_chunks.iter_mut().zip(weight_chunks) {
        black_box(());
        let (w, mut vector) = (*w, [0; LANES]);
        for lane in 0..LANES {
            vector[lane] = encode.code(w[lane]);
        }
        *c = vector;
    }
    for (c, &w) in code_tail.iter_mut().zip(weight_tail) {
        *c = encode.code(w);
    }
}

/// What code 0 stands for: 0 (symmetric) or `min + 2^(b-1) * scale`.
#[inline(always)]
pub fn offset(bits: BitWidth, scheme: Scheme, affine: Affine) -> f32 {
    match scheme {
        Scheme::Symmetric => 0.0,
        Scheme::Asymmetric => affine.min + bits.half() * affine.scale,
    }
}

/// The weight a code stands for, as the runtime computes it: `code * scale + offset`.
#[inline(always)]
pub fn decode(affine: Affine, offset: f32, code: i8) -> f32 {
    f32::from(code) * affine.scale + offset
}

/// Smallest and largest element of finite `x`; a zero is returned as +0. `x` must not be empty.
///
/// Compares the bits as integers: integer minima can be taken in any order, which vectorizes best.
#[inline(always)]
pub fn min_max(x: &[f32]) -> (f32, f32) {
    let (mut min, mut max) = (i32::MAX, i32::MIN);
    for &x in x {
        let key = order_key(x);
        min = min.min(key);
        max = max.max(key);
    }
    (from_order_key(min) + 0.0, from_order_key(max) + 0.0)
}

/// An integer that orders as the float does. Its own inverse on bits.
#[inline(always)]
fn order_key(x: f32) -> i32 {
    let bits = x.to_bits() as i32;
    bits ^ ((bits >> 31) & 0x7fff_ffff)
}

#[inline(always)]
fn from_order_key(key: i32) -> f32 {
    f32::from_bits((key ^ ((key >> 31) & 0x7fff_ffff)) as u32)
}

/// The bits of `|x|`, which order as magnitudes do.
#[inline(always)]
pub fn magnitude_bits(x: f32) -> u32 {
    x.to_bits() & 0x7fff_ffff
}

/// Largest magnitude; 0 for an empty slice.
#[inline(always)]
pub fn max_abs(x: &[f32]) -> f32 {
    let mut largest = 0_u32;
    for &x in x {
        largest = largest.max(magnitude_bits(x));
    }
    f32::from_bits(largest)
}

/// Whether no element is infinite or NaN.
#[inline(always)]
pub fn all_finite(x: &[f32]) -> bool {
    let mut largest = 0_u32;
    for &x in x {
        largest = largest.max(magnitude_bits(x));
    }
    largest < f32::INFINITY.to_bits()
}

/// Sums the lanes in a fixed tree: halves are combined until one is left.
#[inline(always)]
pub fn fold_lanes(lanes: [f32; LANES]) -> f32 {
    fold_with::<Sum, _>(lanes)
}

/// The float of the largest [`magnitude_bits`].
#[inline(always)]
pub fn fold_magnitudes(lanes: [u32; LANES]) -> f32 {
    f32::from_bits(fold_with::<Max, _>(lanes))
}

/// [`fold_lanes`] for f64.
#[inline(always)]
pub fn fold_lanes_f64(lanes: [f64; LANES]) -> f64 {
    fold_with::<Sum, _>(lanes)
}

/// What combines two lanes.
trait Combine<T> {
    fn combine(a: T, b: T) -> T;
}

struct Sum;
struct Max;

impl<T: std::ops::Add<Output = T>> Combine<T> for Sum {
    #[inline(always)]
    fn combine(a: T, b: T) -> T {
        a + b
    }
}

impl<T: Ord> Combine<T> for Max {
    #[inline(always)]
    fn combine(a: T, b: T) -> T {
        a.max(b)
    }
}

/// Arrays of their own size at every level, so that they stay in registers.
#[inline(always)]
fn fold_with<C: Combine<T>, T: Copy>(x: [T; LANES]) -> T {
    let mut a = [x[0]; 8];
    for i in 0..8 {
        a[i] = C::combine(x[i], x[i + 8]);
    }
    let mut b = [x[0]; 4];
    for i in 0..4 {
        b[i] = C::combine(a[i], a[i + 4]);
    }
    C::combine(C::combine(b[0], b[2]), C::combine(b[1], b[3]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_half_away_from_zero() {
        let cases = [
            (0.5, 1.0),
            (-0.5, -1.0),
            (1.5, 2.0),
            (2.5, 3.0),
            (-2.5, -3.0),
            (0.499_999_97, 0.0),
            (-0.499_999_97, 0.0),
            (254.5, 255.0),
            (3.0, 3.0),
        ];
        for (x, want) in cases {
            assert_eq!(round_half_away(x), want, "{x}");
        }
    }

    #[test]
    fn every_code_survives_the_float_conversion() {
        for code in i8::MIN..=i8::MAX {
            assert_eq!(to_code(f32::from(code)), code);
        }
    }

    #[test]
    fn decoding_inverts_encoding_on_the_grid() {
        for bits in BitWidth::ALL {
            let affine = Affine { scale: 0.25, min: -3.0 };
            let codes: Vec<i8> = (bits.lowest()..=bits.highest()).collect();
            for scheme in [Scheme::Symmetric, Scheme::Asymmetric] {
                let offset = offset(bits, scheme, affine);
                let weights: Vec<f32> = codes.iter().map(|&c| decode(affine, offset, c)).collect();
                let mut back = vec![0; codes.len()];
                match scheme {
                    Scheme::Symmetric => encode_symmetric(bits, affine.scale, &weights, &mut back),
                    Scheme::Asymmetric => encode_asymmetric(bits, affine, &weights, &mut back),
                }
                assert_eq!(back, codes);
            }
        }
    }

    #[test]
    fn reductions_see_every_element() {
        for len in 1..40 {
            for at in 0..len {
                let mut x = vec![1.0_f32; len];
                x[at] = -7.0;
                assert_eq!(min_max(&x).0, -7.0);
                assert_eq!(max_abs(&x), 7.0);
                x[at] = 9.0;
                assert_eq!(min_max(&x).1, 9.0);
                assert!(all_finite(&x));
                for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                    x[at] = bad;
                    assert!(!all_finite(&x));
                }
            }
        }
    }

    #[test]
    fn a_zero_minimum_is_positive_zero() {
        assert_eq!(min_max(&[-0.0, 0.0, 1.0]).0.to_bits(), 0);
        assert_eq!(min_max(&[-0.0; 33]).1.to_bits(), 0);
    }
}
