//! The algorithm of a vocabulary, as a part of the `tokenizers` crate's pipeline.

use crate::bpe::{self, Bpe};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::BpeTrainer;
use tokenizers::{
    DecoderWrapper, ModelWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper, Result,
    Token, TokenizerImpl,
};

/// From a text to ids and back.
pub(crate) type Pipeline =
    TokenizerImpl<Algorithm, NormalizerWrapper, PreTokenizerWrapper, PostProcessorWrapper, DecoderWrapper>;

/// How a word becomes tokens.
#[derive(Serialize)]
#[serde(untagged)]
pub(crate) enum Algorithm {
    /// BPE as nearly all models have it.
    Bpe(Bpe),
    /// Everything else that a `tokenizer.json` may ask for.
    Other(ModelWrapper),
}

impl<'de> Deserialize<'de> for Algorithm {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let json = <&RawValue>::deserialize(deserializer)?.get();
        let model = match bpe::is_plain(json) {
            Ok(true) => bpe::read(json).map(Self::Bpe),
            Ok(false) => serde_json::from_str(json).map(Self::Other),
            Err(e) => Err(e),
        };
        model.map_err(D::Error::custom)
    }
}

impl tokenizers::Model for Algorithm {
    type Trainer = TrainerWrapper;

    fn tokenize(&self, word: &str) -> Result<Vec<Token>> {
        match self {
            Self::Bpe(bpe) => Ok(bpe.tokenize(word)?),
            Self::Other(model) => model.tokenize(word),
        }
    }

    fn token_to_id(&self, token: &str) -> Option<u32> {
        match self {
            Self::Bpe(bpe) => bpe.tokens().find(token).map(|place| bpe.tokens().id(place)),
            Self::Other(model) => model.token_to_id(token),
        }
    }

    fn id_to_token(&self, id: u32) -> Option<String> {
        match self {
            Self::Bpe(bpe) => bpe.tokens().place_of(id).map(|place| bpe.tokens().text(place).to_owned()),
            Self::Other(model) => model.id_to_token(id),
        }
    }

    fn get_vocab(&self) -> HashMap<String, u32> {
        match self {
            Self::Bpe(bpe) => bpe.tokens().iter().map(|(text, id)| (text.to_owned(), id)).collect(),
            Self::Other(model) => model.get_vocab(),
        }
    }

    fn get_vocab_size(&self) -> usize {
        match self {
            Self::Bpe(bpe) => bpe.tokens().len(),
            Self::Other(model) => model.get_vocab_size(),
        }
    }

    fn save(&self, folder: &Path, prefix: Option<&str>) -> Result<Vec<PathBuf>> {
        match self {
            Self::Bpe(_) => Err("vocabularies are written as tokenizer.json".into()),
            Self::Other(model) => model.save(folder, prefix),
        }
    }

    fn get_trainer(&self) -> TrainerWrapper {
        match self {
            Self::Bpe(_) => BpeTrainer::default().into(),
            Self::Other(model) => model.get_trainer(),
        }
    }
}
