//! The transformations, as plain loops that are compiled for each level.

#![allow(
    clippy::needless_range_loop,
    reason = "counted loops over lanes are what the compiler turns into vectors"
)]

use std::ops::Range;

use super::{IN, OUT, POINTS};
use crate::gemm_i8::dot::{CHUNK, LINE};
use crate::geometry::Sliding;
use crate::multiversion::Loop;

/// Channels that are transformed together.
pub(super) const WIDTH: usize = 32;

/// Channels of a chunk of transformed input.
pub(super) const CHUNK_CHANNELS: usize = CHUNK / 2;

/// The inverse of 9 modulo 2^32.
const NINTH: i32 = 0x38e3_8e39;

/// Factors of two that the rows of the output carry: `24, 12, 6, 6` are `3 << HALVINGS`.
const HALVINGS: [u32; OUT] = [3, 2, 1, 1];

/// The scaled rows of G: `[4, 6, 6, 24, 24, 1]` times those of the points 0, 1, -1, 2, -2 and infinity.
const WEIGHT_ROWS: [[i32; 3]; IN] = [[1, 0, 0], [-1, -1, -1], [-1, 1, -1], [1, 2, 4], [1, -2, 4], [0, 0, 1]];

/// The transformed weights of one pair of channels: at most `49 * 128` in magnitude.
pub(super) fn transform_weights(taps: &[i8; 9]) -> [i16; POINTS] {
    std::array::from_fn(|point| {
        let (gy, gx) = (WEIGHT_ROWS[point / IN], WEIGHT_ROWS[point % IN]);
        let sum: i32 = (0..9).map(|tap| gy[tap / 3] * gx[tap % 3] * i32::from(taps[tap])).sum();
        sum as i16
    })
}

/// `B^T d` for one line of six: at most ten times as large.
#[inline(always)]
fn input_line(d: [i16; IN]) -> [i16; IN] {
    let (a, b) = (d[4] - 4 * d[2], d[3] - 4 * d[1]);
    let (c, e) = (d[4] - d[2], 2 * (d[3] - d[1]));
    [4 * d[0] - 5 * d[2] + d[4], a + b, a - b, c + e, c - e, 4 * d[1] - 5 * d[3] + d[5]]
}

/// `diag(24, 12, 6, 6) A^T diag(1/4, 1/6, 1/6, 1/24, 1/24, 1) m` for one line of six, modulo 2^32.
#[inline(always)]
fn output_line(m: [i32; IN]) -> [i32; OUT] {
    let add = i32::wrapping_add;
    let times = i32::wrapping_mul;
    let (sum_a, difference_a) = (add(m[1], m[2]), m[1].wrapping_sub(m[2]));
    let (sum_b, difference_b) = (add(m[3], m[4]), m[3].wrapping_sub(m[4]));
    [
        add(add(times(6, m[0]), times(4, sum_a)), sum_b),
        add(times(2, difference_a), difference_b),
        add(sum_a, sum_b),
        add(add(difference_a, times(2, difference_b)), times(6, m[5])),
    ]
}

/// Where tiles lie.
#[derive(Clone, Copy)]
pub(super) struct Tiling<'a> {
    pub(super) sliding: &'a Sliding,
    /// Tiles of an image, down and across.
    pub(super) rows: usize,
    pub(super) columns: usize,
}

impl Tiling<'_> {
    /// Image, first row and first column of a tile of the output.
    #[inline(always)]
    pub(super) fn origin(&self, tile: usize) -> (usize, usize, usize) {
        let (rest, x) = (tile / self.columns, tile % self.columns);
        (rest / self.rows, rest % self.rows * OUT, x * OUT)
    }
}

/// Transforms some tiles of the input.
pub(super) struct InputTransform<'a> {
    pub(super) tiling: Tiling<'a>,
    pub(super) input: &'a [i8],
    /// The code of pixels outside the image.
    pub(super) padding: i8,
    pub(super) tiles: Range<usize>,
    /// Tiles that `to` has room for.
    pub(super) most: usize,
    /// `[points, chunks, most]` lines of [`LINE`] bytes.
    pub(super) to: &'a mut [i16],
}

impl Loop for InputTransform<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { tiling, input, padding, tiles, most, to } = self;
        let g = tiling.sliding;
        let channels = g.channels;
        let chunks = channels.div_ceil(CHUNK_CHANNELS);
        let (pad_y, pad_x) = (g.vertical.pad_begin as isize, g.horizontal.pad_begin as isize);
        for (slot, tile) in tiles.enumerate() {
            let (image, y, x) = tiling.origin(tile);
            let (y, x) = (y as isize - pad_y, x as isize - pad_x);
            for channel in (0..channels).step_by(WIDTH) {
                let count = WIDTH.min(channels - channel);
                let mut d = [[0_i16; WIDTH]; POINTS];
                for i in 0..IN {
                    let row = y + i as isize;
                    for j in 0..IN {
                        let column = x + j as isize;
                        let to = &mut d[i * IN + j];
                        if row < 0 || column < 0 || row >= g.height as isize || column >= g.width as isize {
                            *to = [i16::from(padding); WIDTH];
                            continue;
                        }
                        let pixel = (image * g.height + row as usize) * g.width + column as usize;
                        let codes = &input[pixel * channels + channel..][..count];
                        if let Ok(codes) = <&[i8; WIDTH]>::try_from(codes) {
                            for c in 0..WIDTH {
                                to[c] = i16::from(codes[c]);
                            }
                        } else {
                            for (to, &code) in to.iter_mut().zip(codes) {
                                *to = i16::from(code);
                            }
                        }
                    }
                }
                for j in 0..IN {
                    for c in 0..WIDTH {
                        let line = input_line(std::array::from_fn(|i| d[i * IN + j][c]));
                        for i in 0..IN {
                            d[i * IN + j][c] = line[i];
                        }
                    }
                }
                let (chunk, place) = (channel / CHUNK_CHANNELS, channel % CHUNK_CHANNELS);
                for i in 0..IN {
                    let mut lines = [[0_i16; WIDTH]; IN];
                    for c in 0..WIDTH {
                        let line = input_line(std::array::from_fn(|j| d[i * IN + j][c]));
                        for j in 0..IN {
                            lines[j][c] = line[j];
                        }
                    }
                    for j in 0..IN {
                        let line = ((i * IN + j) * chunks + chunk) * most + slot;
                        let start = line * (LINE / 2) + place;
                        to[start..start + WIDTH].copy_from_slice(&lines[j]);
                    }
                }
            }
        }
    }
}

/// Transforms the sums of neighbouring tiles of a row of tiles, for a panel of columns.
pub(super) struct OutputTransform<'a, const LANES: usize> {
    /// `[points, most, nr]`.
    pub(super) from: &'a [i32],
    pub(super) most: usize,
    pub(super) nr: usize,
    /// The first tile, and how many there are.
    pub(super) slot: usize,
    pub(super) run: usize,
    /// What is added to the sums of each column: `[nr]`.
    pub(super) init: &'a [i32],
    /// `[4, 4 * run, nr]`: exact sums.
    pub(super) to: &'a mut [i32],
}

impl<const LANES: usize> Loop for OutputTransform<'_, LANES> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { from, most, nr, slot, run, init, to } = self;
        for tile in 0..run {
            for first in (0..nr).step_by(LANES) {
                let mut half = [[[0_i32; LANES]; IN]; OUT];
                for j in 0..IN {
                    let columns: [&[i32; LANES]; IN] = std::array::from_fn(|i| {
                        let start = ((i * IN + j) * most + slot + tile) * nr + first;
                        lanes(&from[start..])
                    });
                    for c in 0..LANES {
                        let line = output_line(std::array::from_fn(|i| columns[i][c]));
                        for i in 0..OUT {
                            half[i][j][c] = line[i];
                        }
                    }
                }
                let init: &[i32; LANES] = lanes(&init[first..]);
                for i in 0..OUT {
                    let mut lines = [[0_i32; LANES]; OUT];
                    for c in 0..LANES {
                        let line = output_line(std::array::from_fn(|j| half[i][j][c]));
                        for j in 0..OUT {
                            let shift = HALVINGS[i] + HALVINGS[j];
                            lines[j][c] = (line[j].wrapping_mul(NINTH) >> shift).wrapping_add(init[c]);
                        }
                    }
                    for j in 0..OUT {
                        let start = (i * OUT * run + tile * OUT + j) * nr + first;
                        to[start..start + LANES].copy_from_slice(&lines[j]);
                    }
                }
            }
        }
    }
}

/// The first `LANES` elements, which there are.
#[inline(always)]
fn lanes<const LANES: usize>(from: &[i32]) -> &[i32; LANES] {
    match from.first_chunk() {
        Some(lanes) => lanes,
        None => &[0; LANES],
    }
}
