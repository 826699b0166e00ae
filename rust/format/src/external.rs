//! Weights in a side file: `model.mnn` may come with `model.mnn.weight`.
//!
//! A table whose vectors are there instead of in the model has `external = [offset, size, size, ...]`: the position of
//! the first vector in the side file and the byte sizes of consecutive vectors, without padding.
//!
//! | table | vectors in order |
//! | --- | --- |
//! | `Convolution2D` with floats | weight, bias |
//! | `Convolution2D` with `quanParameter` | buffer, alpha (or alphaFp16), bias, index |
//! | `Blob` | the vector of its data type |
//! | `LayerNorm` | gamma, beta |
//! | `Scale` | scaleData, biasData |
#![deny(clippy::as_conversions, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use crate::blob;
use crate::error::{FormatError, Problem, Result};
use crate::mapping::map_file;
use crate::model::{Model, Number, Numbers, Table, Value};
use crate::reader::{ReadLimits, read};
use crate::schema::{
    DataType, Field, ScaleStorageType, TableKind, blob as blob_field, convolution2d, idst_quan, layer_norm,
    net, op, scale, sub_graph_proto, tensor_describe,
};

/// Blobs of at most this many elements stay in the model.
const SMALL_BLOB: usize = 1024;

/// Where the side file of a model is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum SideFile {
    /// `<model path>.weight`, if it exists; else external data stays unresolved.
    #[default]
    Beside,
    /// This file, which must exist if the model refers to external data.
    At(PathBuf),
    /// Do not look: external data stays unresolved.
    Ignore,
}

/// `<path>.weight`
#[must_use]
pub fn side_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".weight");
    name.into()
}

/// Maps, reads and validates a model file, and its side file where it has one.
///
/// Weights are neither read nor copied: they are slices of the mapped files. Nobody may change these files in place
/// while the model is in use; replacing them is harmless.
///
/// # Errors
/// [`FormatError::Io`] if a file cannot be opened, [`FormatError::Invalid`] with the first broken invariant.
pub fn read_file(path: &Path, side: &SideFile, limits: &ReadLimits) -> Result<Model> {
    let mut model = read(map_file(path)?, limits)?;
    let side = match side {
        SideFile::Ignore => return Ok(model),
        SideFile::At(side) => side.clone(),
        SideFile::Beside => {
            let side = side_path(path);
            if !side.exists() {
                return Ok(model);
            }
            side
        }
    };
    if has_external(model.net()) {
        resolve(&mut model, &map_file(&side)?)?;
    }
    Ok(model)
}

/// Maps a side file, for [`resolve`].
///
/// # Errors
/// [`FormatError::Io`] if it cannot be opened.
pub fn map_side_file(path: &Path) -> Result<Bytes> {
    map_file(path)
}

/// Whether any table of the model has data in a side file.
#[must_use]
pub fn has_external(table: &Table) -> bool {
    table.fields().any(|(field, value)| match value {
        Value::Numbers(numbers) => field.name == "external" && !numbers.is_empty(),
        Value::Table(table) => has_external(table),
        Value::Tables(tables) => tables.iter().any(has_external),
        Value::Scalar(_) | Value::String(_) | Value::Strings(_) => false,
    })
}

/// Replaces all references to the side file by the data itself (slices of `side`).
///
/// # Errors
/// [`Problem::ExternalCount`], [`Problem::ExternalRange`] or [`Problem::ExternalSize`] for a reference that does not
/// fit the table or the side file, [`Problem::UnsupportedExternal`] for a table whose external layout is not known.
pub fn resolve(model: &mut Model, side: &Bytes) -> Result<()> {
    // Tables may share data, but not so often that the model gets out of proportion.
    let limit = side.len().saturating_mul(SHARING).saturating_add(1 << 16);
    resolve_table(model.net_mut(), &mut Side { bytes: side, budget: limit, limit })
}

/// How often a byte of the side file may be referred to on average.
const SHARING: usize = 4;

/// The side file, and how many more bytes of it may be referred to.
struct Side<'a> {
    bytes: &'a Bytes,
    budget: usize,
    limit: usize,
}

fn resolve_table(table: &mut Table, side: &mut Side<'_>) -> Result<()> {
    let desc = table.kind().desc();
    for (slot, value) in table.values_mut() {
        let name = desc.field(slot).map_or("?", |field| field.name);
        match value {
            Value::Table(table) => resolve_table(table, side).map_err(|error| error.within(name))?,
            Value::Tables(tables) => {
                for (index, table) in tables.iter_mut().enumerate() {
                    let within = |error: FormatError| error.within(&format!("{name}[{index}]"));
                    resolve_table(table, side).map_err(within)?;
                }
            }
            Value::Scalar(_) | Value::String(_) | Value::Numbers(_) | Value::Strings(_) => {}
        }
    }
    let Some(external) = desc.field_by_name("external") else { return Ok(()) };
    let Some(Value::Numbers(numbers)) = table.value(external.slot) else { return Ok(()) };
    let numbers = numbers.as_i64().unwrap_or_default().into_owned();
    if !numbers.is_empty() {
        load(table, &numbers, side).map_err(|error| error.within("external"))?;
    }
    table.remove_slot(external.slot);
    Ok(())
}

/// A cursor over the ranges of one `external` list.
struct Ranges<'a, 's> {
    side: &'a mut Side<'s>,
    sizes: std::slice::Iter<'a, i64>,
    offset: i64,
}

impl<'a, 's> Ranges<'a, 's> {
    fn new(
        numbers: &'a [i64],
        wanted: std::ops::RangeInclusive<usize>,
        side: &'a mut Side<'s>,
    ) -> Result<Self> {
        let count = Problem::ExternalCount { got: numbers.len(), wanted: *wanted.end() };
        match numbers.split_first() {
            Some((&offset, sizes)) if wanted.contains(&numbers.len()) => {
                Ok(Self { side, sizes: sizes.iter(), offset })
            }
            _ => Err(FormatError::at("", count)),
        }
    }

    fn next(&mut self) -> Result<Bytes> {
        let size = self.sizes.next().copied().unwrap_or(0);
        let offset = self.offset;
        let range = || {
            let start = usize::try_from(offset).ok()?;
            let end = start.checked_add(usize::try_from(size).ok()?)?;
            (end <= self.side.bytes.len()).then(|| self.side.bytes.slice(start..end))
        };
        let Some(bytes) = range() else {
            let len = u64::try_from(self.side.bytes.len()).unwrap_or(u64::MAX);
            return Err(FormatError::at("", Problem::ExternalRange { offset, size, len }));
        };
        match self.side.budget.checked_sub(bytes.len()) {
            Some(rest) => self.side.budget = rest,
            None => return Err(FormatError::at("", Problem::Amplification { limit: self.side.limit })),
        }
        self.offset = offset.saturating_add(size);
        Ok(bytes)
    }

    /// Puts the next range into `field`; an empty one leaves the field absent.
    fn load<T: Number>(&mut self, table: &mut Table, field: Field<Vec<T>>) -> Result<()> {
        let bytes = self.next()?;
        if !bytes.is_empty() {
            let numbers = Numbers::from_bytes(T::TYPE, bytes)?;
            table.set_slot(field.slot(), Value::Numbers(numbers));
        }
        Ok(())
    }
}

fn load(table: &mut Table, numbers: &[i64], side: &mut Side<'_>) -> Result<()> {
    match table.kind() {
        TableKind::Convolution2D => load_convolution(table, numbers, side),
        TableKind::Blob => {
            let mut ranges = Ranges::new(numbers, 2..=2, side)?;
            let field = blob::data_field(table.get(blob_field::DATA_TYPE))?;
            let bytes = ranges.next()?;
            let element = field.ty.scalar_type().unwrap_or(crate::schema::ScalarType::U8);
            table.set_slot(field.slot, Value::Numbers(Numbers::from_bytes(element, bytes)?));
            Ok(())
        }
        TableKind::LayerNorm => {
            let mut ranges = Ranges::new(numbers, 3..=3, side)?;
            ranges.load(table, layer_norm::GAMMA)?;
            ranges.load(table, layer_norm::BETA)
        }
        TableKind::Scale => {
            let mut ranges = Ranges::new(numbers, 3..=3, side)?;
            ranges.load(table, scale::SCALE_DATA)?;
            ranges.load(table, scale::BIAS_DATA)
        }
        kind => Err(FormatError::at("", Problem::UnsupportedExternal { table: kind.name() })),
    }
}

fn load_convolution(table: &mut Table, numbers: &[i64], side: &mut Side<'_>) -> Result<()> {
    let Some(quantized) = table.table_mut(convolution2d::QUAN_PARAMETER) else {
        let mut ranges = Ranges::new(numbers, 3..=3, side)?;
        ranges.load(table, convolution2d::WEIGHT)?;
        return ranges.load(table, convolution2d::BIAS);
    };
    // Files of older converters lack the last number.
    let mut ranges = Ranges::new(numbers, 4..=5, side)?;
    ranges.load(quantized, idst_quan::BUFFER)?;
    if quantized.get(idst_quan::SCALE_STORAGE) == ScaleStorageType::FP16 {
        ranges.load(quantized, idst_quan::ALPHA_FP16)?;
    } else {
        ranges.load(quantized, idst_quan::ALPHA)?;
    }
    let mut bias = Table::new(TableKind::Convolution2D);
    ranges.load(&mut bias, convolution2d::BIAS)?;
    ranges.load(quantized, idst_quan::INDEX)?;
    if let Some(bias) = bias.take(convolution2d::BIAS) {
        table.set_slot(convolution2d::BIAS.slot(), bias);
    }
    Ok(())
}

/// A model whose large vectors have been moved out.
pub(crate) struct Split {
    /// The root table, with `external` in place of the vectors.
    pub(crate) net: Table,
    /// The content of the side file, in order.
    pub(crate) payloads: Vec<Numbers>,
    /// Its size in bytes.
    pub(crate) size: u64,
    /// Tensors of the graph at hand that are described as int8.
    int8: HashSet<i32>,
}

fn int8_tensors(described: Option<&[Table]>) -> HashSet<i32> {
    let described = described.unwrap_or_default().iter();
    described
        .filter(|tensor| tensor.has(tensor_describe::QUANT_INFO))
        .map(|tensor| tensor.get(tensor_describe::INDEX))
        .collect()
}

/// Moves the weights of all ops into a side file. (The vectors themselves are shared, not copied.)
///
/// Float weights of convolutions between int8 tensors stay: MNN 3.6.1 takes a convolution without `weight` there for
/// an int8 one and crashes.
pub(crate) fn split(root: &Table) -> Result<Split> {
    let mut root = root.clone();
    let mut split =
        Split { net: Table::new(TableKind::Net), payloads: Vec::new(), size: 0, int8: HashSet::new() };
    split.int8 = int8_tensors(root.get(net::EXTRA_TENSOR_DESCRIBE));
    for (index, node) in root.tables_mut(net::OPLISTS).into_iter().flatten().enumerate() {
        split.op(node).map_err(|error| error.within(&format!("oplists[{index}]")))?;
    }
    for (graph_index, graph) in root.tables_mut(net::SUBGRAPHS).into_iter().flatten().enumerate() {
        split.int8 = int8_tensors(graph.get(sub_graph_proto::EXTRA_TENSOR_DESCRIBE));
        for (index, node) in graph.tables_mut(sub_graph_proto::NODES).into_iter().flatten().enumerate() {
            let place = format!("subgraphs[{graph_index}].nodes[{index}]");
            split.op(node).map_err(|error| error.within(&place))?;
        }
    }
    split.net = root;
    Ok(split)
}

impl Split {
    fn op(&mut self, node: &mut Table) -> Result<()> {
        let inputs = node.get(op::INPUT_INDEXES).map_or(0, Numbers::len);
        let outputs = node.get(op::OUTPUT_INDEXES).and_then(Numbers::as_i32).unwrap_or_default();
        let int8 = outputs.iter().any(|tensor| self.int8.contains(tensor));
        let Some(main) = node.table_mut(op::MAIN) else { return Ok(()) };
        if has_external(main) {
            return Err(FormatError::at("main.external", Problem::ExternalMissing { wanted: None }));
        }
        match main.kind() {
            TableKind::Convolution2D if inputs <= 1 => self.convolution(main, int8),
            TableKind::Blob => {
                let floats = main.get(blob_field::FLOAT32S).map_or(0, Numbers::len);
                if main.get(blob_field::DATA_TYPE) == DataType::DT_FLOAT && floats > SMALL_BLOB {
                    let parts = [main.take(blob_field::FLOAT32S)];
                    self.push(main, blob_field::EXTERNAL, parts);
                }
            }
            TableKind::LayerNorm if main.has(layer_norm::GAMMA) && main.has(layer_norm::BETA) => {
                let parts = [main.take(layer_norm::GAMMA), main.take(layer_norm::BETA)];
                self.push(main, layer_norm::EXTERNAL, parts);
            }
            TableKind::Scale if main.has(scale::SCALE_DATA) && main.has(scale::BIAS_DATA) => {
                let parts = [main.take(scale::SCALE_DATA), main.take(scale::BIAS_DATA)];
                self.push(main, scale::EXTERNAL, parts);
            }
            _ => {}
        }
        Ok(())
    }

    fn convolution(&mut self, main: &mut Table, int8: bool) {
        let bias = main.has(convolution2d::BIAS);
        if let Some(quantized) = main.table_mut(convolution2d::QUAN_PARAMETER) {
            let half = quantized.get(idst_quan::SCALE_STORAGE) == ScaleStorageType::FP16;
            let buffer = quantized.take(idst_quan::BUFFER);
            let alpha =
                if half { quantized.take(idst_quan::ALPHA_FP16) } else { quantized.take(idst_quan::ALPHA) };
            let index = quantized.take(idst_quan::INDEX);
            let bias = main.take(convolution2d::BIAS);
            self.push(main, convolution2d::EXTERNAL, [buffer, alpha, bias, index]);
        } else if bias && !int8 && main.get(convolution2d::WEIGHT).is_some_and(|weight| !weight.is_empty()) {
            let parts = [main.take(convolution2d::WEIGHT), main.take(convolution2d::BIAS)];
            self.push(main, convolution2d::EXTERNAL, parts);
        }
    }

    fn push<const N: usize>(&mut self, table: &mut Table, field: Field<Vec<i64>>, parts: [Option<Value>; N]) {
        let mut external = vec![i64::try_from(self.size).unwrap_or(i64::MAX)];
        for part in parts {
            let numbers = match part {
                Some(Value::Numbers(numbers)) => numbers,
                _ => Vec::<u8>::new().into(),
            };
            let size = numbers.byte_len();
            external.push(i64::try_from(size).unwrap_or(i64::MAX));
            self.size = self.size.saturating_add(u64::try_from(size).unwrap_or(u64::MAX));
            if size > 0 {
                self.payloads.push(numbers);
            }
        }
        table.set(field, external);
    }
}
