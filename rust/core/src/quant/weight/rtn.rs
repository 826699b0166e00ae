//! Range of the block, then round to nearest: the rule MNN's converter uses by default.
//!
//! Per block, all f32 (`tools/converter/source/common/WeightQuantAndCoding.cpp`, `source/core/IDSTEncoder.hpp`):
//!
//! * symmetric: `scale = max|w| / (2^(b-1) - 1)`, so the lowest code never occurs;
//! * asymmetric: `min = min(w)`, `scale = (max(w) - min) / (2^b - 1)`;
//! * a block with `scale <= 1e-6` is dead: all codes 0 (symmetric) or `-2^(b-1)` (asymmetric).

use super::{Block, BlockQuantizer};
use crate::quant::affine::{self, Affine, DEAD_SCALE};
use crate::quant::spec::{BitWidth, Scheme};

/// Round to nearest on the range of the block.
#[derive(Clone, Copy, Debug)]
pub struct RoundToNearest {
    /// Bits per code.
    pub bits: BitWidth,
    /// Scale only, or scale and minimum.
    pub scheme: Scheme,
}

impl RoundToNearest {
    /// Parameters for a symmetric range `max|w|` or an asymmetric one `(min, max)`.
    #[inline(always)]
    pub fn affine(self, (min, max): (f32, f32)) -> Affine {
        match self.scheme {
            Scheme::Symmetric => {
                let max_abs = if -min > max { -min } else { max };
                Affine { scale: max_abs / (self.bits.half() - 1.0), min: 0.0 }
            }
            Scheme::Asymmetric => Affine { scale: (max - min) / self.bits.steps(), min },
        }
    }

    /// Codes of a block with given parameters, with MNN's rule for dead blocks.
    #[inline(always)]
    pub fn encode(self, affine: Affine, weights: &[f32], codes: &mut [i8]) {
        match self.scheme {
            _ if affine.scale <= DEAD_SCALE => codes.fill(match self.scheme {
                Scheme::Symmetric => 0,
                Scheme::Asymmetric => self.bits.lowest(),
            }),
            Scheme::Symmetric => affine::encode_symmetric(self.bits, affine.scale, weights, codes),
            Scheme::Asymmetric => affine::encode_asymmetric(self.bits, affine, weights, codes),
        }
    }
}

impl BlockQuantizer for RoundToNearest {
    #[inline(always)]
    fn quantize(self, block: Block<'_>) -> Affine {
        let range = match self.scheme {
            Scheme::Symmetric => (0.0, affine::max_abs(block.weights)),
            Scheme::Asymmetric => affine::min_max(block.weights),
        };
        let affine = self.affine(range);
        self.encode(affine, block.weights, block.codes);
        affine
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(bits: usize, scheme: Scheme, weights: &[f32]) -> (Affine, Vec<i8>) {
        let mut codes = vec![99; weights.len()];
        let rtn = RoundToNearest { bits: BitWidth::ALL[bits - 2], scheme };
        let affine =
            rtn.quantize(Block { weights, codes: &mut codes, scratch: &mut vec![0.0; weights.len()] });
        (affine, codes)
    }

    #[test]
    fn two_bit_ties_round_up_from_the_minimum() {
        // A converter run on this row gives these codes.
        let (affine, codes) = run(2, Scheme::Asymmetric, &[-1.0, 2.0, -0.5, 0.5, 1.5, 0.0]);
        assert_eq!(affine, Affine { scale: 1.0, min: -1.0 });
        assert_eq!(codes, [-2, 1, -1, 0, 1, -1]);
        let (affine, codes) = run(2, Scheme::Symmetric, &[1.0, -1.0, 0.5, -0.5, 0.0, 0.25]);
        assert_eq!(affine.scale, 1.0);
        assert_eq!(codes, [1, -1, 1, -1, 0, 0]);
    }

    #[test]
    fn dead_blocks_have_one_constant_code() {
        // 3e-6 / 3 is exactly 1e-6: still dead.
        for w in [0.0, 3e-6, 1e-40] {
            assert_eq!(run(2, Scheme::Asymmetric, &[w, 0.0, 0.0]).1, [-2; 3], "{w}");
        }
        assert_eq!(run(4, Scheme::Asymmetric, &[-3.25; 5]), (Affine { scale: 0.0, min: -3.25 }, vec![-8; 5]));
        assert_eq!(run(8, Scheme::Symmetric, &[1e-5, -1e-5]).1, [0, 0]);
    }
}
