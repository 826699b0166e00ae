//! Writing: a [`Model`] to bytes or to a file.
//!
//! The file is laid out front to back in one pass over the tree: every table before its children, so that all
//! offsets are positive; equal vtables are shared. Vectors of numbers are not copied during layout but streamed from
//! where they are, so a model of several hundred megabytes is written without a second copy of its weights. (A
//! `FlatBufferBuilder` works back to front and must hold the whole file in one growing buffer.)
//!
//! The same model always gives the same bytes. The root table starts at byte 0x20, which is one of the three
//! positions by which the viewer Netron recognizes a `.mnn` file.
#![deny(clippy::as_conversions, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::collections::HashMap;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use tempfile::TempPath;

use crate::error::{FormatError, Problem, Result};
use crate::external::{self, side_path};
use crate::model::{Model, Numbers, Table, Value};
use crate::schema::{FieldDesc, FieldType, ROOT, Scalar, ScalarType, TableKind};

/// The largest file that FlatBuffers can address.
pub const MAX_FILE_SIZE: u64 = 0x7FFF_FFFF;

/// Deepest nesting of tables that is written; the reader accepts no more.
const MAX_DEPTH: usize = 64;

/// Vectors of at least this many bytes are streamed, smaller ones are copied into the layout.
const STREAMED: usize = 4096;

/// How to write a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WriteOptions {
    /// Put weights into a side file `<path>.weight`. That also happens by itself to models whose data exceeds what
    /// one file can hold (2 GiB).
    pub external: bool,
}

/// The bytes of a model, in one file.
///
/// # Errors
/// [`Problem::WrongType`] for a value that its field cannot hold, [`Problem::TooLargeToWrite`] above 2 GiB.
pub fn to_bytes(model: &Model) -> Result<Vec<u8>> {
    table_to_bytes(model.net())
}

/// The bytes of a buffer whose root is `table`, of any kind: some fields hold such buffers (`ExtraInfo.buffer`).
///
/// # Errors
/// Those of [`to_bytes`].
pub fn table_to_bytes(table: &Table) -> Result<Vec<u8>> {
    let layout = Layout::new(table)?;
    let mut out = Vec::with_capacity(usize::try_from(layout.position).unwrap_or(0));
    layout.emit(|bytes| {
        out.extend_from_slice(bytes);
        Ok(())
    })?;
    Ok(out)
}

/// Writes a model to `path` and returns the number of bytes written, the side file included.
///
/// The file appears at `path` only when it is complete (it is written under another name in the same folder, flushed
/// to the device, and renamed); so does the side file, just before. A link is followed: what it points to is replaced.
///
/// # Errors
/// Those of [`to_bytes`], and [`FormatError::Io`], also when `path` is a device, a pipe or a folder: renaming onto
/// a device would replace the device.
pub fn write_file(model: &Model, path: &Path, options: &WriteOptions) -> Result<u64> {
    let target = &destination(path)?;
    // Tables and strings around the payload are small; a margin decides, the layout checks exactly.
    let margin: u64 = 64 << 20;
    let external = options.external || payload_size(model.net()) > MAX_FILE_SIZE.saturating_sub(margin);
    if !external {
        let layout = Layout::new(model.net())?;
        let file = write_temporary(target, |sink| layout.emit(sink))?;
        persist(file, target)?;
        return Ok(layout.position);
    }
    let split = external::split(model.net())?;
    let layout = Layout::new(&split.net)?;
    let side = destination(&side_path(path))?;
    let side_file = if split.payloads.is_empty() {
        None
    } else {
        Some(write_temporary(&side, |sink| {
            split.payloads.iter().try_for_each(|part| part.with_bytes(&mut *sink))
        })?)
    };
    let file = write_temporary(target, |sink| layout.emit(sink))?;
    if let Some(side_file) = side_file {
        persist(side_file, &side)?;
    }
    persist(file, target)?;
    Ok(layout.position.saturating_add(split.size))
}

/// The regular file that `path` names or will name, links resolved.
fn destination(path: &Path) -> Result<PathBuf> {
    match path.metadata() {
        Ok(found) if found.is_file() => {
            path.canonicalize().map_err(|error| FormatError::io("write", path, error))
        }
        Ok(_) => {
            let error = io::Error::new(io::ErrorKind::InvalidInput, "it exists and is no regular file");
            Err(FormatError::io("write", path, error))
        }
        // It does not exist, or making a file in its folder says what is wrong.
        Err(_) => Ok(path.to_owned()),
    }
}

fn write_temporary(
    path: &Path,
    fill: impl FnOnce(&mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()>,
) -> Result<TempPath> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut builder = tempfile::Builder::new();
    builder.prefix(".mnn-").suffix(".part");
    #[cfg(unix)]
    {
        // As `File::create` does: what the process' umask leaves of rw-rw-rw-.
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(std::fs::Permissions::from_mode(0o666));
    }
    // The errors of `tempfile` name the temporary file, which says nothing to the user: only their kind is kept, and
    // writing goes to the plain file.
    let (file, temporary) = builder
        .tempfile_in(folder)
        .map_err(|error| FormatError::io("create", path, error.kind().into()))?
        .into_parts();
    let failed = |error| FormatError::io("write", path, error);
    let mut writer = BufWriter::with_capacity(1 << 16, file);
    fill(&mut |bytes| writer.write_all(bytes).map_err(failed))?;
    let file = writer.into_inner().map_err(|error| failed(error.into_error()))?;
    file.sync_all().map_err(failed)?;
    Ok(temporary)
}

fn persist(file: TempPath, path: &Path) -> Result<()> {
    file.persist(path).map_err(|error| FormatError::io("write", path, error.error))
}

/// Bytes of all vectors of numbers.
fn payload_size(table: &Table) -> u64 {
    table.fields().fold(0_u64, |sum, (_, value)| {
        sum.saturating_add(match value {
            Value::Numbers(numbers) => to_u64(numbers.byte_len()),
            Value::Table(table) => payload_size(table),
            Value::Tables(tables) => {
                tables.iter().fold(0, |sum, table| sum.saturating_add(payload_size(table)))
            }
            Value::Scalar(_) | Value::String(_) | Value::Strings(_) => 0,
        })
    })
}

/// A file, laid out: everything but the large vectors, and where those go.
struct Layout<'m> {
    small: Vec<u8>,
    /// Vectors to stream, each with the length of `small` before it.
    streamed: Vec<(usize, &'m Numbers)>,
    /// Position in the file: the length of `small` and all streamed vectors so far.
    position: u64,
    vtables: HashMap<Vec<u8>, u64>,
}

/// An offset that is not known yet.
#[derive(Clone, Copy)]
struct Hole {
    /// Where in `small`.
    index: usize,
    /// Where in the file.
    position: u64,
}

impl<'m> Layout<'m> {
    fn new(net: &'m Table) -> Result<Self> {
        let mut layout =
            Self { small: Vec::new(), streamed: Vec::new(), position: 0, vtables: HashMap::new() };
        let root = layout.hole();
        layout.table(net, root, 0)?;
        layout.align(4);
        if layout.position > MAX_FILE_SIZE {
            return Err(layout.too_large());
        }
        Ok(layout)
    }

    fn emit(&self, mut sink: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let mut rest = self.small.as_slice();
        let mut done = 0_usize;
        for (index, numbers) in &self.streamed {
            let (part, tail) = rest.split_at_checked(index.saturating_sub(done)).unwrap_or((rest, &[]));
            sink(part)?;
            numbers.with_bytes(&mut sink)?;
            (rest, done) = (tail, *index);
        }
        sink(rest)
    }

    fn too_large(&self) -> FormatError {
        FormatError::at("", Problem::TooLargeToWrite { len: self.position, limit: MAX_FILE_SIZE })
    }

    fn push(&mut self, bytes: &[u8]) {
        self.small.extend_from_slice(bytes);
        self.position = self.position.saturating_add(to_u64(bytes.len()));
    }

    /// Pads with zeros to a multiple of `size`, a power of two.
    fn align(&mut self, size: u64) {
        while !self.position.is_multiple_of(size) {
            self.push(&[0]);
        }
    }

    fn hole(&mut self) -> Hole {
        let hole = Hole { index: self.small.len(), position: self.position };
        self.push(&[0; 4]);
        hole
    }

    /// Makes the offset in `hole` point here.
    fn fill(&mut self, hole: Hole) -> Result<()> {
        let offset =
            u32::try_from(self.position.saturating_sub(hole.position)).map_err(|_| self.too_large())?;
        if let Some(place) = self.small.get_mut(hole.index..).and_then(<[u8]>::first_chunk_mut) {
            *place = offset.to_le_bytes();
        }
        Ok(())
    }

    fn count(&mut self, count: usize) -> Result<()> {
        let count = u32::try_from(count).map_err(|_| self.too_large())?;
        self.push(&count.to_le_bytes());
        Ok(())
    }

    fn table(&mut self, table: &'m Table, hole: Hole, depth: usize) -> Result<()> {
        if depth >= MAX_DEPTH {
            return Err(FormatError::at("", Problem::TooDeep { limit: MAX_DEPTH }));
        }
        let mut fields: Vec<(&'static FieldDesc, &Value)> = table.fields().collect();
        for (field, value) in &fields {
            if !value.fits(field.ty) {
                let wanted = field.ty.describe().into_owned();
                return Err(FormatError::at(
                    field.name,
                    Problem::WrongType { wanted, got: value.describe() },
                ));
            }
        }
        // Wide fields first: then all are aligned without padding.
        fields.sort_by_key(|(field, _)| std::cmp::Reverse(inline_size(field.ty)));
        let vtable = vtable(table.kind(), &fields);
        let vtable_position = match self.vtables.get(&vtable) {
            Some(&position) => position,
            None => {
                self.align(2);
                let position = self.position;
                self.push(&vtable);
                self.vtables.insert(vtable, position);
                position
            }
        };
        self.align(4);
        self.fill(hole)?;
        let to_vtable =
            i32::try_from(self.position.saturating_sub(vtable_position)).map_err(|_| self.too_large())?;
        self.push(&to_vtable.to_le_bytes());
        let mut holes = Vec::new();
        for (field, value) in &fields {
            match value {
                Value::Scalar(scalar) => self.scalar(*scalar),
                value => holes.push((*field, *value, self.hole())),
            }
        }
        // The tags of unions come last: they are bytes.
        for (_, value) in fields.iter().filter(|(field, _)| field.ty == FieldType::Union) {
            if let Value::Table(table) = value {
                self.push(&[table.kind().union_tag().unwrap_or(0)]);
            }
        }
        for (field, value, hole) in holes {
            self.child(value, hole, depth.saturating_add(1)).map_err(|error| error.within(field.name))?;
        }
        Ok(())
    }

    fn child(&mut self, value: &'m Value, hole: Hole, depth: usize) -> Result<()> {
        match value {
            Value::Scalar(_) => Ok(()),
            Value::String(text) => self.string(text, hole),
            Value::Table(table) => self.table(table, hole, depth),
            Value::Numbers(numbers) => self.numbers(numbers, hole),
            Value::Strings(texts) => {
                let holes = self.offsets(texts.len(), hole)?;
                texts.iter().zip(holes).try_for_each(|(text, hole)| self.string(text, hole))
            }
            Value::Tables(tables) => {
                let holes = self.offsets(tables.len(), hole)?;
                tables.iter().zip(holes).enumerate().try_for_each(|(index, (table, hole))| {
                    self.table(table, hole, depth).map_err(|error| error.within(&format!("[{index}]")))
                })
            }
        }
    }

    fn scalar(&mut self, scalar: Scalar) {
        match scalar {
            Scalar::Bool(value) => self.push(&[value.into()]),
            Scalar::I8(value) => self.push(&value.to_le_bytes()),
            Scalar::U8(value) => self.push(&value.to_le_bytes()),
            Scalar::U16(value) => self.push(&value.to_le_bytes()),
            Scalar::I32(value) => self.push(&value.to_le_bytes()),
            Scalar::U32(value) => self.push(&value.to_le_bytes()),
            Scalar::I64(value) => self.push(&value.to_le_bytes()),
            Scalar::F32(value) => self.push(&value.to_le_bytes()),
        }
    }

    fn string(&mut self, text: &str, hole: Hole) -> Result<()> {
        self.align(4);
        self.fill(hole)?;
        self.count(text.len())?;
        self.push(text.as_bytes());
        self.push(&[0]);
        Ok(())
    }

    fn offsets(&mut self, count: usize, hole: Hole) -> Result<Vec<Hole>> {
        self.align(4);
        self.fill(hole)?;
        self.count(count)?;
        Ok((0..count).map(|_| self.hole()).collect())
    }

    fn numbers(&mut self, numbers: &'m Numbers, hole: Hole) -> Result<()> {
        self.align(4);
        if numbers.element() == ScalarType::I64 {
            // The count has four bytes; the numbers after it must start at a multiple of eight.
            self.align(8);
            self.push(&[0; 4]);
        }
        self.fill(hole)?;
        self.count(numbers.len())?;
        if numbers.byte_len() < STREAMED {
            return numbers.with_bytes(|bytes| {
                self.push(bytes);
                Ok(())
            });
        }
        self.streamed.push((self.small.len(), numbers));
        self.position = self.position.saturating_add(to_u64(numbers.byte_len()));
        if self.position > MAX_FILE_SIZE { Err(self.too_large()) } else { Ok(()) }
    }
}

fn inline_size(ty: FieldType) -> usize {
    match ty {
        FieldType::Scalar(_) | FieldType::Enum(_) => ty.scalar_type().map_or(4, ScalarType::size),
        _ => 4,
    }
}

/// The vtable for `fields` laid out in this order after the four bytes of the link to it.
fn vtable(kind: TableKind, fields: &[(&'static FieldDesc, &Value)]) -> Vec<u8> {
    let last = |fields: &mut dyn Iterator<Item = u16>| fields.max().map_or(0, |slot| slot.saturating_add(1));
    let slots = if kind == ROOT {
        // All slots, also absent ones: then the root table starts at byte 0x20.
        last(&mut kind.desc().fields.iter().map(|field| field.slot))
    } else {
        last(&mut fields.iter().map(|(field, _)| field.slot))
    };
    let mut entries = vec![0_u16; slots.into()];
    let mut place = |slot: u16, offset: &mut u16, size: usize| {
        if let Some(entry) = entries.get_mut(usize::from(slot)) {
            *entry = *offset;
        }
        *offset = offset.saturating_add(u16::try_from(size).unwrap_or(u16::MAX));
    };
    let mut offset = 4;
    for (field, _) in fields {
        place(field.slot, &mut offset, inline_size(field.ty));
    }
    for (field, _) in fields.iter().filter(|(field, _)| field.ty == FieldType::Union) {
        place(field.slot.saturating_sub(1), &mut offset, 1);
    }
    let size = slots.saturating_mul(2).saturating_add(4);
    let words = [size, offset].into_iter().chain(entries);
    words.flat_map(u16::to_le_bytes).collect()
}

/// Lossless on every machine that Rust supports.
fn to_u64(value: usize) -> u64 {
    u64::try_from(value).unwrap_or(u64::MAX)
}
