//! Quantization of activations at run time, and the bridges between real numbers and static codes.
//!
//! Codes, scales, offsets and sums are equal bit for bit on every instruction set.

use crate::epilogue::strided_len;
use crate::error::KernelError;
use crate::gemm_i8::check_zero;
use crate::parallel::{Executor, SharedOut, for_each_chunk, for_each_task};
use crate::simd::{Simd, SimdOp, VectorIsa};

const FAMILY: &str = "quantize_rows";

/// Elements below which a task is not worth a thread.
const TASK_ELEMENTS: usize = 1 << 15;

/// A range below this counts as empty: the scale is then 1 and all codes are 0, for [`RowScheme::Asymmetric`] with the
/// smallest value as offset.
const SMALLEST_RANGE: f32 = 1e-7;

/// How the codes of a range of values are chosen. `x` is represented by `scale * q + offset`. `round` takes halves to
/// even, except for `zero`, which is rounded away from zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowScheme {
    /// `scale = max |x| / 127`, `q = round(x / scale)` in `-127..=127`, no offset.
    Symmetric,
    /// `scale = (max - min) / 255`, `offset = min + 128 scale`, `q = round((x - min) / scale - 128)`. Zero is in general
    /// not a code.
    Asymmetric,
    /// The range is widened to hold 0, `scale = (max - min) / 255`, `zero = round(-128 - min / scale)`, `offset = -zero
    /// scale`, `q = round(x / scale) + zero`: 0 is exactly the code `zero`, as padding needs.
    ZeroPoint,
}

/// How rows are quantized.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowQuantizer {
    /// How codes are chosen.
    pub scheme: RowScheme,
    /// One range for all rows instead of one per row.
    pub per_tensor: bool,
    /// Codes per sum: the block length of the weights, or 0 for one sum per row.
    pub block: usize,
}

impl RowQuantizer {
    /// Sums per row of `k` codes.
    pub fn blocks(&self, k: usize) -> usize {
        if self.block == 0 { 1 } else { k.div_ceil(self.block).max(1) }
    }
}

/// Where [`quantize_rows`] writes.
#[derive(Debug)]
pub struct RowCodes<'a> {
    /// `m` rows of `k` codes.
    pub codes: &'a mut [i8],
    /// Codes between rows.
    pub row_stride: usize,
    /// Scales: `[m]`, or `[1]` per tensor.
    pub scales: &'a mut [f32],
    /// Offsets: as long as `scales`; may be empty for symmetric codes.
    pub offsets: &'a mut [f32],
    /// Sums of the codes of each block of each row, `[m, blocks]`; empty if not wanted.
    pub sums: &'a mut [i32],
}

/// What the codes of a range mean, and how they are made: `q = round(x * inverse - shift1 ...)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Parameters {
    pub(crate) scale: f32,
    pub(crate) offset: f32,
    inverse: f32,
    /// Subtracted before scaling.
    minimum: f32,
    /// Added after scaling and before rounding.
    shift: f32,
    /// Added after rounding.
    pub(crate) zero: i32,
    lowest: i32,
}

impl Parameters {
    fn new(scheme: RowScheme, minimum: f32, maximum: f32) -> Self {
        let plain = |scale: f32, inverse: f32| Self {
            scale,
            offset: 0.0,
            inverse,
            minimum: 0.0,
            shift: 0.0,
            zero: 0,
            lowest: -127,
        };
        match scheme {
            RowScheme::Symmetric => {
                let most = maximum.max(-minimum);
                if most < SMALLEST_RANGE { plain(1.0, 1.0) } else { plain(most / 127.0, 127.0 / most) }
            }
            RowScheme::Asymmetric => {
                let range = maximum - minimum;
                if range < SMALLEST_RANGE {
                    return Self { offset: minimum, minimum, ..plain(1.0, 1.0) };
                }
                let (scale, inverse) = (range / 255.0, 255.0 / range);
                let offset = minimum + 128.0 * scale;
                Self { offset, minimum, shift: -128.0, lowest: -128, ..plain(scale, inverse) }
            }
            RowScheme::ZeroPoint => {
                let (minimum, maximum) = (minimum.min(0.0), maximum.max(0.0));
                let range = maximum - minimum;
                let (scale, inverse) =
                    if range < SMALLEST_RANGE { (1.0, 1.0) } else { (range / 255.0, 255.0 / range) };
                let zero = (-128.0 - minimum * inverse).round().clamp(-128.0, 127.0);
                let offset = -zero * scale;
                Self { offset, zero: zero as i32, lowest: -128, ..plain(scale, inverse) }
            }
        }
    }
}

/// The code of 0 for a scale and offset of [`RowScheme::ZeroPoint`] (0 for symmetric codes): `round(-offset / scale)`.
pub fn zero_code(scale: f32, offset: f32) -> i8 {
    (-offset / scale).round().clamp(-128.0, 127.0) as i8
}

/// Quantizes `m` rows of `k` values at distance `x_stride`.
///
/// NaN is ignored in ranges and becomes the code that 0 has before the zero point is added.
///
/// # Errors
/// [`KernelError`] if a slice is too short.
#[allow(clippy::too_many_arguments, reason = "a matrix with its stride, and what is done with it")]
pub fn quantize_rows(
    isa: VectorIsa,
    how: RowQuantizer,
    x: &[f32],
    [m, k]: [usize; 2],
    x_stride: usize,
    out: RowCodes<'_>,
    executor: &dyn Executor,
) -> Result<(), KernelError> {
    check(how, x, [m, k], x_stride, &out)?;
    if m == 0 {
        return Ok(());
    }
    let row = |i: usize| &x[i * x_stride..i * x_stride + k];
    let rows_per_task = TASK_ELEMENTS.div_ceil(k.max(1));
    let tasks = m.div_ceil(rows_per_task);
    let tensor = how.per_tensor.then(|| {
        let mut ranges = vec![(f32::INFINITY, f32::NEG_INFINITY); tasks];
        for_each_chunk(executor, &mut ranges, 1, |task, range| {
            for i in task * rows_per_task..((task + 1) * rows_per_task).min(m) {
                let (lo, hi) = isa.run(Range(row(i)));
                range[0] = (range[0].0.min(lo), range[0].1.max(hi));
            }
        });
        let (lo, hi) = ranges.iter().fold(ranges[0], |a, b| (a.0.min(b.0), a.1.max(b.1)));
        parameters(how.scheme, (lo, hi))
    });
    let blocks = how.blocks(k);
    let RowCodes { codes, row_stride, scales, offsets, sums } = out;
    if let Some(p) = tensor {
        scales[0] = p.scale;
        offsets.iter_mut().for_each(|offset| *offset = p.offset);
    }
    let has = (!offsets.is_empty(), !sums.is_empty());
    let job = Job {
        how,
        x,
        x_stride,
        k,
        tensor,
        blocks,
        codes: SharedOut(codes.as_mut_ptr()),
        row_stride,
        scales: SharedOut(scales.as_mut_ptr()),
        offsets: has.0.then_some(SharedOut(offsets.as_mut_ptr())),
        sums: has.1.then_some(SharedOut(sums.as_mut_ptr())),
    };
    for_each_task(executor, tasks, (0..executor.threads()).map(|_| ()), |task, ()| {
        let rows = task * rows_per_task..((task + 1) * rows_per_task).min(m);
        isa.run(QuantizeRows { job: &job, rows });
    });
    Ok(())
}

/// A checked call of [`quantize_rows`].
struct Job<'a> {
    how: RowQuantizer,
    x: &'a [f32],
    x_stride: usize,
    k: usize,
    /// The parameters of all rows, if they share them; scale and offset are then written already.
    tensor: Option<Parameters>,
    blocks: usize,
    codes: SharedOut<i8>,
    row_stride: usize,
    scales: SharedOut<f32>,
    offsets: Option<SharedOut<f32>>,
    sums: Option<SharedOut<i32>>,
}

struct QuantizeRows<'a, 'b> {
    job: &'a Job<'b>,
    rows: std::ops::Range<usize>,
}

impl SimdOp for QuantizeRows<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let job = self.job;
        let k = job.k;
        let block = if job.how.block == 0 { k.max(1) } else { job.how.block };
        for i in self.rows {
            let x = &job.x[i * job.x_stride..i * job.x_stride + k];
            let p = match job.tensor {
                Some(p) => p,
                None => parameters(job.how.scheme, Range(x).run(s)),
            };
            // SAFETY: `check` made sure that the outputs hold `m` rows; each row is written by one task.
            let codes = unsafe {
                if job.tensor.is_none() {
                    *job.scales.get().add(i) = p.scale;
                    if let Some(offsets) = job.offsets {
                        *offsets.get().add(i) = p.offset;
                    }
                }
                std::slice::from_raw_parts_mut(job.codes.get().add(i * job.row_stride), k)
            };
            let first = i * job.blocks;
            if k == 0
                && let Some(sums) = job.sums
            {
                // SAFETY: as above; a row without codes has one sum.
                unsafe { *sums.get().add(first) = 0 };
            }
            for (index, (x, codes)) in x.chunks(block).zip(codes.chunks_mut(block)).enumerate() {
                let sum = Codes { p, x, codes }.run(s);
                if let Some(sums) = job.sums {
                    // SAFETY: as above, with `blocks` sums per row.
                    unsafe { *sums.get().add(first + index) = sum };
                }
            }
        }
    }
}

#[inline(always)]
pub(crate) fn parameters(scheme: RowScheme, (lo, hi): (f32, f32)) -> Parameters {
    // No value at all (or only NaN) leaves the range empty.
    if lo > hi { Parameters::new(scheme, 0.0, 0.0) } else { Parameters::new(scheme, lo, hi) }
}

fn check(
    how: RowQuantizer,
    x: &[f32],
    [m, k]: [usize; 2],
    x_stride: usize,
    out: &RowCodes<'_>,
) -> Result<(), KernelError> {
    KernelError::check_least(FAMILY, "row stride of the input", x_stride, k)?;
    KernelError::check_least(FAMILY, "length of the input", x.len(), strided_len(FAMILY, m, k, x_stride)?)?;
    KernelError::check_least(FAMILY, "row stride of the codes", out.row_stride, k)?;
    let needed = strided_len(FAMILY, m, k, out.row_stride)?;
    KernelError::check_least(FAMILY, "length of the codes", out.codes.len(), needed)?;
    let ranges = if how.per_tensor { 1 } else { m };
    KernelError::check(FAMILY, "length of the scales", out.scales.len(), ranges)?;
    if how.scheme != RowScheme::Symmetric || !out.offsets.is_empty() {
        KernelError::check(FAMILY, "length of the offsets", out.offsets.len(), ranges)?;
    }
    if !out.sums.is_empty() {
        let wanted = strided_len(FAMILY, m, how.blocks(k), how.blocks(k))?;
        KernelError::check(FAMILY, "length of the sums", out.sums.len(), wanted)?;
    }
    Ok(())
}

/// Smallest and largest value; infinity and minus infinity of none.
pub(crate) struct Range<'a>(pub(crate) &'a [f32]);

impl SimdOp for Range<'_> {
    type Output = (f32, f32);

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> (f32, f32) {
        let x = self.0;
        let (mut low, mut high) = ([s.splat(f32::INFINITY); 4], [s.splat(f32::NEG_INFINITY); 4]);
        // Comparisons with NaN are false, so NaN changes nothing.
        let mut at = 0;
        while at + 4 * S::LANES <= x.len() {
            for slot in 0..4 {
                let v = s.load_slice(&x[at + slot * S::LANES..]);
                low[slot] = s.select(s.lt(v, low[slot]), v, low[slot]);
                high[slot] = s.select(s.lt(high[slot], v), v, high[slot]);
            }
            at += 4 * S::LANES;
        }
        while at + S::LANES <= x.len() {
            let v = s.load_slice(&x[at..]);
            low[0] = s.select(s.lt(v, low[0]), v, low[0]);
            high[0] = s.select(s.lt(high[0], v), v, high[0]);
            at += S::LANES;
        }
        let (mut lo, mut hi) = (f32::INFINITY, f32::NEG_INFINITY);
        if at > 0 {
            for slot in 1..4 {
                low[0] = s.select(s.lt(low[slot], low[0]), low[slot], low[0]);
                high[0] = s.select(s.lt(high[0], high[slot]), high[slot], high[0]);
            }
            // The lanes by halves, the high ones negated: one reduction for both.
            let (mut l, h) = (s.lanes(low[0]), s.lanes(s.neg(high[0])));
            let mut n = h;
            let mut width = S::LANES;
            while width > 1 {
                width /= 2;
                for i in 0..width {
                    l[i] = if l[i + width] < l[i] { l[i + width] } else { l[i] };
                    n[i] = if n[i + width] < n[i] { n[i + width] } else { n[i] };
                }
            }
            (lo, hi) = (l[0], -n[0]);
        }
        for &v in &x[at..] {
            lo = if v < lo { v } else { lo };
            hi = if hi < v { v } else { hi };
        }
        (lo, hi)
    }
}

/// Writes the codes and returns their sum.
pub(crate) struct Codes<'a> {
    pub(crate) p: Parameters,
    pub(crate) x: &'a [f32],
    pub(crate) codes: &'a mut [i8],
}

impl SimdOp for Codes<'_> {
    type Output = i32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> i32 {
        let Self { p, x, codes } = self;
        assert_eq!(x.len(), codes.len());
        let line = Line::new(s, p);
        let mut sums = s.splat_i(0);
        let whole = x.len() - x.len() % S::LANES;
        for at in (0..whole).step_by(S::LANES) {
            let v = line.codes(s, s.load_slice(&x[at..]));
            // SAFETY: there are as many codes as values.
            unsafe { s.store_i8(codes.as_mut_ptr().add(at), S::LANES, v) };
            sums = s.add_i(sums, v);
        }
        let mut sum = 0;
        if whole > 0 {
            let lanes = s.lanes(s.as_float(sums));
            for lane in &lanes[..S::LANES] {
                sum += lane.to_bits() as i32;
            }
        }
        if whole < x.len() {
            let count = x.len() - whole;
            let v = line.codes(s, s.load_tail(&x[whole..]));
            // SAFETY: `count` codes are left, as many as values.
            unsafe { s.store_i8(codes.as_mut_ptr().add(whole), count, v) };
            for &code in &codes[whole..] {
                sum += i32::from(code);
            }
        }
        sum
    }
}

/// [`Parameters`] in vectors.
struct Line<S: Simd> {
    lo: S::F,
    hi: S::F,
    minimum: S::F,
    inverse: S::F,
    shift: S::F,
    zero: S::I,
}

impl<S: Simd> Line<S> {
    #[inline(always)]
    fn new(s: S, p: Parameters) -> Self {
        Self {
            lo: s.splat((p.lowest - p.zero) as f32),
            hi: s.splat((127 - p.zero) as f32),
            minimum: s.splat(p.minimum),
            inverse: s.splat(p.inverse),
            shift: s.splat(p.shift),
            zero: s.splat_i(p.zero),
        }
    }

    #[inline(always)]
    fn codes(&self, s: S, x: S::F) -> S::I {
        let v = s.add(s.mul(s.sub(x, self.minimum), self.inverse), self.shift);
        let v = s.select(s.eq(v, v), v, s.splat(0.0));
        s.add_i(s.to_int(s.at_most(s.at_least(v, self.lo), self.hi)), self.zero)
    }
}

/// Codes of static quantization: their scale, zero point and bounds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StaticCodes {
    /// Real distance between codes; not 0.
    pub scale: f32,
    /// The code of 0.
    pub zero: i32,
    /// Smallest code.
    pub lo: i32,
    /// Largest code.
    pub hi: i32,
}

impl StaticCodes {
    pub(crate) fn check(&self, kernel: &'static str) -> Result<(), KernelError> {
        check_zero(kernel, self.zero)?;
        if self.lo > self.hi || i8::try_from(self.lo).is_err() || i8::try_from(self.hi).is_err() {
            return Err(KernelError::Value {
                kernel,
                what: "the bounds of the codes are not -128 <= lo <= hi <= 127",
            });
        }
        Ok(())
    }
}

/// `out = clamp(round(x / scale) + zero, lo, hi)`, rounding half away from zero; NaN becomes `zero`.
///
/// # Errors
/// [`KernelError`] if the lengths differ or a parameter is no code.
pub fn quantize_static(
    isa: VectorIsa,
    codes: StaticCodes,
    x: &[f32],
    out: &mut [i8],
    executor: &dyn Executor,
) -> Result<(), KernelError> {
    codes.check("quantize_static")?;
    KernelError::check("quantize_static", "length of the codes", out.len(), x.len())?;
    for_each_chunk(executor, out, TASK_ELEMENTS, |index, out| {
        let x = &x[index * TASK_ELEMENTS..][..out.len()];
        isa.run(Quantize { codes, x, out });
    });
    Ok(())
}

/// [`quantize_static`] of slices that are known to fit.
pub(crate) fn quantize_slice(isa: VectorIsa, codes: StaticCodes, x: &[f32], out: &mut [i8]) {
    isa.run(Quantize { codes, x, out });
}

struct Quantize<'a> {
    codes: StaticCodes,
    x: &'a [f32],
    out: &'a mut [i8],
}

impl SimdOp for Quantize<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let c = self.codes;
        let (lo, hi) = (s.splat((c.lo - c.zero) as f32), s.splat((c.hi - c.zero) as f32));
        let (scale, zero) = (s.splat(c.scale), s.splat_i(c.zero));
        for (x, out) in self.x.chunks(S::LANES).zip(self.out.chunks_mut(S::LANES)) {
            let v = s.div(s.load_tail(x), scale);
            let v = s.select(s.eq(v, v), v, s.splat(0.0));
            let v = s.round_away(s.at_most(s.at_least(v, lo), hi));
            // SAFETY: the chunk has room for its length.
            unsafe { s.store_i8(out.as_mut_ptr(), out.len(), s.add_i(v, zero)) };
        }
    }
}

/// `out = (code - zero) * scale`.
///
/// # Errors
/// [`KernelError`] if the lengths differ or the zero point is no code.
pub fn dequantize_static(
    isa: VectorIsa,
    scale: f32,
    zero: i32,
    codes: &[i8],
    out: &mut [f32],
    executor: &dyn Executor,
) -> Result<(), KernelError> {
    check_zero("dequantize_static", zero)?;
    KernelError::check("dequantize_static", "length of the output", out.len(), codes.len())?;
    for_each_chunk(executor, out, TASK_ELEMENTS, |index, out| {
        let codes = &codes[index * TASK_ELEMENTS..][..out.len()];
        isa.run(Real { scale, zero, codes, out });
    });
    Ok(())
}

struct Real<'a> {
    scale: f32,
    zero: i32,
    codes: &'a [i8],
    out: &'a mut [f32],
}

impl SimdOp for Real<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (scale, zero) = (s.splat(self.scale), s.splat_i(self.zero));
        for (codes, out) in self.codes.chunks(S::LANES).zip(self.out.chunks_mut(S::LANES)) {
            // SAFETY: the chunk holds its length.
            let codes = unsafe { s.load_i8(codes.as_ptr(), codes.len()) };
            s.store_tail(out, s.mul(s.to_float(s.sub_i(codes, zero)), scale));
        }
    }
}

#[cfg(test)]
mod tests;
