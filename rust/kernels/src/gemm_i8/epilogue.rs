//! What happens to integer sums before they are stored, as data.

use crate::elementwise::{Binary, Broadcast, Unary, binary_in_place, unary_in_place};
use crate::elementwise_i8::{AddI8, TableI8};
use crate::epilogue::{Epilogue, strided_len};
use crate::error::KernelError;
use crate::simd::{Simd, SimdOp, VectorIsa};

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

/// From sums to codes.
///
/// `code = clamp(round(acc * scale + bias) + zero, lo, hi)`, rounding half away from zero. Every step is one `f32`
/// operation, rounded to nearest even, in the order written. Then, if asked for, `code = residual.how(code, r)` by the
/// formula of [`AddI8`], and last `code = table[code]`: what separate operators would compute, bit for bit.
///
/// For a convolution with real scales this is the arithmetic of MNN's offline int8 models, with `scale[c] = scale_in *
/// weight_scale[c] / scale_out` and `bias[c] = real_bias[c] / scale_out`; a fused ReLU is `lo = zero`.
#[derive(Clone, Copy, Debug)]
pub struct Requantize<'a> {
    /// Factor of each column: `[n]`.
    pub scale: &'a [f32],
    /// Offset of each column, in steps of the output: `[n]`.
    pub bias: Option<&'a [f32]>,
    /// Zero point of the output.
    pub zero: i32,
    /// Smallest code.
    pub lo: i32,
    /// Largest code.
    pub hi: i32,
    /// Codes to be added to the codes.
    pub residual: Option<ResidualI8<'a>>,
    /// A function of the codes.
    pub table: Option<&'a TableI8>,
}

/// The int8 tensor that a [`Requantize`] adds.
#[derive(Clone, Copy, Debug)]
pub struct ResidualI8<'a> {
    /// Rows of the output's shape.
    pub data: &'a [i8],
    /// Elements between rows.
    pub row_stride: usize,
    /// The sum: `a` is the code so far (`a_zero` the [`zero`](Requantize::zero) of the product), `b` that of `data`.
    pub how: AddI8,
}

/// The `scale` and `bias` of a [`Requantize`] from real scales: `scale_in * weight_scale[c] / scale_out` and
/// `real_bias[c] / scale_out`, computed in `f64` and rounded once.
///
/// With them, codes differ from those of the formula in `f64` only where the exact value lies within about `2^-22` of the
/// magnitude of its terms from a half; then by one.
///
/// # Errors
/// [`KernelError`] if the lengths differ or `scale_out` is 0 or not finite.
pub fn requantize_parameters(
    scale_in: f32,
    weight_scale: &[f32],
    real_bias: &[f32],
    scale_out: f32,
) -> Result<(Vec<f32>, Vec<f32>), KernelError> {
    KernelError::check("requantize", "length of the bias", real_bias.len(), weight_scale.len())?;
    if scale_out == 0.0 || !scale_out.is_finite() {
        return Err(KernelError::Value { kernel: "requantize", what: "the output scale is 0 or not finite" });
    }
    let (scale_in, scale_out) = (f64::from(scale_in), f64::from(scale_out));
    let scale = weight_scale.iter().map(|&w| (f64::from(w) * scale_in / scale_out) as f32).collect();
    let bias = real_bias.iter().map(|&b| (f64::from(b) / scale_out) as f32).collect();
    Ok((scale, bias))
}

impl<'a> Requantize<'a> {
    /// All codes but -128 as results, no bias, no residual.
    pub fn new(scale: &'a [f32], bias: Option<&'a [f32]>, zero: i32) -> Self {
        Self { scale, bias, zero, lo: -127, hi: 127, residual: None, table: None }
    }

    pub(crate) fn check(&self, kernel: &'static str, m: usize, n: usize) -> Result<(), KernelError> {
        KernelError::check(kernel, "length of the scales", self.scale.len(), n)?;
        if let Some(bias) = self.bias {
            KernelError::check(kernel, "length of the bias", bias.len(), n)?;
        }
        super::check_zero(kernel, self.zero)?;
        if self.lo > self.hi || i8::try_from(self.lo).is_err() || i8::try_from(self.hi).is_err() {
            return Err(KernelError::Value {
                kernel,
                what: "the bounds of the codes are not -128 <= lo <= hi <= 127",
            });
        }
        if let Some(residual) = self.residual {
            residual.how.check(kernel)?;
            KernelError::check_least(kernel, "row stride of the residual", residual.row_stride, n)?;
            let needed = strided_len(kernel, m, n, residual.row_stride)?;
            KernelError::check_least(kernel, "length of the residual", residual.data.len(), needed)?;
        }
        Ok(())
    }

    /// Whether a faster epilogue may clamp after rounding.
    fn is_small(&self) -> bool {
        #[cfg(target_arch = "x86_64")]
        return super::x86_finish::is_small(self);
        #[cfg(not(target_arch = "x86_64"))]
        false
    }

    /// The same for the columns from `first` to `end`.
    pub(crate) fn columns(&self, first: usize, end: usize) -> Self {
        Self {
            scale: &self.scale[first..end],
            bias: self.bias.map(|bias| &bias[first..end]),
            residual: self.residual.map(|r| ResidualI8 { data: &r.data[first.min(r.data.len())..], ..r }),
            ..*self
        }
    }

    /// The plain formula for one element.
    pub fn reference(&self, acc: i32, row: usize, column: usize) -> i8 {
        let mut value = acc as f32 * self.scale[column];
        if let Some(bias) = self.bias {
            value += bias[column];
        }
        let mut code = (value.round() as i32).saturating_add(self.zero).clamp(self.lo, self.hi) as i8;
        if let Some(r) = self.residual {
            code = r.how.reference(code, r.data[row * r.row_stride + column]);
        }
        self.table.map_or(code, |table| table.get(code))
    }
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

/// Where sums come from and codes go to.
#[derive(Clone, Copy)]
struct CodeTile {
    acc: *const i32,
    pitch: usize,
    /// The tile's first element.
    to: *mut i8,
    stride: usize,
}

/// Makes a tile of codes from its sums.
///
/// # Safety
/// As [`SharedOutput::finish`].
unsafe fn finish_codes(isa: VectorIsa, how: &Requantize<'_>, small: bool, tile: Tile, at: CodeTile) {
    let CodeTile { acc, pitch, to, stride } = at;
    // Columns that are done, and whether the table was applied to them.
    #[cfg(target_arch = "x86_64")]
    let (done, looked_up) = match isa {
        _ if !small => (0, false),
        VectorIsa::Avx512(_) => {
            let table = how.table.is_some() && crate::elementwise_i8::has_vbmi();
            // SAFETY: the token proves AVX-512, VBMI was asked for; the rest is the caller's promise.
            unsafe { super::x86_finish::finish_rows(how, table, tile, acc, pitch, to, stride) };
            (tile.columns, table)
        }
        _ => {
            let lines = super::x86_finish_narrow::Lines { tile, acc, pitch, to, stride };
            let avx2 = matches!(isa, VectorIsa::Avx2(_));
            // SAFETY: the token proves AVX2; the rest is the caller's promise.
            (unsafe { super::x86_finish_narrow::finish_columns(how, avx2, lines) }, false)
        }
    };
    #[cfg(not(target_arch = "x86_64"))]
    let (done, looked_up) = {
        let _ = small;
        (0, false)
    };
    if done < tile.columns {
        let rest = Tile { column: tile.column + done, columns: tile.columns - done, ..tile };
        // SAFETY: inside the tile, as the caller promises.
        let (acc, to) = unsafe { (acc.add(done), to.add(done)) };
        isa.run(FinishI8 { how, tile: rest, acc, pitch, to, stride });
    }
    if let Some(table) = how.table.filter(|_| !looked_up) {
        for i in 0..tile.rows {
            // SAFETY: a row of the tile, which the caller lends.
            let line = unsafe { std::slice::from_raw_parts_mut(to.add(i * stride), tile.columns) };
            table.apply(isa, line);
        }
    }
}

struct FinishI8<'a> {
    how: &'a Requantize<'a>,
    tile: Tile,
    acc: *const i32,
    pitch: usize,
    to: *mut i8,
    stride: usize,
}

impl SimdOp for FinishI8<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let columns = self.tile.columns;
        let whole = columns - columns % S::LANES;
        for j in (0..whole).step_by(S::LANES) {
            match self.how.residual {
                None => self.vector::<S, true, false>(s, j, S::LANES),
                Some(_) => self.vector::<S, true, true>(s, j, S::LANES),
            }
        }
        if whole < columns {
            match self.how.residual {
                None => self.vector::<S, false, false>(s, whole, columns - whole),
                Some(_) => self.vector::<S, false, true>(s, whole, columns - whole),
            }
        }
    }
}

impl FinishI8<'_> {
    /// All rows of the `count` columns from `j` on; a whole vector if `FULL`.
    #[inline(always)]
    fn vector<S: Simd, const FULL: bool, const RESIDUAL: bool>(&self, s: S, j: usize, count: usize) {
        let &Self { how, tile, acc, pitch, to, stride } = self;
        let count = if FULL { S::LANES } else { count };
        let zero = s.splat_i(how.zero);
        let lo = s.splat((how.lo - how.zero) as f32);
        let hi = s.splat((how.hi - how.zero) as f32);
        let columns = tile.column + j..tile.column + tile.columns;
        let scale = s.load_tail(&how.scale[columns.clone()]);
        // Adding 0 changes no code: the sign of a zero does not outlive the rounding.
        let bias = how.bias.map_or(s.splat(0.0), |bias| s.load_tail(&bias[columns]));
        for i in 0..tile.rows {
            // SAFETY: `SharedOutput::finish` received the tile and its sums with the promise that both exist;
            // `Requantize::check` covered the residual.
            unsafe {
                let sums = load_sums(s, acc.add(i * pitch + j), count);
                let value = s.add(s.mul(s.to_float(sums), scale), bias);
                // The bounds are integers, so clamping commutes with rounding.
                let value = s.at_most(s.at_least(value, lo), hi);
                let to = to.add(i * stride + j);
                let code = s.round_away(value);
                if RESIDUAL && let Some(r) = how.residual {
                    let from = r.data.as_ptr().add((tile.row + i) * r.row_stride + tile.column + j);
                    let a = s.add_i(code, s.splat_i(how.zero - r.how.a_zero));
                    let code = r.how.sum(s, a, s.load_i8(from, count));
                    s.store_i8(to, count, code);
                } else {
                    s.store_i8(to, count, s.add_i(code, zero));
                }
            }
        }
    }
}

/// The first `count` of a vector of sums.
///
/// # Safety
/// `from` must be readable for `count <= LANES` values.
#[inline(always)]
unsafe fn load_sums<S: Simd>(s: S, from: *const i32, count: usize) -> S::I {
    // SAFETY: the caller vouches for `count` values.
    unsafe {
        s.bits(if count == S::LANES { s.load(from.cast()) } else { s.load_partial(from.cast(), count) })
    }
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
/// As [`SharedOutput::finish`].
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
