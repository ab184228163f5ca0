//! What a server is told when it starts.

use crate::{Keys, Tls, TraceOptions};
use bitnet_inference::engine::{Engine, Request};
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

/// How a server behaves.
#[derive(Debug)]
pub struct ServeOptions {
    /// Keys that open the routes; none are needed where there are none.
    pub keys: Keys,
    /// Bytes of a request's body at most.
    pub body_limit: usize,
    /// Prompts of one request, counted with their choices, at most.
    pub answers_limit: usize,
    /// Requests a minute that each key has; all that need none share one.
    pub rate: Option<NonZeroU32>,
    /// Origins whose pages may use the server besides those of this machine; `*` is any.
    pub origins: Vec<String>,
    /// Names that requests may be addressed to besides `localhost` and the addresses of this machine; `*` is any. Where there are none, a
    /// server that can be reached from elsewhere takes any.
    pub hosts: Vec<String>,
    /// What connections are encrypted with; nothing when `None`.
    pub tls: Option<Tls>,
    /// Where traces go; nowhere when `None`.
    pub traces: Option<TraceOptions>,
    /// Whether the chat page is served.
    pub page: bool,
    /// The folder from which clients may load adapters besides those that a model was opened with.
    pub adapters: Option<PathBuf>,
    /// How long a client may take over the head of a request, and be silent between two pieces of its body; a connection without a
    /// request is closed after it.
    pub patience: Duration,
    /// How long an answer may take; as long as it likes when `None`.
    pub timeout: Option<Duration>,
    /// How long running answers may go on when the server is told to end.
    pub drain: Duration,
}

impl Default for ServeOptions {
    fn default() -> Self {
        Self {
            keys: Keys::default(),
            body_limit: 4 << 20,
            answers_limit: 1024,
            rate: None,
            origins: Vec::new(),
            hosts: Vec::new(),
            tls: None,
            traces: None,
            page: true,
            adapters: None,
            patience: Duration::from_secs(30),
            timeout: None,
            drain: Duration::from_secs(30),
        }
    }
}

/// A model that is ready to be served.
pub struct Opened {
    /// What answers.
    pub engine: Engine,
    /// What clients are told.
    pub card: ModelCard,
    /// What requests leave open.
    pub defaults: Request,
}

/// What clients are told about a model.
#[derive(Clone, Debug)]
pub struct ModelCard {
    /// The name that requests give.
    pub id: String,
    /// Seconds since 1970 when it was loaded.
    pub created: u64,
    /// Positions the model was made for.
    pub context: usize,
    /// Weights.
    pub params: u64,
    /// Bytes of all prepared weights.
    pub size: u64,
    /// What weights are in the file.
    pub ftype: String,
}
