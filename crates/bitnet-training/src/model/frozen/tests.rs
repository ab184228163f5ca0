use crate::model::tests::{batch_of, open, ops};
use crate::model::{Activations, Model, Precision};
use crate::source::Origin;
use crate::{Batch, Bits, LoraConfig, ModelSource, WeightQuantizer};
use bitnet_core::KvType;
use bitnet_cpu::{CpuBackend, CpuOptions, Terms};
use bitnet_model::{Decoder, LoadOptions, Rows, StepOutput};
use bitnet_testkit::golden;
use serde_json::json;
use std::path::Path;
use std::sync::Arc;

pub(in crate::model) fn lora() -> LoraConfig {
    let targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];
    let targets = targets.map(str::to_owned).to_vec();
    LoraConfig {
        rank: 3,
        alpha: 6.0,
        rank_stabilized: false,
        dora: false,
        trits: false,
        targets,
        dropout: 0.2,
    }
}

/// A model whose matrices stay as the file has them.
pub(in crate::model) fn frozen(
    path: &Path,
    precision: Precision,
    lora: Option<&LoraConfig>,
    recompute: bool,
) -> Model {
    let ops = ops(None, 2);
    let origin = Origin::frozen(&ops, path, Some(&precision)).unwrap();
    let (mut parameters, mut values) = (origin.parameters, origin.values);
    if let Some(lora) = lora {
        parameters = parameters.with_adapters(lora).unwrap();
        values = parameters.begin(values, 1);
    }
    let model = Model::new(ops, origin.config, parameters, values, precision, recompute).unwrap();
    model.with_frozen(origin.frozen)
}

/// The bits of a loss, and the gradients of adapters that add something and leave out some of their inputs.
fn adapted(mut model: Model) -> (u64, Vec<f32>) {
    let start = model.parameters().start();
    for (i, v) in model.values[start..].iter_mut().enumerate().filter(|(_, v)| **v == 0.0) {
        *v = 0.05 * crate::random::normal(7, 1, i as u64) as f32;
    }
    let batch = batch_of("training/grads.safetensors");
    model.quantize().unwrap();
    model.set_dropout(1, Some(3));
    let loss = model.backward(&batch, batch.counted());
    assert!(model.gradients.iter().filter(|g| **g != 0.0).count() > model.gradients.len() / 2);
    (loss.to_bits(), model.gradients.to_vec())
}

#[test]
fn gradients_beside_packed_trits_are_those_beside_masters() {
    let path = golden::fixtures().join("bitnet-online");
    let float = Precision { activations: Activations::Float, ..Precision::BITNET };
    let twn = Precision { weights: WeightQuantizer::Twn, ..Precision::BITNET };
    let int4 = Precision { activations: Activations::A48, top_k: Some(0.5), ..Precision::BITNET };
    for precision in [Precision::BITNET, float, twn, int4] {
        for (terms, recompute) in [(Terms::F32, false), (Terms::Bf16, true)] {
            let precision = Precision { terms, ..precision };
            let base = open("bitnet-online", ops(None, 2), precision, recompute);
            let parameters = base.parameters.clone().with_adapters(&lora()).unwrap();
            let values = parameters.begin(base.values.to_vec(), 1);
            let masters =
                Model::new(ops(None, 2), base.config.clone(), parameters, values, precision, recompute);
            let packed = frozen(&path, precision, Some(&lora()), recompute);
            assert!(packed.values.len() - packed.gradients.len() < 2000, "only norms have values");
            assert!(adapted(packed) == adapted(masters.unwrap()), "{precision:?}");
        }
    }
}

/// A dense model in a directory, of bf16, with more rows than are made floats at a time.
pub(in crate::model) fn dense(path: &Path) {
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": 32,
        "intermediate_size": 4200, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
        "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "tie_word_embeddings": false,
    });
    let tokenizer = golden::fixtures().join("bitnet-online");
    let fresh = ModelSource::Fresh { config, tokenizer, deviation: 0.1 };
    let origin = Origin::read(&fresh, Some(&Precision::FLOAT), 1).unwrap();
    let ops = ops(None, 2);
    let (parameters, values) = (&origin.parameters, &origin.values[..]);
    crate::export::Trained { ops: &ops, parameters, values, frozen: &[], beside: &origin.beside }
        .export(path, true)
        .unwrap();
}

/// Dense weights, of which more rows than are made floats at a time.
#[test]
fn gradients_beside_dense_weights_of_a_file_are_those_beside_masters() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("dense");
    dense(&path);
    let ops = ops(None, 2);
    for terms in [Terms::F32, Terms::Bf16] {
        let precision = Precision { terms, ..Precision::FLOAT };
        let read = Origin::read(&ModelSource::Checkpoint(path.clone()), Some(&precision), 1).unwrap();
        let parameters = read.parameters.with_adapters(&lora()).unwrap();
        let values = parameters.begin(read.values, 1);
        let masters = Model::new(Arc::clone(&ops), read.config, parameters, values, precision, false);
        let dense = frozen(&path, precision, Some(&lora()), false);
        assert!(adapted(dense) == adapted(masters.unwrap()), "{terms:?}");
    }
}

/// Every packing of the same model gives the same, and what inference gives.
#[test]
fn packed_files_are_trained_beside_as_they_are_run() {
    let backend =
        Arc::new(CpuBackend::new(CpuOptions { threads: Some(2), ..CpuOptions::default() }).unwrap());
    let ids: Vec<u32> = (0..40).map(|i| (i * 37 + 11) % 512).collect();
    let mut batch = Batch::default();
    batch.push(&[&ids[..], &[0]].concat(), |_| true);
    let mut first = None;
    for name in [
        "bitnet-packed-k256",
        "gguf/bitnet-packed-k256-i2_s.gguf",
        "gguf/bitnet-packed-k256-tq1_0.gguf",
        "gguf/bitnet-packed-k256-tq2_0.gguf",
        "llama-packed",
    ] {
        let path = golden::fixtures().join(name);
        let mut model = frozen(&path, Precision::BITNET, None, false);
        let options = LoadOptions { key: KvType::F32, value: KvType::F32, ..LoadOptions::default() };
        let checkpoint = bitnet_formats::open(&path).unwrap();
        let mut engine =
            bitnet_model::load(Arc::clone(&backend), &checkpoint, &options, &mut |_, _| {}).unwrap();
        let mut out = StepOutput { rows: Rows::All, keep_hidden: true, ..StepOutput::default() };
        engine.step(&ids, &mut out).unwrap();
        assert!(model.states(&batch) == &out.hidden.last().unwrap()[..], "{name}");
        if name.contains("k256") {
            let got = adapted(frozen(&path, Precision::BITNET, Some(&lora()), true));
            assert!(*first.get_or_insert_with(|| got.clone()) == got, "{name}");
        }
    }
}

/// Scales of rows come along.
#[test]
fn trits_with_a_scale_a_row_are_those_of_their_quantizer() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows");
    let weights = WeightQuantizer::Lsq { bits: Bits::Ternary, rows: true };
    let precision = Precision { weights, ..Precision::BITNET };
    let source = ModelSource::Checkpoint(golden::fixtures().join("bitnet-online"));
    let origin = Origin::read(&source, Some(&precision), 1).unwrap();
    let ops = ops(None, 2);
    let (parameters, mut values) = (origin.parameters, origin.values);
    for p in parameters.list().iter().filter(|p| p.part == crate::Part::Steps) {
        values[p.range.clone()].iter_mut().enumerate().for_each(|(i, s)| *s *= 0.8 + 0.01 * (i % 9) as f32);
    }
    let (beside, of) = (&origin.beside, &parameters);
    crate::export::Trained { ops: &ops, parameters: of, values: &values, frozen: &[], beside }
        .export(&path, false)
        .unwrap();
    let batch = batch_of("training/grads.safetensors");
    for terms in [Terms::F32, Terms::Bf16] {
        let precision = Precision { terms, ..precision };
        let parameters = parameters.clone().with_adapters(&lora()).unwrap();
        let adapters = parameters.begin(values.clone(), 1);
        let mut masters =
            Model::new(Arc::clone(&ops), origin.config.clone(), parameters, adapters, precision, false)
                .unwrap();
        masters.quantize().unwrap();
        let mut packed = frozen(&path, Precision { terms, ..Precision::BITNET }, Some(&lora()), false);
        assert!(packed.states(&batch) == masters.states(&batch));
        // Random numbers of adapters follow from their place, which is another behind learned steps.
        let (to, from) = (packed.parameters().start(), masters.parameters().start());
        let adapters = masters.values[from..].to_vec();
        packed.values[to..].copy_from_slice(&adapters);
        let gradients = |model: &mut Model| {
            model.backward(&batch, batch.counted());
            model.gradients.clone()
        };
        assert!(gradients(&mut packed) == gradients(&mut masters), "{terms:?}");
    }
}
