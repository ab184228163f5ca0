//! A model's memory on an adapter: none is asked for in steps that are like others, and each request may be refused.

use super::*;
use crate::kernel::Fold;
use bitnet_core::{KvType, LogitsNeed};
use bitnet_model::{Decoder, LoadOptions, ModelError, Rows, StepOutput, Transformer, load};
use bitnet_testkit::conformance::answers;
use bitnet_testkit::golden::fixtures;

/// The first adapter; says so where there is none.
fn backend(config: Config) -> Option<Arc<WgpuBackend>> {
    if crate::adapters().is_empty() {
        assert!(std::env::var("REQUIRE_DEVICE").as_deref() != Ok("1"), "no adapter");
        println!("not run: no adapter");
        return None;
    }
    Some(Arc::new(WgpuBackend::with(0, config).unwrap()))
}

fn open(gpu: &Arc<WgpuBackend>) -> Result<Transformer<WgpuBackend>, ModelError> {
    let checkpoint = bitnet_formats::open(&fixtures().join("bitnet-packed")).unwrap();
    let options =
        LoadOptions { cache: Some(1024), key: KvType::F16, value: KvType::F16, ..LoadOptions::default() };
    load(Arc::clone(gpu), &checkpoint, &options, &mut |_, _| {})
}

/// A prompt in steps of different lengths, and some tokens behind it: their logits, all of them or the largest.
fn answer(model: &mut dyn Decoder) -> Result<Vec<u32>, ModelError> {
    model.rewind(0);
    let mut out = StepOutput { rows: Rows::Last, ..StepOutput::default() };
    let ids: Vec<u32> = (0..120).map(|id| 3 + id * 7 % 90).collect();
    let mut all = Vec::new();
    for step in [&ids[..100], &ids[100..103], &ids[103..104], &ids[104..105]] {
        out.need = if step.len() == 1 { LogitsNeed::Top { k: 5, also: vec![7] } } else { LogitsNeed::All };
        model.step(step, &mut out)?;
        all.extend_from_slice(&out.ids);
        all.extend(out.logits.iter().map(|logit| logit.to_bits()));
    }
    Ok(all)
}

#[test]
fn a_step_like_others_asks_for_no_memory_and_is_one_submission() {
    let Some(gpu) = backend(Profile::Inference.into()) else { return };
    let mut model = open(&gpu).unwrap();
    let mut out = StepOutput { rows: Rows::Last, ..StepOutput::default() };
    let mut step = |position: usize| {
        model.rewind(position);
        // All logits and a few of them by turns.
        out.need = if position.is_multiple_of(2) {
            LogitsNeed::All
        } else {
            LogitsNeed::Top { k: 5, also: vec![7] }
        };
        model.step(&[5 + position as u32], &mut out).unwrap();
    };
    (0..4).for_each(&mut step);
    let (requests, submissions) = gpu.gpu.counts();
    (4..40).for_each(&mut step);
    assert_eq!(gpu.gpu.counts(), (requests, submissions + 36));
}

/// Where an adapter has subgroups, they change no bit of any operation.
#[test]
fn subgroups_change_nothing() {
    let Some(gpu) = backend(Profile::Inference.into()) else { return };
    if gpu.gpu.fold() == Fold::Tree {
        println!("not run: the adapter has no subgroups");
        return;
    }
    drop(gpu);
    let of = |fold| {
        let mut gpu = WgpuBackend::new(0).unwrap();
        gpu.gpu.set_fold(fold);
        answers(&gpu, &[KvType::F16, KvType::Q8_0])
    };
    for (tree, subgroups) in of(Fold::Tree).iter().zip(&of(Fold::Subgroups)) {
        let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&tree.values), bits(&subgroups.values), "{}", tree.name);
    }
}

#[test]
fn whatever_is_refused_is_an_error_and_the_next_steps_are_right() {
    // A pool that keeps nothing, so that as many requests as can be meet the driver.
    let keeps_nothing = Config { keep_bytes: 0, at_hand_bytes: 0, ..Profile::Inference.into() };
    let Some(gpu) = backend(keeps_nothing) else { return };
    let want = answer(&mut open(&gpu).unwrap()).unwrap();
    let used = || gpu.gpu.memory().snapshot().tags.iter().map(|tag| tag.asked_bytes).sum::<usize>();
    *gpu.scratch() = Scratch::default();
    gpu.gpu.submit();
    let at_first = used();
    let (mut loads, mut steps) = (0, 0);
    for nth in 0.. {
        gpu.gpu.serve(nth);
        let opened = open(&gpu);
        let outcome = opened.map(|mut model| (answer(&mut model), model));
        gpu.gpu.serve(usize::MAX);
        let mut refused = true;
        match outcome {
            Err(e) => {
                assert!(is_no_memory(&e), "request {nth}: {e:?}");
                loads += 1;
            }
            Ok((got, mut model)) => {
                match got {
                    Ok(got) => {
                        assert!(got == want, "request {nth}");
                        refused = false;
                    }
                    Err(e) => {
                        assert!(is_no_memory(&e), "request {nth}: {e:?}");
                        steps += 1;
                    }
                }
                assert!(answer(&mut model).unwrap() == want, "after request {nth}");
            }
        }
        *gpu.scratch() = Scratch::default();
        gpu.gpu.submit();
        assert_eq!(used(), at_first, "what request {nth} left behind");
        if !refused {
            break;
        }
    }
    println!("{loads} requests of loading and {steps} of steps were refused");
    assert!(loads > 20 && steps > 10, "{loads} and {steps}");
}

fn is_no_memory(e: &ModelError) -> bool {
    matches!(
        e,
        ModelError::Backend(BackendError::OutOfMemory { .. })
            | ModelError::Prepare { source: BackendError::OutOfMemory { .. }, .. }
    )
}
