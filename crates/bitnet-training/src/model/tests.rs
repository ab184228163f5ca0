use super::*;
use crate::{clip, norm};
use bitnet_core::KvType;
use bitnet_cpu::{CpuBackend, CpuOptions, Isa};
use bitnet_model::{Decoder, LoadOptions, ModelTensors, Rows, StepOutput};
use bitnet_testkit::golden;
use safetensors::SafeTensors;
use serde_json::Value;

fn ops(isa: Option<Isa>, threads: usize) -> Arc<CpuTraining> {
    Arc::new(CpuTraining::new(isa, Some(threads)).unwrap())
}

fn open(name: &str, ops: Arc<CpuTraining>, precision: Precision, recompute: bool) -> Model {
    let checkpoint = bitnet_formats::open(&golden::fixtures().join(name)).unwrap();
    let config = ModelConfig::read(&checkpoint).unwrap();
    let tensors = ModelTensors::new(&checkpoint, &config);
    let parameters = Parameters::new(&config, &tensors);
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

fn batch_of(file: &str) -> Batch {
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
    model.quantize();
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
    buffers: &mut [Vec<f32>],
) -> (f64, f64) {
    let total = batch.counted();
    model.quantize();
    model.gradients.fill(0.0);
    let loss = model.backward(batch, total) / total as f64;
    let ops = Arc::clone(model.ops());
    let norm = norm(&ops, &model.gradients);
    let rates = Rates { scale: clip(norm, max), ..rates };
    model.update(&optimizer, rates, buffers);
    (loss, norm)
}

fn zeros(model: &Model, optimizer: Optimizer) -> Vec<Vec<f32>> {
    vec![vec![0.0; model.values.len()]; optimizer.buffers()]
}

fn moved(model: &Model, start: &[f32]) -> Vec<f32> {
    model.values.iter().zip(start).map(|(now, then)| now - then).collect()
}

#[test]
fn one_step_of_each_optimizer_is_that_of_the_reference() {
    let runs = golden::json("training/optim.json");
    let adam = |b2| Optimizer::AdamW { betas: (0.9, b2), eps: 1e-8 };
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
    let precision = Precision { int8_activations: false, ..Precision::BITNET };
    let mut model = open("bitnet-online", ops(None, 2), precision, false);
    let (start, optimizer) = (model.values.clone(), Optimizer::AdamW { betas: (0.9, 0.95), eps: 1e-8 });
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
        model.quantize();
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
        model.quantize();
        let loss = model.backward(&batch, batch.counted());
        (loss.to_bits(), model.gradients)
    };
    for precision in [Precision::BITNET, Precision { ternary_weights: false, int8_activations: false }] {
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
        model.quantize();
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
    assert!(shares("llama-packed", false).iter().all(|share| *share == 0.0));
}

/// With nothing quantized the gradient is the slope of the loss.
#[test]
fn without_quantizers_the_gradient_is_the_slope() {
    for name in ["bitnet-online", "llama-packed"] {
        let precision = Precision { ternary_weights: false, int8_activations: false };
        let mut model = open(name, ops(None, 2), precision, false);
        let batch = reference_batch();
        let (total, start) = (batch.counted(), model.values.clone());
        model.backward(&batch, total);
        let along: Vec<f64> = (0..start.len()).map(|i| crate::random::normal(3, 1, i as u64)).collect();
        let scale = |i: usize| f64::from(start[i].abs()).max(1e-3) * along[i];
        let mut at = |h: f64| {
            model.values =
                start.iter().enumerate().map(|(i, v)| (f64::from(*v) + h * scale(i)) as f32).collect();
            model.loss(&batch)
        };
        // Small: the loss is bent so much that 1e-3 is 4 % off.
        let h = 1e-4;
        let slope = (at(h) - at(-h)) / (2.0 * h);
        let gradient: f64 = model.gradients.iter().enumerate().map(|(i, g)| f64::from(*g) * scale(i)).sum();
        assert!((slope - gradient).abs() <= 0.01 * slope.abs().max(0.1), "{name}: {slope} {gradient}");
    }
}

/// Gradients of adapters, which see inputs as they were, with the base frozen.
#[test]
fn gradients_of_adapters_are_those_of_the_reference() {
    const FILE: &str = "training/lora.safetensors";
    let reference = golden::json("training/lora.json");
    let targets: Vec<String> = serde_json::from_value(reference["targets"].clone()).unwrap();
    let lora = crate::LoraConfig { rank: 4, alpha: 8.0, rank_stabilized: false, targets: targets.clone() };
    let precision = Precision { int8_activations: false, ..Precision::BITNET };
    let base = open("bitnet-online", ops(None, 2), precision, false);
    let parameters = base.parameters.clone().with_adapters(&lora).unwrap();
    let values = parameters.begin(base.values.clone(), 1);
    let mut model =
        Model::new(ops(None, 2), base.config.clone(), parameters, values, precision, false).unwrap();
    assert_eq!(model.parameters().trained().len(), 2 * targets.len());
    // B is zero at first: the adapter adds nothing.
    let batch = batch_of("training/lora.safetensors");
    let mut base = base;
    base.quantize();
    model.quantize();
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
