//! Records what the library allocates from the heap while it works: `record prefill|decode MODEL OUT` and `record training OUT`.
//!
//! Pages that are mapped (weights, the cache) are not seen; allocations below 1 KiB are not written down.

use bitnet_cpu::{CpuTraining, Terms};
use bitnet_formats::{Checkpoint, Header};
use bitnet_inference::{GenerateOptions, Model as Engine, OpenOptions};
use bitnet_memory::Tag;
use bitnet_memory_bench::trace::{Event, encode};
use bitnet_model::{ModelConfig, ModelTensors};
use bitnet_training::{Adam, Array, Batch, Model, Optimizer, Parameters, Precision, Rates, clip, norm};
use serde_json::{Value, json};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::UnsafeCell;
use std::collections::HashMap;
use std::error::Error;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

/// Events that there is room for.
const ROOM: usize = 1 << 20;
const SMALLEST: usize = 1 << 10;

/// The system's allocator, with its eyes open.
struct Recorder {
    on: AtomicBool,
    len: AtomicUsize,
    /// Address and size; size 0 for memory that is given back.
    events: UnsafeCell<[(usize, usize); ROOM]>,
}

// SAFETY: each event has a place of its own, and nobody reads before `on` is false.
unsafe impl Sync for Recorder {}

impl Recorder {
    fn note(&self, address: usize, bytes: usize) {
        if self.on.load(SeqCst) {
            let at = self.len.fetch_add(1, SeqCst);
            assert!(at < ROOM, "more events than there is room for");
            // SAFETY: the place is this event's alone.
            unsafe { (&raw mut (*self.events.get())[at]).write((address, bytes)) };
        }
    }
}

// SAFETY: the system's allocator does the work.
unsafe impl GlobalAlloc for Recorder {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise.
        let start = unsafe { System.alloc(layout) };
        if layout.size() >= SMALLEST {
            self.note(start as usize, layout.size());
        }
        start
    }

    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        if layout.size() >= SMALLEST {
            self.note(start as usize, 0);
        }
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(start, layout) }
    }
}

#[global_allocator]
static RECORDER: Recorder = Recorder {
    on: AtomicBool::new(false),
    len: AtomicUsize::new(0),
    events: UnsafeCell::new([(0, 0); ROOM]),
};

/// What was allocated while `work` ran.
fn record<R>(work: impl FnOnce() -> R) -> (R, Vec<Event>) {
    RECORDER.on.store(true, SeqCst);
    let result = work();
    RECORDER.on.store(false, SeqCst);
    let len = RECORDER.len.load(SeqCst);
    let (mut numbers, mut taken, mut events) = (HashMap::new(), 0, Vec::new());
    for at in 0..len {
        // SAFETY: all of them were written, and no more are.
        let (address, bytes) = unsafe { (*RECORDER.events.get())[at] };
        if bytes > 0 {
            numbers.insert(address, taken);
            taken += 1;
            events.push(Event::Take(bytes));
        } else if let Some(number) = numbers.remove(&address) {
            events.push(Event::Put(number));
        }
    }
    (result, events)
}

fn inference(model: &str, decode: bool) -> Result<Vec<Event>, Box<dyn Error>> {
    let mut model = Engine::open(model.as_ref(), &OpenOptions::default(), &mut |_, _| {})?;
    let prompt: Vec<u32> = (0..512).map(|i| 1000 + 7 * i).collect();
    let tokens = if decode { 128 } else { 1 };
    let options = || GenerateOptions { max_tokens: Some(tokens), ..GenerateOptions::default() };
    if !decode {
        let (count, events) = record(|| model.generate(&prompt, options()).map(Iterator::count));
        count?;
        return Ok(events);
    }
    let mut pieces = model.generate(&prompt[..4], options())?;
    pieces.next();
    Ok(record(|| pieces.count()).1)
}

fn training() -> Result<Vec<Event>, Box<dyn Error>> {
    const VOCAB: u32 = 4096;
    let config = json!({
        "architectures": ["BitNetForCausalLM"], "model_type": "bitnet", "hidden_act": "relu2", "hidden_size": 384,
        "intermediate_size": 1024, "num_hidden_layers": 6, "num_attention_heads": 6, "num_key_value_heads": 6,
        "vocab_size": VOCAB, "max_position_embeddings": 256, "rope_theta": 500000.0, "rms_norm_eps": 1e-5,
        "tie_word_embeddings": true,
    });
    let header = Header::HuggingFace { dir: ".".into(), config, generation_config: Value::Null };
    let checkpoint = Checkpoint::new(Path::new("."), header, Vec::new())?;
    let config = ModelConfig::read(&checkpoint)?;
    let parameters = Parameters::new(&config, &ModelTensors::new(&checkpoint, &config));
    let values = parameters.fresh(0, 0.05);
    let ops = Arc::new(CpuTraining::new(None, None)?);
    let precision = Precision { terms: Terms::Bf16, ..Precision::BITNET };
    let mut model = Model::new(Arc::clone(&ops), config, parameters, values, precision, false)?;
    let optimizer = Optimizer::AdamW(Adam { betas: (0.9, 0.95), eps: 1e-8 });
    let buffer = |_| Array::zeros(model.values.len(), Tag::Optimizer);
    let mut buffers: Vec<Array> = (0..optimizer.buffers()).map(buffer).collect();
    let (result, events) = record(|| -> Result<(), Box<dyn Error>> {
        for step in 0..4 {
            let mut batch = Batch::default();
            for row in 0..8u32 {
                let ids: Vec<u32> =
                    (0..257).map(|i| (row * 257 + i).wrapping_mul(2_654_435_761) % VOCAB).collect();
                batch.push(&ids, |_| true);
            }
            model.quantize()?;
            model.gradients.fill(0.0);
            model.backward(&batch, batch.counted());
            let scale = clip(norm(&ops, &model.gradients), Some(1.0));
            model.update(&optimizer, Rates { rate: 1e-3, decay: 0.1, scale, step: step + 1 }, &mut buffers);
        }
        Ok(())
    });
    result?;
    Ok(events)
}

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let (events, out) = match args[..] {
        ["prefill", model, out] => (inference(model, false)?, out),
        ["decode", model, out] => (inference(model, true)?, out),
        ["training", out] => (training()?, out),
        _ => return Err("usage: record prefill|decode MODEL OUT, or record training OUT".into()),
    };
    let bytes = encode(&events);
    println!("{} events, {} bytes", events.len(), bytes.len());
    let mut sizes: Vec<usize> =
        events.iter().filter_map(|e| if let Event::Take(bytes) = e { Some(*bytes) } else { None }).collect();
    sizes.sort_unstable();
    for bounds in [1 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20, 4 << 20, usize::MAX].windows(2) {
        let count = sizes.iter().filter(|bytes| (bounds[0]..bounds[1]).contains(bytes)).count();
        println!("from {} bytes: {count}", bounds[0]);
    }
    Ok(std::fs::write(out, bytes)?)
}
