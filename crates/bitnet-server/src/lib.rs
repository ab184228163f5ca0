//! HTTP over the engine: OpenAI's routes, Anthropic's messages, llama.cpp's tokenizer routes, health and metrics.
//!
//! This crate knows HTTP and nothing of the command line, files of models, or how answers are made: it turns requests into the
//! engine's and events into bytes. [`router`] needs no socket; [`serve`] binds one and ends in order.
#![forbid(unsafe_code)]

mod answer;
mod anthropic;
mod auth;
mod batch;
mod error;
mod frame;
mod health;
mod lora;
mod metrics;
mod native;
mod openai;
mod options;
mod run;
mod state;
mod worker;

pub use auth::Keys;
pub use batch::{Call, Reply, run_calls};
pub use error::ApiError;
pub use options::{ModelCard, ServeOptions};
pub use run::{Running, ServeError, serve};
pub use state::{Server, router};
