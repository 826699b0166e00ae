//! What is written is read back the same; files appear whole; weights can lie in a side file.

mod common;

use std::sync::Arc;

use common::{decode_everything, node, sample_model};
use mnnq_format::external::side_path;
use mnnq_format::model::PayloadSource;
use mnnq_format::schema::*;
use mnnq_format::{
    FormatError, Model, Numbers, Problem, ReadLimits, SideFile, Table, WriteOptions, conv_weights, read,
    read_file, to_bytes, write_file,
};
use proptest::prelude::*;

fn limits() -> ReadLimits {
    ReadLimits::default()
}

#[test]
fn a_model_survives_writing() {
    let model = sample_model();
    let bytes = to_bytes(&model).unwrap();
    let back = read(bytes.clone(), &limits()).unwrap();
    assert_eq!(back.net(), model.net());
    assert!(back.skipped_fields().is_empty());
    decode_everything(back.net());
    assert_eq!(to_bytes(&back).unwrap(), bytes, "the same model gives the same bytes");
}

#[test]
fn the_root_table_is_where_netron_looks() {
    for model in [sample_model(), empty_model()] {
        assert_eq!(to_bytes(&model).unwrap()[..4], [0x20, 0, 0, 0]);
    }
}

fn empty_model() -> Model {
    let net =
        Table::new(TableKind::Net).with(net::OPLISTS, vec![]).with(net::TENSOR_NAME, Vec::<String>::new());
    Model::new(net).unwrap()
}

#[test]
fn absent_and_empty_differ() {
    let model = empty_model();
    let back = read(to_bytes(&model).unwrap(), &limits()).unwrap();
    assert_eq!(back.net(), model.net());
    assert!(back.net().has(net::TENSOR_NAME) && !back.net().has(net::OUTPUT_NAME));
}

#[test]
fn defaults_that_are_present_stay_present() {
    let mut model = empty_model();
    model.net_mut().set(net::SOURCE_TYPE, NetSource::CAFFE).set(net::TENSOR_NUMBER, 0);
    let back = read(to_bytes(&model).unwrap(), &limits()).unwrap();
    assert!(back.net().has(net::SOURCE_TYPE) && back.net().has(net::TENSOR_NUMBER));
    assert!(!back.net().has(net::USAGE));
}

#[test]
fn trailing_bytes_are_tolerated() {
    let mut bytes = to_bytes(&sample_model()).unwrap();
    bytes.extend([0xAA; 100]);
    assert_eq!(read(bytes, &limits()).unwrap().net(), sample_model().net());
}

#[test]
fn vectors_are_read_at_any_alignment() {
    let bytes = bytes::Bytes::from([vec![0; 1], to_bytes(&sample_model()).unwrap()].concat());
    for shift in 1..2 {
        let model = read(bytes.slice(shift..), &limits()).unwrap();
        assert_eq!(model.net(), sample_model().net());
        decode_everything(model.net());
    }
}

#[test]
fn numbers_of_eight_bytes_are_aligned() {
    for extra in 0..3 {
        let mut model = sample_model();
        model.net_mut().set(net::BIZ_CODE, "x".repeat(extra * 4));
        let bytes = to_bytes(&model).unwrap();
        let wanted = i64::MAX.to_le_bytes();
        let position = bytes.windows(8).position(|window| window == wanted).unwrap();
        assert!(position.is_multiple_of(8), "at {position}");
    }
}

#[test]
fn fields_of_a_newer_schema_are_skipped_and_reported() {
    let model = empty_model();
    let mut bytes = to_bytes(&model).unwrap();
    // A vtable of 14 slots behind everything: those of the root, plus slot 13, which no schema has.
    let old = bytes[4..32].to_vec();
    let position = bytes.len();
    bytes.extend([32, 0]);
    bytes.extend(&old[2..]);
    bytes.extend([0, 0, 4, 0]);
    let link = i32::try_from(32 - i64::try_from(position).unwrap()).unwrap();
    bytes[32..36].copy_from_slice(&link.to_le_bytes());
    let back = read(bytes, &limits()).unwrap();
    assert_eq!(back.net(), model.net());
    let skipped = back.skipped_fields();
    assert_eq!((skipped.len(), skipped[0].slot, skipped[0].table), (1, 13, TableKind::Net));
}

#[test]
fn files_are_replaced_whole() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.mnn");
    std::fs::write(&path, b"old").unwrap();
    let size = write_file(&sample_model(), &path, &WriteOptions::default()).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().len(), size);
    let model = read_file(&path, &SideFile::Beside, &limits()).unwrap();
    assert_eq!(model.net(), sample_model().net());
    // Writing over the file that the model is mapped from is safe.
    write_file(&model, &path, &WriteOptions::default()).unwrap();
    assert_eq!(model.net(), sample_model().net());
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "no temporary file is left");
}

#[test]
#[cfg(unix)]
fn links_are_followed_and_what_is_no_file_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (path, link) = (folder.path().join("model.mnn"), folder.path().join("link.mnn"));
    std::fs::write(&path, b"old").unwrap();
    std::os::unix::fs::symlink(&path, &link).unwrap();
    let size = write_file(&sample_model(), &link, &WriteOptions::default()).unwrap();
    assert!(std::fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!(std::fs::metadata(&path).unwrap().len(), size);
    let socket = folder.path().join("socket");
    let _listening = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    for other in [folder.path(), &socket] {
        let error = write_file(&sample_model(), other, &WriteOptions::default()).unwrap_err();
        assert!(error.to_string().ends_with("it exists and is no regular file"), "{error}");
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 3, "no temporary file is left");
}

#[test]
fn a_failed_write_leaves_the_old_file() {
    struct Failing;
    impl PayloadSource for Failing {
        fn with_bytes(&self, _: &mut dyn FnMut(&[u8]) -> Result<(), FormatError>) -> Result<(), FormatError> {
            Err(FormatError::at("", Problem::PayloadChanged { wanted: 8000, got: 0 }))
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.mnn");
    std::fs::write(&path, b"old").unwrap();
    let mut model = sample_model();
    let numbers = Numbers::from_source(ScalarType::F32, 8000, Arc::new(Failing)).unwrap();
    let main = common::convolution(|conv| {
        conv.set(convolution2d::WEIGHT, numbers);
    });
    model.net_mut().tables_mut(net::OPLISTS).unwrap()[1].set(op::MAIN, main);
    let error = write_file(&model, &path, &WriteOptions::default()).unwrap_err();
    assert!(matches!(error.problem(), Some(Problem::PayloadChanged { .. })), "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), b"old");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "no temporary file is left");
}

#[test]
fn missing_files_and_folders_are_io_errors() {
    let folder = tempfile::tempdir().unwrap();
    let error = read_file(&folder.path().join("none.mnn"), &SideFile::Beside, &limits()).unwrap_err();
    assert!(matches!(error, FormatError::Io { action: "open", .. }));
    assert!(matches!(
        read_file(folder.path(), &SideFile::Beside, &limits()).unwrap_err(),
        FormatError::Io { action: "open", .. }
    ));
    let empty = folder.path().join("empty.mnn");
    std::fs::write(&empty, b"").unwrap();
    assert!(matches!(
        read_file(&empty, &SideFile::Beside, &limits()).unwrap_err().problem(),
        Some(Problem::OutOfBounds { .. })
    ));
    let error = write_file(&sample_model(), &folder.path().join("no/model.mnn"), &WriteOptions::default());
    assert!(matches!(error.unwrap_err(), FormatError::Io { action: "create", .. }));
}

/// The sample and constants that are large enough to move out.
fn large_model() -> Model {
    let mut model = sample_model();
    let count = i32::try_from(model.tensor_names().len()).unwrap();
    let values: Vec<f32> = (0_u16..2000).map(f32::from).collect();
    let constant = Table::new(TableKind::Blob)
        .with(blob::DIMS, vec![2000])
        .with(blob::DATA_TYPE, DataType::DT_FLOAT)
        .with(blob::FLOAT32S, values);
    let norm = Table::new(TableKind::LayerNorm)
        .with(layer_norm::GAMMA, vec![1.0_f32, 2.0])
        .with(layer_norm::BETA, vec![3.0_f32, 4.0]);
    let scale = Table::new(TableKind::Scale)
        .with(scale::SCALE_DATA, vec![5.0_f32])
        .with(scale::BIAS_DATA, vec![6.0_f32]);
    let ops = model.net_mut().tables_mut(net::OPLISTS).unwrap();
    ops.push(node(OpType::Const, "large", vec![], vec![count], Some(constant)));
    ops.push(node(OpType::LayerNorm, "norm", vec![0], vec![count + 1], Some(norm)));
    ops.push(node(OpType::Scale, "scale", vec![0], vec![count + 2], Some(scale)));
    let mut names = model.tensor_names().to_vec();
    names.extend(["a".to_owned(), "b".to_owned(), "c".to_owned()]);
    model.net_mut().set(net::TENSOR_NAME, names);
    model
}

#[test]
fn weights_in_a_side_file_come_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.mnn");
    let model = large_model();
    let size = write_file(&model, &path, &WriteOptions { external: true }).unwrap();
    let side = side_path(&path);
    let sizes = [&path, &side].map(|path| std::fs::metadata(path).unwrap().len());
    assert_eq!(sizes.iter().sum::<u64>(), size);
    assert!(sizes[1] > 8000);
    let back = read_file(&path, &SideFile::Beside, &limits()).unwrap();
    assert_eq!(back.net(), model.net());

    let unresolved = read_file(&path, &SideFile::Ignore, &limits()).unwrap();
    let main = unresolved.ops()[1].get(op::MAIN).unwrap();
    assert_eq!(main.get(convolution2d::EXTERNAL).unwrap().len(), 3);
    let error = conv_weights(main).unwrap_err();
    assert_eq!(error.problem(), Some(&Problem::ExternalMissing { wanted: None }));
    let quantized = unresolved.ops()[2].get(op::MAIN).unwrap();
    assert_eq!(quantized.get(convolution2d::EXTERNAL).unwrap().len(), 5);
    let error = write_file(&unresolved, &path, &WriteOptions { external: true }).unwrap_err();
    assert_eq!(error.field_path(), Some("oplists[1].main.external"));

    // Elsewhere, and not at all.
    let elsewhere = folder.path().join("weights.bin");
    std::fs::rename(&side, &elsewhere).unwrap();
    assert_eq!(read_file(&path, &SideFile::At(elsewhere.clone()), &limits()).unwrap().net(), model.net());
    assert_eq!(read_file(&path, &SideFile::Beside, &limits()).unwrap().net(), unresolved.net());
    assert!(read_file(&path, &SideFile::At(side), &limits()).is_err());

    // Cut off.
    let bytes = std::fs::read(&elsewhere).unwrap();
    std::fs::write(&elsewhere, &bytes[..bytes.len() - 1]).unwrap();
    let error = read_file(&path, &SideFile::At(elsewhere), &limits()).unwrap_err();
    assert!(matches!(error.problem(), Some(Problem::ExternalRange { .. })), "{error}");
    assert_eq!(error.field_path(), Some("oplists[14].main.external"));
}

#[test]
fn hostile_external_ranges_are_refused() {
    let resolve = |numbers: Vec<i64>| {
        let conv = Table::new(TableKind::Convolution2D).with(convolution2d::EXTERNAL, numbers);
        let mut model = empty_model();
        let ops = vec![node(OpType::Convolution, "c", vec![], vec![], Some(conv))];
        model.net_mut().set(net::OPLISTS, ops);
        let side = bytes::Bytes::from(vec![0; 100]);
        mnnq_format::external::resolve(&mut model, &side).map_err(|error| error.problem().cloned().unwrap())
    };
    assert_eq!(resolve(vec![4, 16, 8]), Ok(()));
    assert_eq!(resolve(vec![4, 16]), Err(Problem::ExternalCount { got: 2, wanted: 3 }));
    for (offset, size) in [(-1, 4), (4, -4), (100, 4), (i64::MAX, 4), (4, i64::MAX), (i64::MIN, i64::MIN)] {
        let wanted = Problem::ExternalRange { offset, size, len: 100 };
        assert_eq!(resolve(vec![offset, size, 0]), Err(wanted));
    }
    assert_eq!(resolve(vec![0, 6, 0]), Err(Problem::ExternalSize { size: 6, element: 4 }));
}

#[test]
fn shared_external_data_stays_in_proportion() {
    let conv = || Table::new(TableKind::Convolution2D).with(convolution2d::EXTERNAL, vec![0_i64, 400_000, 0]);
    let ops =
        (0..100).map(|_| node(OpType::Convolution, "c", vec![], vec![], Some(conv()))).collect::<Vec<_>>();
    let mut model = empty_model();
    model.net_mut().set(net::OPLISTS, ops);
    let error =
        mnnq_format::external::resolve(&mut model, &bytes::Bytes::from(vec![0; 400_000])).unwrap_err();
    assert!(matches!(error.problem(), Some(Problem::Amplification { .. })), "{error}");
}

#[test]
fn payloads_of_another_owner_are_read_when_written() {
    struct Shared(Vec<u8>);
    impl PayloadSource for Shared {
        fn with_bytes(
            &self,
            read: &mut dyn FnMut(&[u8]) -> Result<(), FormatError>,
        ) -> Result<(), FormatError> {
            read(&self.0)
        }
    }
    let with = |bytes: usize| {
        let numbers = Numbers::from_source(ScalarType::F32, 8000, Arc::new(Shared(vec![1; bytes]))).unwrap();
        let main = common::convolution(|conv| {
            conv.set(convolution2d::WEIGHT, numbers);
        });
        let mut model = sample_model();
        model.net_mut().tables_mut(net::OPLISTS).unwrap()[1].set(op::MAIN, main);
        model
    };
    let model = with(8000);
    assert_eq!(read(to_bytes(&model).unwrap(), &limits()).unwrap().net(), model.net());
    let error = to_bytes(&with(7996)).unwrap_err();
    assert_eq!(error.problem(), Some(&Problem::PayloadChanged { wanted: 8000, got: 7996 }));
}

proptest! {
    #[test]
    fn vectors_of_any_size_survive(
        floats in proptest::collection::vec(any::<u32>().prop_map(f32::from_bits), 0..3000),
        longs in proptest::collection::vec(any::<i64>(), 0..600),
        bytes in proptest::collection::vec(any::<i8>(), 0..5000),
        name in ".{0,20}",
    ) {
        let main = common::convolution(|conv| {
            conv.set(convolution2d::WEIGHT, floats)
                .set(convolution2d::EXTERNAL, longs)
                .set(convolution2d::QUAN_PARAMETER, Table::new(TableKind::IDSTQuan).with(idst_quan::BUFFER, bytes));
        });
        let mut model = empty_model();
        model.net_mut().set(net::OPLISTS, vec![node(OpType::Convolution, &name, vec![], vec![], Some(main))]);
        let back = read(to_bytes(&model).unwrap(), &limits()).unwrap();
        prop_assert_eq!(back.net(), model.net());
    }
}
