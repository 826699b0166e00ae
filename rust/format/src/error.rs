//! What can be wrong with a file, a weight payload or a model that is to be written.

use std::io;
use std::path::{Path, PathBuf};

/// Short for results of this crate.
pub type Result<T, E = FormatError> = std::result::Result<T, E>;

/// An error of this crate: a failed file operation, or a broken invariant and the field that breaks it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FormatError {
    /// The operating system refused a file operation.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried: "open", "map", "write", ...
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The content of a file or model breaks an invariant of the format.
    #[error("{}{problem}", prefix(path))]
    Invalid {
        /// The field, e.g. `oplists[3].main.weight`; empty for the file as a whole.
        path: String,
        /// What is wrong with it.
        problem: Problem,
    },
}

fn prefix(path: &str) -> String {
    if path.is_empty() { String::new() } else { format!("{path}: ") }
}

impl FormatError {
    /// An invariant broken at `path`.
    pub fn at(path: impl Into<String>, problem: Problem) -> Self {
        Self::Invalid { path: path.into(), problem }
    }

    pub(crate) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { action, path: path.to_owned(), source }
    }

    /// The same error seen from one level above: the path gets `parent` in front.
    #[must_use]
    pub fn within(self, parent: &str) -> Self {
        match self {
            Self::Invalid { path, problem } if path.is_empty() => Self::at(parent, problem),
            Self::Invalid { path, problem } if path.starts_with('[') => {
                Self::at(format!("{parent}{path}"), problem)
            }
            Self::Invalid { path, problem } => Self::at(format!("{parent}.{path}"), problem),
            other @ Self::Io { .. } => other,
        }
    }

    /// The field that is wrong, if the error belongs to one.
    #[must_use]
    pub fn field_path(&self) -> Option<&str> {
        match self {
            Self::Invalid { path, .. } if !path.is_empty() => Some(path),
            _ => None,
        }
    }

    /// What is wrong, if it is a broken invariant.
    #[must_use]
    pub fn problem(&self) -> Option<&Problem> {
        match self {
            Self::Invalid { problem, .. } => Some(problem),
            Self::Io { .. } => None,
        }
    }
}

/// One broken invariant. Offsets and lengths are in bytes of the file unless said otherwise.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// Larger than FlatBuffers can address, or than the limit in force.
    #[error("the file has {len} bytes, more than the limit of {limit}")]
    FileTooLarge {
        /// Size found.
        len: u64,
        /// Size allowed.
        limit: u64,
    },
    /// A value lies (partly) outside of the file.
    #[error(
        "{what} at byte {position} needs {wanted} bytes, but the file ends at byte {len}; is it truncated?"
    )]
    OutOfBounds {
        /// "root offset", "table", "vtable", "vector", "string", ...
        what: &'static str,
        /// Where it starts.
        position: u64,
        /// How many bytes it has.
        wanted: u64,
        /// Size of the file.
        len: u64,
    },
    /// An offset of zero where a value was announced.
    #[error("the offset at byte {position} is zero")]
    NullOffset {
        /// Where the offset is stored.
        position: u64,
    },
    /// The table's link to its vtable points outside of the file.
    #[error("the table at byte {position} places its vtable at {vtable}, outside of the file")]
    VtableOutOfBounds {
        /// Where the table starts.
        position: u64,
        /// Where the vtable would be.
        vtable: i64,
    },
    /// A vtable size that no writer produces.
    #[error("the vtable at byte {position} claims {size} bytes (wanted an even number, at least 4)")]
    VtableSize {
        /// Where the vtable starts.
        position: u64,
        /// Its size field.
        size: u16,
    },
    /// A field whose inline value does not lie inside its table.
    #[error("the value at offset {offset} does not lie inside its table of {size} bytes")]
    FieldOutOfTable {
        /// Offset in the table.
        offset: u16,
        /// Inline size of the table.
        size: u16,
    },
    /// A string that is not UTF-8.
    #[error("the string at byte {position} is not UTF-8")]
    NotUtf8 {
        /// Where the string starts.
        position: u64,
    },
    /// A string without its terminating zero.
    #[error("the string at byte {position} is not followed by a zero byte")]
    StringNotTerminated {
        /// Where the string starts.
        position: u64,
    },
    /// A union tag that the schema does not have.
    #[error("union tag {tag} is not known (this schema has 1 to {last})")]
    UnknownUnionTag {
        /// The tag.
        tag: u8,
        /// The largest one known.
        last: u8,
    },
    /// Tables nested too deeply.
    #[error("tables are nested deeper than {limit}")]
    TooDeep {
        /// Depth allowed.
        limit: usize,
    },
    /// Too many tables.
    #[error("the file has more than {limit} tables")]
    TooManyTables {
        /// Number allowed.
        limit: usize,
    },
    /// Tables or strings are referred to so often that the model would be much larger than its file.
    #[error("the file refers to the same bytes again and again: more than {limit} bytes to visit")]
    Amplification {
        /// Bytes allowed.
        limit: usize,
    },
    /// A field that must be there is absent.
    #[error("missing")]
    Missing,
    /// A tensor index outside of the list of tensor names.
    #[error("tensor index {index} is not one of the {count} tensors")]
    TensorIndex {
        /// The index.
        index: i32,
        /// Number of tensors in this graph.
        count: usize,
    },
    /// A tensor that two ops produce.
    #[error("tensor {index} is already produced by op {by}")]
    ProducedTwice {
        /// The tensor index.
        index: i32,
        /// Position of the op that produces it first.
        by: usize,
    },
    /// A subgraph that the file does not contain.
    #[error("there is no subgraph \"{name}\"")]
    UnknownSubgraph {
        /// The name.
        name: String,
    },
    /// Two subgraphs of the same name.
    #[error("there is already a subgraph \"{name}\"")]
    DuplicateSubgraph {
        /// The name.
        name: String,
    },
    /// A value of another type than the schema says.
    #[error("wanted {wanted}, got {got}")]
    WrongType {
        /// What the schema says.
        wanted: String,
        /// What was there.
        got: String,
    },
    /// A table that has no such field.
    #[error("{table} has no field \"{name}\"")]
    UnknownField {
        /// The table type.
        table: &'static str,
        /// The name.
        name: String,
    },
    /// An `external` list that does not describe this table's data.
    #[error("`external` has {got} numbers, wanted {wanted}")]
    ExternalCount {
        /// Numbers found.
        got: usize,
        /// Numbers wanted.
        wanted: usize,
    },
    /// A range outside of the side file.
    #[error("bytes {offset}+{size} do not lie in the external weight file of {len} bytes")]
    ExternalRange {
        /// Start of the range.
        offset: i64,
        /// Its size.
        size: i64,
        /// Size of the side file.
        len: u64,
    },
    /// A range whose size is not a multiple of its element size.
    #[error("{size} bytes are not a whole number of elements of {element} bytes")]
    ExternalSize {
        /// Size of the range.
        size: usize,
        /// Size of an element.
        element: usize,
    },
    /// The data is in a side file that was not given or not found.
    #[error("the data is in an external weight file that was not loaded{}", wanted.as_deref().map(|p| format!(" ({p})")).unwrap_or_default())]
    ExternalMissing {
        /// Where it was looked for, if anywhere.
        wanted: Option<String>,
    },
    /// A weight payload that ends before its content.
    #[error("the payload ends after {len} bytes; {what} needs {wanted}")]
    PayloadTooShort {
        /// The part that is cut off.
        what: &'static str,
        /// Bytes wanted, from the start of the payload.
        wanted: u64,
        /// Bytes present.
        len: usize,
    },
    /// A header whose number of dimensions is not 1 to 4.
    #[error("the payload has {count} dimensions, wanted 1 to 4")]
    PayloadDims {
        /// The number.
        count: u8,
    },
    /// More weights than can be, or than the payload can reasonably stand for.
    #[error("{count} weights, more than the limit of {limit} for a payload of this size")]
    TooManyWeights {
        /// The number, saturated.
        count: u64,
        /// The limit.
        limit: u64,
    },
    /// A step width of a sparse payload that is not 1 to 8 bits.
    #[error("steps of {bits} bits, wanted 1 to 8")]
    StepBits {
        /// The width.
        bits: u8,
    },
    /// A position outside of the weights.
    #[error("entry {entry} is at position {position}, but there are {count} weights")]
    PositionOutOfRange {
        /// Number of the entry.
        entry: usize,
        /// Where it points.
        position: u64,
        /// Number of weights.
        count: usize,
    },
    /// Index into the value table beyond its end.
    #[error("entry {entry} has value index {index}, but the table has {count} values")]
    ValueIndex {
        /// Number of the entry.
        entry: usize,
        /// The index.
        index: u8,
        /// Number of values.
        count: usize,
    },
    /// Scales that do not divide the weights into equal rows.
    #[error("{scales} scale values do not divide {weights} weights into equal rows")]
    RowCount {
        /// Length of `alpha`.
        scales: usize,
        /// Number of weights.
        weights: usize,
    },
    /// Vectors whose lengths do not fit together.
    #[error("length {got}, wanted {wanted}")]
    Length {
        /// Length found.
        got: usize,
        /// Length wanted.
        wanted: usize,
    },
    /// A code outside of the range of its bit width.
    #[error("code {code} at position {position} does not fit {bits} bits")]
    CodeRange {
        /// The code.
        code: i8,
        /// Where it is.
        position: usize,
        /// The bit width.
        bits: u8,
    },
    /// A bit width outside of 2..=8.
    #[error("bit width {bits}, wanted 2 to 8")]
    BitWidth {
        /// The width.
        bits: u8,
    },
    /// A storage type of weights that is not known.
    #[error("weight storage type {kind} is not supported (1, 2, 3, 4 are)")]
    UnsupportedStorage {
        /// `IDSTQuan.type`.
        kind: i32,
    },
    /// A table whose external data this crate does not know how to load.
    #[error("external data of {table} is not supported")]
    UnsupportedExternal {
        /// The table type.
        table: &'static str,
    },
    /// Tensor data of a type that is not supported.
    #[error("tensor data of type {data_type} is not supported")]
    UnsupportedDataType {
        /// Name or number of the type.
        data_type: String,
    },
    /// A convolution that has no weights of its own.
    #[error("the convolution has no weights of its own (they are inputs, or missing)")]
    NoWeights,
    /// A model too large for one file, even with external weights.
    #[error(
        "the model needs {len} bytes in one file, more than the limit of {limit}; write it with external weights"
    )]
    TooLargeToWrite {
        /// Bytes needed.
        len: u64,
        /// Bytes allowed.
        limit: u64,
    },
    /// A payload whose owner changed its length after the model was built.
    #[error("the data changed from {wanted} to {got} bytes while it was written")]
    PayloadChanged {
        /// Bytes when the model was built.
        wanted: usize,
        /// Bytes now.
        got: usize,
    },
}

impl Problem {
    /// Whether the content is legal but of a kind that this crate does not handle.
    #[must_use]
    pub fn is_unsupported(&self) -> bool {
        matches!(
            self,
            Self::UnsupportedStorage { .. }
                | Self::UnsupportedExternal { .. }
                | Self::UnsupportedDataType { .. }
                | Self::UnknownUnionTag { .. }
        )
    }

    /// The name of the variant, for programs.
    #[must_use]
    pub fn name(&self) -> String {
        let debug = format!("{self:?}");
        debug.split([' ', '{']).next().unwrap_or_default().to_owned()
    }
}
