//! The kernels of this family: one entry per instruction set.

use super::portable;
use crate::choice::choice;
use crate::cpu::IsaLevel;
use crate::gemm_f32::micro::{TileEpilogue, tile_table};
use crate::simd::VectorIsa;

/// Products of a row that are packed together.
pub(super) const K_BLOCK: usize = 512;

/// Elements between rows of packed A; see `A_STRIDE` of the float product.
pub(super) const A_STRIDE: usize = K_BLOCK + 32;

/// One call of a microkernel.
pub(super) struct TileArgs {
    /// Packed rows of A: element `(i, p)` at `a[i * A_STRIDE + p]`.
    pub(super) a: *const u16,
    /// A panel of B: element `(p, j)` at `b[(p / group * nr + j) * group + p % group]`.
    pub(super) b: *const u16,
    /// Groups of products to sum.
    pub(super) groups: usize,
    /// The tile of the output: element `(i, j)` at `c[i * c_stride + j]`.
    pub(super) c: *mut f32,
    pub(super) c_stride: usize,
    /// Valid columns: more than `(NV - 1) * LANES`, at most `NV * LANES`.
    pub(super) columns: usize,
    /// Whether the sum starts from what the tile holds.
    pub(super) accumulate: bool,
    /// The last step; `None` while further blocks of K follow.
    pub(super) epilogue: Option<TileEpilogue>,
}

/// A microkernel for one tile size.
///
/// # Safety
/// The CPU has the instructions. `a` is readable for `MR` rows, `b` for `groups` groups of the panel width, `c` readable
/// and writable for `MR` rows of `columns`; the vectors of the epilogue are readable for `columns`.
pub(super) type TileFn = unsafe fn(&TileArgs);

/// Rounds `f32` values to the 16-bit type of the kernel.
pub(super) type RoundFn = fn(&[f32], &mut [u16]);

/// A half-precision matrix-product kernel: its tile size, its microkernels, and the proof that they may run.
///
/// Weights are packed for one kernel ([`PackedHalf`](super::PackedHalf)) and used with the same one.
#[derive(Clone, Copy)]
pub struct GemmHalf {
    name: &'static str,
    format: &'static str,
    level: IsaLevel,
    isa: VectorIsa,
    /// Columns of a panel of B, and of a vector.
    nr: usize,
    lanes: usize,
    /// Consecutive `k` of a column that lie side by side.
    pub(super) group: usize,
    pub(super) round: RoundFn,
    tiles: &'static [&'static [TileFn]],
}

fn baseline() -> GemmHalf {
    use portable::tile_plain;
    GemmHalf {
        name: "gemm_half_baseline_4x8",
        format: "bfloat16",
        level: IsaLevel::Baseline,
        isa: VectorIsa::Portable,
        nr: portable::NR,
        lanes: portable::NR / 2,
        group: 2,
        round: portable::round_bf16,
        tiles: tile_table!(tile_plain, [1 2], [1 2 3 4]),
    }
}

#[cfg(target_arch = "x86_64")]
fn of_architecture() -> Vec<GemmHalf> {
    use super::x86::{NR, round_bf16, tile_bf16};
    use crate::cpu::Avx512Bf16;
    let entry = |token: Avx512Bf16| GemmHalf {
        name: "gemm_half_avx512bf16_14x32",
        format: "bfloat16",
        level: Avx512Bf16::LEVEL,
        isa: VectorIsa::Avx512(token.avx512()),
        nr: NR,
        lanes: NR / 2,
        group: 2,
        round: round_bf16,
        tiles: tile_table!(tile_bf16, [1 2], [1 2 3 4 5 6 7 8 9 10 11 12 13 14]),
    };
    Avx512Bf16::detect().map(entry).into_iter().collect()
}

#[cfg(target_arch = "aarch64")]
fn of_architecture() -> Vec<GemmHalf> {
    use super::a64::{NR, round_fp16, tile_fp16};
    use crate::cpu::NeonFp16;
    let entry = |token: NeonFp16| GemmHalf {
        name: "gemm_half_fp16_4x16",
        format: "float16",
        level: NeonFp16::LEVEL,
        isa: VectorIsa::Neon(token.neon()),
        nr: NR,
        lanes: NR / 2,
        group: 1,
        round: round_fp16,
        tiles: tile_table!(tile_fp16, [1 2], [1 2 3 4]),
    };
    NeonFp16::detect().map(entry).into_iter().collect()
}

choice!(
    GemmHalf,
    name: "For example `gemm_half_avx512bf16_14x32`: instruction set, rows and columns of a tile.",
    isa: "The instruction set of packing and epilogues."
);

impl GemmHalf {
    /// Whether the CPU has instructions for it: without them the product in `f32` is faster.
    pub fn is_native(&self) -> bool {
        self.level != IsaLevel::Baseline
    }

    /// What operands are rounded to: `bfloat16` or `float16`.
    pub fn format(&self) -> &'static str {
        self.format
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
    pub(super) fn tile(&self, rows: usize, columns: usize) -> TileFn {
        self.tiles[rows - 1][columns.div_ceil(self.lanes) - 1]
    }
}
