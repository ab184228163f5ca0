//! Checkpoint files made byte by byte from the formats' descriptions, right or wrong: nothing in them is checked.

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
    Strings(&'a [&'a str]),
    I32s(&'a [i32]),
}

impl Key<'_> {
    /// The number of the type, and the value.
    fn bytes(&self) -> Vec<u8> {
        let typed = |id: u32, value: &[u8]| [&id.to_le_bytes(), value].concat();
        let list = |id: u32, len: usize, values: Vec<u8>| {
            typed(9, &[typed(id, &(len as u64).to_le_bytes()), values].concat())
        };
        match self {
            Self::U32(v) => typed(4, &v.to_le_bytes()),
            Self::F32(v) => typed(6, &v.to_le_bytes()),
            Self::String(v) => typed(8, &string(v)),
            Self::Strings(v) => list(8, v.len(), v.iter().flat_map(|v| string(v)).collect()),
            Self::I32s(v) => list(5, v.len(), v.iter().flat_map(|v| v.to_le_bytes()).collect()),
        }
    }
}

/// A GGUF file in the making, little-endian.
#[derive(Clone, Debug)]
pub struct Gguf {
    /// The version it claims.
    pub version: u32,
    /// Its tensors, and where in the data each begins: behind the one before it when `None`.
    pub tensors: Vec<(Stored, Option<u64>)>,
    keys: Vec<(String, Vec<u8>)>,
}

const ALIGNMENT: usize = 32;

fn string(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

impl Gguf {
    /// A file of a version, without keys and tensors.
    pub fn new(version: u32) -> Self {
        Self { version, tensors: Vec::new(), keys: Vec::new() }
    }

    /// Gives a key its value; one that is there already keeps its place.
    pub fn set(&mut self, key: &str, value: Key<'_>) {
        match self.keys.iter_mut().find(|(k, _)| k == key) {
            Some((_, old)) => *old = value.bytes(),
            None => self.keys.push((key.to_owned(), value.bytes())),
        }
    }

    /// Adds a tensor of the type with a number.
    pub fn push(&mut self, name: &str, shape: &[usize], id: u32, bytes: Vec<u8>) {
        let (name, shape) = (name.to_owned(), shape.to_vec());
        self.tensors.push((Stored { name, shape, ttype: (id, ""), bytes }, None));
    }

    /// The tensor of a name, and where it is to begin.
    pub fn get(&mut self, name: &str) -> &mut (Stored, Option<u64>) {
        self.tensors.iter_mut().find(|(t, _)| t.name == name).unwrap()
    }

    /// Takes a tensor or a key out.
    pub fn remove(&mut self, name: &str) {
        let before = self.tensors.len() + self.keys.len();
        self.tensors.retain(|(t, _)| t.name != name);
        self.keys.retain(|(k, _)| k != name);
        assert!(self.tensors.len() + self.keys.len() < before, "there is no {name:?}");
    }

    /// The file.
    pub fn bytes(&self) -> Vec<u8> {
        let mut out = [b"GGUF", &self.version.to_le_bytes()[..]].concat();
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.keys.len() as u64).to_le_bytes());
        for (key, value) in &self.keys {
            out.extend(string(key));
            out.extend(value);
        }
        let mut data = Vec::new();
        for (t, offset) in &self.tensors {
            out.extend(string(&t.name));
            out.extend((t.shape.len() as u32).to_le_bytes());
            t.shape.iter().rev().for_each(|dim| out.extend((*dim as u64).to_le_bytes()));
            out.extend(t.ttype.0.to_le_bytes());
            out.extend(offset.unwrap_or(data.len() as u64).to_le_bytes());
            data.extend(&t.bytes);
            data.resize(data.len().next_multiple_of(ALIGNMENT), 0);
        }
        out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
        [out, data].concat()
    }
}

/// A safetensors file.
pub fn safetensors(tensors: &[Stored]) -> Vec<u8> {
    let (mut header, mut data) = (Map::new(), Vec::new());
    for t in tensors {
        let from = data.len();
        data.extend(&t.bytes);
        let entry = json!({"dtype": t.ttype.1, "shape": t.shape, "data_offsets": [from, data.len()]});
        header.insert(t.name.clone(), entry);
    }
    with_header(&Value::Object(header).to_string(), &data)
}

/// A safetensors file of a header and data: length of the header, header, data.
pub fn with_header(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
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
