//! What the kernels of every family that has one entry per instruction set have in common.

/// Choosing among kernels and asking them who they are.
///
/// The module has the kernel, a struct with the fields `name`, `level` and `isa`; `baseline()`, the entry for every CPU; and
/// for the architectures with others `of_architecture()`, those that may run here, the lowest level first.
macro_rules! choice {
    ($kernel:ident, name: $name:literal, isa: $isa:literal) => {
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
        fn of_architecture() -> Vec<$kernel> {
            Vec::new()
        }

        impl std::fmt::Debug for $kernel {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.name)
            }
        }

        impl $kernel {
            /// The kernels that may run here, the lowest level first.
            pub fn all_available() -> Vec<Self> {
                std::iter::once(baseline()).chain(of_architecture()).collect()
            }

            /// The best kernel of a level up to `cap` that may run here.
            pub fn at_most(cap: IsaLevel) -> Self {
                of_architecture().into_iter().rfind(|kernel| kernel.level <= cap).unwrap_or_else(baseline)
            }

            #[doc = $name]
            pub fn name(&self) -> &'static str {
                self.name
            }

            /// The level whose instructions the sums use.
            pub fn level(&self) -> IsaLevel {
                self.level
            }

            #[doc = $isa]
            pub fn isa(&self) -> VectorIsa {
                self.isa
            }
        }
    };
}

pub(crate) use choice;
