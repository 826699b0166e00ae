//! Second moments of a layer's inputs, streamed.
//!
//! A layer computes `y = W x` for the inputs `x` that its kernel meets at every position (columns of im2col: input channel
//! of the group, kernel row, kernel column). With `x'` the input in the quantized model, `x` that in the float model and
//! `d = x - x'`, per group of channels
//!
//! ```text
//! mean x',  mean d,  S = Cov(x', x'),  D = Cov(d, x')
//! ```
//!
//! are all that choosing the weights needs. Positions are gathered into a tile of bounded size; full tiles are multiplied
//! in single precision and added up in double precision, after the mean of the first tile was taken off. Memory does not
//! grow with the data.

use mnnq_kernels::multiversion::{Level, Loop, dispatch};
use rayon::prelude::*;

use super::error::QuantError;
use super::linalg::{dot_f32, product_transposed};

/// Elements of a tile at most, over all groups.
const TILE_ELEMENTS: usize = 1 << 21;
/// Positions of a tile at least and at most.
const TILE_POSITIONS: [usize; 2] = [128, 4096];
/// Groups with fewer inputs are multiplied without packing.
const SMALL: usize = 48;
/// Columns of a product that are computed together: the other triangle is mostly left out.
const COLUMNS: usize = 512;

/// What of an input image each tap of a kernel meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taps {
    /// Kernel rows and columns.
    pub kernel: [usize; 2],
    /// Distance of outputs.
    pub stride: [usize; 2],
    /// Distance of taps.
    pub dilation: [usize; 2],
}

/// An input image `[n, channels, height, width]`, row-major, with the windows over it.
#[derive(Clone, Copy, Debug)]
pub struct Images<'a> {
    /// In the quantized model.
    pub actual: &'a [f32],
    /// In the float model, if it differs.
    pub exact: Option<&'a [f32]>,
    /// `[n, channels, height, width]`.
    pub shape: [usize; 4],
    /// Padding above and left.
    pub pad: [usize; 2],
    /// Output rows and columns.
    pub outputs: [usize; 2],
    /// Every how many rows of outputs are counted, and the first of them; at least 1, and below that.
    pub rows: [usize; 2],
}

/// Streamed moments of the inputs of a layer.
#[derive(Clone, Debug)]
pub struct Moments {
    channels: usize,
    groups: usize,
    columns: usize,
    taps: Taps,
    count: usize,
    actual: Tile,
    delta: Option<Tile>,
    filled: usize,
    positions: usize,
    /// `[groups, columns, columns]`, about the shift.
    second: Vec<f64>,
    /// `sum d x'^T`, likewise; empty without `delta`.
    cross: Vec<f64>,
}

/// Positions to be added: `[groups * columns, positions]`.
#[derive(Clone, Debug)]
struct Tile {
    data: Vec<f32>,
    /// Mean of the first tile, taken off before products: `[groups * columns]`.
    shift: Vec<f32>,
    /// Sum after the shift.
    sum: Vec<f64>,
}

impl Tile {
    fn new(lines: usize, positions: usize) -> Self {
        Self { data: vec![0.0; lines * positions], shift: Vec::new(), sum: vec![0.0; lines] }
    }

    /// Takes the shift off and adds the rest to the sums.
    fn shift(&mut self, positions: usize, filled: usize) {
        if self.shift.is_empty() {
            let mean = |line: &[f32]| {
                (line[..filled].iter().map(|&x| f64::from(x)).sum::<f64>() / filled as f64) as f32
            };
            self.shift = self.data.chunks_exact(positions).map(mean).collect();
        }
        let lines = self.data.par_chunks_exact_mut(positions).zip(&self.shift).zip(&mut self.sum);
        lines.for_each(|((line, &shift), sum)| {
            let mut total = 0.0;
            for x in &mut line[..filled] {
                *x -= shift;
                total += f64::from(*x);
            }
            *sum += total;
        });
    }

    /// Means, with the shift.
    fn means(&self, count: usize) -> Vec<f64> {
        let shift = self.shift.iter().copied().chain(std::iter::repeat(0.0));
        self.sum.iter().zip(shift).map(|(sum, shift)| sum / count as f64 + f64::from(shift)).collect()
    }
}

impl Moments {
    /// Statistics of a layer with `channels` input channels in `groups` groups.
    ///
    /// `cross`: whether the inputs in the two models differ.
    ///
    /// # Errors
    /// [`QuantError::Sample`] if the groups do not divide the channels.
    pub fn new(channels: usize, groups: usize, taps: Taps, cross: bool) -> Result<Self, QuantError> {
        let fits = groups > 0 && channels > 0 && channels.is_multiple_of(groups);
        let columns =
            if fits { (channels / groups).checked_mul(taps.kernel[0] * taps.kernel[1]) } else { None };
        let Some(columns) = columns
            .filter(|&columns| columns > 0 && taps.stride.iter().chain(&taps.dilation).all(|&n| n > 0))
        else {
            return Err(QuantError::Sample {
                shape: Vec::new(),
                channels,
                what: ", which its groups must divide",
            });
        };
        let lines = columns * groups;
        let positions = (TILE_ELEMENTS / lines).clamp(TILE_POSITIONS[0], TILE_POSITIONS[1]);
        let squares = groups * columns * columns;
        Ok(Self {
            channels,
            groups,
            columns,
            taps,
            count: 0,
            actual: Tile::new(lines, positions),
            delta: cross.then(|| Tile::new(lines, positions)),
            filled: 0,
            positions,
            second: vec![0.0; squares],
            cross: vec![0.0; if cross { squares } else { 0 }],
        })
    }

    /// Inputs of a group that one output sees.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Groups of channels.
    pub fn groups(&self) -> usize {
        self.groups
    }

    /// Positions seen.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Adds what the kernel meets in some images.
    ///
    /// # Errors
    /// [`QuantError::Sample`] if the images do not fit; [`QuantError::NonFiniteSample`] for infinite and NaN values.
    pub fn add(&mut self, images: &Images<'_>) -> Result<(), QuantError> {
        let [n, channels, height, width] = images.shape;
        let length = channels * height * width * n;
        let wrong = |what| QuantError::Sample { shape: images.shape.to_vec(), channels: self.channels, what };
        if channels != self.channels {
            return Err(wrong(""));
        }
        if images.actual.len() != length || images.exact.is_some_and(|exact| exact.len() != length) {
            return Err(wrong(", or has another number of elements"));
        }
        if self.delta.is_some() != images.exact.is_some() {
            return Err(wrong(", or is given for one model only"));
        }
        for values in [Some(images.actual), images.exact].into_iter().flatten() {
            if let Some(&value) = values.iter().find(|x| !x.is_finite()) {
                return Err(QuantError::NonFiniteSample { value });
            }
        }
        for image in 0..n {
            for y in (images.rows[1]..images.outputs[0]).step_by(images.rows[0].max(1)) {
                let mut x = 0;
                while x < images.outputs[1] {
                    let run = (images.outputs[1] - x).min(self.positions - self.filled);
                    self.gather(images, image, y, x..x + run);
                    self.filled += run;
                    x += run;
                    if self.filled == self.positions {
                        self.flush()?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Copies what each tap meets at some outputs of one row of outputs into the tile.
    fn gather(&mut self, images: &Images<'_>, image: usize, y: usize, outputs: std::ops::Range<usize>) {
        let [_, channels, height, width] = images.shape;
        let Taps { kernel, stride, dilation } = self.taps;
        let (positions, filled) = (self.positions, self.filled);
        let tile = &mut self.actual.data;
        let mut delta = self.delta.as_mut().map(|delta| &mut delta.data);
        let mut line = 0;
        for channel in 0..channels {
            for ky in 0..kernel[0] {
                let row =
                    (y * stride[0] + ky * dilation[0]).checked_sub(images.pad[0]).filter(|&row| row < height);
                for kx in 0..kernel[1] {
                    let at = line * positions + filled..line * positions + filled + outputs.len();
                    line += 1;
                    let Some(row) = row else {
                        tile[at.clone()].fill(0.0);
                        if let Some(delta) = &mut delta {
                            delta[at].fill(0.0);
                        }
                        continue;
                    };
                    let source = ((image * channels + channel) * height + row) * width;
                    let source = source..source + width;
                    // Columns of the image that outputs meet with this tap: start + i * stride.
                    let start =
                        (outputs.start * stride[1] + kx * dilation[1]) as isize - images.pad[1] as isize;
                    let to = &mut tile[at.clone()];
                    strided(&images.actual[source.clone()], start, stride[1], to);
                    if let (Some(delta), Some(exact)) = (&mut delta, images.exact) {
                        let delta = &mut delta[at];
                        strided(&exact[source], start, stride[1], delta);
                        delta.iter_mut().zip(to.iter()).for_each(|(d, x)| *d -= x);
                    }
                }
            }
        }
    }

    /// Adds what the tile holds.
    fn flush(&mut self) -> Result<(), QuantError> {
        let filled = std::mem::take(&mut self.filled);
        if filled == 0 {
            return Ok(());
        }
        self.count += filled;
        let (positions, columns) = (self.positions, self.columns);
        self.actual.shift(positions, filled);
        add_products(
            &self.actual.data,
            &self.actual.data,
            &mut self.second,
            [columns, positions, filled],
            true,
        )?;
        if let Some(delta) = &mut self.delta {
            delta.shift(positions, filled);
            add_products(
                &delta.data,
                &self.actual.data,
                &mut self.cross,
                [columns, positions, filled],
                false,
            )?;
        }
        Ok(())
    }

    /// Ends the collection.
    ///
    /// # Errors
    /// [`QuantError::NoData`] if nothing was added; [`QuantError::Kernel`] if a product cannot run.
    pub fn finish(mut self) -> Result<Statistics, QuantError> {
        self.flush()?;
        if self.count == 0 {
            return Err(QuantError::NoData);
        }
        let (columns, n) = (self.columns, self.count as f64);
        let center = |sums: &mut [f64], left: &[f64]| {
            let right = self.actual.sum.chunks_exact(columns);
            let groups = sums.chunks_exact_mut(columns * columns).zip(left.chunks_exact(columns)).zip(right);
            for ((square, left), right) in groups {
                for (row, left) in square.chunks_exact_mut(columns).zip(left) {
                    for (x, right) in row.iter_mut().zip(right) {
                        *x = (*x - left * right / n) / n;
                    }
                }
            }
        };
        center(&mut self.second, &self.actual.sum);
        let delta = match &self.delta {
            Some(delta) => {
                center(&mut self.cross, &delta.sum);
                Some(Delta { mean: delta.means(self.count), cross: std::mem::take(&mut self.cross) })
            }
            None => None,
        };
        Ok(Statistics {
            groups: self.groups,
            columns,
            count: self.count,
            mean: self.actual.means(self.count),
            second: self.second,
            delta,
        })
    }
}

/// Means and covariances of the inputs of a layer.
#[derive(Clone, Debug)]
pub struct Statistics {
    /// Groups of channels.
    pub groups: usize,
    /// Inputs of a group that one output sees.
    pub columns: usize,
    /// Positions seen.
    pub count: usize,
    /// Mean of x': `[groups * columns]`.
    pub mean: Vec<f64>,
    /// `Cov(x', x')`: `[groups, columns, columns]`.
    pub second: Vec<f64>,
    /// What differs in the float model; None where nothing does.
    pub delta: Option<Delta>,
}

/// How the inputs in the float model differ from those in the quantized model.
#[derive(Clone, Debug)]
pub struct Delta {
    /// Mean of d: `[groups * columns]`.
    pub mean: Vec<f64>,
    /// `Cov(d, x')`: `[groups, columns, columns]`.
    pub cross: Vec<f64>,
}

impl Statistics {
    /// Adds the statistics of other inputs of the same layer.
    ///
    /// # Errors
    /// [`QuantError::Statistics`] if they are not of the same shape.
    pub fn merge(&mut self, other: &Self) -> Result<(), QuantError> {
        let same = self.columns == other.columns && self.groups == other.groups;
        if !same || self.delta.is_some() != other.delta.is_some() {
            return Err(QuantError::Statistics {
                rows: other.groups,
                row_len: other.columns,
                groups: self.groups,
                columns: self.columns,
            });
        }
        let (n, m) = (self.count as f64, other.count as f64);
        let share = m / (n + m);
        let gaps = |a: &[f64], b: &[f64]| -> Vec<f64> { a.iter().zip(b).map(|(a, b)| b - a).collect() };
        let actual = gaps(&self.mean, &other.mean);
        let columns = self.columns;
        // The covariance of a union: the weighted mean of both, plus that of the two means.
        let unite = |mine: &mut [f64], theirs: &[f64], left: &[f64]| {
            for (line, (mine, theirs)) in
                mine.chunks_exact_mut(columns).zip(theirs.chunks_exact(columns)).enumerate()
            {
                let right = &actual[line / columns * columns..][..columns];
                for ((a, b), right) in mine.iter_mut().zip(theirs).zip(right) {
                    *a += share * (b - *a) + share * (1.0 - share) * left[line] * right;
                }
            }
        };
        unite(&mut self.second, &other.second, &actual);
        if let (Some(mine), Some(theirs)) = (&mut self.delta, &other.delta) {
            let gap = gaps(&mine.mean, &theirs.mean);
            unite(&mut mine.cross, &theirs.cross, &gap);
            mine.mean.iter_mut().zip(&gap).for_each(|(a, gap)| *a += share * gap);
        }
        self.mean.iter_mut().zip(&actual).for_each(|(a, gap)| *a += share * gap);
        self.count += other.count;
        Ok(())
    }

    /// Checks that a matrix `[rows, row_len]` is one of a layer with these inputs.
    pub(super) fn check(&self, rows: usize, row_len: usize) -> Result<(), QuantError> {
        if row_len == self.columns && rows.is_multiple_of(self.groups) && rows > 0 {
            return Ok(());
        }
        Err(QuantError::Statistics { rows, row_len, groups: self.groups, columns: self.columns })
    }
}

/// `out[g, i, j] += sum_p a[g, i, p] b[g, j, p]`; when symmetric, `a` is `b`.
fn add_products(
    a: &[f32],
    b: &[f32],
    out: &mut [f64],
    [columns, positions, filled]: [usize; 3],
    symmetric: bool,
) -> Result<(), QuantError> {
    let (lines, squares) = (columns * positions, columns * columns);
    if columns < SMALL {
        let level = Level::best();
        let groups =
            out.par_chunks_exact_mut(squares).zip(a.par_chunks_exact(lines)).zip(b.par_chunks_exact(lines));
        groups.for_each(|((out, a), b)| {
            dispatch(level, SmallProducts { a, b, out, shape: [columns, positions, filled], symmetric });
        });
        return Ok(());
    }
    let mut product = vec![0.0_f32; columns * COLUMNS.min(columns)];
    for ((out, a), b) in out.chunks_exact_mut(squares).zip(a.chunks_exact(lines)).zip(b.chunks_exact(lines)) {
        for first in (0..columns).step_by(COLUMNS) {
            let width = COLUMNS.min(columns - first);
            // Rows from the diagonal on; the rest is the mirror image.
            let top = if symmetric { first } else { 0 };
            let height = columns - top;
            let part = &mut product[..height * width];
            product_transposed(
                (&a[top * positions..], positions, height),
                (&b[first * positions..], positions, width),
                filled,
                part,
            )?;
            for (i, line) in part.chunks_exact(width).enumerate() {
                let to = (top + i) * columns + first;
                for (x, &add) in out[to..to + width].iter_mut().zip(line) {
                    *x += f64::from(add);
                }
            }
        }
        if symmetric {
            for i in 0..columns {
                for j in i + 1..columns {
                    out[i * columns + j] = out[j * columns + i];
                }
            }
        }
    }
    Ok(())
}

/// `out[i] = row[start + i * stride]`, 0 outside the row.
fn strided(row: &[f32], start: isize, stride: usize, out: &mut [f32]) {
    let skipped = if start < 0 { start.unsigned_abs().div_ceil(stride).min(out.len()) } else { 0 };
    let (before, inside) = out.split_at_mut(skipped);
    before.fill(0.0);
    let first = usize::try_from(start + (skipped * stride) as isize).unwrap_or(0).min(row.len());
    let row = &row[first..];
    let met = row.len().div_ceil(stride).min(inside.len());
    let (inside, after) = inside.split_at_mut(met);
    if stride == 1 {
        inside.copy_from_slice(&row[..met]);
    } else {
        inside.iter_mut().zip(row.iter().step_by(stride)).for_each(|(x, value)| *x = *value);
    }
    after.fill(0.0);
}

/// Products of few columns, without packing: a group's share of [`add_products`].
struct SmallProducts<'a> {
    a: &'a [f32],
    b: &'a [f32],
    out: &'a mut [f64],
    /// Columns, positions of a line, positions filled.
    shape: [usize; 3],
    symmetric: bool,
}

impl Loop for SmallProducts<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let [columns, positions, filled] = self.shape;
        for i in 0..columns {
            let left = &self.a[i * positions..][..filled];
            for j in 0..if self.symmetric { i + 1 } else { columns } {
                let sum = f64::from(dot_f32(left, &self.b[j * positions..][..filled]));
                self.out[i * columns + j] += sum;
                if self.symmetric && i != j {
                    self.out[j * columns + i] = self.out[i * columns + j];
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
