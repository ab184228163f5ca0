//! The list of made-up models that GPUs are asked for, where there is always a device: the processor.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use bitnet_core::{ActivationPrecision, KvType};
use bitnet_cpu::{CpuBackend, CpuOptions};
use bitnet_model::{Decoder, LoadOptions, Rows, StepOutput, load};
use bitnet_testkit::models;
use std::sync::Arc;

#[test]
fn made_up_models_equal_the_oracle() {
    let cpu = Arc::new(CpuBackend::new(CpuOptions { threads: Some(2), ..CpuOptions::default() }).unwrap());
    models::assert_made_up(&|path, act: Option<ActivationPrecision>| {
        let checkpoint = bitnet_formats::open(path).unwrap();
        let options = LoadOptions { act, key: KvType::F32, value: KvType::F32, ..LoadOptions::default() };
        let mut model = load(Arc::clone(&cpu), &checkpoint, &options, &mut |_, _| {}).unwrap();
        Box::new(move |ids, chunk| {
            model.rewind(0);
            let mut out = StepOutput { rows: Rows::All, ..StepOutput::default() };
            let step = |ids: &[u32]| {
                model.step(ids, &mut out).unwrap();
                out.logits.to_vec()
            };
            ids.chunks(chunk).flat_map(step).collect()
        })
    });
}
