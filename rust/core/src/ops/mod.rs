//! Operators: attributes, shape rules, kernels.
//!
//! See `docs/adding-an-operator.md`.

mod epilogue;
mod error;
mod operator;
mod registry;
mod support;

mod attention;
mod binary;
mod cast;
mod concat;
mod control;
mod conv;
mod conv_fresh;
mod conv_stored;
mod conv_weights;
mod deconv;
pub(crate) mod dynamic;
mod eltwise;
mod gather;
mod gather_nd;
pub(crate) mod int8;
mod interp;
mod layer_norm;
pub(crate) mod loops;
mod lrn;
mod matmul;
mod nms;
mod one_hot;
mod pad;
mod per_channel;
mod permute;
mod pool;
mod pool_indices;
mod quantize;
mod raster;
mod recurrent;
mod reduce;
mod reshape;
mod sampling;
mod scan;
mod scatter;
mod select;
mod shape_ops;
mod slice;
mod softmax;
mod sort;
mod space_depth;
mod special;
mod unary;
mod volume;
mod while_loop;

pub(crate) use conv::join_groups;
pub use epilogue::{Activation, BoundEpilogue, CodeStep, Epilogue, EpilogueStep, QuantInfo};
pub use error::{OpError, OpResult};
pub use operator::{
    Alias, AsEpilogue, Fact, Facts, InferError, InferResult, Kernel, Layouts, Operator, PrepareContext,
    StepIo,
};
pub use registry::{OpSource, Subgraphs, create_operator, supported_operators};

pub(crate) use permute::copy_kernel;
