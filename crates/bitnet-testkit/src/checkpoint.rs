//! Checkpoint files written byte by byte, from the formats' descriptions.

use serde_json::{Map, Value, json};
use std::path::Path;

/// A tensor in the type of its file.
#[derive(Clone, Debug)]
pub struct Stored {
    /// Its name.
    pub name: String,
    /// Rows first.
    pub shape: Vec<usize>,
    /// Its type: the number in GGUF, the name in safetensors.
    pub ttype: (u32, &'static str),
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// A value of GGUF metadata.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs, reason = "the names are the format's own")]
pub enum Key<'a> {
    U32(u32),
    F32(f32),
    String(&'a str),
}

const ALIGNMENT: usize = 32;

/// A GGUF file of version 2 or 3, little-endian.
pub fn gguf(version: u32, keys: &[(String, Key<'_>)], tensors: &[Stored]) -> Vec<u8> {
    let mut out = Vec::from(*b"GGUF");
    let string = |out: &mut Vec<u8>, s: &str| {
        out.extend((s.len() as u64).to_le_bytes());
        out.extend(s.as_bytes());
    };
    out.extend(version.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((keys.len() as u64).to_le_bytes());
    for (key, value) in keys {
        string(&mut out, key);
        match value {
            Key::U32(v) => out.extend([4u32.to_le_bytes(), v.to_le_bytes()].concat()),
            Key::F32(v) => out.extend([6u32.to_le_bytes(), v.to_le_bytes()].concat()),
            Key::String(v) => {
                out.extend(8u32.to_le_bytes());
                string(&mut out, v);
            }
        }
    }
    let mut offset = 0;
    for t in tensors {
        string(&mut out, &t.name);
        out.extend((t.shape.len() as u32).to_le_bytes());
        t.shape.iter().rev().for_each(|d| out.extend((*d as u64).to_le_bytes()));
        out.extend(t.ttype.0.to_le_bytes());
        out.extend((offset as u64).to_le_bytes());
        offset += t.bytes.len().next_multiple_of(ALIGNMENT);
    }
    for t in tensors {
        out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
        out.extend(&t.bytes);
    }
    out
}

/// A safetensors file: length of the header, header, data.
pub fn safetensors(tensors: &[Stored]) -> Vec<u8> {
    let (mut header, mut data) = (Map::new(), Vec::new());
    for t in tensors {
        let from = data.len();
        data.extend(&t.bytes);
        let entry = json!({"dtype": t.ttype.1, "shape": t.shape, "data_offsets": [from, data.len()]});
        header.insert(t.name.clone(), entry);
    }
    let header = Value::Object(header).to_string();
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &data].concat()
}

/// A Hugging Face directory with one file of tensors, or with `shards` of them and an index.
pub fn huggingface(dir: &Path, config: &Value, tensors: &[Stored], shards: usize) {
    let write = |name: &str, bytes: &[u8]| std::fs::write(dir.join(name), bytes).unwrap();
    write("config.json", config.to_string().as_bytes());
    if shards == 1 {
        return write("model.safetensors", &safetensors(tensors));
    }
    let mut index = Map::new();
    for (i, shard) in tensors.chunks(tensors.len().div_ceil(shards)).enumerate() {
        let file = format!("model-{:05}-of-{shards:05}.safetensors", i + 1);
        write(&file, &safetensors(shard));
        index.extend(shard.iter().map(|t| (t.name.clone(), json!(file))));
    }
    write(
        "model.safetensors.index.json",
        json!({"metadata": {}, "weight_map": index}).to_string().as_bytes(),
    );
}
