//! The tokenizer of a model or of a `tokenizer.json`, and its template.

use crate::failure::Failure;
use crate::shipped;
use bitnet_inference::{GenerateError, Model};
use bitnet_tokenizer::{ChatTemplate, Tokenizer};
use std::path::Path;

/// Reads headers only; no weight is touched.
pub fn open(path: &Path) -> Result<Tokenizer, Failure> {
    // A directory needs no weights for this.
    if path.is_dir() {
        return Tokenizer::from_dir(path)?.ok_or_else(|| absent(path));
    }
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    if name.ends_with(".json") {
        return Ok(Tokenizer::from_file(path)?);
    }
    if name.ends_with(".model") {
        return Ok(Tokenizer::from_sentencepiece_file(path)?);
    }
    let found = bitnet_inference::tokenizer(&shipped::open(path)?).map_err(Failure::at(path))?;
    found.ok_or_else(|| absent(path))
}

/// The template to chat with.
pub fn template<'a>(tokenizer: &'a Tokenizer, path: &Path) -> Result<&'a ChatTemplate, Failure> {
    let found = tokenizer.template().map_err(|e| Failure::Model(format!("{}: {e}", path.display())))?;
    found.ok_or_else(|| {
        let path = path.display();
        Failure::Model(format!("{path} has no chat template; `bitnet run` continues a text without one"))
    })
}

/// Ids of a prompt, with what the model expects in front of it.
pub fn encode(model: &Model, text: &str, path: &Path) -> Result<Vec<u32>, Failure> {
    model.encode(text).map_err(|e| match e {
        GenerateError::NoTokenizer => absent(path),
        e => e.into(),
    })
}

/// What to say where there is no tokenizer.
pub fn absent(path: &Path) -> Failure {
    let what = match path.is_dir() {
        true => "has neither tokenizer.json nor tokenizer.model",
        false => "has no tokenizer",
    };
    Failure::Model(format!("{} {what}; run and logits take token ids with --tokens", path.display()))
}
