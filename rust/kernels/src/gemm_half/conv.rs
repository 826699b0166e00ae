//! Convolution of NHWC images in 16-bit floats.

use super::driver::product;
use super::kernels::GemmHalf;
use super::pack::PackedHalf;
use crate::aligned::AlignedVec;
use crate::conv_f32::{Windows, is_pointwise, taps_outside};
use crate::error::KernelError;
use crate::gemm_f32::{MatrixRows, Output};
use crate::geometry::Sliding;
use crate::parallel::Executor;
use crate::{Epilogue, Residual};

const FAMILY: &str = "conv_half";

/// Convolution weights in 16-bit floats, one packed matrix per group.
#[derive(Clone, Debug)]
pub struct PackedConvHalf {
    groups: Vec<PackedHalf>,
    /// Input channels of a group.
    in_channels: usize,
    /// Output channels of a group.
    out_channels: usize,
    taps: usize,
}

impl PackedConvHalf {
    /// Packs `weights[oc, ic / groups, kh, kw]`, the order of ONNX and MNN.
    ///
    /// # Shapes
    /// `[out_channels, in_channels, taps]` with `in_channels` per group and `taps = kh * kw`.
    ///
    /// # Errors
    /// [`KernelError`] if the length differs or `groups` does not divide `out_channels`.
    pub fn new(
        kernel: &GemmHalf,
        weights: &[f32],
        [out_channels, in_channels, taps]: [usize; 3],
        groups: usize,
    ) -> Result<Self, KernelError> {
        if groups == 0 || !out_channels.is_multiple_of(groups) {
            let what = "groups do not divide the output channels";
            return Err(KernelError::Value { kernel: FAMILY, what });
        }
        let what = "the weights are larger than the address space";
        let overflow = KernelError::Value { kernel: FAMILY, what };
        let k = in_channels.checked_mul(taps).ok_or(overflow.clone())?;
        let wanted = k.checked_mul(out_channels).ok_or(overflow)?;
        KernelError::check(FAMILY, "length of the weights", weights.len(), wanted)?;
        let per_group = out_channels / groups;
        let mut reordered = AlignedVec::zeros(per_group * k);
        let mut packed = Vec::with_capacity(groups);
        for group in 0..groups {
            let from = &weights[group * per_group * k..][..per_group * k];
            taps_outside(from, [per_group, in_channels, taps], reordered.as_mut_slice());
            packed.push(PackedHalf::from_columns(kernel, reordered.as_slice(), k, per_group, k)?);
        }
        Ok(Self { groups: packed, in_channels, out_channels: per_group, taps })
    }

    /// Memory held, in bytes.
    pub fn bytes(&self) -> usize {
        self.groups.iter().map(PackedHalf::bytes).sum()
    }
}

/// `out = epilogue(conv(half(input), weights))`; shapes as of [`conv_f32`](crate::conv_f32::conv_f32), scratch of
/// [`scratch_len`](super::scratch_len) elements per thread.
///
/// # Errors
/// [`KernelError`] if a length does not fit or the weights were packed for another kernel.
#[allow(clippy::too_many_arguments, reason = "operands, epilogue, output and resources")]
pub fn conv_half(
    kernel: &GemmHalf,
    sliding: &Sliding,
    input: &[f32],
    weights: &PackedConvHalf,
    epilogue: &Epilogue<'_>,
    out: &mut [f32],
    scratch: &mut [f32],
    executor: &dyn Executor,
) -> Result<(), KernelError> {
    let channels = weights.out_channels * weights.groups.len();
    sliding.check(FAMILY, input.len(), out.len(), channels)?;
    let in_channels = weights.in_channels * weights.groups.len();
    KernelError::check(FAMILY, "input channels", sliding.channels, in_channels)?;
    KernelError::check(FAMILY, "taps", sliding.taps(), weights.taps)?;
    let pixels = sliding.out_pixels();
    epilogue.check(FAMILY, pixels, channels)?;
    if pixels == 0 || channels == 0 {
        return Ok(());
    }
    for (group, b) in weights.groups.iter().enumerate() {
        let columns = group * weights.out_channels..(group + 1) * weights.out_channels;
        let epilogue = Epilogue {
            scale: epilogue.scale.map(|scale| &scale[columns.clone()]),
            bias: epilogue.bias.map(|bias| &bias[columns.clone()]),
            activation: epilogue.activation,
            residual: epilogue.residual.map(|r| Residual { data: &r.data[columns.start..], ..r }),
        };
        let output = Output::new(FAMILY, &mut out[columns.start..], pixels, columns.len(), channels)?;
        let first_channel = group * weights.in_channels;
        if is_pointwise(sliding) {
            let data = &input[first_channel.min(input.len())..];
            let rows = MatrixRows { data, row_stride: sliding.channels };
            product(kernel, &rows, b, &epilogue, output, scratch, executor)?;
        } else {
            let rows = Windows { input, sliding, first_channel, channels: weights.in_channels };
            product(kernel, &rows, b, &epilogue, output, scratch, executor)?;
        }
    }
    Ok(())
}
