//! Files as memory: the one place of this crate that needs `unsafe`.
#![expect(unsafe_code, reason = "a file mapping has no safe constructor")]

use std::fs::File;
use std::io;
use std::path::Path;

use bytes::Bytes;
use memmap2::Mmap;

use crate::error::{FormatError, Result};

/// The content of a file, mapped, not read.
///
/// Another process that truncates or overwrites the file in place while the mapping is in use changes the data or
/// ends this process with a bus error. Replacing the file (as [`crate::write_file`] does) is harmless.
pub(crate) fn map_file(path: &Path) -> Result<Bytes> {
    let failed = |action| move |error| FormatError::io(action, path, error);
    let file = File::open(path).map_err(failed("open"))?;
    let metadata = file.metadata().map_err(failed("open"))?;
    if !metadata.is_file() {
        let error = io::Error::new(io::ErrorKind::InvalidInput, "not a regular file");
        return Err(FormatError::io("open", path, error));
    }
    if metadata.len() == 0 {
        return Ok(Bytes::new());
    }
    // SAFETY: the mapping is private to this value, read-only and of a regular file (checked above), and `Bytes`
    // keeps it alive as long as any slice of it. That nobody changes the file in place meanwhile cannot be
    // established here; it is the documented condition of every function that maps a file.
    let mapping = unsafe { Mmap::map(&file) }.map_err(failed("map"))?;
    Ok(Bytes::from_owner(mapping))
}
