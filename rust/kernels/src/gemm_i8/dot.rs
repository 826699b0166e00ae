//! What an instruction set provides for int8 products, and the microkernel written once over it.

#![allow(
    clippy::needless_range_loop,
    reason = "counted loops over register tiles are what the compiler unrolls"
)]

/// Bytes of packed A per row and chunk. A line of a chunk is this long plus [`LINE_GAP`]; the distance between lines is
/// a constant, so that all rows of a tile are offsets of one register.
pub(crate) const CHUNK: usize = 512;

/// Bytes between the lines of a chunk, so that rows spread over the sets of the cache.
pub(crate) const LINE_GAP: usize = 64;

/// Distance between the lines of a chunk in bytes.
pub(crate) const LINE: usize = CHUNK + LINE_GAP;

/// Integer dot products of an instruction set.
///
/// B holds groups of [`GROUP`](Self::GROUP) consecutive `k` of one column, `[k / GROUP][nr][GROUP]`; a vector of it
/// covers [`LANES`](Self::LANES) columns. A is packed by [`copy`](Self::copy).
pub(crate) trait Dot: Copy {
    /// Columns of an accumulator vector.
    const LANES: usize;
    /// Consecutive `k` of a column that lie side by side.
    const GROUP: usize;
    /// Bytes of an element of packed A: 1, or 2 where it is widened.
    const A_BYTES: usize;
    /// Bytes of an element of B: 1, or 2 for products of 16-bit operands.
    const B_BYTES: usize = 1;
    /// Groups per load of A.
    const STEPS: usize = 1;
    /// What packing adds to each code of A: 128 where the instruction wants an unsigned operand.
    const A_SHIFT: i32;
    /// `LANES` sums.
    type I: Copy;
    /// `LANES` groups of B.
    type B: Copy;
    /// `STEPS` groups of a row of A, or where to find them.
    type A: Copy;

    /// `LANES` values.
    ///
    /// # Safety
    /// `from` must be readable for `LANES` values.
    unsafe fn load_i32(self, from: *const i32) -> Self::I;
    /// Stores `LANES` values.
    ///
    /// # Safety
    /// `to` must be writable for `LANES` values.
    unsafe fn store_i32(self, to: *mut i32, x: Self::I);
    /// `LANES` groups of B.
    ///
    /// # Safety
    /// `from` must be readable for `LANES * GROUP * B_BYTES` bytes.
    unsafe fn load_b(self, from: *const i8) -> Self::B;
    /// `STEPS` groups of packed A.
    ///
    /// # Safety
    /// `from` must be readable for `STEPS * GROUP * A_BYTES` bytes as long as the value is used.
    unsafe fn load_a(self, from: *const u8) -> Self::A;
    /// Asks for a line of weights that will be read soon, if that pays.
    #[inline(always)]
    fn prefetch(self, ahead: *const i8) {
        let _ = ahead;
    }
    /// `acc[j] += sum over g of a[STEP * GROUP + g] * b[j * GROUP + g]`, exact modulo 2^32, for every operand.
    ///
    /// # Safety
    /// As [`load_a`](Self::load_a) for the memory behind `a`.
    unsafe fn dot<const STEP: usize>(self, acc: Self::I, a: Self::A, b: Self::B) -> Self::I;
}

/// One call of a microkernel.
pub(crate) struct TileArgs {
    /// First chunk of the tile's first row.
    pub(crate) a: *const u8,
    /// Bytes between chunks.
    pub(crate) chunk_pitch: usize,
    /// Groups of `k`, a multiple of the kernel's `STEPS`.
    pub(crate) groups: usize,
    /// The panel of B.
    pub(crate) b: *const i8,
    /// Bytes between panels.
    pub(crate) panel_pitch: usize,
    /// Where the sums start: one value per column.
    pub(crate) init: *const i32,
    /// The sums, row after row.
    pub(crate) out: *mut i32,
    /// Elements between rows of `out`.
    pub(crate) out_pitch: usize,
}

/// A microkernel for one tile size.
///
/// # Safety
/// The CPU has the instructions. `a` is readable for all chunks and rows, `b` for `groups` groups of every column of
/// the panels, `init` and every row of `out` for as many values as the tile has columns, rounded up to vectors.
pub(crate) type TileFn = unsafe fn(&TileArgs);

/// Bytes that weights are fetched ahead of their use: the hardware alone starts anew at each page.
const AHEAD: usize = 2048;

/// One group of `k` for the whole tile.
///
/// # Safety
/// As [`TileFn`].
#[inline(always)]
unsafe fn step<D: Dot, const MR: usize, const NT: usize, const NVP: usize, const STEP: usize>(
    d: D,
    acc: &mut [[D::I; NT]; MR],
    a: &[D::A; MR],
    b: *const i8,
    panel_pitch: usize,
) {
    // SAFETY: the caller vouches for the panels and for the rows of A.
    unsafe {
        let vector = D::LANES * D::GROUP * D::B_BYTES;
        let b = b.add(STEP * NVP * vector);
        let mut columns = [d.load_b(b); NT];
        for v in 0..NT {
            let at = v / NVP * panel_pitch + v % NVP * vector;
            d.prefetch(b.wrapping_add(at + AHEAD));
            columns[v] = d.load_b(b.add(at));
        }
        for i in 0..MR {
            for v in 0..NT {
                acc[i][v] = d.dot::<STEP>(acc[i][v], a[i], columns[v]);
            }
        }
    }
}

/// The microkernel: `MR` rows and `NT` vectors of columns, out of panels of `NVP` vectors.
///
/// # Safety
/// As [`TileFn`].
#[inline(always)]
pub(crate) unsafe fn tile<D: Dot, const MR: usize, const NT: usize, const NVP: usize>(d: D, args: &TileArgs) {
    let group_bytes = D::GROUP * D::A_BYTES;
    // SAFETY: the caller vouches for all the memory that the arguments describe; STEPS divides `groups` and the groups
    // of a chunk.
    unsafe {
        let mut acc = [[d.load_i32(args.init); NT]; MR];
        for v in 1..NT {
            let init = d.load_i32(args.init.add(v * D::LANES));
            for row in acc.iter_mut() {
                row[v] = init;
            }
        }
        let mut b = args.b;
        let mut chunk = args.a;
        let mut left = args.groups;
        while left > 0 {
            let groups = left.min(CHUNK / group_bytes);
            left -= groups;
            let mut from = chunk;
            chunk = chunk.add(args.chunk_pitch);
            for _ in 0..groups / D::STEPS {
                let mut a = [d.load_a(from); MR];
                for i in 1..MR {
                    a[i] = d.load_a(from.add(i * LINE));
                }
                step::<D, MR, NT, NVP, 0>(d, &mut acc, &a, b, args.panel_pitch);
                if D::STEPS > 1 {
                    step::<D, MR, NT, NVP, 1>(d, &mut acc, &a, b, args.panel_pitch);
                }
                if D::STEPS > 2 {
                    step::<D, MR, NT, NVP, 2>(d, &mut acc, &a, b, args.panel_pitch);
                    step::<D, MR, NT, NVP, 3>(d, &mut acc, &a, b, args.panel_pitch);
                }
                if D::STEPS > 4 {
                    step::<D, MR, NT, NVP, 4>(d, &mut acc, &a, b, args.panel_pitch);
                    step::<D, MR, NT, NVP, 5>(d, &mut acc, &a, b, args.panel_pitch);
                    step::<D, MR, NT, NVP, 6>(d, &mut acc, &a, b, args.panel_pitch);
                    step::<D, MR, NT, NVP, 7>(d, &mut acc, &a, b, args.panel_pitch);
                }
                from = from.add(D::STEPS * group_bytes);
                b = b.add(D::STEPS * NVP * D::LANES * D::GROUP * D::B_BYTES);
            }
        }
        for i in 0..MR {
            for v in 0..NT {
                d.store_i32(args.out.add(i * args.out_pitch + v * D::LANES), acc[i][v]);
            }
        }
    }
}

/// Copies `len` codes to the place of `k = at` of a line of packed A.
///
/// # Safety
/// `from` must be readable for `len` codes, and the line must have room for them in the chunk.
pub(crate) type CopyFn = unsafe fn(line: *mut u8, at: usize, from: *const i8, len: usize);

/// Rows of codes to be copied to lines of packed A: line `i` takes `rows` rows, `row_stride` apart from `from + i *
/// from_step` on, one behind the other.
#[cfg_attr(
    not(target_arch = "x86_64"),
    allow(dead_code, reason = "only x86-64 has a kernel that copies rows")
)]
pub(crate) struct CopyRows {
    /// The place of the first row in the first line.
    pub(crate) to: *mut u8,
    pub(crate) lines: usize,
    pub(crate) from: *const i8,
    pub(crate) from_step: usize,
    pub(crate) rows: usize,
    pub(crate) row_stride: usize,
    /// Codes of a row.
    pub(crate) len: usize,
}

/// Copies rows to lines that are [`LINE`] apart. Up to 63 bytes behind each row are overwritten with anything.
///
/// # Safety
/// Every row must be readable for `len` codes, and writable at its place for `len` rounded up to 64 bytes.
pub(crate) type CopyRowsFn = unsafe fn(&CopyRows);

/// Sets `len` codes from the place of `k = at` of a line of packed A to one value.
///
/// # Safety
/// The line must have room for them in the chunk.
pub(crate) type FillFn = unsafe fn(line: *mut u8, at: usize, value: i8, len: usize);

/// Packing that keeps bytes (`FLIP = 0`) or adds 128 to them (`FLIP = 0x80`).
///
/// # Safety
/// As [`CopyFn`].
#[inline(always)]
pub(crate) unsafe fn copy_bytes<const FLIP: u8>(line: *mut u8, at: usize, from: *const i8, len: usize) {
    for i in 0..len {
        // SAFETY: both ranges are the caller's promise.
        unsafe { *line.add(at + i) = *from.add(i) as u8 ^ FLIP };
    }
}

/// Packing that widens to 16 bits.
///
/// # Safety
/// As [`CopyFn`].
#[inline(always)]
pub(crate) unsafe fn copy_wide(line: *mut u8, at: usize, from: *const i8, len: usize) {
    let line = line.cast::<i16>();
    for i in 0..len {
        // SAFETY: both ranges are the caller's promise; the line may be unaligned.
        unsafe { line.add(at + i).write_unaligned(i16::from(*from.add(i))) };
    }
}

/// [`FillFn`] of [`copy_bytes`].
///
/// # Safety
/// As [`FillFn`].
pub(crate) unsafe fn fill_bytes<const FLIP: u8>(line: *mut u8, at: usize, value: i8, len: usize) {
    // SAFETY: the range is the caller's promise.
    unsafe { line.add(at).write_bytes(value as u8 ^ FLIP, len) };
}

/// [`FillFn`] of [`copy_wide`].
///
/// # Safety
/// As [`FillFn`].
pub(crate) unsafe fn fill_wide(line: *mut u8, at: usize, value: i8, len: usize) {
    for i in 0..len {
        // SAFETY: the range is the caller's promise; the line may be unaligned.
        unsafe { line.cast::<i16>().add(at + i).write_unaligned(i16::from(value)) };
    }
}
