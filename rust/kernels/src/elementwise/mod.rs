//! Element-wise functions: [`Unary`] and [`Binary`] over slices.

mod binary;
mod unary;
pub mod vmath;

#[cfg(test)]
mod tests;

pub use binary::{Binary, Broadcast, binary, binary_in_place};
pub(crate) use unary::unary_rows_in_place;
pub use unary::{Unary, unary, unary_in_place};
