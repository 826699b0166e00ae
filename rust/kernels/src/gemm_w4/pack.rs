//! Packing of block-wise weights.

use super::kernels::GemmW4;
use super::micro::K_UNIT;
use crate::aligned::AlignedBytes;
use crate::error::KernelError;
use crate::gemm_i8::MOST_K;

const FAMILY: &str = "gemm_w4";

/// Block-wise quantized weights as files store them: `w[j, p] = scales[j, b] codes[j, p] + offsets[j, b]` with `b = p /
/// block`.
#[derive(Clone, Copy, Debug)]
pub struct BlockWeights<'a> {
    /// Signed codes in `-2^(bits - 1) .. 2^(bits - 1)`: `[n, k]`, one row per output column.
    pub codes: &'a [i8],
    /// Output columns.
    pub n: usize,
    /// Length of the sums, at most 65536.
    pub k: usize,
    /// Elements of a block; the last block of a column may be shorter. `k` for one block per column.
    pub block: usize,
    /// Bits of a code: 2 to 8. Codes of up to four bits are stored in four, others in eight.
    pub bits: u32,
    /// Scales: `[n, blocks]`, `blocks = ceil(k / block)`.
    pub scales: &'a [f32],
    /// Offsets: `[n, blocks]`; none for symmetric weights.
    pub offsets: Option<&'a [f32]>,
}

/// [`BlockWeights`] in the order their kernel reads them.
#[derive(Clone, Debug)]
pub struct PackedBlocks {
    data: AlignedBytes,
    column_sums: Vec<f32>,
    k: usize,
    n: usize,
    block: usize,
    nibbles: bool,
    has_offsets: bool,
    nr: usize,
    kernel: &'static str,
    zero: i32,
}

impl PackedBlocks {
    /// Packs weights.
    ///
    /// # Errors
    /// [`KernelError`] if a length does not fit, a code has more than `bits` bits, `bits` is not 2 to 8, `block` is 0
    /// or `k` is above 65536.
    pub fn new(kernel: &GemmW4, weights: &BlockWeights<'_>) -> Result<Self, KernelError> {
        let &BlockWeights { codes, n, k, block, bits, scales, offsets } = weights;
        let value = |what| Err(KernelError::Value { kernel: FAMILY, what });
        if !(2..=8).contains(&bits) {
            return value("the bits of a code are not 2 to 8");
        }
        if block == 0 {
            return value("the block length is 0");
        }
        if k > MOST_K {
            return value("k is above 65536, the sums may overflow");
        }
        let overflow =
            KernelError::Value { kernel: FAMILY, what: "the weights are larger than the address space" };
        KernelError::check(FAMILY, "length of the codes", codes.len(), n.checked_mul(k).ok_or(overflow)?)?;
        // A block longer than `k` would only be padded.
        let block = block.min(k.max(1));
        let blocks = k.div_ceil(block);
        KernelError::check(FAMILY, "length of the scales", scales.len(), n * blocks)?;
        if let Some(offsets) = offsets {
            KernelError::check(FAMILY, "length of the offsets", offsets.len(), n * blocks)?;
        }
        let half = 1_i32 << (bits - 1);
        if codes.iter().any(|&code| !(-half..half).contains(&i32::from(code))) {
            return value("a code has more bits than the weights say");
        }
        let nibbles = bits <= 4;
        let mut packed = Self {
            data: AlignedBytes::default(),
            column_sums: column_sums(weights, block, blocks),
            k,
            n,
            block,
            nibbles,
            has_offsets: offsets.is_some(),
            nr: kernel.nr(),
            kernel: kernel.name(),
            zero: if nibbles { 8 } else { kernel.wide_zero },
        };
        packed.data = AlignedBytes::zeros(n.div_ceil(packed.nr) * packed.panel_bytes());
        for j in 0..n {
            packed.fill_column(j, weights, blocks);
        }
        Ok(packed)
    }

    fn fill_column(&mut self, j: usize, weights: &BlockWeights<'_>, blocks: usize) {
        let (nr, record, panel_bytes) = (self.nr, self.record_bytes(), self.panel_bytes());
        let code_bytes = record - (1 + usize::from(self.has_offsets)) * 4 * nr;
        let (nibbles, zero, block) = (self.nibbles, self.zero, self.block);
        let panel = &mut self.data[j / nr * panel_bytes..][..panel_bytes];
        let lane = j % nr;
        for (b, record) in panel.chunks_exact_mut(record).enumerate() {
            let codes = &weights.codes[j * weights.k..][..weights.k];
            let codes = &codes[b * block..((b + 1) * block).min(weights.k)];
            for (p, &code) in codes.iter().enumerate() {
                let unsigned = (i32::from(code) + zero) as u8;
                // Units of eight: the first four in the low nibbles or the first line of bytes.
                let (unit, half, place) = (p / K_UNIT, p % K_UNIT / 4, lane * 4 + p % 4);
                if nibbles {
                    record[unit * 4 * nr + place] |= unsigned << (4 * half);
                } else {
                    record[(2 * unit + half) * 4 * nr + place] = unsigned;
                }
            }
            let at = code_bytes + 4 * lane;
            record[at..at + 4].copy_from_slice(&weights.scales[j * blocks + b].to_ne_bytes());
            if let Some(offsets) = weights.offsets {
                let at = at + 4 * nr;
                record[at..at + 4].copy_from_slice(&offsets[j * blocks + b].to_ne_bytes());
            }
        }
    }

    /// Length of the sums.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Columns of the output.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Elements of a block.
    pub fn block(&self) -> usize {
        self.block
    }

    /// Blocks of a column.
    pub fn blocks(&self) -> usize {
        self.k.div_ceil(self.block)
    }

    /// Whether codes take four bits in memory (eight otherwise).
    pub fn is_nibbles(&self) -> bool {
        self.nibbles
    }

    /// Sum of the real weights of each column.
    pub fn column_sums(&self) -> &[f32] {
        &self.column_sums
    }

    /// The kernel that can use this data.
    pub fn kernel_name(&self) -> &'static str {
        self.kernel
    }

    /// Memory held, in bytes.
    pub fn bytes(&self) -> usize {
        self.data.len() + size_of_val(&self.column_sums[..])
    }

    /// Elements of a block with its padding.
    pub(super) fn padded_block(&self) -> usize {
        self.block.next_multiple_of(K_UNIT)
    }

    pub(super) fn has_offsets(&self) -> bool {
        self.has_offsets
    }

    pub(super) fn zero(&self) -> i32 {
        self.zero
    }

    /// Bytes of the codes, scales and offsets of one block of a panel.
    fn record_bytes(&self) -> usize {
        let codes = self.padded_block() * self.nr / if self.nibbles { 2 } else { 1 };
        codes + (1 + usize::from(self.has_offsets)) * 4 * self.nr
    }

    pub(super) fn panel_bytes(&self) -> usize {
        self.record_bytes() * self.blocks()
    }

    /// The panels from that of column `first` (a multiple of the panel width) on.
    pub(super) fn panels(&self, first: usize) -> &[u8] {
        &self.data[first / self.nr * self.panel_bytes()..]
    }
}

fn column_sums(weights: &BlockWeights<'_>, block: usize, blocks: usize) -> Vec<f32> {
    let column = |j: usize| {
        let codes = weights.codes[j * weights.k..][..weights.k].chunks(block);
        let sum: f64 = codes
            .enumerate()
            .map(|(b, codes)| {
                let sum: i32 = codes.iter().map(|&code| i32::from(code)).sum();
                let offset = weights.offsets.map_or(0.0, |offsets| f64::from(offsets[j * blocks + b]));
                f64::from(sum) * f64::from(weights.scales[j * blocks + b]) + codes.len() as f64 * offset
            })
            .sum();
        sum as f32
    };
    (0..weights.n).map(column).collect()
}
