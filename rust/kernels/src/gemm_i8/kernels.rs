//! The kernels of this family: one entry per instruction set.

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
use super::dot::fill_wide;
use super::dot::{CopyFn, CopyRowsFn, Dot, FillFn, TileFn, fill_bytes};
use super::portable;
use crate::choice::choice;
use crate::cpu::IsaLevel;
use crate::gemm_f32::micro::tile_table;
use crate::simd::VectorIsa;

/// Shape of the operands of a kernel.
#[derive(Clone, Copy, Debug)]
pub(super) struct Geometry {
    /// Columns of a vector.
    pub(super) lanes: usize,
    /// Consecutive `k` of a column that lie side by side.
    pub(super) group: usize,
    /// Bytes of an element of packed A.
    pub(super) a_bytes: usize,
    /// Groups per step of the inner loop.
    pub(super) steps: usize,
    /// What packing adds to the codes of A.
    pub(super) a_shift: i32,
    /// Vectors of a panel.
    pub(super) panel_vectors: usize,
    /// Rows whose groups alternate in packed A.
    pub(super) row_unit: usize,
}

impl Geometry {
    pub(super) const fn of<D: Dot>(panel_vectors: usize, row_unit: usize) -> Self {
        Self {
            lanes: D::LANES,
            group: D::GROUP,
            a_bytes: D::A_BYTES,
            steps: D::STEPS,
            a_shift: D::A_SHIFT,
            panel_vectors,
            row_unit,
        }
    }
}

/// An int8 matrix-product kernel: its tile size, its microkernels, and the proof that they may run.
///
/// Weights are packed for one kernel ([`PackedI8`](super::PackedI8)) and used with the same one.
#[derive(Clone, Copy)]
pub struct GemmI8 {
    name: &'static str,
    level: IsaLevel,
    isa: VectorIsa,
    pub(super) geometry: Geometry,
    tiles: &'static [&'static [TileFn]],
    /// Tiles of few rows over several panels, for products that are bound by memory: `[rows - 1]`.
    wide: &'static [TileFn],
    pub(super) wide_panels: usize,
    pub(super) copy: CopyFn,
    /// Copies many rows at once, where that is worth it.
    pub(super) copy_rows: Option<CopyRowsFn>,
    pub(super) fill: FillFn,
}

fn baseline() -> GemmI8 {
    use portable::tile_fn;
    GemmI8 {
        name: "gemm_i8_baseline_4x8",
        level: IsaLevel::Baseline,
        isa: VectorIsa::Portable,
        geometry: portable::GEOMETRY,
        tiles: tile_table!(tile_fn, [1 2], [1 2 3 4]),
        wide: &[tile_fn::<1, 8>],
        wide_panels: 4,
        copy: portable::copy,
        copy_rows: None,
        fill: fill_bytes::<0>,
    }
}

#[cfg(target_arch = "x86_64")]
fn of_architecture() -> Vec<GemmI8> {
    use super::{x86_vnni, x86_wide};
    use crate::cpu::{Avx2, Avx512, Avx512Vnni, AvxVnni};
    use x86_vnni::{tile_256 as vnni_256, tile_512 as vnni_512};
    use x86_wide::{tile_128 as wide_128, tile_256 as wide_256, tile_512 as wide_512};
    // SSE2 is part of x86-64, so this one needs no proof.
    let mut all = vec![GemmI8 {
        name: "gemm_i8_baseline_sse2_4x8",
        level: IsaLevel::Baseline,
        isa: VectorIsa::Portable,
        geometry: x86_wide::GEOMETRY_128,
        tiles: tile_table!(wide_128, [1 2], [1 2 3 4]),
        wide: &[wide_128::<1, 8>],
        wide_panels: 4,
        copy: x86_wide::copy_128,
        copy_rows: None,
        fill: fill_wide,
    }];
    all.extend(Avx2::detect().map(|token| GemmI8 {
        name: "gemm_i8_avx2_6x16",
        level: Avx2::LEVEL,
        isa: VectorIsa::Avx2(token),
        geometry: x86_wide::GEOMETRY_256,
        tiles: tile_table!(wide_256, [1 2], [1 2 3 4 5 6]),
        wide: &[wide_256::<1, 8>],
        wide_panels: 4,
        copy: x86_wide::copy_256,
        copy_rows: None,
        fill: fill_wide,
    }));
    all.extend(AvxVnni::detect().map(|token| GemmI8 {
        name: "gemm_i8_avxvnni_6x16",
        level: AvxVnni::LEVEL,
        isa: VectorIsa::Avx2(token.avx2()),
        geometry: x86_vnni::GEOMETRY_256,
        tiles: tile_table!(vnni_256, [1 2], [1 2 3 4 5 6]),
        wide: &[vnni_256::<1, 8>],
        wide_panels: 4,
        copy: x86_vnni::copy_256,
        copy_rows: None,
        fill: fill_bytes::<0x80>,
    }));
    all.extend(Avx512::detect().map(|token| GemmI8 {
        name: "gemm_i8_avx512_14x32",
        level: Avx512::LEVEL,
        isa: VectorIsa::Avx512(token),
        geometry: x86_wide::GEOMETRY_512,
        tiles: tile_table!(wide_512, [1 2], [1 2 3 4 5 6 7 8 9 10 11 12 13 14]),
        wide: &[wide_512::<1, 8>, wide_512::<2, 8>],
        wide_panels: 4,
        copy: x86_wide::copy_512,
        copy_rows: None,
        fill: fill_wide,
    }));
    all.extend(Avx512Vnni::detect().map(|token| GemmI8 {
        name: "gemm_i8_avx512vnni_14x32",
        level: Avx512Vnni::LEVEL,
        isa: VectorIsa::Avx512(token.avx512()),
        geometry: x86_vnni::GEOMETRY_512,
        tiles: tile_table!(vnni_512, [1 2], [1 2 3 4 5 6 7 8 9 10 11 12 13 14]),
        wide: &[vnni_512::<1, 8>, vnni_512::<2, 8>, vnni_512::<3, 8>],
        wide_panels: 4,
        copy: x86_vnni::copy_512,
        copy_rows: Some(x86_vnni::copy_rows_512),
        fill: fill_bytes::<0x80>,
    }));
    all
}

#[cfg(target_arch = "aarch64")]
fn of_architecture() -> Vec<GemmI8> {
    use super::a64::{self, tile_sdot, tile_smmla, tile_wide};
    use crate::cpu::{Neon, NeonDotprod, NeonI8mm};
    let mut all = Vec::new();
    all.extend(Neon::detect().map(|token| GemmI8 {
        name: "gemm_i8_neon_4x16",
        level: Neon::LEVEL,
        isa: VectorIsa::Neon(token),
        geometry: a64::GEOMETRY_WIDE,
        tiles: tile_table!(tile_wide, [1 2], [1 2 3 4]),
        wide: &[tile_wide::<1, 4>],
        wide_panels: 2,
        copy: a64::copy_wide_fn,
        copy_rows: None,
        fill: fill_wide,
    }));
    all.extend(NeonDotprod::detect().map(|token| GemmI8 {
        name: "gemm_i8_dotprod_5x16",
        level: NeonDotprod::LEVEL,
        isa: VectorIsa::Neon(token.neon()),
        geometry: a64::GEOMETRY_SDOT,
        tiles: tile_table!(tile_sdot, [1 2 3 4], [1 2 3 4 5]),
        wide: &[tile_sdot::<1, 16>],
        wide_panels: 4,
        copy: a64::copy_sdot,
        copy_rows: None,
        fill: fill_bytes::<0>,
    }));
    all.extend(NeonI8mm::detect().map(|token| GemmI8 {
        name: "gemm_i8_i8mm_8x8",
        level: NeonI8mm::LEVEL,
        isa: VectorIsa::Neon(token.neon()),
        geometry: a64::GEOMETRY_SMMLA,
        tiles: tile_table!(tile_smmla, [1 2 3 4], [1 2 3 4 5 6 7 8]),
        wide: &[tile_smmla::<1, 16>],
        wide_panels: 4,
        copy: a64::copy_smmla,
        copy_rows: None,
        fill: a64::fill_smmla,
    }));
    all
}

choice!(
    GemmI8,
    name: "For example `gemm_i8_avx512vnni_14x32`: instruction set, rows and columns of a tile.",
    isa: "The instruction set of the epilogues."
);

impl GemmI8 {
    /// Rows of a tile.
    pub fn mr(&self) -> usize {
        self.tiles.len()
    }

    /// Columns of a tile, and of a panel of packed weights.
    pub fn nr(&self) -> usize {
        self.geometry.lanes * self.geometry.panel_vectors
    }

    /// `k` rounded up to what the inner loop takes, in groups.
    pub(super) fn groups(&self, k: usize) -> usize {
        k.div_ceil(self.geometry.group * self.geometry.steps) * self.geometry.steps
    }

    /// The microkernel for `rows <= mr` and `columns <= nr` (both at least 1).
    pub(super) fn tile(&self, rows: usize, columns: usize) -> TileFn {
        self.tiles[rows - 1][columns.div_ceil(self.geometry.lanes) - 1]
    }

    /// The microkernel for so many rows and [`wide_panels`](Self::wide_panels) whole panels, if there is one.
    pub(super) fn wide_tile(&self, rows: usize) -> Option<TileFn> {
        self.wide.get(rows - 1).copied()
    }
}
