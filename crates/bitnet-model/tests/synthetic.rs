//! What no reference file covers: small random checkpoints, written byte by byte, against a forward pass in double precision.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use bitnet_core::{ActivationPrecision, KvType};
use bitnet_cpu::{CpuBackend, CpuOptions, Isa};
use bitnet_model::{Decoder, LoadOptions, ModelError, Rows, StepOutput, Transformer, load};
use bitnet_testkit::files::Key;
use bitnet_testkit::golden::max_diff;
use bitnet_testkit::synthetic::{Arch, Scaling, Spec, Store, Synthetic};
use bitnet_testkit::tensors::{Float, Scales};
use serde_json::{Value, json};
use std::sync::Arc;

/// Ids of every prompt here; all vocabularies have at least 40.
const PROMPT: [u32; 11] = [7, 0, 39, 12, 12, 3, 25, 31, 7, 18, 1];

/// Int8 activations nearer than this to a rounding boundary may go either way in single precision.
const CLEAR: f64 = 2e-5;

/// What single precision may cost where nothing rounds the other way. Logits have a deviation of 1 to 2.
const LIMIT: f32 = 1e-5;

fn try_open(
    made: &Synthetic,
    cpu: CpuOptions,
    options: LoadOptions,
) -> Result<Transformer<CpuBackend>, ModelError> {
    let dir = tempfile::tempdir().unwrap();
    let checkpoint = bitnet_formats::open(&made.write(dir.path())).unwrap();
    load(Arc::new(CpuBackend::new(cpu).unwrap()), &checkpoint, &options, &mut |_, _| {})
}

fn options(act: Option<ActivationPrecision>, kv: KvType) -> LoadOptions {
    LoadOptions { act, key: kv, value: kv, ..LoadOptions::default() }
}

fn open(made: &Synthetic, act: Option<ActivationPrecision>) -> Transformer<CpuBackend> {
    let cpu = CpuOptions { threads: Some(2), ..CpuOptions::default() };
    try_open(made, cpu, options(act, KvType::F32)).unwrap()
}

/// Logits of every position, the prompt fed in steps of `chunk`.
fn logits(model: &mut dyn Decoder, chunk: usize) -> Vec<f32> {
    model.rewind(0);
    let mut out = StepOutput { rows: Rows::All, ..StepOutput::default() };
    let mut all = Vec::new();
    for ids in PROMPT.chunks(chunk) {
        model.step(ids, &mut out).unwrap();
        all.extend_from_slice(&out.logits);
    }
    all
}

fn check(name: &str, spec: &Spec, act: Option<ActivationPrecision>) {
    let (made, want) = spec.clear(&PROMPT, CLEAR);
    let mut model = open(&made, act);
    let asked = if spec.int8 { ActivationPrecision::Int8 } else { ActivationPrecision::Float };
    assert_eq!(model.report().act, asked, "{name}");
    let got = logits(&mut model, usize::MAX);
    let diff = max_diff(&got, &want.logits);
    let deviation = (got.iter().map(|v| v * v).sum::<f32>() / got.len() as f32).sqrt();
    println!("{name}: {diff:.1e} of {deviation:.2}, gap {:.1e}", want.gap);
    assert!(diff <= LIMIT, "{name}: {diff} is over {LIMIT}");
    assert!((0.1..20.0).contains(&deviation), "{name}: logits of {deviation} say little");
    for chunk in [1, 4] {
        assert_eq!(logits(&mut model, chunk), got, "{name} in steps of {chunk}");
    }
}

const BF16: Store = Store::Float(Float::BF16);
const F16: Store = Store::Float(Float::F16);
const F32: Store = Store::Float(Float::F32);
const G64: Store = Store::Q2_0 { group: 64 };
const G128: Store = Store::Q2_0 { group: 128 };
const MULTIPLIER: Store = Store::Packed { scales: Scales::One, divisor: false };
const DIVISOR: Store = Store::Packed { scales: Scales::One, divisor: true };

/// Ternary-Bonsai in small: heads wider than `hidden / heads`, norms on q and k.
fn bonsai(store: Store, head: Option<Store>) -> Spec {
    Spec {
        arch: Arch::QWEN3,
        hidden: 128,
        ffn: 256,
        heads: 4,
        kv_heads: 2,
        head_dim: 64,
        theta: 1e6,
        eps: 1e-6,
        embedding: store,
        head,
        projections: store,
        int8: false,
        ..Spec::default()
    }
}

#[test]
fn bonsai_runs_with_floats_by_default_and_with_int8_when_asked() {
    for (name, spec) in [
        ("Q2_0 of 64, tied", bonsai(G64, None)),
        ("Q2_0 of 64, own head", bonsai(G64, Some(G64))),
        ("Q2_0 of 128, tied", bonsai(G128, None)),
        ("Q2_0 of 128, Q6_K head", Spec { hidden: 256, ..bonsai(G128, Some(Store::Q6_K)) }),
        ("Q1_0, tied", bonsai(Store::Q1_0, None)),
        ("Q1_0, own head", bonsai(Store::Q1_0, Some(Store::Q1_0))),
    ] {
        check(&format!("{name}, default"), &spec, None);
        let int8 = Spec { int8: true, ..spec };
        check(&format!("{name}, int8"), &int8, Some(ActivationPrecision::Int8));
    }
}

/// The Hugging Face form of 1bitLLM's models.
fn one_bit_llm(masters: Store) -> Spec {
    Spec { arch: Arch::ONE_BIT_LLM_HF, projections: masters, absmean: true, ..Spec::default() }
}

#[test]
fn master_weights_become_ternary_in_the_bitnet_classes() {
    for (name, store) in [("F16", F16), ("F32", F32), ("BF16", BF16)] {
        check(&format!("BitnetForCausalLM {name}"), &one_bit_llm(store), None);
        let spec = Spec { arch: Arch::BITNET_HF, ..one_bit_llm(store) };
        check(&format!("BitNetForCausalLM online {name}"), &spec, None);
        for arch in [Arch::BITNET, Arch::BITNET_25, Arch::BITNET_B158] {
            let spec = Spec { arch, embedding: F16, ..one_bit_llm(store) };
            check(&format!("{} {name}", arch.name), &spec, None);
        }
    }
}

#[test]
fn floats_of_one_magnitude_are_trits_everywhere() {
    for float in [Float::F16, Float::BF16, Float::F32] {
        for arch in
            [Arch::BITNET, Arch::BITNET_25, Arch::BITNET_B158, Arch::LLAMA, Arch::QWEN3, Arch::LLAMA_HF]
        {
            let spec = Spec { arch, projections: Store::Trits(float), ..Spec::default() };
            check(&format!("{float:?} {}", arch.name), &spec, None);
        }
    }
}

#[test]
fn other_floats_stay_dense_in_the_llama_classes() {
    for arch in [Arch::LLAMA, Arch::QWEN3] {
        for (name, store) in [
            ("F16", F16),
            ("BF16", BF16),
            ("F32", F32),
            ("Q8_0", Store::Q8_0),
            ("Q4_0", Store::Q4_0),
            ("Q4_1", Store::Q4_1),
        ] {
            let spec = Spec { arch, projections: store, ..Spec::default() };
            check(&format!("dense {name} {}", arch.name), &spec, None);
        }
        let spec =
            Spec { arch, projections: Store::Q6_K, hidden: 256, ffn: 256, head_dim: 64, ..Spec::default() };
        check(&format!("dense Q6_K {}", arch.name), &spec, None);
    }
    for (name, store) in [("F16", F16), ("BF16", BF16), ("F32", F32)] {
        check(&format!("dense {name}"), &Spec { projections: store, ..Spec::default() }, None);
    }
}

#[test]
fn ternary_types_in_every_gguf_architecture() {
    for arch in [Arch::BITNET, Arch::BITNET_25, Arch::BITNET_B158, Arch::LLAMA, Arch::QWEN3] {
        let wide = Spec { arch, hidden: 256, ffn: 512, head_dim: 64, ..Spec::default() };
        for (name, projections) in [
            ("I2_S", Store::I2_S),
            ("TQ1_0", Store::TQ1_0(Scales::One)),
            ("TQ2_0", Store::TQ2_0(Scales::One)),
            ("TQ1_0 with a scale a block", Store::TQ1_0(Scales::Each)),
            ("TQ2_0 with a scale a block", Store::TQ2_0(Scales::Each)),
        ] {
            check(&format!("{name} {}", arch.name), &Spec { projections, ..wide }, None);
        }
        // Several groups a row, which follow their rows where those are reordered.
        let groups = Spec { projections: G64, int8: false, ..wide };
        check(&format!("Q2_0 {}", arch.name), &groups, None);
        let int8 = Some(ActivationPrecision::Int8);
        check(&format!("Q2_0 int8 {}", arch.name), &Spec { int8: true, ..groups }, int8);
        // Rows of 96 and 160: blocks of I2_S run over their ends.
        let odd = Spec { hidden: 96, heads: 3, kv_heads: 1, head_dim: 32, ffn: 160, ..wide };
        check(
            &format!("I2_S with short rows {}", arch.name),
            &Spec { projections: Store::I2_S, ..odd },
            None,
        );
    }
}

#[test]
fn scales_beside_projections_multiply() {
    for (name, projections, absmean) in
        [("I2_S", Store::I2_S, false), ("trits in F16", Store::Trits(Float::F16), false), ("F16", F16, true)]
    {
        let spec =
            Spec { arch: Arch::BITNET, projections, absmean, factors: true, ffn: 128, ..Spec::default() };
        check(&format!("{name} with .scale"), &spec, None);
    }
    let each = Store::TQ2_0(Scales::Each);
    let spec = Spec {
        arch: Arch::BITNET,
        projections: each,
        factors: true,
        hidden: 256,
        ffn: 512,
        head_dim: 64,
        ..Spec::default()
    };
    check("TQ2_0 with .scale", &spec, None);
}

#[test]
fn embeddings_and_heads_of_every_type_see_exact_activations() {
    for (name, table) in [
        ("F32", F32),
        ("F16", F16),
        ("BF16", BF16),
        ("Q8_0", Store::Q8_0),
        ("Q4_0", Store::Q4_0),
        ("Q4_1", Store::Q4_1),
        ("Q6_K", Store::Q6_K),
        ("I2_S", Store::I2_S),
        ("TQ1_0", Store::TQ1_0(Scales::Each)),
        ("TQ2_0", Store::TQ2_0(Scales::One)),
    ] {
        for arch in [Arch::BITNET_25, Arch::LLAMA] {
            let wide = Spec { arch, hidden: 256, ffn: 256, head_dim: 64, ..Spec::default() };
            let spec = Spec { embedding: table, projections: Store::I2_S, ..wide };
            check(&format!("{name} tied {}", arch.name), &spec, None);
            let spec = Spec { embedding: F16, head: Some(table), ..spec };
            check(&format!("{name} head {}", arch.name), &spec, None);
        }
    }
}

#[test]
fn packed_directories_with_any_scale_and_shape() {
    let rows = |divisor| Store::Packed { scales: Scales::Each, divisor };
    for (name, projections) in [
        ("multiplier", MULTIPLIER),
        ("divisor", DIVISOR),
        ("multiplier a row", rows(false)),
        ("divisor a row", rows(true)),
    ] {
        for arch in [Arch::BITNET_HF, Arch::ONE_BIT_LLM_HF, Arch::LLAMA_HF] {
            check(&format!("{name} {}", arch.name), &Spec { arch, projections, ..Spec::default() }, None);
        }
    }
    let spec = Spec { projections: DIVISOR, ..Spec::default() };
    for (name, spec) in [
        ("odd rows", Spec { hidden: 60, ffn: 116, head_dim: 14, ..spec }),
        ("odd heads", Spec { hidden: 60, ffn: 100, heads: 6, kv_heads: 2, head_dim: 26, ..spec }),
        ("wide rows", Spec { hidden: 260, ffn: 388, ..spec }),
        ("a kv head each", Spec { kv_heads: 4, ..spec }),
        ("a kv head for three", Spec { heads: 6, kv_heads: 2, ..spec }),
        ("one kv head", Spec { kv_heads: 1, ..spec }),
        ("own head", Spec { head: Some(F16), ..spec }),
        ("three files", Spec { head: Some(BF16), shards: 3, ..spec }),
        ("another base", Spec { theta: 1_000_042.0, eps: 1e-6, ..spec }),
    ] {
        check(name, &spec, None);
    }
}

#[test]
fn dense_projections_stand_between_ternary_ones() {
    let unconverted: fn(&mut Value) = |c| {
        c["quantization_config"]["modules_to_not_convert"] = json!(["lm_head", "k_proj", "mlp.down_proj"]);
    };
    let spec = Spec { dense: &["k", "down"], ffn: 128, ..Spec::default() };
    for (name, spec) in [
        ("masters", Spec { arch: Arch::BITNET_HF, absmean: true, edit: unconverted, ..spec }),
        ("packed", Spec { projections: DIVISOR, head: Some(F16), edit: unconverted, ..spec }),
        ("I2_S", Spec { arch: Arch::LLAMA, projections: Store::I2_S, ..spec }),
        ("Q2_0", Spec { projections: G64, int8: false, arch: Arch::QWEN3, ..spec }),
    ] {
        check(name, &spec, None);
    }
}

/// A norm that is left out or put in makes another model, so neither is done silently.
#[test]
fn sub_norms_belong_to_the_architecture() {
    let error = |arch: Arch, config: Arch| {
        let mut made = Spec { arch, projections: MULTIPLIER, ..Spec::default() }.build(1);
        made.spec.arch = config;
        let cpu = CpuOptions { threads: Some(1), ..CpuOptions::default() };
        try_open(&made, cpu, LoadOptions::default()).err().expect("an error").to_string()
    };
    let missing = error(Arch::LLAMA_HF, Arch::BITNET_HF);
    assert!(missing.contains("no tensor \"model.layers.0.self_attn.attn_sub_norm.weight\""), "{missing}");
    let missing = error(Arch::BITNET_HF, Arch::ONE_BIT_LLM_HF);
    assert!(missing.contains("no tensor \"model.layers.0.self_attn.inner_attn_ln.weight\""), "{missing}");
    let left = error(Arch::BITNET_HF, Arch::LLAMA_HF);
    assert!(left.contains("attn_sub_norm") && left.contains("LlamaForCausalLM"), "{left}");
}

#[test]
fn configurations_say_it_in_several_ways() {
    let spec = Spec { projections: DIVISOR, theta: 500_000.0, ..Spec::default() };
    let move_theta: fn(&mut Value) = |c| {
        c["rope_parameters"] = json!({"rope_type": "default", "rope_theta": c["rope_theta"]});
        // The old key may stand beside the new one, which counts.
        c["rope_theta"] = json!(17.0);
    };
    let null_scaling: fn(&mut Value) = |c| c["rope_scaling"] = Value::Null;
    let no_tie: fn(&mut Value) = |c| drop(c.as_object_mut().unwrap().remove("tie_word_embeddings"));
    let no_kv: fn(&mut Value) = |c| drop(c.as_object_mut().unwrap().remove("num_key_value_heads"));
    let no_head_dim: fn(&mut Value) = |c| c["head_dim"] = Value::Null;
    for (name, spec) in [
        ("rope_parameters", Spec { edit: move_theta, ..spec }),
        ("no scaling", Spec { edit: null_scaling, ..spec }),
        ("presence of a head", Spec { edit: no_tie, head: Some(F32), ..spec }),
        ("absence of a head", Spec { edit: no_tie, ..spec }),
        ("no key and value heads", Spec { edit: no_kv, kv_heads: 4, ..spec }),
        ("no head_dim", Spec { edit: no_head_dim, ..spec }),
    ] {
        check(name, &spec, None);
    }
    // A tied model takes its embedding, also where a head lies beside it.
    let tie: fn(&mut Value) = |c| c["tie_word_embeddings"] = json!(true);
    let mut made = Spec { head: Some(F16), edit: tie, projections: F32, ..Spec::default() }.build(1);
    made.model.head = None;
    let diff = max_diff(&logits(&mut open(&made, None), usize::MAX), &made.model.forward(&PROMPT).logits);
    assert!(diff <= LIMIT, "tied beside a head: {diff}");
    let default_theta: fn(&mut Value) = |c| drop(c.as_object_mut().unwrap().remove("rope_theta"));
    for (arch, theta) in [(Arch::BITNET_HF, 500_000.0), (Arch::LLAMA_HF, 1e4), (Arch::ONE_BIT_LLM_HF, 1e4)] {
        let spec = Spec { arch, theta, edit: default_theta, projections: MULTIPLIER, ..Spec::default() };
        check(&format!("the base of {}", arch.name), &spec, None);
    }
}

#[test]
fn linear_and_yarn_scaling_in_either_form() {
    for (name, scaling, head_dim) in [
        ("linear", Scaling::Linear(4.0), 32),
        ("yarn", Scaling::Yarn([4.0, 64.0]), 64),
        // Its ramp begins before the first pair.
        ("yarn of a short context", Scaling::Yarn([16.0, 40.0]), 16),
    ] {
        let spec = Spec { scaling: Some(scaling), head_dim, projections: F32, ..Spec::default() };
        check(&format!("{name}, config.json"), &spec, None);
        check(&format!("{name}, GGUF"), &Spec { arch: Arch::LLAMA, ..spec }, None);
    }
}

#[test]
fn llama3_scaling_in_either_form() {
    // Wavelengths from 6 to 35000: some short, some on the ramp, some long.
    let scaling = Some(Scaling::Llama3([8.0, 1.0, 4.0, 64.0]));
    let spec = Spec { scaling, head_dim: 32, projections: F32, ..Spec::default() };
    let parameters: fn(&mut Value) = |c| {
        let mut scaling = c["rope_scaling"].take();
        scaling["rope_theta"] = c["rope_theta"].take();
        c["rope_parameters"] = scaling;
    };
    let old_key: fn(&mut Value) = |c| {
        let kind = c["rope_scaling"].as_object_mut().unwrap().remove("rope_type").unwrap();
        c["rope_scaling"]["type"] = kind;
    };
    check("rope_scaling", &spec, None);
    check("rope_scaling.type", &Spec { edit: old_key, ..spec }, None);
    check("rope_parameters", &Spec { edit: parameters, ..spec }, None);
    check("rope_freqs.weight", &Spec { arch: Arch::LLAMA, ..spec }, None);
    check("rope_freqs.weight, packed", &Spec { arch: Arch::LLAMA, projections: Store::I2_S, ..spec }, None);
}

#[test]
fn gguf_of_either_version_and_whatever_its_file_type_says() {
    const LIES: &[(&str, Key<'static>)] = &[
        ("general.file_type", Key::U32(7)),
        ("general.quantization_version", Key::U32(2)),
        ("general.name", Key::String("x")),
    ];
    for arch in [Arch::BITNET, Arch::BITNET_25, Arch::BITNET_B158, Arch::LLAMA, Arch::QWEN3] {
        for version in [2, 3] {
            let spec = Spec { arch, version, keys: LIES, projections: Store::I2_S, ..Spec::default() };
            check(&format!("{} version {version}", arch.name), &Spec { ffn: 128, ..spec }, None);
        }
    }
}

/// Rows of q and k are stored in another order in GGUF; the model is the same, to the last bit.
#[test]
fn a_llama_file_has_the_bits_of_its_hugging_face_twin() {
    let long = Scaling::Llama3([8.0, 1.0, 4.0, 1e9]);
    for (name, gguf, hf) in [
        ("F16", F16, F16),
        ("F32", F32, F32),
        ("trits in BF16", Store::Trits(Float::BF16), Store::Trits(Float::BF16)),
        ("packed", Store::I2_S, MULTIPLIER),
    ] {
        for (kv_heads, head_dim, scaling) in [(2, 16, None), (1, 48, None), (4, 32, Some(long))] {
            let spec = Spec { kv_heads, head_dim, scaling, ffn: 128, ..Spec::default() };
            let run = |arch, projections| {
                let made = Spec { arch, projections, ..spec }.build(5);
                logits(&mut open(&made, None), usize::MAX)
            };
            let (gguf, hf) = (run(Arch::LLAMA, gguf), run(Arch::LLAMA_HF, hf));
            assert!(gguf.iter().map(|v| v.to_bits()).eq(hf.iter().map(|v| v.to_bits())), "{name} {head_dim}");
        }
    }
}

#[test]
fn bits_do_not_depend_on_instruction_set_threads_or_chunks() {
    let wide = Spec { arch: Arch::LLAMA, hidden: 512, ffn: 512, heads: 8, head_dim: 64, ..Spec::default() };
    for (name, spec, act) in [
        ("groups, int8", bonsai(G64, None), ActivationPrecision::Int8),
        ("groups, floats", bonsai(G128, None), ActivationPrecision::Float),
        ("blocks", Spec { projections: Store::TQ2_0(Scales::Each), ..wide }, ActivationPrecision::Int8),
        ("SiLU", one_bit_llm(F16), ActivationPrecision::Int8),
        (
            "dense",
            Spec { projections: Store::Q4_0, embedding: Store::Q8_0, ..wide },
            ActivationPrecision::Int8,
        ),
    ] {
        let made = spec.build(3);
        for (kv, chunks) in [
            (KvType::F32, [usize::MAX, 1, 2, 5].as_slice()),
            (KvType::F16, &[usize::MAX, 5]),
            (KvType::BF16, &[usize::MAX, 5]),
        ] {
            let mut first = None;
            for isa in Isa::available() {
                for threads in [1, 2, 3] {
                    let cpu = CpuOptions { isa: Some(isa), threads: Some(threads), ..CpuOptions::default() };
                    let mut model = try_open(&made, cpu, options(Some(act), kv)).unwrap();
                    for chunk in chunks {
                        let bits: Vec<u32> = logits(&mut model, *chunk).iter().map(|v| v.to_bits()).collect();
                        let want = first.get_or_insert_with(|| bits.clone());
                        assert!(*want == bits, "{name} {kv:?} {isa} {threads} threads, steps of {chunk}");
                    }
                }
            }
        }
    }
}

/// BitNet-embedding in small: a norm before each projection, heads wider than `hidden / heads`.
#[test]
fn embedding_models_have_norms_before_their_projections() {
    let spec = Spec { head_dim: 32, ffn: 128, eps: 1e-6, embedding: F16, ..Spec::default() };
    let masters = Spec { projections: BF16, absmean: true, ..spec };
    let packed = Spec { projections: Store::I2_S, ..spec };
    let qwen3 = |spec| Spec { theta: 1e6, ..spec };
    check("Qwen3Model", &Spec { arch: Arch::QWEN3_EMBEDDING, ..qwen3(masters) }, None);
    check("qwen3, I2_S", &Spec { arch: Arch::QWEN3_EMBEDDING_GGUF, ..qwen3(packed) }, None);
    check(
        "qwen3, F16 masters",
        &Spec { arch: Arch::QWEN3_EMBEDDING_GGUF, projections: F16, ..qwen3(masters) },
        None,
    );
    check("Gemma3TextModel", &Spec { arch: Arch::GEMMA3_EMBEDDING, window: Some(4), ..masters }, None);
    check("gemma3, I2_S", &Spec { arch: Arch::GEMMA3_EMBEDDING_GGUF, ..packed }, None);
    let normed = |c: &mut Value| {
        c["quantization_config"]["use_rms_norm"] = json!(true);
        c["quantization_config"]["rms_norm_eps"] = json!(1e-6);
    };
    check("use_rms_norm", &Spec { arch: Arch::BITNET_HF_NORMED, edit: normed, ..masters }, None);
}

/// Windows of 4 in a prompt of 11: by the names of layers, by the rule of the architecture, and with rotations of their own.
#[test]
fn windows_hide_what_lies_before_them() {
    let spec = Spec { window: Some(4), layers: 3, projections: F32, ..Spec::default() };
    check(
        "Mistral",
        &Spec { arch: Arch::MISTRAL_HF, edit: |c| c["layer_types"] = Value::Null, ..spec },
        None,
    );
    check("Mistral in GGUF", &Spec { arch: Arch::LLAMA, ..spec }, None);
    check("Qwen3", &Spec { arch: Arch::QWEN3_HF, ..spec }, None);
    let behind_the_first = |c: &mut Value| {
        c["layer_types"] = Value::Null;
        c["max_window_layers"] = json!(1);
    };
    check("Qwen3 by number", &Spec { arch: Arch::QWEN3_HF, layers: 2, edit: behind_the_first, ..spec }, None);
    let gemma = Spec { arch: Arch::GEMMA3_HF, layers: 7, theta: 1e6, eps: 1e-6, ..spec };
    check("Gemma 3", &gemma, None);
    let nested = |c: &mut Value| {
        let (full, local) = (c["rope_theta"].take(), c["rope_local_base_freq"].take());
        c["rope_parameters"] = json!({"full_attention": {"rope_type": "default", "rope_theta": full},
            "sliding_attention": {"rope_type": "default", "rope_theta": local}});
    };
    check("Gemma 3 of transformers 5", &Spec { edit: nested, ..gemma }, None);
    check("gemma3", &Spec { arch: Arch::GEMMA3, ..gemma }, None);
    // Whatever a Llama's configuration says, its class in transformers has none.
    let llama = Spec { window: None, edit: |c| c["sliding_window"] = json!(4), ..spec };
    check("Llama", &llama, None);
}
