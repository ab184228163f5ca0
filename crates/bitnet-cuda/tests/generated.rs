//! What is checked in was made of the sources that are.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use sha2::{Digest, Sha256};
use std::path::Path;

#[test]
fn kernels_were_compiled_from_these_sources() {
    let crate_dir = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut sources: Vec<_> =
        std::fs::read_dir(crate_dir.join("kernels")).unwrap().map(|entry| entry.unwrap().path()).collect();
    sources.sort();
    let mut hash = Sha256::new();
    for source in &sources {
        hash.update(std::fs::read(source).unwrap());
    }
    let hash: String = hash.finalize().iter().map(|b| format!("{b:02x}")).collect();
    let want = std::fs::read_to_string(crate_dir.join("generated/sources.sha256")).unwrap();
    assert_eq!(hash, want.trim(), "the kernels changed: run scripts/cuda-kernels.sh");
}
