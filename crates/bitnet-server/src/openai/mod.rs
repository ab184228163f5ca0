//! OpenAI's routes.

pub(crate) mod chat;
pub(crate) mod completions;
pub(crate) mod embeddings;
pub(crate) mod models;
pub(crate) mod responses;

/// What responses say of whoever made them.
const FINGERPRINT: &str = concat!("bitnet-", env!("CARGO_PKG_VERSION"));

/// Likeliest tokens that can be asked for.
const MAX_LOGPROBS: usize = 20;
