//! An adapter from any bytes, and a token through it: `adapter_config.json`, a zero byte and a file of tensors.
#![no_main]

use bitnet_cpu::Isa;
use bitnet_formats::gguf;
use bitnet_inference::{DeviceOptions, GenerateOptions, Model, OpenOptions};
use bitnet_testkit::tiny;
use libfuzzer_sys::fuzz_target;
use std::path::Path;

fn model() -> Model {
    let checkpoint = gguf::read(Path::new("fuzz"), tiny::gguf().bytes().into()).expect("it is whole");
    let device = DeviceOptions { isa: Some(Isa::Scalar), threads: Some(1), ..DeviceOptions::default() };
    let options = OpenOptions { device, ..OpenOptions::default() };
    Model::from_checkpoint(&checkpoint, &options, &mut |_, _| {}).expect("it is whole")
}

fuzz_target!(|data: &[u8]| {
    let Some(end) = data.iter().position(|b| *b == 0) else { return };
    let dir = std::env::temp_dir().join(format!("bitnet-fuzz-adapter-{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("a folder for files");
    std::fs::write(dir.join("adapter_config.json"), &data[..end]).expect("the disk has room");
    std::fs::write(dir.join("adapter_model.safetensors"), &data[end + 1..]).expect("the disk has room");
    let mut model = model();
    if model.load_adapter(&dir, 1.0).is_ok() {
        let options = GenerateOptions { max_tokens: Some(2), ..GenerateOptions::default() };
        if let Ok(generation) = model.generate(&[0, 1], options) {
            assert!(generation.count() <= 3);
        }
    }
});
