//! What the CPU has, and which kernels run on it.

use mnnq_kernels::{KernelSet, cpu};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::errors::{Place, raise};

/// Adds the function of this module.
pub(crate) fn add(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(cpu_kernels, module)?)
}

/// Instruction sets of the CPU and the kernels in use, chosen once per process.
///
/// Returns
/// -------
/// dict
///     ``levels``: instruction-set levels of the CPU that mnnq knows, the lowest first; ``requested``: that of
///     ``MNNQ_ISA``, or None; ``level``: the highest in use; ``kernels``: the kernel of each family.
///
/// Raises
/// ------
/// ConfigError
///     ``MNNQ_ISA`` names no level of this architecture.
#[pyfunction]
fn cpu_kernels(py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
    let refuse = |error: &cpu::IsaOverrideError| {
        raise(
            py,
            "ConfigError",
            &error.to_string(),
            &Place { key: Some(cpu::ISA_VARIABLE), ..Place::default() },
        )
    };
    let found = cpu::cpu().map_err(refuse)?;
    let names: Vec<&str> = found.present().iter().map(|level| level.name()).collect();
    let kernels = PyDict::new(py);
    for choice in KernelSet::get().map_err(refuse)?.list() {
        kernels.set_item(choice.family, choice.kernel)?;
    }
    let answer = PyDict::new(py);
    answer.set_item("levels", names)?;
    answer.set_item("requested", found.requested().map(cpu::IsaLevel::name))?;
    answer.set_item("level", found.level().name())?;
    answer.set_item("kernels", kernels)?;
    Ok(answer)
}
