//! Whole models: the reference fixtures, and small made-up ones of every architecture against the oracle.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod common;

use bitnet_core::{ActivationPrecision, KvType};
use bitnet_model::{Decoder, LoadOptions, Rows, StepOutput, Transformer, load};
use bitnet_testkit::golden::{self, MODELS};
use bitnet_testkit::models;
use bitnet_wgpu::WgpuBackend;

use std::path::Path;
use std::sync::Arc;

/// Comparisons with the reference are made with a cache of f32.
const EXACT: LoadOptions =
    LoadOptions { act: None, context: None, cache: None, key: KvType::F32, value: KvType::F32, layers: None };

fn open(gpu: &Arc<WgpuBackend>, path: &Path, options: LoadOptions) -> Transformer<WgpuBackend> {
    let checkpoint = bitnet_formats::open(path).unwrap();
    load(Arc::clone(gpu), &checkpoint, &options, &mut |_, _| {}).unwrap()
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

/// Asks the models of the test kit's lists.
fn ask(check: fn(models::Open<'_>)) {
    let Some(gpu) = common::backend().map(Arc::new) else { return };
    check(&|path, act: Option<ActivationPrecision>| {
        let mut model = open(&gpu, path, LoadOptions { act, ..EXACT });
        Box::new(move |ids, chunk| logits(&mut model, ids, chunk))
    });
}

#[test]
fn logits_perplexities_and_greedy_tokens_equal_the_reference() {
    ask(models::assert_reference);
}

#[test]
fn gguf_files_equal_the_reference() {
    ask(models::assert_gguf);
}

#[test]
fn made_up_models_equal_the_oracle() {
    ask(models::assert_made_up);
}

/// On one adapter, however a prompt is cut.
#[test]
fn bits_do_not_depend_on_chunks() {
    let Some(gpu) = common::backend().map(Arc::new) else { return };
    for name in MODELS.iter().copied().chain(["gguf/bitnet-packed-k256-tq1_0.gguf"]) {
        let prompts = golden::prompts(if name.contains('/') { "bitnet-packed-k256" } else { name });
        let prompt = prompts.iter().max_by_key(|p| p.ids.len()).unwrap();
        for ty in [KvType::F16, KvType::Q8_0] {
            let options = LoadOptions { key: ty, value: ty, ..EXACT };
            let mut model = open(&gpu, &golden::fixtures().join(name), options);
            let bits = |values: Vec<f32>| values.into_iter().map(f32::to_bits).collect::<Vec<_>>();
            let want = bits(logits(&mut model, &prompt.ids, usize::MAX));
            for chunk in [1, 2, 5, 13] {
                assert!(
                    bits(logits(&mut model, &prompt.ids, chunk)) == want,
                    "{name}, {ty:?}, in steps of {chunk}"
                );
            }
        }
    }
}
