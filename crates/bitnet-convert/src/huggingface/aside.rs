//! The small files beside a Hugging Face model.

use crate::ConvertError;
use bitnet_formats::{CARD_FILES, TOKENIZER_FILES};
use serde_json::{Map, Value};
use std::fs;
use std::path::{Path, PathBuf};

/// Files that describe a model and that are the same whatever its weights are stored as.
pub(super) fn copied() -> impl Iterator<Item = &'static str> {
    ["generation_config.json"].into_iter().chain(TOKENIZER_FILES).chain(CARD_FILES)
}

/// Bytes of such a file that are taken; the largest vocabularies have 35 MB.
const MAX_FILE: u64 = 1 << 28;

/// What of these files GGUF metadata are made of.
pub(crate) struct Aside {
    pub(crate) dir: PathBuf,
    pub(crate) tokenizer_config: Value,
    pub(crate) special_tokens_map: Value,
    /// `chat_template.jinja`.
    template_file: Option<String>,
    /// The lines between the first two `---` of `README.md`.
    front_matter: Vec<String>,
    /// Files without a place in GGUF, in words.
    pub(crate) no_place: Vec<String>,
}

/// A small file, `None` where there is none.
pub(super) fn small_file(path: &Path) -> Result<Option<Vec<u8>>, ConvertError> {
    let fail = |source| ConvertError::Read { path: path.display().to_string(), source };
    let Ok(metadata) = fs::metadata(path) else { return Ok(None) };
    if !metadata.is_file() || metadata.len() > MAX_FILE {
        let what = format!("it is no regular file of at most {MAX_FILE} bytes");
        return Err(fail(std::io::Error::new(std::io::ErrorKind::InvalidInput, what)));
    }
    fs::read(path).map(Some).map_err(fail)
}

fn json(path: &Path) -> Result<Value, ConvertError> {
    let Some(bytes) = small_file(path)? else { return Ok(Value::Null) };
    serde_json::from_slice(&bytes)
        .map_err(|e| bitnet_formats::FormatError::Json { path: path.to_owned(), what: e.to_string() }.into())
}

/// Reads what lies in a model's directory.
pub(crate) fn read(dir: &Path) -> Result<Aside, ConvertError> {
    let text = |name: &str| -> Result<Option<String>, ConvertError> {
        Ok(small_file(&dir.join(name))?.map(|b| String::from_utf8_lossy(&b).into_owned()))
    };
    let readme = text("README.md")?;
    let mut lines = readme.iter().flat_map(|text| text.lines());
    let front_matter = match lines.next() {
        Some("---") => lines.take_while(|l| *l != "---").map(str::to_owned).collect(),
        _ => Vec::new(),
    };
    let mut no_place = Vec::new();
    for name in CARD_FILES {
        if dir.join(name).exists() {
            let kept = if name == "README.md" { ", but for its licence" } else { "" };
            no_place.push(format!("{name}: GGUF has no place for its text{kept}"));
        }
    }
    Ok(Aside {
        dir: dir.to_owned(),
        tokenizer_config: json(&dir.join("tokenizer_config.json"))?,
        special_tokens_map: json(&dir.join("special_tokens_map.json"))?,
        template_file: text("chat_template.jinja")?,
        front_matter,
        no_place,
    })
}

impl Aside {
    /// A plain `key: value` at the top of `README.md`.
    pub(crate) fn front_matter(&self, field: &str) -> Option<&str> {
        let line = self.front_matter.iter().find_map(|l| l.strip_prefix(field)?.strip_prefix(':'))?;
        let text = line.trim().trim_matches(['"', '\'']);
        (!text.is_empty()).then_some(text)
    }

    /// The chat template: a file of its own, or in `tokenizer_config.json` as a string or as the one called `default`.
    pub(crate) fn template(&self) -> Option<String> {
        if self.template_file.is_some() {
            return self.template_file.clone();
        }
        match self.tokenizer_config.get("chat_template")? {
            Value::String(source) => Some(source.clone()),
            Value::Array(named) => {
                let default = named.iter().find(|t| t["name"] == "default")?;
                default.get("template")?.as_str().map(str::to_owned)
            }
            _ => None,
        }
    }

    /// `tokenizer_config.json` without the template, which has a key of its own.
    pub(crate) fn tokenizer_config_without_template(&self) -> Value {
        match &self.tokenizer_config {
            Value::Object(map) => {
                let rest = map.iter().filter(|(key, value)| *key != "chat_template" || value.is_array());
                Value::Object(rest.map(|(k, v)| (k.clone(), v.clone())).collect::<Map<_, _>>())
            }
            other => other.clone(),
        }
    }
}
