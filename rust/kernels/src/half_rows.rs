//! Conversions between f32 and the 16-bit floats, by the `half` crate (which picks the CPU's instructions itself; the
//! results are the same bits on every CPU).

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

/// `out[i] = x[i]`, exact.
///
/// # Panics
/// If the lengths differ.
pub fn f16_to_f32(x: &[f16], out: &mut [f32]) {
    x.convert_to_f32_slice(out);
}

/// `out[i] = x[i]`, rounded to nearest even; values beyond 65504 become infinite.
///
/// # Panics
/// If the lengths differ.
pub fn f32_to_f16(x: &[f32], out: &mut [f16]) {
    out.convert_from_f32_slice(x);
}

/// `out[i] = x[i]`, exact.
///
/// # Panics
/// If the lengths differ.
pub fn bf16_to_f32(x: &[bf16], out: &mut [f32]) {
    x.convert_to_f32_slice(out);
}

/// `out[i] = x[i]`, rounded to nearest even.
///
/// # Panics
/// If the lengths differ.
pub fn f32_to_bf16(x: &[f32], out: &mut [bf16]) {
    out.convert_from_f32_slice(x);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_half_value_survives_the_round_trip() {
        let halves: Vec<f16> = (0..=u16::MAX).map(f16::from_bits).filter(|x| !x.is_nan()).collect();
        let mut wide = vec![0.0; halves.len()];
        f16_to_f32(&halves, &mut wide);
        assert!(halves.iter().zip(&wide).all(|(h, &w)| h.to_f64() == f64::from(w)));
        let mut back = vec![f16::ZERO; halves.len()];
        f32_to_f16(&wide, &mut back);
        assert!(halves.iter().zip(&back).all(|(a, b)| a.to_bits() == b.to_bits()));
    }

    #[test]
    fn halves_round_to_even() {
        let x = [1.0 + 1.0 / 2048.0, 1.0 + 3.0 / 2048.0, 70_000.0, 1e-9];
        let mut out = [f16::ZERO; 4];
        f32_to_f16(&x, &mut out);
        assert_eq!(out.map(f16::to_f32), [1.0, 1.0 + 4.0 / 2048.0, f32::INFINITY, 0.0]);
        let mut out = [bf16::ZERO; 2];
        f32_to_bf16(&[1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0], &mut out);
        let mut back = [0.0; 2];
        bf16_to_f32(&out, &mut back);
        assert_eq!(back, [1.0, 1.0 + 4.0 / 256.0]);
    }
}
