//! Whether a layer is faster in integers or in floats.
//!
//! Both are estimated in cycles per output pixel, from throughputs of the kernels measured per instruction set:
//!
//! ```text
//! float:   k n / float_products + n / float_stores
//! integer: k n / int_products + k / codes + n / int_stores [+ blocks n / scales] + row [+ runs run + taps pixel]
//! ```
//!
//! `row` is what finding a range costs however short a row is; windows with several taps are quantized in `runs` of
//! neighbouring values, and their range is that of their pixels. A layer runs in integers if that is estimated to take
//! at most [`WORTH`] of the time: what is gained by less is lost in the step that quantizes, which touches memory again.
//!
//! Offline-quantized layers need not quantize: `k n / int_products + n / int_stores`. They run in integers in any case, for
//! floats would not give the codes of the formula; the profile shows the estimate.
//!
//! The number of pixels cancels out but for a single one, where both are bound by reading the weights; integers then
//! read a quarter or less. Only ratios matter, so that clock rates do not.

use mnnq_format::QuantizedWeights;
use mnnq_kernels::cpu::IsaLevel;

use crate::ops::conv_weights::ConvCommon;
use crate::ops::support::kernels;

/// Largest ratio of integers to floats at which integers are chosen.
pub(crate) const WORTH: f64 = 0.85;

/// Times that Winograd's algorithm is faster, rounded down so that layers that gain little stay in integers.
const WINOGRAD: f64 = 1.8;

/// Times that Winograd's algorithm is faster as measured, for up to 128 x 128 channels and for more.
const WINOGRAD_MEASURED: [f64; 2] = [2.9, 2.1];

/// Times that Winograd's algorithm on codes is faster than the direct sum on them, as measured: with instructions for sums of
/// four products of bytes, and without.
const WINOGRAD_CODES: [f64; 2] = [1.2, 2.4];

/// Cycles per row for its range, scale and offset.
const ROW: f64 = 60.0;

/// Cycles per run of values of a window, beyond those of its values.
const RUN: f64 = 15.0;

/// Cycles per pixel of a window for its range.
const PIXEL: f64 = 3.0;

/// What a core does per cycle.
#[derive(Debug, Clone, Copy)]
struct Rates {
    /// Products of the float kernel.
    float_products: f64,
    /// Products of the int8 kernel.
    int_products: f64,
    /// Products of the kernel for nibbles and blocks.
    block_products: f64,
    /// Activations quantized.
    codes: f64,
    /// Outputs of the float kernel stored with their epilogue.
    float_stores: f64,
    /// Sums turned to floats and stored with their epilogue.
    int_stores: f64,
    /// Sums of blocks scaled and added.
    scales: f64,
}

/// Rates of an instruction set, as measured by `benches/int8_kernels` (rounded down) or, for CPUs not at hand, from the
/// issue widths of common cores.
fn rates(level: IsaLevel) -> Rates {
    let rates = |float_products, int_products, block_products, codes, float_stores, int_stores, scales| {
        Rates { float_products, int_products, block_products, codes, float_stores, int_stores, scales }
    };
    match level {
        IsaLevel::Avx512Vnni | IsaLevel::Avx512Bf16 => rates(14.0, 52.0, 45.0, 1.2, 6.0, 4.0, 5.0),
        IsaLevel::Avx512 => rates(14.0, 24.0, 18.0, 1.2, 6.0, 4.0, 5.0),
        IsaLevel::AvxVnni => rates(14.0, 48.0, 40.0, 0.8, 4.0, 2.5, 3.0),
        IsaLevel::Avx2 => rates(14.0, 22.0, 16.0, 0.8, 4.0, 2.5, 3.0),
        IsaLevel::I8mm => rates(7.0, 56.0, 26.0, 0.5, 2.0, 1.3, 1.5),
        IsaLevel::Dotprod => rates(7.0, 29.0, 26.0, 0.5, 2.0, 1.3, 1.5),
        IsaLevel::Neon | IsaLevel::Fp16 => rates(7.0, 9.0, 5.0, 0.5, 2.0, 1.3, 1.5),
        // SSE2; floats are vectorized by the compiler.
        IsaLevel::Baseline if cfg!(target_arch = "x86_64") => rates(2.0, 4.0, 1.0, 0.3, 1.0, 0.6, 0.5),
        // Plain code gains little from small integers.
        _ => rates(2.0, 2.0, 1.0, 0.3, 1.0, 0.6, 0.5),
    }
}

/// A dense convolution, per group.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Layer {
    /// Weights of an output channel.
    pub(crate) k: usize,
    /// Output channels of a group.
    pub(crate) n: usize,
    /// Scales per output channel.
    pub(crate) blocks: usize,
    /// Bits of a weight.
    pub(crate) bits: u8,
    /// Taps of a window, vertical and horizontal.
    pub(crate) taps: [usize; 2],
    /// In floats Winograd's algorithm would do.
    pub(crate) winograd: bool,
}

impl Layer {
    pub(in crate::ops) fn of(weights: &QuantizedWeights, common: &ConvCommon) -> Self {
        let channels = common.out_channels.max(1);
        Self {
            k: weights.codes().len() / channels,
            blocks: (weights.rows() / channels).max(1),
            bits: weights.bits(),
            ..Self::dense(common)
        }
    }

    /// A convolution with a scale per output channel and 8 bits.
    pub(in crate::ops) fn dense(common: &ConvCommon) -> Self {
        let (channels, groups) = (common.out_channels.max(1), common.group.max(1));
        let plain =
            [common.kernel, common.stride, common.dilation] == [[3, 3], [1, 1], [1, 1]] && groups == 1;
        let matrix = common.in_channels * common.out_channels;
        Self {
            k: common.in_channels / groups * common.taps(),
            n: channels / groups,
            blocks: 1,
            bits: 8,
            taps: common.kernel,
            winograd: plain && common.in_channels.min(channels) >= 16 && matrix <= 1 << 19,
        }
    }

    /// Estimated time on codes that exist already over that in floats; `winograd`: if Winograd's algorithm is used on the codes.
    pub(crate) fn ratio_of_codes(&self, winograd: bool) -> f64 {
        let kernel = &kernels().gemm_i8;
        let r = rates(kernel.level());
        let lanes = (kernel.nr() / 2).max(1);
        let n = self.n as f64;
        let columns = self.n.next_multiple_of(lanes) as f64;
        let small = self.k * self.n <= 9 << 14;
        let fewer = if self.winograd { WINOGRAD_MEASURED[usize::from(!small)] } else { 1.0 };
        let float = self.k as f64 * columns / (r.float_products * fewer) + n / r.float_stores;
        let units = self.k.next_multiple_of(8) as f64;
        let wide = matches!(kernel.level(), IsaLevel::Avx512 | IsaLevel::Avx2 | IsaLevel::Baseline);
        let codes =
            if winograd { r.int_products * WINOGRAD_CODES[usize::from(wide)] } else { r.int_products };
        (units * columns / codes + n / r.int_stores) / float
    }

    /// Estimated time in integers over that in floats.
    pub(crate) fn ratio(&self) -> f64 {
        let blocks = self.bits <= 4 || self.blocks > 1;
        let (gemm_i8, gemm_w4) = (&kernels().gemm_i8, &kernels().gemm_w4);
        let (level, nr) =
            if blocks { (gemm_w4.level(), gemm_w4.nr()) } else { (gemm_i8.level(), gemm_i8.nr()) };
        let r = rates(level);
        // Vectors are computed whole; half panels are half the work.
        let padded = |n: usize, width: usize| n.next_multiple_of(width) as f64;
        let (k, n) = (self.k as f64, self.n as f64);
        let lanes = (nr / 2).max(1);
        let fewer = if self.winograd { WINOGRAD } else { 1.0 };
        let float = k * padded(self.n, lanes) / (r.float_products * fewer) + n / r.float_stores;
        let width = if blocks { nr } else { lanes };
        let products = if blocks { r.block_products } else { r.int_products };
        let units = self.k.next_multiple_of(8) as f64;
        let mut integer = units * padded(self.n, width) / products + k / r.codes + n / r.int_stores;
        if blocks {
            integer += self.blocks as f64 * padded(self.n, width) / r.scales;
        }
        integer += ROW;
        let [down, across] = self.taps;
        if down * across > 1 {
            // One run per line of a window; one per tap if other blocks of channels lie between the taps.
            let runs = if self.blocks > 1 { self.blocks * down * across } else { down };
            integer += runs as f64 * RUN + (down * across) as f64 * PIXEL;
        }
        integer / float
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wide_layers_are_faster_in_integers_and_narrow_ones_in_floats() {
        let layer = |k, n| Layer { k, n, blocks: 1, bits: 8, taps: [1, 1], winograd: false };
        if kernels().gemm_i8.level() < IsaLevel::AvxVnni {
            return;
        }
        assert!(layer(768, 768).ratio() < 0.5);
        assert!(layer(4608, 512).ratio() < 0.5);
        assert!(layer(512, 1).ratio() > 1.0);
        assert!(layer(32, 16).ratio() > WORTH);
        let stem = Layer { k: 27, n: 32, taps: [3, 3], ..layer(27, 32) };
        assert!(stem.ratio() > 1.0);
        let narrow = Layer { taps: [3, 3], ..layer(576, 64) };
        assert!(narrow.ratio() < WORTH && Layer { winograd: true, ..narrow }.ratio() > narrow.ratio());
        for (k, n) in [(64, 256), (768, 768), (27, 32)] {
            assert!(layer(k, n).ratio_of_codes(false) < layer(k, n).ratio());
            assert!(layer(k, n).ratio_of_codes(true) < layer(k, n).ratio_of_codes(false));
        }
        let fine = Layer { blocks: 64, bits: 4, ..layer(2048, 2048) };
        let coarse = Layer { blocks: 16, ..fine };
        assert!(coarse.ratio() < fine.ratio() && fine.ratio() < WORTH);
    }
}
