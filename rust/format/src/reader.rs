//! Verified reading: bytes of a file to a [`Model`], every offset and length checked before use.
//!
//! The reader follows the descriptors of the schema. It trusts nothing: offsets, vtables, lengths, strings, union
//! tags and the nesting are checked, numbers are read at any alignment, and the work and memory are bounded by the
//! size of the file even if tables refer to each other or to the same bytes again and again.
#![deny(clippy::as_conversions, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use bytes::Bytes;

use crate::error::{FormatError, Problem, Result};
use crate::model::{Model, Numbers, SkippedField, Table, Value};
use crate::schema::{FieldDesc, FieldType, ROOT, Scalar, ScalarType, TableKind, UNION_MEMBERS};
use crate::validate::validate;

/// What a file may cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadLimits {
    /// Largest file, in bytes. FlatBuffers itself cannot address more than the default, 2 GiB - 1.
    pub max_file_size: u64,
    /// Deepest nesting of tables. Real models stay below ten.
    pub max_depth: usize,
    /// Largest number of tables.
    pub max_tables: usize,
    /// How often a byte may be visited on average; a file in which nothing is shared needs 1. (64 KiB are always
    /// allowed.)
    pub max_visits: usize,
}

impl Default for ReadLimits {
    fn default() -> Self {
        Self { max_file_size: 0x7FFF_FFFF, max_depth: 64, max_tables: 4_000_000, max_visits: 2 }
    }
}

/// Reads and [validates](crate::validate::validate) a model.
///
/// Vectors of numbers share `bytes`. External weights stay unresolved: see
/// [`external::resolve`](crate::external::resolve), or use [`read_file`](crate::external::read_file).
///
/// # Errors
/// [`FormatError::Invalid`] with the first broken invariant and the path of its field.
pub fn read(bytes: impl Into<Bytes>, limits: &ReadLimits) -> Result<Model> {
    let model = read_unvalidated(bytes, limits)?;
    validate(&model)?;
    Ok(model)
}

/// Reads a model and checks its bytes, but not its graph.
///
/// # Errors
/// [`FormatError::Invalid`] with the first broken invariant and the path of its field.
pub fn read_unvalidated(bytes: impl Into<Bytes>, limits: &ReadLimits) -> Result<Model> {
    let (net, skipped) = read_root(&bytes.into(), ROOT, limits)?;
    Model::with_skipped(net, skipped)
}

/// Reads a buffer whose root is a table of kind `kind`: some fields hold such buffers (`ExtraInfo.buffer`).
///
/// # Errors
/// Those of [`read_unvalidated`].
pub fn read_table(bytes: impl Into<Bytes>, kind: TableKind, limits: &ReadLimits) -> Result<Table> {
    Ok(read_root(&bytes.into(), kind, limits)?.0)
}

fn read_root(bytes: &Bytes, kind: TableKind, limits: &ReadLimits) -> Result<(Table, Vec<SkippedField>)> {
    let len = to_u64(bytes.len());
    if len > limits.max_file_size {
        return Err(FormatError::at("", Problem::FileTooLarge { len, limit: limits.max_file_size }));
    }
    let budget = bytes.len().saturating_mul(limits.max_visits).saturating_add(1 << 16);
    let mut reader = Reader { bytes, limits, budget, total_budget: budget, tables: 0, skipped: Vec::new() };
    let path = Path { parent: None, part: Part::Root };
    let root = reader.offset("root offset", 0, &path)?;
    let table = reader.table(kind, root, 0, &path)?;
    Ok((table, reader.skipped))
}

/// Where the reader is, as a list on the stack: only errors render it.
struct Path<'a> {
    parent: Option<&'a Path<'a>>,
    part: Part,
}

#[derive(Clone, Copy)]
enum Part {
    Root,
    Field(&'static str),
    Index(usize),
}

impl Path<'_> {
    fn render(&self) -> String {
        let mut out = self.parent.map(Path::render).unwrap_or_default();
        match self.part {
            Part::Root => {}
            Part::Field(name) => {
                if !out.is_empty() {
                    out.push('.');
                }
                out.push_str(name);
            }
            Part::Index(index) => out.push_str(&format!("[{index}]")),
        }
        out
    }
}

struct Reader<'a> {
    bytes: &'a Bytes,
    limits: &'a ReadLimits,
    budget: usize,
    total_budget: usize,
    tables: usize,
    skipped: Vec<SkippedField>,
}

/// A table whose vtable and extent have been checked.
struct RawTable<'a> {
    position: usize,
    size: u16,
    /// Entries of the vtable, two bytes each.
    entries: &'a [[u8; 2]],
}

impl<'a> Reader<'a> {
    fn fail<T>(&self, path: &Path<'_>, problem: Problem) -> Result<T> {
        Err(FormatError::at(path.render(), problem))
    }

    /// `size` bytes at `position`.
    fn slice(&self, what: &'static str, position: usize, size: usize, path: &Path<'_>) -> Result<&'a [u8]> {
        let found = position.checked_add(size).and_then(|end| self.bytes.get(position..end));
        found.map_or_else(|| self.fail(path, self.out_of_bounds(what, position, size)), Ok)
    }

    fn out_of_bounds(&self, what: &'static str, position: usize, size: usize) -> Problem {
        let len = to_u64(self.bytes.len());
        Problem::OutOfBounds { what, position: to_u64(position), wanted: to_u64(size), len }
    }

    fn array<const N: usize>(&self, what: &'static str, position: usize, path: &Path<'_>) -> Result<[u8; N]> {
        let slice = self.slice(what, position, N, path)?;
        slice
            .first_chunk()
            .copied()
            .map_or_else(|| self.fail(path, self.out_of_bounds(what, position, N)), Ok)
    }

    fn u32(&self, what: &'static str, position: usize, path: &Path<'_>) -> Result<usize> {
        // usize has at least 32 bits wherever a file of interest can be mapped.
        Ok(usize::try_from(u32::from_le_bytes(self.array(what, position, path)?)).unwrap_or(usize::MAX))
    }

    /// The position that the offset at `position` points to.
    fn offset(&self, what: &'static str, position: usize, path: &Path<'_>) -> Result<usize> {
        let offset = self.u32(what, position, path)?;
        if offset == 0 {
            return self.fail(path, Problem::NullOffset { position: to_u64(position) });
        }
        Ok(position.saturating_add(offset))
    }

    /// Accounts for `size` bytes that become memory of ours.
    fn visit(&mut self, size: usize, path: &Path<'_>) -> Result<()> {
        match self.budget.checked_sub(size) {
            Some(rest) => {
                self.budget = rest;
                Ok(())
            }
            None => self.fail(path, Problem::Amplification { limit: self.total_budget }),
        }
    }

    fn raw_table(&self, position: usize, path: &Path<'_>) -> Result<RawTable<'a>> {
        let to_vtable = i32::from_le_bytes(self.array("table", position, path)?);
        let signed = i64::try_from(position).unwrap_or(i64::MAX).saturating_sub(to_vtable.into());
        let outside = Problem::VtableOutOfBounds { position: to_u64(position), vtable: signed };
        let Ok(vtable) = usize::try_from(signed) else {
            return self.fail(path, outside);
        };
        if vtable >= self.bytes.len() {
            return self.fail(path, outside);
        }
        let [a, b, c, d] = self.array("vtable", vtable, path)?;
        let (vtable_size, size) = (u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d]));
        if vtable_size < 4 || !vtable_size.is_multiple_of(2) {
            return self.fail(path, Problem::VtableSize { position: to_u64(vtable), size: vtable_size });
        }
        let entries = self.slice("vtable", vtable, vtable_size.into(), path)?;
        self.slice("table", position, usize::from(size).max(4), path)?;
        let entries = entries.as_chunks().0.get(2..).unwrap_or_default();
        Ok(RawTable { position, size, entries })
    }

    fn table(&mut self, kind: TableKind, position: usize, depth: usize, path: &Path<'_>) -> Result<Table> {
        if depth >= self.limits.max_depth {
            return self.fail(path, Problem::TooDeep { limit: self.limits.max_depth });
        }
        self.tables = self.tables.saturating_add(1);
        if self.tables > self.limits.max_tables {
            return self.fail(path, Problem::TooManyTables { limit: self.limits.max_tables });
        }
        let raw = self.raw_table(position, path)?;
        self.visit(usize::from(raw.size).max(4), path)?;
        let desc = kind.desc();
        let mut table = Table::new(kind);
        let present = |field: &&FieldDesc| raw.entry(field.slot).is_some();
        // Two fields may share their bytes in a hostile table: each still costs at least one.
        let count = desc.fields.iter().filter(present).count();
        self.visit(count.saturating_sub(raw.size.into()), path)?;
        table.reserve(count);
        for field in desc.fields {
            let Some(offset) = raw.entry(field.slot) else { continue };
            let path = Path { parent: Some(path), part: Part::Field(field.name) };
            if let Some(value) = self.field(field, &raw, offset, depth, &path)? {
                table.set_slot(field.slot, value);
            }
        }
        self.note_unknown_fields(kind, &raw, path);
        Ok(table)
    }

    fn note_unknown_fields(&mut self, kind: TableKind, raw: &RawTable<'_>, path: &Path<'_>) {
        let known = kind.desc().fields.last().map_or(0, |field| usize::from(field.slot).saturating_add(1));
        for (slot, entry) in raw.entries.iter().enumerate().skip(known) {
            if *entry != [0, 0] && self.skipped.len() < 100 {
                let slot = u16::try_from(slot).unwrap_or(u16::MAX);
                self.skipped.push(SkippedField { path: path.render(), table: kind, slot });
            }
        }
    }

    fn field(
        &mut self,
        field: &FieldDesc,
        raw: &RawTable<'_>,
        offset: u16,
        depth: usize,
        path: &Path<'_>,
    ) -> Result<Option<Value>> {
        let inline = match field.ty {
            FieldType::Scalar(_) | FieldType::Enum(_) => field.ty.scalar_type().map_or(4, ScalarType::size),
            _ => 4,
        };
        let position = self.inline(raw, offset, inline, path)?;
        if let FieldType::Scalar(ty) = field.ty {
            return Ok(Some(Value::Scalar(self.scalar(ty, position, path)?)));
        }
        if let FieldType::Enum(kind) = field.ty {
            return Ok(Some(Value::Scalar(self.scalar(kind.desc().base, position, path)?)));
        }
        if field.ty == FieldType::Union {
            return self.union(field, raw, position, depth, path);
        }
        let target = self.offset("offset", position, path)?;
        let below = depth.saturating_add(1);
        Ok(Some(match field.ty {
            FieldType::String => Value::String(self.string(target, path)?),
            FieldType::Table(kind) => Value::Table(Box::new(self.table(kind, target, below, path)?)),
            FieldType::Numbers(ty) => Value::Numbers(self.numbers(ty, target, path)?),
            FieldType::EnumNumbers(kind) => Value::Numbers(self.numbers(kind.desc().base, target, path)?),
            FieldType::Strings => Value::Strings(self.offsets(target, path, Self::string)?),
            FieldType::Tables(kind) => Value::Tables(
                self.offsets(target, path, |reader, at, path| reader.table(kind, at, below, path))?,
            ),
            FieldType::Scalar(_) | FieldType::Enum(_) | FieldType::Union => return Ok(None),
        }))
    }

    /// The position of a value of `size` bytes inside a table.
    fn inline(&self, raw: &RawTable<'_>, offset: u16, size: usize, path: &Path<'_>) -> Result<usize> {
        let end = usize::from(offset).saturating_add(size);
        if offset < 4 || end > usize::from(raw.size) {
            return self.fail(path, Problem::FieldOutOfTable { offset, size: raw.size });
        }
        Ok(raw.position.saturating_add(offset.into()))
    }

    /// The value of a union: nothing if its tag is absent or 0.
    fn union(
        &mut self,
        field: &FieldDesc,
        raw: &RawTable<'_>,
        position: usize,
        depth: usize,
        path: &Path<'_>,
    ) -> Result<Option<Value>> {
        let Some(tag) = field.slot.checked_sub(1).and_then(|slot| raw.entry(slot)) else { return Ok(None) };
        let [tag] = self.array("union tag", self.inline(raw, tag, 1, path)?, path)?;
        if tag == 0 {
            return Ok(None);
        }
        let Some(kind) = TableKind::from_union_tag(tag) else {
            let last = u8::try_from(UNION_MEMBERS.len()).unwrap_or(u8::MAX);
            return self.fail(path, Problem::UnknownUnionTag { tag, last });
        };
        let target = self.offset("union", position, path)?;
        Ok(Some(Value::Table(Box::new(self.table(kind, target, depth.saturating_add(1), path)?))))
    }

    fn scalar(&self, ty: ScalarType, at: usize, path: &Path<'_>) -> Result<Scalar> {
        let what = "number";
        Ok(match ty {
            ScalarType::Bool => Scalar::Bool(self.array::<1>(what, at, path)? != [0]),
            ScalarType::I8 => Scalar::I8(i8::from_le_bytes(self.array(what, at, path)?)),
            ScalarType::U8 => Scalar::U8(u8::from_le_bytes(self.array(what, at, path)?)),
            ScalarType::U16 => Scalar::U16(u16::from_le_bytes(self.array(what, at, path)?)),
            ScalarType::I32 => Scalar::I32(i32::from_le_bytes(self.array(what, at, path)?)),
            ScalarType::U32 => Scalar::U32(u32::from_le_bytes(self.array(what, at, path)?)),
            ScalarType::I64 => Scalar::I64(i64::from_le_bytes(self.array(what, at, path)?)),
            ScalarType::F32 => Scalar::F32(f32::from_le_bytes(self.array(what, at, path)?)),
        })
    }

    fn string(&mut self, position: usize, path: &Path<'_>) -> Result<String> {
        let len = self.u32("string", position, path)?;
        let start = position.saturating_add(4);
        let bytes = self.slice("string", start, len, path)?;
        self.visit(len.saturating_add(4), path)?;
        if self.array::<1>("string", start.saturating_add(len), path)? != [0] {
            return self.fail(path, Problem::StringNotTerminated { position: to_u64(position) });
        }
        match str::from_utf8(bytes) {
            Ok(text) => Ok(text.to_owned()),
            Err(_) => self.fail(path, Problem::NotUtf8 { position: to_u64(position) }),
        }
    }

    /// A vector of numbers, shared with the file.
    fn numbers(&mut self, ty: ScalarType, position: usize, path: &Path<'_>) -> Result<Numbers> {
        let len = self.u32("vector", position, path)?;
        let start = position.saturating_add(4);
        let size = len.saturating_mul(ty.size());
        self.slice("vector", start, size, path)?;
        // Shared with the file, yet users may copy every vector they find.
        self.visit(size.saturating_add(4), path)?;
        let bytes = self.bytes.slice(start..start.saturating_add(size));
        Numbers::from_bytes(ty, bytes).map_err(|error| error.within(&path.render()))
    }

    /// A vector of offsets, each of which `element` reads.
    fn offsets<T>(
        &mut self,
        position: usize,
        path: &Path<'_>,
        mut element: impl FnMut(&mut Self, usize, &Path<'_>) -> Result<T>,
    ) -> Result<Vec<T>> {
        let len = self.u32("vector", position, path)?;
        let start = position.saturating_add(4);
        let size = len.saturating_mul(4);
        self.slice("vector", start, size, path)?;
        self.visit(size.saturating_add(4), path)?;
        // Not reserved in full: the elements must first prove to be there.
        let mut out = Vec::with_capacity(len.min(1024));
        for (index, at) in (start..).step_by(4).take(len).enumerate() {
            let path = Path { parent: Some(path), part: Part::Index(index) };
            let target = self.offset("offset", at, &path)?;
            out.push(element(self, target, &path)?);
        }
        Ok(out)
    }
}

impl RawTable<'_> {
    /// The offset of a field in the table, if the field is present.
    fn entry(&self, slot: u16) -> Option<u16> {
        let entry = u16::from_le_bytes(*self.entries.get(usize::from(slot))?);
        (entry != 0).then_some(entry)
    }
}

/// Lossless on every machine that Rust supports.
fn to_u64(value: usize) -> u64 {
    u64::try_from(value).unwrap_or(u64::MAX)
}
