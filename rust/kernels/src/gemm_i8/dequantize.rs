//! From sums to real numbers.

use super::epilogue::Tile;
use crate::elementwise::{Binary, Broadcast, Unary, binary_in_place, unary_in_place};
use crate::epilogue::Epilogue;
use crate::error::KernelError;
use crate::simd::{Simd, SimdOp, VectorIsa};

/// From sums to real numbers.
///
/// With `x = row_scale q + row_offset` for the activations and `w = column_scale p + column_offset` for the weights,
///
/// `out = epilogue((acc * column_scale + row_sum * column_offset) * row_scale + row_offset * column_sum)`,
///
/// absent terms left out; `row_sum` is the sum of the codes of a row and `column_sum` that of the *real* weights of a
/// column. Every step is one `f32` operation, rounded to nearest even, in the order written.
#[derive(Clone, Copy, Debug)]
pub struct Dequantize<'a> {
    /// Scale of the activations: `[m]`, or one for all rows.
    pub row_scale: &'a [f32],
    /// Offset of the activations: as long as `row_scale`. Needs `column_sum`.
    pub row_offset: Option<&'a [f32]>,
    /// Sum of the codes of each row: `[m]`. Needed with `column_offset`.
    pub row_sum: Option<&'a [i32]>,
    /// Scale of the weights: `[n]`.
    pub column_scale: &'a [f32],
    /// Offset of the weights: `[n]`.
    pub column_offset: Option<&'a [f32]>,
    /// Sum of the real weights of each column: `[n]`.
    pub column_sum: Option<&'a [f32]>,
    /// Scale, bias, activation and residual, after that.
    pub epilogue: Epilogue<'a>,
}

impl<'a> Dequantize<'a> {
    /// Symmetric activations and weights.
    pub fn symmetric(row_scale: &'a [f32], column_scale: &'a [f32], epilogue: Epilogue<'a>) -> Self {
        Self {
            row_scale,
            row_offset: None,
            row_sum: None,
            column_scale,
            column_offset: None,
            column_sum: None,
            epilogue,
        }
    }

    pub(crate) fn check(&self, kernel: &'static str, m: usize, n: usize) -> Result<(), KernelError> {
        check_rows(kernel, "length of the row scales", self.row_scale.len(), m)?;
        KernelError::check(kernel, "length of the column scales", self.column_scale.len(), n)?;
        if let Some(offset) = self.row_offset {
            KernelError::check(kernel, "length of the row offsets", offset.len(), self.row_scale.len())?;
            let sums = self.column_sum.map_or(0, <[f32]>::len);
            KernelError::check(kernel, "length of the column sums", sums, n)?;
        }
        if let Some(offset) = self.column_offset {
            KernelError::check(kernel, "length of the column offsets", offset.len(), n)?;
            KernelError::check(kernel, "length of the row sums", self.row_sum.map_or(0, <[i32]>::len), m)?;
        }
        self.epilogue.check(kernel, m, n)
    }

    /// The same for the columns from `first` to `end`, such as those of a group.
    pub(crate) fn columns(&self, first: usize, end: usize) -> Self {
        let part = |v: Option<&'a [f32]>| v.map(|v| &v[first..end]);
        let mut cut = *self;
        cut.column_scale = &self.column_scale[first..end];
        cut.column_offset = part(self.column_offset);
        cut.column_sum = part(self.column_sum);
        cut.epilogue.scale = part(self.epilogue.scale);
        cut.epilogue.bias = part(self.epilogue.bias);
        if let Some(residual) = &mut cut.epilogue.residual {
            residual.data = &residual.data[first.min(residual.data.len())..];
        }
        cut
    }
}

pub(crate) fn check_rows(
    kernel: &'static str,
    what: &'static str,
    got: usize,
    m: usize,
) -> Result<(), KernelError> {
    if got == 1 { Ok(()) } else { KernelError::check(kernel, what, got, m) }
}

/// Sums and the tile that they become. The sums are `i32` or, for block-wise weights whose scales are applied already,
/// `f32`.
#[derive(Clone, Copy)]
pub(crate) struct FloatTile {
    pub(crate) tile: Tile,
    pub(crate) acc: *const f32,
    pub(crate) pitch: usize,
    /// The tile's first element.
    pub(crate) to: *mut f32,
    pub(crate) stride: usize,
}

struct FinishF32<'a, const INTEGER: bool>(&'a Dequantize<'a>, FloatTile);

/// A vector of an optional parameter of the columns, if there is one.
#[inline(always)]
#[allow(clippy::manual_map, reason = "a closure that is not inlined would be compiled for the baseline")]
fn load_columns<S: Simd>(s: S, values: Option<&[f32]>, from: usize, to: usize) -> Option<S::F> {
    match values {
        Some(values) => Some(s.load_tail(&values[from..to])),
        None => None,
    }
}

/// The parameter of a row: its own, or the one of all rows.
#[inline(always)]
fn of_row(values: &[f32], row: usize) -> f32 {
    values[if values.len() == 1 { 0 } else { row }]
}

impl<const INTEGER: bool> SimdOp for FinishF32<'_, INTEGER> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let columns = self.1.tile.columns;
        let whole = columns - columns % S::LANES;
        for j in (0..whole).step_by(S::LANES) {
            self.vector::<S, true>(s, j, S::LANES);
        }
        if whole < columns {
            self.vector::<S, false>(s, whole, columns - whole);
        }
    }
}

impl<const INTEGER: bool> FinishF32<'_, INTEGER> {
    /// All rows of the `count` columns from `j` on; a whole vector if `FULL`.
    #[inline(always)]
    fn vector<S: Simd, const FULL: bool>(&self, s: S, j: usize, count: usize) {
        let &Self(how, FloatTile { tile, acc, pitch, to, stride }) = self;
        let count = if FULL { S::LANES } else { count };
        let (first, end) = (tile.column + j, tile.column + tile.columns);
        let scale = load_columns(s, how.epilogue.scale, first, end);
        let bias = load_columns(s, how.epilogue.bias, first, end);
        let column_scale = if INTEGER { s.load_tail(&how.column_scale[first..end]) } else { s.splat(1.0) };
        let column_offset = if INTEGER { load_columns(s, how.column_offset, first, end) } else { None };
        let column_sum = load_columns(s, how.row_offset.and(how.column_sum), first, end);
        let clamp = if is_simple(how) { how.epilogue.activation.as_clamp() } else { None };
        for i in 0..tile.rows {
            let row = tile.row + i;
            // SAFETY: `SharedOutput::finish` received the tile and its sums with the promise that both exist.
            unsafe {
                let from = acc.add(i * pitch + j);
                let sums = if FULL { s.load(from) } else { s.load_partial(from, count) };
                let mut value = sums;
                if INTEGER {
                    value = s.mul(s.to_float(s.bits(sums)), column_scale);
                    if let (Some(offset), Some(sum)) = (column_offset, how.row_sum) {
                        value = s.add(value, s.mul(s.splat(sum[row] as f32), offset));
                    }
                }
                value = s.mul(value, s.splat(of_row(how.row_scale, row)));
                if let (Some(offset), Some(sum)) = (how.row_offset, column_sum) {
                    value = s.add(value, s.mul(s.splat(of_row(offset, row)), sum));
                }
                if let Some(scale) = scale {
                    value = s.mul(value, scale);
                }
                if let Some(bias) = bias {
                    value = s.add(value, bias);
                }
                if let Some((lo, hi)) = clamp {
                    value = s.at_most(s.at_least(value, s.splat(lo)), s.splat(hi));
                }
                let to = to.add(i * stride + j);
                if FULL { s.store(to, value) } else { s.store_partial(to, count, value) }
            }
        }
    }
}

/// Whether the activation only clamps and nothing follows it.
fn is_simple(how: &Dequantize<'_>) -> bool {
    how.epilogue.residual.is_none() && how.epilogue.activation.as_clamp().is_some()
}

/// Makes a tile of real numbers from its sums, which are `i32` if `INTEGER`.
///
/// # Safety
/// As [`SharedOutput::finish`](super::epilogue::SharedOutput::finish).
pub(crate) unsafe fn finish_float<const INTEGER: bool>(
    isa: VectorIsa,
    how: &Dequantize<'_>,
    float: FloatTile,
) {
    let FloatTile { tile, to, stride, .. } = float;
    isa.run(FinishF32::<INTEGER>(how, float));
    if is_simple(how) {
        return;
    }
    for i in 0..tile.rows {
        // SAFETY: a row of the tile, which the caller lends.
        let line = unsafe { std::slice::from_raw_parts_mut(to.add(i * stride), tile.columns) };
        unary_in_place(isa, how.epilogue.activation, line);
        if let Some(residual) = how.epilogue.residual {
            let from = (tile.row + i) * residual.row_stride + tile.column;
            let other = &residual.data[from..from + line.len()];
            binary_in_place(isa, Binary::Add, line, other, Broadcast::Same, line.len());
            if residual.then != Unary::Identity {
                unary_in_place(isa, residual.then, line);
            }
        }
    }
}
