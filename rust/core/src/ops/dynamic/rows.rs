//! The quantized copy of an activation: its memory, and the step that makes it.

use std::borrow::Cow;

use mnnq_kernels::quantize_rows::{RowCodes, RowQuantizer, RowScheme, quantize_rows};

use crate::ops::error::OpResult;
use crate::ops::operator::{Kernel, StepIo};
use crate::ops::support::kernels;
use crate::tensor::{DType, Shape, TensorDesc};

/// Bytes between parts of the memory that start at a whole line.
const LINE: usize = 64;

/// How an activation, seen as a matrix, is quantized. Consumers that want the same share one copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QuantizedRows {
    /// How codes are chosen.
    pub(super) scheme: RowScheme,
    /// Rows of the matrix.
    pub(super) rows: usize,
    /// Codes of a row.
    pub(super) k: usize,
    /// Codes per sum.
    pub(super) block: usize,
}

/// The parts of the quantized copy: one scale and offset per row, one sum per block of each row.
pub(super) struct Codes<'a> {
    pub(super) codes: &'a [i8],
    pub(super) scales: &'a [f32],
    pub(super) offsets: &'a [f32],
    pub(super) sums: &'a [i32],
}

impl QuantizedRows {
    pub(super) fn blocks(&self) -> usize {
        self.k.div_ceil(self.block.max(1)).max(1)
    }

    /// Bytes in front of the codes.
    fn head(&self) -> usize {
        (self.rows * (8 + 4 * self.blocks())).next_multiple_of(LINE)
    }

    /// The memory as a tensor of bytes.
    pub(crate) fn desc(&self) -> OpResult<TensorDesc> {
        Ok(TensorDesc::new(DType::U8, Shape::new(&[self.head() + self.rows * self.k])?))
    }

    pub(super) fn read<'a>(&self, bytes: &'a [u8]) -> Codes<'a> {
        let (head, codes) = bytes.split_at(self.head());
        let (ranges, sums) = head[..self.rows * (8 + 4 * self.blocks())].split_at(8 * self.rows);
        let (scales, offsets) = bytemuck::cast_slice(ranges).split_at(self.rows);
        Codes { codes: bytemuck::cast_slice(codes), scales, offsets, sums: bytemuck::cast_slice(sums) }
    }

    fn write<'a>(&self, bytes: &'a mut [u8]) -> RowCodes<'a> {
        let (head, codes) = bytes.split_at_mut(self.head());
        let (ranges, sums) = head[..self.rows * (8 + 4 * self.blocks())].split_at_mut(8 * self.rows);
        let (scales, offsets) = bytemuck::cast_slice_mut(ranges).split_at_mut(self.rows);
        RowCodes {
            codes: bytemuck::cast_slice_mut(codes),
            row_stride: self.k,
            scales,
            offsets,
            sums: bytemuck::cast_slice_mut(sums),
        }
    }
}

/// The step that quantizes input 0.
pub(crate) fn quantize_kernel(how: QuantizedRows) -> Box<dyn Kernel> {
    Box::new(Quantize(how))
}

struct Quantize(QuantizedRows);

impl Kernel for Quantize {
    fn label(&self) -> Cow<'static, str> {
        format!("quantize rows, {} int8", word(self.0.scheme)).into()
    }

    fn run(&self, io: &mut StepIo<'_, '_>) -> OpResult<()> {
        let how = self.0;
        let input = io.input(0).data::<f32>();
        let block = if how.block == how.k { 0 } else { how.block };
        let quantizer = RowQuantizer { scheme: how.scheme, per_tensor: false, block };
        let out = how.write(io.outputs[0].data::<u8>());
        let isa = kernels().elementwise_f32;
        quantize_rows(isa, quantizer, input, [how.rows, how.k], how.k, out, io.parallel)?;
        Ok(())
    }
}

/// A scheme for the profile.
pub(super) fn word(scheme: RowScheme) -> &'static str {
    match scheme {
        RowScheme::Symmetric => "symmetric",
        RowScheme::Asymmetric => "asymmetric",
        RowScheme::ZeroPoint => "asymmetric with zero",
    }
}
