//! What can go wrong with a run.

use bitnet_formats::FormatError;
use bitnet_model::ModelError;
use bitnet_tokenizer::TokenizerError;
use std::path::PathBuf;

/// Why a run could not begin, or ended early.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainError {
    /// The operating system refused.
    #[error("{}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The configuration is not valid.
    #[error("{origin}: {what}")]
    Config {
        /// The file, or the flag.
        origin: String,
        /// The key, and what is wrong with it.
        what: String,
    },
    /// A file could not be read or written.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// A model could not be read.
    #[error("{}", path.display())]
    Model {
        /// Where it lies.
        path: PathBuf,
        /// Why.
        source: ModelError,
    },
    /// The tokenizer could not be read, or a text not be encoded.
    #[error("{}", path.display())]
    Tokenizer {
        /// What it was read from, or the text's file.
        path: PathBuf,
        /// Why.
        source: TokenizerError,
    },
    /// The architecture has parts that cannot be trained.
    #[error("{arch} has {what}, which cannot be trained yet")]
    Unsupported {
        /// Its name.
        arch: &'static str,
        /// The part.
        what: &'static str,
    },
    /// A weight of a checkpoint is no number.
    #[error("{}: {name} has values that are no numbers", path.display())]
    NotFinite {
        /// The checkpoint.
        path: PathBuf,
        /// The tensor.
        name: String,
    },
    /// A checkpoint has no weights for a tensor, or others.
    #[error("{}: {what}", path.display())]
    Checkpoint {
        /// The checkpoint.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// The data cannot be trained on.
    #[error("{what}")]
    Data {
        /// The file and line where there is one, and what is wrong.
        what: String,
    },
    /// A table that is trained on cannot be read.
    #[error(transparent)]
    Table(#[from] bitnet_tables::TableError),
    /// The loss is no number any more.
    #[error("the loss of step {step} is no number: the first state that is none lies behind {place}; {kept}")]
    Diverged {
        /// The step, counted from 1.
        step: u64,
        /// The layer or the head.
        place: String,
        /// Which checkpoint there is.
        kept: String,
    },
    /// A device failed, or has too little memory.
    #[error("in step {step}; {kept}, and --resume goes on from there, with --device on another one")]
    Device {
        /// The step, counted from 1.
        step: u64,
        /// Which checkpoint there is.
        kept: String,
        /// What went wrong.
        source: bitnet_core::BackendError,
    },
    /// A device that cannot be used.
    #[error(transparent)]
    Open(#[from] bitnet_inference::OpenError),
    /// There is no memory for weights.
    #[error(transparent)]
    Backend(#[from] bitnet_core::BackendError),
    /// Threads or instructions that cannot be had.
    #[error(transparent)]
    Cpu(#[from] bitnet_cpu::CpuError),
}

impl TrainError {
    pub(crate) fn io(path: &std::path::Path) -> impl FnOnce(std::io::Error) -> Self + '_ {
        move |source| Self::Io { path: path.to_owned(), source }
    }
}

/// A message and what caused it.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}
