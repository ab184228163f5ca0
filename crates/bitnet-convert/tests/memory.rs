//! How much memory a conversion takes: alone in its process, whose peak is what is looked at.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use bitnet_convert::{ConvertOptions, Target, convert};
use serde_json::{Map, json};
use std::fs::File;
use std::io::Write;
use std::path::Path;

/// The most memory this process has had, in bytes.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() * 1024
}

/// Tensors of the shapes of BitNet 2B-4T, with all of its embedding and two of its thirty layers. The file has holes for
/// its numbers, so that it takes no space.
fn two_layers(dir: &Path) -> u64 {
    let (hidden, ffn, kv) = (2560, 6912, 640);
    let mut tensors: Vec<(String, Vec<usize>)> = vec![
        ("model.embed_tokens.weight".to_owned(), vec![128_256, hidden]),
        ("model.norm.weight".to_owned(), vec![hidden]),
    ];
    for layer in 0..2 {
        for (name, shape) in [
            ("input_layernorm", vec![hidden]),
            ("post_attention_layernorm", vec![hidden]),
            ("self_attn.attn_sub_norm", vec![hidden]),
            ("mlp.ffn_sub_norm", vec![ffn]),
            ("self_attn.q_proj", vec![hidden, hidden]),
            ("self_attn.k_proj", vec![kv, hidden]),
            ("self_attn.v_proj", vec![kv, hidden]),
            ("self_attn.o_proj", vec![hidden, hidden]),
            ("mlp.gate_proj", vec![ffn, hidden]),
            ("mlp.up_proj", vec![ffn, hidden]),
            ("mlp.down_proj", vec![hidden, ffn]),
        ] {
            tensors.push((format!("model.layers.{layer}.{name}.weight"), shape));
        }
    }
    let (mut header, mut at) = (Map::new(), 0);
    for (name, shape) in tensors {
        let end = at + 2 * shape.iter().product::<usize>();
        header.insert(name, json!({"dtype": "BF16", "shape": shape, "data_offsets": [at, end]}));
        at = end;
    }
    let header = serde_json::to_vec(&header).unwrap();
    let mut file = File::create(dir.join("model.safetensors")).unwrap();
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(&header).unwrap();
    let len = 8 + header.len() as u64 + at as u64;
    file.set_len(len).unwrap();
    let config = json!({
        "architectures": ["BitNetForCausalLM"], "hidden_size": hidden, "intermediate_size": ffn,
        "num_hidden_layers": 2, "num_attention_heads": 20, "num_key_value_heads": 5, "vocab_size": 128_256,
        "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "tie_word_embeddings": true,
        "quantization_config": {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "online"},
    });
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    len
}

#[test]
fn memory_is_that_of_a_few_tensors() {
    let folder = tempfile::tempdir().unwrap();
    let len = two_layers(folder.path());
    assert!(len > 800 << 20);
    let model = bitnet_formats::open(folder.path()).unwrap();
    let options = ConvertOptions::new(Target::find("i2_s").unwrap());
    let report = convert(&model, Path::new("/dev/null"), &options, &mut |_, _| {}).unwrap();
    assert!(report.input_bytes > 800 << 20);
    assert!(peak() < 256 << 20, "{} MB", peak() >> 20);
}
