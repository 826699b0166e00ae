//! Logical shapes.

use std::fmt;
use std::ops::Deref;

/// Most axes a tensor may have.
pub const MAX_RANK: usize = 8;

/// A shape that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ShapeError {
    /// Too many axes.
    #[error("rank {rank} is above the limit of {MAX_RANK}")]
    Rank {
        /// The rank.
        rank: usize,
    },
    /// A negative length, or more elements than memory can hold.
    #[error("shape {dims:?} is negative or too large")]
    Size {
        /// The lengths.
        dims: Vec<i64>,
    },
    /// Shapes that do not broadcast against each other.
    #[error("shapes {a} and {b} do not broadcast")]
    Broadcast {
        /// One shape.
        a: Box<Shape>,
        /// The other.
        b: Box<Shape>,
    },
}

/// Lengths of the axes of a tensor, outermost first. Rank 0 is a scalar: one element.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Shape {
    rank: u8,
    dims: [usize; MAX_RANK],
}

impl Shape {
    /// A scalar.
    pub const SCALAR: Self = Self { rank: 0, dims: [0; MAX_RANK] };

    /// The shape with these lengths.
    ///
    /// # Errors
    /// [`ShapeError::Rank`] above [`MAX_RANK`] axes, [`ShapeError::Size`] if the number of elements is beyond
    /// what a tensor can have (2^40).
    pub fn new(dims: &[usize]) -> Result<Self, ShapeError> {
        if dims.len() > MAX_RANK {
            return Err(ShapeError::Rank { rank: dims.len() });
        }
        // Zero lengths are left out, so that the strides of an empty tensor are bounded as well.
        let count = dims.iter().filter(|&&d| d > 0).try_fold(1_usize, |n, &d| n.checked_mul(d));
        if count.is_none_or(|n| n > 1 << 40) {
            return Err(ShapeError::Size {
                dims: dims.iter().map(|&d| i64::try_from(d).unwrap_or(i64::MAX)).collect(),
            });
        }
        let mut shape = Self::SCALAR;
        shape.dims[..dims.len()].copy_from_slice(dims);
        shape.rank = dims.len() as u8;
        Ok(shape)
    }

    /// The shape with these lengths, given as signed numbers.
    ///
    /// # Errors
    /// Those of [`new`](Self::new), and [`ShapeError::Size`] for a negative length.
    pub fn from_signed(dims: &[i64]) -> Result<Self, ShapeError> {
        let bad = || ShapeError::Size { dims: dims.to_vec() };
        let lengths =
            dims.iter().map(|&d| usize::try_from(d).map_err(|_| bad())).collect::<Result<Vec<_>, _>>()?;
        Self::new(&lengths)
    }

    /// Number of axes.
    #[must_use]
    pub fn rank(&self) -> usize {
        usize::from(self.rank)
    }

    /// Lengths of the axes.
    #[must_use]
    pub fn dims(&self) -> &[usize] {
        &self.dims[..self.rank()]
    }

    /// Number of elements; 1 for a scalar.
    #[must_use]
    pub fn count(&self) -> usize {
        self.dims().iter().product()
    }

    /// Row-major strides in elements.
    #[must_use]
    pub fn strides(&self) -> [usize; MAX_RANK] {
        let mut strides = [1; MAX_RANK];
        let mut step = 1;
        for axis in (0..self.rank()).rev() {
            strides[axis] = step;
            step *= self.dims[axis].max(1);
        }
        strides
    }

    /// The shape both broadcast to by NumPy's rule: axes aligned at the end, equal or 1.
    ///
    /// # Errors
    /// [`ShapeError::Broadcast`] if they do not.
    pub fn broadcast(&self, other: &Self) -> Result<Self, ShapeError> {
        let rank = self.rank().max(other.rank());
        let mut dims = [1; MAX_RANK];
        for (axis, out) in dims.iter_mut().enumerate().take(rank) {
            let (a, b) = (self.aligned(axis, rank), other.aligned(axis, rank));
            *out = match (a, b) {
                _ if a == b => a,
                (1, _) => b,
                (_, 1) => a,
                _ => return Err(ShapeError::Broadcast { a: Box::new(*self), b: Box::new(*other) }),
            };
        }
        Self::new(&dims[..rank])
    }

    /// Length of axis `axis` after the shape was padded with leading ones to `rank` axes.
    fn aligned(&self, axis: usize, rank: usize) -> usize {
        (axis + self.rank()).checked_sub(rank).map_or(1, |axis| self.dims[axis])
    }

    /// Product of the lengths of some axes.
    #[must_use]
    pub fn span(&self, axes: std::ops::Range<usize>) -> usize {
        self.dims()[axes].iter().product()
    }

    /// The lengths as signed numbers.
    #[must_use]
    pub fn to_signed(&self) -> Vec<i64> {
        self.dims().iter().map(|&d| d as i64).collect()
    }
}

impl Deref for Shape {
    type Target = [usize];

    fn deref(&self) -> &[usize] {
        self.dims()
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.dims())
    }
}

impl fmt::Debug for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.dims())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(dims: &[usize]) -> Shape {
        Shape::new(dims).unwrap()
    }

    #[test]
    fn broadcasts_like_numpy() {
        assert_eq!(shape(&[4, 1]).broadcast(&shape(&[3])), Ok(shape(&[4, 3])));
        assert_eq!(Shape::SCALAR.broadcast(&shape(&[2, 0])), Ok(shape(&[2, 0])));
        assert!(shape(&[2]).broadcast(&shape(&[3])).is_err());
    }

    #[test]
    fn refuses_what_cannot_be() {
        assert!(matches!(Shape::new(&[1; 9]), Err(ShapeError::Rank { rank: 9 })));
        assert!(Shape::new(&[1 << 30, 1 << 30]).is_err());
        assert!(Shape::new(&[0, 1 << 30, 1 << 30]).is_err());
        assert!(Shape::from_signed(&[2, -1]).is_err());
    }

    #[test]
    fn a_scalar_has_one_element() {
        assert_eq!((Shape::SCALAR.count(), shape(&[3, 0]).count()), (1, 0));
    }
}
