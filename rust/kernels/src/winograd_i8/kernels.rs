//! The kernels of this family: one entry per instruction set.

use super::portable::tile_plain;
use crate::choice::choice;
use crate::cpu::IsaLevel;
use crate::gemm_f32::micro::tile_table;
use crate::gemm_i8::dot::TileFn;
use crate::simd::VectorIsa;

/// A kernel for Winograd's convolution of codes: its tile size, its microkernels, and the proof that they may run.
///
/// Weights are packed for one kernel ([`PackedWinogradI8`](super::PackedWinogradI8)) and used with the same one.
#[derive(Clone, Copy)]
pub struct WinogradI8 {
    name: &'static str,
    level: IsaLevel,
    isa: VectorIsa,
    lanes: usize,
    /// Pairs of channels per step of the inner loop.
    pub(super) steps: usize,
    tiles: &'static [&'static [TileFn]],
    /// See [`pays`](WinogradI8::pays).
    least_channels: usize,
    least_tiles: usize,
}

fn baseline() -> WinogradI8 {
    WinogradI8 {
        name: "winograd_i8_baseline_4x8",
        level: IsaLevel::Baseline,
        isa: VectorIsa::Portable,
        lanes: 4,
        steps: 1,
        tiles: tile_table!(tile_plain, [1 2], [1 2 3 4]),
        least_channels: usize::MAX,
        least_tiles: usize::MAX,
    }
}

#[cfg(target_arch = "x86_64")]
fn of_architecture() -> Vec<WinogradI8> {
    use super::x86::{madd_128, madd_256, madd_512, vnni_256, vnni_512};
    use crate::cpu::{Avx2, Avx512, Avx512Vnni, AvxVnni};
    // SSE2 is part of x86-64, so this one needs no proof.
    let mut all = vec![WinogradI8 {
        name: "winograd_i8_baseline_sse2_4x8",
        level: IsaLevel::Baseline,
        isa: VectorIsa::Portable,
        lanes: 4,
        steps: 4,
        tiles: tile_table!(madd_128, [1 2], [1 2 3 4]),
        least_channels: 16,
        least_tiles: 12,
    }];
    all.extend(Avx2::detect().map(|token| WinogradI8 {
        name: "winograd_i8_avx2_6x16",
        level: Avx2::LEVEL,
        isa: VectorIsa::Avx2(token),
        lanes: 8,
        steps: 1,
        tiles: tile_table!(madd_256, [1 2], [1 2 3 4 5 6]),
        least_channels: 16,
        least_tiles: 12,
    }));
    all.extend(AvxVnni::detect().map(|token| WinogradI8 {
        name: "winograd_i8_avxvnni_6x16",
        level: AvxVnni::LEVEL,
        isa: VectorIsa::Avx2(token.avx2()),
        lanes: 8,
        steps: 1,
        tiles: tile_table!(vnni_256, [1 2], [1 2 3 4 5 6]),
        least_channels: 48,
        least_tiles: 36,
    }));
    all.extend(Avx512::detect().map(|token| WinogradI8 {
        name: "winograd_i8_avx512_14x32",
        level: Avx512::LEVEL,
        isa: VectorIsa::Avx512(token),
        lanes: 16,
        steps: 1,
        tiles: tile_table!(madd_512, [1 2], [1 2 3 4 5 6 7 8 9 10 11 12 13 14]),
        least_channels: 16,
        least_tiles: 12,
    }));
    all.extend(Avx512Vnni::detect().map(|token| WinogradI8 {
        name: "winograd_i8_avx512vnni_14x32",
        level: Avx512Vnni::LEVEL,
        isa: VectorIsa::Avx512(token.avx512()),
        lanes: 16,
        steps: 1,
        tiles: tile_table!(vnni_512, [1 2], [1 2 3 4 5 6 7 8 9 10 11 12 13 14]),
        least_channels: 48,
        least_tiles: 36,
    }));
    all
}

#[cfg(target_arch = "aarch64")]
fn of_architecture() -> Vec<WinogradI8> {
    Vec::new()
}

choice!(
    WinogradI8,
    name: "For example `winograd_i8_avx2_6x16`: instruction set, rows and columns of a tile of the products.",
    isa: "The instruction set of the transformations and epilogues."
);

impl WinogradI8 {
    /// Whether this is faster than the direct sum with the int8 instructions of the same level, as measured: there must be
    /// enough input channels to pay for the transformations, and enough tiles of 4 x 4 outputs for weights that take
    /// eight times as much memory. Never without vectors.
    pub fn pays(&self, in_channels: usize, tiles: usize) -> bool {
        in_channels >= self.least_channels && tiles >= self.least_tiles
    }

    /// Rows of a tile of the products.
    pub(super) fn mr(&self) -> usize {
        self.tiles.len()
    }

    /// Columns of a tile, and of a panel of packed weights.
    pub(super) fn nr(&self) -> usize {
        2 * self.lanes
    }

    /// Pairs of channels that the inner loop takes for `channels`.
    pub(super) fn pairs(&self, channels: usize) -> usize {
        channels.div_ceil(2 * self.steps) * self.steps
    }

    /// The microkernel for `rows <= mr` and `columns <= nr` (both at least 1).
    pub(super) fn tile(&self, rows: usize, columns: usize) -> TileFn {
        self.tiles[rows - 1][columns.div_ceil(self.lanes) - 1]
    }
}
