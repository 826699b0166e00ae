//! The layout of quantized weights: exact bytes, every width and storage type, hostile payloads.

mod common;

use mnnq_format::schema::*;
use mnnq_format::weight_blob::{EncodeOptions, ScaleStorage, decode, encode, half_table};
use mnnq_format::{ConvWeights, Problem, QuantizedWeights, Table, conv_weights};
use proptest::prelude::*;

fn idst(kind: i32, buffer: Vec<u8>, alpha: Vec<f32>) -> Table {
    Table::new(TableKind::IDSTQuan)
        .with(idst_quan::TYPE, kind)
        .with(idst_quan::BUFFER, signed(buffer))
        .with(idst_quan::ALPHA, alpha)
        .with(idst_quan::QUANT_SCALE, 1.0_f32)
}

fn signed(bytes: Vec<u8>) -> Vec<i8> {
    bytes.into_iter().map(u8::cast_signed).collect()
}

fn problem(table: &Table) -> Problem {
    decode(table).unwrap_err().problem().cloned().unwrap()
}

#[test]
fn dense_payloads_have_the_bytes_of_the_format() {
    let weights = QuantizedWeights::new(2, vec![-2, 1, 0, -1, 1], vec![0.5], Some(vec![-1.0])).unwrap();
    let encoded = encode(&weights, &EncodeOptions::default()).unwrap();
    // Two dims, [1, 5]; 4 values -2..1; indices 0 3 2 1 | 3.
    let wanted = [2, 1, 0, 5, 0, 4, 0xFE, 0xFF, 0, 1, 0b0011_1001, 0b1100_0000];
    assert_eq!(encoded.buffer, wanted);
    assert_eq!((encoded.kind, encoded.a_min, encoded.read_type), (1, -2, 1));
    assert_eq!(encoded.alpha, [-1.0, 0.5]);
    let wide = encode(&weights, &EncodeOptions { wide: true, ..EncodeOptions::default() }).unwrap();
    assert_eq!(wide.buffer[..9], [2, 1, 0, 0, 0, 5, 0, 0, 0]);
    let table = encoded.into_table();
    assert_eq!(table.get(idst_quan::QUANT_SCALE), 1.0);
    assert_eq!(table.get(idst_quan::A_MAX_OR_BITS), 2);
    assert_eq!(decode(&table).unwrap(), weights);
}

#[test]
fn eight_bits_count_256_values_as_zero() {
    let weights = QuantizedWeights::new(8, vec![-128, 127], vec![1.0, 1.0], None).unwrap();
    let buffer = encode(&weights, &EncodeOptions::default()).unwrap().buffer;
    assert_eq!(buffer.len(), 5 + 1 + 256 + 2);
    assert_eq!((buffer[5], buffer[6], buffer[261]), (0, 0x80, 0x7F));
    assert_eq!(buffer[262..], [0, 255]);
}

#[test]
fn dims_above_16_bits_switch_to_32() {
    let weights = QuantizedWeights::new(2, vec![0; 70_000], vec![1.0; 70_000], None).unwrap();
    let encoded = encode(&weights, &EncodeOptions::default()).unwrap();
    assert!(encoded.shape_int32);
    assert_eq!(decode(&encoded.into_table()).unwrap(), weights);
}

#[test]
fn sparse_payloads_fill_gaps_with_the_zero_code() {
    let weights = common::sparse_weights();
    let sparse = EncodeOptions { sparse: true, ..EncodeOptions::default() };
    let encoded = encode(&weights, &sparse).unwrap();
    assert_eq!(encoded.kind, 2);
    // Entries at 3, 299 and 590: gaps of 296 and 291, steps of up to 255, so two fillers.
    assert_eq!(encoded.buffer[5..9], 5_u32.to_le_bytes());
    assert_eq!(encoded.buffer[9..15], [8, 3, 255, 41, 255, 36]);
    assert_eq!(decode(&encoded.into_table()).unwrap(), weights);
}

#[test]
fn sparse_is_only_used_where_smaller() {
    let weights = common::weights(8);
    let sparse = EncodeOptions { sparse: true, ..EncodeOptions::default() };
    assert_eq!(encode(&weights, &sparse).unwrap().kind, 1);
    // All zero: one entry.
    let zeros = QuantizedWeights::new(8, vec![0; 1000], vec![1.0], None).unwrap();
    let encoded = encode(&zeros, &sparse).unwrap();
    assert_eq!((encoded.kind, &encoded.buffer[5..9]), (2, [1, 0, 0, 0].as_slice()));
    assert_eq!(decode(&encoded.into_table()).unwrap(), zeros);
}

#[test]
fn rows_whose_zero_is_no_code_need_no_fillers_or_stay_dense() {
    // The minimum is positive: zero would be code -28, which 4 bits do not have; gaps cannot be filled.
    let mut codes = vec![1_i8; 400];
    codes[399] = 2;
    let weights = QuantizedWeights::new(4, codes, vec![0.1], Some(vec![2.0])).unwrap();
    let sparse = EncodeOptions { sparse: true, ..EncodeOptions::default() };
    let encoded = encode(&weights, &sparse).unwrap();
    assert_eq!(encoded.kind, 1);
    assert_eq!(decode(&encoded.into_table()).unwrap(), weights);
}

#[test]
fn value_tables_are_sorted_and_may_have_any_size() {
    // One dim [3], a table of 3 unsorted values, 2-bit indices 0 2 1.
    let table = idst(1, vec![1, 3, 0, 3, 50, 0xF6, 7, 0b0010_0100], vec![0.5]);
    let weights = decode(&table).unwrap();
    assert_eq!(weights.codes(), [-10, 50, 7]);
    assert_eq!(weights.bits(), 7, "the narrowest width for -10..50");
    assert_eq!(weights.dequantize(), [-5.0, 25.0, 3.5]);
    // A single value: one bit per index.
    let table = idst(1, vec![1, 3, 0, 1, 5, 0], vec![1.0]);
    assert_eq!(decode(&table).unwrap().codes(), [5, 5, 5]);
    // Index 3 of 3 values.
    let table = idst(1, vec![1, 1, 0, 3, 1, 2, 3, 0b1100_0000], vec![1.0]);
    assert_eq!(problem(&table), Problem::ValueIndex { entry: 0, index: 3, count: 3 });
}

#[test]
fn asymmetric_minima_follow_a_min() {
    let decoded = |a_min: i32| {
        let mut table = idst(4, vec![0x80, 0, 0x7F], vec![1.0, 0.5]);
        table.set(idst_quan::READ_TYPE, 1).set(idst_quan::A_MIN, a_min);
        decode(&table).unwrap().dequantize()
    };
    assert_eq!(decoded(0), [1.0, 65.0, 128.5]);
    assert_eq!(decoded(-128), [1.0, 65.0, 128.5]);
    assert_eq!(decoded(-8), [-59.0, 5.0, 68.5]);
    assert_eq!(decoded(1), [-63.0, 1.0, 64.5], "a positive aMin: the minimum is what code 0 stands for");
}

#[test]
fn old_files_of_type_4_are_asymmetric_without_saying_so() {
    let mut table = idst(4, vec![0x80, 0x81], vec![1.0, 0.5]);
    table.set(idst_quan::QUANT_SCALE, 0.0_f32);
    let weights = decode(&table).unwrap();
    assert_eq!(weights.dequantize(), [1.0, 1.5]);
    // Any quantScale makes it symmetric.
    table.set(idst_quan::QUANT_SCALE, 2.0_f32);
    assert_eq!(decode(&table).unwrap().dequantize(), [-256.0, -127.0]);
}

#[test]
fn quant_scale_multiplies_everything() {
    let mut table = idst(4, vec![1, 2], vec![1.0, 0.5]);
    table.set(idst_quan::QUANT_SCALE, 2.0_f32).set(idst_quan::READ_TYPE, 1);
    assert_eq!(decode(&table).unwrap().dequantize(), [131.0, 132.0]);
}

#[test]
fn half_scales_are_rounded_and_codes_are_not() {
    let weights = common::weights(4);
    let half = EncodeOptions { scales: ScaleStorage::F16, ..EncodeOptions::default() };
    let table = encode(&weights, &half).unwrap().into_table();
    assert!(!table.has(idst_quan::ALPHA) && table.has(idst_quan::ALPHA_FP16));
    let back = decode(&table).unwrap();
    assert_eq!(back.codes(), weights.codes());
    assert_ne!(back.scale(), weights.scale());
    for (a, b) in back.scale().iter().zip(weights.scale()) {
        assert!((a - b).abs() <= b * 2.0_f32.powi(-11));
    }
}

#[test]
fn half_weights_are_clamped_and_rounded() {
    let conv = Table::new(TableKind::Convolution2D)
        .with(convolution2d::QUAN_PARAMETER, half_table(&[1.0, 1e9, -1e9, 0.1]));
    let weights = conv_weights(&conv).unwrap();
    assert_eq!(weights.kind(), "half");
    assert_eq!(weights.to_f32(), [1.0, 65504.0, -65504.0, 0.099_975_586]);
}

#[test]
fn sparse_floats_are_expanded() {
    let mut table = Table::new(TableKind::IDSTQuan)
        .with(idst_quan::ALPHA, vec![1.5_f32, 2.5])
        .with(idst_quan::INDEX, vec![1_u32, 3])
        .with(idst_quan::WEIGHT_SIZE, 5_u32);
    let expand = |table: &Table| {
        conv_weights(&Table::new(TableKind::Convolution2D).with(convolution2d::QUAN_PARAMETER, table.clone()))
    };
    assert_eq!(expand(&table).unwrap(), ConvWeights::SparseFloat(vec![0.0, 1.5, 0.0, 2.5, 0.0]));
    table.set(idst_quan::WEIGHT_SIZE, 3_u32);
    let error = expand(&table).unwrap_err();
    assert_eq!(error.field_path(), Some("quanParameter.index"));
    table.set(idst_quan::WEIGHT_SIZE, u32::MAX);
    assert!(matches!(expand(&table).unwrap_err().problem(), Some(Problem::TooManyWeights { .. })));
    table.set(idst_quan::INDEX, vec![1_u32]);
    assert!(matches!(expand(&table).unwrap_err().problem(), Some(Problem::Length { .. })));
}

#[test]
fn damaged_payloads_have_their_errors() {
    let dense = |bytes: &[u8]| problem(&idst(1, bytes.to_vec(), vec![1.0]));
    let sparse = |bytes: &[u8]| problem(&idst(2, bytes.to_vec(), vec![1.0]));
    assert!(matches!(dense(&[]), Problem::PayloadTooShort { what: "the number of dims", .. }));
    assert_eq!(dense(&[0]), Problem::PayloadDims { count: 0 });
    assert_eq!(dense(&[5]), Problem::PayloadDims { count: 5 });
    assert!(matches!(dense(&[2, 1, 0]), Problem::PayloadTooShort { what: "the dims", .. }));
    assert!(matches!(dense(&[1, 1, 0, 0, 1, 2]), Problem::PayloadTooShort { what: "the value table", .. }));
    assert!(matches!(dense(&[1, 9, 0, 2, 0, 1, 0xFF]), Problem::PayloadTooShort { what: "the codes", .. }));
    let huge = [4, 255, 255, 255, 255, 255, 255, 255, 255, 2, 0, 1];
    assert!(matches!(dense(&huge), Problem::PayloadTooShort { .. }));
    assert!(matches!(sparse(&huge), Problem::TooManyWeights { .. }));
    // One dim [8]; two entries; steps of 8 bits, 7 and 1; a table of one value.
    let mut payload = vec![1, 8, 0, 2, 0, 0, 0, 8, 7, 1, 1, 5, 0];
    assert_eq!(sparse(&payload), Problem::PositionOutOfRange { entry: 1, position: 8, count: 8 });
    payload[9] = 0;
    assert!(decode(&idst(2, payload.clone(), vec![1.0])).is_ok());
    payload[7] = 9;
    assert_eq!(sparse(&payload), Problem::StepBits { bits: 9 });
    (payload[3], payload[6]) = (255, 255);
    payload[7] = 8;
    assert!(matches!(sparse(&payload), Problem::PayloadTooShort { what: "the steps", .. }));
    assert_eq!(problem(&idst(4, vec![1, 2, 3], vec![1.0, 2.0])), Problem::RowCount { scales: 2, weights: 3 });
    assert_eq!(problem(&idst(4, vec![1, 2, 3], vec![])), Problem::RowCount { scales: 0, weights: 3 });
    let mut odd = idst(4, vec![1, 2, 3], vec![1.0]);
    odd.set(idst_quan::READ_TYPE, 1);
    assert_eq!(problem(&odd), Problem::RowCount { scales: 1, weights: 3 });
    assert_eq!(problem(&idst(7, vec![], vec![])), Problem::UnsupportedStorage { kind: 7 });
    assert!(problem(&idst(7, vec![], vec![])).is_unsupported());
}

#[test]
fn every_state_of_a_convolution_is_told_apart() {
    let states: Vec<&str> = common::sample_model()
        .ops()
        .iter()
        .filter_map(|node| node.get(op::MAIN).filter(|main| main.kind() == TableKind::Convolution2D))
        .map(|conv| conv_weights(conv).unwrap().kind())
        .collect();
    assert_eq!(states, ["float", "quantized", "quantized", "quantized", "half", "sparse", "old_int8"]);
    let none = Table::new(TableKind::Convolution2D);
    assert_eq!(conv_weights(&none).unwrap_err().problem(), Some(&Problem::NoWeights));
}

#[test]
fn tensor_data_checks_its_shape() {
    use mnnq_format::blob::tensor_data;
    let blob = |dims: Vec<i32>, values: Vec<f32>| {
        Table::new(TableKind::Blob).with(blob::DIMS, dims).with(blob::FLOAT32S, values)
    };
    let data = tensor_data(&blob(vec![2, 1], vec![1.0, 2.0])).unwrap();
    assert_eq!((data.dims.as_slice(), data.to_f32().unwrap()), ([2, 1].as_slice(), vec![1.0, 2.0]));
    let wrong = |table: &Table| tensor_data(table).unwrap_err().to_string();
    assert_eq!(wrong(&blob(vec![3], vec![1.0])), "float32s: length 1, wanted 3");
    assert_eq!(wrong(&blob(vec![-1], vec![1.0])), "dims: wanted sizes that are not negative, got -1");
    assert!(wrong(&blob(vec![i32::MAX; 4], vec![1.0])).starts_with("float32s: length 1, wanted"));
    assert!(tensor_data(&blob(vec![i32::MAX, 0, i32::MAX, i32::MAX], vec![])).unwrap().numbers.is_empty());
    let scalar = Table::new(TableKind::Blob).with(blob::FLOAT32S, vec![4.0_f32]);
    assert!(tensor_data(&scalar).unwrap().dims.is_empty());
    let half = Table::new(TableKind::Blob)
        .with(blob::DIMS, vec![1])
        .with(blob::DATA_TYPE, DataType::DT_HALF)
        .with(blob::UINT8S, vec![0_u8, 0x3C]);
    assert_eq!(tensor_data(&half).unwrap().to_f32().unwrap(), [1.0]);
    let text = Table::new(TableKind::Blob).with(blob::DATA_TYPE, DataType::DT_STRING);
    assert_eq!(wrong(&text), "dataType: tensor data of type DT_STRING is not supported");
}

/// Weights of any width, shape and symmetry; `zeros` of the codes are replaced by the code nearest to zero.
fn any_weights() -> impl Strategy<Value = QuantizedWeights> {
    let shape = (2_u8..=8, 1_usize..6, 1_usize..120, any::<bool>(), 0.0_f64..1.0);
    shape.prop_flat_map(|(bits, rows, row_len, asymmetric, zeros)| {
        let code = proptest::bool::weighted(zeros).prop_flat_map(move |zero| {
            if zero {
                Just(0_i8).boxed()
            } else {
                any::<i8>().prop_map(move |code| code >> (8 - bits)).boxed()
            }
        });
        let rows_of = |range: std::ops::Range<f32>| proptest::collection::vec(range, rows);
        (proptest::collection::vec(code, rows * row_len), rows_of(1e-3..1.0), rows_of(-40.0..0.5)).prop_map(
            move |(codes, scale, min)| {
                QuantizedWeights::new(bits, codes, scale, asymmetric.then_some(min)).unwrap()
            },
        )
    })
}

proptest! {
    #[test]
    fn encoded_weights_come_back(weights in any_weights(), sparse: bool, wide: bool) {
        let options = EncodeOptions { sparse, wide, ..EncodeOptions::default() };
        let encoded = encode(&weights, &options).unwrap();
        prop_assert!(sparse || encoded.kind == 1);
        let dense = encode(&weights, &EncodeOptions { sparse: false, ..options }).unwrap();
        prop_assert!(encoded.buffer.len() <= dense.buffer.len());
        let back = decode(&encoded.into_table()).unwrap();
        prop_assert_eq!(back.codes(), weights.codes());
        prop_assert_eq!(back.scale(), weights.scale());
        prop_assert_eq!(back.dequantize().len(), weights.codes().len());
        if back.bits() == weights.bits() {
            prop_assert_eq!(back, weights);
        }
    }

    #[test]
    fn damaged_payloads_do_not_panic(
        weights in any_weights(),
        sparse: bool,
        changes in proptest::collection::vec((any::<usize>(), any::<u8>()), 1..6),
        cut in any::<usize>(),
        read_type in 0_i32..2,
    ) {
        let encoded = encode(&weights, &EncodeOptions { sparse, ..EncodeOptions::default() }).unwrap();
        let mut buffer = encoded.buffer.clone();
        for (position, value) in changes {
            // Mostly in the header, where it hurts.
            let range = if position % 3 == 0 { buffer.len() } else { buffer.len().min(16) };
            buffer[position % range] = value;
        }
        if cut % 4 == 0 {
            buffer.truncate(cut % (buffer.len() + 1));
        }
        let mut table = encoded.into_table();
        table.set(idst_quan::BUFFER, signed(buffer)).set(idst_quan::READ_TYPE, read_type);
        if let Ok(weights) = decode(&table) {
            prop_assert_eq!(weights.dequantize().len(), weights.codes().len());
        }
    }
}
