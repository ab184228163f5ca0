//! Models whose operations run on a device with memory of its own: every bit is the CPU's, whether there is an operation for something or not.

use super::*;
use crate::LoraConfig;
use crate::model::frozen::tests::{dense, frozen, lora};
use bitnet_testkit::training::Plain;

fn elsewhere() -> Ops {
    Ops::on(ops(None, 2), Box::new(Plain::new()))
}

/// Losses of some steps, and what they leave of all values.
fn steps(mut model: Model, optimizer: Optimizer) -> (Vec<u64>, Vec<f32>) {
    let batch = reference_batch();
    let mut buffers = vec![Array::from(vec![0.0; model.gradients.len()]); optimizer.buffers()];
    let losses = (0..3).map(|t| {
        model.quantize_for(t).unwrap();
        model.forget_gradients();
        model.set_dropout(1, Some(t));
        model.set_objectives(
            Objectives { sparsity: 0.01, size: 0.01, ..Objectives::default() },
            batch.ids.len(),
        );
        let loss = model.backward(&batch, batch.counted());
        model.through_quantizers();
        model.concentrate_weights();
        let scale = clip(model.gradient_norm(), Some(1.0));
        model.update(&optimizer, Rates { rate: 1e-2, decay: 0.1, scale, step: t + 1 }, &mut buffers);
        loss.to_bits()
    });
    let losses = losses.collect();
    model.ops.check().unwrap();
    (losses, model.values.to_vec())
}

const ADAM: Adam = Adam { betas: (0.9, 0.95), eps: 1e-8 };

#[test]
fn steps_have_the_same_bits_on_a_device() {
    let qat = Precision { ramp: Ramp { steps: 2, by_layer: true }, ..Precision::BITNET };
    let lsq = WeightQuantizer::Lsq { bits: Bits::Two, rows: true };
    let a48 =
        Precision { activations: Activations::A48, top_k: Some(0.5), hadamard: true, ..Precision::BITNET };
    let muon = Optimizer::Muon { momentum: 0.9, adam: ADAM, terms: Terms::F32 };
    let sgd = Optimizer::Sgd { momentum: 0.9, nesterov: true };
    for (precision, optimizer, recompute) in [
        (Precision::BITNET, Optimizer::AdamW(ADAM), false),
        (Precision { terms: Terms::Bf16, stochastic: Some(3), ..Precision::BITNET }, muon, true),
        (Precision::FLOAT, Optimizer::Adam(ADAM), true),
        (qat, sgd, false),
        (Precision { weights: lsq, ..Precision::BITNET }, Optimizer::AdamW(ADAM), false),
        (Precision { activations: Activations::Float, ..Precision::BITNET }, sgd, false),
        (a48, Optimizer::AdamW(ADAM), false),
    ] {
        let of = |ops: Ops| {
            let mut model = open("bitnet-online", self::ops(None, 2), precision, recompute);
            model.ops = ops;
            steps(model, optimizer)
        };
        assert!(of(elsewhere()) == of(ops(None, 2).into()), "{precision:?} {optimizer:?}");
    }
    for (architecture, kind) in [("Qwen3ForCausalLM", "qwen3"), ("LlamaForCausalLM", "llama")] {
        let of = |ops: Ops| {
            let precision = Precision { extra_norms: ExtraNorms::Projections, ..Precision::BITNET };
            let (mut model, _) = fresh(architecture, kind, precision);
            model.ops = ops;
            steps(model, Optimizer::AdamW(ADAM))
        };
        assert!(of(elsewhere()) == of(ops(None, 2).into()), "{architecture}");
    }
}

#[test]
fn adapters_beside_frozen_weights_have_the_same_bits_on_a_device() {
    let path = golden::fixtures().join("bitnet-online");
    let folder = tempfile::tempdir().unwrap();
    let floats = folder.path().join("dense");
    dense(&floats);
    let dora = LoraConfig { dora: true, ..lora() };
    let trits = LoraConfig { trits: true, dropout: 0.0, ..lora() };
    let float = Precision { activations: Activations::Float, ..Precision::BITNET };
    for (path, precision, lora) in [
        (&path, Precision::BITNET, lora()),
        (&path, float, dora.clone()),
        (&path, Precision::BITNET, dora),
        (&path, Precision::BITNET, trits),
        (&floats, Precision::FLOAT, lora()),
    ] {
        let of = |ops: Ops| {
            let mut model = frozen(path, precision, Some(&lora), false);
            model.ops = ops;
            model.begin_magnitudes();
            let start = model.parameters().start();
            for (i, v) in model.values[start..].iter_mut().enumerate().filter(|(_, v)| **v == 0.0) {
                *v = 0.05 * crate::random::normal(7, 1, i as u64) as f32;
            }
            steps(model, Optimizer::AdamW(ADAM))
        };
        assert!(of(elsewhere()) == of(ops(None, 2).into()), "{precision:?} {lora:?}");
    }
}

#[test]
fn lessons_have_the_same_bits_on_a_device() {
    let batch = reference_batch();
    let totals = Totals { counted: batch.counted(), tokens: batch.ids.len() };
    let how = Distillation {
        logits: 1.0,
        temperature: 2.0,
        relations: 1.0,
        layer: 1,
        teacher_layer: 1,
        heads: 2,
        cosine: true,
        causal: true,
        unrotated: true,
    };
    let of = |ops: Ops| {
        let mut model = open("bitnet-online", self::ops(None, 2), Precision::BITNET, false);
        let mut teacher = open("bitnet-online", self::ops(None, 2), Precision::FLOAT, false);
        (model.ops, teacher.ops) = (ops.clone(), ops);
        model.quantize().unwrap();
        let losses = model.backward_beside(&mut teacher, &batch, totals, &how);
        let likelihoods = model.log_likelihoods(&batch);
        (losses, likelihoods, model.gradients.to_vec(), model.next_logits(&batch.ids[..7]))
    };
    assert!(of(elsewhere()) == of(ops(None, 2).into()));
}

#[test]
fn a_device_without_memory_is_an_error_and_no_number() {
    for left in [0, 3, 40] {
        let cpu = ops(None, 2);
        let mut model = open("bitnet-online", Arc::clone(&cpu), Precision::BITNET, false);
        model.ops = Ops::on(cpu, Box::new(Plain::failing(left)));
        let batch = reference_batch();
        model.quantize().unwrap();
        let _ = model.backward(&batch, batch.counted());
        assert!(matches!(model.ops.check(), Err(bitnet_core::BackendError::OutOfMemory { .. })), "{left}");
    }
}

/// Of real devices, one sum has another order than the CPU's: losses and steps are near.
#[test]
fn steps_on_the_devices_here_are_near() {
    let devices = bitnet_inference::gpus();
    if devices.is_empty() {
        println!("not run: no device");
    }
    for device in devices.into_iter().map(|gpu| gpu.device) {
        for (precision, optimizer, near) in [
            (Precision::BITNET, Optimizer::AdamW(ADAM), 2e-3),
            (Precision { terms: Terms::Bf16, ..Precision::BITNET }, Optimizer::AdamW(ADAM), 3e-2),
            (Precision::FLOAT, Optimizer::Sgd { momentum: 0.9, nesterov: true }, 1e-4),
        ] {
            let of = |ops: Ops| {
                let mut model = open("bitnet-online", self::ops(None, 2), precision, false);
                model.ops = ops;
                steps(model, optimizer)
            };
            let (want, values) = of(ops(None, 2).into());
            let there = || Ops::on(ops(None, 2), device.training().unwrap().unwrap());
            let (got, own) = of(there());
            for (got, want) in got.iter().zip(&want) {
                let (got, want) = (f64::from_bits(*got), f64::from_bits(*want));
                assert!((got / want - 1.0).abs() < near, "{device} {precision:?}: {got} {want}");
            }
            let off: f64 = own.iter().zip(&values).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>().sqrt();
            println!("{device} {optimizer:?} {:?}: off by {:e}", precision.terms, off / length(&values));
            assert!(of(there()) == (got, own), "{device}: twice the same");
        }
    }
}
