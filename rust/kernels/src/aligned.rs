//! A vector of `f32` that starts at a cache line.

use std::alloc::{Layout, handle_alloc_error};
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

/// Bytes of a huge page.
const HUGE: usize = 2 << 20;

/// Cache lines on the heap. Those that fill huge pages start at one, and the system is asked to back them so: weights that
/// are streamed once per run otherwise cost a page walk every 4 KiB. Where the system does not, nothing changes.
struct Lines<L: Copy> {
    start: NonNull<L>,
    count: usize,
    owns: PhantomData<L>,
}

impl<L: Copy> Lines<L> {
    /// `count` copies of `line`.
    fn new(line: L, count: usize) -> Self {
        let Some(layout) = Self::layout(count) else { return Self::default() };
        // SAFETY: `layout` is there only if its size is not 0.
        let memory = unsafe { memory::take(layout) };
        let Some(start) = NonNull::new(memory.cast::<L>()) else { handle_alloc_error(layout) };
        for index in 0..count {
            // SAFETY: inside the allocation of `count` lines.
            unsafe { start.add(index).write(line) };
        }
        Self { start, count, owns: PhantomData }
    }

    /// How `count` lines are allocated, if there are any.
    fn layout(count: usize) -> Option<Layout> {
        #[allow(clippy::expect_used, reason = "as `Vec`: no address space has room for it")]
        let layout = Layout::array::<L>(count).expect("capacity overflow");
        let align = if layout.size() >= HUGE { HUGE } else { layout.align() };
        if layout.size() > 0 { layout.align_to(align).ok() } else { None }
    }
}

impl<L: Copy> Default for Lines<L> {
    fn default() -> Self {
        Self { start: NonNull::dangling(), count: 0, owns: PhantomData }
    }
}

impl<L: Copy> Drop for Lines<L> {
    fn drop(&mut self) {
        if let Some(layout) = Self::layout(self.count) {
            // SAFETY: `new` allocated it with the same layout.
            unsafe { memory::give(self.start.as_ptr().cast(), layout) };
        }
    }
}

impl<L: Copy> Clone for Lines<L> {
    fn clone(&self) -> Self {
        let Some(&first) = self.first() else { return Self::default() };
        let mut lines = Self::new(first, self.count);
        lines.copy_from_slice(self);
        lines
    }
}

impl<L: Copy> Deref for Lines<L> {
    type Target = [L];

    fn deref(&self) -> &[L] {
        // SAFETY: `new` wrote `count` lines; without any, a dangling pointer is what an empty slice has.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.count) }
    }
}

impl<L: Copy> DerefMut for Lines<L> {
    fn deref_mut(&mut self) -> &mut [L] {
        // SAFETY: as in `deref`; the borrow of `self` is unique.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.count) }
    }
}

// SAFETY: the lines belong to this value alone.
unsafe impl<L: Copy + Send> Send for Lines<L> {}
// SAFETY: shared references only read.
unsafe impl<L: Copy + Sync> Sync for Lines<L> {}

/// Memory from the system for what fills huge pages, elsewhere from the allocator.
///
/// The allocator would give memory whose small pages exist already, and keep what lies before the alignment.
#[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
mod memory {
    use std::alloc::{Layout, alloc, dealloc};
    use std::ffi::{c_int, c_void};

    use super::HUGE;

    const PROT_READ_WRITE: c_int = 3;
    const MAP_PRIVATE_ANONYMOUS: c_int = 0x22;
    const MADV_HUGEPAGE: c_int = 14;

    unsafe extern "C" {
        fn mmap(
            at: *mut c_void,
            len: usize,
            prot: c_int,
            flags: c_int,
            file: c_int,
            offset: i64,
        ) -> *mut c_void;
        fn munmap(at: *mut c_void, len: usize) -> c_int;
        fn madvise(at: *mut c_void, len: usize, advice: c_int) -> c_int;
    }

    /// # Safety
    /// The size is not 0.
    pub(super) unsafe fn take(layout: Layout) -> *mut u8 {
        if layout.size() < HUGE {
            // SAFETY: the caller's promise.
            return unsafe { alloc(layout) };
        }
        let Some(len) = layout.size().checked_add(2 * HUGE) else { return std::ptr::null_mut() };
        // SAFETY: a new mapping of whole pages, of which what lies before and behind the aligned part is given back
        // (`munmap` rounds lengths up to pages; the size is rounded up here so that the part that stays is whole pages).
        // The advice changes how memory is backed, never its contents; if it fails, nothing changes.
        unsafe {
            let map =
                mmap(std::ptr::null_mut(), len, PROT_READ_WRITE, MAP_PRIVATE_ANONYMOUS, -1, 0).cast::<u8>();
            if map.addr() == usize::MAX {
                return std::ptr::null_mut();
            }
            let before = map.align_offset(HUGE);
            let kept = kept(layout);
            if before > 0 {
                munmap(map.cast(), before);
            }
            let start = map.add(before);
            munmap(start.add(kept).cast(), len - before - kept);
            madvise(start.cast(), layout.size() / HUGE * HUGE, MADV_HUGEPAGE);
            start
        }
    }

    /// # Safety
    /// [`take`] returned it for this layout, and nobody uses it any more.
    pub(super) unsafe fn give(start: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe {
            if layout.size() < HUGE {
                dealloc(start, layout);
            } else {
                munmap(start.cast(), kept(layout));
            }
        }
    }

    /// Bytes of the mapping that stay: whole pages, however large (at most 64 KiB) they are.
    fn kept(layout: Layout) -> usize {
        layout.size().next_multiple_of(64 << 10)
    }
}

#[cfg(not(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64"))))]
mod memory {
    pub(super) use std::alloc::{alloc as take, dealloc as give};
}

#[repr(C, align(64))]
#[derive(Clone, Copy, Debug)]
struct Line([f32; 16]);

/// `f32` storage aligned to 64 bytes, so that no load of a whole vector straddles two cache lines.
///
/// Weights are packed into it. Activations and scratch need no alignment, but kernels that load whole vectors from
/// them (depthwise convolution, pooling, products with few columns) run up to twice as fast if their storage has it.
#[derive(Clone, Default)]
pub struct AlignedVec {
    lines: Lines<Line>,
    len: usize,
}

impl AlignedVec {
    /// `len` zeros.
    pub fn zeros(len: usize) -> Self {
        Self { lines: Lines::new(Line([0.0; 16]), len.div_ceil(16)), len }
    }

    /// The values.
    pub fn as_slice(&self) -> &[f32] {
        // SAFETY: a `Line` is 16 floats without padding, and `len` is at most 16 per line.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.len) }
    }

    /// The values, to be written.
    pub fn as_mut_slice(&mut self) -> &mut [f32] {
        // SAFETY: as in `as_slice`; the borrow of `self` is unique.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.len) }
    }
}

impl std::fmt::Debug for AlignedVec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AlignedVec").field("len", &self.len).finish_non_exhaustive()
    }
}

impl From<&[f32]> for AlignedVec {
    fn from(values: &[f32]) -> Self {
        let mut aligned = Self::zeros(values.len());
        aligned.as_mut_slice().copy_from_slice(values);
        aligned
    }
}

impl Deref for AlignedVec {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        self.as_slice()
    }
}

impl DerefMut for AlignedVec {
    fn deref_mut(&mut self) -> &mut [f32] {
        self.as_mut_slice()
    }
}

#[repr(C, align(64))]
#[derive(Clone, Copy, Debug)]
struct ByteLine([u8; 64]);

/// Bytes that start at a cache line: packed int8 and low-bit weights, and the scratch of the products over them.
#[derive(Clone, Default)]
pub struct AlignedBytes {
    lines: Lines<ByteLine>,
    len: usize,
}

impl AlignedBytes {
    /// `len` zeros.
    pub fn zeros(len: usize) -> Self {
        Self { lines: Lines::new(ByteLine([0; 64]), len.div_ceil(64)), len }
    }
}

impl std::fmt::Debug for AlignedBytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AlignedBytes").field("len", &self.len).finish_non_exhaustive()
    }
}

impl Deref for AlignedBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: a `ByteLine` is 64 bytes without padding, and `len` is at most 64 per line.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.len) }
    }
}

impl DerefMut for AlignedBytes {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`; the borrow of `self` is unique.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn storage_starts_at_a_cache_line_and_has_the_length() {
        for len in [0, 1, 15, 16, 17, 100] {
            let values: Vec<f32> = (0..len as u16).map(f32::from).collect();
            let aligned = AlignedVec::from(&values[..]);
            assert_eq!(aligned.as_ptr().align_offset(64), 0);
            assert_eq!(&aligned[..], &values[..]);
            assert_eq!(&aligned.clone()[..], &values[..]);
        }
        assert!(AlignedBytes::default().is_empty() && AlignedBytes::default().clone().is_empty());
    }

    #[test]
    fn large_storage_starts_at_a_huge_page() {
        let mut bytes = AlignedBytes::zeros(HUGE + 5);
        assert_eq!(bytes.as_ptr().align_offset(HUGE), 0);
        assert!(bytes.len() == HUGE + 5 && bytes.iter().all(|&byte| byte == 0));
        bytes[HUGE + 4] = 7;
        assert_eq!(bytes.clone()[HUGE + 4], 7);
    }
}
