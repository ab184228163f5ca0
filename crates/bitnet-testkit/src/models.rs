//! Whole models on any backend: the reference fixtures, and small made-up ones of every architecture against the oracle.

use crate::golden::{self, MODELS};
use crate::synthetic::{Arch, Spec, Store};
use crate::tensors::{Float, Scales};
use bitnet_core::ActivationPrecision;
use std::path::Path;

/// Computes the logits of every position of a prompt, `[ids, vocab]`, which is fed in steps of so many ids.
pub type Logits = Box<dyn FnMut(&[u32], usize) -> Vec<f32>>;

/// Opens a model with an f32 cache, and with this precision of activations where it is not the file's own.
pub type Open<'a> = &'a dyn Fn(&Path, Option<ActivationPrecision>) -> Logits;

/// Logits, perplexities and greedy tokens of the Hugging Face fixtures are those of transformers.
///
/// # Panics
/// When they are not.
pub fn assert_reference(open: Open<'_>) {
    for name in MODELS {
        let mut logits = open(&golden::fixtures().join(name), None);
        for prompt in golden::prompts(name) {
            let got = logits(&prompt.ids, usize::MAX);
            let (firm, loose) = prompt.compare(&got, &prompt.logits(name));
            let relative = (golden::perplexity(&got, &prompt.ids) / prompt.perplexity - 1.0).abs();
            assert!(relative <= 5e-3, "{name} {}: perplexity off by {relative}", prompt.name);
            println!("{name} {}: {firm:.1e} firm, {loose:.1e} loose", prompt.name);
        }
        let greedy = &golden::json(&format!("{name}/reference.json"))["greedy"];
        let (prompt, want) = (golden::ids(&greedy["prompt_ids"]), golden::ids(&greedy["tokens"]));
        // Token by token: what follows each position is what it says.
        let ids = [&prompt[..], &want].concat();
        let all = logits(&ids, 1);
        let rows = all.chunks_exact(all.len() / ids.len());
        let got: Vec<u32> =
            rows.skip(prompt.len() - 1).take(want.len()).map(|row| golden::argmax(row) as u32).collect();
        assert_eq!(got, want, "{name}");
    }
}

/// The GGUF fixtures have the logits that stand beside them, with int8 activations and without.
///
/// # Panics
/// When they have not.
pub fn assert_gguf(open: Open<'_>) {
    for entry in golden::json("gguf/manifest.json").as_array().unwrap() {
        let file = entry["file"].as_str().unwrap();
        let path = golden::fixtures().join("gguf").join(file);
        let expected = format!("gguf/{}", file.replace(".gguf", ".expected.safetensors"));
        let (last, strict) = (golden::ids(&entry["prompt_ids"]), golden::ids(&entry["strict_ids"]));
        let got = open(&path, None)(&strict, usize::MAX);
        let diff = golden::max_diff(&got, &golden::floats(&expected, "logits.strict0.int8_act"));
        assert!(diff <= 2e-4, "{file} strict: {diff}");
        for (act, name, limit) in
            [(ActivationPrecision::Int8, "int8", 0.3), (ActivationPrecision::Float, "float", 2e-4)]
        {
            let want = golden::floats(&expected, &format!("logits_last.{name}_act"));
            let got = open(&path, Some(act))(&last, usize::MAX);
            let diff = golden::max_diff(&got[got.len() - want.len()..], &want);
            assert!(diff <= limit, "{file} {name}: {diff}");
        }
    }
}

/// Ids of every prompt of a made-up model.
const PROMPT: [u32; 11] = [7, 0, 39, 12, 12, 3, 25, 31, 7, 18, 1];

/// Made-up models of the architectures have the oracle's logits.
///
/// # Panics
/// When they have not.
pub fn assert_made_up(open: Open<'_>) {
    let f16 = Store::Float(Float::F16);
    let f32 = Store::Float(Float::F32);
    let ternary = Spec { projections: f32, absmean: true, ..Spec::default() };
    let wide = Spec { arch: Arch::LLAMA, hidden: 512, ffn: 512, heads: 8, head_dim: 64, ..Spec::default() };
    let bonsai = Spec {
        arch: Arch::QWEN3,
        hidden: 128,
        ffn: 256,
        head_dim: 64,
        embedding: Store::Q2_0 { group: 128 },
        projections: Store::Q2_0 { group: 128 },
        ..Spec::default()
    };
    let float = Some(ActivationPrecision::Float);
    let int8 = Some(ActivationPrecision::Int8);
    for (name, spec, act) in [
        ("BitNet", Spec { arch: Arch::BITNET_HF, ..ternary }, None),
        ("SiLU and sub-norms", Spec { arch: Arch::ONE_BIT_LLM_HF, ..ternary }, None),
        (
            "I2_S",
            Spec { arch: Arch::BITNET_B158, ffn: 128, projections: Store::I2_S, ..Spec::default() },
            None,
        ),
        ("group scales, int8", bonsai, int8),
        ("group scales, floats", Spec { int8: false, ..bonsai }, float),
        ("TQ2_0", Spec { projections: Store::TQ2_0(Scales::Each), ..wide }, int8),
        ("Q4_0 and Q8_0", Spec { projections: Store::Q4_0, embedding: Store::Q8_0, ..wide }, None),
        ("Q4_1", Spec { projections: Store::Q4_1, embedding: Store::Q4_1, ..wide }, None),
        ("Q6_K head", Spec { projections: f16, head: Some(Store::Q6_K), ..wide }, None),
        (
            "windows",
            Spec { arch: Arch::MISTRAL_HF, window: Some(4), layers: 3, projections: f32, ..Spec::default() },
            None,
        ),
        (
            "Gemma 3",
            Spec {
                arch: Arch::GEMMA3_HF,
                window: Some(4),
                layers: 7,
                eps: 1e-6,
                projections: f32,
                ..Spec::default()
            },
            None,
        ),
        (
            "norms before projections",
            Spec { arch: Arch::QWEN3_EMBEDDING, head_dim: 32, ffn: 128, ..ternary },
            None,
        ),
    ] {
        let (made, want) = spec.clear(&PROMPT, 2e-5);
        let dir = tempfile::tempdir().unwrap();
        let got = open(&made.write(dir.path()), act)(&PROMPT, usize::MAX);
        let diff = golden::max_diff(&got, &want.logits);
        println!("{name}: {diff:.1e}");
        assert!(diff <= 5e-5, "{name}: {diff}");
    }
}
