//! What to quantize to: bit width, scheme, granularity, method, as separate values.

pub use mnnq_format::weight_blob::ScaleStorage;

use super::error::QuantError;

/// Number of bits of one code, 2 to 8.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BitWidth(u8);

impl BitWidth {
    /// All bit widths, 2 to 8.
    pub const ALL: [Self; 7] = [Self(2), Self(3), Self(4), Self(5), Self(6), Self(7), Self(8)];

    /// Checks `bits`.
    ///
    /// # Errors
    /// [`QuantError::BitWidth`] if `bits` is not in 2..=8.
    pub fn new(bits: u32) -> Result<Self, QuantError> {
        match u8::try_from(bits) {
            Ok(b @ 2..=8) => Ok(Self(b)),
            _ => Err(QuantError::BitWidth { bits }),
        }
    }

    /// The number of bits, 2..=8.
    #[inline(always)]
    pub const fn get(self) -> u8 {
        self.0
    }

    /// Number of steps of an asymmetric grid, `2^b - 1`.
    #[inline(always)]
    pub fn steps(self) -> f32 {
        f32::from((1_u16 << self.0) - 1)
    }

    /// `2^(b-1)`: the lowest code is its negative, the highest is one less.
    #[inline(always)]
    pub fn half(self) -> f32 {
        f32::from(1_u16 << (self.0 - 1))
    }

    /// The lowest code, `-2^(b-1)`.
    #[inline(always)]
    pub fn lowest(self) -> i8 {
        i8::MIN >> (8 - self.0)
    }

    /// The highest code, `2^(b-1) - 1`.
    #[inline(always)]
    pub fn highest(self) -> i8 {
        i8::MAX >> (8 - self.0)
    }
}

/// Whether a block has a scale only, or a scale and an offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// `w = scale * code`.
    Symmetric,
    /// `w = min + scale * (code + 2^(b-1))`; `min` is any float, zero need not be on the grid.
    Asymmetric,
}

/// Which weights share one scale. Shapes for a weight matrix `[rows, row_len]`, rows being output channels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Granularity {
    /// One scale for the matrix, stored once per row: weights `[R, K]` → scales `[R]`, all equal.
    PerTensor,
    /// One scale per row: weights `[R, K]` → scales `[R]`.
    PerChannel,
    /// One scale per `len` consecutive elements of a row: weights `[R, K]` → scales `[R, K / len]`.
    PerBlock {
        /// Elements per block; must divide `row_len`.
        len: usize,
    },
}

impl Granularity {
    /// Elements that share one scale in a row of `row_len`.
    ///
    /// # Errors
    /// [`QuantError::BlockLength`] if the block length is 0 or does not divide `row_len`.
    pub fn block_len(self, row_len: usize) -> Result<usize, QuantError> {
        match self {
            Self::PerTensor | Self::PerChannel => Ok(row_len),
            Self::PerBlock { len } if len != 0 && row_len.is_multiple_of(len) => Ok(len),
            Self::PerBlock { len } => Err(QuantError::BlockLength { len, row_len }),
        }
    }
}

/// How scales, minima and codes are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WeightMethod {
    /// Range of the block, then round to nearest: MNN's default rule, bit for bit ([`rtn`](super::weight::rtn)).
    RoundToNearest,
    /// MNN's `--hqq`, code for code: fixed scale, 20 steps on the offset ([`hqq`](super::weight::hqq)). Asymmetric only.
    Hqq,
    /// Half-quadratic quantization as published, with early stop ([`hqq`](super::weight::hqq)). Asymmetric only.
    HqqReference,
    /// Clipping grid and least squares, the smallest squared error per block ([`search`](super::weight::search)).
    Search,
}

impl WeightMethod {
    /// Its name in options and messages: `rtn`, `hqq`, `hqq_ref`, `search`.
    pub fn name(self) -> &'static str {
        match self {
            Self::RoundToNearest => "rtn",
            Self::Hqq => "hqq",
            Self::HqqReference => "hqq_ref",
            Self::Search => "search",
        }
    }

    /// The method of that [`name`](Self::name).
    ///
    /// # Errors
    /// [`QuantError::UnknownMethod`] for any other name.
    pub fn from_name(name: &str) -> Result<Self, QuantError> {
        [Self::RoundToNearest, Self::Hqq, Self::HqqReference, Self::Search]
            .into_iter()
            .find(|method| method.name() == name)
            .ok_or_else(|| QuantError::UnknownMethod { name: name.to_owned() })
    }
}

/// Everything that decides how a weight matrix is quantized.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WeightQuantSpec {
    /// Bits per code.
    pub bits: BitWidth,
    /// Scale only, or scale and offset.
    pub scheme: Scheme,
    /// Which weights share a scale.
    pub granularity: Granularity,
    /// How scales and codes are chosen.
    pub method: WeightMethod,
    /// How the file stores scales and minima.
    pub scale_storage: ScaleStorage,
    /// Whether to remove the attenuation and, with [`Scheme::Asymmetric`], the mean error of each row
    /// ([`gain`](super::weight::gain)).
    pub gain_correction: bool,
}

impl WeightQuantSpec {
    /// MNN's default for `bits`: asymmetric, per channel, round to nearest, 32-bit scales.
    pub fn new(bits: BitWidth) -> Self {
        Self {
            bits,
            scheme: Scheme::Asymmetric,
            granularity: Granularity::PerChannel,
            method: WeightMethod::RoundToNearest,
            scale_storage: ScaleStorage::F32,
            gain_correction: false,
        }
    }

    /// Checks that the parts go together.
    ///
    /// # Errors
    /// [`QuantError::NeedsAsymmetric`] for HQQ with [`Scheme::Symmetric`]; [`QuantError::NeedsPerRow`] for
    /// [`Granularity::PerTensor`] with anything but plain round-to-nearest.
    pub fn check(&self) -> Result<(), QuantError> {
        let hqq = matches!(self.method, WeightMethod::Hqq | WeightMethod::HqqReference);
        if hqq && self.scheme == Scheme::Symmetric {
            return Err(QuantError::NeedsAsymmetric { method: self.method.name() });
        }
        if self.granularity == Granularity::PerTensor {
            if self.method != WeightMethod::RoundToNearest {
                return Err(QuantError::NeedsPerRow { what: self.method.name() });
            }
            if self.gain_correction {
                return Err(QuantError::NeedsPerRow { what: "gain correction" });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bit_width_is_2_to_8() {
        for bits in [0, 1, 9, 16, 256 + 4] {
            assert!(matches!(BitWidth::new(bits), Err(QuantError::BitWidth { bits: b }) if b == bits));
        }
        assert_eq!(BitWidth::ALL.map(BitWidth::get), [2, 3, 4, 5, 6, 7, 8]);
    }

    #[test]
    fn code_range_follows_the_bits() {
        for bits in BitWidth::ALL {
            let half = 1_i32 << (bits.get() - 1);
            assert_eq!((i32::from(bits.lowest()), i32::from(bits.highest())), (-half, half - 1));
            assert_eq!((bits.half(), bits.steps()), (half as f32, (2 * half - 1) as f32));
        }
    }

    #[test]
    fn block_must_divide_the_row() {
        assert_eq!(Granularity::PerBlock { len: 32 }.block_len(96).unwrap(), 32);
        assert_eq!(Granularity::PerChannel.block_len(96).unwrap(), 96);
        for len in [0, 64, 97] {
            assert!(matches!(
                Granularity::PerBlock { len }.block_len(96),
                Err(QuantError::BlockLength { row_len: 96, .. })
            ));
        }
    }

    #[test]
    fn hqq_is_asymmetric_only() {
        let spec = WeightQuantSpec {
            scheme: Scheme::Symmetric,
            method: WeightMethod::Hqq,
            ..WeightQuantSpec::new(BitWidth::ALL[2])
        };
        assert!(matches!(spec.check(), Err(QuantError::NeedsAsymmetric { method: "hqq" })));
    }
}
