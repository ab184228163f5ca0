//! One file a command.

pub mod bench;
pub mod chat;
pub mod convert;
pub mod detokenize;
pub mod doctor;
pub mod inspect;
pub mod logits;
pub mod quantize;
pub mod run;
pub mod serve;
pub mod template;
pub mod tokenize;
mod vocabulary;
