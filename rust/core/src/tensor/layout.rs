//! How the elements of a tensor lie in memory.

use super::{MAX_RANK, Shape};

/// Physical order of the elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Layout {
    /// Row-major in the logical axes.
    #[default]
    Plain,
    /// Axis 1 (channels) innermost: logical `[N, C, spatial...]` lies as `[N, spatial..., C]`. Only for rank 3
    /// and more.
    ChannelsLast,
}

impl Layout {
    /// The order of the logical axes in memory, outermost first.
    #[must_use]
    pub fn order(self, rank: usize) -> [usize; MAX_RANK] {
        let mut order = std::array::from_fn(|axis| axis);
        if self == Self::ChannelsLast && rank >= 3 {
            for (axis, slot) in order.iter_mut().enumerate().take(rank - 1).skip(1) {
                *slot = axis + 1;
            }
            order[rank - 1] = 1;
        }
        order
    }

    /// Lengths of the axes in memory order.
    #[must_use]
    pub fn physical(self, shape: &Shape) -> [usize; MAX_RANK] {
        let order = self.order(shape.rank());
        let mut dims = [1; MAX_RANK];
        for (slot, &axis) in dims.iter_mut().zip(&order).take(shape.rank()) {
            *slot = shape[axis];
        }
        dims
    }

    /// Strides in elements of the logical axes.
    #[must_use]
    pub fn strides(self, shape: &Shape) -> [usize; MAX_RANK] {
        let order = self.order(shape.rank());
        let mut strides = [0; MAX_RANK];
        let mut step = 1;
        for &axis in order[..shape.rank()].iter().rev() {
            strides[axis] = step;
            step *= shape[axis].max(1);
        }
        strides
    }

    /// Whether a tensor of this shape lies the same way in both layouts.
    #[must_use]
    pub fn same_bytes(shape: &Shape) -> bool {
        shape.rank() < 3 || shape[1] <= 1 || shape.span(2..shape.rank()) <= 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channels_last_moves_axis_one_to_the_end() {
        let shape = Shape::new(&[2, 3, 4, 5]).unwrap();
        assert_eq!(Layout::ChannelsLast.physical(&shape)[..4], [2, 4, 5, 3]);
        assert_eq!(Layout::ChannelsLast.strides(&shape)[..4], [60, 1, 15, 3]);
        assert_eq!(Layout::Plain.strides(&shape)[..4], [60, 20, 5, 1]);
    }

    #[test]
    fn single_channel_and_single_pixel_lie_the_same() {
        for dims in [[2, 1, 4, 5], [2, 7, 1, 1]] {
            assert!(Layout::same_bytes(&Shape::new(&dims).unwrap()));
        }
        assert!(!Layout::same_bytes(&Shape::new(&[1, 2, 1, 2]).unwrap()));
    }
}
