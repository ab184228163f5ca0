//! Adapters against peft's numbers, against a forward pass with the sum of both matrices, and against themselves.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use bitnet_core::{ActivationPrecision, KV_BLOCK, KvType, Logits, LogitsNeed};
use bitnet_cpu::{CpuBackend, CpuOptions, Isa};
use bitnet_model::{Adapter, AdapterUse, Decoder, LoadOptions, ModelError, Span, Transformer, load};
use bitnet_testkit::golden::{self, max_diff};
use bitnet_testkit::synthetic::{Arch, Spec, Store};
use bitnet_testkit::tensors::{Float, Noise};
use bitnet_testkit::{adapter, oracle};
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Arc;

const IDS: [u32; 9] = [7, 0, 39, 12, 12, 3, 25, 31, 7];

fn open(path: &Path, cpu: CpuOptions, act: Option<ActivationPrecision>) -> Transformer<CpuBackend> {
    let options =
        LoadOptions { act, key: KvType::F32, value: KvType::F32, cache: Some(512), ..LoadOptions::default() };
    let checkpoint = bitnet_formats::open(path).unwrap();
    load(Arc::new(CpuBackend::new(cpu).unwrap()), &checkpoint, &options, &mut |_, _| {}).unwrap()
}

fn read(dir: &Path, model: &dyn Decoder) -> Result<Adapter, ModelError> {
    Adapter::read(&bitnet_formats::open_adapter(dir).unwrap(), model.config())
}

/// Logits of every position of sequences that run together, in steps of `chunk` tokens of each.
fn logits(model: &mut dyn Decoder, sequences: &[(&[u32], &[AdapterUse])], chunk: usize) -> Vec<Vec<f32>> {
    let vocab = model.config().vocab;
    let blocks: Vec<[u32; 1]> = (0..sequences.len() as u32).map(|b| [b]).collect();
    let needs = vec![LogitsNeed::All; KV_BLOCK];
    let mut all = vec![Vec::new(); sequences.len()];
    let mut out = Logits::default();
    for start in (0..KV_BLOCK).step_by(chunk) {
        let (mut spans, mut whose) = (Vec::new(), Vec::new());
        for (i, (ids, adapters)) in sequences.iter().enumerate() {
            let ids = &ids[start.min(ids.len())..(start + chunk).min(ids.len())];
            if !ids.is_empty() {
                spans.push(Span {
                    start,
                    ids,
                    blocks: &blocks[i],
                    needs: &needs[..ids.len()],
                    states: 0..0,
                    adapters,
                });
                whose.extend(ids.iter().map(|_| i));
            }
        }
        if spans.is_empty() {
            break;
        }
        model.batch(&spans, &mut out, &mut Vec::new()).unwrap();
        out.values.chunks(vocab).zip(whose).for_each(|(row, i)| all[i].extend(row));
    }
    all
}

#[test]
fn a_peft_adapter_beside_ternary_weights_gives_pefts_numbers() {
    let dir = golden::fixtures().join("lora/qvd-r4");
    let expected = golden::json("lora/qvd-r4/expected.json");
    for isa in Isa::available() {
        let cpu = CpuOptions { isa: Some(isa), threads: Some(2), ..CpuOptions::default() };
        let mut model = open(&golden::fixtures().join("bitnet-online"), cpu, None);
        let adapter = read(&dir, &model).unwrap();
        assert_eq!(adapter.parts.len(), 6);
        let id = 7;
        model.load_adapter(id, &adapter).unwrap();
        for name in ["strict0", "english"] {
            let ids = golden::ids(&expected["prompts"][name]);
            let want = golden::floats("lora/qvd-r4/expected.safetensors", &format!("logits_unmerged.{name}"));
            let got = logits(&mut model, &[(&ids, &[AdapterUse { id, scale: 1.0 }])], KV_BLOCK);
            let diff = max_diff(&got[0], &want);
            println!("{name}, {isa}: {diff:.1e}");
            assert!(diff <= 2e-4, "{name}, {isa}: {diff}");
        }
        model.unload_adapter(id);
        let gone = Span {
            start: 0,
            ids: &[1],
            blocks: &[0],
            needs: &[],
            states: 0..0,
            adapters: &[AdapterUse { id, scale: 1.0 }],
        };
        let refused = model.batch(&[gone], &mut Logits::default(), &mut Vec::new());
        assert!(matches!(refused, Err(ModelError::UnknownAdapter { .. })));
    }
}

/// With weights that stay floats, an adapter is the sum of two matrices.
#[test]
fn every_projection_gets_what_its_matrices_say() {
    let spec =
        Spec { projections: Store::Float(Float::F32), int8: false, arch: Arch::LLAMA_HF, ..Spec::default() };
    let modules = adapter::projections(spec.layers, spec.hidden, spec.ffn, 64, 32);
    for (edit, scales) in [
        ((|_| {}) as fn(&mut Value), [2.0, 2.0]),
        (|c| c["use_rslora"] = json!(true), [6.0 / 3f64.sqrt(); 2]),
        (|c| c["alpha_pattern"] = json!({"mlp.up_proj": 1.5}), [2.0, 0.5]),
        // Unmerged, it says nothing: peft's matrices have their shapes whatever the module's own matrix has.
        (|c| c["fan_in_fan_out"] = json!(true), [2.0, 2.0]),
    ] {
        let made = spec.build(3);
        let dir = tempfile::tempdir().unwrap();
        let mut config = adapter::config(3);
        edit(&mut config);
        let deltas = adapter::write(dir.path(), &config, &modules, 3, 5);
        let mut sum = made.model.clone();
        for ((path, ..), delta) in modules.iter().zip(&deltas) {
            let layer = &mut sum.layers[usize::from(path.contains(".1."))];
            let oracle::Layer { q, k, v, o, gate, up, down, .. } = layer;
            let all =
                [("q_", q), ("k_", k), ("v_", v), ("o_", o), ("gate", gate), ("up", up), ("down", down)];
            let (name, mat) = all.into_iter().find(|(name, _)| path.contains(&format!(".{name}"))).unwrap();
            let scale = 0.5 * if name == "up" { scales[1] } else { scales[0] };
            mat.w.iter_mut().zip(delta).for_each(|(w, d)| *w += scale * d);
        }
        let want = sum.forward(&IDS).logits;
        let base = made.model.forward(&IDS).logits;
        let mut model = open(
            &made.write(tempfile::tempdir().unwrap().path()),
            CpuOptions::default(),
            Some(ActivationPrecision::Float),
        );
        let adapter = read(dir.path(), &model).unwrap();
        let id = 0;
        model.load_adapter(id, &adapter).unwrap();
        let got = logits(&mut model, &[(&IDS, &[AdapterUse { id, scale: 0.5 }])], KV_BLOCK).remove(0);
        let (diff, moved) = (max_diff(&got, &want), max_diff(&base, &want));
        assert!(diff <= 2e-5 && moved > 0.1, "{config}: {diff}, moved by {moved}");
    }
}

#[test]
fn bits_depend_neither_on_company_nor_on_the_machine() {
    let path = golden::fixtures().join("bitnet-packed");
    let dir = tempfile::tempdir().unwrap();
    adapter::write(dir.path(), &adapter::config(5), &adapter::projections(2, 128, 384, 128, 64), 5, 9);
    let (mut first, uses) = (None, |list: &[(u32, f32)]| -> Vec<AdapterUse> {
        list.iter().map(|(id, scale)| AdapterUse { id: *id, scale: *scale }).collect()
    });
    let lists =
        [uses(&[]), uses(&[(0, 1.0)]), uses(&[(1, 0.7)]), uses(&[(0, 1.0), (1, -0.4)]), uses(&[(0, 1.0)])];
    let texts: Vec<Vec<u32>> =
        (0..lists.len() as u32).map(|i| (0..11 + i).map(|j| (i * 31 + j * 7) % 500).collect()).collect();
    let all: Vec<(&[u32], &[AdapterUse])> = texts.iter().zip(&lists).map(|(t, l)| (&t[..], &l[..])).collect();
    for isa in Isa::available() {
        for threads in [1, 3] {
            let mut model = open(
                &path,
                CpuOptions { isa: Some(isa), threads: Some(threads), ..CpuOptions::default() },
                None,
            );
            let peft = read(&golden::fixtures().join("lora/qvd-r4"), &model).unwrap();
            let other = read(dir.path(), &model).unwrap();
            model.load_adapter(0, &peft).unwrap();
            model.load_adapter(1, &other).unwrap();
            let alone: Vec<Vec<f32>> =
                all.iter().map(|one| logits(&mut model, &[*one], 1).remove(0)).collect();
            let want = first.get_or_insert_with(|| alone.clone());
            assert!(alone == *want, "{isa}, {threads} threads: other bits");
            for chunk in [1, 4, KV_BLOCK] {
                assert!(
                    logits(&mut model, &all, chunk) == *want,
                    "{isa}, {threads} threads, steps of {chunk}: other bits"
                );
            }
        }
    }
    let all = first.unwrap();
    assert!((0..4).all(|i| (0..i).all(|j| all[i] != all[j])), "adapters change something");
}

#[test]
fn what_is_no_adapter_of_the_model_is_refused() {
    let model = open(&golden::fixtures().join("bitnet-packed"), CpuOptions::default(), None);
    let modules = adapter::projections(2, 128, 384, 128, 64);
    let check = |edit: &dyn Fn(&mut Value), modules: &[adapter::Module], want: &str| {
        let dir = tempfile::tempdir().unwrap();
        let mut config = adapter::config(2);
        edit(&mut config);
        adapter::write(dir.path(), &config, modules, 2, 1);
        let got = read(dir.path(), &model).map(drop).unwrap_err().to_string();
        assert!(got.contains(want), "{got:?} does not say {want:?}");
    };
    let set = |key: &'static str, value: Value| move |c: &mut Value| c[key] = value.clone();
    check(&set("use_dora", json!(true)), &modules, "no magnitudes, and use_dora is true");
    check(&set("peft_type", json!("IA3")), &modules, "LORA is known");
    check(&set("bias", json!("all")), &modules, "bias");
    check(&set("modules_to_save", json!(["lm_head"])), &modules, "modules_to_save");
    check(&set("init_lora_weights", json!("pissa_niter_4")), &modules, "plain LoRA");
    check(&set("lora_alpha", Value::Null), &modules, "lora_alpha");
    check(&set("alpha_pattern", json!({"^q.*": 3})), &modules, "no patterns");
    check(&set("target_modules", json!(["qkv_proj"])), &modules, "the file has no matrices for it");
    check(&|_| {}, &[("model.layers.2.mlp.up_proj".to_owned(), 384, 128)], "for no projection");
    check(&|_| {}, &[("model.lm_head".to_owned(), 512, 128)], "for no projection");
    check(
        &set("target_modules", json!(null)),
        &[("model.layers.0.mlp.up_proj".to_owned(), 128, 128)],
        "shape",
    );
    check(&set("target_modules", json!(null)), &[], "without tensors");
}

#[test]
fn damaged_files_get_an_error_and_no_more() {
    let model = open(&golden::fixtures().join("bitnet-packed"), CpuOptions::default(), None);
    let dir = tempfile::tempdir().unwrap();
    adapter::write(dir.path(), &adapter::config(1), &adapter::projections(2, 128, 384, 128, 64), 1, 1);
    let mut noise = Noise(2);
    for name in ["adapter_config.json", "adapter_model.safetensors"] {
        let path = dir.path().join(name);
        let whole = std::fs::read(&path).unwrap();
        let mut refused = 0;
        for _ in 0..300 {
            let mut bytes = whole.clone();
            // Names and settings lie at the beginning.
            let reach = bytes.len().min(4000);
            bytes[noise.bits() as usize % reach] = noise.bits() as u8;
            if noise.bits().is_multiple_of(4) {
                bytes.truncate(noise.bits() as usize % reach);
            }
            std::fs::write(&path, &bytes).unwrap();
            let read =
                bitnet_formats::open_adapter(dir.path()).map(|files| Adapter::read(&files, model.config()));
            refused += usize::from(!matches!(read, Ok(Ok(_))));
        }
        assert!(refused > 100, "{name}: {refused}");
        std::fs::write(&path, whole).unwrap();
    }
    assert!(read(dir.path(), &model).is_ok());
    for wrong in ["gguf/bitnet-online-i2_s.gguf", "bitnet-packed", "absent"] {
        assert!(bitnet_formats::open_adapter(&golden::fixtures().join(wrong)).is_err(), "{wrong}");
    }
}
