//! Errors of Rust as the exceptions of `mnnq.errors`, with their fields as attributes.

use std::path::Path;

use mnnq_format::FormatError;
use pyo3::exceptions::PyOSError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};

/// What an error is about, besides its message.
#[derive(Default)]
pub(crate) struct Place<'a> {
    /// The file, if it is about one.
    pub(crate) file: Option<&'a Path>,
    /// The field or key.
    pub(crate) key: Option<&'a str>,
}

/// An exception of class `class` of `mnnq.errors`.
pub(crate) fn raise(py: Python<'_>, class: &str, message: &str, place: &Place<'_>) -> PyErr {
    let build = || -> PyResult<PyErr> {
        let class = py.import("mnnq.errors")?.getattr(class)?;
        let kwargs = PyDict::new(py);
        kwargs.set_item("file", place.file.map(|file| file.display().to_string()))?;
        kwargs.set_item("key", place.key)?;
        Ok(PyErr::from_value(class.call((message,), Some(&kwargs))?))
    };
    build().unwrap_or_else(|error| error)
}

/// `mnnq.errors.UnsupportedError` with one problem.
fn unsupported(py: Python<'_>, problem: &str, file: Option<&Path>) -> PyErr {
    unsupported_all(py, &[problem.to_owned()], file)
}

/// `mnnq.errors.UnsupportedError` with these problems.
pub(crate) fn unsupported_all(py: Python<'_>, problems: &[String], file: Option<&Path>) -> PyErr {
    let build = || -> PyResult<PyErr> {
        let class = py.import("mnnq.errors")?.getattr("UnsupportedError")?;
        let kwargs = PyDict::new(py);
        kwargs.set_item("file", file.map(|file| file.display().to_string()))?;
        Ok(PyErr::from_value(class.call((PyList::new(py, problems)?,), Some(&kwargs))?))
    };
    build().unwrap_or_else(|error| error)
}

/// The exception for `error`: `OSError` (or the subclass of its error number) for a failed file operation,
/// `UnsupportedError` for legal content that mnnq does not handle, `FormatError` for the rest.
pub(crate) fn from_format(py: Python<'_>, error: FormatError, file: Option<&Path>) -> PyErr {
    match &error {
        FormatError::Io { path, source, .. } => match source.raw_os_error() {
            Some(number) => {
                let text = py
                    .import("os")
                    .and_then(|os| os.call_method1("strerror", (number,)))
                    .and_then(|text| text.extract::<String>())
                    .unwrap_or_else(|_| source.to_string());
                PyOSError::new_err((number, text, path.display().to_string()))
            }
            // Without a number, the kind still says which subclass.
            None => PyErr::from(std::io::Error::new(source.kind(), error.to_string())),
        },
        FormatError::Invalid { problem, .. } if problem.is_unsupported() => {
            unsupported(py, &error.to_string(), file)
        }
        FormatError::Invalid { path, problem } => {
            let key = (!path.is_empty()).then_some(path.as_str());
            raise(py, "FormatError", &problem.to_string(), &Place { file, key })
        }
        other => raise(py, "FormatError", &other.to_string(), &Place { file, key: None }),
    }
}
