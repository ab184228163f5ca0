//! Low-rank adapters in the form in which peft saves them.

use crate::files::{Stored, safetensors};
use crate::tensors::{Noise, f32s};
use serde_json::{Value, json};
use std::path::Path;

/// A module of transformers' Llama class, and its matrix `[n, k]`.
pub type Module = (String, usize, usize);

/// What is added to a module's matrix before scaling: the product `[n, k]` of both low-rank matrices, row-major.
pub type Delta = Vec<f64>;

/// The seven projections of some layers. `q` and `kv` are the widths of queries and of keys.
pub fn projections(layers: usize, hidden: usize, ffn: usize, q: usize, kv: usize) -> Vec<Module> {
    let of_layer = |l: usize| {
        [
            ("self_attn.q_proj", q, hidden),
            ("self_attn.k_proj", kv, hidden),
            ("self_attn.v_proj", kv, hidden),
            ("self_attn.o_proj", hidden, q),
            ("mlp.gate_proj", ffn, hidden),
            ("mlp.up_proj", ffn, hidden),
            ("mlp.down_proj", hidden, ffn),
        ]
        .map(|(name, n, k)| (format!("model.layers.{l}.{name}"), n, k))
    };
    (0..layers).flat_map(of_layer).collect()
}

/// `adapter_config.json` of a plain adapter of `alpha` 6 for all projections.
pub fn config(rank: usize) -> Value {
    json!({"peft_type": "LORA", "r": rank, "lora_alpha": 6, "bias": "none", "use_rslora": false,
        "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]})
}

/// Writes an adapter of random matrices into a directory, and gives what it adds to each module.
pub fn write(dir: &Path, config: &Value, modules: &[Module], rank: usize, seed: u64) -> Vec<Delta> {
    let (mut noise, mut tensors, mut deltas) = (Noise(seed), Vec::new(), Vec::new());
    for (path, n, k) in modules {
        let (a, a_values) = f32s(&mut noise, rank * k, 0.1);
        let (b, b_values) = f32s(&mut noise, n * rank, 0.1);
        for (side, shape, bytes) in [("A", [rank, *k], a), ("B", [*n, rank], b)] {
            let name = format!("base_model.model.{path}.lora_{side}.weight");
            tensors.push(Stored { name, shape: shape.to_vec(), ttype: (0, "F32"), bytes });
        }
        let element =
            |i: usize| (0..rank).map(|r| b_values[i / k * rank + r] * a_values[r * k + i % k]).sum();
        deltas.push((0..n * k).map(element).collect());
    }
    std::fs::write(dir.join("adapter_config.json"), config.to_string()).unwrap();
    std::fs::write(dir.join("adapter_model.safetensors"), safetensors(&tensors)).unwrap();
    deltas
}
