//! The tokenizer of a model or of a `tokenizer.json`.

use crate::failure::Failure;
use bitnet_tokenizer::Tokenizer;
use std::path::Path;

/// Reads headers only; no weight is touched.
pub fn open(path: &Path) -> Result<Tokenizer, Failure> {
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    if name.ends_with(".json") {
        return Ok(Tokenizer::from_file(path)?);
    }
    if name.ends_with(".model") {
        let bytes = std::fs::read(path).map_err(|e| Failure::Model(format!("{}: {e}", path.display())))?;
        return Ok(Tokenizer::from_sentencepiece(&bytes)?);
    }
    // A directory needs no weights for this.
    let found = match path.is_dir() {
        true => Tokenizer::from_dir(path)?,
        false => bitnet_inference::tokenizer(&bitnet_formats::open(path)?)?,
    };
    found.ok_or_else(|| Failure::Model(format!("{} has no tokenizer", path.display())))
}
