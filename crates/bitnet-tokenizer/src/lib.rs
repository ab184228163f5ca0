//! Text to token ids and back, and conversations to text.
//!
//! Three kinds of vocabulary become one [`Tokenizer`]: `tokenizer.json`, SentencePiece's `tokenizer.model`, and the one inside
//! a GGUF file. The algorithms are those of the `tokenizers` crate, training of new ones ([`BpeOptions`]) too; what is ours is BPE in tables
//! of a few megabytes, reading the other two kinds, decoding as a stream ([`DecodeStream`]), turning them into each other ([`Vocabulary`]) and chat templates as transformers
//! renders them ([`ChatTemplate`]).
#![forbid(unsafe_code)]

mod algorithm;
mod bpe;
mod bytes;
mod directory;
mod error;
mod gguf;
mod limits;
mod python_json;
mod sentencepiece;
mod stream;
mod template;
mod tokenizer;
mod train;
mod vocabulary;

pub use bytes::TokenBytes;
pub use error::{TemplateError, TokenizerError};
pub use gguf::GgufVocab;
pub use stream::DecodeStream;
pub use template::{BITNET_2B_4T_TEMPLATE, ChatTemplate, SpecialTokens};
pub use tokenizer::Tokenizer;
pub use train::{BpeOptions, CHATML_TEMPLATE, END_OF_TEXT, TrainedTokenizer};
pub use vocabulary::{FoundVocabulary, Vocabulary};
