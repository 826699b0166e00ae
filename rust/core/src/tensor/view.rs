//! Descriptions, owned tensors and borrowed views.

use bytes::Bytes;

use super::{DType, Element, Layout, Shape};

/// What a tensor is, without its contents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TensorDesc {
    /// Type of the elements.
    pub dtype: DType,
    /// Logical shape.
    pub shape: Shape,
    /// Order of the elements in memory.
    pub layout: Layout,
}

impl TensorDesc {
    /// A row-major tensor.
    #[must_use]
    pub fn new(dtype: DType, shape: Shape) -> Self {
        Self { dtype, shape, layout: Layout::Plain }
    }

    /// The same tensor in another layout.
    #[must_use]
    pub fn with_layout(self, layout: Layout) -> Self {
        Self { layout, ..self }
    }

    /// The same with another logical shape, row-major.
    #[must_use]
    pub fn with_shape(self, shape: Shape) -> Self {
        Self { shape, layout: Layout::Plain, ..self }
    }

    /// Bytes of the contents.
    #[must_use]
    pub fn byte_len(&self) -> usize {
        self.shape.count() * self.dtype.size()
    }

    /// Whether the bytes of the tensor are those of the row-major order.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        self.layout == Layout::Plain || Layout::same_bytes(&self.shape)
    }
}

/// Bytes that do not fit a description.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TensorError {
    /// Wrong number of bytes.
    #[error("a tensor {dtype} {shape} has {wanted} bytes, got {got}")]
    Length {
        /// Element type.
        dtype: DType,
        /// Shape.
        shape: Box<Shape>,
        /// Bytes wanted.
        wanted: usize,
        /// Bytes given.
        got: usize,
    },
}

/// Bytes aligned for any element type.
struct AlignedBytes {
    words: Vec<u128>,
    len: usize,
}

impl AsRef<[u8]> for AlignedBytes {
    fn as_ref(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.words)[..self.len]
    }
}

/// An owned or shared tensor: its description and its bytes. Cloning shares the bytes.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    desc: TensorDesc,
    /// Aligned for `desc.dtype`, of exactly `desc.byte_len()` bytes.
    bytes: Bytes,
}

impl Tensor {
    /// A row-major tensor from its elements.
    ///
    /// # Errors
    /// [`TensorError::Length`] if there are not as many elements as the shape says.
    pub fn from_vec<T: Element>(shape: Shape, data: Vec<T>) -> Result<Self, TensorError> {
        struct Owner<T>(Vec<T>);
        impl<T: Element> AsRef<[u8]> for Owner<T> {
            fn as_ref(&self) -> &[u8] {
                bytemuck::cast_slice(&self.0)
            }
        }
        Self::from_bytes(TensorDesc::new(T::DTYPE, shape), Bytes::from_owner(Owner(data)))
    }

    /// A tensor from its bytes, which are shared if they are aligned and copied otherwise.
    ///
    /// # Errors
    /// [`TensorError::Length`] if the number of bytes is not that of `desc`.
    pub fn from_bytes(desc: TensorDesc, bytes: Bytes) -> Result<Self, TensorError> {
        if bytes.len() != desc.byte_len() {
            return Err(TensorError::Length {
                dtype: desc.dtype,
                shape: Box::new(desc.shape),
                wanted: desc.byte_len(),
                got: bytes.len(),
            });
        }
        if bytes.as_ptr().align_offset(desc.dtype.size()) == 0 {
            return Ok(Self { desc, bytes });
        }
        Ok(Self::copy_of(desc, &bytes))
    }

    /// A tensor with the bytes of a view.
    #[must_use]
    pub fn from_view(view: TensorView<'_>) -> Self {
        Self::copy_of(view.desc, view.bytes)
    }

    fn copy_of(desc: TensorDesc, bytes: &[u8]) -> Self {
        let mut words = vec![0_u128; bytes.len().div_ceil(16)];
        bytemuck::cast_slice_mut::<u128, u8>(&mut words)[..bytes.len()].copy_from_slice(bytes);
        Self { desc, bytes: Bytes::from_owner(AlignedBytes { words, len: bytes.len() }) }
    }

    /// A tensor of a single value and rank 0.
    #[must_use]
    pub fn scalar<T: Element>(value: T) -> Self {
        let desc = TensorDesc::new(T::DTYPE, Shape::SCALAR);
        Self::copy_of(desc, bytemuck::bytes_of(&value))
    }

    /// An integer vector.
    #[must_use]
    pub fn vector(values: &[i32]) -> Self {
        let mut shape = Shape::SCALAR;
        if let Ok(vector) = Shape::new(&[values.len()]) {
            shape = vector;
        }
        Self::copy_of(TensorDesc::new(DType::I32, shape), bytemuck::cast_slice(values))
    }

    /// What the tensor is.
    #[must_use]
    pub fn desc(&self) -> TensorDesc {
        self.desc
    }

    /// The contents as bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The same bytes under another row-major shape of as many elements.
    ///
    /// # Errors
    /// [`TensorError::Length`] if the number of elements differs.
    pub fn reshaped(&self, shape: Shape) -> Result<Self, TensorError> {
        Self::from_bytes(self.desc.with_shape(shape), self.bytes.clone())
    }

    /// A borrowed view.
    #[must_use]
    pub fn view(&self) -> TensorView<'_> {
        TensorView { desc: self.desc, bytes: &self.bytes }
    }

    /// The elements.
    ///
    /// # Panics
    /// If the elements are of another type.
    #[must_use]
    pub fn data<T: Element>(&self) -> &[T] {
        self.view().data()
    }

    /// The elements of an integer tensor as i64.
    #[must_use]
    pub fn integers(&self) -> Option<Vec<i64>> {
        match self.desc.dtype {
            DType::I32 => Some(self.data::<i32>().iter().map(|&v| v.into()).collect()),
            DType::U8 => Some(self.data::<u8>().iter().map(|&v| v.into()).collect()),
            DType::I8 => Some(self.data::<i8>().iter().map(|&v| v.into()).collect()),
            DType::F32 | DType::F16 => None,
        }
    }
}

/// A tensor somebody else owns.
#[derive(Debug, Clone, Copy)]
pub struct TensorView<'a> {
    desc: TensorDesc,
    bytes: &'a [u8],
}

impl<'a> TensorView<'a> {
    /// A view of bytes.
    ///
    /// # Panics
    /// If the bytes are not as many as `desc` says, or not aligned for its type.
    #[must_use]
    pub fn new(desc: TensorDesc, bytes: &'a [u8]) -> Self {
        assert_eq!(bytes.len(), desc.byte_len(), "view of a tensor {desc:?}");
        let aligned = bytes.is_empty() || bytes.as_ptr().align_offset(desc.dtype.size()) == 0;
        assert!(aligned, "alignment of a tensor {desc:?}");
        Self { desc, bytes }
    }

    /// A row-major view of elements.
    ///
    /// # Errors
    /// [`TensorError::Length`] if there are not as many elements as the shape says.
    pub fn of<T: Element>(shape: Shape, data: &'a [T]) -> Result<Self, TensorError> {
        let (desc, bytes) = (TensorDesc::new(T::DTYPE, shape), bytemuck::cast_slice(data));
        if bytes.len() != desc.byte_len() {
            let (dtype, wanted, got) = (desc.dtype, desc.byte_len(), bytes.len());
            let shape = Box::new(shape);
            return Err(TensorError::Length { dtype, shape, wanted, got });
        }
        Ok(Self { desc, bytes })
    }

    /// What the tensor is.
    #[must_use]
    pub fn desc(&self) -> TensorDesc {
        self.desc
    }

    /// Logical shape.
    #[must_use]
    pub fn shape(&self) -> Shape {
        self.desc.shape
    }

    /// The contents as bytes, in memory order.
    #[must_use]
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// The elements in memory order.
    ///
    /// # Panics
    /// If the elements are of another type: the shape rule of the operator has let a wrong type pass.
    #[must_use]
    pub fn data<T: Element>(&self) -> &'a [T] {
        assert_eq!(self.desc.dtype, T::DTYPE, "element type of a tensor");
        if self.bytes.is_empty() { &[] } else { bytemuck::cast_slice(self.bytes) }
    }
}

/// A tensor to be written.
#[derive(Debug)]
pub struct TensorViewMut<'a> {
    desc: TensorDesc,
    bytes: &'a mut [u8],
}

impl<'a> TensorViewMut<'a> {
    /// A view of bytes.
    ///
    /// # Panics
    /// If the bytes are not as many as `desc` says, or not aligned for its type.
    #[must_use]
    pub fn new(desc: TensorDesc, bytes: &'a mut [u8]) -> Self {
        assert_eq!(bytes.len(), desc.byte_len(), "view of a tensor {desc:?}");
        let aligned = bytes.is_empty() || bytes.as_ptr().align_offset(desc.dtype.size()) == 0;
        assert!(aligned, "alignment of a tensor {desc:?}");
        Self { desc, bytes }
    }

    /// What the tensor is.
    #[must_use]
    pub fn desc(&self) -> TensorDesc {
        self.desc
    }

    /// The elements in memory order.
    ///
    /// # Panics
    /// If the elements are of another type.
    #[must_use]
    pub fn data<T: Element>(&mut self) -> &mut [T] {
        assert_eq!(self.desc.dtype, T::DTYPE, "element type of a tensor");
        if self.bytes.is_empty() { &mut [] } else { bytemuck::cast_slice_mut(self.bytes) }
    }

    /// The contents as bytes, in memory order.
    #[must_use]
    pub fn bytes(&mut self) -> &mut [u8] {
        self.bytes
    }

    /// Reads what is written.
    #[must_use]
    pub fn view(&self) -> TensorView<'_> {
        TensorView { desc: self.desc, bytes: self.bytes }
    }

    /// Borrows the view for a shorter time.
    #[must_use]
    pub fn reborrow(&mut self) -> TensorViewMut<'_> {
        TensorViewMut { desc: self.desc, bytes: self.bytes }
    }
}
