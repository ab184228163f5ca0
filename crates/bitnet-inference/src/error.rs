//! What can go wrong on the way to text.

use crate::Device;
use crate::sample::{OptionError, SampleError};
use bitnet_cpu::CpuError;
use bitnet_cuda::CudaError;
use bitnet_formats::FormatError;
use bitnet_memory::Shortage;
use bitnet_model::ModelError;
use bitnet_tokenizer::TokenizerError;
use bitnet_wgpu::WgpuError;

/// Why a model could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The files.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// What is in them.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// How strongly an adapter is to act.
    #[error("the scale of the adapter is {scale}; it must be a finite number")]
    AdapterScale {
        /// What was asked for.
        scale: f32,
    },
    /// The vocabulary.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The processor.
    #[error(transparent)]
    Cpu(#[from] CpuError),
    /// An NVIDIA GPU.
    #[error("cuda:{number} cannot be used")]
    Cuda {
        /// What was asked for.
        number: usize,
        /// Why.
        source: CudaError,
    },
    /// Another GPU.
    #[error(transparent)]
    Gpu(#[from] WgpuError),
    /// More devices than the model has layers.
    #[error("the model has too few layers ({layers}) for {devices} devices; each has at least one")]
    MoreDevices {
        /// How many were named.
        devices: usize,
        /// Layers of the model.
        layers: usize,
    },
    /// Shares of devices that say nothing.
    #[error("shares of the model are {shares:?}; each of the {devices} devices has one, a positive number")]
    Shares {
        /// What was asked for.
        shares: Vec<f64>,
        /// How many devices there are.
        devices: usize,
    },
    /// One of several devices has not the memory for its layers.
    #[error(
        "{layers} of the layers take {:.1} GB, and {device} has {:.1} GB free; fewer of them, a smaller cache or one more device would do",
        *need as f64 / 1e9, *free as f64 / 1e9
    )]
    NoRoom {
        /// The device.
        device: Device,
        /// How many layers it was to have.
        layers: usize,
        /// Bytes of their weights and their cache.
        need: u64,
        /// Bytes that it has free.
        free: u64,
    },
    /// One of several devices has not the memory for its rows.
    #[error(
        "a share of all rows takes {:.1} GB, and {device} has {:.1} GB free; a smaller share, a smaller cache or one more device would do",
        *need as f64 / 1e9, *free as f64 / 1e9
    )]
    NoRoomForRows {
        /// The device.
        device: Device,
        /// Bytes of its part of weights and cache.
        need: u64,
        /// Bytes that it has free.
        free: u64,
    },
    /// A device that cannot have rows of matrices.
    #[error("rows of matrices are shared by NVIDIA GPUs alone, and {device} is none; layers can be")]
    NoRows {
        /// The device.
        device: Device,
    },
    /// Weights that an engine is to go on with were made of other files than its own.
    #[error("the weights are those of another model")]
    OtherModel,
    /// The engine's thread has ended.
    #[error("the engine has stopped")]
    Stopped,
    /// A draft model's ids stand for other texts.
    #[error("the draft model has another vocabulary: {why}; both models need the same one")]
    DraftVocabulary {
        /// What differs.
        why: String,
    },
}

impl OpenError {
    /// Whether another device might do: this one is not there, fails, or has too little memory.
    pub fn is_of_device(&self) -> bool {
        match self {
            Self::Cuda { .. } | Self::Gpu(_) | Self::NoRoom { .. } | Self::NoRoomForRows { .. } => true,
            Self::Model(e) => e.is_of_device() || e.is_unsupported(),
            _ => false,
        }
    }
}

/// Why text could not be generated.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GenerateError {
    /// The prompt has no tokens.
    #[error("the prompt is empty, and the model has no token to begin a text with")]
    EmptyPrompt,
    /// The prompt fills the context.
    #[error(
        "the prompt has {tokens} tokens, the context holds {capacity} and needs room for an answer; a larger --ctx-size or a shorter prompt would fit"
    )]
    PromptTooLong {
        /// Tokens of the prompt.
        tokens: usize,
        /// Positions of the cache.
        capacity: usize,
    },
    /// An id that is no token.
    #[error("id {id} is outside the vocabulary of {vocab}")]
    UnknownId {
        /// The id.
        id: u32,
        /// Size of the vocabulary.
        vocab: usize,
    },
    /// More answers to one prompt than can be made at once.
    #[error("{asked} answers to one prompt were asked for; 1 to {most} can be had")]
    Choices {
        /// What was asked for.
        asked: usize,
        /// What can be had.
        most: usize,
    },
    /// Too many requests wait already.
    #[error("{waiting} requests wait already")]
    QueueFull {
        /// How many.
        waiting: usize,
    },
    /// The system has too little memory for more work now.
    #[error(transparent)]
    Memory(#[from] Shortage),
    /// More banned texts than are looked for.
    #[error("{texts} banned texts were given; {most} can be had at most")]
    TooManyBanned {
        /// How many.
        texts: usize,
        /// What can be had.
        most: usize,
    },
    /// Whatever was tried led to a banned text.
    #[error("the answer cannot go on without a banned text")]
    Banned,
    /// The device failed, and the one that was to take over cannot be used either.
    #[error("{why}; what was to take over cannot be used either")]
    Takeover {
        /// How the device failed.
        why: String,
        /// Why the other one cannot be used.
        source: Box<OpenError>,
    },
    /// The engine's thread has ended.
    #[error("the engine has stopped")]
    Stopped,
    /// A number that no adapter has.
    #[error("no adapter {id} is loaded")]
    UnknownAdapter {
        /// The number.
        id: u32,
    },
    /// How strongly an adapter is to act.
    #[error("the scale of adapter {id} {why}")]
    AdapterScale {
        /// The adapter's number.
        id: u32,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The form that an answer was to have.
    #[error("the grammar cannot be followed: {why}")]
    Form {
        /// What is wrong with it.
        why: String,
    },
    /// The model has no tokenizer, so text means nothing to it.
    #[error("the model has no tokenizer; give token ids with --tokens")]
    NoTokenizer,
    /// A sampling option.
    #[error(transparent)]
    Options(#[from] OptionError),
    /// The sampler.
    #[error(transparent)]
    Sample(#[from] SampleError),
    /// The model.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The vocabulary.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
}
