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

use mnnq_kernels::multiversion::{Level, dispatch};
use rayon::prelude::*;

use super::strip::{Compensate, Strip};
use super::{QuantizedMatrix, StridedMatrix, WeightMethod};
use crate::quant::affine::{self, Affine};
use crate::quant::error::QuantError;
use crate::quant::linalg::{SolveRows, add_scaled, cholesky, product_transposed};
use crate::quant::moments::Statistics;
use crate::quant::spec::{Scheme, WeightQuantSpec};

/// Rows that share the reads of the covariance.
const STRIP: usize = 8;
/// The damping is raised by this factor until the matrix can be factored.
const MORE_DAMPING: f64 = 10.0;
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
pub(super) struct System {
    /// `S + r I`: `[n, n]`.
    pub(super) matrix: Vec<f32>,
    /// Its Cholesky factor after reordering: `[n, n]`, lower triangular.
    pub(super) factor: Vec<f32>,
    /// Column at each place of the factor; the last place is rounded first.
    pub(super) order: Vec<usize>,
    /// `matrix` times the indicator of each block: `[blocks, n]`.
    pub(super) sums: Vec<f32>,
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
        let dims = [self.rows, n, self.block];
        Ok(QuantizedMatrix::fitted(self.spec, self.weight, dims, codes, scale, min))
    }
}
