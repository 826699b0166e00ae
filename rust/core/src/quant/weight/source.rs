//! Where the weights come from: a matrix `[rows, row_len]` in any layout, read strip by strip.

use std::ops::Range;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use crate::quant::error::QuantError;

/// A weight matrix `[rows, row_len]`; a row is an output channel.
///
/// Quantizers read it in strips of whole rows, so a transposed or half-precision matrix is never copied as a whole.
pub trait WeightSource: Sync {
    /// Number of rows (output channels).
    fn rows(&self) -> usize;

    /// Elements per row.
    fn row_len(&self) -> usize;

    /// These rows, if they lie in memory as consecutive f32 in row-major order.
    fn contiguous(&self, rows: Range<usize>) -> Option<&[f32]>;

    /// Copies these rows to `out`, row-major, converted to f32. `out` has `rows.len() * row_len` elements.
    fn copy_rows(&self, rows: Range<usize>, out: &mut [f32]);
}

/// An element type weights may have.
pub trait WeightElement: Copy + Send + Sync + 'static {
    /// Converts exactly; the slices have the same length.
    fn convert(src: &[Self], dst: &mut [f32]);

    /// `data` itself if the type is f32.
    fn as_f32(data: &[Self]) -> Option<&[f32]>;
}

impl WeightElement for f32 {
    #[inline]
    fn convert(src: &[Self], dst: &mut [f32]) {
        dst.copy_from_slice(src);
    }

    fn as_f32(data: &[Self]) -> Option<&[f32]> {
        Some(data)
    }
}

macro_rules! half_element {
    ($type:ty) => {
        impl WeightElement for $type {
            #[inline]
            fn convert(src: &[Self], dst: &mut [f32]) {
                src.convert_to_f32_slice(dst);
            }

            fn as_f32(_: &[Self]) -> Option<&[f32]> {
                None
            }
        }
    };
}

half_element!(f16);
half_element!(bf16);

/// A matrix in a slice: element `[r, c]` is `data[r * row_stride + c * col_stride]`.
///
/// The transpose of a row-major `[in, out]` matrix is `rows: out, row_len: in, row_stride: 1, col_stride: out`.
#[derive(Clone, Copy, Debug)]
pub struct StridedMatrix<'a, T> {
    data: &'a [T],
    rows: usize,
    row_len: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a, T: WeightElement> StridedMatrix<'a, T> {
    /// Describes a matrix in `data`.
    ///
    /// # Errors
    /// [`QuantError::Empty`] if a dimension is 0, [`QuantError::Strides`] if an element lies beyond `data`.
    pub fn new(
        data: &'a [T],
        [rows, row_len]: [usize; 2],
        [row_stride, col_stride]: [usize; 2],
    ) -> Result<Self, QuantError> {
        if rows == 0 || row_len == 0 {
            return Err(QuantError::Empty { rows, row_len });
        }
        let last =
            (|| (rows - 1).checked_mul(row_stride)?.checked_add((row_len - 1).checked_mul(col_stride)?))();
        if last.is_none_or(|last| last >= data.len()) {
            return Err(QuantError::Strides { rows, row_len, row_stride, col_stride, len: data.len() });
        }
        // The stride of an axis of one element says nothing.
        let col_stride = if row_len == 1 { 1 } else { col_stride };
        let row_stride = if rows == 1 { row_len } else { row_stride };
        Ok(Self { data, rows, row_len, row_stride, col_stride })
    }

    /// A row-major matrix.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn row_major(data: &'a [T], [rows, row_len]: [usize; 2]) -> Result<Self, QuantError> {
        Self::new(data, [rows, row_len], [row_len, 1])
    }

    /// Copies columns side by side when rows are adjacent in memory: reads 16 rows of 16 columns at a time, so
    /// that every cache line that is touched is used whole.
    fn copy_transposed(&self, rows: Range<usize>, out: &mut [f32]) {
        const TILE: usize = 16;
        let mut tile = [[0.0_f32; TILE]; TILE];
        for r0 in (0..rows.len()).step_by(TILE) {
            let height = TILE.min(rows.len() - r0);
            for c0 in (0..self.row_len).step_by(TILE) {
                let width = TILE.min(self.row_len - c0);
                for (c, column) in tile[..width].iter_mut().enumerate() {
                    let start = (c0 + c) * self.col_stride + rows.start + r0;
                    T::convert(&self.data[start..start + height], &mut column[..height]);
                }
                for r in 0..height {
                    let line = &mut out[(r0 + r) * self.row_len + c0..][..width];
                    for (x, column) in line.iter_mut().zip(&tile) {
                        *x = column[r];
                    }
                }
            }
        }
    }
}

impl<T: WeightElement> WeightSource for StridedMatrix<'_, T> {
    fn rows(&self) -> usize {
        self.rows
    }

    fn row_len(&self) -> usize {
        self.row_len
    }

    fn contiguous(&self, rows: Range<usize>) -> Option<&[f32]> {
        if self.row_stride != self.row_len || self.col_stride != 1 {
            return None;
        }
        T::as_f32(self.data.get(rows.start * self.row_len..rows.end * self.row_len)?)
    }

    fn copy_rows(&self, rows: Range<usize>, out: &mut [f32]) {
        if self.col_stride == 1 {
            for (r, line) in rows.zip(out.chunks_exact_mut(self.row_len)) {
                T::convert(&self.data[r * self.row_stride..][..self.row_len], line);
            }
        } else if self.row_stride == 1 {
            self.copy_transposed(rows, out);
        } else {
            for (r, line) in rows.zip(out.chunks_exact_mut(self.row_len)) {
                for (c, x) in line.iter_mut().enumerate() {
                    let at = r * self.row_stride + c * self.col_stride;
                    T::convert(&self.data[at..=at], std::slice::from_mut(x));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_layout_gives_the_same_rows() {
        for (rows, row_len) in [(1, 1), (3, 5), (16, 16), (17, 33), (40, 7)] {
            let want: Vec<f32> = (0..rows * row_len).map(|i| i as f32).collect();
            let mut transposed = vec![0.0; rows * row_len];
            let mut spread = vec![-1.0; rows * row_len * 6];
            for r in 0..rows {
                for c in 0..row_len {
                    transposed[c * rows + r] = want[r * row_len + c];
                    spread[r * row_len * 6 + c * 3] = want[r * row_len + c];
                }
            }
            let halves: Vec<f16> = transposed.iter().map(|&x| f16::from_f32(x)).collect();
            let brain: Vec<bf16> = transposed.iter().map(|&x| bf16::from_f32(x)).collect();
            let shape = [rows, row_len];
            let plain = StridedMatrix::row_major(&want, shape).unwrap();
            assert_eq!(plain.contiguous(0..rows), Some(&want[..]));
            let sources: [(&dyn WeightSource, bool); 5] = [
                (&plain, true),
                (&StridedMatrix::new(&transposed, shape, [1, rows]).unwrap(), true),
                (&StridedMatrix::new(&spread, shape, [6 * row_len, 3]).unwrap(), true),
                (&StridedMatrix::new(&halves, shape, [1, rows]).unwrap(), true),
                (&StridedMatrix::new(&brain, shape, [1, rows]).unwrap(), want.len() <= 256),
            ];
            for (source, exact) in sources.into_iter().filter(|s| s.1) {
                assert!(exact);
                for first in 0..rows {
                    let mut got = vec![f32::NAN; (rows - first) * row_len];
                    source.copy_rows(first..rows, &mut got);
                    assert_eq!(got, want[first * row_len..]);
                }
            }
        }
    }

    #[test]
    fn a_matrix_beyond_its_data_is_an_error() {
        let data = [0.0_f32; 12];
        assert!(StridedMatrix::new(&data, [3, 4], [4, 1]).is_ok());
        assert!(StridedMatrix::new(&data, [4, 3], [1, 4]).is_ok());
        for (shape, strides) in
            [([3, 5], [4, 1]), ([4, 4], [4, 1]), ([2, 2], [usize::MAX, 2]), ([2, 2], [12, 1])]
        {
            assert!(matches!(StridedMatrix::new(&data, shape, strides), Err(QuantError::Strides { .. })));
        }
        assert!(matches!(StridedMatrix::new(&data, [0, 4], [4, 1]), Err(QuantError::Empty { .. })));
    }
}
