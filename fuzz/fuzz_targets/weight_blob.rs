//! Any payload with any parameters: an error, or weights that can be encoded and decoded again.
#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use mnnq_format::Table;
use mnnq_format::schema::{ScaleStorageType, TableKind, convolution2d, idst_quan};
use mnnq_format::weight_blob::{EncodeOptions, decode, encode};

#[derive(Arbitrary, Debug)]
struct Input {
    kind: u8,
    buffer: Vec<i8>,
    alpha: Vec<f32>,
    alpha_half: Option<Vec<u16>>,
    index: Option<Vec<u32>>,
    weight_size: u32,
    read_type: i32,
    a_min: i8,
    quant_scale: f32,
    flags: u8,
}

fuzz_target!(|input: Input| {
    let mut table = Table::new(TableKind::IDSTQuan)
        .with(idst_quan::TYPE, i32::from(input.kind % 6))
        .with(idst_quan::BUFFER, input.buffer)
        .with(idst_quan::ALPHA, input.alpha)
        .with(idst_quan::READ_TYPE, input.read_type)
        .with(idst_quan::A_MIN, i32::from(input.a_min))
        .with(idst_quan::QUANT_SCALE, input.quant_scale)
        .with(idst_quan::WEIGHT_SIZE, input.weight_size)
        .with(idst_quan::SHAPE_INT32, input.flags & 1 != 0)
        .with(idst_quan::HAS_SCALE_INT, input.flags & 2 != 0);
    if let Some(alpha) = input.alpha_half {
        table.set(idst_quan::ALPHA_FP16, alpha).set(idst_quan::SCALE_STORAGE, ScaleStorageType::FP16);
    }
    if let Ok(weights) = decode(&table) {
        assert_eq!(weights.dequantize().len(), weights.codes().len());
        // Large all-zero layers cost time, not coverage.
        if weights.codes().len() < 1 << 16 {
            let sparse = input.flags & 4 != 0;
            let options = EncodeOptions { sparse, wide: input.flags & 8 != 0, ..EncodeOptions::default() };
            let back = decode(&encode(&weights, &options).expect("few rows").into_table()).expect("our own");
            assert_eq!(back.codes(), weights.codes());
        }
    }
    if let Some(index) = input.index {
        table.set(idst_quan::INDEX, index);
    }
    let conv = Table::new(TableKind::Convolution2D).with(convolution2d::QUAN_PARAMETER, table);
    if let Ok(weights) = mnnq_format::conv_weights(&conv) {
        assert_eq!(weights.to_f32().len(), weights.len());
    }
});
