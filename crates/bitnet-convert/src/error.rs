//! Why a model could not be converted.

use bitnet_formats::FormatError;
use bitnet_inference::{GenerateError, OpenError};
use bitnet_model::ModelError;
use bitnet_quant::packing::PackingError;
use bitnet_tokenizer::TokenizerError;

/// Why a model could not be converted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConvertError {
    /// The input is not what it should be.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// The input's tensors or configuration are not what they should be.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The input's vocabulary is not what it should be.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// A file of the input could not be read.
    #[error("{path}")]
    Read {
        /// The file.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// The output could not be written.
    #[error("the output could not be written")]
    Output(#[source] FormatError),
    /// A tensor of floats that are no trits, where the target holds trits.
    #[error(
        "tensor {tensor:?} is not ternary, and {target} holds trits only; `bitnet quantize` makes a ternary model of another"
    )]
    NotTernary {
        /// The tensor.
        tensor: String,
        /// Name of the target.
        target: &'static str,
    },
    /// Nothing to quantize.
    #[error("all projections are ternary already; `bitnet convert` changes their format")]
    AlreadyTernary,
    /// Trits that the target cannot pack.
    #[error("tensor {tensor:?}")]
    Packing {
        /// The tensor.
        tensor: String,
        /// Why.
        source: PackingError,
    },
    /// A scale that the target cannot hold at all.
    #[error(
        "tensor {tensor:?} has the scale {scale:e}, which {target} cannot hold: it would become {nearest:e}"
    )]
    Scale {
        /// The tensor.
        tensor: String,
        /// Its scale.
        scale: f32,
        /// What the target would make of it.
        nearest: f32,
        /// Name of the target.
        target: &'static str,
    },
    /// Scales that are finer than the target has room for.
    #[error("tensor {tensor:?} has a scale for every {size} columns; {target} has one for the whole tensor")]
    Groups {
        /// The tensor.
        tensor: String,
        /// Columns of a group; those of a row where a row has one scale.
        size: usize,
        /// Name of the target.
        target: &'static str,
    },
    /// A type whose blocks do not fit a tensor's rows.
    #[error("tensor {tensor:?} has rows of {cols}, which are no whole blocks of {dtype}; F16 would do")]
    Blocks {
        /// The tensor.
        tensor: String,
        /// Its columns.
        cols: usize,
        /// The type.
        dtype: &'static str,
    },
    /// A shape that the table of tiles does not have.
    #[error("tensor {tensor:?} has the shape {rows} x {cols}, for which the table of tiles has no entry")]
    NoTile {
        /// The tensor.
        tensor: String,
        /// Its rows.
        rows: usize,
        /// Its columns.
        cols: usize,
    },
    /// An architecture without a name in the other kind of file.
    #[error("the architecture {arch} has no counterpart in {container} files")]
    NoCounterpart {
        /// The architecture.
        arch: &'static str,
        /// What was to be written.
        container: &'static str,
    },
    /// Something that the container has no way to say.
    #[error("{container} has no way to say that {what}")]
    NoPlace {
        /// What was to be written.
        container: &'static str,
        /// What cannot be said.
        what: String,
    },
    /// Something would be rounded, and that was not to be.
    #[error("{what} would be {change}; without --strict it is converted all the same")]
    Strict {
        /// What it is.
        what: String,
        /// What would become of it.
        change: String,
    },
    /// A type that the container does not know.
    #[error("{container} cannot hold {dtype}; F16, BF16 and F32 would do")]
    Type {
        /// What was to be written.
        container: &'static str,
        /// The type.
        dtype: &'static str,
    },
    /// A model could not be opened to run it.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// A model could not be run.
    #[error(transparent)]
    Run(#[from] GenerateError),
}
