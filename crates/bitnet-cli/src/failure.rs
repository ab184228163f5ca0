//! What went wrong, and the exit code that says so.

use bitnet_core::BackendError;
use bitnet_formats::FormatError;
use bitnet_hub::HubError;
use bitnet_inference::{CudaError, Device, GenerateError, OpenError, SessionError, WgpuError};
use bitnet_model::ModelError;
use bitnet_tables::TableError;
use bitnet_tokenizer::{TemplateError, TokenizerError};
use bitnet_training::TrainError;
use std::error::Error;
use std::io;
use std::path::Path;
use std::process::ExitCode;

/// What helps where memory ran out.
const LESS_MEMORY: &str = "a smaller --ctx-size or --batch-size needs less; on a GPU others may hold it (`nvidia-smi` lists them), and \
    --device auto goes on with the cpu";

/// Why a command ends early.
#[derive(Debug)]
pub enum Failure {
    /// Exit code 1.
    Runtime(String),
    /// Exit code 2.
    Usage(String),
    /// Exit code 3.
    Model(String),
    /// Exit code 4.
    Network(String),
    /// Exit code 130.
    Interrupted,
    /// Nobody reads the output any more.
    BrokenPipe,
}

impl Failure {
    pub fn message(&self) -> &str {
        match self {
            Self::Runtime(m) | Self::Usage(m) | Self::Model(m) | Self::Network(m) => m,
            Self::Interrupted | Self::BrokenPipe => "",
        }
    }

    pub fn code(&self) -> ExitCode {
        ExitCode::from(match self {
            Self::Runtime(_) => 1,
            Self::Usage(_) => 2,
            Self::Model(_) => 3,
            Self::Network(_) => 4,
            Self::Interrupted => 130,
            Self::BrokenPipe => 0,
        })
    }

    pub fn is_broken_pipe(&self) -> bool {
        matches!(self, Self::BrokenPipe)
    }
}

impl Failure {
    /// Turns an error into a failure whose message begins with the file it is about.
    pub fn at<E: Into<Self>>(path: &Path) -> impl Fn(E) -> Self + '_ {
        move |e| match e.into() {
            Self::Model(m) if !m.contains(&*path.to_string_lossy()) => {
                Self::Model(format!("{}: {m}", path.display()))
            }
            other => other,
        }
    }
}

/// A message and what caused it.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}

impl From<io::Error> for Failure {
    fn from(e: io::Error) -> Self {
        if e.kind() == io::ErrorKind::BrokenPipe { Self::BrokenPipe } else { Self::Runtime(e.to_string()) }
    }
}

impl From<serde_json::Error> for Failure {
    fn from(e: serde_json::Error) -> Self {
        Self::from(io::Error::from(e))
    }
}

impl From<FormatError> for Failure {
    fn from(e: FormatError) -> Self {
        Self::Model(chain(&e))
    }
}

impl From<HubError> for Failure {
    fn from(e: HubError) -> Self {
        match e {
            HubError::Cancelled => Self::Interrupted,
            HubError::Reference { .. }
            | HubError::Setting { .. }
            | HubError::NoFile { .. }
            | HubError::Ambiguous { .. } => Self::Usage(chain(&e)),
            HubError::Io { .. }
            | HubError::Space { .. }
            | HubError::NotCached { .. }
            | HubError::InUse { .. } => Self::Runtime(chain(&e)),
            e => Self::Network(chain(&e)),
        }
    }
}

impl From<ModelError> for Failure {
    fn from(e: ModelError) -> Self {
        match e {
            ModelError::Context { .. } => Self::Usage(format!("{e}; --ctx-size takes less")),
            ModelError::UnknownId { .. } | ModelError::ContextFull { .. } | ModelError::NoTokens => {
                Self::Usage(chain(&e))
            }
            ModelError::Backend(BackendError::OutOfMemory { .. })
            | ModelError::Prepare { source: BackendError::OutOfMemory { .. }, .. } => {
                Self::Runtime(format!("{}; {LESS_MEMORY}", chain(&e)))
            }
            e if e.is_of_device() => Self::Runtime(chain(&e)),
            ModelError::Backend(_) => Self::Runtime(chain(&e)),
            e => Self::Model(chain(&e)),
        }
    }
}

impl From<TokenizerError> for Failure {
    fn from(e: TokenizerError) -> Self {
        match e {
            TokenizerError::Encode(_) | TokenizerError::Decode(_) => Self::Runtime(chain(&e)),
            e => Self::Model(chain(&e)),
        }
    }
}

impl From<TemplateError> for Failure {
    fn from(e: TemplateError) -> Self {
        Self::Model(chain(&e))
    }
}

impl From<OpenError> for Failure {
    fn from(e: OpenError) -> Self {
        match e {
            OpenError::Format(e) => e.into(),
            OpenError::Model(e) => e.into(),
            OpenError::Tokenizer(e) => e.into(),
            OpenError::Cpu(e) => Self::Usage(chain(&e)),
            OpenError::Gpu(WgpuError::NoSuchAdapter { number, .. }) => {
                Self::Usage(format!("--device wgpu:{number}: there are {}; auto", Device::list()))
            }
            OpenError::Cuda {
                number,
                source:
                    e @ (CudaError::NoDriver
                    | CudaError::NoDevice
                    | CudaError::NoSuchDevice { .. }
                    | CudaError::TooOld { .. }
                    | CudaError::Capability { .. }
                    | CudaError::Closed { .. }),
            } => Self::Usage(format!("--device cuda:{number}: {e}; there are {}; auto", Device::list())),
            e @ (OpenError::NoRoom { .. } | OpenError::NoRoomForRows { .. }) => {
                Self::Usage(format!("{}; there are {}; auto", chain(&e), Device::list()))
            }
            e @ (OpenError::DraftVocabulary { .. }
            | OpenError::MoreDevices { .. }
            | OpenError::NoRows { .. }
            | OpenError::Shares { .. }) => Self::Usage(chain(&e)),
            e => Self::Runtime(chain(&e)),
        }
    }
}

impl From<TableError> for Failure {
    fn from(e: TableError) -> Self {
        Self::Usage(chain(&e))
    }
}

impl From<TrainError> for Failure {
    fn from(e: TrainError) -> Self {
        match e {
            TrainError::Config { .. } | TrainError::Data { .. } | TrainError::Cpu(_) => {
                Self::Usage(chain(&e))
            }
            TrainError::Table(e) => e.into(),
            TrainError::Open(e) => e.into(),
            TrainError::Io { .. } | TrainError::Diverged { .. } | TrainError::Device { .. } => {
                Self::Runtime(chain(&e))
            }
            TrainError::Format(FormatError::Io { .. } | FormatError::Write { .. }) => {
                Self::Runtime(chain(&e))
            }
            e => Self::Model(chain(&e)),
        }
    }
}

impl From<SessionError> for Failure {
    fn from(e: SessionError) -> Self {
        match e {
            SessionError::Damaged { .. } | SessionError::Other { .. } => Self::Model(chain(&e)),
            SessionError::Room { .. } => Self::Usage(format!("{e}; a larger --ctx-size has more")),
            e => Self::Runtime(chain(&e)),
        }
    }
}

impl From<GenerateError> for Failure {
    fn from(e: GenerateError) -> Self {
        match e {
            GenerateError::EmptyPrompt
            | GenerateError::PromptTooLong { .. }
            | GenerateError::UnknownId { .. }
            | GenerateError::NoTokenizer
            | GenerateError::UnknownAdapter { .. }
            | GenerateError::AdapterScale { .. }
            | GenerateError::Form { .. }
            | GenerateError::TooManyBanned { .. }
            | GenerateError::Options(_) => Self::Usage(chain(&e)),
            GenerateError::Model(e) => e.into(),
            e => Self::Runtime(chain(&e)),
        }
    }
}
