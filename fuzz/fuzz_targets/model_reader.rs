//! Any bytes as a model file: an error, or a model that can be decoded, written and read again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mnnq_format::{ReadLimits, read, to_bytes};

#[path = "../../rust/format/tests/common/mod.rs"]
mod common;

fuzz_target!(|data: &[u8]| {
    let Ok(mut model) = read(data.to_vec(), &ReadLimits::default()) else { return };
    common::decode_everything(model.net());
    let written = to_bytes(&model).expect("what was read can be written");
    let again = read(written, &ReadLimits::default()).expect("what was written can be read");
    assert_eq!(again.net(), model.net());
    // The file as its own side file: all ranges are attacker-controlled.
    if mnnq_format::external::resolve(&mut model, &data.to_vec().into()).is_ok() {
        common::decode_everything(model.net());
    }
});
