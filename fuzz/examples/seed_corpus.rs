//! Writes seeds for the targets `model_reader` and `session` to `corpus/` in the current directory:
//! `cargo run --example seed_corpus [FILES.mnn]` in `fuzz/`. Models that are given are seeds of `session`.

use std::path::Path;

use mnnq_format::schema::net;
use mnnq_format::{Model, Table, to_bytes};

#[path = "../../rust/format/tests/common/mod.rs"]
mod common;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = Path::new("corpus/model_reader");
    std::fs::create_dir_all(folder)?;
    let whole = common::sample_model();
    std::fs::write(folder.join("whole"), to_bytes(&whole)?)?;
    // One file per op: small inputs are explored faster.
    for (position, node) in whole.ops().iter().enumerate() {
        let mut root: Table = whole.net().clone();
        root.set(net::OPLISTS, vec![node.clone()]);
        std::fs::write(folder.join(format!("op{position}")), to_bytes(&Model::new(root)?)?)?;
    }
    let sessions = Path::new("corpus/session");
    std::fs::create_dir_all(sessions)?;
    for path in std::env::args_os().skip(1) {
        let path = Path::new(&path);
        std::fs::copy(path, sessions.join(path.file_name().unwrap_or_default()))?;
    }
    Ok(())
}
