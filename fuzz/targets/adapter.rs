//! An adapter from any bytes, and an answer through it: `adapter_config.json`, a zero byte and a file of tensors.
#![no_main]

use bitnet_cpu::Isa;
use bitnet_formats::gguf;
use bitnet_inference::engine::{AdapterUse, Engine, EngineOptions, News, Request};
use bitnet_inference::{DeviceOptions, Model, OpenOptions};
use bitnet_testkit::tiny;
use libfuzzer_sys::fuzz_target;
use std::cell::RefCell;
use std::path::Path;

fn engine() -> Engine {
    let checkpoint = gguf::read(Path::new("fuzz"), tiny::gguf().bytes().into()).expect("it is whole");
    let device = DeviceOptions { isa: Some(Isa::Scalar), threads: Some(1), ..DeviceOptions::default() };
    let options = OpenOptions { device, ..OpenOptions::default() };
    let model = Model::from_checkpoint(&checkpoint, &options, &mut |_, _| {}).expect("it is whole");
    model.into_engine(EngineOptions::default())
}

thread_local! {
    /// One for all inputs, so that what an adapter leaves behind meets the next.
    static ENGINE: RefCell<Engine> = RefCell::new(engine());
}

fuzz_target!(|data: &[u8]| {
    let Some(end) = data.iter().position(|b| *b == 0) else { return };
    let dir = std::env::temp_dir().join(format!("bitnet-fuzz-adapter-{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("a folder for files");
    std::fs::write(dir.join("adapter_config.json"), &data[..end]).expect("the disk has room");
    std::fs::write(dir.join("adapter_model.safetensors"), &data[end + 1..]).expect("the disk has room");
    ENGINE.with_borrow_mut(|engine| {
        let Ok(id) = engine.load_adapter(&dir, 1.0) else { return };
        let adapters = Some(vec![AdapterUse { id, scale: 1.0 }]);
        let request = Request { prompt: vec![0, 1], max_tokens: Some(2), adapters, ..Request::default() };
        engine.submit(&request).expect("nothing is wrong with it");
        let mut events = Vec::new();
        while !engine.is_idle() {
            engine.step(&mut events);
        }
        let ends = |news: &News| matches!(news, News::Finished { .. } | News::Failed(_));
        assert_eq!(events.iter().filter(|event| ends(&event.news)).count(), 1);
        engine.unload_adapter(id).expect("it is loaded");
    });
});
