//! Tokenizers of Hugging Face directories.

use crate::tokenizer::read;
use crate::{ChatTemplate, SpecialTokens, Tokenizer, TokenizerError};
use serde_json::Value;
use std::path::Path;

impl Tokenizer {
    /// The tokenizer of a directory: `tokenizer.json` or `tokenizer.model`, with what `tokenizer_config.json` and
    /// `chat_template.jinja` add. `None` where there is neither of the first two.
    pub fn from_dir(dir: &Path) -> Result<Option<Self>, TokenizerError> {
        let mut tokenizer = if dir.join("tokenizer.json").exists() {
            Self::from_file(&dir.join("tokenizer.json"))?
        } else if dir.join("tokenizer.model").exists() {
            Self::from_sentencepiece_file(&dir.join("tokenizer.model"))?
        } else {
            return Ok(None);
        };
        let config = config(dir)?;
        let token = |name: &str| token(&config, name);
        tokenizer.bos = token("bos_token").and_then(|t| tokenizer.token_id(&t)).or(tokenizer.bos);
        tokenizer.eos = token("eos_token").and_then(|t| tokenizer.token_id(&t)).or(tokenizer.eos);
        if let Some(add) = config.get("add_bos_token").and_then(Value::as_bool) {
            tokenizer.add_bos = Some(add);
        }
        let file = dir.join("chat_template.jinja");
        let source = match file.exists() {
            true => Some(String::from_utf8_lossy(&read(&file)?).into_owned()),
            false => template(&config),
        };
        if let Some(source) = source {
            let tokens = SpecialTokens {
                bos: token("bos_token"),
                eos: token("eos_token"),
                unk: token("unk_token"),
                pad: token("pad_token"),
            };
            tokenizer.template = Some(ChatTemplate::new(&source, tokens));
        }
        Ok(Some(tokenizer))
    }
}

/// `tokenizer_config.json`, `Null` where there is none.
pub(crate) fn config(dir: &Path) -> Result<Value, TokenizerError> {
    let config = dir.join("tokenizer_config.json");
    match config.exists() {
        true => serde_json::from_slice(&read(&config)?)
            .map_err(|e| TokenizerError::Invalid { what: config.display().to_string(), why: e.to_string() }),
        false => Ok(Value::Null),
    }
}

/// A token is a string, or an object with its text.
pub(crate) fn token(config: &Value, name: &str) -> Option<String> {
    let value = config.get(name)?;
    value.as_str().or_else(|| value.get("content")?.as_str()).map(str::to_owned)
}

/// A template is a string, or the one called `default` in a list.
fn template(config: &Value) -> Option<String> {
    match config.get("chat_template")? {
        Value::String(source) => Some(source.clone()),
        Value::Array(named) => {
            let default = named.iter().find(|t| t.get("name").and_then(Value::as_str) == Some("default"))?;
            default.get("template")?.as_str().map(str::to_owned)
        }
        _ => None,
    }
}
