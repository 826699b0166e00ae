//! What happens to the accumulators of a product before they are stored, as data.

use crate::elementwise::{Binary, Broadcast, Unary, binary_in_place, unary_rows_in_place};
use crate::error::KernelError;
use crate::simd::VectorIsa;

/// `out = then(activation(acc * scale + bias) + residual)`, per element, steps that are absent left out.
///
/// Activations that only clamp (none, ReLU, ReLU6) run on the accumulators in registers; others run over the finished
/// tile while it is in the first-level cache.
#[derive(Clone, Copy, Debug)]
pub struct Epilogue<'a> {
    /// Factor per output column (channel): `[n]`.
    pub scale: Option<&'a [f32]>,
    /// Offset per output column (channel): `[n]`.
    pub bias: Option<&'a [f32]>,
    /// Applied after scale and bias.
    pub activation: Unary,
    /// A tensor of the output's shape to be added after the activation.
    pub residual: Option<Residual<'a>>,
}

/// The tensor that an [`Epilogue`] adds.
#[derive(Clone, Copy, Debug)]
pub struct Residual<'a> {
    /// Rows of the output's shape.
    pub data: &'a [f32],
    /// Distance between rows, in elements; at least the number of columns.
    pub row_stride: usize,
    /// Applied after the sum.
    pub then: Unary,
}

impl Default for Epilogue<'_> {
    fn default() -> Self {
        Self { scale: None, bias: None, activation: Unary::Identity, residual: None }
    }
}

impl<'a> Epilogue<'a> {
    /// Bias and activation only.
    pub fn new(bias: Option<&'a [f32]>, activation: Unary) -> Self {
        Self { bias, activation, ..Self::default() }
    }

    /// Checks the lengths against an output of `[m, n]`.
    pub(crate) fn check(&self, kernel: &'static str, m: usize, n: usize) -> Result<(), KernelError> {
        if let Some(scale) = self.scale {
            KernelError::check(kernel, "length of the epilogue's scale", scale.len(), n)?;
        }
        if let Some(bias) = self.bias {
            KernelError::check(kernel, "length of the epilogue's bias", bias.len(), n)?;
        }
        if let Some(residual) = self.residual {
            KernelError::check_least(kernel, "row stride of the residual", residual.row_stride, n)?;
            let needed = strided_len(kernel, m, n, residual.row_stride)?;
            KernelError::check_least(kernel, "length of the residual", residual.data.len(), needed)?;
        }
        Ok(())
    }

    /// The plain formula for one element, for references in tests.
    #[cfg(any(test, feature = "testing"))]
    pub fn reference(
        &self,
        acc: f32,
        row: usize,
        column: usize,
        function: impl Fn(Unary, f32) -> f32,
    ) -> f32 {
        let scaled = acc * self.scale.map_or(1.0, |scale| scale[column]);
        let value = function(self.activation, scaled + self.bias.map_or(0.0, |bias| bias[column]));
        match self.residual {
            Some(r) => function(r.then, value + r.data[row * r.row_stride + column]),
            None => value,
        }
    }
}

/// Elements spanned by `rows` rows of `columns` at distance `stride`.
pub(crate) fn strided_len(
    kernel: &'static str,
    rows: usize,
    columns: usize,
    stride: usize,
) -> Result<usize, KernelError> {
    if rows == 0 {
        return Ok(0);
    }
    let before = (rows - 1).checked_mul(stride).and_then(|before| before.checked_add(columns));
    before.ok_or(KernelError::Value { kernel, what: "the matrix is larger than the address space" })
}

/// Whether the activations run over the finished tile rather than in registers.
pub(crate) fn is_deferred(epilogue: &Epilogue<'_>) -> bool {
    let then = epilogue.residual.map_or(Unary::Identity, |residual| residual.then);
    epilogue.activation.as_clamp().is_none() || then.as_clamp().is_none()
}

/// The deferred steps (activation, residual, its activation), for a block of the output that starts at `(row, column)`.
///
/// # Safety
/// `block` must be valid for reading and writing `columns` values in each of `rows` rows `stride` elements apart, and
/// nobody else may use them.
pub(crate) unsafe fn finish_block(
    isa: VectorIsa,
    epilogue: &Epilogue<'_>,
    (row, column): (usize, usize),
    block: *mut f32,
    [rows, columns]: [usize; 2],
    stride: usize,
) {
    // SAFETY: the caller vouches for the block.
    unsafe { unary_rows_in_place(isa, epilogue.activation, block, [rows, columns], stride) };
    let Some(residual) = epilogue.residual else { return };
    for index in 0..rows {
        // SAFETY: a row of the block.
        let line = unsafe { std::slice::from_raw_parts_mut(block.add(index * stride), columns) };
        let from = (row + index) * residual.row_stride + column;
        let other = &residual.data[from..from + columns];
        binary_in_place(isa, Binary::Add, line, other, Broadcast::Same, columns);
    }
    // SAFETY: the caller vouches for the block.
    unsafe { unary_rows_in_place(isa, residual.then, block, [rows, columns], stride) };
}
