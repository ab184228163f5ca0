//! Iterator, batch and streams give the same answers.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use bitnet_inference::engine::EngineOptions;
use bitnet_inference::sample::SamplerOptions;
use bitnet_inference::{
    DeviceOptions, FinishReason, Form, GenerateError, GenerateOptions, LoadOptions, Model, OpenOptions,
};
use bitnet_testkit::golden::fixtures;
use futures_util::StreamExt;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

fn model() -> Model {
    let open = OpenOptions {
        device: DeviceOptions { threads: Some(1), ..DeviceOptions::default() },
        load: LoadOptions { cache: Some(4096), ..LoadOptions::default() },
    };
    Model::open(&fixtures().join("bitnet-packed"), &open, &mut |_, _| {}).unwrap()
}

fn options(seed: u64) -> GenerateOptions {
    GenerateOptions {
        sampling: SamplerOptions { seed: Some(seed), ..SamplerOptions::default() },
        max_tokens: Some(20),
        ignore_eos: true,
        ..GenerateOptions::default()
    }
}

fn prompts() -> Vec<Vec<u32>> {
    (0..40u32).map(|i| (3..10 + i % 7 * 20).map(|id| 3 + (id * 7 + i) % 90).collect()).collect()
}

/// What the iterator gives.
fn alone(model: &mut Model, prompt: &[u32]) -> (String, Vec<u32>) {
    let mut generation = model.generate(prompt, options(3)).unwrap();
    let text = generation.by_ref().map(|piece| piece.unwrap().text).collect();
    (text, generation.tokens().to_vec())
}

#[test]
fn a_batch_is_what_its_prompts_get_alone() {
    let mut model = model();
    let mut prompts = prompts();
    let want: Vec<_> = prompts.iter().map(|prompt| alone(&mut model, prompt)).collect();
    prompts.push(Vec::new());
    prompts.push(vec![9999]);
    let got = model.batch(&prompts, &options(3));
    for (want, got) in want.iter().zip(&got) {
        let got = got.as_ref().unwrap();
        assert_eq!((&got.text, &got.tokens, got.finish), (&want.0, &want.1, FinishReason::Length));
    }
    assert!(matches!(got[40].as_ref().map_err(|e| &**e), Err(GenerateError::EmptyPrompt)));
    assert!(matches!(got[41].as_ref().map_err(|e| &**e), Err(GenerateError::UnknownId { id: 9999, .. })));
    // It goes on to work, and ends when it is told to.
    let cancel = Some(Arc::new(AtomicBool::new(true)));
    let cancelled = model.batch(&prompts[..3], &GenerateOptions { cancel, ..options(3) });
    assert!(cancelled.iter().all(|a| a.as_ref().unwrap().finish == FinishReason::Cancelled));
    assert_eq!(alone(&mut model, &prompts[5]), want[5]);
}

#[tokio::test]
async fn streams_are_what_the_iterator_gives() {
    let mut model = model();
    let prompts = prompts();
    let want: Vec<_> = prompts.iter().map(|prompt| alone(&mut model, prompt)).collect();
    let shared = model.share(EngineOptions { seats: 5, ..EngineOptions::default() }).unwrap();
    let streams: Vec<_> =
        prompts.iter().map(|prompt| shared.generate_stream(prompt, options(3)).unwrap()).collect();
    // Nobody listens to this one any more.
    drop(shared.generate_stream(&prompts[0], GenerateOptions { max_tokens: None, ..options(1) }).unwrap());
    for (mut stream, want) in streams.into_iter().zip(&want) {
        let mut text = String::new();
        while let Some(piece) = stream.next().await {
            text += &piece.unwrap().text;
        }
        assert_eq!((&text, stream.tokens()), (&want.0, &*want.1));
        assert_eq!(stream.finish_reason(), Some(FinishReason::Length));
        assert!(stream.timings().is_some_and(|t| t.tokens == 20));
        assert!(stream.next().await.is_none(), "it stays at its end");
    }
    let mut wrong = shared.generate_stream(&[], options(3)).unwrap();
    assert!(matches!(wrong.next().await, Some(Err(e)) if matches!(*e, GenerateError::EmptyPrompt)));
    assert!(wrong.next().await.is_none());
    let form = Some(Form::Regex("(".into()));
    let refused = shared.generate_stream(&prompts[0], GenerateOptions { form, ..options(3) });
    assert!(matches!(refused.err(), Some(GenerateError::Form { .. })));
    // A stream outlives the model's last handle.
    let mut last = shared.generate_stream(&prompts[7], options(3)).unwrap();
    drop(shared);
    while let Some(piece) = last.next().await {
        piece.unwrap();
    }
    assert_eq!(last.tokens(), want[7].1);
}
