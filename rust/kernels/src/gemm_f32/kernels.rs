//! The kernels of this family: one entry per instruction set.

use super::micro::{TileArgs, TileFn, tile, tile_table};
use crate::simd::{Portable, Simd, VectorIsa};

/// A float matrix-product kernel: its tile size, its microkernels, and the proof that they may run.
///
/// Weights are packed for one kernel ([`PackedB`](super::PackedB)) and used with the same one.
#[derive(Clone, Copy)]
pub struct GemmF32 {
    name: &'static str,
    isa: VectorIsa,
    /// Columns of a panel of B.
    nr: usize,
    tiles: &'static [&'static [TileFn]],
}

impl std::fmt::Debug for GemmF32 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

const PORTABLE_NR: usize = 8;

/// # Safety
/// As [`TileFn`].
unsafe fn tile_portable<const MR: usize, const NV: usize>(args: &TileArgs) {
    // SAFETY: the caller keeps the contract of `TileFn`.
    unsafe { tile::<Portable, MR, NV, PORTABLE_NR>(Portable, args) }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::*;
    use crate::cpu::{Avx2, Avx512};

    pub(super) const AVX2_NR: usize = 2 * Avx2::LANES;
    pub(super) const AVX512_NR: usize = 2 * Avx512::LANES;

    /// # Safety
    /// As [`TileFn`]; the CPU has AVX2 and FMA.
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) unsafe fn tile_avx2<const MR: usize, const NV: usize>(args: &TileArgs) {
        // SAFETY: the caller keeps the contract of `TileFn`; a kernel exists only with its token.
        unsafe { tile::<Avx2, MR, NV, AVX2_NR>(Avx2::assume(), args) }
    }

    /// # Safety
    /// As [`TileFn`]; the CPU has AVX-512.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
    pub(super) unsafe fn tile_avx512<const MR: usize, const NV: usize>(args: &TileArgs) {
        // SAFETY: the caller keeps the contract of `TileFn`; a kernel exists only with its token.
        unsafe { tile::<Avx512, MR, NV, AVX512_NR>(Avx512::assume(), args) }
    }
}

#[cfg(target_arch = "aarch64")]
mod a64 {
    use super::*;
    use crate::cpu::Neon;

    pub(super) const NEON_NR: usize = 4 * Neon::LANES;

    /// # Safety
    /// As [`TileFn`]; the CPU has Advanced SIMD.
    #[target_feature(enable = "neon")]
    pub(super) unsafe fn tile_neon<const MR: usize, const NV: usize>(args: &TileArgs) {
        // SAFETY: the caller keeps the contract of `TileFn`; a kernel exists only with its token.
        unsafe { tile::<Neon, MR, NV, NEON_NR>(Neon::assume(), args) }
    }
}

impl GemmF32 {
    /// The kernel of this instruction set.
    pub fn new(isa: VectorIsa) -> Self {
        match isa {
            VectorIsa::Portable => Self {
                name: "gemm_f32_baseline_4x8",
                isa,
                nr: PORTABLE_NR,
                tiles: tile_table!(tile_portable, [1 2], [1 2 3 4]),
            },
            #[cfg(target_arch = "x86_64")]
            VectorIsa::Avx2(_) => {
                use x86::tile_avx2;
                Self {
                    name: "gemm_f32_avx2_6x16",
                    isa,
                    nr: x86::AVX2_NR,
                    tiles: tile_table!(tile_avx2, [1 2], [1 2 3 4 5 6]),
                }
            }
            #[cfg(target_arch = "x86_64")]
            VectorIsa::Avx512(_) => {
                use x86::tile_avx512;
                Self {
                    name: "gemm_f32_avx512_14x32",
                    isa,
                    nr: x86::AVX512_NR,
                    tiles: tile_table!(tile_avx512, [1 2], [1 2 3 4 5 6 7 8 9 10 11 12 13 14]),
                }
            }
            #[cfg(target_arch = "aarch64")]
            VectorIsa::Neon(_) => {
                use a64::tile_neon;
                Self {
                    name: "gemm_f32_neon_6x16",
                    isa,
                    nr: a64::NEON_NR,
                    tiles: tile_table!(tile_neon, [1 2 3 4], [1 2 3 4 5 6]),
                }
            }
        }
    }

    /// The kernels of every instruction set that may run here.
    pub fn all_available() -> Vec<Self> {
        VectorIsa::all_available().into_iter().map(Self::new).collect()
    }

    /// For example `gemm_f32_avx512_14x32`: instruction set, rows and columns of a tile.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The instruction set.
    pub fn isa(&self) -> VectorIsa {
        self.isa
    }

    /// Rows of a tile.
    pub fn mr(&self) -> usize {
        self.tiles.len()
    }

    /// Columns of a tile, and of a panel of packed B.
    pub fn nr(&self) -> usize {
        self.nr
    }

    /// The microkernel for `rows <= mr` and `columns <= nr` (both at least 1).
    pub(crate) fn tile(&self, rows: usize, columns: usize) -> TileFn {
        self.tiles[rows - 1][columns.div_ceil(self.isa.lanes()) - 1]
    }
}
