//! Whole models: the reference fixtures, and small made-up ones of every architecture against the oracle.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod common;

use bitnet_core::{ActivationPrecision, KvType};
use bitnet_cuda::CudaBackend;
use bitnet_model::{Decoder, LoadOptions, Rows, StepOutput, Transformer, load};
use bitnet_testkit::golden::{self, MODELS};
use bitnet_testkit::synthetic::{Arch, Spec, Store};
use bitnet_testkit::tensors::{Float, Scales};
use sha2::{Digest, Sha256};
use std::path::Path;
use std::sync::Arc;

/// Comparisons with the reference are made with a cache of f32.
const EXACT: LoadOptions =
    LoadOptions { act: None, context: None, cache: None, key: KvType::F32, value: KvType::F32, layers: None };

fn open(gpu: &Arc<CudaBackend>, path: &Path, options: LoadOptions) -> Transformer<CudaBackend> {
    let checkpoint = bitnet_formats::open(path).unwrap();
    load(Arc::clone(gpu), &checkpoint, &options, &mut |_, _| {}).unwrap()
}

/// Logits of every position, the prompt fed in steps of `chunk`.
fn logits(model: &mut dyn Decoder, ids: &[u32], chunk: usize) -> Vec<f32> {
    model.rewind(0);
    let mut out = StepOutput { rows: Rows::All, ..StepOutput::default() };
    let mut all = Vec::new();
    for ids in ids.chunks(chunk) {
        model.step(ids, &mut out).unwrap();
        all.extend_from_slice(&out.logits);
    }
    all
}

#[test]
fn logits_perplexities_and_greedy_tokens_equal_the_reference() {
    let Some(gpu) = common::backend().map(Arc::new) else { return };
    for name in MODELS {
        let mut model = open(&gpu, &golden::fixtures().join(name), EXACT);
        for prompt in golden::prompts(name) {
            let got = logits(&mut model, &prompt.ids, usize::MAX);
            let (firm, loose) = prompt.compare(&got, &prompt.logits(name));
            let relative = (golden::perplexity(&got, &prompt.ids) / prompt.perplexity - 1.0).abs();
            assert!(relative <= 5e-3, "{name} {}: perplexity off by {relative}", prompt.name);
            println!("{name} {}: {firm:.1e} firm, {loose:.1e} loose", prompt.name);
        }
        let greedy = &golden::json(&format!("{name}/reference.json"))["greedy"];
        let (prompt, want) = (golden::ids(&greedy["prompt_ids"]), golden::ids(&greedy["tokens"]));
        model.rewind(0);
        let (mut out, mut got) = (StepOutput::default(), Vec::new());
        model.step(&prompt, &mut out).unwrap();
        for _ in 0..want.len() {
            let id = golden::argmax(&out.logits) as u32;
            got.push(id);
            model.step(&[id], &mut out).unwrap();
        }
        assert_eq!(got, want, "{name}");
    }
}

#[test]
fn gguf_files_equal_the_reference() {
    let Some(gpu) = common::backend().map(Arc::new) else { return };
    for entry in golden::json("gguf/manifest.json").as_array().unwrap() {
        let file = entry["file"].as_str().unwrap();
        let path = golden::fixtures().join("gguf").join(file);
        let expected = format!("gguf/{}", file.replace(".gguf", ".expected.safetensors"));
        let (last, strict) = (golden::ids(&entry["prompt_ids"]), golden::ids(&entry["strict_ids"]));
        let got = logits(&mut open(&gpu, &path, EXACT), &strict, usize::MAX);
        let diff = golden::max_diff(&got, &golden::floats(&expected, "logits.strict0.int8_act"));
        assert!(diff <= 2e-4, "{file} strict: {diff}");
        for (act, name, limit) in
            [(ActivationPrecision::Int8, "int8", 0.3), (ActivationPrecision::Float, "float", 2e-4)]
        {
            let mut model = open(&gpu, &path, LoadOptions { act: Some(act), ..EXACT });
            let mut out = StepOutput::default();
            model.step(&last, &mut out).unwrap();
            let diff =
                golden::max_diff(&out.logits, &golden::floats(&expected, &format!("logits_last.{name}_act")));
            assert!(diff <= limit, "{file} {name}: {diff}");
        }
    }
}

/// The hashes are those of every processor, however a prompt is cut.
#[test]
fn logits_have_the_bits_of_the_processor() {
    let Some(gpu) = common::backend().map(Arc::new) else { return };
    let want = golden::json("logits-sha256.json");
    for name in MODELS.iter().copied().chain(["gguf/bitnet-packed-k256-tq1_0.gguf"]) {
        let prompts = golden::prompts(if name.contains('/') { "bitnet-packed-k256" } else { name });
        let prompt = prompts.iter().max_by_key(|p| p.ids.len()).unwrap();
        for (kv, cache) in [(KvType::F32, "f32"), (KvType::F16, "f16"), (KvType::BF16, "bf16")] {
            let options = LoadOptions { key: kv, value: kv, ..EXACT };
            let mut model = open(&gpu, &golden::fixtures().join(name), options);
            for chunk in [usize::MAX, 1, 2, 5, 13] {
                let got = hash(&logits(&mut model, &prompt.ids, chunk));
                assert_eq!(want[name][cache], got, "{name}, {cache} cache, in steps of {chunk}");
            }
        }
    }
}

fn hash(values: &[f32]) -> String {
    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    Sha256::digest(&bytes).iter().map(|b| format!("{b:02x}")).collect()
}

/// Ids of every prompt of a made-up model.
const PROMPT: [u32; 11] = [7, 0, 39, 12, 12, 3, 25, 31, 7, 18, 1];

#[test]
fn made_up_models_equal_the_oracle() {
    let Some(gpu) = common::backend().map(Arc::new) else { return };
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
        let mut model = open(&gpu, &made.write(dir.path()), LoadOptions { act, ..EXACT });
        let got = logits(&mut model, &PROMPT, usize::MAX);
        let diff = golden::max_diff(&got, &want.logits);
        println!("{name}: {diff:.1e}");
        assert!(diff <= 5e-5, "{name}: {diff}");
    }
}
