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

const HIDDEN: usize = 2560;
const FFN: usize = 6912;
const VOCAB: usize = 128_256;

/// Names and shapes of BitNet 2B-4T's tensors, with all of its embedding and two of its thirty layers.
fn two_layers() -> Vec<(String, Vec<usize>)> {
    let kv = HIDDEN / 4;
    let mut tensors = vec![
        ("model.embed_tokens.weight".to_owned(), vec![VOCAB, HIDDEN]),
        ("model.norm.weight".to_owned(), vec![HIDDEN]),
    ];
    for layer in 0..2 {
        for (name, shape) in [
            ("input_layernorm", vec![HIDDEN]),
            ("post_attention_layernorm", vec![HIDDEN]),
            ("self_attn.attn_sub_norm", vec![HIDDEN]),
            ("mlp.ffn_sub_norm", vec![FFN]),
            ("self_attn.q_proj", vec![HIDDEN, HIDDEN]),
            ("self_attn.k_proj", vec![kv, HIDDEN]),
            ("self_attn.v_proj", vec![kv, HIDDEN]),
            ("self_attn.o_proj", vec![HIDDEN, HIDDEN]),
            ("mlp.gate_proj", vec![FFN, HIDDEN]),
            ("mlp.up_proj", vec![FFN, HIDDEN]),
            ("mlp.down_proj", vec![HIDDEN, FFN]),
        ] {
            tensors.push((format!("model.layers.{layer}.{name}.weight"), shape));
        }
    }
    tensors
}

fn config(dir: &Path, tied: bool) {
    let config = json!({
        "architectures": ["BitNetForCausalLM"], "hidden_size": HIDDEN, "intermediate_size": FFN,
        "num_hidden_layers": 2, "num_attention_heads": 20, "num_key_value_heads": 5, "vocab_size": VOCAB,
        "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "tie_word_embeddings": tied,
        "quantization_config": {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "online"},
    });
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
}

fn bytes(shape: &[usize]) -> usize {
    2 * shape.iter().product::<usize>()
}

/// Safetensors with holes for numbers, so that they take no space.
fn safetensors(dir: &Path) {
    let (mut header, mut at) = (Map::new(), 0);
    for (name, shape) in two_layers() {
        let end = at + bytes(&shape);
        header.insert(name, json!({"dtype": "BF16", "shape": shape, "data_offsets": [at, end]}));
        at = end;
    }
    let header = serde_json::to_vec(&header).unwrap();
    let mut file = File::create(dir.join("model.safetensors")).unwrap();
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(&header).unwrap();
    file.set_len(8 + header.len() as u64 + at as u64).unwrap();
    config(dir, true);
}

/// A field of a protocol buffer: a number, or bytes behind their length.
fn field(out: &mut Vec<u8>, number: u8, value: Result<usize, &[u8]>) {
    out.push(number << 3 | if value.is_ok() { 0 } else { 2 });
    let mut rest = value.unwrap_or_else(<[u8]>::len);
    while rest > 127 {
        out.push(rest as u8 | 128);
        rest >>= 7;
    }
    out.push(rest as u8);
    out.extend(value.err().unwrap_or_default());
}

/// A graph as exporters leave it: every matrix of a product transposed, the head's too. Numbers are holes of a file beside it.
fn onnx(dir: &Path) {
    let (mut graph, mut at) = (Vec::new(), 0);
    let head = ("lm_head.weight".to_owned(), vec![VOCAB, HIDDEN]);
    for (i, (mut name, mut shape)) in two_layers().into_iter().chain([head]).enumerate() {
        if name.contains("_proj.") || name.contains("head") {
            let module = name.strip_suffix(".weight").unwrap().replace('.', "/");
            name = format!("onnx::MatMul_{i}");
            shape.reverse();
            let mut node = Vec::new();
            field(&mut node, 1, Err(b"x"));
            field(&mut node, 1, Err(name.as_bytes()));
            field(&mut node, 3, Err(format!("/{module}/MatMul").as_bytes()));
            field(&mut node, 4, Err(b"MatMul"));
            field(&mut graph, 1, Err(&node));
        }
        let mut tensor = Vec::new();
        shape.iter().for_each(|dim| field(&mut tensor, 1, Ok(*dim)));
        field(&mut tensor, 2, Ok(16));
        field(&mut tensor, 8, Err(name.as_bytes()));
        let len = bytes(&shape);
        for (key, value) in
            [("location", "weights".to_owned()), ("offset", at.to_string()), ("length", len.to_string())]
        {
            let mut entry = Vec::new();
            field(&mut entry, 1, Err(key.as_bytes()));
            field(&mut entry, 2, Err(value.as_bytes()));
            field(&mut tensor, 13, Err(&entry));
        }
        field(&mut tensor, 14, Ok(1));
        field(&mut graph, 5, Err(&tensor));
        at += len;
    }
    File::create(dir.join("weights")).unwrap().set_len(at as u64).unwrap();
    let mut model = Vec::new();
    field(&mut model, 1, Ok(8));
    field(&mut model, 7, Err(&graph));
    std::fs::write(dir.join("model.onnx"), model).unwrap();
    config(dir, false);
}

#[test]
fn memory_is_that_of_a_few_tensors() {
    // The process has one peak: what takes least goes first.
    for (write, input_mb, peak_mb) in [(safetensors as fn(&Path), 800, 256), (onnx, 1400, 384)] {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path());
        let model = bitnet_formats::open(folder.path()).unwrap();
        let options = ConvertOptions::new(Target::find("i2_s").unwrap());
        let report = convert(&model, Path::new("/dev/null"), &options, &mut |_, _| {}).unwrap();
        assert!(report.input_bytes > input_mb << 20, "{} MB", report.input_bytes >> 20);
        println!("{}: {} MB of {} MB", model.container, peak() >> 20, report.input_bytes >> 20);
        assert!(peak() < peak_mb << 20, "{}: {} MB", model.container, peak() >> 20);
    }
}
