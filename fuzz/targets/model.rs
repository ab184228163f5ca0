//! A whole model from any bytes, and a few steps of it: a GGUF file, or a `config.json`, a zero byte and safetensors.
#![no_main]

use bitnet_cpu::Isa;
use bitnet_formats::{Checkpoint, Header, gguf, safetensors_file};
use bitnet_inference::{DeviceOptions, GenerateOptions, LoadOptions, Model, OpenOptions};
use bitnet_model::{Rows, StepOutput};
use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use std::path::Path;

fn open(data: &[u8]) -> Option<Checkpoint> {
    let path = Path::new("fuzz");
    if data.starts_with(b"GGUF") {
        return gguf::read(path, data.to_vec().into()).ok();
    }
    let end = data.iter().position(|b| *b == 0)?;
    let config = serde_json::from_slice(&data[..end]).ok()?;
    let tensors = safetensors_file::read(path, &data[end + 1..].to_vec().into()).ok()?;
    let header = Header::HuggingFace { dir: "absent".into(), config, generation_config: Value::Null };
    Checkpoint::new(path, header, tensors).ok()
}

fuzz_target!(
    init: {
        // As in the target of tokenizers.
        std::panic::set_hook(Box::new(|info| eprintln!("{info}")));
    },
    |data: &[u8]| {
        let Some(checkpoint) = open(data) else { return };
        let options = OpenOptions {
            device: DeviceOptions { isa: Some(Isa::Scalar), threads: Some(1), ..DeviceOptions::default() },
            load: LoadOptions::default(),
        };
        let Ok(mut model) = Model::from_checkpoint(&checkpoint, &options, &mut |_, _| {}) else { return };
        let vocab = model.config().vocab;
        let all = StepOutput { rows: Rows::All, keep_hidden: true, ..StepOutput::default() };
        let _ = model.evaluate(&[0, 1, 2], 2, all, &mut |out| {
            assert!(out.logits.len().is_multiple_of(vocab));
        });
        let options = GenerateOptions { max_tokens: Some(3), ..GenerateOptions::default() };
        if let Ok(generation) = model.generate(&[0], options) {
            assert!(generation.count() <= 4);
        }
    }
);
