//! Vectors of numbers: an element type and bytes that are shared, not copied.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use bytemuck::Pod;
use bytes::Bytes;

use crate::error::{FormatError, Problem, Result};
use crate::schema::ScalarType;

/// Number types that a vector can hold in memory. (`bool` vectors are read as bytes.)
pub trait Number: Pod + Send + Sync {
    /// The wire type.
    const TYPE: ScalarType;
    /// The number whose little-endian bytes lie in memory as `self`: itself, except on a big-endian machine.
    #[must_use]
    fn swapped_if_big_endian(self) -> Self;
}

macro_rules! number {
    ($($rust:ty, $variant:ident, $from_le:expr;)*) => {$(
        impl Number for $rust {
            const TYPE: ScalarType = ScalarType::$variant;

            fn swapped_if_big_endian(self) -> Self {
                ($from_le)(self)
            }
        }
    )*};
}

number! {
    i8, I8, std::convert::identity;
    u8, U8, std::convert::identity;
    u16, U16, u16::from_le;
    i32, I32, i32::from_le;
    u32, U32, u32::from_le;
    i64, I64, i64::from_le;
    f32, F32, |value: f32| f32::from_bits(u32::from_le(value.to_bits()));
}

/// Data of a model that is to be written and that lives elsewhere (e.g. in an array of another language).
pub trait PayloadSource: Send + Sync {
    /// Calls `read` once with the bytes, little-endian.
    ///
    /// # Errors
    /// Whatever `read` returns; [`Problem::PayloadChanged`] if the bytes are no longer available.
    fn with_bytes(&self, read: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()>;
}

#[derive(Clone)]
enum Payload {
    Bytes(Bytes),
    Source { source: Arc<dyn PayloadSource>, byte_len: usize },
}

/// A vector of numbers as it lies in the file: little-endian, at any alignment. Cloning shares the bytes.
#[derive(Clone)]
pub struct Numbers {
    element: ScalarType,
    payload: Payload,
}

impl Numbers {
    /// Bytes as numbers of type `element`.
    ///
    /// # Errors
    /// [`Problem::ExternalSize`] if the bytes are not a whole number of elements.
    pub fn from_bytes(element: ScalarType, bytes: Bytes) -> Result<Self> {
        whole(element, bytes.len())?;
        Ok(Self { element, payload: Payload::Bytes(bytes) })
    }

    /// Numbers of type `element` that `source` will give when they are written: `byte_len` bytes.
    ///
    /// # Errors
    /// [`Problem::ExternalSize`] if the bytes are not a whole number of elements.
    pub fn from_source(element: ScalarType, byte_len: usize, source: Arc<dyn PayloadSource>) -> Result<Self> {
        whole(element, byte_len)?;
        Ok(Self { element, payload: Payload::Source { source, byte_len } })
    }

    /// The type of the elements.
    #[must_use]
    pub fn element(&self) -> ScalarType {
        self.element
    }

    /// The number of elements.
    #[must_use]
    pub fn len(&self) -> usize {
        self.byte_len() / self.element.size()
    }

    /// Whether there are no elements.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.byte_len() == 0
    }

    /// The number of bytes.
    #[must_use]
    pub fn byte_len(&self) -> usize {
        match &self.payload {
            Payload::Bytes(bytes) => bytes.len(),
            Payload::Source { byte_len, .. } => *byte_len,
        }
    }

    /// Calls `read` with the bytes, without copying them.
    ///
    /// # Errors
    /// What `read` returns; [`Problem::PayloadChanged`] if a source gives another number of bytes than announced.
    pub fn with_bytes(&self, mut read: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        match &self.payload {
            Payload::Bytes(bytes) => read(bytes),
            Payload::Source { source, byte_len } => source.with_bytes(&mut |bytes| {
                if bytes.len() != *byte_len {
                    let problem = Problem::PayloadChanged { wanted: *byte_len, got: bytes.len() };
                    return Err(FormatError::at("", problem));
                }
                read(bytes)
            }),
        }
    }

    /// The bytes: shared if they are in memory of ours, copied from a [`PayloadSource`].
    ///
    /// # Errors
    /// Those of [`with_bytes`](Self::with_bytes).
    pub fn to_bytes(&self) -> Result<Bytes> {
        if let Payload::Bytes(bytes) = &self.payload {
            return Ok(bytes.clone());
        }
        let mut copy = Bytes::new();
        self.with_bytes(|bytes| {
            copy = Bytes::copy_from_slice(bytes);
            Ok(())
        })?;
        Ok(copy)
    }

    /// The elements as `T`: borrowed where alignment and byte order allow it, else copied. `None` if the
    /// elements are of another type, or come from a [`PayloadSource`] that failed.
    #[must_use]
    pub fn as_slice<T: Number>(&self) -> Option<Cow<'_, [T]>> {
        let same = self.element == T::TYPE || (self.element == ScalarType::Bool && T::TYPE == ScalarType::U8);
        if !same {
            return None;
        }
        if let Payload::Bytes(bytes) = &self.payload {
            if cfg!(target_endian = "little")
                && let Ok(slice) = bytemuck::try_cast_slice(bytes)
            {
                return Some(Cow::Borrowed(slice));
            }
            return Some(Cow::Owned(copied(bytes)));
        }
        let mut out = Vec::new();
        self.with_bytes(|bytes| {
            out = copied(bytes);
            Ok(())
        })
        .ok()?;
        Some(Cow::Owned(out))
    }

    /// The elements if they are f32; see [`as_slice`](Self::as_slice).
    #[must_use]
    pub fn as_f32(&self) -> Option<Cow<'_, [f32]>> {
        self.as_slice()
    }

    /// The elements if they are i32; see [`as_slice`](Self::as_slice).
    #[must_use]
    pub fn as_i32(&self) -> Option<Cow<'_, [i32]>> {
        self.as_slice()
    }

    /// The elements if they are i8; see [`as_slice`](Self::as_slice).
    #[must_use]
    pub fn as_i8(&self) -> Option<Cow<'_, [i8]>> {
        self.as_slice()
    }

    /// The elements if they are u8; see [`as_slice`](Self::as_slice).
    #[must_use]
    pub fn as_u8(&self) -> Option<Cow<'_, [u8]>> {
        self.as_slice()
    }

    /// The elements if they are i64; see [`as_slice`](Self::as_slice).
    #[must_use]
    pub fn as_i64(&self) -> Option<Cow<'_, [i64]>> {
        self.as_slice()
    }
}

fn whole(element: ScalarType, byte_len: usize) -> Result<()> {
    if byte_len.is_multiple_of(element.size()) {
        return Ok(());
    }
    Err(FormatError::at("", Problem::ExternalSize { size: byte_len, element: element.size() }))
}

fn copied<T: Number>(bytes: &[u8]) -> Vec<T> {
    let mut out = vec![T::zeroed(); bytes.len() / size_of::<T>()];
    bytemuck::cast_slice_mut::<T, u8>(&mut out).copy_from_slice(bytes);
    out.iter_mut().for_each(|value| *value = value.swapped_if_big_endian());
    out
}

impl<T: Number> From<Vec<T>> for Numbers {
    /// Takes the vector over without copying it.
    fn from(numbers: Vec<T>) -> Self {
        let mut numbers = numbers;
        if cfg!(target_endian = "big") {
            numbers.iter_mut().for_each(|value| *value = value.swapped_if_big_endian());
        }
        Self { element: T::TYPE, payload: Payload::Bytes(Bytes::from_owner(Owner(numbers))) }
    }
}

impl From<Vec<bool>> for Numbers {
    fn from(flags: Vec<bool>) -> Self {
        let bytes: Vec<u8> = flags.into_iter().map(u8::from).collect();
        Self { element: ScalarType::Bool, payload: Payload::Bytes(bytes.into()) }
    }
}

/// A vector seen as its bytes.
struct Owner<T>(Vec<T>);

impl<T: Number> AsRef<[u8]> for Owner<T> {
    fn as_ref(&self) -> &[u8] {
        bytemuck::cast_slice(&self.0)
    }
}

impl PartialEq for Numbers {
    /// Same element type and same bytes: NaNs with the same bits are equal, -0.0 and 0.0 are not.
    fn eq(&self, other: &Self) -> bool {
        self.element == other.element
            && self.byte_len() == other.byte_len()
            && matches!((self.to_bytes(), other.to_bytes()), (Ok(a), Ok(b)) if a == b)
    }
}

impl fmt::Debug for Numbers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Numbers({} x {}", self.element, self.len())?;
        if let (Payload::Bytes(bytes), true) = (&self.payload, self.byte_len() <= 64) {
            write!(f, ": {:02x?}", bytes.as_ref())?;
        }
        f.write_str(")")
    }
}
