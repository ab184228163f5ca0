//! Tokens a second and memory of training steps: the model of 12.2 million parameters, 8 rows of 256 tokens, that PyTorch is measured with.
//!
//! `cargo bench -p bitnet-training -- THREADS STEPS [f32|bf16] [INSTRUCTION SET]`
#![allow(missing_docs, clippy::unwrap_used, reason = "a measurement fails by panicking")]

use bitnet_cpu::{CpuTraining, Terms};
use bitnet_formats::{Checkpoint, Header};
use bitnet_model::{ModelConfig, ModelTensors};
use bitnet_training::{Adam, Array, Batch, Model, Ops, Optimizer, Parameters, Precision, Rates, clip};
use serde_json::{Value, json};
use std::path::Path;
use std::time::Instant;

const VOCAB: u32 = 4096;
const TOKENS: usize = 256;
const ROWS: usize = 8;

/// MurmurHash3's finalizer.
fn fmix32(mut h: u32) -> u32 {
    h ^= h >> 16;
    h = h.wrapping_mul(0x85EB_CA6B);
    h ^= h >> 13;
    h = h.wrapping_mul(0xC2B2_AE35);
    h ^ h >> 16
}

/// The largest resident memory so far, in MiB; 0 where the system does not say.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
    line.and_then(|l| l.trim().trim_end_matches(" kB").parse::<u64>().ok()).unwrap_or(0) / 1024
}

fn main() {
    let numbers: Vec<usize> = std::env::args().filter_map(|a| a.parse().ok()).collect();
    let threads = numbers.first().copied();
    let steps = numbers.get(1).copied().unwrap_or(8);
    let terms = if std::env::args().any(|a| a == "f32") { Terms::F32 } else { Terms::Bf16 };
    let precision = Precision { terms, ..Precision::BITNET };
    let isa = std::env::args().find_map(|a| a.parse().ok());
    let config = json!({
        "architectures": ["BitNetForCausalLM"], "model_type": "bitnet", "hidden_act": "relu2", "hidden_size": 384,
        "intermediate_size": 1024, "num_hidden_layers": 6, "num_attention_heads": 6, "num_key_value_heads": 6,
        "vocab_size": VOCAB, "max_position_embeddings": TOKENS, "rope_theta": 500000.0, "rms_norm_eps": 1e-5,
        "tie_word_embeddings": true,
    });
    let header = Header::HuggingFace { dir: ".".into(), config, generation_config: Value::Null };
    let checkpoint = Checkpoint::new(Path::new("."), header, Vec::new()).unwrap();
    let config = ModelConfig::read(&checkpoint).unwrap();
    let tensors = ModelTensors::new(&checkpoint, &config);
    let parameters = Parameters::new(&config, &tensors);
    let values = parameters.fresh(0, 0.05);
    let ops = Ops::from(CpuTraining::new(isa, threads).unwrap());
    println!("{} parameters, {} threads, {}", parameters.len(), ops.threads(), ops.isa());
    let mut model = Model::new(ops, config.clone(), parameters, values, precision, false).unwrap();
    let mut batch = Batch::default();
    for row in 0..ROWS {
        let from = row * (TOKENS + 1);
        let ids: Vec<u32> = (from..from + TOKENS + 1).map(|n| fmix32(n as u32) % VOCAB).collect();
        batch.push(&ids, |_| true);
    }
    let optimizer = Optimizer::AdamW(Adam { betas: (0.9, 0.95), eps: 1e-8 });
    let mut buffers = vec![Array::from(vec![0.0; model.values.len()]); optimizer.buffers()];
    let (total, mut best) = (batch.counted(), f64::MAX);
    for step in 0..steps {
        let begin = Instant::now();
        model.quantize().unwrap();
        model.forget_gradients();
        let loss = model.backward(&batch, total) / total as f64;
        let passes = begin.elapsed().as_secs_f64();
        let scale = clip(model.gradient_norm(), Some(1.0));
        model.update(
            &optimizer,
            Rates { rate: 1e-3, decay: 0.1, scale, step: step as u64 + 1 },
            &mut buffers,
        );
        let seconds = begin.elapsed().as_secs_f64();
        if step > 0 {
            best = best.min(seconds);
        }
        println!(
            "step {step} loss {loss:.4} passes {passes:.3} s optimizer {:.3} s {:.0} tokens/s peak {} MiB",
            seconds - passes,
            total as f64 / seconds,
            peak()
        );
    }
    if best < f64::MAX {
        println!("best {:.0} tokens/s peak {} MiB", total as f64 / best, peak());
    }
}
