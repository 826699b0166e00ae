//! Options of a session.

use super::error::RuntimeError;

/// How exact float arithmetic is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum PrecisionMode {
    /// Single precision.
    #[default]
    Normal,
    /// Single precision storage; sums of reductions and normalizations in double precision.
    High,
    /// Products with stored weights round both operands to 16-bit floats if the CPU has instructions for that; the rest,
    /// and everything on other CPUs, is in single precision.
    Low,
}

/// What is traded for memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum MemoryMode {
    /// Quantized weights are expanded to floats once.
    #[default]
    Normal,
    /// Quantized weights stay in few bits. Convolutions on them run in integers, with activations quantized while
    /// running; see [`DynamicMode`].
    Low,
}

/// Which convolutions of [`MemoryMode::Low`] run in integers, and how their activations are quantized.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum DynamicMode {
    /// Those that are estimated to be faster so, with asymmetric codes for each row (pixel, token, window). The others
    /// are expanded to floats once.
    #[default]
    Auto,
    /// All that can, with the codes of `Auto`.
    Always,
    /// As MNN does in its mode `Memory_Low`: all but depthwise ones; symmetric codes for each row, asymmetric ones if
    /// there is only one row.
    Compat,
}

/// How layers of offline-quantized models compute where MNN departs from the formulas of its files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Int8Mode {
    /// By the formulas.
    #[default]
    Exact,
    /// As MNN 3.6.1 does on x86-64, whose pooling of codes is different: maxima are those of unsigned bytes, means are
    /// rounded down.
    Compat,
}

/// Options of a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionOptions {
    /// Threads per run. Results do not depend on it.
    pub threads: usize,
    /// Precision of float arithmetic.
    pub precision: PrecisionMode,
    /// Memory mode.
    pub memory: MemoryMode,
    /// Activations of layers with quantized weights, in [`MemoryMode::Low`].
    pub dynamic: DynamicMode,
    /// Arithmetic of offline-quantized layers.
    pub int8: Int8Mode,
    /// How many plans (one per set of input shapes) are kept; the one not used for longest goes first.
    pub plan_cache: usize,
    /// Whether element-wise operators are fused into the operator before them.
    pub fuse: bool,
    /// Iterations that all loops of one run may take together; the bodies of nested loops count each time. A loop whose
    /// condition never fails is an error then, instead of a run that does not end.
    pub max_loop_iterations: u64,
    /// Whether inputs may hold NaN. Without it they are refused, as what comes of a mistake more often than of intent.
    pub allow_nan: bool,
}

impl Default for SessionOptions {
    fn default() -> Self {
        Self {
            threads: 1,
            precision: PrecisionMode::default(),
            memory: MemoryMode::default(),
            dynamic: DynamicMode::default(),
            int8: Int8Mode::default(),
            plan_cache: 16,
            fuse: true,
            max_loop_iterations: Self::LOOP_ITERATIONS,
            allow_nan: false,
        }
    }
}

impl SessionOptions {
    /// Most threads a session may have.
    pub const MAX_THREADS: usize = 1024;

    /// Default of `max_loop_iterations`.
    pub const LOOP_ITERATIONS: u64 = 1 << 20;

    /// Checks the ranges.
    ///
    /// # Errors
    /// [`RuntimeError::Option`] if `threads` is not 1 to 1024, or `plan_cache` or `max_loop_iterations` is 0.
    pub fn check(&self) -> Result<(), RuntimeError> {
        let bad = |key, got: usize, wanted: &str| {
            Err(RuntimeError::Option { key, got: got.to_string(), wanted: wanted.to_owned() })
        };
        if !(1..=Self::MAX_THREADS).contains(&self.threads) {
            return bad("threads", self.threads, "1 to 1024");
        }
        if self.plan_cache == 0 {
            return bad("plan_cache", 0, "1 or more");
        }
        if self.max_loop_iterations == 0 {
            return bad("max_loop_iterations", 0, "1 or more");
        }
        Ok(())
    }
}
