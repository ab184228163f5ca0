//! Models whose scales belong to groups of columns, Ternary-Bonsai's among them: what can hold them, and what says that it cannot.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use bitnet_convert::{ConvertError, ConvertOptions, Target, compare, convert};
use bitnet_formats::{Checkpoint, open};
use bitnet_testkit::synthetic::{Arch, Spec, Store};
use std::path::{Path, PathBuf};

fn to(input: &Checkpoint, folder: &Path, target: &str) -> Result<PathBuf, ConvertError> {
    let out = folder.join(target);
    let options = ConvertOptions::new(Target::find(target).unwrap());
    convert(input, &out, &options, &mut |_, _| {}).map(|_| out)
}

#[test]
fn signs_and_groups_survive_what_holds_them() {
    let (g64, g128) = (Store::Q2_0 { group: 64 }, Store::Q2_0 { group: 128 });
    // Packings with a scale for a part of each group, and types that multiply it in.
    let floats = ["q8_0", "f16", "f32", "hf-f16", "hf-f32", "pt-f16"];
    for (name, store, packed, refused) in [
        ("q1_0", Store::Q1_0, &["q1_0", "q2_0", "q2_0-g128"][..], &["i2_s", "hf-autobitlinear"][..]),
        ("q2_0", g64, &["q2_0"], &["q1_0", "q2_0-g128", "i2_s", "hf-autobitlinear"]),
        ("q2_0-g128", g128, &["q2_0", "q2_0-g128"], &["q1_0", "i2_s", "hf-autobitlinear"]),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let [first, second] = ["first", "second"].map(|name| folder.path().join(name));
        std::fs::create_dir(&first).unwrap();
        std::fs::create_dir(&second).unwrap();
        let spec = Spec {
            arch: Arch::QWEN3,
            heads: 4,
            kv_heads: 2,
            head_dim: 64,
            hidden: 128,
            ffn: 256,
            embedding: store,
            projections: store,
            int8: false,
            ..Spec::default()
        };
        let source = open(&spec.build(11).write(folder.path())).unwrap();
        for target in packed.iter().chain(&floats) {
            let middle = open(&to(&source, &first, target).unwrap()).unwrap();
            let back = open(&to(&middle, &second, name).unwrap()).unwrap();
            for end in [&middle, &back] {
                let found = compare(&source, end, 2, &mut |_, _| {}).unwrap();
                assert!(found.roles.values().any(|r| r.trits > 0));
                assert_eq!((found.different, found.unmatched), (vec![], vec![]), "{name} by way of {target}");
            }
        }
        for target in refused {
            let refusal = to(&source, &first, target).unwrap_err().to_string();
            assert!(refusal.starts_with("tensor \""), "{name} to {target}: {refusal}");
        }
    }
}
