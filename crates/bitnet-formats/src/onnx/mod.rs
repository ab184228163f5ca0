//! ONNX files: the tensors of a graph, and graphs to be written.
//!
//! The few messages that are needed are read and written here, field by field; the format is that of protocol buffers.

mod reader;
mod wire;
mod writer;

pub(crate) use reader::looks_like;
pub use reader::{Contents, read};
pub use writer::{Attribute, Graph, Node, Value, Writer};

/// Numbers of element types, with safetensors' names.
const ELEMENTS: [(u64, &str, usize); 13] = [
    (1, "F32", 4),
    (2, "U8", 1),
    (3, "I8", 1),
    (4, "U16", 2),
    (5, "I16", 2),
    (6, "I32", 4),
    (7, "I64", 8),
    (9, "BOOL", 1),
    (10, "F16", 2),
    (11, "F64", 8),
    (12, "U32", 4),
    (13, "U64", 8),
    (16, "BF16", 2),
];

#[cfg(test)]
mod tests;
