//! What can be wrong with a checkpoint, or with what a model is asked.

use bitnet_core::{BackendError, ShapeError};
use bitnet_quant::packing::PackingError;

/// Why a model could not be loaded or run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// The architecture has no row in the table.
    #[error("architecture {name:?} is not known; {} are", known())]
    UnknownArchitecture {
        /// As the file spells it.
        name: String,
    },
    /// A setting is absent.
    #[error("the configuration has no {key:?}")]
    MissingKey {
        /// Its name in the file.
        key: String,
    },
    /// A setting has a value that makes no sense.
    #[error("{key} is {value} in the configuration; {need}")]
    BadValue {
        /// Its name in the file.
        key: String,
        /// What it is.
        value: String,
        /// What it may be.
        need: &'static str,
    },
    /// A tensor is absent.
    #[error("the checkpoint has no tensor {name:?}")]
    MissingTensor {
        /// Its name.
        name: String,
    },
    /// A tensor that the architecture does not know; to leave it out would change what the model computes.
    #[error("tensor {name:?} is no part of the architecture {arch}")]
    UnknownTensor {
        /// Its name.
        name: String,
        /// The architecture.
        arch: &'static str,
    },
    /// A tensor has another shape than the configuration asks for.
    #[error("tensor {name:?} has shape {got:?}, the configuration asks for {need:?}")]
    TensorShape {
        /// Its name.
        name: String,
        /// In the file.
        got: Vec<usize>,
        /// By the configuration.
        need: Vec<usize>,
    },
    /// A tensor has a type that cannot stand where it stands.
    #[error("tensor {name:?} has type {got}; {need}")]
    TensorType {
        /// Its name.
        name: String,
        /// In the file.
        got: String,
        /// What would do.
        need: &'static str,
    },
    /// A scale is zero, negative, NaN or infinite.
    #[error("the scale of tensor {name:?} is {value}; it must be a positive, finite number")]
    BadScale {
        /// Its name.
        name: String,
        /// What it is.
        value: f32,
    },
    /// Packed data is not what its type says.
    #[error("tensor {name:?}")]
    Packing {
        /// Its name.
        name: String,
        /// Why.
        source: PackingError,
    },
    /// The backend refused a tensor.
    #[error("tensor {name:?}")]
    Prepare {
        /// Its name, the first of those stacked with it.
        name: String,
        /// Why.
        source: BackendError,
    },
    /// The backend failed in a step.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// Shape and data disagree.
    #[error(transparent)]
    Shape(#[from] ShapeError),
    /// A context that the model was not made for.
    #[error("a context of {asked} was asked for; the model was made for {context}")]
    Context {
        /// What was asked for.
        asked: usize,
        /// What the model has.
        context: usize,
    },
    /// An id that is no token.
    #[error("id {id} is outside the vocabulary of {vocab}")]
    UnknownId {
        /// The id.
        id: u32,
        /// Size of the vocabulary.
        vocab: usize,
    },
    /// More tokens than the context holds.
    #[error("{need} tokens do not fit into the context of {capacity}")]
    ContextFull {
        /// Positions of the cache.
        capacity: usize,
        /// Positions that the step would need.
        need: usize,
    },
    /// An adapter has a tensor that has no place in the model.
    #[error("the adapter has a tensor {name:?}, {why}")]
    AdapterTensor {
        /// Its name.
        name: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A number that no adapter has.
    #[error("no adapter {id} is loaded")]
    UnknownAdapter {
        /// The number.
        id: u32,
    },
    /// A step without tokens.
    #[error("a step needs at least one token")]
    NoTokens,
}

impl ModelError {
    /// The backend's part in it.
    fn of_backend(&self) -> Option<&BackendError> {
        match self {
            Self::Backend(e) | Self::Prepare { source: e, .. } => Some(e),
            _ => None,
        }
    }

    /// Whether the device has failed or has too little memory: what it holds may be anything, and another one might do.
    pub fn is_of_device(&self) -> bool {
        matches!(self.of_backend(), Some(BackendError::Device { .. } | BackendError::OutOfMemory { .. }))
    }

    /// Whether the device has no way to do what was asked.
    pub fn is_unsupported(&self) -> bool {
        matches!(self.of_backend(), Some(BackendError::Unsupported { .. }))
    }
}

fn known() -> String {
    crate::ARCHS.iter().map(|a| a.name).collect::<Vec<_>>().join(", ")
}
