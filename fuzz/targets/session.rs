//! A session from any bytes, and a token behind it. Behind a first byte that is even lies a whole file; behind an odd one the length of
//! a header, the header and the blocks, to which the target gives what any change of them would spoil: the head of the file and the checksum.
#![no_main]

use bitnet_cpu::Isa;
use bitnet_formats::gguf;
use bitnet_inference::{DeviceOptions, GenerateOptions, LoadOptions, Model, OpenOptions};
use bitnet_testkit::tiny;
use libfuzzer_sys::fuzz_target;
use sha2::{Digest, Sha256};
use std::cell::RefCell;
use std::path::Path;

fn model() -> Model {
    let checkpoint = gguf::read(Path::new("fuzz"), tiny::gguf().bytes().into()).expect("it is whole");
    let device = DeviceOptions { isa: Some(Isa::Scalar), threads: Some(1), ..DeviceOptions::default() };
    let load = LoadOptions { cache: Some(256), ..LoadOptions::default() };
    let options = OpenOptions { device, load };
    Model::from_checkpoint(&checkpoint, &options, &mut |_, _| {}).expect("it is whole")
}

thread_local! {
    /// One for all inputs, so that what a session leaves in the cache meets the next.
    static MODEL: RefCell<Model> = RefCell::new(model());
}

/// A file whose head and checksum are right.
fn sealed(data: &[u8]) -> Option<Vec<u8>> {
    let (len, rest) = data.split_at_checked(2)?;
    let len = u64::from(u16::from_le_bytes(len.try_into().ok()?));
    let mut file = [&b"bitnetKV"[..], &1u32.to_le_bytes(), &len.to_le_bytes(), rest].concat();
    let sum = Sha256::digest(&file);
    file.extend(sum);
    Some(file)
}

fuzz_target!(|data: &[u8]| {
    let Some((kind, rest)) = data.split_first() else { return };
    let Some(file) = (if kind % 2 == 0 { Some(rest.to_vec()) } else { sealed(rest) }) else { return };
    let path = std::env::temp_dir().join(format!("bitnet-fuzz-session-{}", std::process::id()));
    std::fs::write(&path, file).expect("the disk has room");
    MODEL.with_borrow_mut(|model| {
        let Ok(ids) = model.load_session(&path) else { return };
        let options = GenerateOptions { max_tokens: Some(2), ..GenerateOptions::default() };
        if let Ok(generation) = model.generate(&ids, options) {
            assert!(generation.count() <= 3);
        }
    });
});
