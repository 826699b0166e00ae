//! What the x86 implementations of [`Dot`](super::dot::Dot) of one register width share.

/// The sums of a register width, and the load of weights that are used as they are.
macro_rules! vectors {
    ($vector:ty, $lanes:literal, $load:ident, $store:ident) => {
        const LANES: usize = $lanes;
        type I = $vector;
        type B = $vector;

        #[inline(always)]
        unsafe fn load_i32(self, from: *const i32) -> Self::I {
            // SAFETY: the caller vouches for the memory; a microkernel runs only on a CPU that has its instructions.
            unsafe { $load(from.cast()) }
        }
        #[inline(always)]
        unsafe fn store_i32(self, to: *mut i32, x: Self::I) {
            // SAFETY: as in `load_i32`.
            unsafe { $store(to.cast(), x) }
        }
    };
}

/// Groups of A that are broadcast from memory where they are used.
macro_rules! broadcast_groups {
    () => {
        type A = *const i32;

        #[inline(always)]
        unsafe fn load_a(self, from: *const u8) -> Self::A {
            from.cast()
        }
    };
}

/// Four groups of two 16-bit elements of A in a register: without AVX there is no broadcast from memory.
macro_rules! shuffled_groups {
    () => {
        const STEPS: usize = 4;
        type A = __m128i;

        #[inline(always)]
        unsafe fn load_a(self, from: *const u8) -> Self::A {
            // SAFETY: the caller vouches for four groups.
            unsafe { _mm_loadu_si128(from.cast()) }
        }
    };
}

/// Group `STEP` of four, in all lanes.
macro_rules! shuffled {
    ($step:expr, $a:expr) => {
        match $step {
            0 => _mm_shuffle_epi32::<0x00>($a),
            1 => _mm_shuffle_epi32::<0x55>($a),
            2 => _mm_shuffle_epi32::<0xaa>($a),
            _ => _mm_shuffle_epi32::<0xff>($a),
        }
    };
}

pub(crate) use {broadcast_groups, shuffled, shuffled_groups, vectors};
