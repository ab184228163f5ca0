//! Every fixture model against the reference implementation, and against itself: one prompt gives the same bits however it
//! is cut, on every instruction set and any number of threads.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use bitnet_core::{ActivationPrecision, KvType};
use bitnet_cpu::{CpuBackend, CpuOptions, Isa, Kernel};
use bitnet_model::{Decoder, LoadOptions, Rows, StepOutput, Transformer, load};
use bitnet_testkit::golden::{self, MODELS};
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Comparisons with the reference are made with a cache of f32.
const EXACT: LoadOptions =
    LoadOptions { act: None, context: None, cache: None, key: KvType::F32, value: KvType::F32, layers: None };

fn open(path: &str, cpu: CpuOptions, options: LoadOptions) -> Transformer<CpuBackend> {
    let checkpoint = bitnet_formats::open(&golden::fixtures().join(path)).unwrap();
    load(Arc::new(CpuBackend::new(cpu).unwrap()), &checkpoint, &options, &mut |_, _| {}).unwrap()
}

fn model(path: &str) -> Transformer<CpuBackend> {
    open(path, CpuOptions { threads: Some(2), ..CpuOptions::default() }, EXACT)
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
fn logits_and_perplexities_equal_the_reference() {
    for name in MODELS {
        let mut model = model(name);
        for prompt in golden::prompts(name) {
            let want = prompt.logits(name);
            let got = logits(&mut model, &prompt.ids, usize::MAX);
            let (firm, loose) = prompt.compare(&got, &want);
            let perplexity = golden::perplexity(&got, &prompt.ids);
            let relative = (perplexity / prompt.perplexity - 1.0).abs();
            assert!(relative <= 5e-3, "{name} {}: {perplexity} for {}", prompt.name, prompt.perplexity);
            println!(
                "{name} {}: {firm:.1e} firm, {loose:.1e} loose, perplexity off by {relative:.1e}",
                prompt.name
            );
        }
    }
}

#[test]
fn hidden_states_equal_the_reference() {
    for name in MODELS {
        let mut model = model(name);
        let prompt = golden::prompts(name).into_iter().find(|p| p.name == "strict0").unwrap();
        let mut out = StepOutput { rows: Rows::Last, keep_hidden: true, ..StepOutput::default() };
        model.step(&prompt.ids, &mut out).unwrap();
        let layers = model.config().layers;
        assert_eq!(out.hidden.len(), layers + 2);
        for (i, got) in out.hidden.iter().enumerate() {
            let stage = match i {
                0 => "embed".to_owned(),
                i if i <= layers => format!("layer{}", i - 1),
                _ => "final_norm".to_owned(),
            };
            let want =
                golden::floats(&format!("{name}/reference.safetensors"), &format!("hidden.strict0.{stage}"));
            let diff = golden::max_diff(got, &want);
            assert!(diff <= 2e-4, "{name} {stage}: {diff}");
        }
        let vocab = model.config().vocab;
        assert!(
            golden::max_diff(&out.logits, &prompt.logits(name)[(prompt.ids.len() - 1) * vocab..]) <= 2e-4
        );
    }
}

#[test]
fn greedy_tokens_equal_the_reference() {
    for name in MODELS {
        let mut model = model(name);
        let greedy = &golden::json(&format!("{name}/reference.json"))["greedy"];
        let (prompt, want) = (golden::ids(&greedy["prompt_ids"]), golden::ids(&greedy["tokens"]));
        let mut out = StepOutput::default();
        model.step(&prompt, &mut out).unwrap();
        let mut got = Vec::new();
        for _ in 0..want.len() {
            let id = golden::argmax(&out.logits) as u32;
            got.push(id);
            model.step(&[id], &mut out).unwrap();
        }
        assert_eq!(got, want, "{name}");
        assert_eq!(want.len(), 64);
    }
}

#[test]
fn gguf_files_equal_the_reference() {
    for entry in golden::json("gguf/manifest.json").as_array().unwrap() {
        let file = entry["file"].as_str().unwrap();
        let path = format!("gguf/{file}");
        let expected = format!("gguf/{}", file.replace(".gguf", ".expected.safetensors"));
        let (last, strict) = (golden::ids(&entry["prompt_ids"]), golden::ids(&entry["strict_ids"]));
        let mut int8 = model(&path);
        let got = logits(&mut int8, &strict, usize::MAX);
        let diff = golden::max_diff(&got, &golden::floats(&expected, "logits.strict0.int8_act"));
        assert!(diff <= 2e-4, "{file} strict: {diff}");
        for (act, name) in [(ActivationPrecision::Int8, "int8"), (ActivationPrecision::Float, "float")] {
            let mut model = open(&path, CpuOptions::default(), LoadOptions { act: Some(act), ..EXACT });
            let mut out = StepOutput::default();
            model.step(&last, &mut out).unwrap();
            let diff =
                golden::max_diff(&out.logits, &golden::floats(&expected, &format!("logits_last.{name}_act")));
            let limit = if act == ActivationPrecision::Float { 2e-4 } else { 0.3 };
            assert!(diff <= limit, "{file} {name}: {diff}");
            println!("{file} {name}: {diff:.1e}");
        }
    }
}

fn hash(values: &[f32]) -> String {
    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    Sha256::digest(&bytes).iter().map(|b| format!("{b:02x}")).collect()
}

/// The hashes stand in one file for every processor: what one platform computes, all compute.
#[test]
fn logits_have_the_same_bits_on_every_platform() {
    let want = golden::json("logits-sha256.json");
    let mut others = BTreeSet::new();
    for name in MODELS.iter().copied().chain(["gguf/bitnet-packed-k256-tq1_0.gguf"]) {
        let prompts = golden::prompts(if name.contains('/') { "bitnet-packed-k256" } else { name });
        let prompt = prompts.iter().max_by_key(|p| p.ids.len()).unwrap();
        for isa in Isa::available() {
            let caches =
                [(KvType::F32, "f32"), (KvType::F16, "f16"), (KvType::BF16, "bf16"), (KvType::Q8_0, "q8_0")];
            for (kv, cache) in caches {
                let cpu = CpuOptions { isa: Some(isa), threads: Some(2), ..CpuOptions::default() };
                let mut model = open(name, cpu, LoadOptions { key: kv, value: kv, ..EXACT });
                let got = hash(&logits(&mut model, &prompt.ids, usize::MAX));
                let line = format!("{name}, {cache} cache, {isa}: {got}");
                println!("{line}");
                if want[name][cache] != got {
                    others.insert(line);
                }
            }
        }
    }
    assert!(others.is_empty(), "{others:#?}");
}

#[test]
fn bits_do_not_depend_on_instruction_set_threads_or_chunks() {
    for name in MODELS.iter().copied().chain(["gguf/bitnet-packed-k256-tq1_0.gguf"]) {
        let prompts = golden::prompts(if name.contains('/') { "bitnet-packed-k256" } else { name });
        let prompt = prompts.iter().max_by_key(|p| p.ids.len()).unwrap();
        let isas = Isa::available().into_iter().map(|isa| (Some(isa), None));
        let kernels = Kernel::available().map(|kernel| (None, Some(kernel)));
        let machines: Vec<_> = isas.chain(kernels).collect();
        for (kv, chunks) in [
            (KvType::F32, [usize::MAX, 1, 2, 5, 13].as_slice()),
            (KvType::F16, &[usize::MAX, 5]),
            (KvType::BF16, &[usize::MAX, 5]),
        ] {
            let mut first = None;
            for &(isa, kernel) in &machines {
                for threads in [1, 2, 3] {
                    let cpu = CpuOptions { isa, threads: Some(threads), kernel, ..CpuOptions::default() };
                    let mut model = open(name, cpu.clone(), LoadOptions { key: kv, value: kv, ..EXACT });
                    for chunk in chunks {
                        let sum = hash(&logits(&mut model, &prompt.ids, *chunk));
                        let want = first.get_or_insert_with(|| sum.clone());
                        assert_eq!(&sum, want, "{name} {kv:?} {cpu:?}, chunks of {chunk}");
                    }
                }
            }
        }
    }
}
