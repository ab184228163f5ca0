//! Models whose layers lie on several backends have the bits of one.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use bitnet_core::{ActivationPrecision, KV_BLOCK, KvType, Logits, LogitsNeed};
use bitnet_cpu::{CpuBackend, CpuOptions, Isa};
use bitnet_model::{
    Adapter, AdapterUse, Decoder, LoadOptions, ModelConfig, ModelError, Pipeline, Rows, Sizes, Span, Stage,
    StepOutput, load, load_stage,
};
use bitnet_testkit::golden::{self, MODELS, fixtures};
use bitnet_testkit::models;
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

fn backend(isa: Isa, threads: usize) -> Arc<CpuBackend> {
    let options = CpuOptions { isa: Some(isa), threads: Some(threads), ..CpuOptions::default() };
    Arc::new(CpuBackend::new(options).unwrap())
}

fn whole(path: &Path, options: &LoadOptions) -> Box<dyn Decoder> {
    let checkpoint = bitnet_formats::open(path).unwrap();
    Box::new(load(backend(Isa::detect(), 1), &checkpoint, options, &mut |_, _| {}).unwrap())
}

/// Each layer on a backend of its own, in turns with other kernels and threads.
fn pipeline(path: &Path, options: &LoadOptions) -> Pipeline {
    let checkpoint = bitnet_formats::open(path).unwrap();
    let config = ModelConfig::read(&checkpoint).unwrap();
    let stage = |l: usize| -> Box<dyn Stage> {
        let backend = if l.is_multiple_of(2) { backend(Isa::Scalar, 1) } else { backend(Isa::detect(), 2) };
        let stage = load_stage(backend, &checkpoint, config.clone(), options, l..l + 1, &mut |_, _| {});
        Box::new(stage.unwrap())
    };
    Pipeline::new((0..options.layers_of(&config)).map(stage).collect())
}

/// What steps of `chunk` tokens of a prompt give: logits of every position, and the residual stream behind every layer.
fn steps(model: &mut dyn Decoder, ids: &[u32], chunk: usize) -> Vec<Vec<f32>> {
    model.rewind(0);
    let mut out = StepOutput { rows: Rows::All, keep_hidden: true, ..StepOutput::default() };
    let mut all = vec![Vec::new(); model.config().layers + 3];
    for ids in ids.chunks(chunk) {
        model.step(ids, &mut out).unwrap();
        assert_eq!(out.hidden.len() + 1, all.len());
        let parts = out.hidden.iter().map(|hidden| &hidden[..]).chain([&out.logits[..]]);
        all.iter_mut().zip(parts).for_each(|(all, part)| all.extend_from_slice(part));
    }
    assert_eq!(model.position(), ids.len());
    all
}

#[test]
fn every_architecture_has_the_bits_of_one_backend() {
    models::assert_made_up(&|path, act: Option<ActivationPrecision>| {
        let options = LoadOptions { act, key: KvType::F32, value: KvType::F32, ..OPTIONS };
        let (mut one, mut several) = (whole(path, &options), pipeline(path, &options));
        assert_eq!(one.block_bytes(), several.block_bytes());
        Box::new(move |ids, chunk| {
            let want = steps(&mut *one, ids, chunk);
            for chunk in [chunk, 1, 4] {
                assert!(steps(&mut several, ids, chunk) == want, "steps of {chunk}: other bits");
            }
            want.into_iter().next_back().unwrap()
        })
    });
}

#[test]
fn fixtures_have_the_bits_of_one_backend_with_every_cache() {
    for name in MODELS.iter().copied().chain(["gguf/bitnet-packed-k256-tq1_0.gguf"]) {
        let ids = &golden::prompts(if name.contains('/') { "bitnet-packed-k256" } else { name })[0].ids;
        for kv in [KvType::F32, KvType::BF16, KvType::Q8_0] {
            let options = LoadOptions { key: kv, value: kv, ..OPTIONS };
            let path = fixtures().join(name);
            let want = steps(&mut *whole(&path, &options), ids, 7);
            assert!(steps(&mut pipeline(&path, &options), ids, 7) == want, "{name}, {kv:?}: other bits");
        }
    }
}

fn span<'a>(start: usize, ids: &'a [u32], blocks: &'a [u32], adapters: &'a [AdapterUse]) -> Span<'a> {
    const ALL: [LogitsNeed; 1] = [LogitsNeed::All];
    Span { start, ids, blocks, needs: &ALL, states: 0..1, adapters }
}

/// Several sequences, one of them through an adapter, and what their blocks hold: copied, saved and loaded elsewhere.
fn answers(model: &mut dyn Decoder, save: &mut Vec<u8>) -> Vec<f32> {
    let files = bitnet_formats::open_adapter(&fixtures().join("lora/qvd-r4")).unwrap();
    let adapter = Adapter::read(&files, model.config()).unwrap();
    model.load_adapter(3, &adapter).unwrap();
    let uses = [AdapterUse { id: 3, scale: 0.7 }];
    let texts: [Vec<u32>; 3] = [70, 9, 33].map(|n| (0..n).map(|i| (i * 7 + n) % 500).collect());
    let (mut all, mut out, mut states) = (Vec::new(), Logits::default(), Vec::new());
    let mut batch = |model: &mut dyn Decoder, spans: &[Span<'_>]| {
        model.batch(spans, &mut out, &mut states).unwrap();
        all.extend_from_slice(&out.values);
        all.extend_from_slice(&states);
    };
    let spans =
        [span(0, &texts[0], &[4, 1], &[]), span(0, &texts[1], &[2], &uses), span(0, &texts[2], &[0], &[])];
    batch(model, &spans);
    model.copy_block(4, 5);
    model.save_block(1, save).unwrap();
    assert_eq!(save.len(), model.block_bytes());
    model.load_block(6, save);
    model.discard_block(4);
    // The first sequence goes on where its copies lie.
    batch(model, &[span(70, &[11], &[5, 6], &[]), span(9, &[12], &[2], &uses)]);
    model.unload_adapter(3);
    let gone = model.batch(&[span(9, &[12], &[2], &uses)], &mut out, &mut states);
    assert!(matches!(gone, Err(ModelError::UnknownAdapter { id: 3 })));
    all
}

#[test]
fn sequences_blocks_and_adapters_are_those_of_one_backend() {
    let path = fixtures().join("bitnet-packed");
    let (mut saved, mut saved_by_stages) = (Vec::new(), Vec::new());
    let want = answers(&mut *whole(&path, &OPTIONS), &mut saved);
    let got = answers(&mut pipeline(&path, &OPTIONS), &mut saved_by_stages);
    assert!(got == want, "other bits");
    assert_eq!(saved.len(), saved_by_stages.len());
}

#[test]
fn a_step_that_is_refused_leaves_the_position_where_it_was() {
    let mut model = pipeline(&fixtures().join("bitnet-packed"), &OPTIONS);
    let mut out = StepOutput::default();
    model.step(&[1, 2, 3], &mut out).unwrap();
    assert!(matches!(model.step(&[1_000_000], &mut out), Err(ModelError::UnknownId { .. })));
    assert!(matches!(model.step(&[7; 600], &mut out), Err(ModelError::ContextFull { .. })));
    model.step(&[4], &mut out).unwrap();
    assert_eq!(model.position(), 4);
    model.rewind(1);
    assert_eq!(model.position(), 1);
}

#[test]
fn sizes_are_those_of_what_is_loaded() {
    for name in ["bitnet-packed", "llama-packed", "gguf/bitnet-packed-k256-tq1_0.gguf"] {
        let path = fixtures().join(name);
        let checkpoint = bitnet_formats::open(&path).unwrap();
        let config = ModelConfig::read(&checkpoint).unwrap();
        let sizes = Sizes::of(&checkpoint, &config, &OPTIONS).unwrap();
        assert_eq!(sizes.layers.len(), config.layers);
        let model = whole(&path, &OPTIONS);
        let cache = (model.blocks() * model.block_bytes()) as u64;
        assert_eq!(sizes.cache * config.layers as u64, cache, "{name}");
        assert_eq!(model.blocks() * KV_BLOCK, 512);
        // Norms are not in the report, layouts fill rows up, and not every type of head has a copy beside it.
        let (got, want) = (sizes.total() - cache, model.report().weight_bytes as u64);
        assert!(got > want * 3 / 4 && got < want * 3 / 2, "{name}: {got}, and {want} were loaded");
        let halves = LoadOptions { layers: Some(1), cache: Some(64), ..OPTIONS };
        let half = Sizes::of(&checkpoint, &config, &halves).unwrap();
        assert_eq!((half.layers.len(), half.cache), (1, sizes.cache / 8));
    }
    let checkpoint = bitnet_formats::open(&fixtures().join("bitnet-packed")).unwrap();
    let config = ModelConfig::read(&checkpoint).unwrap();
    let long = LoadOptions { cache: None, context: Some(1 << 30), ..OPTIONS };
    assert!(matches!(Sizes::of(&checkpoint, &config, &long), Err(ModelError::Context { .. })));
}
