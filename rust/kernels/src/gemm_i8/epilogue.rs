//! What happens to integer sums before they are stored, as data.

use super::dequantize::{Dequantize, FloatTile, finish_float};
use super::requantize::{CodeTile, Requantize, finish_codes};
use crate::epilogue::strided_len;
use crate::error::KernelError;
use crate::simd::VectorIsa;

/// Where the result of an int8 product goes, and how it is made from the sums.
///
/// Each holds `m` rows of `n` elements at distance `row_stride`.
#[derive(Debug)]
pub enum Output<'a> {
    /// The exact sums.
    Int32 {
        /// The rows.
        data: &'a mut [i32],
        /// Elements between rows.
        row_stride: usize,
    },
    /// Real numbers.
    Float {
        /// The rows.
        data: &'a mut [f32],
        /// Elements between rows.
        row_stride: usize,
        /// The formula.
        dequantize: Dequantize<'a>,
    },
    /// Codes of the output's own scale and zero point.
    Int8 {
        /// The rows.
        data: &'a mut [i8],
        /// Elements between rows.
        row_stride: usize,
        /// The formula.
        requantize: Requantize<'a>,
    },
}

impl Output<'_> {
    pub(crate) fn check(&self, kernel: &'static str, m: usize, n: usize) -> Result<(), KernelError> {
        let (len, stride) = match self {
            Self::Int32 { data, row_stride } => (data.len(), *row_stride),
            Self::Float { data, row_stride, dequantize } => {
                dequantize.check(kernel, m, n)?;
                (data.len(), *row_stride)
            }
            Self::Int8 { data, row_stride, requantize } => {
                requantize.check(kernel, m, n)?;
                (data.len(), *row_stride)
            }
        };
        KernelError::check_least(kernel, "row stride of the output", stride, n)?;
        KernelError::check_least(kernel, "length of the output", len, strided_len(kernel, m, n, stride)?)
    }

    /// The part of columns `first..end`, of the same rows.
    pub(crate) fn columns(&mut self, first: usize, end: usize) -> Output<'_> {
        match self {
            Self::Int32 { data, row_stride } => {
                let first = first.min(data.len());
                Output::Int32 { data: &mut data[first..], row_stride: *row_stride }
            }
            Self::Float { data, row_stride, dequantize } => {
                let from = first.min(data.len());
                Output::Float {
                    data: &mut data[from..],
                    row_stride: *row_stride,
                    dequantize: dequantize.columns(first, end),
                }
            }
            Self::Int8 { data, row_stride, requantize } => {
                let from = first.min(data.len());
                Output::Int8 {
                    data: &mut data[from..],
                    row_stride: *row_stride,
                    requantize: requantize.columns(first, end),
                }
            }
        }
    }

    /// Bytes of an element.
    pub(crate) fn element_bytes(&self) -> usize {
        if matches!(self, Self::Int8 { .. }) { 1 } else { 4 }
    }

    pub(crate) fn shared(&mut self) -> SharedOutput<'_> {
        match self {
            Self::Int32 { data, row_stride } => SharedOutput::Int32(data.as_mut_ptr(), *row_stride),
            Self::Float { data, row_stride, dequantize } => {
                SharedOutput::Float(data.as_mut_ptr(), *row_stride, dequantize)
            }
            Self::Int8 { data, row_stride, requantize } => {
                SharedOutput::Int8(data.as_mut_ptr(), *row_stride, requantize, requantize.is_small())
            }
        }
    }
}

/// An [`Output`] of which several threads write disjoint tiles.
#[derive(Clone, Copy)]
pub(crate) enum SharedOutput<'a> {
    Int32(*mut i32, usize),
    Float(*mut f32, usize, &'a Dequantize<'a>),
    /// Also whether values before clamping stay inside 32 bits.
    Int8(*mut i8, usize, &'a Requantize<'a>, bool),
}

// SAFETY: the pointers are only used by the drivers of the int8 products, whose tasks write disjoint tiles.
unsafe impl Send for SharedOutput<'_> {}
// SAFETY: as above; sharing the value only copies the pointers.
unsafe impl Sync for SharedOutput<'_> {}

/// A tile of the output, in its coordinates.
#[derive(Clone, Copy)]
pub(crate) struct Tile {
    pub(crate) row: usize,
    pub(crate) rows: usize,
    pub(crate) column: usize,
    pub(crate) columns: usize,
}

impl SharedOutput<'_> {
    /// Makes a tile of the output from its sums.
    ///
    /// # Safety
    /// The tile lies inside the output, whose checks passed; nobody else uses it meanwhile. `acc` is readable for
    /// `rows` rows of `columns` at distance `pitch`.
    pub(crate) unsafe fn finish(self, isa: VectorIsa, tile: Tile, acc: *const i32, pitch: usize) {
        // SAFETY: all within the tile and the sums, as the caller promises.
        unsafe {
            match self {
                Self::Int32(to, stride) => {
                    for i in 0..tile.rows {
                        let line = to.add((tile.row + i) * stride + tile.column);
                        line.copy_from_nonoverlapping(acc.add(i * pitch), tile.columns);
                    }
                }
                Self::Float(to, stride, how) => {
                    let to = to.add(tile.row * stride + tile.column);
                    finish_float::<true>(isa, how, FloatTile { tile, acc: acc.cast(), pitch, to, stride });
                }
                Self::Int8(to, stride, how, small) => {
                    let to = to.add(tile.row * stride + tile.column);
                    finish_codes(isa, how, small, tile, CodeTile { acc, pitch, to, stride });
                }
            }
        }
    }
}
