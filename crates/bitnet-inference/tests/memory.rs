//! Every time that an engine asks for memory it may be refused: that is an error of its type, nothing is lost by it, and when there is
//! memory again the same engine answers as if nothing had been.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use bitnet_core::BackendError;
use bitnet_inference::sample::SamplerOptions;
use bitnet_inference::{
    DeviceOptions, GenerateError, GenerateOptions, LoadOptions, Model, OpenError, OpenOptions,
};
use bitnet_memory::{Config, Failing, Pages, Pool, Profile};
use bitnet_model::ModelError;
use bitnet_testkit::golden::fixtures;
use std::sync::Arc;

/// Opens a model, and an adapter, in a pool that keeps nothing for later, so that as many requests as can be meet the source.
fn open(pool: &Arc<Pool>) -> Result<Model, OpenError> {
    let memory = Some(Arc::clone(pool));
    let options = OpenOptions {
        device: DeviceOptions { threads: Some(2), memory, ..DeviceOptions::default() },
        load: LoadOptions { cache: Some(1024), ..LoadOptions::default() },
    };
    let mut model = Model::open(&fixtures().join("bitnet-packed"), &options, &mut |_, _| {})?;
    model.load_adapter(&fixtures().join("lora/qvd-r4"), 1.0)?;
    Ok(model)
}

fn pool(source: &Failing<Pages>) -> Arc<Pool> {
    let config = Config { keep_bytes: 0, at_hand_bytes: 0, ..Profile::Inference.into() };
    Arc::new(Pool::on_host(source.clone(), config))
}

fn options() -> GenerateOptions {
    GenerateOptions {
        sampling: SamplerOptions { seed: Some(5), ..SamplerOptions::default() },
        max_tokens: Some(8),
        ignore_eos: true,
        batch: 100,
        ..GenerateOptions::default()
    }
}

/// Answers one by one, the prompts in steps of different lengths, and together.
fn answers(model: &mut Model) -> Result<Vec<String>, GenerateError> {
    let prompts: Vec<Vec<u32>> = [5, 300, 2].map(|n| (0..n).map(|id| 3 + id * 7 % 90).collect()).into();
    let mut texts = Vec::new();
    for prompt in &prompts {
        let pieces = model.generate(prompt, options())?.map(|piece| Ok(piece?.text));
        texts.push(pieces.collect::<Result<String, GenerateError>>()?);
    }
    let together = model.batch(&prompts, &options());
    for (answer, alone) in together.into_iter().zip(texts.clone()) {
        match answer {
            Ok(answer) => assert_eq!(answer.text, alone),
            Err(e) => return Err(no_memory_of(&e)),
        }
    }
    Ok(texts)
}

/// The error of several answers as that of one.
fn no_memory_of(e: &GenerateError) -> GenerateError {
    assert!(is_no_memory(e), "{e}");
    GenerateError::Model(ModelError::Backend(BackendError::OutOfMemory { bytes: 0, what: "a batch" }))
}

fn is_no_memory(e: &GenerateError) -> bool {
    matches!(e, GenerateError::Model(ModelError::Backend(BackendError::OutOfMemory { .. })))
}

#[test]
fn whatever_is_refused_is_an_error_and_the_next_requests_are_answered() {
    let want = answers(&mut open(&pool(&Failing::from(Pages::default(), usize::MAX))).unwrap()).unwrap();
    let (mut loads, mut steps) = (0, 0);
    for nth in 0.. {
        let source = Failing::from(Pages::default(), nth);
        let pool = pool(&source);
        let mut refused = false;
        match open(&pool) {
            Err(OpenError::Model(
                ModelError::Backend(BackendError::OutOfMemory { .. })
                | ModelError::Prepare { source: BackendError::OutOfMemory { .. }, .. },
            )) => (refused, loads) = (true, loads + 1),
            Err(e) => panic!("request {nth}: {e}"),
            Ok(mut model) => {
                match answers(&mut model) {
                    Ok(got) => assert_eq!(got, want),
                    Err(e) if is_no_memory(&e) => (refused, steps) = (true, steps + 1),
                    Err(e) => panic!("request {nth}: {e}"),
                }
                source.heal();
                assert_eq!(answers(&mut model).unwrap(), want, "after request {nth}");
            }
        }
        let snapshot = pool.snapshot();
        assert!(snapshot.tags.iter().all(|tag| tag.used == 0 && tag.asked_bytes == 0), "{nth}: {snapshot:?}");
        drop(pool);
        assert_eq!(source.held_bytes(), 0, "what request {nth} left behind");
        if !refused {
            break;
        }
    }
    println!("{loads} requests of loading and {steps} of answering were refused");
    assert!(loads > 10 && steps > 5, "{loads} and {steps}");
}

/// One request that is refused and not the next: the pool gives back what it keeps, asks again, and nobody notices.
#[test]
fn a_pool_asks_twice() {
    let want = answers(&mut open(&pool(&Failing::from(Pages::default(), usize::MAX))).unwrap()).unwrap();
    for nth in [0, 7, 20, 30] {
        let source = Failing::nth(Pages::default(), nth);
        assert_eq!(answers(&mut open(&pool(&source)).unwrap()).unwrap(), want);
        assert!(source.requests() > nth);
    }
}

#[test]
fn engines_may_share_a_pool() {
    let source = Failing::from(Pages::default(), usize::MAX);
    let pool = pool(&source);
    let (mut a, mut b) = (open(&pool).unwrap(), open(&pool).unwrap());
    assert!(a.pools().are(&b.pools()));
    let weights = pool.snapshot().tags[0].asked_bytes;
    assert_eq!(answers(&mut a).unwrap(), answers(&mut b).unwrap());
    drop(a);
    assert_eq!(pool.snapshot().tags[0].asked_bytes, weights / 2, "one model's weights are there");
    answers(&mut b).unwrap();
}
