//! Element-wise int8 operators, so that an int8 graph stays int8: sums of two scales, functions by table, pooling, and
//! changes of scale.
//!
//! Results are equal bit for bit on every instruction set.

#[cfg(test)]
mod tests;

use crate::error::KernelError;
use crate::geometry::Sliding;
use crate::multiversion::{Level, Loop, dispatch};
use crate::parallel::{Executor, for_each_chunk};
use crate::pool::Pool;
use crate::quantize_rows::StaticCodes;
use crate::simd::{Simd, SimdOp, VectorIsa};

/// Elements below which a task is not worth a thread.
const TASK_ELEMENTS: usize = 1 << 15;

/// Parameters of [`add_i8`]: both inputs in steps of the output.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AddI8 {
    /// Scale of `a` over the scale of the output; negated for a difference `b - a`.
    pub a_scale: f32,
    /// Zero point of `a`.
    pub a_zero: i32,
    /// Scale of `b` over the scale of the output; negated for a difference `a - b`.
    pub b_scale: f32,
    /// Zero point of `b`.
    pub b_zero: i32,
    /// Zero point of the output.
    pub zero: i32,
    /// Smallest code; the zero point for a fused ReLU.
    pub lo: i32,
    /// Largest code.
    pub hi: i32,
}

impl AddI8 {
    fn output(&self) -> StaticCodes {
        StaticCodes { scale: 1.0, zero: self.zero, lo: self.lo, hi: self.hi }
    }

    pub(crate) fn check(&self, kernel: &'static str) -> Result<(), KernelError> {
        self.output().check(kernel)?;
        crate::gemm_i8::check_zero(kernel, self.a_zero)?;
        crate::gemm_i8::check_zero(kernel, self.b_zero)
    }

    /// The same sum with the operands exchanged.
    #[must_use]
    pub fn swapped(self) -> Self {
        let Self { a_scale, a_zero, b_scale, b_zero, .. } = self;
        Self { a_scale: b_scale, a_zero: b_zero, b_scale: a_scale, b_zero: a_zero, ..self }
    }

    /// Codes from `a - a_zero` and `b`.
    #[inline(always)]
    pub(crate) fn sum<S: Simd>(&self, s: S, a: S::I, b: S::I) -> S::I {
        let (lo, hi) = (s.splat((self.lo - self.zero) as f32), s.splat((self.hi - self.zero) as f32));
        let b = s.sub_i(b, s.splat_i(self.b_zero));
        let a = s.mul(s.to_float(a), s.splat(self.a_scale));
        let b = s.mul(s.to_float(b), s.splat(self.b_scale));
        let code = s.round_away(s.at_most(s.at_least(s.add(a, b), lo), hi));
        s.add_i(code, s.splat_i(self.zero))
    }

    /// The plain formula for one element.
    pub fn reference(&self, a: i8, b: i8) -> i8 {
        let value = (i32::from(a) - self.a_zero) as f32 * self.a_scale
            + (i32::from(b) - self.b_zero) as f32 * self.b_scale;
        (value.round() as i32).saturating_add(self.zero).clamp(self.lo, self.hi) as i8
    }
}

/// `out = clamp(round((a - a_zero) * a_scale + (b - b_zero) * b_scale) + zero, lo, hi)`, rounding half away from zero;
/// every step is one `f32` operation.
///
/// # Errors
/// [`KernelError`] if the lengths differ or a zero point or bound is no code.
pub fn add_i8(
    isa: VectorIsa,
    how: AddI8,
    a: &[i8],
    b: &[i8],
    out: &mut [i8],
    executor: &dyn Executor,
) -> Result<(), KernelError> {
    const FAMILY: &str = "add_i8";
    how.check(FAMILY)?;
    KernelError::check(FAMILY, "length of the first input", a.len(), out.len())?;
    KernelError::check(FAMILY, "length of the second input", b.len(), out.len())?;
    for_each_chunk(executor, out, TASK_ELEMENTS, |index, out| {
        let from = index * TASK_ELEMENTS;
        let (a, b) = (&a[from..][..out.len()], &b[from..][..out.len()]);
        isa.run(Add { how, a, b, out });
    });
    Ok(())
}

struct Add<'a> {
    how: AddI8,
    a: &'a [i8],
    b: &'a [i8],
    out: &'a mut [i8],
}

impl SimdOp for Add<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let len = self.out.len();
        assert!(self.a.len() == len && self.b.len() == len);
        let whole = len - len % S::LANES;
        for at in (0..whole).step_by(S::LANES) {
            // SAFETY: a whole vector is left in all three slices, which are equally long.
            unsafe { self.vector(s, at, S::LANES) };
        }
        if whole < len {
            // SAFETY: the rest of all three slices.
            unsafe { self.vector(s, whole, len - whole) };
        }
    }
}

impl Add<'_> {
    /// `count` elements from `at` on.
    ///
    /// # Safety
    /// `count <= LANES`, and all three slices hold `at + count` elements.
    #[inline(always)]
    unsafe fn vector<S: Simd>(&mut self, s: S, at: usize, count: usize) {
        let how = self.how;
        // SAFETY: the caller vouches for the elements.
        unsafe {
            let a = s.sub_i(s.load_i8(self.a.as_ptr().add(at), count), s.splat_i(how.a_zero));
            let b = s.load_i8(self.b.as_ptr().add(at), count);
            s.store_i8(self.out.as_mut_ptr().add(at), count, how.sum(s, a, b));
        }
    }
}

/// A function of one int8 code, for every code: entry `i` is the result of the code `i - 128`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableI8(Box<[i8; 256]>);

impl TableI8 {
    /// The table of a function of codes.
    pub fn new(function: impl Fn(i8) -> i8) -> Self {
        Self(Box::new(std::array::from_fn(|i| function((i as i32 - 128) as i8))))
    }

    /// The table of a function of real numbers: `out = clamp(round(f((q - zero) * scale) / to.scale) + to.zero)`,
    /// rounding half away from zero; NaN becomes the zero point.
    pub fn of_real(scale: f32, zero: i32, to: StaticCodes, function: impl Fn(f32) -> f32) -> Self {
        Self::new(|code| {
            let value = function((i32::from(code) - zero) as f32 * scale) / to.scale;
            ((value.round() as i32).saturating_add(to.zero)).clamp(to.lo, to.hi) as i8
        })
    }

    /// The table that changes scale and zero point: `of_real` of the identity. Joins tensors of different scales.
    pub fn rescale(scale: f32, zero: i32, to: StaticCodes) -> Self {
        Self::of_real(scale, zero, to, |x| x)
    }

    /// The result for one code.
    #[inline]
    pub fn get(&self, code: i8) -> i8 {
        self.0[usize::from(code as u8 ^ 0x80)]
    }

    /// Results of the codes from -128 on.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn entries(&self) -> &[i8; 256] {
        &self.0
    }

    /// The table of `after` applied to the results of this one.
    #[must_use]
    pub fn then(&self, after: &Self) -> Self {
        Self::new(|code| after.get(self.get(code)))
    }

    /// Replaces every code by its result.
    pub fn apply(&self, isa: VectorIsa, codes: &mut [i8]) {
        #[cfg(target_arch = "x86_64")]
        if matches!(isa, VectorIsa::Avx512(_)) && has_vbmi() {
            // SAFETY: the CPU has AVX-512 by the token and VBMI as just asked.
            return unsafe { apply_vbmi(&self.0, codes) };
        }
        let _ = isa;
        codes.iter_mut().for_each(|code| *code = self.get(*code));
    }
}

/// Whether the CPU permutes bytes over two registers.
#[cfg(target_arch = "x86_64")]
pub(crate) fn has_vbmi() -> bool {
    is_x86_feature_detected!("avx512vbmi")
}

/// Tables by byte permutation: two registers hold half of the table, and the code's sign chooses the half.
///
/// # Safety
/// The CPU has AVX-512 BW and VBMI.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
unsafe fn apply_vbmi(table: &[i8; 256], codes: &mut [i8]) {
    use std::arch::x86_64::*;
    // SAFETY: the table has four times 64 bytes.
    let part = |i: usize| unsafe { _mm512_loadu_si512(table.as_ptr().add(64 * i).cast()) };
    let (low, below_zero) = (part(0), part(1));
    let (from_zero, high) = (part(2), part(3));
    for codes in codes.chunks_mut(64) {
        let mask = if codes.len() == 64 { u64::MAX } else { (1 << codes.len()) - 1 };
        // SAFETY: masked lanes are not accessed, the others are those of the chunk.
        unsafe {
            let x = _mm512_maskz_loadu_epi8(mask, codes.as_ptr());
            // Seven bits of the code index the half: entry 0 is -128, and entry 128 is 0.
            let negative = _mm512_permutex2var_epi8(low, x, below_zero);
            let positive = _mm512_permutex2var_epi8(from_zero, x, high);
            let out = _mm512_mask_blend_epi8(_mm512_movepi8_mask(x), positive, negative);
            _mm512_mask_storeu_epi8(codes.as_mut_ptr(), mask, out);
        }
    }
}

/// `out = table[x]`.
///
/// # Errors
/// [`KernelError::Size`] if the lengths differ.
pub fn lookup_i8(
    isa: VectorIsa,
    table: &TableI8,
    x: &[i8],
    out: &mut [i8],
    executor: &dyn Executor,
) -> Result<(), KernelError> {
    KernelError::check("lookup_i8", "length of the input", x.len(), out.len())?;
    for_each_chunk(executor, out, TASK_ELEMENTS, |index, out| {
        out.copy_from_slice(&x[index * TASK_ELEMENTS..][..out.len()]);
        table.apply(isa, out);
    });
    Ok(())
}

/// Pixels that [`quantize_interleaved`] holds at a time.
const PIXELS: usize = 1024;

/// `out[b, p, c] = clamp(round(x[b, c, p] / scale) + zero, lo, hi)`: quantizes images of few channels and brings their channels
/// together.
///
/// # Shapes
/// `x`: `[batch, channels, pixels]`; `out`: `[batch, pixels, channels]`; at most 4 channels.
///
/// # Errors
/// [`KernelError`] if a length does not fit, there are no channels or more than 4, or a parameter is no code.
pub fn quantize_interleaved(
    isa: VectorIsa,
    codes: StaticCodes,
    x: &[f32],
    [channels, pixels]: [usize; 2],
    out: &mut [i8],
    executor: &dyn Executor,
) -> Result<(), KernelError> {
    const FAMILY: &str = "quantize_interleaved";
    codes.check(FAMILY)?;
    if !(1..=4).contains(&channels) {
        return Err(KernelError::Value { kernel: FAMILY, what: "the channels are not 1 to 4" });
    }
    KernelError::check(FAMILY, "length of the codes", out.len(), x.len())?;
    let image = channels * pixels;
    if image == 0 {
        return Ok(());
    }
    KernelError::check(FAMILY, "length of the input", x.len() % image, 0)?;
    for (x, out) in x.chunks_exact(image).zip(out.chunks_exact_mut(image)) {
        for_each_chunk(executor, out, PIXELS * channels, |index, out| {
            let mut planes = [[0_i8; PIXELS]; 4];
            let count = out.len() / channels;
            for (c, plane) in planes.iter_mut().enumerate().take(channels) {
                let from = &x[c * pixels + index * PIXELS..][..count];
                crate::quantize_rows::quantize_slice(isa, codes, from, &mut plane[..count]);
            }
            match channels {
                1 => out.copy_from_slice(&planes[0][..count]),
                3 => {
                    let [a, b, c, _] = &planes;
                    for (out, ((a, b), c)) in out.chunks_exact_mut(3).zip(a.iter().zip(b).zip(c)) {
                        (out[0], out[1], out[2]) = (*a, *b, *c);
                    }
                }
                _ => {
                    for (p, out) in out.chunks_exact_mut(channels).enumerate() {
                        for (out, plane) in out.iter_mut().zip(&planes) {
                            *out = plane[p];
                        }
                    }
                }
            }
        });
    }
    Ok(())
}

/// Parameters of [`mul_i8`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MulI8 {
    /// Product of the input scales over the scale of the output.
    pub scale: f32,
    /// Zero point of `a`.
    pub a_zero: i32,
    /// Zero point of `b`.
    pub b_zero: i32,
    /// Zero point of the output.
    pub zero: i32,
    /// Smallest code; the zero point for a fused ReLU.
    pub lo: i32,
    /// Largest code.
    pub hi: i32,
}

impl MulI8 {
    /// The plain formula for one element.
    pub fn reference(&self, a: i8, b: i8) -> i8 {
        let product = (i32::from(a) - self.a_zero) * (i32::from(b) - self.b_zero);
        ((product as f32 * self.scale).round() as i32).saturating_add(self.zero).clamp(self.lo, self.hi) as i8
    }
}

/// `out = clamp(round((a - a_zero) * (b - b_zero) * scale) + zero, lo, hi)`: the product of the codes is exact, then one
/// `f32` multiplication, rounding half away from zero. `b` is repeated over the rows of `a`, so that a vector of
/// channels scales every pixel.
///
/// # Shapes
/// `a`, `out`: a multiple of the length of `b`.
///
/// # Errors
/// [`KernelError`] if the lengths do not fit or a zero point or bound is no code.
pub fn mul_i8(
    isa: VectorIsa,
    how: MulI8,
    a: &[i8],
    b: &[i8],
    out: &mut [i8],
    executor: &dyn Executor,
) -> Result<(), KernelError> {
    const FAMILY: &str = "mul_i8";
    StaticCodes { scale: 1.0, zero: how.zero, lo: how.lo, hi: how.hi }.check(FAMILY)?;
    crate::gemm_i8::check_zero(FAMILY, how.a_zero)?;
    crate::gemm_i8::check_zero(FAMILY, how.b_zero)?;
    KernelError::check(FAMILY, "length of the first input", a.len(), out.len())?;
    if out.is_empty() {
        return Ok(());
    }
    if b.is_empty() || !a.len().is_multiple_of(b.len()) {
        return Err(KernelError::Value {
            kernel: FAMILY,
            what: "the second input does not divide the first",
        });
    }
    let rows = TASK_ELEMENTS.div_ceil(b.len());
    for_each_chunk(executor, out, rows * b.len(), |index, out| {
        let a = &a[index * rows * b.len()..][..out.len()];
        isa.run(Mul { how, a, b, out });
    });
    Ok(())
}

struct Mul<'a> {
    how: MulI8,
    a: &'a [i8],
    b: &'a [i8],
    out: &'a mut [i8],
}

impl SimdOp for Mul<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let how = self.how;
        let (lo, hi) = (s.splat((how.lo - how.zero) as f32), s.splat((how.hi - how.zero) as f32));
        let (a_zero, b_zero, zero) = (s.splat_i(how.a_zero), s.splat_i(how.b_zero), s.splat_i(how.zero));
        let scale = s.splat(how.scale);
        let width = self.b.len();
        for (a, out) in self.a.chunks_exact(width).zip(self.out.chunks_exact_mut(width)) {
            for at in (0..width).step_by(S::LANES) {
                let count = S::LANES.min(width - at);
                // SAFETY: `count` elements are left in all three rows, which are equally long.
                unsafe {
                    let a = s.to_float(s.sub_i(s.load_i8(a.as_ptr().add(at), count), a_zero));
                    let b = s.to_float(s.sub_i(s.load_i8(self.b.as_ptr().add(at), count), b_zero));
                    // The product of two such integers is below 2^17: exact.
                    let value = s.mul(s.mul(a, b), scale);
                    let code = s.round_away(s.at_most(s.at_least(value, lo), hi));
                    s.store_i8(out.as_mut_ptr().add(at), count, s.add_i(code, zero));
                }
            }
        }
    }
}

/// Copies rows of `columns` codes from one matrix to a part of another, through a table if the scales differ: one input
/// of a concatenation along the last axis.
///
/// # Shapes
/// `x`: `rows` rows at distance `columns`; `out`: `rows` rows at distance `out_stride`, written from column `first` on.
///
/// # Errors
/// [`KernelError::Size`] if a length or stride does not fit.
pub fn concat_i8(
    table: Option<&TableI8>,
    x: &[i8],
    columns: usize,
    out: &mut [i8],
    out_stride: usize,
    first: usize,
) -> Result<(), KernelError> {
    const FAMILY: &str = "concat_i8";
    KernelError::check_least(FAMILY, "row stride of the output", out_stride, first.saturating_add(columns))?;
    if columns == 0 {
        return KernelError::check(FAMILY, "length of the input", x.len(), 0);
    }
    let rows = x.len() / columns;
    KernelError::check(FAMILY, "length of the input", x.len(), rows * columns)?;
    let needed = crate::epilogue::strided_len(FAMILY, rows, first + columns, out_stride)?;
    KernelError::check_least(FAMILY, "length of the output", out.len(), needed)?;
    for (from, to) in x.chunks_exact(columns).zip(out.chunks_mut(out_stride)) {
        let to = &mut to[first..first + columns];
        match table {
            None => to.copy_from_slice(from),
            Some(table) => {
                for (to, &x) in to.iter_mut().zip(from) {
                    *to = table.get(x);
                }
            }
        }
    }
    Ok(())
}

/// Max or average pooling of int8 images whose output has the scale and zero point of the input.
///
/// Averages are `round(sum of (x - zero) / count) + zero`, rounding half away from zero, exactly (integers); `zero` is
/// not used by `Max`. A window without any tap inside the image gives -128 for `Max` and `zero` for the averages.
///
/// # Shapes
/// `input`: `[batch, height, width, channels]`; `out`: `[batch, out_height, out_width, channels]`.
///
/// # Errors
/// [`KernelError`] if a length does not fit.
pub fn pool_i8(
    level: Level,
    kind: Pool,
    sliding: &Sliding,
    zero: i8,
    input: &[i8],
    out: &mut [i8],
    executor: &dyn Executor,
) -> Result<(), KernelError> {
    let g = sliding;
    g.check("pool_i8", input.len(), out.len(), g.channels)?;
    if g.taps() > 1 << 22 {
        return Err(KernelError::Value { kernel: "pool_i8", what: "the window has more than 2^22 taps" });
    }
    if out.is_empty() {
        return Ok(());
    }
    let row = g.out_width * g.channels;
    let rows = TASK_ELEMENTS.div_ceil(row * g.taps().max(1)).max(1);
    for_each_chunk(executor, out, rows * row, |index, out| {
        dispatch(level, PoolRows { kind, g, zero, input, first: index * rows, out });
    });
    Ok(())
}

struct PoolRows<'a> {
    kind: Pool,
    g: &'a Sliding,
    zero: i8,
    input: &'a [i8],
    first: usize,
    out: &'a mut [i8],
}

/// Channels that are summed together.
const STRIP: usize = 64;

impl Loop for PoolRows<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { kind, g, zero, input, first, out } = self;
        let c = g.channels;
        for (index, pixel_out) in out.chunks_exact_mut(c).enumerate() {
            let pixel = first * g.out_width + index;
            let (row, x) = (pixel / g.out_width, pixel % g.out_width);
            let (image, y) = (row / g.out_height, row % g.out_height);
            let taps_y = g.vertical.valid_taps(y, g.height);
            let taps_x = g.horizontal.valid_taps(x, g.width);
            let place = |ty: usize, tx: usize| {
                let iy = g.vertical.start(y) + (ty * g.vertical.dilation) as isize;
                let ix = g.horizontal.start(x) + (tx * g.horizontal.dilation) as isize;
                ((image * g.height + iy.unsigned_abs()) * g.width + ix.unsigned_abs()) * c
            };
            if kind == Pool::Max {
                pixel_out.fill(-128);
                for ty in taps_y.clone() {
                    for tx in taps_x.clone() {
                        let from = &input[place(ty, tx)..][..c];
                        for (out, &x) in pixel_out.iter_mut().zip(from) {
                            *out = (*out).max(x);
                        }
                    }
                }
                continue;
            }
            let count = if kind == Pool::AverageIncludePadding {
                let padded = |w: &crate::geometry::Window, output: usize, len: usize| {
                    let start = w.start(output);
                    let room = (len + w.pad_end) as isize - start;
                    if room <= 0 { 0 } else { room.unsigned_abs().div_ceil(w.dilation).min(w.kernel) }
                };
                padded(&g.vertical, y, g.height) * padded(&g.horizontal, x, g.width)
            } else {
                taps_y.len() * taps_x.len()
            };
            let count = count.max(1) as i32;
            let inside = (taps_y.len() * taps_x.len()) as i32;
            for strip in (0..c).step_by(STRIP) {
                let width = STRIP.min(c - strip);
                let mut sums = [0_i32; STRIP];
                for ty in taps_y.clone() {
                    for tx in taps_x.clone() {
                        let from = &input[place(ty, tx) + strip..][..width];
                        for (sum, &x) in sums.iter_mut().zip(from) {
                            *sum += i32::from(x);
                        }
                    }
                }
                for (out, &sum) in pixel_out[strip..strip + width].iter_mut().zip(&sums) {
                    let sum = sum - inside * i32::from(zero);
                    *out = (divide_away(sum, count) + i32::from(zero)) as i8;
                }
            }
        }
    }
}

/// The quotient rounded to the nearest integer, halves away from zero; `count > 0`, `|sum| <= 255 * 2^22`.
#[inline(always)]
fn divide_away(sum: i32, count: i32) -> i32 {
    // In f64 the quotient of two such integers is a half exactly when it is one, so rounding is exact.
    let quotient = f64::from(sum) / f64::from(count);
    (quotient + 0.5_f64.copysign(quotient)) as i32
}
