//! VNNI: four products of an unsigned and a signed byte per lane and instruction, without saturation.
//!
//! A is packed as `code + 128`; the sums start at `-128 * column sum` to make up for it.

use std::arch::x86_64::*;

use super::dot::{CopyRows, Dot, LINE, TileArgs, copy_bytes, tile};
use super::kernels::Geometry;
use super::x86_vectors::{broadcast_groups, vectors};

#[derive(Clone, Copy)]
struct Vnni512;

impl Dot for Vnni512 {
    vectors!(__m512i, 16, _mm512_loadu_si512, _mm512_storeu_si512);
    broadcast_groups!();
    const GROUP: usize = 4;
    const A_BYTES: usize = 1;
    const A_SHIFT: i32 = 128;

    #[inline(always)]
    fn prefetch(self, ahead: *const i8) {
        // SAFETY: a prefetch may name any address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(ahead) }
    }
    #[inline(always)]
    unsafe fn load_b(self, from: *const i8) -> Self::B {
        // SAFETY: as in `load_i32`.
        unsafe { _mm512_loadu_si512(from.cast()) }
    }
    #[inline(always)]
    unsafe fn dot<const STEP: usize>(self, acc: Self::I, a: Self::A, b: Self::B) -> Self::I {
        // SAFETY: as in `load_i32`.
        unsafe { _mm512_dpbusd_epi32(acc, _mm512_set1_epi32(a.read_unaligned()), b) }
    }
}

#[derive(Clone, Copy)]
struct Vnni256;

impl Dot for Vnni256 {
    vectors!(__m256i, 8, _mm256_loadu_si256, _mm256_storeu_si256);
    broadcast_groups!();
    const GROUP: usize = 4;
    const A_BYTES: usize = 1;
    const A_SHIFT: i32 = 128;

    #[inline(always)]
    unsafe fn load_b(self, from: *const i8) -> Self::B {
        // SAFETY: as in `load_i32`.
        unsafe { _mm256_loadu_si256(from.cast()) }
    }
    #[inline(always)]
    unsafe fn dot<const STEP: usize>(self, acc: Self::I, a: Self::A, b: Self::B) -> Self::I {
        // SAFETY: as in `load_i32`.
        unsafe { _mm256_dpbusd_avx_epi32(acc, _mm256_set1_epi32(a.read_unaligned()), b) }
    }
}

pub(super) const GEOMETRY_512: Geometry = Geometry::of::<Vnni512>(2, 1);
pub(super) const GEOMETRY_256: Geometry = Geometry::of::<Vnni256>(2, 1);

/// # Safety
/// As [`TileFn`](super::dot::TileFn); the CPU has AVX-512 VNNI.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
pub(super) unsafe fn tile_512<const MR: usize, const NT: usize>(args: &TileArgs) {
    // SAFETY: the caller keeps the contract of `TileFn`.
    unsafe { tile::<Vnni512, MR, NT, 2>(Vnni512, args) }
}

/// # Safety
/// As [`TileFn`](super::dot::TileFn); the CPU has AVX-VNNI.
#[target_feature(enable = "avxvnni,avx2,fma,f16c")]
pub(super) unsafe fn tile_256<const MR: usize, const NT: usize>(args: &TileArgs) {
    // SAFETY: the caller keeps the contract of `TileFn`.
    unsafe { tile::<Vnni256, MR, NT, 2>(Vnni256, args) }
}

/// # Safety
/// As [`CopyFn`](super::dot::CopyFn); the CPU has AVX-512.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
pub(super) unsafe fn copy_512(line: *mut u8, at: usize, from: *const i8, len: usize) {
    let flip = _mm512_set1_epi8(-128);
    let mut start = 0;
    while start < len {
        let mask = if len - start >= 64 { u64::MAX } else { (1 << (len - start)) - 1 };
        // SAFETY: masked lanes are not accessed; the others are the caller's promise.
        unsafe {
            let codes = _mm512_maskz_loadu_epi8(mask, from.add(start));
            _mm512_mask_storeu_epi8(line.add(at + start).cast(), mask, _mm512_xor_si512(codes, flip));
        }
        start += 64;
    }
}

/// # Safety
/// As [`CopyRowsFn`](super::dot::CopyRowsFn); the CPU has AVX-512.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
pub(super) unsafe fn copy_rows_512(args: &CopyRows) {
    let &CopyRows { to, lines, from, from_step, rows, row_stride, len } = args;
    let flip = _mm512_set1_epi8(-128);
    let (whole, tail) = (len / 64 * 64, len % 64);
    let mask = (1_u64 << tail) - 1;
    // SAFETY: `len` codes of each row are read (masked lanes are not accessed), and whole vectors written; both are
    // the caller's promise. Masked stores would be slow on some CPUs.
    unsafe {
        if len <= 16 {
            let (mask, flip) = (((1_u32 << len) - 1) as u16, _mm512_castsi512_si128(flip));
            for i in 0..lines {
                let (mut from, mut to) = (from.add(i * from_step), to.add(i * LINE));
                for _ in 0..rows {
                    let codes = _mm_maskz_loadu_epi8(mask, from);
                    _mm_storeu_si128(to.cast(), _mm_xor_si128(codes, flip));
                    from = from.wrapping_add(row_stride);
                    to = to.wrapping_add(len);
                }
            }
            return;
        }
        for i in 0..lines {
            let (mut from, mut to) = (from.add(i * from_step), to.add(i * LINE));
            for _ in 0..rows {
                let mut at = 0;
                while at < whole {
                    let codes = _mm512_loadu_si512(from.add(at).cast());
                    _mm512_storeu_si512(to.add(at).cast(), _mm512_xor_si512(codes, flip));
                    at += 64;
                }
                if tail > 0 {
                    let codes = _mm512_maskz_loadu_epi8(mask, from.add(whole));
                    _mm512_storeu_si512(to.add(whole).cast(), _mm512_xor_si512(codes, flip));
                }
                from = from.wrapping_add(row_stride);
                to = to.wrapping_add(len);
            }
        }
    }
}

/// # Safety
/// As [`CopyFn`](super::dot::CopyFn); the CPU has AVX2.
#[target_feature(enable = "avx2")]
pub(super) unsafe fn copy_256(line: *mut u8, at: usize, from: *const i8, len: usize) {
    // SAFETY: the caller keeps the contract.
    unsafe { copy_bytes::<0x80>(line, at, from, len) }
}
