//! From sums to codes.

use super::epilogue::Tile;
use crate::elementwise_i8::{AddI8, TableI8};
use crate::epilogue::strided_len;
use crate::error::KernelError;
use crate::simd::{Simd, SimdOp, VectorIsa};

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
    pub(super) fn is_small(&self) -> bool {
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

/// Where sums come from and codes go to.
#[derive(Clone, Copy)]
pub(super) struct CodeTile {
    pub(super) acc: *const i32,
    pub(super) pitch: usize,
    /// The tile's first element.
    pub(super) to: *mut i8,
    pub(super) stride: usize,
}

/// Makes a tile of codes from its sums.
///
/// # Safety
/// As [`SharedOutput::finish`](super::epilogue::SharedOutput::finish).
pub(super) unsafe fn finish_codes(
    isa: VectorIsa,
    how: &Requantize<'_>,
    small: bool,
    tile: Tile,
    at: CodeTile,
) {
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
