//! A vector of `f32` that starts at a cache line.

use std::ops::{Deref, DerefMut};

/// Asks the system to back the whole huge pages of a large new allocation by huge pages: weights that are streamed once
/// per run otherwise cost a page walk every 4 KiB. Where the system does not, nothing changes.
fn prefer_huge_pages<T>(lines: &[T]) {
    #[cfg(target_os = "linux")]
    {
        use std::ffi::{c_int, c_void};
        unsafe extern "C" {
            fn madvise(address: *mut c_void, length: usize, advice: c_int) -> c_int;
        }
        const MADV_HUGEPAGE: c_int = 14;
        const HUGE: usize = 2 << 20;
        let (start, bytes) = (lines.as_ptr().cast::<u8>(), size_of_val(lines));
        let skip = start.align_offset(HUGE);
        let whole = bytes.saturating_sub(skip) / HUGE * HUGE;
        if whole > 0 {
            // SAFETY: the range lies inside the allocation; the advice changes how memory is backed, never its contents.
            // Failure is harmless.
            unsafe { madvise(start.wrapping_add(skip).cast_mut().cast(), whole, MADV_HUGEPAGE) };
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = lines;
}

#[repr(C, align(64))]
#[derive(Clone, Copy, Debug)]
struct Line([f32; 16]);

/// `f32` storage aligned to 64 bytes, so that no load of a whole vector straddles two cache lines.
///
/// Weights are packed into it. Activations and scratch need no alignment, but kernels that load whole vectors from
/// them (depthwise convolution, pooling, products with few columns) run up to twice as fast if their storage has it.
#[derive(Clone, Debug, Default)]
pub struct AlignedVec {
    lines: Vec<Line>,
    len: usize,
}

impl AlignedVec {
    /// `len` zeros.
    pub fn zeros(len: usize) -> Self {
        let lines = vec![Line([0.0; 16]); len.div_ceil(16)];
        prefer_huge_pages(&lines);
        Self { lines, len }
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
#[derive(Clone, Debug, Default)]
pub struct AlignedBytes {
    lines: Vec<ByteLine>,
    len: usize,
}

impl AlignedBytes {
    /// `len` zeros.
    pub fn zeros(len: usize) -> Self {
        let lines = vec![ByteLine([0; 64]); len.div_ceil(64)];
        prefer_huge_pages(&lines);
        Self { lines, len }
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
        }
    }
}
