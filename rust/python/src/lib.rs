//! The extension module `mnnq._native`: a thin binding over `mnnq-core` and `mnnq-format`.
//!
//! It converts values and errors; it holds no algorithm. Every module adds its functions through one `add`.

mod arrays;
mod calibrated;
mod calibration;
mod cpu;
mod errors;
mod format;
mod offline;
mod quant;
mod session;
mod tables;

use pyo3::prelude::*;

/// The native part of mnnq.
#[pymodule]
mod _native {
    use super::*;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("__version__", env!("CARGO_PKG_VERSION"))?;
        format::add(module)?;
        quant::add(module)?;
        session::add(module)?;
        calibration::add(module)?;
        offline::add(module)?;
        cpu::add(module)?;
        calibrated::add(module)
    }
}
