//! The writer: a graph in one file, its large tensors in another one beside it.

use super::ELEMENTS;
use super::wire::{put_bytes, put_float, put_number};
use crate::atomic::AtomicFile;
use crate::safetensors_file::TensorInfo;
use crate::{FormatError, write_file};
use std::path::Path;

/// An attribute of a node.
#[derive(Clone, Debug, PartialEq)]
pub enum Attribute {
    /// A whole number.
    Int(i64),
    /// Several of them.
    Ints(Vec<i64>),
    /// A float.
    Float(f32),
}

/// An operation.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// Its kind, as ONNX calls it.
    pub op: &'static str,
    /// Names of what it takes.
    pub inputs: Vec<String>,
    /// Names of what it gives.
    pub outputs: Vec<String>,
    /// Its attributes.
    pub attributes: Vec<(&'static str, Attribute)>,
}

/// What goes into a graph or comes out of it: a name, a type (`I64`, `F32`), and the names of its dimensions.
#[derive(Clone, Debug, PartialEq)]
pub struct Value {
    /// Its name.
    pub name: &'static str,
    /// Its element type.
    pub dtype: &'static str,
    /// Numbers, or names of what differs from run to run.
    pub dims: Vec<String>,
}

/// A graph without its large tensors.
#[derive(Clone, Debug, Default)]
pub struct Graph {
    /// Operations, each behind those whose results it takes.
    pub nodes: Vec<Node>,
    /// Small tensors: description and bytes.
    pub constants: Vec<(TensorInfo, Vec<u8>)>,
    /// What goes in.
    pub inputs: Vec<Value>,
    /// What comes out.
    pub outputs: Vec<Value>,
}

/// Version of the file format, and of the operations.
const IR_VERSION: u64 = 8;
const OPSET: u64 = 17;
/// Runtimes map tensors into memory, page by page.
const ALIGNMENT: u64 = 4096;

/// Writes the tensors that a graph refers to, in the order they were announced. The file of tensors appears when it is
/// whole, and the graph after it.
pub struct Writer {
    file: AtomicFile,
    graph: Vec<u8>,
    path: std::path::PathBuf,
    /// Bytes of each tensor, and of the padding behind it.
    tensors: Vec<(u64, u64)>,
    next: usize,
    written: u64,
}

impl Writer {
    /// Begins `model.onnx` and `model.onnx_data` in a directory.
    pub fn create(dir: &Path, graph: &Graph, tensors: &[TensorInfo]) -> Result<Self, FormatError> {
        let path = dir.join("model.onnx");
        let fail = |what: String| FormatError::Write { path: path.clone(), what };
        let (mut message, mut sizes, mut offset) = (Vec::new(), Vec::new(), 0u64);
        for node in &graph.nodes {
            put_bytes(&mut message, 1, encode_node(node));
        }
        put_bytes(&mut message, 2, "bitnet");
        for (info, bytes) in &graph.constants {
            let mut t =
                describe(info).ok_or_else(|| fail(format!("constant {:?} has no such type", info.name)))?;
            put_bytes(&mut t, 9, bytes);
            put_bytes(&mut message, 5, t);
        }
        for info in tensors {
            let t = describe(info).zip(info.bytes());
            let (mut t, len) = t.ok_or_else(|| fail(format!("tensor {:?} has no such type", info.name)))?;
            let len = len as u64;
            for (key, value) in [
                ("location", "model.onnx_data".to_owned()),
                ("offset", offset.to_string()),
                ("length", len.to_string()),
            ] {
                let mut entry = Vec::new();
                put_bytes(&mut entry, 1, key);
                put_bytes(&mut entry, 2, value);
                put_bytes(&mut t, 13, entry);
            }
            put_number(&mut t, 14, 1);
            put_bytes(&mut message, 5, t);
            let padding = len.next_multiple_of(ALIGNMENT) - len;
            sizes.push((len, padding));
            offset += len + padding;
        }
        for (field, values) in [(11, &graph.inputs), (12, &graph.outputs)] {
            for value in values {
                let value =
                    encode_value(value).ok_or_else(|| fail(format!("{:?} has no such type", value.name)))?;
                put_bytes(&mut message, field, value);
            }
        }
        let mut model = Vec::new();
        put_number(&mut model, 1, IR_VERSION);
        put_bytes(&mut model, 2, "bitnet");
        put_bytes(&mut model, 7, message);
        let mut opset = Vec::new();
        put_bytes(&mut opset, 1, "");
        put_number(&mut opset, 2, OPSET);
        put_bytes(&mut model, 8, opset);
        let file = AtomicFile::create(&dir.join("model.onnx_data"))?;
        Ok(Self { file, graph: model, path, tensors: sizes, next: 0, written: 0 })
    }

    /// Writes the next bytes of the present tensor; when it is full, the next one is at hand.
    pub fn write(&mut self, data: &[u8]) -> Result<(), FormatError> {
        let Some(&(len, padding)) = self.tensors.get(self.next) else {
            let what = format!("{} bytes more than its tensors take", data.len());
            return Err(FormatError::Write { path: self.path.clone(), what });
        };
        self.written += data.len() as u64;
        if self.written > len {
            let what = format!("tensor {} takes {len} bytes, there are more", self.next);
            return Err(FormatError::Write { path: self.path.clone(), what });
        }
        self.file.write(data)?;
        if self.written == len {
            self.file.write(&vec![0; padding as usize])?;
            (self.next, self.written) = (self.next + 1, 0);
        }
        Ok(())
    }

    /// Flushes to the disk what is there so far.
    pub fn sync(&mut self) -> Result<(), FormatError> {
        self.file.sync()
    }

    /// Flushes, and gives both files their names.
    pub fn finish(self) -> Result<(), FormatError> {
        if self.next < self.tensors.len() {
            let what = format!("tensor {} was not written", self.next);
            return Err(FormatError::Write { path: self.path, what });
        }
        self.file.finish()?;
        write_file(&self.path, &self.graph)
    }
}

fn element(dtype: &str) -> Option<u64> {
    ELEMENTS.iter().find(|(_, name, _)| *name == dtype).map(|(id, ..)| *id)
}

fn describe(info: &TensorInfo) -> Option<Vec<u8>> {
    let mut t = Vec::new();
    info.shape.iter().for_each(|n| put_number(&mut t, 1, *n as u64));
    put_number(&mut t, 2, element(info.dtype)?);
    put_bytes(&mut t, 8, &info.name);
    Some(t)
}

fn encode_node(node: &Node) -> Vec<u8> {
    let mut out = Vec::new();
    node.inputs.iter().for_each(|name| put_bytes(&mut out, 1, name));
    node.outputs.iter().for_each(|name| put_bytes(&mut out, 2, name));
    // The name of its first result is one that no other node has.
    put_bytes(&mut out, 3, node.outputs.first().map_or("", String::as_str));
    put_bytes(&mut out, 4, node.op);
    for (name, attribute) in &node.attributes {
        let mut a = Vec::new();
        put_bytes(&mut a, 1, name);
        let kind = match attribute {
            Attribute::Float(f) => {
                put_float(&mut a, 2, *f);
                1
            }
            Attribute::Int(n) => {
                put_number(&mut a, 3, *n as u64);
                2
            }
            Attribute::Ints(list) => {
                list.iter().for_each(|n| put_number(&mut a, 8, *n as u64));
                7
            }
        };
        put_number(&mut a, 20, kind);
        put_bytes(&mut out, 5, a);
    }
    out
}

fn encode_value(value: &Value) -> Option<Vec<u8>> {
    let mut shape = Vec::new();
    for dim in &value.dims {
        let mut d = Vec::new();
        match dim.parse() {
            Ok(n) => put_number(&mut d, 1, n),
            Err(_) => put_bytes(&mut d, 2, dim),
        }
        put_bytes(&mut shape, 1, d);
    }
    let (mut tensor, mut kind, mut out) = (Vec::new(), Vec::new(), Vec::new());
    put_number(&mut tensor, 1, element(value.dtype)?);
    put_bytes(&mut tensor, 2, shape);
    put_bytes(&mut kind, 1, tensor);
    put_bytes(&mut out, 1, value.name);
    put_bytes(&mut out, 2, kind);
    Some(out)
}
