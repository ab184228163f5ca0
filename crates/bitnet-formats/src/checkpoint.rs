//! What every file format is read into: named tensors in the type of the file, and the header beside them.

use crate::TensorData;
use crate::map::TrimHeap;
use bitnet_core::{Bytes, DenseType};
use bitnet_quant::packing::{Packing, Tile, Tiled};
use serde_json::Value;
use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// What the bytes of a tensor are.
#[derive(Clone, Copy, Debug)]
pub enum TensorType {
    /// Floats, or blocks of quantized floats.
    Dense(DenseType),
    /// Packed trits.
    Ternary(&'static Packing),
    /// Trits packed in tiles, which the file does not describe.
    Tiled(Tiled, Tile),
    /// Bytes without a meaning of their own: packed Hugging Face weights.
    U8,
    /// Any other element type, by its name in the file. It is carried, never computed with.
    Other(&'static str),
}

impl TensorType {
    /// The name of the type, as tools print it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Dense(d) => d.name(),
            Self::Ternary(p) => p.name,
            Self::Tiled(t, _) => t.name(),
            Self::U8 => "U8",
            Self::Other(name) => name,
        }
    }
}

/// One tensor: headers are read, the data is touched when it is used.
#[derive(Clone, Debug)]
pub struct Tensor {
    /// Name in the file.
    pub name: String,
    /// Shape, rows first (slowest dimension first) whatever the file's own order.
    pub shape: Vec<usize>,
    /// Type of the data.
    pub ttype: TensorType,
    /// The data, where it lies in the file's memory map where there is one.
    pub data: TensorData,
}

impl Tensor {
    /// All bytes, row after row: in place, or where the file has them in another order a copy, which costs its size for as long
    /// as it is kept and is made again for whoever asks again.
    pub fn bytes(&self) -> Bytes {
        self.data.bytes()
    }

    /// The bytes of some rows (indices of the slowest dimension), in the same way; `None` where there are no such rows.
    pub fn rows(&self, rows: Range<usize>) -> Option<Bytes> {
        self.data.rows(rows, *self.shape.first()?)
    }
}

/// What stands beside the tensors.
#[derive(Clone, Debug)]
pub enum Header {
    /// A Hugging Face directory.
    HuggingFace {
        /// The directory.
        dir: PathBuf,
        /// `config.json`.
        config: Value,
        /// `generation_config.json`, `Null` when there is none.
        generation_config: Value,
    },
    /// A GGUF file.
    Gguf {
        /// Version of the file format.
        version: u32,
        /// Keys and values in file order.
        metadata: crate::gguf::Metadata,
    },
}

/// A model on disk.
#[derive(Debug)]
pub struct Checkpoint {
    /// What was opened.
    pub path: PathBuf,
    /// Configuration and everything that is no tensor.
    pub header: Header,
    /// Tensors of its files that are no part of the model: optimizer state, mostly.
    pub others: Vec<Tensor>,
    /// What the tensors are stored in: `GGUF`, `safetensors`, `PyTorch` or `ONNX`.
    pub container: &'static str,
    tensors: Vec<Tensor>,
    by_name: HashMap<String, usize>,
    /// Last, so that it is dropped after a header of hundreds of thousands of strings.
    _trim: TrimHeap,
}

impl Checkpoint {
    /// Joins tensors and header; a name that stands twice is returned as the error.
    pub fn new(path: &Path, header: Header, tensors: Vec<Tensor>) -> Result<Self, String> {
        let mut by_name = HashMap::with_capacity(tensors.len());
        for (i, t) in tensors.iter().enumerate() {
            if by_name.insert(t.name.clone(), i).is_some() {
                return Err(t.name.clone());
            }
        }
        let container = match header {
            Header::Gguf { .. } => "GGUF",
            Header::HuggingFace { .. } => "safetensors",
        };
        let (path, others) = (path.to_owned(), Vec::new());
        Ok(Self { path, header, others, container, tensors, by_name, _trim: TrimHeap })
    }

    /// The same tensors beside a header that says nothing: all that preparing them again takes for whoever has read the configuration,
    /// without the strings of a vocabulary.
    #[must_use]
    pub fn without_header(&self) -> Self {
        Self {
            path: self.path.clone(),
            header: Header::Gguf { version: 0, metadata: Default::default() },
            others: Vec::new(),
            container: self.container,
            tensors: self.tensors.clone(),
            by_name: self.by_name.clone(),
            _trim: TrimHeap,
        }
    }

    /// All tensors in file order.
    pub fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    /// The tensor of a name.
    pub fn tensor(&self, name: &str) -> Option<&Tensor> {
        self.by_name.get(name).map(|&i| &self.tensors[i])
    }
}
