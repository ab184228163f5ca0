//! Checkpoint files: Hugging Face directories, safetensors, PyTorch checkpoints, ONNX and GGUF.
//!
//! [`open`] maps the files, reads headers and checks every word of them against the bytes that are there; tensor data is
//! touched when it is used. This crate knows no model and no device.
#![deny(unsafe_code)]

mod adapter;
mod atomic;
mod checkpoint;
mod data;
mod error;
pub mod gguf;
mod huggingface;
mod map;
pub mod onnx;
pub mod safetensors_file;
pub mod torch;

pub use adapter::{AdapterFiles, open_adapter};
pub use atomic::{AtomicFile, NewDirectory, write_file};
pub use checkpoint::{Checkpoint, Header, Tensor, TensorType};
pub use data::{Strided, TensorData};
pub use error::FormatError;
pub use gguf::ReadOptions;
pub use huggingface::{CARD_FILES, TOKENIZER_FILES, pooling_config};
pub use map::map as map_file;

use std::path::Path;

/// Opens a model: a Hugging Face directory, a `.safetensors` file, a PyTorch checkpoint or an ONNX file with its `config.json` beside it, or
/// a GGUF file.
///
/// # Errors
/// [`FormatError`] names the file and what is wrong with it.
pub fn open(path: &Path) -> Result<Checkpoint, FormatError> {
    open_with(path, &ReadOptions::default())
}

/// The same of a GGUF file that does not say everything.
///
/// # Errors
/// [`FormatError`] names the file and what is wrong with it.
pub fn open_with(path: &Path, options: &ReadOptions) -> Result<Checkpoint, FormatError> {
    let kind = std::fs::metadata(path).map_err(|source| FormatError::Io { path: path.to_owned(), source })?;
    let needless = |path: &Path| FormatError::Unrecognized {
        path: path.to_owned(),
        what: "it is no GGUF file, and only GGUF has types with two layouts",
    };
    if kind.is_dir() {
        if options.layout.is_some() {
            return Err(needless(path));
        }
        return huggingface::open_dir(path);
    }
    let bytes = map::map(path)?;
    if bytes.starts_with(&gguf::MAGIC) {
        return gguf::read_with(path, bytes, options);
    }
    if options.layout.is_some() {
        return Err(needless(path));
    }
    if bytes.starts_with(&gguf::MAGIC_BIG_ENDIAN) {
        return Err(FormatError::gguf(path, "it is big-endian, which is not supported"));
    }
    if bytes.is_empty() {
        return Err(FormatError::Unrecognized { path: path.to_owned(), what: "the file is empty" });
    }
    if safetensors_file::looks_like(&bytes) {
        return huggingface::open_file(path, huggingface::Tensors::safetensors(path, &bytes)?);
    }
    if torch::looks_like(&bytes) {
        return huggingface::open_file(path, huggingface::Tensors::torch(path, &bytes)?);
    }
    if onnx::looks_like(&bytes) {
        return huggingface::open_file(path, huggingface::Tensors::onnx(path, &bytes)?);
    }
    let what = "the file is neither GGUF nor safetensors, a PyTorch checkpoint or ONNX";
    Err(FormatError::Unrecognized { path: path.to_owned(), what })
}
