//! A vocabulary as plain data: what GGUF files hold, and what `tokenizer.json` and SentencePiece models become on the way
//! there.

mod from_json;

use crate::sentencepiece;
use crate::tokenizer::read;
use crate::{GgufVocab, Tokenizer, TokenizerError};
use serde_json::{Value, json};
use std::path::Path;

pub(crate) use crate::sentencepiece::PieceKind;

/// Tokens, their kinds and merges or scores, and the ids that mean something.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Vocabulary {
    /// `gpt2` (byte-level BPE) or `llama` (SentencePiece BPE).
    pub model: String,
    /// How text is cut into words (`gpt2` only).
    pub pre: Option<String>,
    /// By id.
    pub tokens: Vec<String>,
    /// By id: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte.
    pub token_types: Vec<i32>,
    /// By id (`llama` only).
    pub scores: Vec<f32>,
    /// Best first (`gpt2` only): two tokens with a space between.
    pub merges: Vec<String>,
    /// Beginning of text.
    pub bos: Option<u32>,
    /// End of text.
    pub eos: Option<u32>,
    /// What stands for unknown text.
    pub unk: Option<u32>,
    /// What fills batches.
    pub pad: Option<u32>,
    /// Whether a text begins with `bos`.
    pub add_bos: Option<bool>,
    /// Whether a text ends with `eos`.
    pub add_eos: Option<bool>,
    /// Whether a space is put in front of a text (`llama` only).
    pub add_space_prefix: Option<bool>,
}

/// A vocabulary read from a directory, and what of the directory's files has no place in it.
#[derive(Clone, Debug)]
pub struct FoundVocabulary {
    /// What was found.
    pub vocabulary: Vocabulary,
    /// What is left out, in words.
    pub left_out: Vec<String>,
}

/// The text of a token that only fills a place up to the size of the embedding.
pub(crate) fn filler(id: usize) -> String {
    format!("[PAD{id}]")
}

impl Vocabulary {
    /// Reads `tokenizer.json` or, where there is none, `tokenizer.model`, with what `tokenizer_config.json` adds. `None`
    /// where there is neither of the first two.
    ///
    /// # Errors
    /// Also where a `tokenizer.json` does something that no GGUF vocabulary can.
    pub fn from_dir(dir: &Path) -> Result<Option<FoundVocabulary>, TokenizerError> {
        let mut found = if dir.join("tokenizer.json").exists() {
            from_json::read(&read(&dir.join("tokenizer.json"))?)?
        } else if dir.join("tokenizer.model").exists() {
            let vocabulary = sentencepiece::vocabulary(&read(&dir.join("tokenizer.model"))?)?;
            FoundVocabulary { vocabulary, left_out: Vec::new() }
        } else {
            return Ok(None);
        };
        let config = crate::directory::config(dir)?;
        let v = &mut found.vocabulary;
        let id = |key: &str, v: &Vocabulary| {
            let text = crate::directory::token(&config, key)?;
            v.tokens.iter().position(|t| *t == text).and_then(|id| u32::try_from(id).ok())
        };
        v.bos = id("bos_token", v).or(v.bos);
        v.eos = id("eos_token", v).or(v.eos);
        v.unk = id("unk_token", v).or(v.unk);
        v.pad = id("pad_token", v).or(v.pad);
        let flag = |key: &str| config.get(key).and_then(Value::as_bool);
        v.add_bos = flag("add_bos_token").or(v.add_bos);
        v.add_eos = flag("add_eos_token").or(v.add_eos);
        Ok(Some(found))
    }

    /// Reads a `tokenizer.json` alone.
    pub(crate) fn from_json(json: &[u8]) -> Result<FoundVocabulary, TokenizerError> {
        from_json::read(json)
    }

    /// Adds unused tokens up to `size`, which is the embedding's.
    pub fn fill(&mut self, size: usize) {
        for id in self.tokens.len()..size {
            self.tokens.push(filler(id));
            self.token_types.push(5);
            if !self.scores.is_empty() {
                self.scores.push(-1000.0);
            }
        }
    }

    /// How many tokens are marked as unused and do more than fill a place: `tokenizer.json` has no such mark.
    pub fn unused(&self) -> usize {
        let tokens = self.token_types.iter().zip(&self.tokens).enumerate();
        tokens.filter(|(id, (kind, text))| **kind == 5 && **text != filler(*id)).count()
    }

    /// As the tokenizer takes it.
    pub fn as_gguf(&self) -> GgufVocab<'_> {
        GgufVocab {
            model: &self.model,
            pre: self.pre.as_deref(),
            tokens: self.tokens.iter().map(String::as_str).collect(),
            token_types: self.token_types.clone(),
            scores: self.scores.clone(),
            merges: self.merges.iter().map(String::as_str).collect(),
            bos: self.bos,
            eos: self.eos,
            unk: self.unk,
            pad: self.pad,
            add_bos: self.add_bos,
            add_eos: self.add_eos,
            add_space_prefix: self.add_space_prefix,
        }
    }

    /// The text of a token.
    pub fn token(&self, id: Option<u32>) -> Option<&str> {
        self.tokens.get(usize::try_from(id?).ok()?).map(String::as_str)
    }

    /// A `tokenizer.json` that gives the same ids.
    pub fn to_json(&self) -> Result<Vec<u8>, TokenizerError> {
        let invalid = |why: String| TokenizerError::Invalid { what: "the vocabulary".to_owned(), why };
        let tokenizer = Tokenizer::from_gguf(&self.as_gguf())?;
        let text = tokenizer.inner.to_string(false).map_err(|e| invalid(e.to_string()))?;
        let mut value: Value = serde_json::from_str(&text).map_err(|e| invalid(e.to_string()))?;
        let special = |add: Option<bool>, id: Option<u32>| {
            add.unwrap_or(false).then(|| self.token(id).zip(id)).flatten()
        };
        let (begin, end) = (special(tokenizer.add_bos, self.bos), special(self.add_eos, self.eos));
        if begin.is_some() || end.is_some() {
            let sequence = |id: &str, type_id: u32| {
                let special =
                    |(text, _): (&str, u32)| json!({"SpecialToken": {"id": text, "type_id": type_id}});
                let text = json!({"Sequence": {"id": id, "type_id": type_id}});
                begin.map(special).into_iter().chain([text]).chain(end.map(special)).collect::<Vec<_>>()
            };
            let pair = [sequence("A", 0), sequence("B", 1)].concat();
            let tokens: serde_json::Map<String, Value> = begin
                .into_iter()
                .chain(end)
                .map(|(text, id)| (text.to_owned(), json!({"id": text, "ids": [id], "tokens": [text]})))
                .collect();
            value["post_processor"] = json!({
                "type": "TemplateProcessing",
                "single": sequence("A", 0),
                "pair": pair,
                "special_tokens": tokens,
            });
        }
        serde_json::to_vec(&value).map_err(|e| invalid(e.to_string()))
    }
}

#[cfg(test)]
mod tests;
