//! Codes of 1 to 8 bits as one big-endian bit stream, most significant bit first, without padding
//! between elements.
//!
//! Element `i` of a stream of `b`-bit codes occupies the bits `[i * b, (i + 1) * b)`; the tail of the last
//! byte is zero. For 4 bits that puts the first element in the high nibble. Eight codes always fill exactly
//! `b` bytes, which is what the generic loops use.
//!
//! This module knows bits. It must not know what a code means.
#![deny(clippy::as_conversions, clippy::indexing_slicing)]

/// Number of bytes that `count` codes of `bits` bits occupy, or `None` if it does not fit a `usize`.
#[must_use]
pub fn packed_len(count: usize, bits: u8) -> Option<usize> {
    // Whole groups of eight first: `count * bits` itself could overflow.
    let bits = usize::from(bits);
    let tail = (count % 8).checked_mul(bits)?.div_ceil(8);
    (count / 8).checked_mul(bits)?.checked_add(tail)
}

/// Packs `items` into a stream of `bits`-bit codes; `index(item)` gives the unsigned code.
///
/// Bits of `index(item)` above `bits` are dropped, so that a caller bug cannot smear into the neighbours.
///
/// # Panics
/// If `bits` is not in `1..=8`.
pub fn pack_with<T: Copy>(items: &[T], bits: u8, index: impl Fn(T) -> u8) -> Vec<u8> {
    match bits {
        1 => pack_groups::<T, 1>(items, index),
        2 => pack_groups::<T, 2>(items, index),
        3 => pack_groups::<T, 3>(items, index),
        4 => pack_groups::<T, 4>(items, index),
        5 => pack_groups::<T, 5>(items, index),
        6 => pack_groups::<T, 6>(items, index),
        7 => pack_groups::<T, 7>(items, index),
        8 => items.iter().map(|&item| index(item)).collect(),
        _ => panic!("bit width {bits} is not in 1..=8"),
    }
}

/// Unpacks `count` codes of `bits` bits and maps each through `value`.
///
/// Returns `None` if `bytes` is shorter than [`packed_len`]`(count, bits)`; longer input is accepted, the
/// surplus is not read.
///
/// # Panics
/// If `bits` is not in `1..=8`.
pub fn unpack_with<T: Copy>(bytes: &[u8], count: usize, bits: u8, value: impl Fn(u8) -> T) -> Option<Vec<T>> {
    let bytes = bytes.get(..packed_len(count, bits)?)?;
    Some(match bits {
        1 => unpack_groups::<T, 1>(bytes, count, value),
        2 => unpack_groups::<T, 2>(bytes, count, value),
        3 => unpack_groups::<T, 3>(bytes, count, value),
        4 => unpack_nibbles(bytes, count, value),
        5 => unpack_groups::<T, 5>(bytes, count, value),
        6 => unpack_groups::<T, 6>(bytes, count, value),
        7 => unpack_groups::<T, 7>(bytes, count, value),
        8 => bytes.iter().map(|&byte| value(byte)).collect(),
        _ => panic!("bit width {bits} is not in 1..=8"),
    })
}

/// Packs signed codes `-2^(bits-1) ..= 2^(bits-1)-1`; the stored index is `code + 2^(bits-1)`.
///
/// # Panics
/// If `bits` is not in `1..=8`.
#[must_use]
pub fn pack_codes(codes: &[i8], bits: u8) -> Vec<u8> {
    let offset = code_offset(bits);
    pack_with(codes, bits, |code| code.cast_unsigned().wrapping_add(offset))
}

/// The inverse of [`pack_codes`]; `None` if `bytes` is too short.
///
/// # Panics
/// If `bits` is not in `1..=8`.
#[must_use]
pub fn unpack_codes(bytes: &[u8], count: usize, bits: u8) -> Option<Vec<i8>> {
    let offset = code_offset(bits);
    unpack_with(bytes, count, bits, |index| index.wrapping_sub(offset).cast_signed())
}

/// `2^(bits-1)`: the distance between a signed code and its stored index.
fn code_offset(bits: u8) -> u8 {
    assert!((1..=8).contains(&bits), "bit width {bits} is not in 1..=8");
    1 << (bits - 1)
}

fn unpack_nibbles<T>(bytes: &[u8], count: usize, value: impl Fn(u8) -> T) -> Vec<T> {
    let mut out = Vec::with_capacity(count.saturating_add(1));
    out.extend(bytes.iter().flat_map(|&byte| [value(byte >> 4), value(byte & 0x0F)]));
    out.truncate(count);
    out
}

/// Every second lane of 8, 16 and 32 bits in a `u64`: the lower one of each pair.
const LOWER: [u64; 3] = [0x00FF_00FF_00FF_00FF, 0x0000_FFFF_0000_FFFF, 0x0000_0000_FFFF_FFFF];

/// Eight codes, one per byte and the first in the most significant, to their `8 * B` bits.
///
/// Neighbouring lanes are joined three times: bytes to `2 * B` bits, these to `4 * B`, these to `8 * B`.
fn join<const B: usize>(codes: [u8; 8]) -> u64 {
    let mask = u64::from(u8::MAX >> (8 - B)) * 0x0101_0101_0101_0101;
    let word = u64::from_be_bytes(codes) & mask;
    let word = ((word >> 8) & LOWER[0]) << B | (word & LOWER[0]);
    let word = ((word >> 16) & LOWER[1]) << (2 * B) | (word & LOWER[1]);
    (word >> 32) << (4 * B) | (word & LOWER[2])
}

/// The inverse of [`join`].
fn split<const B: usize>(word: u64) -> [u8; 8] {
    let pairs = u64::MAX >> (64 - 2 * B);
    let quads = u64::MAX >> (64 - 4 * B);
    let word = ((word >> (4 * B)) & quads) << 32 | (word & quads);
    let word = ((word >> (2 * B)) & (pairs * 0x0000_0001_0000_0001)) << 16
        | (word & (pairs * 0x0000_0001_0000_0001));
    let mask = u64::from(u8::MAX >> (8 - B)) * 0x0001_0001_0001_0001;
    (((word >> B) & mask) << 8 | (word & mask)).to_be_bytes()
}

/// Eight codes of `B` bits at a time.
fn pack_groups<T: Copy, const B: usize>(items: &[T], index: impl Fn(T) -> u8) -> Vec<u8> {
    let (groups, tail) = items.as_chunks::<8>();
    let mut out = vec![0; groups.len() * B + (tail.len() * B).div_ceil(8)];
    let (whole, rest) = out.split_at_mut(groups.len() * B);
    for (bytes, group) in whole.as_chunks_mut::<B>().0.iter_mut().zip(groups) {
        let mut codes = [0; 8];
        codes.iter_mut().zip(group).for_each(|(to, &item)| *to = index(item));
        let packed = (join::<B>(codes) << (64 - 8 * B)).to_be_bytes();
        bytes.iter_mut().zip(packed).for_each(|(to, from)| *to = from);
    }
    let mut codes = [0; 8];
    codes.iter_mut().zip(tail).for_each(|(to, &item)| *to = index(item));
    let packed = (join::<B>(codes) << (64 - 8 * B)).to_be_bytes();
    rest.iter_mut().zip(packed).for_each(|(to, from)| *to = from);
    out
}

fn unpack_groups<T: Copy, const B: usize>(bytes: &[u8], count: usize, value: impl Fn(u8) -> T) -> Vec<T> {
    let codes = |group: &[u8]| split::<B>(left_aligned(group) >> (64 - 8 * B)).map(&value);
    let (groups, tail) = bytes.as_chunks::<B>();
    let mut out = Vec::with_capacity(count.saturating_add(7));
    groups.iter().for_each(|group| out.extend_from_slice(&codes(group)));
    if !tail.is_empty() {
        out.extend_from_slice(&codes(tail));
    }
    out.truncate(count);
    out
}

/// The first bytes of a big-endian `u64`, the rest zero.
fn left_aligned(bytes: &[u8]) -> u64 {
    let mut all = [0; 8];
    all.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
    u64::from_be_bytes(all)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn streams_have_the_bytes_of_the_format() {
        struct Case {
            bits: u8,
            codes: &'static [u8],
            bytes: &'static [u8],
        }
        let cases = [
            Case { bits: 8, codes: &[0, 255, 128], bytes: &[0, 255, 128] },
            Case { bits: 4, codes: &[0xA, 0xB, 0xC], bytes: &[0xAB, 0xC0] },
            Case { bits: 2, codes: &[3, 0, 1, 2, 1], bytes: &[0b1100_0110, 0b0100_0000] },
            Case { bits: 1, codes: &[1, 0, 1], bytes: &[0b1010_0000] },
            Case { bits: 3, codes: &[0b101, 0b010, 0b111], bytes: &[0b1010_1011, 0b1000_0000] },
            Case { bits: 5, codes: &[0b10101, 0b01010], bytes: &[0b1010_1010, 0b1000_0000] },
            Case {
                bits: 7,
                codes: &[0x7F, 0, 0x7F, 0, 0x7F, 0, 0x7F, 0, 1],
                bytes: &[0xFE, 0x03, 0xF8, 0x0F, 0xE0, 0x3F, 0x80, 0x02],
            },
        ];
        for Case { bits, codes, bytes } in cases {
            assert_eq!(pack_with(codes, bits, |code| code), bytes, "packing {bits} bits");
            let back = unpack_with(bytes, codes.len(), bits, |index| index);
            assert_eq!(back.as_deref(), Some(codes), "unpacking {bits} bits");
        }
    }

    #[test]
    fn packed_len_does_not_overflow() {
        assert_eq!(packed_len(usize::MAX, 1), Some(usize::MAX / 8 + 1));
        assert_eq!(packed_len(usize::MAX, 8), Some(usize::MAX));
        assert_eq!(packed_len(0, 3), Some(0));
        assert_eq!(packed_len(9, 7), Some(8));
    }

    /// The stream as its definition says, bit by bit.
    fn pack_bit_by_bit(indices: &[u8], bits: u8) -> Vec<u8> {
        let all: Vec<u8> =
            indices.iter().flat_map(|code| (0..bits).rev().map(move |bit| (code >> bit) & 1)).collect();
        all.chunks(8)
            .map(|byte| byte.iter().enumerate().fold(0, |acc, (i, bit)| acc | (bit << (7 - i))))
            .collect()
    }

    proptest! {
        #[test]
        fn agrees_with_the_definition(
            bits in 1_u8..=8,
            codes in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            let mask = u8::MAX >> (8 - bits);
            let codes: Vec<u8> = codes.into_iter().map(|code| code & mask).collect();
            let packed = pack_with(&codes, bits, |code| code);
            prop_assert_eq!(Some(packed.len()), packed_len(codes.len(), bits));
            prop_assert_eq!(&packed, &pack_bit_by_bit(&codes, bits));
            let back = unpack_with(&packed, codes.len(), bits, |index| index).unwrap();
            prop_assert_eq!(back, codes);
        }

        #[test]
        fn signed_codes_survive(bits in 1_u8..=8, codes in proptest::collection::vec(any::<i8>(), 0..100)) {
            let shift = 8 - bits;
            let codes: Vec<i8> = codes.into_iter().map(|code| code >> shift).collect();
            let packed = pack_codes(&codes, bits);
            prop_assert_eq!(unpack_codes(&packed, codes.len(), bits), Some(codes.clone()));
            if let Some(short) = packed.len().checked_sub(1) {
                let short = packed.get(..short).unwrap();
                prop_assert_eq!(unpack_codes(short, codes.len(), bits), None);
            }
        }
    }
}
