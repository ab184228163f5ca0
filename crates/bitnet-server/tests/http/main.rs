//! The server over a socket.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

#[path = "../common/mod.rs"]
mod common;

mod embeddings;
mod faults;
mod forms;
mod lora;
mod models;
mod ollama;
mod openai;
mod openapi;
mod page;
mod responses;
mod tls;
mod traces;
mod ws;
