//! A model that uses every kind of field, built in code.
#![allow(
    dead_code,
    unreachable_pub,
    missing_docs,
    reason = "shared by several test programs and the fuzz corpus"
)]

use mnnq_format::schema::*;
use mnnq_format::weight_blob::{EncodeOptions, ScaleStorage, encode, half_table};
use mnnq_format::{Model, QuantizedWeights, Table};

/// Parameters of a 1x1 convolution of 4 to 2 channels with these weights.
pub fn convolution(state: impl FnOnce(&mut Table)) -> Table {
    let common = Table::new(TableKind::Convolution2DCommon)
        .with(convolution2d_common::OUTPUT_COUNT, 2)
        .with(convolution2d_common::INPUT_COUNT, 4)
        .with(convolution2d_common::RELU, true)
        .with(convolution2d_common::PAD_MODE, PadMode::VALID)
        .with(convolution2d_common::PADS, vec![0, 0, 0, 0]);
    let mut conv = Table::new(TableKind::Convolution2D)
        .with(convolution2d::COMMON, common)
        .with(convolution2d::BIAS, vec![0.5_f32, -0.5]);
    state(&mut conv);
    conv
}

/// Asymmetric weights of 2 rows.
pub fn weights(bits: u8) -> QuantizedWeights {
    let half = 1_i16 << (bits - 1);
    let codes = (0..8).map(|i| i8::try_from((i * 5) % (2 * half) - half).unwrap()).collect();
    QuantizedWeights::new(bits, codes, vec![0.1, 0.2], Some(vec![-0.3, 0.1])).unwrap()
}

/// Symmetric weights that are almost all zero.
pub fn sparse_weights() -> QuantizedWeights {
    let mut codes = vec![0; 600];
    (codes[3], codes[299], codes[590]) = (-7, 100, -128);
    QuantizedWeights::new(8, codes, vec![0.25, 0.5], None).unwrap()
}

pub fn node(kind: OpType, name: &str, inputs: Vec<i32>, outputs: Vec<i32>, main: Option<Table>) -> Table {
    let mut node = Table::new(TableKind::Op)
        .with(op::TYPE, kind)
        .with(op::NAME, name)
        .with(op::INPUT_INDEXES, inputs)
        .with(op::OUTPUT_INDEXES, outputs);
    if let Some(main) = main {
        node.set(op::MAIN, main);
    }
    node
}

pub fn quantized(weights: &QuantizedWeights, options: &EncodeOptions) -> Table {
    let table = encode(weights, options).unwrap().into_table();
    convolution(|conv| {
        conv.set(convolution2d::QUAN_PARAMETER, table);
    })
}

/// All storage types of weights, constants, int8 descriptions, a subgraph, nested attributes.
pub fn sample_model() -> Model {
    let dense = EncodeOptions::default();
    let half_scales = EncodeOptions { scales: ScaleStorage::F16, wide: true, ..dense };
    let sparse = EncodeOptions { sparse: true, ..dense };
    let mains = vec![
        convolution(|conv| {
            conv.set(convolution2d::WEIGHT, vec![1.0_f32, -2.0, 3.0, f32::NAN, 0.0, -0.0, 7.0, 8.0]);
        }),
        quantized(&weights(4), &dense),
        quantized(&weights(3), &half_scales),
        quantized(&sparse_weights(), &sparse),
        convolution(|conv| {
            conv.set(convolution2d::QUAN_PARAMETER, half_table(&[1.0, 2.0, -70000.0, 0.1]));
        }),
        convolution(|conv| {
            let sparse = Table::new(TableKind::IDSTQuan)
                .with(idst_quan::ALPHA, vec![1.5_f32, 2.5])
                .with(idst_quan::INDEX, vec![1_u32, 7])
                .with(idst_quan::WEIGHT_SIZE, 8_u32);
            conv.set(convolution2d::QUAN_PARAMETER, sparse);
        }),
        convolution(|conv| {
            let old = Table::new(TableKind::QuantizedFloatParam)
                .with(quantized_float_param::WEIGHT, vec![1_i8, -2, 3])
                .with(quantized_float_param::BIAS, vec![10_i32])
                .with(quantized_float_param::SCALE, vec![0.5_f32]);
            conv.set(convolution2d::SYMMETRIC_QUAN, old);
        }),
    ];
    let count = i32::try_from(mains.len()).unwrap();
    let input = Table::new(TableKind::Input).with(input::DIMS, vec![1, 4, 2, 2]);
    let mut ops = vec![node(OpType::Input, "x", vec![], vec![0], Some(input))];
    for (i, main) in (1..).zip(mains) {
        ops.push(node(OpType::Convolution, &format!("conv{i}"), vec![0], vec![i], Some(main)));
    }
    let constant = Table::new(TableKind::Blob)
        .with(blob::DIMS, vec![2, 2])
        .with(blob::DATA_TYPE, DataType::DT_INT64)
        .with(blob::INT64S, vec![1_i64, -2, 3, i64::MAX]);
    ops.push(node(OpType::Const, "constant", vec![], vec![count + 1], Some(constant)));
    let attribute = Table::new(TableKind::Attribute)
        .with(attribute::KEY, "list")
        .with(
            attribute::LIST,
            Table::new(TableKind::ListValue)
                .with(list_value::S, vec!["a".to_owned(), String::new(), "ünï".to_owned()])
                .with(list_value::B, vec![true, false])
                .with(list_value::TYPE, vec![1_i32, 3]),
        )
        .with(
            attribute::FUNC,
            Table::new(TableKind::NamedAttrList)
                .with(named_attr_list::ATTR, vec![Table::new(TableKind::Attribute)]),
        );
    let plugin = Table::new(TableKind::Plugin).with(plugin::TYPE, "p").with(plugin::ATTR, vec![attribute]);
    ops.push(node(OpType::Plugin, "plugin", vec![0, -1], vec![count + 2], Some(plugin)));
    let branch =
        Table::new(TableKind::IfParam).with(if_param::THEN_GRAPH, "body").with(if_param::ELSE_GRAPH, "body");
    ops.push(node(OpType::If, "if", vec![0], vec![count + 3], Some(branch)));
    ops.push(node(OpType::Fill, "fill", vec![0], vec![count + 4], Some(Table::new(TableKind::Fill))));
    let body = Table::new(TableKind::SubGraphProto)
        .with(sub_graph_proto::NAME, "body")
        .with(sub_graph_proto::INPUTS, vec![0])
        .with(sub_graph_proto::OUTPUTS, vec![1])
        .with(sub_graph_proto::TENSORS, vec!["in".to_owned(), "out".to_owned()])
        .with(sub_graph_proto::NODES, vec![node(OpType::Identity, "id", vec![0], vec![1], None)]);
    let described = Table::new(TableKind::TensorDescribe).with(
        tensor_describe::QUANT_INFO,
        Table::new(TableKind::TensorQuantInfo)
            .with(tensor_quant_info::SCALE, 0.1_f32)
            .with(tensor_quant_info::TYPE, DataType::DT_INT8),
    );
    let names = (0..count + 5).map(|i| format!("tensor{i}")).collect::<Vec<_>>();
    let net = Table::new(TableKind::Net)
        .with(net::BIZ_CODE, "sample")
        .with(net::OPLISTS, ops)
        .with(net::TENSOR_NAME, names)
        .with(net::OUTPUT_NAME, vec!["tensor1".to_owned()])
        .with(net::SOURCE_TYPE, NetSource::ONNX)
        .with(net::SUBGRAPHS, vec![body])
        .with(net::EXTRA_TENSOR_DESCRIBE, vec![described])
        .with(net::MNN_UUID, "00000000-0000-4000-8000-000000000000");
    Model::new(net).unwrap()
}

/// Decodes all weights and constants in a table and below; errors are legal, panics are not.
pub fn decode_everything(table: &Table) {
    use mnnq_format::Value;
    match table.kind() {
        TableKind::Convolution2D => {
            if let Ok(weights) = mnnq_format::conv_weights(table) {
                assert_eq!(weights.to_f32().len(), weights.len());
            }
        }
        TableKind::Blob => {
            if let Ok(data) = mnnq_format::blob::tensor_data(table) {
                let _ = data.to_f32();
            }
        }
        _ => {}
    }
    for (_, value) in table.fields() {
        match value {
            Value::Table(table) => decode_everything(table),
            Value::Tables(tables) => tables.iter().for_each(decode_everything),
            _ => {}
        }
    }
}
