//! Weight quantizers: a matrix in, codes with their scales and minima out.
//!
//! [`quantize`] drives any method over any [`WeightSource`]: strips of rows in parallel, each row block by block,
//! then the optional gain correction, the rounding of scales to half floats, and the error figures. Results
//! do not depend on the number of threads, on the layout of the source, or on the CPU. Beside the source it holds
//! the codes (one byte per weight), the parameters, and one strip per thread where rows must be gathered.
//!
//! To add a method: a file here with a value that implements [`BlockQuantizer`], a variant of
//! [`WeightMethod`], a line in `Strip::run`.

use std::ops::Range;

use half::f16;
use mnnq_format::QuantizedWeights;
use mnnq_kernels::multiversion::{Level, Loop, dispatch};
use rayon::prelude::*;

pub mod correlated;
pub mod gain;
pub mod gptq;
pub mod hqq;
pub mod rows;
pub mod rtn;
pub mod search;
pub mod source;
pub mod stats;
mod strip;
pub mod weighted;

pub use source::{StridedMatrix, WeightElement, WeightSource};
pub use stats::WeightError;

use self::gain::RowBlocks;
use self::hqq::{MnnHqq, ReferenceHqq};
use self::rtn::RoundToNearest;
use self::search::Search;
use self::stats::ErrorLanes;
use super::affine::{self, Affine};
use super::error::QuantError;
use super::spec::{BitWidth, Granularity, ScaleStorage, Scheme, WeightMethod, WeightQuantSpec};

/// One block to quantize.
#[derive(Debug)]
pub struct Block<'a> {
    /// The weights, finite.
    pub weights: &'a [f32],
    /// Where the codes go; as long as `weights`.
    pub codes: &'a mut [i8],
    /// Room for the method; as long as `weights`, contents arbitrary.
    pub scratch: &'a mut [f32],
}

/// A method: chooses the parameters of one block and its codes.
///
/// Implementations mark [`quantize`](Self::quantize) `#[inline(always)]`, see [`Loop`].
pub trait BlockQuantizer: Copy + Sync {
    /// Fills the codes and returns the parameters; a parameter that is not finite means overflow.
    fn quantize(self, block: Block<'_>) -> Affine;
}

/// What [`quantize`] returns.
#[derive(Clone, Debug)]
pub struct QuantizedMatrix {
    /// Codes, scales and minima; its rows are blocks, `rows * (row_len / block_len)` of them.
    pub weights: QuantizedWeights,
    /// Rows of the matrix (output channels).
    pub rows: usize,
    /// Elements per row of the matrix.
    pub row_len: usize,
    /// Elements per block.
    pub block_len: usize,
    /// Error of each row, decoded with the parameters as stored: `[rows]`.
    pub row_errors: Vec<WeightError>,
}

impl QuantizedMatrix {
    /// Error of the whole matrix.
    pub fn error(&self) -> WeightError {
        self.row_errors.iter().copied().fold(WeightError::default(), WeightError::merge)
    }

    /// Codes in -128..=127 and parameters that were fitted to `weight`, one `scale` and `min` per block, with the errors of the
    /// rows. `min` counts only if the scheme has it. In the rayon pool of the caller.
    fn fitted(
        spec: &WeightQuantSpec,
        weight: &[f32],
        [rows, row_len, block_len]: [usize; 3],
        codes: Vec<i8>,
        scale: Vec<f32>,
        min: Vec<f32>,
    ) -> Self {
        let mut row_errors = vec![WeightError::default(); rows];
        row_errors.par_iter_mut().enumerate().for_each(|(row, error)| {
            let (part, blocks) = (row * row_len..(row + 1) * row_len, row_len / block_len);
            let first = row * blocks;
            let min = min.get(first..first + blocks).unwrap_or_default();
            let (weight, codes) = (&weight[part.clone()], &codes[part]);
            *error = row_error(spec, block_len, weight, codes, &scale[first..first + blocks], min);
        });
        let min = (spec.scheme == Scheme::Asymmetric).then_some(min);
        let weights = QuantizedWeights::new(spec.bits.get(), codes, scale, min)
            .unwrap_or_else(|error| unreachable!("codes and lengths are the caller's promise: {error}"));
        Self { weights, rows, row_len, block_len, row_errors }
    }
}

/// The error of a row as its codes decode.
fn row_error(
    spec: &WeightQuantSpec,
    block: usize,
    weights: &[f32],
    codes: &[i8],
    scale: &[f32],
    min: &[f32],
) -> WeightError {
    let mut lanes = ErrorLanes::new();
    for (i, (weights, codes)) in weights.chunks_exact(block).zip(codes.chunks_exact(block)).enumerate() {
        let affine = Affine { scale: scale[i], min: min.get(i).copied().unwrap_or(0.0) };
        lanes.add(affine, affine::offset(spec.bits, spec.scheme, affine), weights, codes);
    }
    lanes.finish()
}

/// Quantizes a weight matrix `[rows, row_len]`.
///
/// `threads`: `None` uses the rayon pool of the caller, 1 stays on the calling thread, any other number
/// starts a pool of its own.
///
/// # Errors
/// What [`WeightQuantSpec::check`] and [`Granularity::block_len`] report; [`QuantError::NonFinite`] for the first
/// infinite or NaN weight; [`QuantError::RangeOverflow`] and [`QuantError::HalfOverflow`] for parameters beyond
/// their storage; [`QuantError::Threads`] if the pool cannot start.
pub fn quantize(
    source: &dyn WeightSource,
    spec: &WeightQuantSpec,
    threads: Option<usize>,
) -> Result<QuantizedMatrix, QuantError> {
    quantize_at(Level::best(), source, spec, threads)
}

/// [`quantize`] on a chosen instruction-set level; for tests and benchmarks.
///
/// # Errors
/// As [`quantize`].
pub fn quantize_at(
    level: Level,
    source: &dyn WeightSource,
    spec: &WeightQuantSpec,
    threads: Option<usize>,
) -> Result<QuantizedMatrix, QuantError> {
    spec.check()?;
    let (rows, row_len) = (source.rows(), source.row_len());
    if rows == 0 || row_len == 0 {
        return Err(QuantError::Empty { rows, row_len });
    }
    let block_len = spec.granularity.block_len(row_len)?;
    let driver = Driver { level, source, spec, row_len, block_len, rows };
    match threads {
        None => driver.run(true),
        Some(1) => driver.run(false),
        Some(threads) => rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .map_err(|error| QuantError::Threads { threads, reason: error.to_string() })?
            .install(|| driver.run(true)),
    }
}

/// Elements of a strip: small enough for a core's cache, large enough to amortize a task.
const STRIP_ELEMENTS: usize = 1 << 15;
/// Rows a gathered strip has at least: a cache line of f32, so that a transposed source is read by whole lines.
const GATHERED_ROWS: usize = 16;

struct Driver<'a> {
    level: Level,
    source: &'a dyn WeightSource,
    spec: &'a WeightQuantSpec,
    rows: usize,
    row_len: usize,
    block_len: usize,
}

impl Driver<'_> {
    fn run(&self, parallel: bool) -> Result<QuantizedMatrix, QuantError> {
        let range = match self.spec.granularity {
            Granularity::PerTensor => Some(self.tensor_range()?),
            Granularity::PerChannel | Granularity::PerBlock { .. } => None,
        };
        let blocks = self.row_len / self.block_len;
        let mut codes = vec![0_i8; self.rows * self.row_len];
        let mut scale = vec![0.0_f32; self.rows * blocks];
        let asymmetric = self.spec.scheme == Scheme::Asymmetric;
        let mut min = vec![0.0_f32; if asymmetric { scale.len() } else { 0 }];
        let mut row_errors = vec![WeightError::default(); self.rows];

        let height = self.strip_rows();
        let mut min_strips = min.chunks_mut(height * blocks);
        let strips: Vec<Strip<'_>> = codes
            .chunks_mut(height * self.row_len)
            .zip(scale.chunks_mut(height * blocks))
            .zip(row_errors.chunks_mut(height))
            .enumerate()
            .map(|(i, ((codes, scale), errors))| Strip {
                spec: *self.spec,
                range,
                rows: i * height..i * height + errors.len(),
                row_len: self.row_len,
                block: self.block_len,
                weights: &[],
                codes,
                scale,
                min: min_strips.next().unwrap_or_default(),
                errors,
                scratch: &mut [],
            })
            .collect();
        if parallel {
            // All strips run to the end, so that the first error in row order is reported whatever the threads do.
            let results: Vec<_> = strips
                .into_par_iter()
                .map_init(Buffers::default, |buffers, strip| self.run_strip(buffers, strip))
                .collect();
            results.into_iter().collect::<Result<(), _>>()?;
        } else {
            let mut buffers = Buffers::default();
            strips.into_iter().try_for_each(|strip| self.run_strip(&mut buffers, strip))?;
        }

        let weights = QuantizedWeights::new(self.spec.bits.get(), codes, scale, asymmetric.then_some(min))
            .unwrap_or_else(|error| {
                unreachable!("codes are clamped and lengths derived from one shape: {error}")
            });
        Ok(QuantizedMatrix {
            weights,
            rows: self.rows,
            row_len: self.row_len,
            block_len: self.block_len,
            row_errors,
        })
    }

    fn strip_rows(&self) -> usize {
        let rows = (STRIP_ELEMENTS / self.row_len).max(1);
        let gathered = self.source.contiguous(0..1).is_none();
        if gathered { rows.next_multiple_of(GATHERED_ROWS) } else { rows }
    }

    fn run_strip(&self, buffers: &mut Buffers, strip: Strip<'_>) -> Result<(), QuantError> {
        let Buffers { gathered, scratch } = buffers;
        scratch.resize(self.block_len, 0.0);
        let weights = self.rows_of(strip.rows.clone(), gathered);
        dispatch(self.level, Strip { weights, scratch, ..strip })
    }

    /// These rows: in place, or gathered into `buffer`.
    fn rows_of<'b>(&'b self, rows: Range<usize>, buffer: &'b mut Vec<f32>) -> &'b [f32] {
        match self.source.contiguous(rows.clone()) {
            Some(weights) => weights,
            None => {
                buffer.resize(rows.len() * self.row_len, 0.0);
                self.source.copy_rows(rows, buffer);
                buffer
            }
        }
    }

    /// Smallest and largest weight of the matrix.
    fn tensor_range(&self) -> Result<(f32, f32), QuantError> {
        let mut buffer = Vec::new();
        let mut range = (f32::INFINITY, f32::NEG_INFINITY);
        let height = self.strip_rows();
        for first in (0..self.rows).step_by(height) {
            let weights = self.rows_of(first..self.rows.min(first + height), &mut buffer);
            if let Some(at) = non_finite(weights) {
                let (row, col) = (first + at / self.row_len, at % self.row_len);
                return Err(QuantError::NonFinite { row, col, value: weights[at] });
            }
            let (min, max) = dispatch(self.level, Range2(weights));
            range = (range.0.min(min), range.1.max(max));
        }
        Ok(range)
    }
}

/// Buffers of a thread.
#[derive(Default)]
struct Buffers {
    gathered: Vec<f32>,
    scratch: Vec<f32>,
}

/// The range of a slice, as a [`Loop`].
struct Range2<'a>(&'a [f32]);

impl Loop for Range2<'_> {
    type Output = (f32, f32);

    #[inline(always)]
    fn run(self) -> (f32, f32) {
        affine::min_max(self.0)
    }
}

/// Some whole rows, with the part of the result that belongs to them.
struct Strip<'a> {
    spec: WeightQuantSpec,
    /// Range of the whole tensor, if it has one scale.
    range: Option<(f32, f32)>,
    rows: Range<usize>,
    row_len: usize,
    block: usize,
    weights: &'a [f32],
    codes: &'a mut [i8],
    scale: &'a mut [f32],
    min: &'a mut [f32],
    errors: &'a mut [WeightError],
    scratch: &'a mut [f32],
}

impl Loop for Strip<'_> {
    type Output = Result<(), QuantError>;

    #[inline(always)]
    fn run(self) -> Result<(), QuantError> {
        let WeightQuantSpec { bits, scheme, .. } = self.spec;
        let rtn = RoundToNearest { bits, scheme };
        match (self.spec.method, self.range) {
            (_, Some(range)) => self.quantize(FixedRange { rtn, range }),
            (WeightMethod::RoundToNearest, None) => self.quantize(rtn),
            (WeightMethod::Hqq, None) => self.quantize(MnnHqq { bits }),
            (WeightMethod::HqqReference, None) => self.quantize(ReferenceHqq::new(bits)),
            (WeightMethod::Search, None) => self.quantize(Search::new(bits, scheme)),
        }
    }
}

/// Round to nearest with a range given from outside.
#[derive(Clone, Copy)]
struct FixedRange {
    rtn: RoundToNearest,
    range: (f32, f32),
}

impl BlockQuantizer for FixedRange {
    #[inline(always)]
    fn quantize(self, block: Block<'_>) -> Affine {
        let affine = self.rtn.affine(self.range);
        self.rtn.encode(affine, block.weights, block.codes);
        affine
    }
}

impl Strip<'_> {
    #[inline(always)]
    fn quantize<Q: BlockQuantizer>(self, method: Q) -> Result<(), QuantError> {
        let blocks = self.row_len / self.block;
        for (r, (weights, error)) in
            self.weights.chunks_exact(self.row_len).zip(self.errors.iter_mut()).enumerate()
        {
            let row = self.rows.start + r;
            let codes = &mut self.codes[r * self.row_len..][..self.row_len];
            let scale = &mut self.scale[r * blocks..][..blocks];
            let min = self.min.get_mut(r * blocks..(r + 1) * blocks).unwrap_or_default();
            if let Some(col) = non_finite(weights) {
                return Err(QuantError::NonFinite { row, col, value: weights[col] });
            }
            for (i, (weights, codes)) in
                weights.chunks_exact(self.block).zip(codes.chunks_exact_mut(self.block)).enumerate()
            {
                let affine = method.quantize(Block { weights, codes, scratch: self.scratch });
                if !(affine.scale.is_finite() && affine.min.is_finite()) {
                    return Err(QuantError::RangeOverflow { row, block: i });
                }
                scale[i] = affine.scale;
                if let Some(min) = min.get_mut(i) {
                    *min = affine.min;
                }
            }
            *error = finish_row(&self.spec, row, self.block, weights, codes, scale, min)?;
        }
        Ok(())
    }
}

/// What follows the method in every row: gain correction, rounding of the parameters, error figures.
#[inline(always)]
fn finish_row(
    spec: &WeightQuantSpec,
    row: usize,
    block: usize,
    weights: &[f32],
    codes: &mut [i8],
    scale: &mut [f32],
    min: &mut [f32],
) -> Result<WeightError, QuantError> {
    let (bits, scheme) = (spec.bits, spec.scheme);
    if spec.gain_correction {
        RowBlocks { weights, codes, block, scale, min }.correct_gain(bits, scheme);
    }
    if spec.scale_storage == ScaleStorage::F16 {
        let mnn = matches!(spec.method, WeightMethod::RoundToNearest | WeightMethod::Hqq);
        round_to_half(if mnn { truncate_to_half } else { nearest_half }, row, scale, min)?;
        // With corrected gain the nearest codes would undo the correction.
        if spec.method == WeightMethod::Search && !spec.gain_correction {
            recode(bits, scheme, block, weights, codes, scale, min);
        }
    }
    Ok(row_error(spec, block, weights, codes, scale, min))
}

/// The nearest half float.
fn nearest_half(x: f32) -> f32 {
    f16::from_f32(x).to_f32()
}

/// The next half float toward zero, which is how MNN's converter stores scales and minima.
fn truncate_to_half(x: f32) -> f32 {
    let nearest = f16::from_f32(x);
    let away = nearest.to_f32().abs() > x.abs();
    // The bits of a half, sign apart, are ordered by magnitude.
    f16::from_bits(nearest.to_bits() - u16::from(away && nearest.is_finite())).to_f32()
}

/// Rounds the parameters to half floats.
fn round_to_half(
    round: fn(f32) -> f32,
    row: usize,
    scale: &mut [f32],
    min: &mut [f32],
) -> Result<(), QuantError> {
    for (block, scale) in scale.iter_mut().enumerate() {
        let wanted = Affine { scale: *scale, min: min.get(block).copied().unwrap_or(0.0) };
        *scale = round(wanted.scale);
        let mut finite = scale.is_finite();
        if let Some(min) = min.get_mut(block) {
            *min = round(wanted.min);
            finite &= min.is_finite();
        }
        if !finite {
            return Err(QuantError::HalfOverflow { row, block, scale: wanted.scale, min: wanted.min });
        }
    }
    Ok(())
}

/// Codes again, for parameters that were changed after the codes were chosen.
#[inline(always)]
fn recode(
    bits: BitWidth,
    scheme: Scheme,
    block: usize,
    weights: &[f32],
    codes: &mut [i8],
    scale: &[f32],
    min: &[f32],
) {
    for (i, (weights, codes)) in weights.chunks_exact(block).zip(codes.chunks_exact_mut(block)).enumerate() {
        match scheme {
            _ if scale[i] == 0.0 => {}
            Scheme::Symmetric => affine::encode_symmetric(bits, scale[i], weights, codes),
            Scheme::Asymmetric => {
                affine::encode_asymmetric(bits, Affine { scale: scale[i], min: min[i] }, weights, codes);
            }
        }
    }
}

/// Position of the first infinite or NaN weight.
#[inline(always)]
fn non_finite(weights: &[f32]) -> Option<usize> {
    if affine::all_finite(weights) { None } else { weights.iter().position(|w| !w.is_finite()) }
}

#[cfg(test)]
mod tests;
