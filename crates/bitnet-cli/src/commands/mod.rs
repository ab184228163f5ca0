//! One file a command.

pub mod batch;
pub mod bench;
pub mod cache;
pub mod chat;
pub mod completions;
pub mod convert;
pub mod detokenize;
pub mod doctor;
pub mod embed;
pub mod eval;
mod histogram;
pub mod inspect;
pub mod logits;
pub mod ls;
pub mod merge;
pub mod pull;
pub mod quantize;
mod report;
pub mod rm;
pub mod run;
pub mod serve;
pub mod show;
pub mod template;
pub mod tokenize;
pub mod train;
pub mod tune;
mod vocabulary;
