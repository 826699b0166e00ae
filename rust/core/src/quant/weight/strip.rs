//! Rows while their codes are chosen for the least output error: the loops of [`compensate`](super::compensate).

use mnnq_kernels::multiversion::Loop;

use super::gptq::System;
use super::nearest_half;
use crate::quant::affine;
use crate::quant::linalg::{add_scaled, dot_f32};
use crate::quant::spec::{BitWidth, ScaleStorage, Scheme, WeightQuantSpec};

/// Smallest determinant of a least-squares system, relative to the product of its diagonal.
const INDEPENDENT: f32 = 1e-4;
/// Widths of the grids that rounding is tried with, relative to the searched ones: the best clipping for the weights need
/// not be that for the outputs.
const WIDTHS: [f32; 8] = [1.0, 0.95, 0.9, 0.85, 0.8, 0.7, 1.05, 1.1];

/// Some rows of one group while they are rounded.
pub(super) struct Strip<'a> {
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
    pub(super) fn new(
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
pub(super) struct Compensate<'a, 'b> {
    pub(super) strip: &'a mut Strip<'b>,
    pub(super) sweeps: usize,
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
