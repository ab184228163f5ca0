//! Every reference model to every target, and from there to every target.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use bitnet_convert::{
    Comparison, ConvertError, ConvertOptions, Method, Report, TARGETS, Target, compare, compare_logits,
    convert, differences,
};
use bitnet_core::DenseType;
use bitnet_formats::{Checkpoint, Header, ReadOptions, open, open_with};
use bitnet_inference::OpenOptions;
use bitnet_quant::packing::{Tile, TileTable};
use bitnet_testkit::golden::{self, fixtures};
use bitnet_testkit::synthetic::{Arch, Spec, Store};
use bitnet_testkit::tensors::Scales;
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use tempfile::TempDir;

const GGUF: [&str; 5] = [
    "gguf/bitnet-online-f16.gguf",
    "gguf/bitnet-online-i2_s.gguf",
    "gguf/bitnet-packed-k256-tq1_0.gguf",
    "gguf/bitnet-packed-k256-tq2_0.gguf",
    "gguf/bitnet-packed-k256-i2_s.gguf",
];

fn options(target: &'static Target) -> ConvertOptions {
    ConvertOptions::new(target)
}

fn to(input: &Checkpoint, folder: &TempDir, name: &str) -> Result<(PathBuf, Report), ConvertError> {
    into(input, folder, &options(Target::find(name).unwrap()))
}

fn into(input: &Checkpoint, folder: &TempDir, o: &ConvertOptions) -> Result<(PathBuf, Report), ConvertError> {
    let count = std::fs::read_dir(folder.path()).unwrap().count();
    let path = folder.path().join(format!("{count}-{}", o.target.name));
    convert(input, &path, o, &mut |_, _| {}).map(|report| (path, report))
}

/// Whether a model's rows and trits can be packed so.
fn fits(target: &Target, rows_of_256: bool) -> bool {
    match target.name {
        // The models have zeros, and no table of tiles.
        "q1_0" | "tl1" | "tl2" => false,
        "tq1_0" | "tq2_0" => rows_of_256,
        _ => true,
    }
}

/// Targets that have room for an f32 scale.
fn is_exact(target: &Target) -> bool {
    let gguf = ["i2_s", "f32", "mlx"];
    gguf.contains(&target.name)
        || (target.name.contains('-')
            && !["q2_0-g128", "hf-bitlinear", "pt-bitlinear"].contains(&target.name))
}

fn check(a: &Checkpoint, b: &Checkpoint, target: &Target, report: &Report) -> Comparison {
    let found = compare(a, b, 1, &mut |_, _| {}).unwrap();
    let what = format!("{} to {}", a.path.display(), target.name);
    assert_eq!(found.trits_differ(), 0, "{what}: {:?}", found.different);
    assert_eq!(found.unmatched, Vec::<String>::new(), "{what}");
    for (role, r) in found.roles.iter().filter(|(role, _)| role.is_projection()) {
        assert!(r.trits > 0 && r.values == 0, "{what} {role:?}: {r:?}");
        // f16 has 11 bits, bf16 8; a reciprocal of a reciprocal may be one bit off.
        let limit = match target.name {
            _ if is_exact(target) => 0.0,
            "hf-bitlinear" | "pt-bitlinear" => 1.2e-7,
            "bf16" => 3.95e-3,
            _ => 4.9e-4,
        };
        assert!(r.scale_error <= limit, "{what} {role:?}: {r:?}");
        // What was rounded is in the report, and nothing else is.
        let rounded = report.inexact.iter().filter(|i| i.what == "scale").count();
        assert!(r.scales_differ == 0 || rounded > 0, "{what}");
    }
    found
}

#[test]
fn trits_survive_every_pair_of_formats() {
    let (mut pairs, few) = (0, ["i2_s", "tq2_0", "q2_0", "f32", "hf-bitlinear", "pt-bf16"]);
    for name in golden::MODELS.into_iter().chain(GGUF) {
        let folder = tempfile::tempdir().unwrap();
        let source = open(&fixtures().join(name)).unwrap();
        for target in TARGETS {
            let done = to(&source, &folder, target.name);
            if !fits(target, name.contains("k256")) {
                let refusal = done.unwrap_err().to_string();
                assert!(refusal.starts_with("tensor \"blk.0.attn_q.weight\""), "{name}: {refusal}");
                continue;
            }
            let (path, report) = done.unwrap_or_else(|e| panic!("{name} to {}: {e:?}", target.name));
            let middle = open(&path).unwrap();
            check(&source, &middle, target, &report);
            // From there on, on models of both kinds.
            if !["bitnet-packed-k256", "llama-packed"].contains(&name) {
                continue;
            }
            let next = TARGETS.iter().filter(|t| few.contains(&t.name) && fits(t, name.contains("k256")));
            for next in next {
                let (path, report) = to(&middle, &folder, next.name)
                    .unwrap_or_else(|e| panic!("{name} to {} to {}: {e:?}", target.name, next.name));
                let end = open(&path).unwrap();
                check(&middle, &end, next, &report);
                assert_eq!(compare(&source, &end, 1, &mut |_, _| {}).unwrap().trits_differ(), 0);
                pairs += 1;
            }
        }
    }
    assert_eq!(pairs, 22 * few.len() + 20 * (few.len() - 1));
}

#[test]
fn logits_are_the_same_where_scales_are() {
    for name in ["bitnet-online", "llama-packed"] {
        let folder = tempfile::tempdir().unwrap();
        let source = open(&fixtures().join(name)).unwrap();
        for target in TARGETS.iter().filter(|t| is_exact(t)) {
            let target = ConvertOptions { embedding: Some(DenseType::F32), ..options(target) };
            let (path, _) = into(&source, &folder, &target).unwrap();
            let found =
                compare_logits(&source, &open(&path).unwrap(), &OpenOptions::default(), &mut |_, _| {})
                    .unwrap();
            assert!(found.same && found.magnitude > 1.0, "{name} to {}: {found:?}", target.target.name);
        }
    }
}

fn hash(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

#[test]
fn tensors_have_the_bytes_of_other_peoples_converters() {
    let manifest = golden::json("gguf/manifest.json");
    let (folder, source) =
        (tempfile::tempdir().unwrap(), open(&fixtures().join("bitnet-packed-k256")).unwrap());
    let files = manifest.as_array().unwrap();
    let mut compared = 0;
    for name in ["tq1_0", "tq2_0", "i2_s"] {
        let o = ConvertOptions { embedding: Some(DenseType::F16), ..options(Target::find(name).unwrap()) };
        let (path, _) = into(&source, &folder, &o).unwrap();
        let written = open(&path).unwrap();
        let file = files.iter().find(|f| f["file"] == format!("bitnet-packed-k256-{name}.gguf")).unwrap();
        for want in file["tensors"].as_array().unwrap() {
            let got = written.tensor(want["name"].as_str().unwrap()).unwrap();
            assert_eq!(hash(&got.bytes()), want["sha256_data"], "{name} {}", want["name"]);
            compared += 1;
        }
    }
    assert_eq!(compared, 3 * 13);
}

/// Tensors of one checkpoint that another has with other bytes, or not at all.
fn differing(a: &Checkpoint, b: &Checkpoint) -> Vec<String> {
    let same = |t: &&bitnet_formats::Tensor| {
        b.tensor(&t.name).is_none_or(|o| o.shape != t.shape || o.bytes()[..] != t.bytes()[..])
    };
    a.tensors().iter().filter(same).map(|t| t.name.clone()).collect()
}

#[test]
fn packed_models_come_back_from_gguf_byte_for_byte() {
    for (name, target) in [
        ("bitnet-packed", "hf-autobitlinear"),
        ("bitnet-packed-k256", "hf-autobitlinear"),
        ("llama-packed", "hf-bitlinear"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let source = open(&fixtures().join(name)).unwrap();
        let (gguf, report) = to(&source, &folder, "i2_s").unwrap();
        assert_eq!((report.inexact, report.left_out), (vec![], vec![]), "{name}");
        let (back, report) = to(&open(&gguf).unwrap(), &folder, target).unwrap();
        assert_eq!((report.inexact, report.left_out), (vec![], vec![]), "{name}");
        let end = open(&back).unwrap();
        assert_eq!(differing(&source, &end), Vec::<String>::new(), "{name}");
        assert_eq!(end.tensors().len(), source.tensors().len());
        files_are_the_same(&fixtures().join(name), &back);
        // And to GGUF once more: the same tensors, and where the configuration says no more than it did, the same file.
        let (again, _) = to(&end, &folder, "i2_s").unwrap();
        assert_eq!(differing(&open(&gguf).unwrap(), &open(&again).unwrap()), Vec::<String>::new(), "{name}");
        assert!(
            name == "llama-packed" || std::fs::read(gguf).unwrap() == std::fs::read(again).unwrap(),
            "{name}"
        );
    }
}

/// All the small files say what they said.
fn files_are_the_same(before: &Path, after: &Path) {
    let json = |dir: &Path, name: &str| -> Value {
        serde_json::from_slice(&std::fs::read(dir.join(name)).unwrap()).unwrap()
    };
    for name in ["generation_config.json", "tokenizer_config.json", "special_tokens_map.json"] {
        assert_eq!(json(before, name), json(after, name), "{name}");
    }
    let (mut a, mut b) = (json(before, "config.json"), json(after, "config.json"));
    let class =
        |v: &Value| v["quantization_config"]["linear_class"].as_str().unwrap_or("bitlinear").to_owned();
    assert_eq!(class(&a), class(&b));
    for config in [&mut a, &mut b] {
        config.as_object_mut().unwrap().remove("quantization_config");
    }
    assert_eq!(a, b);
    let tokenizer = |dir: &Path| bitnet_inference::tokenizer(&open(dir).unwrap()).unwrap().unwrap();
    let (a, b) = (tokenizer(before), tokenizer(after));
    let text = "<|begin_of_text|>The ships at night: 12345 \u{00e9}\u{4e16} \n\n<|eot_id|>done";
    for special in [true, false] {
        assert_eq!(a.encode(text, special).unwrap(), b.encode(text, special).unwrap());
    }
    let template = |t: &bitnet_tokenizer::Tokenizer| t.template().unwrap().unwrap().source().to_owned();
    assert_eq!((template(&a), a.bos(), a.eos()), (template(&b), b.bos(), b.eos()));
}

#[test]
fn licence_and_origin_go_along() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model");
    std::fs::create_dir(&model).unwrap();
    for entry in std::fs::read_dir(fixtures().join("bitnet-packed")).unwrap().flatten() {
        std::fs::copy(entry.path(), model.join(entry.file_name())).unwrap();
    }
    let card = "---\nlicense: other\nlicense_name: falcon-llm\nlicense_link: https://x.example/terms\n---\n";
    std::fs::write(model.join("README.md"), format!("{card}# A model")).unwrap();
    let origin = Some("https://huggingface.co/org/name".to_owned());
    let o = ConvertOptions { origin, ..options(Target::find("i2_s").unwrap()) };
    let (gguf, report) = into(&open(&model).unwrap(), &folder, &o).unwrap();
    assert_eq!(report.left_out, ["README.md: GGUF has no place for its text, but for its licence"]);
    let told = |path: &Path| -> Vec<Option<String>> {
        let Header::Gguf { metadata, .. } = open(path).unwrap().header else { panic!("a GGUF file") };
        let keys = ["license", "license.name", "license.link", "source.repo_url"];
        keys.map(|key| metadata.str(&format!("general.{key}")).map(str::to_owned)).to_vec()
    };
    let want = ["other", "falcon-llm", "https://x.example/terms", "https://huggingface.co/org/name"];
    assert_eq!(told(&gguf), want.map(|s| Some(s.to_owned())));
    // What a file says of its origin is not overwritten.
    let o = ConvertOptions { origin: Some("https://huggingface.co/org/copy".to_owned()), ..o };
    let (again, _) = into(&open(&gguf).unwrap(), &folder, &o).unwrap();
    assert_eq!(told(&again), told(&gguf));
    let (back, report) = to(&open(&gguf).unwrap(), &folder, "hf-autobitlinear").unwrap();
    assert_eq!(std::fs::read_to_string(back.join("README.md")).unwrap(), card);
    assert_eq!(report.left_out, ["key general.source.repo_url"]);
}

#[test]
fn master_weights_stay_master_weights() {
    let folder = tempfile::tempdir().unwrap();
    let source = open(&fixtures().join("bitnet-online")).unwrap();
    let (path, report) = to(&source, &folder, "hf-bf16").unwrap();
    let copy = open(&path).unwrap();
    assert_eq!(differing(&source, &copy), Vec::<String>::new());
    assert_eq!((report.inexact, report.left_out), (vec![], vec![]));
    let Header::HuggingFace { config, .. } = &copy.header else { panic!("a directory") };
    assert_eq!(config["quantization_config"]["quantization_mode"], "online");
    // To f16, weights of 1e-34 are lost; that is said, and refused where nothing may be.
    let (_, report) = to(&source, &folder, "hf-f16").unwrap();
    assert!(report.inexact.iter().any(|i| i.what == "master weights" && i.error > 0.0), "{report:?}");
    let strict = ConvertOptions { strict: true, ..options(Target::find("hf-f16").unwrap()) };
    assert!(matches!(into(&source, &folder, &strict), Err(ConvertError::Strict { .. })));
}

#[test]
fn what_cannot_be_held_is_said_and_strict_refuses_it() {
    let folder = tempfile::tempdir().unwrap();
    let source = open(&fixtures().join("bitnet-online")).unwrap();
    let (_, report) = to(&source, &folder, "q2_0").unwrap();
    assert_eq!(report.inexact.iter().filter(|i| i.what == "scale").count(), 14, "{report:?}");
    assert!(report.inexact.iter().all(|i| i.error > 0.0 && i.error < 4.9e-4));
    let before = std::fs::read_dir(folder.path()).unwrap().count();
    for name in ["q2_0", "f16", "bf16", "q8_0"] {
        let strict = ConvertOptions { strict: true, ..options(Target::find(name).unwrap()) };
        assert!(matches!(into(&source, &folder, &strict), Err(ConvertError::Strict { .. })), "{name}");
    }
    // A refusal leaves nothing behind.
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), before);
    let q6_k = ConvertOptions { embedding: Some(DenseType::Q6_K), ..options(Target::find("i2_s").unwrap()) };
    assert!(matches!(into(&source, &folder, &q6_k), Err(ConvertError::Blocks { cols: 128, .. })));
    let q8_0 = ConvertOptions { embedding: Some(DenseType::Q8_0), ..q6_k };
    let (path, report) = into(&source, &folder, &q8_0).unwrap();
    let found = compare(&source, &open(&path).unwrap(), 2, &mut |_, _| {}).unwrap();
    let embedding = &found.roles[&bitnet_model::Role::Embedding];
    assert!(embedding.values_differ > 0 && embedding.value_error < 8e-3, "{embedding:?}");
    assert_eq!(found.different.len(), 1);
    let sizes: Vec<_> = report.classes.iter().map(|c| (c.class, c.kind, c.tensors)).collect();
    assert_eq!(sizes, [("embedding", "Q8_0", 1), ("norms", "F32", 9), ("projections", "I2_S", 14)]);
    assert!((report.classes[0].bits() - 8.5).abs() < 1e-9);
    let hf = ConvertOptions { target: Target::find("hf-autobitlinear").unwrap(), ..q8_0 };
    assert!(matches!(into(&source, &folder, &hf), Err(ConvertError::Type { .. })));
}

#[test]
fn tiles_are_read_and_written_with_their_table() {
    let folder = tempfile::tempdir().unwrap();
    let tile = |rows, cols, tile_rows, tile_cols, lanes| Tile { rows, cols, tile_rows, tile_cols, lanes };
    // Of the k256 model: q, o, gate, up and down; k and v.
    let tl1 = TileTable(vec![tile(256, 256, 128, 64, 32), tile(64, 256, 64, 128, 64)]);
    let source = open(&fixtures().join("bitnet-packed-k256")).unwrap();
    let o = ConvertOptions { tiles: tl1.clone(), ..options(Target::find("tl1").unwrap()) };
    let (path, report) = into(&source, &folder, &o).unwrap();
    assert_eq!(report.inexact, vec![]);
    let refusal = open(&path).unwrap_err().to_string();
    assert!(refusal.contains("TL1") && refusal.contains("--tiles"), "{refusal}");
    let written = open_with(&path, &ReadOptions { tiles: tl1.clone(), ..ReadOptions::default() }).unwrap();
    let found = compare(&source, &written, 2, &mut |_, _| {}).unwrap();
    assert_eq!((found.different.len(), found.unmatched.len()), (0, 0), "{:?}", found.different);
    assert!(compare_logits(&source, &written, &OpenOptions::default(), &mut |_, _| {}).unwrap().same);
    let (back, _) = to(&written, &folder, "hf-autobitlinear").unwrap();
    assert_eq!(differing(&source, &open(&back).unwrap()), Vec::<String>::new());
    // Llama: q and k in the other order of rows; TL2 with columns behind the last tile.
    let source = open(&fixtures().join("llama-packed")).unwrap();
    let table = TileTable(vec![
        tile(128, 128, 64, 64, 32),
        tile(64, 128, 64, 64, 32),
        tile(256, 128, 64, 64, 32),
        tile(128, 256, 64, 64, 32),
    ]);
    let o = ConvertOptions { tiles: table.clone(), ..options(Target::find("tl1").unwrap()) };
    let (path, _) = into(&source, &folder, &o).unwrap();
    assert_eq!(
        compare(
            &source,
            &open_with(&path, &ReadOptions { tiles: table.clone(), ..ReadOptions::default() }).unwrap(),
            2,
            &mut |_, _| {}
        )
        .unwrap()
        .different,
        vec![]
    );
    let no_tile = ConvertOptions { tiles: tl1, ..o };
    assert!(matches!(
        into(&source, &folder, &no_tile),
        Err(ConvertError::NoTile { rows: 128, cols: 128, .. })
    ));
    // Rows of 256 and less are too short for the space that TL2 has.
    let tl2 = ConvertOptions { tiles: table, ..options(Target::find("tl2").unwrap()) };
    assert!(matches!(into(&source, &folder, &tl2), Err(ConvertError::Packing { .. })));
}

#[test]
fn a_model_in_tl2_is_the_model() {
    let folder = tempfile::tempdir().unwrap();
    let spec = Spec {
        arch: Arch::BITNET_HF,
        hidden: 512,
        ffn: 768,
        heads: 8,
        head_dim: 64,
        projections: Store::Packed { scales: Scales::One, divisor: false },
        ..Spec::default()
    };
    let source = folder.path().join("source");
    std::fs::create_dir(&source).unwrap();
    let source = open(&spec.build(3).write(&source)).unwrap();
    // Tiles of 96 columns leave 32 columns of 512 behind the last one, which are pairs, and none of 768.
    let section = |n: usize, m: usize, k: usize| {
        format!("[Kernels_{n}]\nm = {m}\nk = {k}\nbm = 32\nbk = 96\nbmm = 32\n")
    };
    let shapes = [(512, 512), (128, 512), (768, 512), (512, 768)];
    let text: String = shapes.iter().enumerate().map(|(n, (m, k))| section(n, *m, *k)).collect();
    let tiles = TileTable::parse(&text).unwrap();
    let o = ConvertOptions { tiles: tiles.clone(), ..options(Target::find("tl2").unwrap()) };
    let (path, report) = into(&source, &folder, &o).unwrap();
    assert_eq!((report.inexact, report.left_out.len()), (vec![], 1), "{:?}", report.left_out);
    assert!(report.classes.iter().any(|c| (c.class, c.kind) == ("projections", "TL2") && c.bits() < 2.0));
    assert!(open(&path).unwrap_err().to_string().contains("--tiles"));
    let written = open_with(&path, &ReadOptions { tiles, ..ReadOptions::default() }).unwrap();
    let found = compare(&source, &written, 2, &mut |_, _| {}).unwrap();
    assert_eq!((found.different.len(), found.unmatched.len()), (0, 0), "{:?}", found.different);
    assert!(compare_logits(&source, &written, &OpenOptions::default(), &mut |_, _| {}).unwrap().same);
    let (back, _) = to(&written, &folder, "hf-autobitlinear").unwrap();
    let back = compare(&source, &open(&back).unwrap(), 2, &mut |_, _| {}).unwrap();
    assert_eq!((back.different.len(), back.unmatched.len()), (0, 0), "{:?}", back.different);
}

#[test]
fn a_directory_that_has_something_in_it_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let source = open(&fixtures().join("bitnet-packed")).unwrap();
    let target = options(Target::find("hf-autobitlinear").unwrap());
    let out = folder.path().join("out");
    std::fs::create_dir(&out).unwrap();
    convert(&source, &out, &target, &mut |_, _| {}).unwrap();
    assert!(out.join("model.safetensors").exists());
    std::fs::write(out.join("mine"), "mine").unwrap();
    let refusal = convert(&source, &out, &target, &mut |_, _| {}).unwrap_err();
    assert!(matches!(refusal, ConvertError::Output(_)), "{refusal:?}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    assert_eq!(std::fs::read(out.join("mine")).unwrap(), b"mine");
    // What a killed process has left is cleared away.
    let stale = folder.path().join(".next.bitnet-part");
    std::fs::create_dir(&stale).unwrap();
    std::fs::write(stale.join("half"), "half").unwrap();
    convert(&source, &folder.path().join("next"), &target, &mut |_, _| {}).unwrap();
    let mut names: Vec<_> =
        std::fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["next", "out"]);
}

#[test]
fn differences_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let source = open(&fixtures().join("bitnet-packed")).unwrap();
    let gguf = open(&to(&source, &folder, "i2_s").unwrap().0).unwrap();
    let none = differences(&source, &gguf).unwrap();
    assert_eq!(none, vec![], "the same model in two formats");
    let online = open(&fixtures().join("bitnet-online")).unwrap();
    let found = differences(&source, &online).unwrap();
    let keys: Vec<_> =
        found.iter().map(|d| (d.key.as_str(), d.left.as_deref(), d.right.as_deref())).collect();
    assert!(
        keys.contains(&(
            "config.quantization_config.quantization_mode",
            Some("\"offline\""),
            Some("\"online\"")
        )),
        "{keys:?}"
    );
    let tensors = compare(&source, &online, 2, &mut |_, _| {}).unwrap();
    assert_eq!((tensors.trits_differ(), tensors.different.len()), (0, 14));
    assert!(tensors.different.iter().all(|(_, c)| c.scales_differ == 1 && c.scale_error < 4e-3));
    let llama = open(&fixtures().join("llama-packed")).unwrap();
    let found = differences(&gguf, &llama).unwrap();
    assert!(found.iter().any(|d| d.key == "norm epsilon" && d.right.as_deref() == Some("1e-6")), "{found:?}");
    assert!(!compare(&gguf, &llama, 1, &mut |_, _| {}).unwrap().unmatched.is_empty());
}

#[test]
fn dense_models_become_ternary_and_say_what_is_left_of_them() {
    let folder = tempfile::tempdir().unwrap();
    let quantize = |name: &str| ConvertOptions {
        quantize: Some(Method::Absmean),
        ..options(Target::find(name).unwrap())
    };
    // Ternary weights in f32 are not dense: what is made of them is what they were.
    let packed = open(&fixtures().join("llama-packed")).unwrap();
    assert!(matches!(into(&packed, &folder, &quantize("i2_s")), Err(ConvertError::AlreadyTernary)));
    // Master weights without a word about quantization: a dense Llama.
    let online = fixtures().join("bitnet-online");
    let (dense, _) = to(&open(&online).unwrap(), &folder, "hf-f32").unwrap();
    let (gguf, report) = into(&open(&dense).unwrap(), &folder, &quantize("i2_s")).unwrap();
    assert_eq!(report.layers.len(), 14);
    for l in &report.layers {
        assert!(l.mse > 0.1 && l.mse < 0.5 && l.cosine > 0.8 && l.cosine < 1.0, "{l:?}");
        assert!(l.zeros > 0.2 && l.zeros < 0.5, "{l:?}");
    }
    let same = compare(&open(&online).unwrap(), &open(&gguf).unwrap(), 1, &mut |_, _| {}).unwrap();
    assert_eq!((same.trits_differ(), same.different.len()), (0, 0));
}
