//! HTTP over the engine: OpenAI's, Anthropic's, llama.cpp's and Ollama's routes, health, metrics, and a description of them all.
//!
//! This crate knows HTTP and nothing of the command line, files of models, or how answers are made: it turns requests into the
//! engine's and events into bytes. [`router`] needs no socket; [`serve`] binds one and ends in order.
#![forbid(unsafe_code)]

// What the tests of this crate have in common speaks of it from outside.
#[cfg(test)]
extern crate self as bitnet_server;

mod answer;
mod anthropic;
mod aside;
mod auth;
mod batch;
mod body;
mod embed;
mod error;
mod fields;
mod frame;
mod health;
mod json;
mod lora;
mod metrics;
mod models;
mod native;
mod ollama;
mod openai;
mod openapi;
mod options;
mod origin;
mod page;
mod prompt;
mod rate;
mod run;
mod state;
mod stream;
mod tls;
mod tools;
mod trace;
mod turn;
mod worker;
mod ws;

pub use auth::Keys;
pub use batch::{Call, Reply, run_calls};
pub use error::ApiError;
pub use models::Open;
pub use options::{ModelCard, Opened, ServeOptions};
pub use run::{Ending, Running, ServeError, serve};
pub use state::{Server, router};
pub use tls::{Tls, TlsError};
pub use trace::TraceOptions;
