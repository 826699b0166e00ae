//! Packing and unpacking agree with each other and with the definition of the stream.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mnnq_format::bitpack::{pack_codes, packed_len, unpack_codes};

fuzz_target!(|input: (u8, Vec<i8>, Vec<u8>)| {
    let (bits, codes, bytes) = input;
    let bits = bits % 8 + 1;
    let codes: Vec<i8> = codes.into_iter().map(|code| code >> (8 - bits)).collect();
    let packed = pack_codes(&codes, bits);
    assert_eq!(Some(packed.len()), packed_len(codes.len(), bits));
    assert_eq!(unpack_codes(&packed, codes.len(), bits).as_deref(), Some(&codes[..]));
    let bit = |i: usize| packed[i / 8] >> (7 - i % 8) & 1;
    for (i, code) in codes.iter().enumerate() {
        let width = usize::from(bits);
        let index = (0..width).fold(0_i16, |acc, j| acc << 1 | i16::from(bit(i * width + j)));
        assert_eq!(index - (1 << (bits - 1)), i16::from(*code));
    }
    // Any bytes are codes; those that fill whole bytes come back.
    let count = bytes.len() * 8 / usize::from(bits);
    let codes = unpack_codes(&bytes, count, bits).expect("there are enough bytes");
    let again = pack_codes(&codes, bits);
    let whole = count * usize::from(bits) / 8;
    assert_eq!(again[..whole], bytes[..whole]);
    assert_eq!(unpack_codes(&bytes, count + 8, bits), None);
});
