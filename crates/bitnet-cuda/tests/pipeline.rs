//! Models whose layers lie on two GPUs, or on one that is two: `scripts/test-cuda-shim.sh` has two of them.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod common;

use bitnet_core::{Backend, KvType};
use bitnet_cpu::{CpuBackend, CpuOptions};
use bitnet_cuda::{CudaBackend, devices};
use bitnet_model::{
    Decoder, LoadOptions, ModelConfig, Pipeline, Rows, Span, Stage, StepOutput, load, load_stage,
};
use bitnet_testkit::golden::{self, MODELS, fixtures};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

const OPTIONS: LoadOptions = LoadOptions {
    act: None,
    context: None,
    cache: Some(512),
    key: KvType::F16,
    value: KvType::F16,
    layers: None,
};

fn stage<B: Backend>(backend: &Arc<B>, path: &Path, layers: Range<usize>) -> Box<dyn Stage> {
    let checkpoint = bitnet_formats::open(path).unwrap();
    let config = ModelConfig::read(&checkpoint).unwrap();
    Box::new(load_stage(Arc::clone(backend), &checkpoint, config, &OPTIONS, layers, &mut |_, _| {}).unwrap())
}

fn cpu() -> Arc<CpuBackend> {
    Arc::new(CpuBackend::new(CpuOptions { threads: Some(1), ..CpuOptions::default() }).unwrap())
}

/// The GPUs of two stages.
fn two() -> Option<[Arc<CudaBackend>; 2]> {
    let first = common::backend()?;
    let second = if devices().unwrap().len() > 1 { 1 } else { 0 };
    Some([first, CudaBackend::new(second).unwrap()].map(Arc::new))
}

/// Logits of all positions of a prompt, in steps of so many tokens of which only every other one is asked for any.
fn logits(model: &mut dyn Decoder, ids: &[u32], chunk: usize) -> Vec<f32> {
    model.rewind(0);
    let mut all = Vec::new();
    let mut out = StepOutput::default();
    for (at, ids) in ids.chunks(chunk).enumerate() {
        // Without results nothing is waited for: the first device goes on with the next step while the second has this one.
        out.rows = if at % 2 == 0 { Rows::None } else { Rows::All };
        model.step(ids, &mut out).unwrap();
        all.extend_from_slice(&out.logits);
    }
    all
}

#[test]
fn two_devices_have_the_bits_of_the_processor() {
    let Some([first, second]) = two() else { return };
    for name in MODELS {
        let path = fixtures().join(name);
        let ids: Vec<u32> =
            golden::prompts(name).iter().flat_map(|prompt| prompt.ids.clone()).take(90).collect();
        let checkpoint = bitnet_formats::open(&path).unwrap();
        let mut one = load(cpu(), &checkpoint, &OPTIONS, &mut |_, _| {}).unwrap();
        let all = one.config().layers;
        let cut = all / 2;
        let mut gpus = Pipeline::new(vec![stage(&first, &path, 0..cut), stage(&second, &path, cut..all)]);
        let mut mixed = Pipeline::new(vec![stage(&first, &path, 0..cut), stage(&cpu(), &path, cut..all)]);
        let mut back = Pipeline::new(vec![stage(&cpu(), &path, 0..cut), stage(&second, &path, cut..all)]);
        for chunk in [1, 5, 40] {
            let want = logits(&mut one, &ids, chunk);
            for (model, what) in
                [(&mut gpus, "two GPUs"), (&mut mixed, "GPU and cpu"), (&mut back, "cpu and GPU")]
            {
                assert!(logits(model, &ids, chunk) == want, "{name} on {what}, steps of {chunk}: other bits");
            }
        }
    }
}

/// Blocks that one device has saved are those of two.
#[test]
fn blocks_mean_the_same_on_one_device_and_on_two() {
    let Some([first, second]) = two() else { return };
    let path = fixtures().join("bitnet-packed");
    let ids: Vec<u32> = (3..67).collect();
    let needs = [bitnet_core::LogitsNeed::All];
    let (mut out, mut states, mut saved) =
        (bitnet_core::Logits::default(), Vec::new(), [Vec::new(), Vec::new()]);
    let one = stage(&second, &path, 0..2);
    let two = Pipeline::new(vec![stage(&first, &path, 0..1), stage(&second, &path, 1..2)]);
    let mut models: [Box<dyn Decoder>; 2] = [one, Box::new(two)];
    let fill =
        |block| Span { start: 0, ids: &ids, blocks: block, needs: &needs[..], states: 0..0, adapters: &[] };
    for (model, saved) in models.iter_mut().zip(&mut saved) {
        model.batch(&[fill(&[2])], &mut out, &mut states).unwrap();
        model.copy_block(2, 5);
        model.save_block(5, saved).unwrap();
    }
    assert!(saved[0] == saved[1] && saved[0].iter().any(|byte| *byte != 0));
    let next = |blocks| Span { start: 64, ids: &[9], blocks, needs: &needs[..], states: 0..0, adapters: &[] };
    let mut answers = Vec::new();
    for (model, saved) in models.iter_mut().zip(saved.iter().rev()) {
        model.load_block(3, saved);
        model.batch(&[next(&[3, 0])], &mut out, &mut states).unwrap();
        answers.push(out.values.to_vec());
    }
    assert!(answers[0] == answers[1]);
}
