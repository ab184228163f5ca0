mod elsewhere;

use super::*;
use crate::source::Origin;
use crate::{Adam, Bits, ModelSource, WeightQuantizer, clip};
use bitnet_core::KvType;
use bitnet_cpu::{CpuBackend, CpuOptions, CpuTraining, Isa, Terms};
use bitnet_model::{Decoder, LoadOptions, ModelTensors, Rows, StepOutput};
use bitnet_testkit::golden;
use safetensors::SafeTensors;
use serde_json::Value;

pub(super) fn ops(isa: Option<Isa>, threads: usize) -> Arc<CpuTraining> {
    Arc::new(CpuTraining::new(isa, Some(threads)).unwrap())
}

pub(super) fn open(name: &str, ops: Arc<CpuTraining>, precision: Precision, recompute: bool) -> Model {
    let checkpoint = bitnet_formats::open(&golden::fixtures().join(name)).unwrap();
    let config = ModelConfig::read(&checkpoint).unwrap();
    let tensors = ModelTensors::new(&checkpoint, &config);
    let parameters = Parameters::new(&config, &tensors).with_quantizer(precision.weights);
    let values = parameters.read(&checkpoint, &tensors).unwrap();
    Model::new(ops, config.clone(), parameters, values, precision, recompute).unwrap()
}

fn online() -> Model {
    open("bitnet-online", ops(None, 2), Precision::BITNET, false)
}

/// Sixteen tokens with targets of their own; -100 does not count. Tokens that are not attended to are left out.
fn reference_batch() -> Batch {
    batch_of("training/grads.safetensors")
}

pub(super) fn batch_of(file: &str) -> Batch {
    let bytes = std::fs::read(golden::fixtures().join(file)).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let numbers = |name: &str| -> Vec<i64> {
        let data = file.tensor(name).unwrap().data().to_vec();
        data.as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b)).collect()
    };
    let (ids, targets, attended) = (numbers("input_ids"), numbers("targets"), numbers("attention_mask"));
    let mut batch = Batch::default();
    for row in 0..2 {
        let from = batch.ids.len();
        for i in (row * 16..(row + 1) * 16).filter(|i| attended[*i] != 0) {
            batch.ids.push(ids[i] as u32);
            batch.targets.push(targets[i].max(0) as u32);
            batch.counts.push(targets[i] >= 0);
        }
        batch.spans.push(from..batch.ids.len());
    }
    batch
}

/// The reference's pseudorandom signs.
fn sign(i: u32, p: u32) -> f64 {
    let mut x = i.wrapping_mul(0x9E37_79B9) ^ (p + 1).wrapping_mul(0x7FEB_352D) ^ 0x51ED_270B;
    x ^= x >> 16;
    x = x.wrapping_mul(0x85EB_CA6B);
    x ^= x >> 13;
    x = x.wrapping_mul(0xC2B2_AE35);
    x ^= x >> 16;
    if x >> 31 == 0 { 1.0 } else { -1.0 }
}

/// The reference's eight signed sums of a tensor, divided by the root of its size.
fn projections(values: &[f32]) -> Vec<f64> {
    let sum = |p| values.iter().enumerate().map(|(i, v)| sign(i as u32, p) * f64::from(*v)).sum::<f64>();
    (0..8).map(|p| sum(p) / (values.len() as f64).sqrt()).collect()
}

fn length(values: &[f32]) -> f64 {
    values.iter().map(|v| f64::from(*v) * f64::from(*v)).sum::<f64>().sqrt()
}

/// Compares a tensor with its statistics: norm and projections within `tolerance` of the norm.
fn compare(what: &str, got: &[f32], want: &Value, tolerance: f64) {
    let norm = want["norm"].as_f64().unwrap();
    let diff = (length(got) - norm).abs();
    assert!(diff <= tolerance * norm, "{what}: norm {} instead of {norm}", length(got));
    for (got, want) in projections(got).iter().zip(want["proj"].as_array().unwrap()) {
        let want = want.as_f64().unwrap();
        assert!((got - want).abs() <= tolerance * norm, "{what}: projection {got} instead of {want}");
    }
}

#[test]
fn loss_and_gradients_are_those_of_the_reference() {
    let reference = golden::json("training/grads.json");
    let (mut model, batch) = (online(), reference_batch());
    model.quantize().unwrap();
    let total = batch.counted();
    assert_eq!(total as u64, reference["n_targets"].as_u64().unwrap());
    let loss = model.backward(&batch, total) / total as f64;
    let want = reference["loss"].as_f64().unwrap();
    assert!((loss / want - 1.0).abs() <= 2e-5, "{loss} {want}");
    assert_eq!(model.loss(&batch), loss);
    for p in model.parameters().list() {
        let got = &model.gradients[p.range.clone()];
        compare(&p.name, got, &reference["tensors"][&p.name], 1e-4);
    }
    for name in reference["full"].as_array().unwrap() {
        let name = name.as_str().unwrap();
        let p = model.parameters().list().iter().find(|p| p.name == name).unwrap();
        let got = &model.gradients[p.range.clone()];
        let want = golden::floats("training/grads.safetensors", &format!("grad.{name}"));
        let largest = want.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        let diff: Vec<f32> = got.iter().zip(&want).map(|(a, b)| a - b).collect();
        assert!(length(&diff) <= 1e-4 * length(&want), "{name}: {} of {}", length(&diff), length(&want));
        assert!(golden::max_diff(got, &want) <= 2e-4 * largest, "{name}");
    }
}

/// With terms rounded to bf16, which have eight bits, gradients point where those of f32 do.
#[test]
fn bf16_products_change_gradients_by_their_rounding() {
    let batch = reference_batch();
    let run = |terms| {
        let mut model = open("bitnet-online", ops(None, 2), Precision { terms, ..Precision::BITNET }, false);
        model.quantize().unwrap();
        (model.backward(&batch, batch.counted()), model)
    };
    let ((loss, exact), (rounded_loss, rounded)) = (run(Terms::F32), run(Terms::Bf16));
    assert!((rounded_loss / loss - 1.0).abs() <= 1e-3, "{rounded_loss} {loss}");
    for p in exact.parameters().list() {
        let (got, want) = (&rounded.gradients[p.range.clone()], &exact.gradients[p.range.clone()]);
        let diff: Vec<f32> = got.iter().zip(want).map(|(a, b)| a - b).collect();
        assert!(length(&diff) <= 0.02 * length(want), "{}: {} of {}", p.name, length(&diff), length(want));
        assert!(p.slot.role.is_norm() || got != want, "{}", p.name);
    }
}

/// Batches of the reference's runs: each sequence has 17 ids.
fn run_batch(rows: &Value) -> Batch {
    let mut batch = Batch::default();
    for row in rows.as_array().unwrap() {
        batch.push(&golden::ids(row), |_| true);
    }
    batch
}

/// Loss and gradient norm of a step, which is taken.
fn step(
    model: &mut Model,
    optimizer: Optimizer,
    batch: &Batch,
    rates: Rates,
    max: Option<f64>,
    buffers: &mut [Array],
) -> (f64, f64) {
    let total = batch.counted();
    model.quantize().unwrap();
    model.forget_gradients();
    let loss = model.backward(batch, total) / total as f64;
    let norm = model.gradient_norm();
    let rates = Rates { scale: clip(norm, max), ..rates };
    model.update(&optimizer, rates, buffers);
    (loss, norm)
}

fn zeros(model: &Model, optimizer: Optimizer) -> Vec<Array> {
    vec![vec![0.0; model.values.len()].into(); optimizer.buffers()]
}

fn moved(model: &Model, start: &[f32]) -> Vec<f32> {
    model.values.iter().zip(start).map(|(now, then)| now - then).collect()
}

#[test]
fn one_step_of_each_optimizer_is_that_of_the_reference() {
    let runs = golden::json("training/optim.json");
    let adam = |b2| Optimizer::AdamW(Adam { betas: (0.9, b2), eps: 1e-8 });
    for (name, optimizer, max, decay, tolerance) in [
        ("adamw_strict", adam(0.95), Some(1.0), 0.1, 3e-3),
        ("adam_strict", adam(0.999), None, 0.0, 3e-3),
        ("sgd_strict", Optimizer::Sgd { momentum: 0.9, nesterov: false }, None, 0.0, 3e-2),
    ] {
        let run = &runs["runs"][name];
        let (mut model, batch) = (online(), reference_batch());
        let start = model.values.clone();
        let rates = Rates { rate: run["lr"][0].as_f64().unwrap(), decay, scale: 1.0, step: 1 };
        let mut buffers = zeros(&model, optimizer);
        let (loss, norm) = step(&mut model, optimizer, &batch, rates, max, &mut buffers);
        let near = |got: f64, key: &str, tolerance: f64| {
            let want = run[key][0].as_f64().unwrap();
            assert!((got / want - 1.0).abs() <= tolerance, "{name} {key}: {got} {want}");
        };
        near(loss, "loss", 2e-5);
        near(norm, "grad_norm", 1e-4);
        let moved = moved(&model, &start);
        for p in model.parameters().list() {
            compare(
                &format!("{name} {}", p.name),
                &moved[p.range.clone()],
                &run["delta"]["1"][&p.name],
                tolerance,
            );
        }
    }
}

#[test]
fn twenty_steps_with_float_activations_are_those_of_the_reference() {
    let reference = golden::json("training/optim.json");
    let run = &reference["runs"]["adamw_weights_only"];
    let precision = Precision { activations: Activations::Float, ..Precision::BITNET };
    let mut model = open("bitnet-online", ops(None, 2), precision, false);
    let (start, optimizer) = (model.values.clone(), Optimizer::AdamW(Adam { betas: (0.9, 0.95), eps: 1e-8 }));
    let mut buffers = zeros(&model, optimizer);
    for t in 0..20 {
        let batch = run_batch(&reference["batches"][t]);
        let rates =
            Rates { rate: run["lr"][t].as_f64().unwrap(), decay: 0.1, scale: 1.0, step: t as u64 + 1 };
        let (loss, norm) = step(&mut model, optimizer, &batch, rates, Some(1.0), &mut buffers);
        let near = |got: f64, key: &str, tolerance: f64| {
            let want = run[key][t].as_f64().unwrap();
            assert!((got / want - 1.0).abs() <= tolerance, "step {t} {key}: {got} {want}");
        };
        near(loss, "loss", 2e-4);
        near(norm, "grad_norm", 2e-3);
        if let (Some(delta), tolerance) =
            (run["delta"].get(format!("{}", t + 1)), if t == 0 { 1.5e-2 } else { 3e-3 })
        {
            let moved = moved(&model, &start);
            for p in model.parameters().list() {
                compare(&format!("step {t} {}", p.name), &moved[p.range.clone()], &delta[&p.name], tolerance);
            }
        }
    }
}

/// What is trained is what will be run: states behind the final norm have the same bits.
#[test]
fn states_are_those_of_inference() {
    let backend =
        Arc::new(CpuBackend::new(CpuOptions { threads: Some(2), ..CpuOptions::default() }).unwrap());
    for name in ["bitnet-online", "llama-packed"] {
        let checkpoint = bitnet_formats::open(&golden::fixtures().join(name)).unwrap();
        let options = LoadOptions { key: KvType::F32, value: KvType::F32, ..LoadOptions::default() };
        let mut engine =
            bitnet_model::load(Arc::clone(&backend), &checkpoint, &options, &mut |_, _| {}).unwrap();
        let mut model = open(name, ops(None, 2), Precision::BITNET, false);
        model.quantize().unwrap();
        let ids: Vec<u32> = (0..300).map(|i| (i * 37 + 11) % 512).collect();
        let mut batch = Batch::default();
        batch.push(&[&ids[..], &[0]].concat(), |_| true);
        batch.push(&[1, 2, 3], |_| true);
        let mut out = StepOutput { rows: Rows::All, keep_hidden: true, ..StepOutput::default() };
        engine.step(&ids, &mut out).unwrap();
        let (got, want) = (model.states(&batch), out.hidden.last().unwrap());
        if name == "bitnet-online" {
            assert_eq!(got[..want.len()], want[..]);
        } else {
            // Masters were made of trits and their scale, which comes back rounded.
            let largest = want.iter().fold(0.0f32, |m, v| m.max(v.abs()));
            assert!(golden::max_diff(&got[..want.len()], want) <= 0.1 * largest);
        }
    }
}

#[test]
fn threads_instructions_and_kept_states_change_no_bit() {
    let mut batch = Batch::default();
    let ids: Vec<u32> = (0..290).map(|i| (i * i * 7 + 3) % 512).collect();
    batch.push(&ids, |i| i % 5 != 0);
    batch.push(&ids[..20], |_| true);
    let run = |isa, threads, recompute, precision| {
        let mut model = open("bitnet-online", ops(isa, threads), precision, recompute);
        model.quantize_for(3).unwrap();
        let loss = model.backward(&batch, batch.counted());
        model.through_quantizers();
        (loss.to_bits(), model.gradients)
    };
    let lsq = Precision {
        weights: WeightQuantizer::Lsq { bits: Bits::Three, rows: false },
        stochastic: Some(1),
        activations: Activations::Int4,
        hadamard: true,
        ramp: Ramp { steps: 4, by_layer: true },
        ..Precision::BITNET
    };
    let seq = Precision {
        weights: WeightQuantizer::Seq { bits: Bits::Ternary },
        activations: Activations::A48,
        top_k: Some(0.5),
        ..Precision::BITNET
    };
    let bf16 = Precision { terms: Terms::Bf16, ..Precision::BITNET };
    for precision in [Precision::BITNET, bf16, Precision::FLOAT, lsq, seq] {
        let want = run(None, 1, false, precision);
        assert!(want.1.iter().all(|g| g.is_finite()));
        assert!(run(None, 3, false, precision) == want, "threads");
        assert!(run(None, 2, true, precision) == want, "states that are computed again");
        for isa in Isa::available() {
            assert!(run(Some(isa), 2, false, precision) == want, "{isa}");
        }
    }
}

#[test]
fn zeros_are_counted_layer_by_layer() {
    let batch = reference_batch();
    let shares = |name, recompute| {
        let precision = Precision::BITNET;
        let mut model = open(name, ops(None, 2), precision, recompute);
        model.quantize().unwrap();
        let loss = model.loss(&batch);
        let shares = model.sparsity(&batch);
        assert_eq!(model.loss(&batch), loss);
        assert_eq!(shares.len(), model.config().layers);
        shares
    };
    let relu = shares("bitnet-online", false);
    assert_eq!(relu, shares("bitnet-online", true));
    // Gates of random weights are closed half of the time.
    assert!(relu.iter().all(|share| (0.3..0.7).contains(share)), "{relu:?}");
    // Without such gates a zero is an accident of integers.
    assert!(shares("llama-packed", false).iter().all(|share| *share < 0.05));
}

/// How much a value changes where all parameters do, each by about as much as it is, and how much it should by the gradients.
pub(crate) fn slope_and_gradient(model: &mut Model, value: impl Fn(&mut Model) -> f64) -> (f64, f64) {
    let start = model.values.clone();
    let along = |i: usize| f64::from(start[i].abs()).max(1e-3) * crate::random::normal(3, 1, i as u64);
    let gradient = model.gradients.iter().enumerate().map(|(i, g)| f64::from(*g) * along(i)).sum();
    let mut at = |h: f64| {
        model.values = start.iter().enumerate().map(|(i, v)| (f64::from(*v) + h * along(i)) as f32).collect();
        value(model)
    };
    // Small: the loss is bent so much that 1e-3 is 4 % off, and magnitudes have a kink where a factor changes its sign.
    let h = 1e-4;
    ((at(h) - at(-h)) / (2.0 * h), gradient)
}

/// With nothing quantized the gradient is the slope of the loss.
#[test]
fn without_quantizers_the_gradient_is_the_slope() {
    for name in ["bitnet-online", "llama-packed"] {
        let mut model = open(name, ops(None, 2), Precision::FLOAT, false);
        let batch = reference_batch();
        model.backward(&batch, batch.counted());
        let (slope, gradient) = slope_and_gradient(&mut model, |model| model.loss(&batch));
        assert!((slope - gradient).abs() <= 0.01 * slope.abs().max(0.1), "{name}: {slope} {gradient}");
    }
}

/// Gradients of adapters, which see inputs as they were, with the base frozen.
#[test]
fn gradients_of_adapters_are_those_of_the_reference() {
    const FILE: &str = "training/lora.safetensors";
    let reference = golden::json("training/lora.json");
    let targets: Vec<String> = serde_json::from_value(reference["targets"].clone()).unwrap();
    let lora = crate::LoraConfig {
        rank: 4,
        alpha: 8.0,
        rank_stabilized: false,
        dora: false,
        trits: false,
        targets: targets.clone(),
        dropout: 0.0,
    };
    let precision = Precision { activations: Activations::Float, ..Precision::BITNET };
    let base = open("bitnet-online", ops(None, 2), precision, false);
    let parameters = base.parameters.clone().with_adapters(&lora).unwrap();
    let values = parameters.begin(base.values.to_vec(), 1);
    let mut model =
        Model::new(ops(None, 2), base.config.clone(), parameters, values, precision, false).unwrap();
    assert_eq!(model.parameters().trained().len(), 2 * targets.len());
    // B is zero at first: the adapter adds nothing.
    let batch = batch_of("training/lora.safetensors");
    let mut base = base;
    base.quantize().unwrap();
    model.quantize().unwrap();
    assert_eq!(base.loss(&batch), model.loss(&batch));
    let parts: Vec<_> = model.parameters().trained().to_vec();
    let side = |name: &str| {
        let module = name.trim_start_matches("base_model.model.");
        module.replace(".lora_A.weight", ".A").replace(".lora_B.weight", ".B")
    };
    for p in &parts {
        let name = side(&p.name);
        let values = match name.ends_with(".A") {
            true => golden::floats(FILE, &format!("init.{name}")),
            false => (0..p.range.len()).map(|i| 0.05 * sign(i as u32, 0) as f32).collect(),
        };
        model.values[p.range.clone()].copy_from_slice(&values);
    }
    let total = batch.counted();
    let loss = model.backward(&batch, total) / total as f64;
    let want = &reference["gradient_without_int8"];
    assert!((loss / want["loss"].as_f64().unwrap() - 1.0).abs() <= 1e-4, "{loss}");
    for p in &parts {
        let name = side(&p.name);
        compare(&name, &model.gradients[model.parameters().of_trained(p)], &want["grad"][&name], 1e-4);
    }
}

/// Every quantizer of three values or two is run as it was trained, exported in bf16 too: states have the same bits.
#[test]
fn exported_trits_are_run_as_they_were_trained() {
    let backend =
        Arc::new(CpuBackend::new(CpuOptions { threads: Some(2), ..CpuOptions::default() }).unwrap());
    let ids: Vec<u32> = (0..40).map(|i| (i * 37 + 11) % 512).collect();
    let mut batch = Batch::default();
    batch.push(&[&ids[..], &[0]].concat(), |_| true);
    let lsq = |rows| WeightQuantizer::Lsq { bits: Bits::Ternary, rows };
    let seq = |bits| WeightQuantizer::Seq { bits };
    for (weights, bf16) in [
        (WeightQuantizer::Absmean, false),
        (WeightQuantizer::Absmedian, true),
        (WeightQuantizer::Twn, true),
        (lsq(false), true),
        (lsq(true), false),
        (seq(Bits::Ternary), true),
        (seq(Bits::One), true),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model");
        let precision = Precision { weights, ..Precision::BITNET };
        let source = ModelSource::Checkpoint(golden::fixtures().join("bitnet-online"));
        let origin = Origin::read(&source, Some(&precision), 1).unwrap();
        let (parameters, mut values) = (origin.parameters, origin.values);
        // Steps that are not what they began with; all else is exact in bf16.
        for p in parameters.list().iter().filter(|p| p.part == crate::Part::Steps) {
            values[p.range.clone()]
                .iter_mut()
                .enumerate()
                .for_each(|(i, s)| *s *= 0.8 + 0.01 * (i % 9) as f32);
        }
        let ops = ops(None, 2);
        let trained = crate::export::Trained {
            ops: &ops,
            parameters: &parameters,
            values: &values,
            frozen: &[],
            beside: &origin.beside,
        };
        trained.export(&path, bf16).unwrap();
        let mut model =
            Model::new(Arc::clone(&ops), origin.config, parameters, values, precision, false).unwrap();
        model.quantize().unwrap();
        let checkpoint = bitnet_formats::open(&path).unwrap();
        let options = LoadOptions { key: KvType::F32, value: KvType::F32, ..LoadOptions::default() };
        let mut engine =
            bitnet_model::load(Arc::clone(&backend), &checkpoint, &options, &mut |_, _| {}).unwrap();
        let mut out = StepOutput { rows: Rows::All, keep_hidden: true, ..StepOutput::default() };
        engine.step(&ids, &mut out).unwrap();
        assert!(model.states(&batch) == &out.hidden.last().unwrap()[..], "{weights:?}");
    }
}

/// Weights of more levels are exported as what they are worth, and a model with a Hadamard transform is refused by the engine.
#[test]
fn what_the_engine_has_no_products_for_is_dense_or_refused() {
    let folder = tempfile::tempdir().unwrap();
    let export = |name: &str, path: &std::path::Path, precision: &Precision| {
        let source = ModelSource::Checkpoint(golden::fixtures().join(name));
        let origin = Origin::read(&source, Some(precision), 1)?;
        let ops = ops(None, 2);
        let (parameters, values) = (&origin.parameters, &origin.values[..]);
        crate::export::Trained { ops: &ops, parameters, values, frozen: &[], beside: &origin.beside }
            .export(path, false)?;
        Model::new(ops, origin.config, origin.parameters, origin.values, *precision, false)
    };
    let load = |path: &std::path::Path| {
        let backend = CpuBackend::new(CpuOptions { threads: Some(2), ..CpuOptions::default() }).unwrap();
        let options = LoadOptions { key: KvType::F32, value: KvType::F32, ..LoadOptions::default() };
        let checkpoint = bitnet_formats::open(path).unwrap();
        bitnet_model::load(Arc::new(backend), &checkpoint, &options, &mut |_, _| {})
    };
    let weights = WeightQuantizer::Lsq { bits: Bits::Four, rows: true };
    let four = Precision { weights, ..Precision::FLOAT };
    let ids: Vec<u32> = (0..40).map(|i| (i * 37 + 11) % 512).collect();
    let mut batch = Batch::default();
    batch.push(&[&ids[..], &[0]].concat(), |_| true);
    // A body that is ternary where nothing else is said, and one that is not.
    for name in ["bitnet-online", "llama-packed"] {
        let path = folder.path().join(name);
        let mut model = export(name, &path, &four).unwrap();
        model.quantize().unwrap();
        let mut out = StepOutput { rows: Rows::All, keep_hidden: true, ..StepOutput::default() };
        let mut engine = load(&path).unwrap();
        assert_eq!(engine.report().ternary_weights, 0);
        engine.step(&ids, &mut out).unwrap();
        let want = out.hidden.last().unwrap();
        let largest = want.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        assert!(golden::max_diff(model.states(&batch), want) <= 1e-4 * largest, "{name}");
    }

    let turned = Precision { hadamard: true, ..Precision::BITNET };
    let path = folder.path().join("turned");
    export("bitnet-online", &path, &turned).unwrap();
    let refused = load(&path).err().unwrap().to_string();
    assert!(refused.contains("quantization_config.hadamard"), "{refused}");
    // It can be gone on with, by those who turn inputs too.
    let source = ModelSource::Checkpoint(path);
    assert!(Origin::read(&source, Some(&turned), 1).is_ok());
    assert!(Origin::read(&source, Some(&Precision::BITNET), 1).is_err());
}

/// With what rounding adds held fixed, the gradient of the whole model is the slope of its loss, through inputs that are turned, too.
#[test]
fn the_gradient_behind_a_hadamard_transform_is_the_slope() {
    let precision = Precision { hadamard: true, ..Precision::FLOAT };
    let mut model = open("bitnet-online", ops(None, 2), precision, false);
    let batch = reference_batch();
    model.backward(&batch, batch.counted());
    let (slope, gradient) = slope_and_gradient(&mut model, |model| model.loss(&batch));
    assert!((slope - gradient).abs() <= 0.01 * slope.abs().max(0.1), "{slope} {gradient}");
}

/// The gradient of concentrations, through the layers below and from masters, is their slope.
#[test]
fn the_gradient_of_concentrations_is_the_slope() {
    let batch = reference_batch();
    let tokens = batch.ids.len();
    let precision = Precision { activations: Activations::Float, ..Precision::FLOAT };
    for (size, sparsity) in [(1.0, 0.0), (0.0, 1.0)] {
        let mut model = open("bitnet-online", ops(None, 2), precision, false);
        let objectives = Objectives { loss: 0.0, size, sparsity };
        let value = |model: &mut Model| {
            model.gradients.fill(0.0);
            model.set_objectives(objectives, tokens);
            model.backward(&batch, batch.counted());
            let weights = model.concentrate_weights();
            size * weights + sparsity * model.activation_concentration()
        };
        let found = value(&mut model);
        assert!((0.1..1.0).contains(&found), "{found}");
        let (slope, gradient) = slope_and_gradient(&mut model, value);
        assert!((slope - gradient).abs() <= 0.03 * slope.abs(), "{size} {sparsity}: {slope} {gradient}");
    }
}

#[test]
fn a_ramp_ends_at_full_strength() {
    let together = Ramp { steps: 4, by_layer: false };
    assert_eq!([0, 1, 4, 9].map(|t| together.strength(t, 1, 2)), [0.0, 0.25, 1.0, 1.0]);
    let layers = Ramp { steps: 4, by_layer: true };
    assert_eq!([0, 1, 2, 3, 4].map(|t| layers.strength(t, 0, 2)), [0.0, 0.5, 1.0, 1.0, 1.0]);
    assert_eq!([0, 1, 2, 3, 4].map(|t| layers.strength(t, 1, 2)), [0.0, 0.0, 0.0, 0.5, 1.0]);
    assert_eq!(Ramp::default().strength(0, 0, 1), 1.0);
}

/// A fresh model whose norms are no longer 1.
fn fresh(architecture: &str, model_type: &str, precision: Precision) -> (Model, crate::source::Beside) {
    let config = serde_json::json!({
        "architectures": [architecture], "model_type": model_type, "hidden_act": "silu", "hidden_size": 64,
        "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32,
        "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "tie_word_embeddings": true,
    });
    let tokenizer = golden::fixtures().join("bitnet-online");
    let origin =
        Origin::read(&ModelSource::Fresh { config, tokenizer, deviation: 0.2 }, Some(&precision), 1).unwrap();
    let mut values = origin.values;
    for (i, p) in origin.parameters.list().iter().enumerate().filter(|(_, p)| p.slot.role.is_norm()) {
        for (j, v) in values[p.range.clone()].iter_mut().enumerate() {
            *v = 1.0 + 0.3 * crate::random::normal(8, i as u64, j as u64) as f32;
        }
    }
    let model = Model::new(ops(None, 2), origin.config, origin.parameters, values, precision, false).unwrap();
    (model, origin.beside)
}

const BODIES: [(&str, &str, ExtraNorms); 4] = [
    ("Qwen3ForCausalLM", "qwen3", ExtraNorms::None),
    ("Qwen3ForCausalLM", "qwen3", ExtraNorms::Auto),
    ("LlamaForCausalLM", "llama", ExtraNorms::Auto),
    ("LlamaForCausalLM", "llama", ExtraNorms::Projections),
];

/// Norms of heads, of projections' own inputs and inside blocks: the gradient is the slope, and states that are computed again change no bit.
#[test]
fn gradients_through_other_norms_are_slopes() {
    for (architecture, model_type, extra_norms) in BODIES {
        let (mut model, _) = fresh(architecture, model_type, Precision { extra_norms, ..Precision::FLOAT });
        let batch = reference_batch();
        let (total, start) = (batch.counted(), model.values.clone());
        model.backward(&batch, total);
        let gradients = model.gradients.clone();
        model.recompute = true;
        model.gradients.fill(0.0);
        model.backward(&batch, total);
        assert!(gradients == model.gradients, "{architecture} {extra_norms:?}");
        // Norms by themselves, and all.
        for only_norms in [true, false] {
            let of: Vec<bool> = model
                .parameters()
                .list()
                .iter()
                .flat_map(|p| std::iter::repeat_n(p.slot.role.is_norm() || !only_norms, p.range.len()))
                .collect();
            let along = |i: usize| if of[i] { crate::random::normal(3, 1, i as u64) } else { 0.0 };
            let scale = |i: usize| f64::from(start[i].abs()).max(1e-3) * along(i);
            let mut at = |h: f64| {
                model.values =
                    start.iter().enumerate().map(|(i, v)| (f64::from(*v) + h * scale(i)) as f32).collect();
                model.loss(&batch)
            };
            let h = 1e-3;
            let slope = (at(h) - at(-h)) / (2.0 * h);
            let gradient: f64 = gradients.iter().enumerate().map(|(i, g)| f64::from(*g) * scale(i)).sum();
            assert!(
                (slope - gradient).abs() <= 0.01 * slope.abs().max(0.1),
                "{architecture} {extra_norms:?} {only_norms}: {slope} {gradient}"
            );
        }
    }
}

#[test]
fn bodies_with_other_norms_are_run_as_they_were_trained() {
    let backend =
        Arc::new(CpuBackend::new(CpuOptions { threads: Some(2), ..CpuOptions::default() }).unwrap());
    let ids: Vec<u32> = (0..40).map(|i| (i * 37 + 11) % 512).collect();
    let mut batch = Batch::default();
    batch.push(&[&ids[..], &[0]].concat(), |_| true);
    for (architecture, model_type, extra_norms) in BODIES {
        let (mut model, beside) =
            fresh(architecture, model_type, Precision { extra_norms, ..Precision::BITNET });
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model");
        let trained = crate::export::Trained {
            ops: model.ops(),
            parameters: model.parameters(),
            values: &model.values,
            frozen: &[],
            beside: &beside,
        };
        trained.export(&path, false).unwrap();
        let checkpoint = bitnet_formats::open(&path).unwrap();
        let options = LoadOptions { key: KvType::F32, value: KvType::F32, ..LoadOptions::default() };
        let mut engine =
            bitnet_model::load(Arc::clone(&backend), &checkpoint, &options, &mut |_, _| {}).unwrap();
        let mut out = StepOutput { rows: Rows::All, keep_hidden: true, ..StepOutput::default() };
        engine.step(&ids, &mut out).unwrap();
        model.quantize().unwrap();
        let want = out.hidden.last().unwrap();
        assert!(model.states(&batch) == &want[..], "{architecture} {extra_norms:?}");
        // Once more from what was written: nothing is added to norms that are there.
        let precision = Precision { extra_norms, ..Precision::BITNET };
        let again = Origin::read(&ModelSource::Checkpoint(path), Some(&precision), 1).unwrap();
        assert!(again.values[..] == model.values[..], "{architecture} {extra_norms:?}");
    }
    let precision = Precision { extra_norms: ExtraNorms::Blocks, ..Precision::BITNET };
    let (model, beside) = fresh("Qwen3ForCausalLM", "qwen3", Precision::BITNET);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model");
    let (parameters, values) = (model.parameters(), &model.values[..]);
    crate::export::Trained { ops: model.ops(), parameters, values, frozen: &[], beside: &beside }
        .export(&path, false)
        .unwrap();
    let refused =
        Origin::read(&ModelSource::Checkpoint(path), Some(&precision), 1).err().unwrap().to_string();
    assert!(refused.contains("Qwen3ForCausalLM has no form with norms inside its blocks"), "{refused}");
}

/// Each of the reference's losses and its gradient by itself: what it adds to the gradient of the cross-entropy.
#[test]
fn lessons_of_a_teacher_are_those_of_the_reference() {
    const FILE: &str = "training/distill.safetensors";
    let reference = golden::json("training/distill.json");
    let batch = batch_of(FILE);
    let totals = Totals { counted: batch.counted(), tokens: batch.ids.len() };
    assert_eq!(totals.tokens as u64, reference["n_attended"].as_u64().unwrap());
    let run = |how: Option<&Distillation>, isa, threads| {
        let mut model = open("bitnet-online", ops(isa, threads), Precision::BITNET, threads == 3);
        model.quantize().unwrap();
        let mut teacher = open("bitnet-online", ops(isa, threads), Precision::FLOAT, false);
        let losses = match how {
            None => Losses { targets: model.backward(&batch, totals.counted), ..Losses::default() },
            Some(how) => model.backward_beside(&mut teacher, &batch, totals, how),
        };
        (losses, model)
    };
    let plain = run(None, None, 2);
    let none = Distillation {
        logits: 0.0,
        temperature: reference["temperature"].as_f64().unwrap(),
        relations: 0.0,
        layer: 1,
        teacher_layer: 1,
        heads: 2,
        cosine: false,
        causal: false,
        unrotated: false,
    };
    for (name, how) in [
        ("kl", Distillation { logits: 1.0, ..none }),
        ("ad", Distillation { relations: 1.0, ..none }),
        ("ad_cosine", Distillation { relations: 1.0, cosine: true, ..none }),
        ("ad_causal", Distillation { relations: 1.0, causal: true, ..none }),
        ("ad_pre_rope", Distillation { relations: 1.0, unrotated: true, ..none }),
    ] {
        let want = &reference["losses"][name];
        let (losses, model) = run(Some(&how), None, 2);
        assert_eq!(losses.targets, plain.0.targets);
        let got = losses.logits / totals.counted as f64 + losses.relations / totals.tokens as f64;
        let value = want["value"].as_f64().unwrap();
        assert!((got / value - 1.0).abs() <= 1e-4, "{name}: {got} {value}");
        for p in model.parameters().list() {
            let added: Vec<f32> = model.gradients[p.range.clone()]
                .iter()
                .zip(&plain.1.gradients[p.range.clone()])
                .map(|(all, plain)| all - plain)
                .collect();
            let zero = want["zero_gradient"].as_array().unwrap().iter().any(|z| *z == p.name);
            if zero {
                assert!(added.iter().all(|g| *g == 0.0), "{name} {}", p.name);
            } else {
                compare(&format!("{name} {}", p.name), &added, &want["grad"][&p.name], 3e-4);
            }
        }
        let all = Distillation { logits: 3.0, relations: 2.0, ..how };
        let (want, one) = run(Some(&all), None, 1);
        for (isa, threads) in Isa::available().into_iter().map(|isa| (Some(isa), 2)).chain([(None, 3)]) {
            let (losses, model) = run(Some(&all), isa, threads);
            assert!(losses == want && model.gradients == one.gradients, "{isa:?} {threads}");
        }
    }
}

/// With what is left out held fixed, the gradient of adapters and of what lies before them is the slope; none is left out afterwards.
#[test]
fn the_gradient_of_adapters_with_dropout_is_the_slope() {
    let targets = vec!["*layers.0.*_proj".to_owned(), "up_proj".to_owned()];
    let lora = crate::LoraConfig {
        rank: 3,
        alpha: 6.0,
        rank_stabilized: false,
        dora: false,
        trits: false,
        targets,
        dropout: 0.4,
    };
    let base = open("llama-packed", ops(None, 2), Precision::FLOAT, false);
    let parameters = base.parameters.clone().with_adapters(&lora).unwrap();
    assert_eq!(parameters.trained().len(), 2 * 8);
    assert!(parameters.adapter().unwrap().targets.contains(&"model.layers.1.mlp.up_proj".to_owned()));
    let mut values = parameters.begin(base.values.to_vec(), 1);
    let first = parameters.start();
    for (i, v) in values[first..].iter_mut().enumerate() {
        *v += 0.05 * crate::random::normal(2, 2, i as u64) as f32;
    }
    let mut model =
        Model::new(ops(None, 2), base.config.clone(), parameters, values, Precision::FLOAT, true).unwrap();
    let (batch, start) = (reference_batch(), model.values.clone());
    model.set_dropout(7, Some(3));
    let with = model.backward(&batch, batch.counted()) / batch.counted() as f64;
    let scale = |i: usize| 0.05 * crate::random::normal(3, 1, i as u64);
    let mut at = |h: f64| {
        for (i, v) in start[first..].iter().enumerate() {
            model.values[first + i] = (f64::from(*v) + h * scale(i)) as f32;
        }
        model.loss(&batch)
    };
    let h = 1e-2;
    let slope = (at(h) - at(-h)) / (2.0 * h);
    assert_eq!(at(0.0), with);
    model.set_dropout(7, Some(4));
    assert_ne!(model.loss(&batch), with);
    model.set_dropout(7, None);
    assert_ne!(model.loss(&batch), with);
    let gradient: f64 = model.gradients.iter().enumerate().map(|(i, g)| f64::from(*g) * scale(i)).sum();
    assert!((slope - gradient).abs() <= 0.01 * slope.abs().max(0.1), "{slope} {gradient}");
}
