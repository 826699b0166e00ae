//! The microkernel, written once for every instruction set.

#![allow(
    clippy::needless_range_loop,
    reason = "counted loops over register tiles are what the compiler unrolls"
)]

use crate::simd::Simd;

/// `k` rounded up to this many elements within a block: two groups of four, the two nibbles of a byte.
pub(super) const K_UNIT: usize = 8;

/// Bytes that weights are fetched ahead of their use: the hardware alone starts anew at each page.
const AHEAD: usize = 1536;

/// Most vectors of a tile whose float sums stay in registers.
const KEPT: usize = 4;

/// Integer dot products of unsigned weights and signed activations.
///
/// A vector of codes holds a group of four `k` for each lane (column).
pub(super) trait BlockDot: Copy {
    /// The float vectors of the same number of lanes.
    type S: Simd;
    /// Codes of one group for each lane.
    type B: Copy;
    /// Eight activations, or where to find them.
    type A: Copy;
    /// What is added to a code of more than four bits in packed weights.
    const WIDE_ZERO: i32;

    /// The float vectors.
    fn simd(self) -> Self::S;
    /// `4 * LANES` bytes of codes.
    ///
    /// # Safety
    /// `from` must be readable for them.
    unsafe fn load(self, from: *const u8) -> Self::B;
    /// Asks for the line that will be read next of this stream, if that pays.
    #[inline(always)]
    fn prefetch(self, ahead: *const u8) {
        let _ = ahead;
    }
    /// The low nibbles.
    fn low(self, b: Self::B) -> Self::B;
    /// The high nibbles.
    fn high(self, b: Self::B) -> Self::B;
    /// Eight activations.
    ///
    /// # Safety
    /// `from` must be readable for eight codes as long as the value is used.
    unsafe fn load_a(self, from: *const i8) -> Self::A;
    /// `acc[j] += sum over g of a[4 * HALF + g] * b[4 * j + g]` for codes in `0..=15`.
    ///
    /// # Safety
    /// As [`load_a`](Self::load_a) for the memory behind `a`.
    unsafe fn dot_nibbles<const HALF: usize>(self, acc: I<Self>, a: Self::A, b: Self::B) -> I<Self>;
    /// The same for codes of any value, as [`WIDE_ZERO`](Self::WIDE_ZERO) makes them.
    ///
    /// # Safety
    /// As [`dot_nibbles`](Self::dot_nibbles).
    unsafe fn dot_bytes<const HALF: usize>(self, acc: I<Self>, a: Self::A, b: Self::B) -> I<Self>;
}

/// The integer vectors of an instruction set.
pub(super) type I<D> = <<D as BlockDot>::S as Simd>::I;

/// One call of a microkernel.
pub(super) struct TileArgs {
    /// The rows of activations, each of `blocks` padded blocks.
    pub(super) a: *const i8,
    pub(super) a_pitch: usize,
    /// Sums of the activations, `blocks` per row.
    pub(super) sums: *const i32,
    pub(super) blocks: usize,
    /// Units of [`K_UNIT`] in a block.
    pub(super) units: usize,
    /// The panel: for each block codes, scales and, if there are any, offsets.
    pub(super) b: *const u8,
    pub(super) has_offsets: bool,
    /// The zero point of the unsigned codes.
    pub(super) zero: i32,
    /// The sums, row after row.
    pub(super) out: *mut f32,
    pub(super) out_pitch: usize,
}

/// A microkernel for one tile size.
///
/// # Safety
/// The CPU has the instructions. `a` is readable for all padded blocks of each row, `sums` for `blocks` values of each
/// row, `b` for all records of the panel; `out` is writable for the whole tile.
pub(super) type TileFn = unsafe fn(&TileArgs);

/// `MR` rows and the `NT` vectors of a panel; codes are nibbles if `NIBBLES`.
///
/// Few rows leave room for the float sums in registers, and read the weights faster than memory gives them: a panel is
/// one stream, and the next panel continues it, so that the prefetcher of the CPU follows by itself. Fetching ahead
/// pays only where the products of several rows lie between two lines of a stream.
///
/// # Safety
/// As [`TileFn`].
#[inline(always)]
pub(super) unsafe fn tile<D: BlockDot, const NIBBLES: bool, const MR: usize, const NT: usize>(
    d: D,
    args: &TileArgs,
) {
    let s = d.simd();
    let lanes = <D::S as Simd>::LANES;
    let vector = 4 * lanes;
    let per_unit = if NIBBLES { NT * vector } else { 2 * NT * vector };
    let keep = MR * NT <= KEPT;
    let place = |v: usize| v * vector;
    // SAFETY: the caller vouches for all the memory that the arguments describe.
    unsafe {
        let mut kept = [[s.splat(0.0); NT]; MR];
        if !keep {
            for i in 0..MR {
                for v in 0..NT {
                    s.store(args.out.add(i * args.out_pitch + v * lanes), s.splat(0.0));
                }
            }
        }
        let mut b = args.b;
        let mut rows: [*const i8; MR] = std::array::from_fn(|i| args.a.add(i * args.a_pitch));
        for block in 0..args.blocks {
            let mut acc = [[s.splat_i(0); NT]; MR];
            // A row alone has its second groups of four summed apart: the sums of a chain wait for each other.
            let mut apart = [s.splat_i(0); NT];
            for i in 0..MR {
                let sum = *args.sums.add(i * args.blocks + block);
                acc[i] = [s.splat_i(sum.wrapping_mul(args.zero).wrapping_neg()); NT];
            }
            for _ in 0..args.units {
                let mut low = [d.load(b); NT];
                let mut high = low;
                for v in 0..NT {
                    if MR > 1 {
                        d.prefetch(b.wrapping_add(place(v) + AHEAD));
                        if !NIBBLES {
                            d.prefetch(b.wrapping_add(place(v) + AHEAD + NT * vector));
                        }
                    }
                    if NIBBLES {
                        let both = d.load(b.add(place(v)));
                        (low[v], high[v]) = (d.low(both), d.high(both));
                    } else {
                        low[v] = d.load(b.add(place(v)));
                        high[v] = d.load(b.add(place(v) + NT * vector));
                    }
                }
                b = b.add(per_unit);
                for i in 0..MR {
                    let a = d.load_a(rows[i]);
                    rows[i] = rows[i].add(K_UNIT);
                    for v in 0..NT {
                        acc[i][v] = dot::<D, NIBBLES, 0>(d, acc[i][v], a, low[v]);
                    }
                    for v in 0..NT {
                        let chain = if MR == 1 { &mut apart[v] } else { &mut acc[i][v] };
                        *chain = dot::<D, NIBBLES, 1>(d, *chain, a, high[v]);
                    }
                }
            }
            if MR == 1 {
                for v in 0..NT {
                    acc[0][v] = s.add_i(acc[0][v], apart[v]);
                }
            }
            // The scales are as wide as a vector of codes.
            for v in 0..NT {
                let scale = s.load(b.add(place(v)).cast());
                for i in 0..MR {
                    let term = s.mul(s.to_float(acc[i][v]), scale);
                    if keep {
                        kept[i][v] = s.add(kept[i][v], term);
                    } else {
                        let to = args.out.add(i * args.out_pitch + v * lanes);
                        s.store(to, s.add(s.load(to), term));
                    }
                }
            }
            b = b.add(NT * vector);
            if args.has_offsets {
                for v in 0..NT {
                    let offset = s.load(b.add(place(v)).cast());
                    for i in 0..MR {
                        let sum = s.splat(*args.sums.add(i * args.blocks + block) as f32);
                        let term = s.mul(sum, offset);
                        if keep {
                            kept[i][v] = s.add(kept[i][v], term);
                        } else {
                            let to = args.out.add(i * args.out_pitch + v * lanes);
                            s.store(to, s.add(s.load(to), term));
                        }
                    }
                }
                b = b.add(NT * vector);
            }
        }
        if keep {
            for i in 0..MR {
                for v in 0..NT {
                    s.store(args.out.add(i * args.out_pitch + v * lanes), kept[i][v]);
                }
            }
        }
    }
}

/// The product of one half of a unit.
///
/// # Safety
/// As [`BlockDot::dot_nibbles`].
#[inline(always)]
unsafe fn dot<D: BlockDot, const NIBBLES: bool, const HALF: usize>(
    d: D,
    acc: I<D>,
    a: D::A,
    b: D::B,
) -> I<D> {
    // SAFETY: the same contract.
    unsafe { if NIBBLES { d.dot_nibbles::<HALF>(acc, a, b) } else { d.dot_bytes::<HALF>(acc, a, b) } }
}
