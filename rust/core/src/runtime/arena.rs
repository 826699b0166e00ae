//! The memory of one run of a plan.

use crate::runtime::error::RuntimeError;

/// 64 bytes: the unit of the arena, one cache line.
pub(crate) type Line = [u128; LINE_WORDS];

const LINE_WORDS: usize = 4;

/// Bytes of a [`Line`].
pub(crate) const LINE_BYTES: usize = size_of::<Line>();

/// Memory for all intermediate tensors of a plan, aligned to 64 bytes.
pub(crate) struct Arena {
    words: Vec<u128>,
    start: usize,
    lines: usize,
}

impl Arena {
    /// An arena of `lines` lines, zeroed by the operating system as they are first touched.
    ///
    /// # Errors
    /// [`RuntimeError::Memory`] if there is not that much.
    pub(crate) fn try_new(lines: usize) -> Result<Self, RuntimeError> {
        require_memory(lines.saturating_mul(LINE_BYTES))?;
        Ok(Self::new(lines))
    }

    /// As [`try_new`](Self::try_new), for few lines.
    pub(crate) fn new(lines: usize) -> Self {
        let words = vec![0_u128; (lines + 1) * LINE_WORDS];
        let start = words.as_ptr().align_offset(LINE_BYTES).min(LINE_WORDS);
        Self { words, start, lines }
    }

    /// No memory, without an allocation.
    pub(crate) const fn empty() -> Self {
        Self { words: Vec::new(), start: 0, lines: 0 }
    }

    /// The lines.
    pub(crate) fn lines(&self) -> &[Line] {
        bytemuck::cast_slice(&self.words[self.start..self.start + self.lines * LINE_WORDS])
    }

    /// The lines, to be written.
    pub(crate) fn lines_mut(&mut self) -> &mut [Line] {
        bytemuck::cast_slice_mut(&mut self.words[self.start..self.start + self.lines * LINE_WORDS])
    }

    /// Bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        bytemuck::cast_slice(self.lines())
    }
}

/// Allocations below this size are not worth asking for.
const SMALL: usize = 1 << 20;

/// Checks that `bytes` can be allocated: a model may describe tensors that no machine can hold, and an allocation that
/// fails would end the process.
///
/// # Errors
/// [`RuntimeError::Memory`] if they cannot.
pub(crate) fn require_memory(bytes: usize) -> Result<(), RuntimeError> {
    if bytes < SMALL {
        return Ok(());
    }
    // Given back at once: zeroed pages for real use come from the allocator without being touched.
    Vec::<u8>::new().try_reserve_exact(bytes).map_err(|_| RuntimeError::Memory { bytes })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_held_is_an_error() {
        assert!(require_memory(SMALL).is_ok());
        assert!(matches!(require_memory(usize::MAX / 2), Err(RuntimeError::Memory { .. })));
        assert!(Arena::try_new(usize::MAX / 4).is_err());
    }

    #[test]
    fn lines_are_aligned() {
        for lines in [0, 1, 7] {
            let mut arena = Arena::new(lines);
            assert_eq!(arena.lines().len(), lines);
            assert_eq!(arena.lines_mut().as_ptr().align_offset(LINE_BYTES), 0);
        }
    }
}
