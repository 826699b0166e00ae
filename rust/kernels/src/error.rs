//! What a kernel refuses.

/// Arguments that do not fit together. Kernels check them before they touch memory.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KernelError {
    /// A slice or dimension has the wrong size.
    #[error("{kernel}: {what} is {got}, expected {want}")]
    Size {
        /// The kernel family.
        kernel: &'static str,
        /// The argument.
        what: &'static str,
        /// Its size.
        got: usize,
        /// The size that the other arguments imply (for a buffer: at least this).
        want: usize,
    },
    /// A value that makes no sense, such as a stride of 0.
    #[error("{kernel}: {what}")]
    Value {
        /// The kernel family.
        kernel: &'static str,
        /// What is wrong.
        what: &'static str,
    },
    /// Weights packed for another kernel than the one that is to use them.
    #[error("weights were packed for {packed_for} but are used with {used_with}; pack them again")]
    PackedForOther {
        /// The kernel named in the packed data.
        packed_for: &'static str,
        /// The kernel of this call.
        used_with: &'static str,
    },
}

impl KernelError {
    /// `Ok` if `got == want`.
    pub(crate) fn check(
        kernel: &'static str,
        what: &'static str,
        got: usize,
        want: usize,
    ) -> Result<(), KernelError> {
        if got == want { Ok(()) } else { Err(Self::Size { kernel, what, got, want }) }
    }

    /// `Ok` if `got >= want`.
    pub(crate) fn check_least(
        kernel: &'static str,
        what: &'static str,
        got: usize,
        want: usize,
    ) -> Result<(), KernelError> {
        if got >= want { Ok(()) } else { Err(Self::Size { kernel, what, got, want }) }
    }
}
