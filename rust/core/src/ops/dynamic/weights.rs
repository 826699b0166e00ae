//! Weights in few bits, packed for the integer kernels.

use mnnq_format::QuantizedWeights;
use mnnq_kernels::Epilogue as KernelEpilogue;
use mnnq_kernels::gemm_i8::{Dequantize, Output, PackedI8, gemm_i8, scratch_len};
use mnnq_kernels::gemm_w4::{BlockRows, BlockWeights, PackedBlocks, gemm_w4, gemm_w4_scratch_len};
use mnnq_kernels::parallel::Executor;

use super::rows::Codes;
use crate::ops::error::{OpError, OpResult};
use crate::ops::support::kernels;

/// Longest sums that the integer kernels take.
const MOST_K: usize = 1 << 16;

/// Quantized weights of a convolution, one packed matrix per group.
pub(crate) struct DynamicWeights {
    groups: Vec<Matrix>,
    bits: u8,
    /// Weights of an output channel.
    k: usize,
    /// Weights that share a scale, `k` if there is one per output channel.
    block: usize,
    /// Output channels of a group.
    columns: usize,
}

enum Matrix {
    /// One scale per column, codes of five to eight bits, as bytes.
    Bytes { packed: PackedI8, scale: Vec<f32>, offset: Option<Vec<f32>>, sums: Vec<f32> },
    /// Codes of two to four bits as nibbles, or one scale per block.
    Blocks(PackedBlocks),
}

impl DynamicWeights {
    /// Whether weights of this form can be packed for `channels` output channels in `groups` and windows of `taps`.
    pub(crate) fn fits(weights: &QuantizedWeights, channels: usize, groups: usize, taps: usize) -> bool {
        let k = weights.codes().len() / channels.max(1);
        let whole = weights.rows().is_multiple_of(channels.max(1));
        let blocks = weights.rows() / channels.max(1);
        whole
            && groups > 0
            && k > 0
            && k <= MOST_K
            && k.is_multiple_of(blocks.max(1))
            && weights.row_len().is_multiple_of(taps.max(1))
    }

    /// Packs weights `[channels, i / groups, taps]` for which [`fits`](Self::fits) holds.
    pub(crate) fn new(
        weights: &QuantizedWeights,
        channels: usize,
        groups: usize,
        taps: usize,
    ) -> OpResult<Self> {
        let k = weights.codes().len() / channels.max(1);
        if !Self::fits(weights, channels, groups, taps) {
            let wanted = format!("rows of whole windows of {taps} for each of {channels} channels");
            return Err(OpError::attribute("alpha", format!("{} rows", weights.rows()), wanted));
        }
        let (block, bits) = (weights.row_len(), weights.bits());
        let (blocks, columns) = (k / block, channels / groups);
        let is_blocks = bits <= 4 || blocks > 1;
        let mut packed = Vec::with_capacity(groups);
        for group in 0..groups {
            let codes = &weights.codes()[group * columns * k..][..columns * k];
            let ordered = (taps > 1).then(|| taps_outside(codes, block, taps));
            let codes = ordered.as_deref().unwrap_or(codes);
            let rows = group * columns * blocks..(group + 1) * columns * blocks;
            let scale = &weights.scale()[rows.clone()];
            let offset: Option<Vec<f32>> =
                weights.min().map(|_| rows.clone().map(|row| weights.offset(row)).collect());
            packed.push(if is_blocks {
                let from = BlockWeights {
                    codes,
                    n: columns,
                    k,
                    block,
                    bits: u32::from(bits),
                    scales: scale,
                    offsets: offset.as_deref(),
                };
                Matrix::Blocks(PackedBlocks::new(&kernels().gemm_w4, &from)?)
            } else {
                let packed = PackedI8::new(&kernels().gemm_i8, codes, k, columns, k, 0)?;
                let sum = |(j, &sum): (usize, &i32)| {
                    let offset = offset.as_ref().map_or(0.0, |offset| f64::from(offset[j]));
                    (f64::from(sum) * f64::from(scale[j]) + k as f64 * offset) as f32
                };
                let sums = packed.column_sums().iter().enumerate().map(sum).collect();
                Matrix::Bytes { packed, scale: scale.to_vec(), offset, sums }
            });
        }
        Ok(Self { groups: packed, bits, k, block, columns })
    }

    pub(super) fn k(&self) -> usize {
        self.k
    }

    pub(super) fn block(&self) -> usize {
        self.block
    }

    pub(super) fn columns(&self) -> usize {
        self.columns
    }

    pub(super) fn groups(&self) -> usize {
        self.groups.len()
    }

    /// Rows that are worth being quantized together, so that they stay in the second-level cache.
    pub(super) fn rows_per_task(&self) -> usize {
        let tile = match self.groups.first() {
            Some(Matrix::Blocks(_)) => kernels().gemm_w4.mr(),
            _ => kernels().gemm_i8.mr(),
        };
        ((96 << 10) / self.k.max(1) / tile).clamp(1, 16) * tile
    }

    /// Bytes of scratch that one thread needs for the product of `m` rows.
    pub(super) fn scratch_len(&self, m: usize) -> usize {
        let len = |matrix: &Matrix| match matrix {
            Matrix::Bytes { .. } => scratch_len(&kernels().gemm_i8, self.k),
            Matrix::Blocks(packed) => gemm_w4_scratch_len(m, packed),
        };
        self.groups.iter().map(len).max().unwrap_or(0).next_multiple_of(64)
    }

    /// Whether [`multiply`](Self::multiply) on several threads needs the scratch of each.
    pub(super) fn scratch_per_thread(&self) -> bool {
        matches!(self.groups.first(), Some(Matrix::Bytes { .. }))
    }

    /// `out = epilogue(rows weights)`, the columns of one group; `out` starts at its first column.
    pub(super) fn multiply(
        &self,
        group: usize,
        rows: &Codes<'_>,
        epilogue: &KernelEpilogue<'_>,
        (out, stride): (&mut [f32], usize),
        scratch: &mut [u8],
        executor: &dyn Executor,
    ) -> OpResult<()> {
        let m = rows.scales.len();
        match &self.groups[group] {
            Matrix::Bytes { packed, scale, offset, sums } => {
                let dequantize = Dequantize {
                    row_scale: rows.scales,
                    row_offset: Some(rows.offsets),
                    row_sum: offset.is_some().then_some(rows.sums),
                    column_scale: scale,
                    column_offset: offset.as_deref(),
                    column_sum: Some(sums),
                    epilogue: *epilogue,
                };
                let output = Output::Float { data: out, row_stride: stride, dequantize };
                gemm_i8(&kernels().gemm_i8, m, rows.codes, self.k, packed, output, scratch, executor)?;
            }
            Matrix::Blocks(packed) => {
                let rows = BlockRows {
                    m,
                    codes: rows.codes,
                    row_stride: self.k,
                    scales: rows.scales,
                    offsets: Some(rows.offsets),
                    sums: rows.sums,
                };
                let (kernel, scratch) = (&kernels().gemm_w4, bytemuck::cast_slice_mut(scratch));
                gemm_w4(kernel, &rows, packed, epilogue, out, stride, scratch, executor)?;
            }
        }
        Ok(())
    }

    /// Memory held, in bytes.
    #[cfg(test)]
    pub(crate) fn bytes(&self) -> usize {
        let bytes = |matrix: &Matrix| match matrix {
            Matrix::Bytes { packed, scale, offset, sums } => {
                packed.bytes() + 4 * (scale.len() + sums.len() + offset.as_ref().map_or(0, Vec::len))
            }
            Matrix::Blocks(packed) => packed.bytes(),
        };
        self.groups.iter().map(bytes).sum()
    }

    /// The weights in words, for the profile.
    pub(super) fn describe(&self) -> String {
        let kernel = match self.groups.first() {
            Some(Matrix::Blocks(_)) => kernels().gemm_w4.name(),
            _ => kernels().gemm_i8.name(),
        };
        let blocks =
            if self.block < self.k { format!(" in blocks of {}", self.block) } else { String::new() };
        format!("{}-bit weights{blocks} {kernel}", self.bits)
    }
}

/// Rows `[blocks, i, taps]` as `[blocks, taps, i]`.
fn taps_outside(codes: &[i8], block: usize, taps: usize) -> Vec<i8> {
    let channels = block / taps;
    let mut ordered = vec![0; codes.len()];
    for (from, to) in codes.chunks_exact(block).zip(ordered.chunks_exact_mut(block)) {
        for channel in 0..channels {
            for tap in 0..taps {
                to[tap * channels + channel] = from[channel * taps + tap];
            }
        }
    }
    ordered
}

#[cfg(test)]
mod tests {
    use super::*;

    fn weights(bits: u8, channels: usize, k: usize, block: usize) -> QuantizedWeights {
        let half = 1_i32 << (bits - 1);
        let codes = (0..channels * k).map(|i| ((i as i32 * 7 + 3) % (2 * half) - half) as i8).collect();
        QuantizedWeights::new(bits, codes, vec![0.5; channels * k / block], None).unwrap()
    }

    #[test]
    fn codes_take_four_or_eight_bits() {
        for bits in 2..=8 {
            let (channels, k) = (128, 256);
            let packed = DynamicWeights::new(&weights(bits, channels, k, k), channels, 1, 1).unwrap();
            let codes = channels * k / if bits <= 4 { 2 } else { 1 };
            let beside = packed.bytes() - codes;
            assert!(beside <= 16 * channels, "{bits} bits: {beside} bytes beside the codes");
        }
    }

    #[test]
    fn weights_that_do_not_fit_are_recognized() {
        let fits = |weights: &QuantizedWeights, taps| DynamicWeights::fits(weights, 4, 1, taps);
        assert!(fits(&weights(4, 4, 72, 72), 9) && fits(&weights(4, 4, 72, 36), 9));
        // Blocks that cut windows.
        assert!(!fits(&weights(4, 4, 72, 24), 9));
        assert!(!fits(&weights(8, 4, MOST_K + 8, MOST_K + 8), 1));
        assert!(DynamicWeights::new(&weights(4, 4, 72, 24), 4, 1, 9).is_err());
    }
}
