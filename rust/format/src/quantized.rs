//! Quantized weights as values: codes, scales and minima that belong together, with checked lengths.
//!
//! How they lie in a file is the business of [`crate::weight_blob`]; how the numbers are found is the
//! business of a quantizer.

use crate::error::{FormatError, Problem, Result};

/// Weights as signed codes with one scale (and, if asymmetric, one minimum) per row.
///
/// A row is a run of `row_len` consecutive weights in the flat order of the tensor: one output channel when
/// quantized per channel, one block of input channels (with all their kernel positions) when quantized
/// block-wise, then `rows = outputs * blocks` and row `o * blocks + b` is block `b` of output `o`.
///
/// With `half = 2^(bits-1)`, the weight at flat position `r * row_len + j` is
///
/// * symmetric (`min` is `None`): `code * scale[r]`
/// * asymmetric: `code * scale[r] + (min[r] + half * scale[r])`, i.e. `min[r]` for the smallest code.
///
/// # Shapes
/// `codes`: `[rows, row_len]`, flat, each in `-half ..= half - 1`; `scale`, `min`: `[rows]`.
#[derive(Debug, Clone, PartialEq)]
pub struct QuantizedWeights {
    bits: u8,
    rows: usize,
    row_len: usize,
    codes: Vec<i8>,
    scale: Vec<f32>,
    min: Option<Vec<f32>>,
}

impl QuantizedWeights {
    /// Puts the parts together.
    ///
    /// The number of rows is the length of `scale`, their length follows from the number of codes.
    ///
    /// # Errors
    /// [`Problem::BitWidth`] if `bits` is not 2 to 8, [`Problem::RowCount`] if the codes are not a whole number
    /// of rows, [`Problem::Length`] if `min` and `scale` differ in length, [`Problem::CodeRange`] if a code
    /// does not fit `bits`.
    pub fn new(bits: u8, codes: Vec<i8>, scale: Vec<f32>, min: Option<Vec<f32>>) -> Result<Self> {
        if !(2..=8).contains(&bits) {
            return Err(FormatError::at("bits", Problem::BitWidth { bits }));
        }
        let rows = scale.len();
        let wrong_rows =
            || FormatError::at("scale", Problem::RowCount { scales: rows, weights: codes.len() });
        if !codes.is_empty() && codes.len().checked_rem(rows) != Some(0) {
            return Err(wrong_rows());
        }
        let row_len = codes.len().checked_div(rows).unwrap_or(0);
        if let Some(min) = &min
            && min.len() != rows
        {
            return Err(FormatError::at("min", Problem::Length { got: min.len(), wanted: rows }));
        }
        let half = half(bits);
        let outside = |code: i8| !(-half..half).contains(&i16::from(code));
        if bits < 8
            && let Some(position) = codes.iter().position(|&code| outside(code))
        {
            let code = codes.get(position).copied().unwrap_or_default();
            return Err(FormatError::at("codes", Problem::CodeRange { code, position, bits }));
        }
        Ok(Self { bits, rows, row_len, codes, scale, min })
    }

    /// Bits per code, 2 to 8.
    #[must_use]
    pub fn bits(&self) -> u8 {
        self.bits
    }

    /// Number of rows, each with its own scale.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Weights per row.
    #[must_use]
    pub fn row_len(&self) -> usize {
        self.row_len
    }

    /// The codes, `[rows, row_len]`.
    #[must_use]
    pub fn codes(&self) -> &[i8] {
        &self.codes
    }

    /// The scales, `[rows]`.
    #[must_use]
    pub fn scale(&self) -> &[f32] {
        &self.scale
    }

    /// The minima, `[rows]`, if asymmetric.
    #[must_use]
    pub fn min(&self) -> Option<&[f32]> {
        self.min.as_deref()
    }

    /// `(codes, scale, min)`, without copying.
    #[must_use]
    pub fn into_parts(self) -> (Vec<i8>, Vec<f32>, Option<Vec<f32>>) {
        (self.codes, self.scale, self.min)
    }

    /// The distance between a code and its unsigned index, `2^(bits-1)`.
    #[must_use]
    pub fn half(&self) -> i16 {
        half(self.bits)
    }

    /// What code 0 of row `r` stands for: 0 if symmetric, else `min[r] + half * scale[r]` in f32.
    #[must_use]
    pub fn offset(&self, row: usize) -> f32 {
        match (&self.min, self.scale.get(row)) {
            (Some(min), Some(scale)) => min.get(row).map_or(0.0, |min| min + f32::from(self.half()) * scale),
            _ => 0.0,
        }
    }

    /// The weights as f32, in flat order: `code * scale[r] + offset(r)`, multiplied first, each step in f32,
    /// as MNN's runtime does.
    #[must_use]
    pub fn dequantize(&self) -> Vec<f32> {
        let mut out = Vec::with_capacity(self.codes.len());
        if self.row_len == 0 {
            return out;
        }
        for (row, (codes, &scale)) in self.codes.chunks_exact(self.row_len).zip(&self.scale).enumerate() {
            let offset = self.offset(row);
            if self.min.is_some() {
                out.extend(codes.iter().map(|&code| f32::from(code) * scale + offset));
            } else {
                out.extend(codes.iter().map(|&code| f32::from(code) * scale));
            }
        }
        out
    }
}

/// `2^(bits-1)` for `bits` in 2..=8.
pub(crate) fn half(bits: u8) -> i16 {
    1_i16 << bits.saturating_sub(1).min(7)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dequantizes_by_the_formula() {
        let symmetric = QuantizedWeights::new(4, vec![-8, 0, 7, 1], vec![0.5, 2.0], None).unwrap();
        assert_eq!((symmetric.rows(), symmetric.row_len()), (2, 2));
        assert_eq!(symmetric.dequantize(), [-4.0, 0.0, 14.0, 2.0]);
        let asymmetric = QuantizedWeights::new(2, vec![-2, 1], vec![0.5], Some(vec![1.0])).unwrap();
        assert_eq!(asymmetric.dequantize(), [1.0, 2.5]);
    }

    #[test]
    fn refuses_parts_that_do_not_fit_together() {
        let problem = |bits, codes, scale, min| {
            QuantizedWeights::new(bits, codes, scale, min).unwrap_err().problem().cloned().unwrap()
        };
        assert_eq!(problem(9, vec![], vec![], None), Problem::BitWidth { bits: 9 });
        assert_eq!(
            problem(8, vec![1, 2, 3], vec![1.0, 1.0], None),
            Problem::RowCount { scales: 2, weights: 3 }
        );
        assert_eq!(problem(8, vec![1], vec![], None), Problem::RowCount { scales: 0, weights: 1 });
        let min = Some(vec![0.0, 0.0]);
        assert_eq!(problem(8, vec![1], vec![1.0], min), Problem::Length { got: 2, wanted: 1 });
        let code = problem(3, vec![3, 4], vec![1.0], None);
        assert_eq!(code, Problem::CodeRange { code: 4, position: 1, bits: 3 });
    }
}
