//! Error compensation: codes that keep a layer's outputs on its own inputs.
//!
//! With `S` the covariance of the inputs ([`Statistics`]), a row `w` of weights and its decoded `w'`, the layer's squared
//! output error is `(t - w') S (t - w')^T`, up to a constant, for the target
//!
//! ```text
//! t = w + w D (S + r I)^-1            D = Cov(x - x', x'), so that errors of earlier layers are made good
//! ```
//!
//! (means are the bias's business, see bias correction). A ridge `r = damping * mean diag S` keeps what the samples do
//! not determine near the weights. Per row:
//!
//! 1. scales and minima come from the [search](super::search) on the target;
//! 2. with several widths of the grids around their middles (clipping), of which each row keeps the best, columns are
//!    rounded one after the other, the most excited inputs first; what is lost by rounding one is made up for
//!    by those not rounded yet. With `S + r I = L L^T` and errors `e_i = t_i - w'_i` of the columns done, column `k`
//!    rounds `t_k + sum_i L_ik e_i / L_kk`: Babai's nearest plane, which is what GPTQ computes from the factor of the
//!    inverse (Frantar et al. 2022; Chen et al. 2025);
//! 3. sweeps of coordinate descent: each code moves to the best value given all others, then scale and minimum of the
//!    block are fitted by least squares under `S`; every move lowers the error.
//!
//! A row keeps the best of what its steps found and of plain rounding.

use mnnq_format::QuantizedWeights;
use mnnq_kernels::multiversion::{Level, Loop, dispatch};
use rayon::prelude::*;

use super::{QuantizedMatrix, StridedMatrix, WeightError, WeightMethod, nearest_half, stats::ErrorLanes};
use crate::quant::affine::{self, Affine};
use crate::quant::error::QuantError;
use crate::quant::linalg::{SolveRows, add_scaled, cholesky, dot_f32, product_transposed};
use crate::quant::moments::Statistics;
use crate::quant::spec::{BitWidth, ScaleStorage, Scheme, WeightQuantSpec};

/// Rows that share the reads of the covariance.
const STRIP: usize = 8;
/// Smallest determinant of a least-squares system, relative to the product of its diagonal.
const INDEPENDENT: f32 = 1e-4;
/// The damping is raised by this factor until the matrix can be factored.
const MORE_DAMPING: f64 = 10.0;
/// Widths of the grids that rounding is tried with, relative to the searched ones: the best clipping for the weights need
/// not be that for the outputs.
const WIDTHS: [f32; 8] = [1.0, 0.95, 0.9, 0.85, 0.8, 0.7, 1.05, 1.1];

/// How errors are compensated.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Compensation {
    /// Ridge, as a fraction of the mean variance of the inputs; above 0.
    pub damping: f64,
    /// Whether to round the most excited inputs first; else from the first to the last.
    pub by_variance: bool,
    /// Whether to aim at the outputs of the float model in spite of changed inputs.
    pub follow_float: bool,
    /// Sweeps of coordinate descent and refits at most.
    pub sweeps: usize,
}

impl Default for Compensation {
    fn default() -> Self {
        Self { damping: 0.01, by_variance: true, follow_float: true, sweeps: 4 }
    }
}

/// Squared output errors of a layer, mean over positions, summed over its rows.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct OutputError {
    /// On the inputs in the quantized model: `sum (w - w') S (w - w')^T`.
    pub own: f64,
    /// Against the outputs of the float model, up to a constant of the layer: `own + 2 sum (w - w') D^T w^T`.
    pub total: f64,
    /// Variance of the outputs: `sum w S w^T`.
    pub power: f64,
}

/// Output error of weights `decoded` in place of `weight`, both `[rows, columns]`, with exact mean (bias corrected).
///
/// # Errors
/// [`QuantError::Statistics`] if the matrix does not fit.
pub fn output_error(
    weight: &[f32],
    decoded: &[f32],
    rows: usize,
    inputs: &Statistics,
) -> Result<OutputError, QuantError> {
    let columns = inputs.columns;
    inputs.check(rows, weight.len() / rows.max(1))?;
    let per_group = rows / inputs.groups;
    let mut total = OutputError::default();
    let error: Vec<f32> = weight.iter().zip(decoded).map(|(w, d)| w - d).collect();
    let mut product = vec![0.0; per_group * columns];
    for group in 0..inputs.groups {
        let part = group * per_group * columns..(group + 1) * per_group * columns;
        let (weight, error) = (&weight[part.clone()], &error[part]);
        let second = to_f32(&inputs.second[group * columns * columns..][..columns * columns]);
        let mut quadratic = |rows: &[f32], with: &[f32], matrix: &[f32]| -> Result<f64, QuantError> {
            product_transposed(
                (rows, columns, per_group),
                (matrix, columns, columns),
                columns,
                &mut product,
            )?;
            Ok(product.iter().zip(with).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum())
        };
        let own = quadratic(error, error, &second)?;
        total.own += own;
        total.total += own;
        total.power += quadratic(weight, weight, &second)?;
        if let Some(delta) = &inputs.delta {
            // (w - w') Cov(x', d) w^T: rows of the transposed cross covariance are those of `cross` itself.
            let cross = to_f32(&delta.cross[group * columns * columns..][..columns * columns]);
            total.total += 2.0 * quadratic(error, weight, &cross)?;
        }
    }
    Ok(total)
}

fn to_f32(x: &[f64]) -> Vec<f32> {
    x.iter().map(|&x| x as f32).collect()
}

/// Quantizes `weight: [rows, columns]` for the inputs that `inputs` describes.
///
/// `spec.method` must be [`WeightMethod::Search`], without gain correction. Uses the rayon pool of the caller.
///
/// # Errors
/// What [`quantize`](super::quantize) reports; [`QuantError::Statistics`] if the matrix does not fit.
pub fn compensate(
    weight: &[f32],
    rows: usize,
    spec: &WeightQuantSpec,
    inputs: &Statistics,
    how: &Compensation,
) -> Result<QuantizedMatrix, QuantError> {
    let columns = inputs.columns;
    inputs.check(rows, weight.len() / rows.max(1))?;
    let spec = WeightQuantSpec { method: WeightMethod::Search, gain_correction: false, ..*spec };
    let per_group = rows / inputs.groups;
    let mut target = weight.to_vec();
    let block = spec.granularity.block_len(columns)?;
    let systems = (0..inputs.groups)
        .into_par_iter()
        .map(|group| System::new(inputs, group, block, how))
        .collect::<Vec<_>>();
    if let (Some(delta), true) = (&inputs.delta, how.follow_float) {
        let square = columns * columns;
        for (group, rows) in target.chunks_exact_mut(per_group * columns).enumerate() {
            systems[group].follow(rows, &delta.cross[group * square..][..square])?;
        }
    }
    let start = start(&target, weight, rows, columns, &spec)?;
    Rounding {
        spec: &spec,
        systems: &systems,
        target: &target,
        weight,
        rows,
        columns,
        block,
        sweeps: how.sweeps,
    }
    .run(start)
}

/// Searched grids for the target, or for the weights where the target overflows what can be stored.
fn start(
    target: &[f32],
    weight: &[f32],
    rows: usize,
    columns: usize,
    spec: &WeightQuantSpec,
) -> Result<QuantizedMatrix, QuantError> {
    // The weights first: their errors are the user's.
    let plain = super::quantize(&StridedMatrix::row_major(weight, [rows, columns])?, spec, None)?;
    if target == weight {
        return Ok(plain);
    }
    let source = StridedMatrix::row_major(target, [rows, columns])?;
    Ok(super::quantize(&source, spec, None).unwrap_or(plain))
}

/// The covariance of a group in the forms that rounding needs, in units of its mean diagonal.
struct System {
    /// `S + r I`: `[n, n]`.
    matrix: Vec<f32>,
    /// Its Cholesky factor after reordering: `[n, n]`, lower triangular.
    factor: Vec<f32>,
    /// Column at each place of the factor; the last place is rounded first.
    order: Vec<usize>,
    /// `matrix` times the indicator of each block: `[blocks, n]`.
    sums: Vec<f32>,
    /// The unit: mean diagonal of S.
    unit: f64,
}

impl System {
    fn new(inputs: &Statistics, group: usize, block: usize, how: &Compensation) -> Self {
        let n = inputs.columns;
        let second = &inputs.second[group * n * n..][..n * n];
        let unit = (0..n).map(|i| second[i * n + i]).sum::<f64>() / n as f64;
        if !(unit.is_finite() && unit > 0.0) {
            return Self::identity(n, block);
        }
        let mut order: Vec<usize> = (0..n).rev().collect();
        if how.by_variance {
            order = (0..n).collect();
            order.sort_by(|&a, &b| second[a * n + a].total_cmp(&second[b * n + b]));
        }
        let mut damping = how.damping.max(1e-6);
        let factor = loop {
            let mut factor = vec![0.0_f64; n * n];
            for (i, row) in factor.chunks_exact_mut(n).enumerate() {
                let from = &second[order[i] * n..][..n];
                for (x, &j) in row[..=i].iter_mut().zip(&order) {
                    *x = from[j] / unit;
                }
                row[i] += damping;
            }
            if cholesky(&mut factor, n) {
                break factor;
            }
            damping *= MORE_DAMPING;
            if damping > 1e6 {
                return Self::identity(n, block);
            }
        };
        let mut matrix: Vec<f32> = second.iter().map(|x| (x / unit) as f32).collect();
        for i in 0..n {
            matrix[i * n + i] += damping as f32;
        }
        let sums = block_sums(&matrix, n, block);
        Self { matrix, factor: to_f32(&factor), order, sums, unit }
    }

    /// Inputs that never vary: nothing but the weights' own error counts.
    fn identity(n: usize, block: usize) -> Self {
        let mut matrix = vec![0.0; n * n];
        (0..n).for_each(|i| matrix[i * n + i] = 1.0);
        let sums = block_sums(&matrix, n, block);
        Self { factor: matrix.clone(), matrix, order: (0..n).rev().collect(), sums, unit: 0.0 }
    }

    /// Moves the targets: `t = w + w D (S + r I)^-1`.
    fn follow(&self, rows: &mut [f32], cross: &[f64]) -> Result<(), QuantError> {
        let n = self.order.len();
        if self.unit == 0.0 {
            return Ok(());
        }
        // w D with the columns of D in the factor's order: rows of the transpose.
        let mut transposed = vec![0.0_f32; n * n];
        for (line, &j) in transposed.chunks_exact_mut(n).zip(&self.order) {
            for (i, x) in line.iter_mut().enumerate() {
                *x = (cross[i * n + j] / self.unit) as f32;
            }
        }
        let count = rows.len() / n;
        let mut moved = vec![0.0_f32; rows.len()];
        product_transposed((rows, n, count), (&transposed, n, n), n, &mut moved)?;
        let level = Level::best();
        rows.par_chunks_mut(STRIP * n).zip(moved.par_chunks_mut(STRIP * n)).for_each(|(rows, moved)| {
            dispatch(level, SolveRows { factor: &self.factor, rows: moved, n });
            for (row, moved) in rows.chunks_exact_mut(n).zip(moved.chunks_exact(n)) {
                if moved.iter().all(|x| x.is_finite()) {
                    self.order.iter().zip(moved).for_each(|(&j, x)| row[j] += x);
                }
            }
        });
        Ok(())
    }
}

fn block_sums(matrix: &[f32], n: usize, block: usize) -> Vec<f32> {
    let mut sums = vec![0.0; n / block * n];
    for (j, line) in matrix.chunks_exact(n).enumerate() {
        add_scaled(&mut sums[j / block * n..][..n], 1.0, line);
    }
    sums
}

/// Rounds all rows.
struct Rounding<'a> {
    spec: &'a WeightQuantSpec,
    systems: &'a [System],
    target: &'a [f32],
    weight: &'a [f32],
    rows: usize,
    columns: usize,
    block: usize,
    sweeps: usize,
}

impl Rounding<'_> {
    fn run(&self, start: QuantizedMatrix) -> Result<QuantizedMatrix, QuantError> {
        let (n, blocks) = (self.columns, self.columns / self.block);
        let bits = self.spec.bits;
        let asymmetric = self.spec.scheme == Scheme::Asymmetric;
        let mut codes = start.weights.codes().to_vec();
        let mut scale = start.weights.scale().to_vec();
        let mut min = start.weights.min().map(<[f32]>::to_vec).unwrap_or_default();
        let mut offset = vec![0.0_f32; scale.len()];
        for (i, x) in offset.iter_mut().enumerate() {
            let affine = Affine { scale: scale[i], min: min.get(i).copied().unwrap_or(0.0) };
            *x = affine::offset(bits, self.spec.scheme, affine);
        }
        let per_group = self.rows / self.systems.len();
        // A strip of rows has one system.
        let height = if self.systems.len() > 1 { per_group.min(STRIP) } else { STRIP };
        let height = if per_group.is_multiple_of(height) { height } else { 1 };
        let level = Level::best();
        codes
            .par_chunks_mut(height * n)
            .zip(scale.par_chunks_mut(height * blocks))
            .zip(offset.par_chunks_mut(height * blocks))
            .enumerate()
            .for_each(|(i, ((codes, scale), offset))| {
                let system = &self.systems[i * height / per_group];
                let target = &self.target[i * height * n..][..codes.len()];
                let mut strip = Strip::new(self.spec, system, self.block, target, codes, scale, offset);
                dispatch(level, Compensate { strip: &mut strip, sweeps: self.sweeps });
            });
        if asymmetric {
            for (min, (offset, scale)) in min.iter_mut().zip(offset.iter().zip(&scale)) {
                *min = offset - bits.half() * scale;
            }
        }
        let mut row_errors = vec![WeightError::default(); self.rows];
        row_errors.par_iter_mut().enumerate().for_each(|(row, error)| {
            let mut lanes = ErrorLanes::new();
            for i in 0..blocks {
                let at = row * blocks + i;
                let part = at * self.block..(at + 1) * self.block;
                let affine = Affine { scale: scale[at], min: min.get(at).copied().unwrap_or(0.0) };
                let offset = affine::offset(bits, self.spec.scheme, affine);
                lanes.add(affine, offset, &self.weight[part.clone()], &codes[part]);
            }
            *error = lanes.finish();
        });
        let weights = QuantizedWeights::new(bits.get(), codes, scale, asymmetric.then_some(min))
            .unwrap_or_else(|error| {
                unreachable!("codes are clamped and lengths those of the start: {error}")
            });
        Ok(QuantizedMatrix { weights, rows: self.rows, row_len: n, block_len: self.block, row_errors })
    }
}

/// Some rows of one group while they are rounded.
struct Strip<'a> {
    bits: BitWidth,
    scheme: Scheme,
    half: bool,
    system: &'a System,
    n: usize,
    block: usize,
    /// `[rows, n]`.
    target: &'a [f32],
    /// `[rows, n]`.
    codes: &'a mut [i8],
    /// `[rows, blocks]`.
    scale: &'a mut [f32],
    /// What code 0 stands for: `[rows, blocks]`.
    offset: &'a mut [f32],
    /// `(t - w') S`: `[rows, n]`.
    gradient: Vec<f32>,
    /// Errors of the rows.
    errors: Vec<f32>,
    /// Room for sums: `[rows, n]`.
    room: Vec<f32>,
}

impl<'a> Strip<'a> {
    fn new(
        spec: &WeightQuantSpec,
        system: &'a System,
        block: usize,
        target: &'a [f32],
        codes: &'a mut [i8],
        scale: &'a mut [f32],
        offset: &'a mut [f32],
    ) -> Self {
        let n = system.order.len();
        Self {
            bits: spec.bits,
            scheme: spec.scheme,
            half: spec.scale_storage == ScaleStorage::F16,
            system,
            n,
            block,
            target,
            codes,
            scale,
            offset,
            gradient: vec![0.0; target.len()],
            errors: vec![0.0; target.len() / n],
            room: vec![0.0; target.len()],
        }
    }

    /// The code nearest to a value on the grid of a block.
    #[inline(always)]
    fn code(&self, at: usize, value: f32) -> i8 {
        let scale = self.scale[at];
        if scale == 0.0 {
            return if self.scheme == Scheme::Symmetric { 0 } else { self.bits.lowest() };
        }
        let t = affine::clamp((value - self.offset[at]) / scale, -self.bits.half(), self.bits.half() - 1.0);
        affine::to_code(t.round_ties_even())
    }

    #[inline(always)]
    fn decoded(&self, at: usize, code: i8) -> f32 {
        f32::from(code) * self.scale[at] + self.offset[at]
    }

    /// Recomputes gradients and errors.
    #[inline(always)]
    fn refresh(&mut self) {
        let (n, blocks) = (self.n, self.n / self.block);
        self.gradient.fill(0.0);
        for j in 0..n {
            let line = &self.system.matrix[j * n..][..n];
            for row in 0..self.errors.len() {
                let at = row * n + j;
                let error = self.target[at] - self.decoded(row * blocks + j / self.block, self.codes[at]);
                self.room[at] = error;
                add_scaled(&mut self.gradient[row * n..][..n], error, line);
            }
        }
        for row in 0..self.errors.len() {
            let part = row * n..(row + 1) * n;
            self.errors[row] = dot_f32(&self.room[part.clone()], &self.gradient[part]);
        }
    }

    /// Rounds column after column, each making up for those before; returns the errors of the rows.
    ///
    /// With the residual `r_k` of column k the error is `sum (L_kk r_k)^2`.
    #[inline(always)]
    fn nearest_plane(&mut self) -> Vec<f32> {
        let (n, blocks) = (self.n, self.n / self.block);
        let mut lost = vec![0.0_f32; self.errors.len()];
        self.room.fill(0.0);
        for (i, &j) in self.system.order.iter().enumerate().rev() {
            let line = &self.system.factor[i * n..][..=i];
            for (row, lost) in lost.iter_mut().enumerate() {
                let (at, block) = (row * n + j, row * blocks + j / self.block);
                let value = self.target[at] + self.room[row * n + i] / line[i];
                let code = self.code(block, value);
                self.codes[at] = code;
                let decoded = self.decoded(block, code);
                let residual = line[i] * (value - decoded);
                *lost += residual * residual;
                add_scaled(&mut self.room[row * n..][..i], self.target[at] - decoded, &line[..i]);
            }
        }
        lost
    }

    /// Rounds with grids of several widths, and keeps for each row the one of the smallest error.
    #[inline(always)]
    fn best_nearest_plane(&mut self, widths: &[f32]) {
        let (n, blocks) = (self.n, self.n / self.block);
        let grids = (self.scale.to_vec(), self.offset.to_vec());
        let mut least = vec![f32::INFINITY; self.errors.len()];
        let mut best = (self.codes.to_vec(), grids.0.clone(), grids.1.clone());
        for &width in widths {
            for (at, (scale, offset)) in grids.0.iter().zip(&grids.1).enumerate() {
                let wide = width * scale;
                let fits = wide.is_finite() && (width == 1.0 || wide.is_normal());
                self.scale[at] = if fits { wide } else { *scale };
                // The middle of the codes stays where it is.
                let middle = if self.scheme == Scheme::Symmetric { 0.0 } else { 0.5 };
                self.offset[at] = offset + middle * (self.scale[at] - scale);
            }
            let lost = self.nearest_plane();
            for (row, &lost) in lost.iter().enumerate() {
                if lost < least[row] {
                    least[row] = lost;
                    best.0[row * n..][..n].copy_from_slice(&self.codes[row * n..][..n]);
                    best.1[row * blocks..][..blocks].copy_from_slice(&self.scale[row * blocks..][..blocks]);
                    best.2[row * blocks..][..blocks].copy_from_slice(&self.offset[row * blocks..][..blocks]);
                }
            }
        }
        self.codes.copy_from_slice(&best.0);
        self.scale.copy_from_slice(&best.1);
        self.offset.copy_from_slice(&best.2);
    }

    /// Moves every code to its best value given the others; returns whether one moved.
    #[inline(always)]
    fn sweep_codes(&mut self) -> bool {
        let (n, blocks) = (self.n, self.n / self.block);
        let mut moved = false;
        for j in 0..n {
            let line = &self.system.matrix[j * n..][..n];
            for row in 0..self.errors.len() {
                let (at, block) = (row * n + j, row * blocks + j / self.block);
                let old = self.decoded(block, self.codes[at]);
                let code = self.code(block, old + self.gradient[at] / line[j]);
                if code == self.codes[at] {
                    continue;
                }
                let step = self.decoded(block, code) - old;
                let gain = step * (2.0 * self.gradient[at] - step * line[j]);
                if gain > 1e-6 * self.errors[row] {
                    self.codes[at] = code;
                    self.errors[row] -= gain;
                    add_scaled(&mut self.gradient[row * n..][..n], -step, line);
                    moved = true;
                }
            }
        }
        moved
    }

    /// Fits scale and offset of every block by least squares under the covariance.
    #[inline(always)]
    fn refit(&mut self) {
        let (n, blocks) = (self.n, self.n / self.block);
        for block in 0..blocks {
            let part = block * self.block..(block + 1) * self.block;
            self.room.fill(0.0);
            for j in part.clone() {
                let line = &self.system.matrix[j * n..][..n];
                for row in 0..self.errors.len() {
                    let code = f32::from(self.codes[row * n + j]);
                    add_scaled(&mut self.room[row * n..][..n], code, line);
                }
            }
            let ones = &self.system.sums[block * n..][..n];
            let corner: f32 = ones[part.clone()].iter().sum();
            for row in 0..self.errors.len() {
                let codes = &self.codes[row * n..][..n][part.clone()];
                let (gradient, moved) = (&self.gradient[row * n..][..n], &self.room[row * n..][..n]);
                let (mut a, mut c, mut p, mut q) = (0.0_f32, 0.0_f32, 0.0_f32, 0.0_f32);
                for (code, (moved, gradient)) in
                    codes.iter().zip(moved[part.clone()].iter().zip(&gradient[part.clone()]))
                {
                    let code = f32::from(*code);
                    a += code * moved;
                    c += moved;
                    p += code * gradient;
                    q += gradient;
                }
                let (scale, offset) = match self.scheme {
                    Scheme::Symmetric if a > 0.0 => (p / a, 0.0),
                    Scheme::Asymmetric if a * corner - c * c > INDEPENDENT * a * corner => {
                        let det = a * corner - c * c;
                        ((p * corner - q * c) / det, (q * a - p * c) / det)
                    }
                    _ => continue,
                };
                let at = row * blocks + block;
                let (new_scale, new_offset) = (self.scale[at] + scale, self.offset[at] + offset);
                let fits = new_scale.is_finite()
                    && new_offset.is_finite()
                    && (new_offset - self.bits.half() * new_scale).is_finite();
                if !fits || new_scale * self.scale[at] <= 0.0 {
                    continue;
                }
                (self.scale[at], self.offset[at]) = (new_scale, new_offset);
                let gradient = &mut self.gradient[row * n..][..n];
                add_scaled(gradient, -scale, &self.room[row * n..][..n]);
                add_scaled(gradient, -offset, ones);
                self.errors[row] -= scale * p + offset * q;
            }
        }
    }

    /// Rounds the parameters as the file stores them; a parameter beyond half floats stays, and is reported when encoded.
    #[inline(always)]
    fn store(&mut self) {
        for (scale, offset) in self.scale.iter_mut().zip(self.offset.iter_mut()) {
            let half = self.bits.half();
            let min = *offset - half * *scale;
            if self.half {
                let (new_scale, new_min) = (nearest_half(*scale), nearest_half(min));
                if new_scale.is_finite() && new_min.is_finite() {
                    *scale = new_scale;
                    *offset = if self.scheme == Scheme::Symmetric { 0.0 } else { new_min + half * new_scale };
                }
            } else if self.scheme == Scheme::Asymmetric {
                *offset = min + half * *scale;
            }
        }
    }
}

/// The steps of the method on a strip.
struct Compensate<'a, 'b> {
    strip: &'a mut Strip<'b>,
    sweeps: usize,
}

impl Loop for Compensate<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let strip = self.strip;
        let first = (strip.codes.to_vec(), strip.scale.to_vec(), strip.offset.to_vec());
        strip.refresh();
        let before = strip.errors.clone();
        strip.best_nearest_plane(&WIDTHS);
        strip.refresh();
        for sweep in 0..self.sweeps {
            let moved = strip.sweep_codes();
            if !moved && sweep > 0 {
                break;
            }
            strip.refit();
        }
        strip.store();
        strip.refresh();
        strip.sweep_codes();
        // A row that came out worse than plain rounding keeps that.
        let (n, blocks) = (strip.n, strip.n / strip.block);
        for (row, &before) in before.iter().enumerate() {
            let better = strip.errors[row] <= before;
            if !better {
                strip.codes[row * n..][..n].copy_from_slice(&first.0[row * n..][..n]);
                strip.scale[row * blocks..][..blocks].copy_from_slice(&first.1[row * blocks..][..blocks]);
                strip.offset[row * blocks..][..blocks].copy_from_slice(&first.2[row * blocks..][..blocks]);
            }
        }
    }
}
