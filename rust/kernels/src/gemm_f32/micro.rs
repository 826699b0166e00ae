//! The microkernel: a tile of `MR` rows and `NV` vectors of columns, written once for every instruction set.

#![allow(
    clippy::needless_range_loop,
    reason = "counted loops over register tiles are what the compiler unrolls"
)]

use crate::simd::Simd;

/// Elements between rows of a packed tile of A. A constant, so that the addresses of all rows are offsets of one
/// register; not a multiple of a power of two beyond 16, so that the rows spread over the sets of the cache.
pub(crate) const A_STRIDE: usize = K_BLOCK + 16;

/// Most products summed into a tile before it is stored.
pub(crate) const K_BLOCK: usize = 256;

/// The epilogue steps that run in registers, with absent ones as null pointers.
#[derive(Clone, Copy)]
pub(crate) struct TileEpilogue {
    pub(crate) scale: *const f32,
    pub(crate) bias: *const f32,
    pub(crate) clamp: Option<(f32, f32)>,
    pub(crate) residual: *const f32,
    pub(crate) residual_stride: usize,
    pub(crate) then_clamp: Option<(f32, f32)>,
}

/// One call of a microkernel.
pub(crate) struct TileArgs {
    /// Packed rows of A: element `(i, p)` at `a[i * A_STRIDE + p]`.
    pub(crate) a: *const f32,
    /// A panel of B: element `(p, j)` at `b[p * nr + j]`.
    pub(crate) b: *const f32,
    /// Products to sum.
    pub(crate) k: usize,
    /// The tile of the output: element `(i, j)` at `c[i * c_stride + j]`.
    pub(crate) c: *mut f32,
    pub(crate) c_stride: usize,
    /// Valid columns: more than `(NV - 1) * LANES`, at most `NV * LANES`.
    pub(crate) columns: usize,
    /// Whether the sum starts from what the tile holds.
    pub(crate) accumulate: bool,
    /// The last step; `None` while further blocks of K follow.
    pub(crate) epilogue: Option<TileEpilogue>,
}

/// A microkernel for one tile size.
///
/// # Safety
/// The CPU has the instructions. `a` is readable for `MR` rows, `b` for `k` rows of the panel width, `c` readable and
/// writable for `MR` rows of `columns`; the vectors of the epilogue are readable for `columns`.
pub(crate) type TileFn = unsafe fn(&TileArgs);

/// Loads the `v`-th vector of a row of `columns` values.
///
/// # Safety
/// `from` must be valid for reading `columns` values.
#[inline(always)]
pub(crate) unsafe fn load_columns<S: Simd>(s: S, from: *const f32, v: usize, columns: usize) -> S::F {
    let rest = columns - v * S::LANES;
    // SAFETY: within the `columns` values that the caller vouches for.
    unsafe {
        let from = from.add(v * S::LANES);
        if rest >= S::LANES { s.load(from) } else { s.load_partial(from, rest) }
    }
}

/// The microkernel.
///
/// Every element is the sum over `p` in ascending order, so it does not depend on the tile it lies in.
///
/// # Safety
/// As [`TileFn`], for this `MR`, for `NV` vectors of `S` and panels of `NR` columns.
#[inline(always)]
pub(crate) unsafe fn tile<S: Simd, const MR: usize, const NV: usize, const NR: usize>(s: S, args: &TileArgs) {
    let columns = args.columns;
    let mut acc = [[s.splat(0.0); NV]; MR];
    // SAFETY: the caller vouches for all the memory that the arguments describe.
    unsafe {
        if args.accumulate {
            for i in 0..MR {
                for v in 0..NV {
                    acc[i][v] = load_columns(s, args.c.add(i * args.c_stride), v, columns);
                }
            }
        }
        let (mut a, mut b) = (args.a, args.b);
        for _ in 0..args.k {
            let mut row = [s.splat(0.0); NV];
            for v in 0..NV {
                row[v] = s.load(b.add(v * S::LANES));
            }
            for i in 0..MR {
                let x = s.splat(*a.add(i * A_STRIDE));
                for v in 0..NV {
                    acc[i][v] = s.fma(x, row[v], acc[i][v]);
                }
            }
            a = a.add(1);
            b = b.add(NR);
        }
        if let Some(epilogue) = &args.epilogue {
            finish(s, &mut acc, epilogue, columns);
        }
        for i in 0..MR {
            store_columns(s, args.c.add(i * args.c_stride), &acc[i], columns);
        }
    }
}

/// Stores a row of `columns` values.
///
/// # Safety
/// `to` must be valid for writing `columns` values, more than `(NV - 1) * LANES`.
#[inline(always)]
pub(crate) unsafe fn store_columns<S: Simd, const NV: usize>(
    s: S,
    to: *mut f32,
    row: &[S::F; NV],
    columns: usize,
) {
    for v in 0..NV {
        let rest = columns - v * S::LANES;
        // SAFETY: within the `columns` values that the caller vouches for.
        unsafe {
            let to = to.add(v * S::LANES);
            if rest >= S::LANES { s.store(to, row[v]) } else { s.store_partial(to, rest, row[v]) }
        }
    }
}

/// Applies the steps that run in registers.
///
/// # Safety
/// The vectors of the epilogue must be readable for `columns` values, the residual for `MR` such rows.
#[inline(always)]
pub(crate) unsafe fn finish<S: Simd, const MR: usize, const NV: usize>(
    s: S,
    acc: &mut [[S::F; NV]; MR],
    epilogue: &TileEpilogue,
    columns: usize,
) {
    // SAFETY: the caller vouches for the vectors; null pointers are not read.
    unsafe {
        for v in 0..NV {
            if !epilogue.scale.is_null() {
                let scale = load_columns(s, epilogue.scale, v, columns);
                for row in acc.iter_mut() {
                    row[v] = s.mul(row[v], scale);
                }
            }
            if !epilogue.bias.is_null() {
                let bias = load_columns(s, epilogue.bias, v, columns);
                for row in acc.iter_mut() {
                    row[v] = s.add(row[v], bias);
                }
            }
        }
        if let Some(bounds) = epilogue.clamp {
            clamp(s, acc, bounds);
        }
        if !epilogue.residual.is_null() {
            for (i, row) in acc.iter_mut().enumerate() {
                for v in 0..NV {
                    let from = epilogue.residual.add(i * epilogue.residual_stride);
                    row[v] = s.add(row[v], load_columns(s, from, v, columns));
                }
            }
        }
        if let Some(bounds) = epilogue.then_clamp {
            clamp(s, acc, bounds);
        }
    }
}

#[inline(always)]
fn clamp<S: Simd, const MR: usize, const NV: usize>(s: S, acc: &mut [[S::F; NV]; MR], (lo, hi): (f32, f32)) {
    let (lo, hi) = (s.splat(lo), s.splat(hi));
    for row in acc.iter_mut() {
        for x in row.iter_mut() {
            *x = s.at_most(s.at_least(*x, lo), hi);
        }
    }
}

/// A table of microkernels, `[rows - 1][vectors - 1]`.
macro_rules! tile_table {
    ($tile:ident, $vectors:tt, [$($mr:literal)+]) => {
        &[$(tile_table!(@row $tile, $mr, $vectors)),+]
    };
    (@row $tile:ident, $mr:literal, [$($nv:literal)+]) => {
        &[$($tile::<$mr, $nv>),+]
    };
}
pub(crate) use tile_table;
