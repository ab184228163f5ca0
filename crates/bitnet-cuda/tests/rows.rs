//! Models whose rows lie on several GPUs, or on one that is several: `scripts/test-cuda-shim.sh` has two of them.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod common;

use bitnet_core::{ActivationPrecision, Backend, KvType, Logits, LogitsNeed};
use bitnet_cpu::{CpuBackend, CpuOptions};
use bitnet_cuda::{CudaBackend, CudaRows, devices};
use bitnet_model::{Adapter, AdapterUse, Decoder, LoadOptions, Rows, Span, StepOutput, Transformer, load};
use bitnet_testkit::conformance::{Answer, answers, assert_same_bits};
use bitnet_testkit::golden::{self, MODELS, fixtures};
use bitnet_testkit::synthetic::{Arch, Spec, Store};
use bitnet_testkit::tensors::Float;
use bitnet_testkit::{adapter, models};
use std::path::Path;
use std::sync::Arc;

const CACHES: [KvType; 4] = [KvType::F32, KvType::F16, KvType::BF16, KvType::Q8_0];

const OPTIONS: LoadOptions = LoadOptions {
    act: None,
    context: None,
    cache: Some(512),
    key: KvType::F16,
    value: KvType::F16,
    layers: None,
};

/// Five query heads for each of three key-value heads, and rows that are no whole tiles.
fn odd() -> Spec {
    Spec {
        arch: Arch::BITNET_HF,
        hidden: 120,
        ffn: 200,
        heads: 15,
        kv_heads: 3,
        head_dim: 8,
        vocab: 300,
        projections: Store::Float(Float::F32),
        absmean: true,
        ..Spec::default()
    }
}

/// GPUs that share rows, in turns those that there are.
fn rows(shares: &[f64]) -> Option<Arc<CudaRows>> {
    common::backend()?;
    let there = devices().unwrap().len();
    let gpus = (0..shares.len()).map(|at| CudaBackend::new(at % there).unwrap()).collect();
    Some(Arc::new(CudaRows::new(gpus, shares.to_vec()).unwrap()))
}

fn cpu() -> Arc<CpuBackend> {
    Arc::new(CpuBackend::new(CpuOptions { threads: Some(1), ..CpuOptions::default() }).unwrap())
}

fn open<B: Backend>(backend: &Arc<B>, path: &Path, options: &LoadOptions) -> Transformer<B> {
    let checkpoint = bitnet_formats::open(path).unwrap();
    load(Arc::clone(backend), &checkpoint, options, &mut |_, _| {}).unwrap()
}

/// Logits of all positions of a prompt, in steps of so many tokens.
fn logits(model: &mut dyn Decoder, ids: &[u32], chunk: usize) -> Vec<f32> {
    model.rewind(0);
    let mut all = Vec::new();
    let mut out = StepOutput { rows: Rows::All, ..StepOutput::default() };
    for ids in ids.chunks(chunk) {
        model.step(ids, &mut out).unwrap();
        all.extend_from_slice(&out.logits);
    }
    all
}

#[test]
fn every_operation_gives_the_bits_of_the_processor() {
    let one = &[KvType::Q8_0][..];
    // With shares so small that a device has no rows of small matrices, and no head.
    for (shares, caches) in [(&[1.0, 1.0][..], &CACHES[..]), (&[1.0, 3.0], one), (&[2.0, 1.0, 0.1], one)] {
        let Some(gpus) = rows(shares) else { return };
        let (got, want) = (answers(&*gpus, caches), answers(&*cpu(), caches));
        assert_eq!(got.len(), want.len());
        for (Answer { name, values, .. }, want) in got.iter().zip(&want) {
            assert_same_bits(&format!("{name}, shares {shares:?}"), values, &want.values);
        }
    }
}

#[test]
fn golden_models_have_the_bits_of_the_processor() {
    let Some(gpus) = rows(&[1.0, 1.0]) else { return };
    let cpu = cpu();
    for name in MODELS {
        let path = fixtures().join(name);
        let ids: Vec<u32> =
            golden::prompts(name).iter().flat_map(|prompt| prompt.ids.clone()).take(40).collect();
        let mut one = open(&cpu, &path, &OPTIONS);
        let mut shared = open(&gpus, &path, &OPTIONS);
        for chunk in [1, 5, 40] {
            let want = logits(&mut one, &ids, chunk);
            let got = logits(&mut shared, &ids, chunk);
            assert_same_bits(&format!("{name}, steps of {chunk}"), &got, &want);
        }
    }
}

#[test]
fn models_of_every_architecture_have_the_bits_of_the_processor() {
    let Some(gpus) = rows(&[1.0, 2.0]) else { return };
    let cpu = cpu();
    models::assert_made_up(&|path, act: Option<ActivationPrecision>| {
        let options = LoadOptions { act, key: KvType::F32, value: KvType::F32, ..OPTIONS };
        let (mut one, mut shared) = (open(&cpu, path, &options), open(&gpus, path, &options));
        Box::new(move |ids, chunk| {
            let got = logits(&mut shared, ids, chunk);
            let name = format!("a made-up model, {}", shared.config().arch.name);
            assert_same_bits(&name, &got, &logits(&mut one, ids, chunk));
            got
        })
    });
}

/// Every type of cache, shares that are uneven, and heads that do not go into them.
#[test]
fn caches_and_shares_change_no_bit() {
    let cpu = cpu();
    let dir = tempfile::tempdir().unwrap();
    let path = odd().clear(&[1, 2, 3], 0.0).0.write(dir.path());
    let ids: Vec<u32> = (0..70).map(|i| i * 7 % 300).collect();
    for (cache, shares) in CACHES.into_iter().zip([&[1.0, 1.0][..], &[1.0, 5.0], &[1.0; 3], &[1.0; 4]]) {
        let Some(gpus) = rows(shares) else { return };
        let options = LoadOptions { key: cache, value: cache, ..OPTIONS };
        let mut shared = open(&gpus, &path, &options);
        let want = logits(&mut open(&cpu, &path, &options), &ids, ids.len());
        for (tokens, chunk) in [(70, 70), (70, 33), (9, 1)] {
            let got = logits(&mut shared, &ids[..tokens], chunk);
            let name = format!("{cache:?}, shares {shares:?}, steps of {chunk}");
            assert_same_bits(&name, &got, &want[..tokens * 300]);
        }
    }
}

/// A step of several sequences, one through an adapter for all projections: logits, of which some are asked for by rank and by id,
/// and states; then the next tokens where blocks were copied to, and saved and loaded.
fn batches(model: &mut dyn Decoder, adapter: &Path, saved: &mut Vec<u8>) -> Vec<(Vec<u32>, Vec<f32>)> {
    let files = bitnet_formats::open_adapter(adapter).unwrap();
    let adapter = Adapter::read(&files, model.config()).unwrap();
    model.load_adapter(3, &adapter).unwrap();
    let uses = [AdapterUse { id: 3, scale: 0.7 }];
    let texts: [Vec<u32>; 3] = [70, 9, 33].map(|n| (0..n).map(|i| (i * 7 + n) % 300).collect());
    let (mut all, mut out, mut states) = (Vec::new(), Logits::default(), Vec::new());
    let top = |k, also: &[u32]| [LogitsNeed::Top { k, also: also.to_vec() }];
    let (best, some, whole) = (top(1, &[]), top(20, &[299, 0, 7, 150]), [LogitsNeed::All]);
    let mut batch = |model: &mut dyn Decoder, parts: &[Part<'_>]| {
        let spans: Vec<Span<'_>> = parts
            .iter()
            .map(|(start, ids, blocks, needs, adapters)| Span {
                start: *start,
                ids,
                blocks,
                needs,
                states: 0..1,
                adapters,
            })
            .collect();
        model.batch(&spans, &mut out, &mut states).unwrap();
        all.extend(out.rows().map(|(ids, values)| (ids.to_vec(), values.to_vec())));
        all.push((Vec::new(), states.clone()));
    };
    type Part<'a> = (usize, &'a [u32], &'a [u32], &'a [LogitsNeed], &'a [AdapterUse]);
    let first: [Part<'_>; 3] = [
        (0, &texts[0], &[4, 1], &best, &[]),
        (0, &texts[1], &[2], &some, &uses),
        (0, &texts[2], &[0], &some, &[]),
    ];
    batch(model, &first);
    model.copy_block(4, 5);
    model.save_block(1, saved).unwrap();
    assert_eq!(saved.len(), model.block_bytes());
    model.load_block(6, saved);
    batch(model, &[(70, &[11], &[5, 6], &whole, &[]), (9, &[12], &[2], &whole, &uses)]);
    batch(model, &[(71, &[250], &[5, 6], &best, &[])]);
    model.unload_adapter(3);
    all
}

#[test]
fn sequences_adapters_blocks_and_ranks_are_those_of_one_device() {
    let dir = tempfile::tempdir().unwrap();
    let path = odd().clear(&[1, 2, 3], 0.0).0.write(dir.path());
    let lora = tempfile::tempdir().unwrap();
    adapter::write(lora.path(), &adapter::config(5), &adapter::projections(2, 120, 200, 120, 24), 5, 9);
    let Some(one) = common::backend().map(Arc::new) else { return };
    for cache in CACHES {
        let options = LoadOptions { key: cache, value: cache, ..OPTIONS };
        let mut saved = Vec::new();
        let want = batches(&mut open(&one, &path, &options), lora.path(), &mut saved);
        let (_, best) = &want[0];
        assert_eq!(best.len(), 1, "one logit is read of a greedy step");
        let Some(gpus) = rows(&[2.0, 1.0]) else { return };
        let mut by_rows = Vec::new();
        let got = batches(&mut open(&gpus, &path, &options), lora.path(), &mut by_rows);
        assert_eq!(got.len(), want.len());
        for (at, ((ids, values), (want_ids, want))) in got.iter().zip(&want).enumerate() {
            assert_eq!(ids, want_ids, "ids of answer {at}");
            assert_same_bits(&format!("{cache:?}, answer {at}"), values, want);
        }
        assert!(by_rows == saved, "a block of one device");
    }
}

/// A vocabulary whose head is screened on each device.
#[test]
fn the_largest_logits_are_those_of_one_device() {
    let spec = Spec { vocab: 1400, hidden: 256, embedding: Store::Float(Float::BF16), ..odd() };
    let spec = Spec { heads: 32, kv_heads: 4, ..spec };
    let dir = tempfile::tempdir().unwrap();
    let path = spec.clear(&[1, 2, 3], 0.0).0.write(dir.path());
    let Some((one, gpus)) = common::backend().map(Arc::new).zip(rows(&[1.0, 1.0])) else { return };
    let (mut one, mut shared) = (open(&one, &path, &OPTIONS), open(&gpus, &path, &OPTIONS));
    for (k, also) in [(1, vec![]), (40, vec![0, 1399, 700]), (1000, vec![3])] {
        let ask = |model: &mut dyn Decoder| {
            let need = LogitsNeed::Top { k, also: also.clone() };
            let mut out = StepOutput { need, ..StepOutput::default() };
            model.rewind(0);
            let mut all = Vec::new();
            for ids in [&[5, 900, 1399][..], &[17], &[1200]] {
                model.step(ids, &mut out).unwrap();
                all.push((out.ids.to_vec(), out.logits.to_vec()));
            }
            all
        };
        let (want, got) = (ask(&mut one), ask(&mut shared));
        assert!(want[0].0.len() >= k && want[0].0.len() < 1400, "{} logits", want[0].0.len());
        assert!(got == want, "the {k} largest");
    }
}
