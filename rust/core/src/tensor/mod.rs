//! Tensors as values: element type, logical shape, physical layout, and views of bytes.
//!
//! Shapes are always logical, in the order of the source model (NCHW for images). How the elements lie in
//! memory is the [`Layout`], a property of one tensor of one plan. Nothing here knows operators or graphs.

mod dtype;
mod layout;
mod shape;
mod view;

pub use dtype::{DType, Element};
pub use layout::Layout;
pub use shape::{MAX_RANK, Shape, ShapeError};
pub use view::{Tensor, TensorDesc, TensorError, TensorView, TensorViewMut};
