//! Four lanes in plain Rust: the fallback, and what Miri can run.

use super::Simd;

/// Token of the portable loops; every CPU can run them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Portable;

const LANES: usize = 4;

#[inline(always)]
fn map<A: Copy, B: Copy, R: Copy + Default>(
    a: [A; LANES],
    b: [B; LANES],
    f: impl Fn(A, B) -> R,
) -> [R; LANES] {
    let mut out = [R::default(); LANES];
    for lane in 0..LANES {
        out[lane] = f(a[lane], b[lane]);
    }
    out
}

impl Simd for Portable {
    const LANES: usize = LANES;
    type F = [f32; LANES];
    type I = [i32; LANES];
    type M = [bool; LANES];

    #[inline(always)]
    fn splat(self, x: f32) -> Self::F {
        [x; LANES]
    }
    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> Self::F {
        // SAFETY: the caller promises LANES readable values.
        unsafe { from.cast::<[f32; LANES]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32, x: Self::F) {
        // SAFETY: the caller promises LANES writable values.
        unsafe { to.cast::<[f32; LANES]>().write_unaligned(x) }
    }
    #[inline(always)]
    unsafe fn load_partial(self, from: *const f32, count: usize) -> Self::F {
        let mut x = [0.0; LANES];
        // SAFETY: the caller promises `count <= LANES` readable values.
        unsafe { std::ptr::copy_nonoverlapping(from, x.as_mut_ptr(), count) };
        x
    }
    #[inline(always)]
    unsafe fn store_partial(self, to: *mut f32, count: usize, x: Self::F) {
        // SAFETY: the caller promises `count <= LANES` writable values.
        unsafe { std::ptr::copy_nonoverlapping(x.as_ptr(), to, count) };
    }

    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        map(a, b, |a, b| a + b)
    }
    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        map(a, b, |a, b| a - b)
    }
    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        map(a, b, |a, b| a * b)
    }
    #[inline(always)]
    fn div(self, a: Self::F, b: Self::F) -> Self::F {
        map(a, b, |a, b| a / b)
    }
    /// Two roundings: a fused operation would be a library call per lane on such CPUs.
    #[inline(always)]
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        self.add(self.mul(a, b), c)
    }
    #[inline(always)]
    fn at_least(self, x: Self::F, bound: Self::F) -> Self::F {
        map(x, bound, |x, bound| if x < bound { bound } else { x })
    }
    #[inline(always)]
    fn at_most(self, x: Self::F, bound: Self::F) -> Self::F {
        map(x, bound, |x, bound| if x > bound { bound } else { x })
    }
    #[inline(always)]
    fn sqrt(self, a: Self::F) -> Self::F {
        a.map(f32::sqrt)
    }
    #[inline(always)]
    fn abs(self, a: Self::F) -> Self::F {
        a.map(f32::abs)
    }
    #[inline(always)]
    fn neg(self, a: Self::F) -> Self::F {
        a.map(|x| -x)
    }
    #[inline(always)]
    fn copysign(self, a: Self::F, sign: Self::F) -> Self::F {
        map(a, sign, f32::copysign)
    }
    #[inline(always)]
    fn floor(self, a: Self::F) -> Self::F {
        a.map(f32::floor)
    }
    #[inline(always)]
    fn ceil(self, a: Self::F) -> Self::F {
        a.map(f32::ceil)
    }
    #[inline(always)]
    fn round_even(self, a: Self::F) -> Self::F {
        a.map(f32::round_ties_even)
    }

    #[inline(always)]
    fn lt(self, a: Self::F, b: Self::F) -> Self::M {
        map(a, b, |a, b| a < b)
    }
    #[inline(always)]
    fn eq(self, a: Self::F, b: Self::F) -> Self::M {
        map(a, b, |a, b| a == b)
    }
    #[inline(always)]
    fn select(self, mask: Self::M, a: Self::F, b: Self::F) -> Self::F {
        let mut out = b;
        for lane in 0..LANES {
            if mask[lane] {
                out[lane] = a[lane];
            }
        }
        out
    }

    #[inline(always)]
    fn splat_i(self, x: i32) -> Self::I {
        [x; LANES]
    }
    #[inline(always)]
    fn bits(self, a: Self::F) -> Self::I {
        a.map(|x| x.to_bits() as i32)
    }
    #[inline(always)]
    fn as_float(self, a: Self::I) -> Self::F {
        a.map(|x| f32::from_bits(x as u32))
    }
    #[inline(always)]
    fn add_i(self, a: Self::I, b: Self::I) -> Self::I {
        map(a, b, i32::wrapping_add)
    }
    #[inline(always)]
    fn sub_i(self, a: Self::I, b: Self::I) -> Self::I {
        map(a, b, i32::wrapping_sub)
    }
    #[inline(always)]
    fn and_i(self, a: Self::I, b: Self::I) -> Self::I {
        map(a, b, |a, b| a & b)
    }
    #[inline(always)]
    fn shl_i<const BITS: u32>(self, a: Self::I) -> Self::I {
        a.map(|x| x << BITS)
    }
    #[inline(always)]
    fn shr_i<const BITS: u32>(self, a: Self::I) -> Self::I {
        a.map(|x| x >> BITS)
    }
    #[inline(always)]
    fn to_float(self, a: Self::I) -> Self::F {
        a.map(|x| x as f32)
    }
    #[inline(always)]
    fn to_int(self, a: Self::F) -> Self::I {
        a.map(|x| x.round_ties_even() as i32)
    }

    #[inline(always)]
    fn trunc_int(self, a: Self::F) -> Self::I {
        // The cast of Rust saturates, which takes ten instructions per lane.
        #[cfg(target_arch = "x86_64")]
        // SAFETY: SSE2 is part of x86-64; both types are four 32-bit lanes.
        unsafe {
            use std::arch::x86_64::{__m128, __m128i, _mm_cvttps_epi32};
            let truncated: __m128i = _mm_cvttps_epi32(std::mem::transmute::<Self::F, __m128>(a));
            std::mem::transmute::<__m128i, Self::I>(truncated)
        }
        #[cfg(not(target_arch = "x86_64"))]
        a.map(|x| x as i32)
    }
    #[inline(always)]
    unsafe fn load_i8(self, from: *const i8, count: usize) -> Self::I {
        // SAFETY: the caller vouches for `count <= LANES` bytes.
        std::array::from_fn(|lane| if lane < count { i32::from(unsafe { *from.add(lane) }) } else { 0 })
    }
    #[inline(always)]
    unsafe fn store_i8(self, to: *mut i8, count: usize, x: Self::I) {
        for (lane, &x) in x.iter().enumerate().take(count) {
            // SAFETY: the caller vouches for `count <= LANES` bytes.
            unsafe { *to.add(lane) = x as i8 };
        }
    }
}
