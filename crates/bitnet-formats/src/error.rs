//! What can be wrong with a file.

use std::path::{Path, PathBuf};

/// Why a checkpoint could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FormatError {
    /// The operating system refused.
    #[error("{}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is of no known kind.
    #[error("{}: {what}", path.display())]
    Unrecognized {
        /// The file.
        path: PathBuf,
        /// What it is or is not.
        what: &'static str,
    },
    /// A directory lacks a file.
    #[error("{} has no {file}", path.display())]
    MissingFile {
        /// The directory.
        path: PathBuf,
        /// What is absent.
        file: String,
    },
    /// A JSON file does not parse or has the wrong form.
    #[error("{} is not valid JSON of its kind: {what}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// A safetensors header is not valid.
    #[error("{} is not a valid safetensors file: {what}", path.display())]
    Safetensors {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// A GGUF header is not valid.
    #[error("{} is not a valid GGUF file: {what}", path.display())]
    Gguf {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// A PyTorch file is not valid, or asks for more than tensors.
    #[error("{} is not a valid PyTorch file of tensors: {what}", path.display())]
    Torch {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// An ONNX file is not valid.
    #[error("{} is not a valid ONNX file: {what}", path.display())]
    Onnx {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// A GGUF tensor has a type that cannot be read.
    #[error("{}: tensor {tensor:?} has type {id} ({name}); {hint}", path.display())]
    TensorType {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The type's number.
        id: u32,
        /// Its name, as far as it is known.
        name: &'static str,
        /// What would read it.
        hint: &'static str,
    },
    /// A tensor stands in two places.
    #[error("{}: tensor {tensor:?} stands there twice", path.display())]
    Duplicate {
        /// The file or directory.
        path: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// What is to be written does not fit the file that was begun.
    #[error("{}: {what}", path.display())]
    Write {
        /// The target.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
}

impl FormatError {
    pub(crate) fn gguf(path: &Path, what: impl Into<String>) -> Self {
        Self::Gguf { path: path.to_owned(), what: what.into() }
    }
    pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self + '_ {
        move |source| Self::Io { path: path.to_owned(), source }
    }
}
