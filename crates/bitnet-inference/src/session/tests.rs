//! A session that is restored goes on as if it had never been saved; a damaged one says so.

use super::*;
use crate::engine::{EngineOptions, Logprob, News, Request};
use crate::sample::SamplerOptions;
use crate::{LoadOptions, OpenOptions};
use bitnet_core::KvType;
use bitnet_testkit::golden;
use bitnet_testkit::tensors::Noise;

fn model(name: &str, kv: KvType, cache: usize) -> Model {
    let load = LoadOptions { key: kv, value: kv, cache: Some(cache), ..LoadOptions::default() };
    let open = OpenOptions { load, ..OpenOptions::default() };
    Model::open(&golden::fixtures().join(name), &open, &mut |_, _| {}).unwrap()
}

/// Ids of an answer, their log-probabilities, and how many tokens of the prompt the cache held.
fn answer(engine: &mut Engine, prompt: &[u32], tokens: usize) -> (Vec<u32>, Vec<Logprob>, usize) {
    let sampling = SamplerOptions { seed: Some(3), temperature: 1.2, ..SamplerOptions::default() };
    let request = Request {
        prompt: prompt.to_vec(),
        sampling,
        max_tokens: Some(tokens),
        ignore_eos: true,
        logprobs: Some(2),
        ..Request::default()
    };
    engine.submit(&request).unwrap();
    let (mut ids, mut logprobs, mut cached) = (Vec::new(), Vec::new(), 0);
    while !engine.is_idle() {
        let mut events = Vec::new();
        engine.step(&mut events);
        for event in events {
            match event.news {
                News::Piece { id, logprob, .. } => {
                    ids.extend(id);
                    logprobs.extend(logprob);
                }
                News::Finished { timings, .. } => cached = timings.cached_tokens,
                other => panic!("{other:?}"),
            }
        }
    }
    (ids, logprobs, cached)
}

#[test]
fn a_restored_sequence_has_the_bits_of_one_that_never_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("session");
    for kv in [KvType::F32, KvType::F16, KvType::BF16, KvType::Q8_0] {
        for length in [1, 63, 150] {
            let prompt: Vec<u32> = (0..length).map(|i| 3 + i * 7 % 400).collect();
            let mut whole = model("bitnet-packed", kv, 512).into_engine(EngineOptions::default());
            let (ids, logprobs, _) = answer(&mut whole, &prompt, 40);

            let mut first = model("bitnet-packed", kv, 512).into_engine(EngineOptions::default());
            let (begun, _, _) = answer(&mut first, &prompt, 17);
            let all = [&prompt[..], &begun].concat();
            first.save_session(&path, &all).unwrap();
            let mut second = model("bitnet-packed", kv, 1024).into_engine(EngineOptions::default());
            let restored = second.load_session(&path).unwrap();
            assert_eq!(restored, all);
            let (rest, rest_logprobs, cached) = answer(&mut second, &restored, 23);
            assert_eq!((&begun[..], &rest[..]), (&ids[..17], &ids[17..]), "{kv:?}, {length}");
            assert_eq!(rest_logprobs, logprobs[17..], "{kv:?}, {length}");
            assert_eq!(cached, all.len() - 1, "nothing is computed twice");
            assert_eq!(second.stats().held_blocks, 0);
        }
    }
}

#[test]
fn sessions_of_something_else_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("session");
    let ids: Vec<u32> = (3..203).collect();
    let mut saved = model("bitnet-packed", KvType::F16, 512).into_engine(EngineOptions::default());
    answer(&mut saved, &ids, 1);
    saved.save_session(&path, &ids).unwrap();
    let refused = |mut engine: Engine, what: &str| {
        let error = engine.load_session(&path).unwrap_err().to_string();
        assert!(error.contains(what), "{error}");
    };
    let engine = |name, kv, cache| model(name, kv, cache).into_engine(EngineOptions::default());
    refused(engine("bitnet-online", KvType::F16, 512), "another model");
    refused(engine("bitnet-packed", KvType::Q8_0, 512), "types of cache");
    refused(engine("bitnet-packed", KvType::F16, 128), "the context holds 128");
    let none = EngineOptions { prefix_cache: false, ..EngineOptions::default() };
    refused(model("bitnet-packed", KvType::F16, 512).into_engine(none), "0 can be had");
    let mut adapted = model("bitnet-packed", KvType::F16, 512);
    adapted.load_adapter(&golden::fixtures().join("lora/qvd-r4"), 1.0).unwrap();
    let mut adapted = adapted.into_engine(EngineOptions::default());
    assert!(adapted.load_session(&path).unwrap_err().to_string().contains("other adapters"));
    // With the same adapter it is at home.
    let (want, ..) = answer(&mut adapted, &ids, 9);
    adapted.save_session(&path, &ids).unwrap();
    let mut again = model("bitnet-packed", KvType::F16, 512);
    again.load_adapter(&golden::fixtures().join("lora/qvd-r4"), 1.0).unwrap();
    let mut again = again.into_engine(EngineOptions::default());
    again.load_session(&path).unwrap();
    let (got, _, cached) = answer(&mut again, &ids, 9);
    assert_eq!((got, cached), (want, ids.len() - 1));
}

#[test]
fn a_damaged_session_is_refused_and_leaves_the_cache_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (path, bad) = (dir.path().join("session"), dir.path().join("bad"));
    let ids: Vec<u32> = (3..80).collect();
    let mut engine = model("bitnet-packed", KvType::F16, 512).into_engine(EngineOptions::default());
    answer(&mut engine, &ids, 1);
    engine.save_session(&path, &ids).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    let mut fresh = model("bitnet-packed", KvType::F16, 512).into_engine(EngineOptions::default());
    let mut check = |bytes: &[u8]| {
        std::fs::write(&bad, bytes).unwrap();
        let error = fresh.load_session(&bad).unwrap_err().to_string();
        assert!(!error.contains('\n') && error.contains("bad"), "{error}");
        assert_eq!(fresh.stats(), crate::engine::Stats { blocks: 8, ..Default::default() });
    };
    for len in (0..bytes.len()).step_by(211).chain([bytes.len() - 1]) {
        check(&bytes[..len]);
    }
    check(&[&bytes[..], &[0]].concat());
    let mut noise = Noise(4);
    for _ in 0..400 {
        let mut damaged = bytes.clone();
        // The header more often than the blocks.
        let reach = if noise.bits().is_multiple_of(2) { 700 } else { bytes.len() };
        damaged[noise.bits() as usize % reach] ^= 1 << (noise.bits() % 8);
        check(&damaged);
    }
    assert!(fresh.load_session(&dir.path().join("absent")).is_err());
    assert!(fresh.load_session(dir.path()).is_err());
    assert_eq!(fresh.load_session(&path).unwrap(), ids);
}
