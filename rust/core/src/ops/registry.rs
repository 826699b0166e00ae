//! From operator types to operators: one line per type.

use std::sync::Arc;

use mnnq_format::model::Table;
use mnnq_format::schema::{OpType, TableKind};
use smallvec::SmallVec;

use super::epilogue::QuantInfo;
use super::error::{OpError, OpResult};
use super::operator::Operator;
use super::*;
use crate::runtime::config::SessionOptions;
use crate::runtime::executor::Executor;

/// What an operator is built from.
pub struct OpSource<'a> {
    /// Its type.
    pub op_type: OpType,
    /// Its `Op` table.
    pub table: &'a Table,
    /// Its parameter table.
    pub main: Option<&'a Table>,
    /// Number of inputs.
    pub inputs: usize,
    /// Number of outputs.
    pub outputs: usize,
    /// Options of the session.
    pub options: &'a SessionOptions,
    /// Quantization of the inputs.
    pub input_quant: SmallVec<[Option<QuantInfo>; 4]>,
    /// Quantization of the outputs.
    pub output_quant: SmallVec<[Option<QuantInfo>; 2]>,
    /// `TensorDescribe` tables of the outputs, in files whose shapes are fixed.
    pub described: Vec<Option<&'a Table>>,
    /// Numbers of the inputs in the file, with those of loops of commands that only the graph knows.
    pub input_tensors: &'a [Option<usize>],
    /// Numbers of the outputs in the file, likewise.
    pub output_tensors: &'a [usize],
}

impl<'a> OpSource<'a> {
    /// The parameter table, which must be of this kind.
    ///
    /// # Errors
    /// [`OpError::Parameter`].
    pub fn param(&self, kind: TableKind) -> OpResult<&'a Table> {
        self.optional_param(kind)?.ok_or(OpError::Parameter { wanted: kind.name(), got: "absent".to_owned() })
    }

    /// The parameter table, if there is one; it must be of this kind.
    ///
    /// # Errors
    /// [`OpError::Parameter`].
    pub fn optional_param(&self, kind: TableKind) -> OpResult<Option<&'a Table>> {
        match self.main {
            Some(table) if table.kind() != kind => {
                Err(OpError::Parameter { wanted: kind.name(), got: table.kind().name().to_owned() })
            }
            main => Ok(main),
        }
    }

    /// Checks the number of outputs.
    ///
    /// # Errors
    /// [`OpError::OutputCount`].
    pub fn expect_outputs(&self, wanted: usize) -> OpResult<()> {
        if self.outputs != wanted {
            return Err(OpError::OutputCount { wanted, got: self.outputs });
        }
        Ok(())
    }
}

/// Access to the subgraphs of a file.
pub trait Subgraphs {
    /// The subgraph called `name`, ready to be planned. Each is built once.
    ///
    /// # Errors
    /// [`OpError::Subgraph`] if it is not in the file, contains itself, or cannot be built.
    fn executor(&mut self, name: &str) -> OpResult<Arc<Executor>>;
}

type Create = fn(&OpSource<'_>, &mut dyn Subgraphs) -> OpResult<Arc<dyn Operator>>;

/// Wraps a constructor that needs no subgraphs.
macro_rules! op {
    ($create:path) => {
        |source, _| Ok(Arc::new($create(source)?) as Arc<dyn Operator>)
    };
}

#[rustfmt::skip]
const REGISTRY: &[(OpType, Create)] = &[
    (OpType::AbsVal, op!(unary::Unary::plain)),
    (OpType::ArgMax, op!(reduce::ArgReduce::new)),
    (OpType::ArgMin, op!(reduce::ArgReduce::new)),
    (OpType::Attention, op!(attention::Attention::new)),
    (OpType::BinaryOp, op!(binary::Binary::new)),
    (OpType::BroadcastTo, op!(shape_ops::BroadcastTo::new)),
    (OpType::Cast, op!(cast::Cast::new)),
    (OpType::CastLike, op!(cast::Cast::like)),
    (OpType::Concat, op!(concat::Concat::new)),
    (OpType::ConvertTensor, op!(reshape::Identity::convert)),
    (OpType::ConvInt8, conv::create),
    (OpType::Convolution, conv::create),
    (OpType::ConvolutionDepthwise, conv::create),
    (OpType::Convolution3D, op!(volume::Conv3d::new)),
    (OpType::Copy, op!(reshape::Identity::new)),
    (OpType::CumSum, op!(scan::CumSum::new)),
    (OpType::Deconvolution, op!(deconv::Deconv::new)),
    (OpType::DeconvolutionDepthwise, op!(deconv::Deconv::new)),
    (OpType::DepthToSpace, op!(space_depth::SpaceDepth::new)),
    (OpType::DepthwiseConvInt8, conv::create),
    (OpType::Dropout, op!(reshape::Identity::new)),
    (OpType::Eltwise, eltwise::create),
    (OpType::ELU, op!(unary::Unary::plain)),
    (OpType::ExpandDims, op!(reshape::Unsqueeze::new)),
    (OpType::Fill, op!(shape_ops::Fill::new)),
    (OpType::Flatten, op!(reshape::Flatten::new)),
    (OpType::FloatToInt8, op!(quantize::FloatToInt8::new)),
    (OpType::Gather, op!(gather::Gather::new)),
    (OpType::GatherElements, op!(gather_nd::GatherElements::new)),
    (OpType::GatherND, op!(gather_nd::GatherNd::new)),
    (OpType::GatherV2, op!(gather::Gather::new)),
    (OpType::GridSample, op!(sampling::GridSample::new)),
    (OpType::Identity, op!(reshape::Identity::new)),
    (OpType::If, control::create_if),
    (OpType::Im2Col, op!(volume::Im2Col::new)),
    (OpType::Int8ToFloat, op!(quantize::Int8ToFloat::new)),
    (OpType::Interp, op!(interp::Interp::new)),
    (OpType::LayerNorm, op!(layer_norm::LayerNorm::new)),
    (OpType::LRN, op!(lrn::Lrn::new)),
    (OpType::LSTM, op!(recurrent::Recurrent::new)),
    (OpType::MatMul, op!(matmul::MatMul::new)),
    (OpType::NonMaxSuppressionV2, op!(nms::NonMaxSuppression::new)),
    (OpType::OneHot, op!(one_hot::OneHot::new)),
    (OpType::Pack, op!(concat::Concat::pack)),
    (OpType::Padding, op!(pad::Pad::new)),
    (OpType::Permute, op!(permute::Permute::new)),
    (OpType::Pooling, pool::create),
    (OpType::Pooling3D, pool::create_3d),
    (OpType::PReLU, op!(per_channel::PerChannel::prelu)),
    (OpType::Range, op!(shape_ops::Range::new)),
    (OpType::Rank, op!(shape_ops::ShapeOf::new)),
    (OpType::Raster, op!(raster::Raster::new)),
    (OpType::Reduction, op!(reduce::Reduce::new)),
    (OpType::ReLU, op!(unary::Unary::plain)),
    (OpType::ReLU6, op!(unary::Unary::plain)),
    (OpType::Reshape, op!(reshape::Reshape::new)),
    (OpType::Reverse, op!(slice::Reverse::new)),
    (OpType::ReverseSequence, op!(scan::ReverseSequence::new)),
    (OpType::RNN, op!(recurrent::Recurrent::new)),
    (OpType::RNNSequenceGRU, op!(recurrent::Recurrent::new)),
    (OpType::ROIAlign, op!(sampling::RoiAlign::new)),
    (OpType::Scale, op!(per_channel::PerChannel::scale)),
    (OpType::ScatterElements, op!(scatter::ScatterElements::new)),
    (OpType::ScatterNd, op!(scatter::ScatterNd::new)),
    (OpType::Select, op!(select::Select::new)),
    (OpType::Selu, op!(unary::Unary::plain)),
    (OpType::Shape, op!(shape_ops::ShapeOf::new)),
    (OpType::Sigmoid, op!(unary::Unary::plain)),
    (OpType::Size, op!(shape_ops::ShapeOf::new)),
    (OpType::Slice, op!(slice::Split::new)),
    (OpType::SliceTf, op!(slice::Slice::tf)),
    (OpType::Softmax, op!(softmax::Softmax::new)),
    (OpType::SpaceToDepth, op!(space_depth::SpaceDepth::new)),
    (OpType::Squeeze, op!(reshape::Squeeze::new)),
    (OpType::StridedSlice, op!(slice::Slice::strided)),
    (OpType::TanH, op!(unary::Unary::plain)),
    (OpType::Tile, op!(shape_ops::Tile::new)),
    (OpType::TopKV2, op!(sort::TopK::new)),
    (OpType::Transpose, op!(permute::Permute::new)),
    (OpType::UnaryOp, op!(unary::Unary::new)),
    (OpType::Unique, op!(sort::Unique::new)),
    (OpType::Unpack, op!(slice::Split::unpack)),
    (OpType::Unsqueeze, op!(reshape::Unsqueeze::new)),
    (OpType::Where, op!(select::Where::new)),
    (OpType::While, control::create_while),
];

/// Builds the operator of a node.
///
/// # Errors
/// [`OpError::Unsupported`] for an unknown type, otherwise what is wrong with its attributes.
pub fn create_operator(source: &OpSource<'_>, subgraphs: &mut dyn Subgraphs) -> OpResult<Arc<dyn Operator>> {
    let (_, create) = REGISTRY
        .iter()
        .find(|(op_type, _)| *op_type == source.op_type)
        .ok_or_else(|| OpError::unsupported("this operator type"))?;
    create(source, subgraphs)
}

/// Names of the operator types that can be run, `Input` and `Const` apart.
pub fn supported_operators() -> impl Iterator<Item = String> {
    REGISTRY.iter().map(|(op_type, _)| op_type.to_string())
}
