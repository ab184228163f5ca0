//! What a server is told when it starts.

use crate::Keys;
use bitnet_inference::engine::Request;
use std::time::Duration;

/// How a server behaves.
#[derive(Debug)]
pub struct ServeOptions {
    /// Keys that open the routes; none are needed where there are none.
    pub keys: Keys,
    /// What requests leave open.
    pub defaults: Request,
    /// Bytes of a request's body at most.
    pub body_limit: usize,
    /// Prompts of one request, counted with their choices, at most.
    pub answers_limit: usize,
    /// How long an answer may take; as long as it likes when `None`.
    pub timeout: Option<Duration>,
    /// How long running answers may go on when the server is told to end.
    pub drain: Duration,
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
    /// Kernel, instruction set and device it runs on.
    pub kernel: String,
    /// Instruction set.
    pub isa: String,
    /// Device.
    pub device: String,
}
