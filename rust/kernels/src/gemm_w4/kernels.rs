//! The kernels of this family: one entry per instruction set.

use super::micro::TileFn;
use super::portable;
use crate::choice::choice;
use crate::cpu::IsaLevel;
use crate::simd::VectorIsa;

/// A kernel for block-wise weights: its tile size, its microkernels, and the proof that they may run.
///
/// Weights are packed for one kernel ([`PackedBlocks`](super::PackedBlocks)) and used with the same one.
#[derive(Clone, Copy)]
pub struct GemmW4 {
    name: &'static str,
    level: IsaLevel,
    isa: VectorIsa,
    nr: usize,
    pub(super) wide_zero: i32,
    /// Tiles of one panel, `[rows - 1]`, for nibbles and for bytes.
    tiles: [&'static [TileFn]; 2],
}

/// Microkernels of `NT` vectors for nibbles and for bytes.
macro_rules! tiles {
    ($tile:ident, $nt:literal, [$($mr:literal)+]) => {
        [&[$($tile::<true, $mr, $nt>),+], &[$($tile::<false, $mr, $nt>),+]]
    };
}

fn baseline() -> GemmW4 {
    use portable::tile_plain;
    GemmW4 {
        name: "gemm_w4_baseline_2x8",
        level: IsaLevel::Baseline,
        isa: VectorIsa::Portable,
        nr: 8,
        wide_zero: portable::WIDE_ZERO,
        tiles: tiles!(tile_plain, 2, [1 2]),
    }
}

#[cfg(target_arch = "x86_64")]
fn of_architecture() -> Vec<GemmW4> {
    use super::x86::{WIDE_ZERO, tile_madd_256, tile_madd_512, tile_vnni_256, tile_vnni_512};
    use crate::cpu::{Avx2, Avx512, Avx512Vnni, AvxVnni};
    let mut all = Vec::new();
    all.extend(Avx2::detect().map(|token| GemmW4 {
        name: "gemm_w4_avx2_4x16",
        level: Avx2::LEVEL,
        isa: VectorIsa::Avx2(token),
        nr: 16,
        wide_zero: WIDE_ZERO,
        tiles: tiles!(tile_madd_256, 2, [1 2 3 4]),
    }));
    all.extend(AvxVnni::detect().map(|token| GemmW4 {
        name: "gemm_w4_avxvnni_4x16",
        level: AvxVnni::LEVEL,
        isa: VectorIsa::Avx2(token.avx2()),
        nr: 16,
        wide_zero: WIDE_ZERO,
        tiles: tiles!(tile_vnni_256, 2, [1 2 3 4]),
    }));
    all.extend(Avx512::detect().map(|token| GemmW4 {
        name: "gemm_w4_avx512_10x32",
        level: Avx512::LEVEL,
        isa: VectorIsa::Avx512(token),
        nr: 32,
        wide_zero: WIDE_ZERO,
        tiles: tiles!(tile_madd_512, 2, [1 2 3 4 5 6 7 8 9 10]),
    }));
    all.extend(Avx512Vnni::detect().map(|token| GemmW4 {
        name: "gemm_w4_avx512vnni_12x32",
        level: Avx512Vnni::LEVEL,
        isa: VectorIsa::Avx512(token.avx512()),
        nr: 32,
        wide_zero: WIDE_ZERO,
        tiles: tiles!(tile_vnni_512, 2, [1 2 3 4 5 6 7 8 9 10 11 12]),
    }));
    all
}

#[cfg(target_arch = "aarch64")]
fn of_architecture() -> Vec<GemmW4> {
    use super::a64::{WIDE_ZERO, tile_sdot, tile_wide};
    use crate::cpu::{Neon, NeonDotprod};
    let mut all = Vec::new();
    all.extend(Neon::detect().map(|token| GemmW4 {
        name: "gemm_w4_neon_2x16",
        level: Neon::LEVEL,
        isa: VectorIsa::Neon(token),
        nr: 16,
        wide_zero: WIDE_ZERO,
        tiles: tiles!(tile_wide, 4, [1 2]),
    }));
    all.extend(NeonDotprod::detect().map(|token| GemmW4 {
        name: "gemm_w4_dotprod_4x16",
        level: NeonDotprod::LEVEL,
        isa: VectorIsa::Neon(token.neon()),
        nr: 16,
        wide_zero: WIDE_ZERO,
        tiles: tiles!(tile_sdot, 4, [1 2 3 4]),
    }));
    all
}

choice!(
    GemmW4,
    name: "For example `gemm_w4_avx512vnni_12x32`: instruction set, rows and columns of a tile.",
    isa: "The instruction set of the epilogues."
);

impl GemmW4 {
    /// Rows of a tile.
    pub fn mr(&self) -> usize {
        self.tiles[0].len()
    }

    /// Columns of a tile, and of a panel of packed weights.
    pub fn nr(&self) -> usize {
        self.nr
    }

    pub(super) fn tile(&self, nibbles: bool, rows: usize) -> TileFn {
        self.tiles[usize::from(!nibbles)][rows - 1]
    }
}
