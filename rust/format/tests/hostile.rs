//! Damaged and malicious files: an error or a valid model, never a panic, a hang or a huge allocation.

mod common;

use common::{decode_everything, sample_model};
use mnnq_format::schema::{TableKind, net, op};
use mnnq_format::{FormatError, Model, Problem, ReadLimits, Table, Value, read, to_bytes};

fn problem(bytes: Vec<u8>) -> Problem {
    match read(bytes, &ReadLimits::default()) {
        Ok(_) => panic!("the file was accepted"),
        Err(error) => error.problem().cloned().expect("a broken invariant"),
    }
}

/// Reads; if that works, the model must survive everything that users do with it.
fn survive(bytes: Vec<u8>) -> bool {
    let Ok(model) = read(bytes, &ReadLimits::default()) else { return false };
    decode_everything(model.net());
    let written = to_bytes(&model).expect("what was read can be written");
    let again = read(written, &ReadLimits::default()).expect("what was written can be read");
    assert_eq!(again.net(), model.net());
    true
}

/// A generator of the xorshift family: the tests must not depend on a library's sequence.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 11).unwrap() % limit
    }
}

#[test]
fn the_undamaged_model_survives() {
    assert!(survive(to_bytes(&sample_model()).unwrap()));
}

#[test]
fn every_truncation_is_refused_or_harmless() {
    let bytes = to_bytes(&sample_model()).unwrap();
    let accepted = (0..bytes.len()).filter(|&len| survive(bytes[..len].to_vec())).count();
    // Only the padding at the very end can be missing.
    assert!(accepted < 4, "{accepted} truncations were accepted");
}

#[test]
fn flipped_bits_do_no_harm() {
    let bytes = to_bytes(&sample_model()).unwrap();
    let mut random = Random(0x9E37_79B9_7F4A_7C15);
    let mut refused = 0;
    for _ in 0..20_000 {
        let mut damaged = bytes.clone();
        for _ in 0..=random.below(4) {
            let position = random.below(damaged.len());
            damaged[position] ^= 1 << random.below(8);
        }
        refused += usize::from(!survive(damaged));
    }
    assert!(refused > 1000, "only {refused} of 20000 damaged files were refused");
}

#[test]
fn overwritten_words_do_no_harm() {
    let bytes = to_bytes(&sample_model()).unwrap();
    let mut random = Random(42);
    let words = [0_u32, 1, 3, 4, 8, 0x7F, 0xFF, 0xFFFF, 0x7FFF_FFFF, 0x8000_0000, u32::MAX - 3, u32::MAX];
    for position in (0..bytes.len() - 4).step_by(4) {
        for word in words.into_iter().chain([u32::try_from(random.below(bytes.len())).unwrap()]) {
            let mut damaged = bytes.clone();
            damaged[position..position + 4].copy_from_slice(&word.to_le_bytes());
            survive(damaged);
        }
    }
}

#[test]
fn garbage_is_refused() {
    assert!(matches!(problem(vec![]), Problem::OutOfBounds { what: "root offset", .. }));
    assert!(matches!(problem(vec![0; 64]), Problem::NullOffset { position: 0 }));
    assert!(matches!(problem(vec![0xFF; 64]), Problem::OutOfBounds { what: "table", .. }));
    assert!(matches!(problem(b"not a model, but some text".to_vec()), Problem::OutOfBounds { .. }));
}

/// A file from 32-bit words (16-bit pairs in the vtables are written as one word, low half first).
fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// Two 16-bit values as a word.
fn pair(low: u16, high: u16) -> u32 {
    u32::from(low) | u32::from(high) << 16
}

/// A root table whose only field is `slot`, an offset to `target` (in words from the field).
fn root_with(slot: u16, target: u32, rest: &[u32]) -> Vec<u8> {
    // Word 0: root offset. Words 1-7: a vtable of 12 slots. Word 8: the table. Word 9: its field.
    let mut vtable = [0_u16; 14];
    (vtable[0], vtable[1], vtable[2 + usize::from(slot)]) = (28, 8, 4);
    let mut all = vec![32];
    all.extend(vtable.chunks(2).map(|chunk| pair(chunk[0], chunk[1])));
    all.extend([28, target * 4]);
    all.extend(rest);
    words(&all)
}

#[test]
fn each_broken_invariant_has_its_error() {
    // A string in slot 0: length 3, no terminator (the file ends).
    let text = u32::from_le_bytes(*b"abc\x01");
    assert!(matches!(problem(root_with(0, 1, &[3, text])), Problem::StringNotTerminated { .. }));
    assert!(matches!(
        problem(root_with(0, 1, &[u32::MAX, text])),
        Problem::OutOfBounds { what: "string", .. }
    ));
    let not_text = u32::from_le_bytes([0xC3, 0x28, 0x41, 0]);
    assert!(matches!(problem(root_with(0, 1, &[3, not_text])), Problem::NotUtf8 { .. }));
    assert!(matches!(problem(root_with(0, 0, &[])), Problem::NullOffset { .. }));
    // A vector of tables with a length that overflows.
    assert!(matches!(problem(root_with(3, 1, &[0x4000_0001])), Problem::OutOfBounds { what: "vector", .. }));
    // A table whose vtable would be before the file, after it, of odd size, too small.
    let outside = |to_vtable| problem(root_with(2, 1, &[to_vtable, 0, 0]));
    assert!(matches!(outside(1000), Problem::VtableOutOfBounds { vtable, .. } if vtable < 0));
    assert!(matches!(outside(0_u32.wrapping_sub(1000)), Problem::VtableOutOfBounds { .. }));
    let size = |size| problem(root_with(2, 1, &[0_u32.wrapping_sub(4), pair(size, 4)]));
    assert!(matches!(size(5), Problem::VtableSize { size: 5, .. }));
    assert!(matches!(size(2), Problem::VtableSize { size: 2, .. }));
    assert!(matches!(size(0x7FFE), Problem::OutOfBounds { what: "vtable", .. }));
    // A field outside of its table.
    let field = |offset| problem(root_with(2, 1, &[0_u32.wrapping_sub(4), pair(6, 8), offset]));
    assert_eq!(field(6), Problem::FieldOutOfTable { offset: 6, size: 8 });
    assert_eq!(field(2), Problem::FieldOutOfTable { offset: 2, size: 8 });
    // Nothing wrong, but no graph.
    assert_eq!(problem(root_with(0, 1, &[3, u32::from_le_bytes(*b"abc\0"), 0])), Problem::Missing);
}

#[test]
fn offsets_do_not_wrap_around() {
    // Offsets are unsigned and point forward, so that a cycle of tables would have to wrap around 32 bits.
    let mut bytes = to_bytes(&nested_attributes(Table::new(TableKind::Attribute))).unwrap();
    for position in (0..bytes.len() - 4).step_by(4) {
        let saved: [u8; 4] = bytes[position..position + 4].try_into().unwrap();
        for back in (4..=u32::try_from(position).unwrap()).step_by(4) {
            bytes[position..position + 4].copy_from_slice(&0_u32.wrapping_sub(back).to_le_bytes());
            survive(bytes.clone());
        }
        bytes[position..position + 4].copy_from_slice(&saved);
    }
}

fn nested_attributes(leaf: Table) -> Model {
    use mnnq_format::schema::{OpType, attribute, named_attr_list, plugin};
    let list = Table::new(TableKind::NamedAttrList).with(named_attr_list::ATTR, vec![leaf]);
    let outer = Table::new(TableKind::Attribute).with(attribute::FUNC, list);
    let main = Table::new(TableKind::Plugin).with(plugin::ATTR, vec![outer]);
    let node = common::node(OpType::Plugin, "p", vec![], vec![0], Some(main));
    let names = vec!["t".to_owned()];
    Model::new(Table::new(TableKind::Net).with(net::OPLISTS, vec![node]).with(net::TENSOR_NAME, names))
        .unwrap()
}

#[test]
fn deep_nesting_is_refused_by_reader_and_writer() {
    use mnnq_format::schema::{attribute, named_attr_list};
    let nested = |depth: usize| {
        (0..depth).fold(Table::new(TableKind::Attribute), |leaf, _| {
            let list = Table::new(TableKind::NamedAttrList).with(named_attr_list::ATTR, vec![leaf]);
            Table::new(TableKind::Attribute).with(attribute::FUNC, list)
        })
    };
    let error = to_bytes(&nested_attributes(nested(40))).unwrap_err();
    assert_eq!(error.problem(), Some(&Problem::TooDeep { limit: 64 }));
    let bytes = to_bytes(&nested_attributes(nested(20))).unwrap();
    assert!(read(bytes.clone(), &ReadLimits::default()).is_ok());
    let error = read(bytes, &ReadLimits { max_depth: 30, ..ReadLimits::default() }).unwrap_err();
    assert_eq!(error.problem(), Some(&Problem::TooDeep { limit: 30 }));
    assert!(error.field_path().unwrap().starts_with("oplists[0].main.attr[0].func.attr[0].func.attr[0]"));
}

#[test]
fn repeated_references_are_refused() {
    // One op table, referred to by every element of a vector.
    let count = 100_000_u32;
    let mut rest = vec![count];
    rest.extend((0..count).map(|i| (count - i) * 4));
    // The op: its link to a vtable that follows, then one string field that points behind the vtable.
    rest.extend([0_u32.wrapping_sub(8), 16, pair(10, 8), pair(0, 0), pair(0, 4)]);
    // The string: 60000 bytes that would be copied once per reference.
    rest.push(60_000);
    rest.extend(std::iter::repeat_n(u32::from_le_bytes(*b"aaaa"), 15_000));
    rest.push(0);
    let found = problem(root_with(3, 1, &rest));
    assert!(matches!(found, Problem::Amplification { .. }), "{found:?}");
}

#[test]
fn limits_are_obeyed() {
    let bytes = to_bytes(&sample_model()).unwrap();
    let limit = |limits: ReadLimits| read(bytes.clone(), &limits).unwrap_err().problem().cloned().unwrap();
    let default = ReadLimits::default();
    let size = bytes.len().try_into().unwrap();
    assert_eq!(
        limit(ReadLimits { max_file_size: 100, ..default }),
        Problem::FileTooLarge { len: size, limit: 100 }
    );
    assert_eq!(limit(ReadLimits { max_tables: 10, ..default }), Problem::TooManyTables { limit: 10 });
}

#[test]
fn unknown_union_tags_are_refused() {
    let bytes = to_bytes(&sample_model()).unwrap();
    // The tag of `Fill` (16) of the op "fill" is the only byte that, changed, gives an unknown tag error there.
    let found = (0..bytes.len()).any(|position| {
        let mut damaged = bytes.clone();
        damaged[position] = 200;
        match read(damaged, &ReadLimits::default()) {
            Err(FormatError::Invalid { path, problem: Problem::UnknownUnionTag { tag: 200, last: 103 } }) => {
                path.starts_with("oplists[") && path.ends_with("].main")
            }
            _ => false,
        }
    });
    assert!(found);
}

#[test]
fn graph_errors_name_their_place() {
    let check = |change: &dyn Fn(&mut Table), path: &str, wanted: Problem| {
        let mut model = sample_model();
        change(model.net_mut());
        let bytes = to_bytes(&model).unwrap();
        match read(bytes, &ReadLimits::default()).unwrap_err() {
            FormatError::Invalid { path: found, problem } => {
                assert_eq!((found.as_str(), problem), (path, wanted));
            }
            other => panic!("{other}"),
        }
    };
    let count = sample_model().tensor_names().len();
    fn first(net: &mut Table) -> &mut Table {
        &mut net.tables_mut(net::OPLISTS).unwrap()[1]
    }
    check(
        &|net| {
            let _ = first(net).set(op::INPUT_INDEXES, vec![0, 99]);
        },
        "oplists[1].inputIndexes[1]",
        Problem::TensorIndex { index: 99, count },
    );
    check(
        &|net| {
            let _ = first(net).set(op::OUTPUT_INDEXES, vec![-1]);
        },
        "oplists[1].outputIndexes[0]",
        Problem::TensorIndex { index: -1, count },
    );
    check(
        &|net| {
            let _ = first(net).set(op::OUTPUT_INDEXES, vec![0]);
        },
        "oplists[1].outputIndexes[0]",
        Problem::ProducedTwice { index: 0, by: 0 },
    );
    check(
        &|net| {
            net.take(net::TENSOR_NAME);
        },
        "tensorName",
        Problem::Missing,
    );
    check(
        &|net| {
            net.take(net::OPLISTS);
        },
        "oplists",
        Problem::Missing,
    );
    let position = sample_model().ops().iter().position(|node| node.get(op::NAME) == Some("if")).unwrap();
    check(
        &|net| {
            let _ = net.take(net::SUBGRAPHS);
        },
        &format!("oplists[{position}].main.then_graph"),
        Problem::UnknownSubgraph { name: "body".into() },
    );
}

#[test]
fn the_writer_refuses_values_of_the_wrong_type() {
    let mut table = Table::new(TableKind::Op);
    let error = table.set_by_name("name", Value::Strings(vec![])).unwrap_err();
    assert_eq!(error.to_string(), "name: wanted a string, got a vector of strings");
    assert_eq!(
        table.set_by_name("nane", Value::String(String::new())).unwrap_err().to_string(),
        "Op has no field \"nane\""
    );
    // Typed fields check the kind of number, not the kind of table.
    let mut model = sample_model();
    model.net_mut().set(net::OPLISTS, vec![Table::new(TableKind::Blob)]);
    let error = to_bytes(&model).unwrap_err();
    assert_eq!(error.to_string(), "oplists: wanted a vector of tables Op, got a vector of tables Blob");
}
