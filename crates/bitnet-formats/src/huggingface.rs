//! Hugging Face directories: `config.json`, and tensors in one file or in shards with an index.

use crate::map::{self, map};
use crate::{Checkpoint, FormatError, Header, Tensor, onnx, safetensors_file, torch};
use bitnet_core::Bytes;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

const CONFIG: &str = "config.json";

/// Files of a directory that make up its tokenizer, as far as they are there.
pub const TOKENIZER_FILES: [&str; 8] = [
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
];

/// Files of a directory that tell people of the model, its card and its terms, as far as they are there.
pub const CARD_FILES: [&str; 5] = ["README.md", "LICENSE", "LICENSE.txt", "LICENSE.md", "NOTICE"];

/// A way to store tensors in a directory: one file, or shards and an index that says where each tensor is.
struct Layout {
    single: &'static str,
    index: Option<&'static str>,
    read: fn(&Path, &Bytes) -> Result<Tensors, FormatError>,
}

static LAYOUTS: [Layout; 3] = [
    Layout {
        single: "model.safetensors",
        index: Some("model.safetensors.index.json"),
        read: Tensors::safetensors,
    },
    Layout { single: "pytorch_model.bin", index: Some("pytorch_model.bin.index.json"), read: Tensors::torch },
    Layout { single: "model.onnx", index: None, read: Tensors::onnx },
];

/// The tensors of a file, or of all shards.
pub(crate) struct Tensors {
    container: &'static str,
    model: Vec<Tensor>,
    others: Vec<Tensor>,
}

impl Tensors {
    pub(crate) fn safetensors(path: &Path, bytes: &Bytes) -> Result<Self, FormatError> {
        let model = safetensors_file::read(path, bytes)?;
        Ok(Self { container: "safetensors", model, others: Vec::new() })
    }

    pub(crate) fn onnx(path: &Path, bytes: &Bytes) -> Result<Self, FormatError> {
        let onnx::Contents { model, others } = onnx::read(path, bytes)?;
        Ok(Self { container: "ONNX", model, others })
    }

    pub(crate) fn torch(path: &Path, bytes: &Bytes) -> Result<Self, FormatError> {
        let torch::Contents { model, others } = torch::read(path, bytes)?;
        Ok(Self { container: "PyTorch", model, others })
    }
}

pub(crate) fn open_dir(dir: &Path) -> Result<Checkpoint, FormatError> {
    if !dir.join(CONFIG).exists() {
        return Err(FormatError::MissingFile { path: dir.to_owned(), file: CONFIG.to_owned() });
    }
    for layout in &LAYOUTS {
        let path = dir.join(layout.single);
        if path.exists() {
            return checkpoint(dir, dir, (layout.read)(&path, &map(&path)?)?);
        }
        if let Some(index) = layout.index.map(|index| dir.join(index)).filter(|index| index.exists()) {
            return checkpoint(dir, dir, shards(dir, layout, index)?);
        }
    }
    let names = LAYOUTS.iter().flat_map(|l| [Some(l.single), l.index]).flatten().collect::<Vec<_>>();
    Err(FormatError::MissingFile { path: dir.to_owned(), file: names.join(", no ") })
}

/// A lone file of tensors; what describes it lies beside it.
pub(crate) fn open_file(path: &Path, tensors: Tensors) -> Result<Checkpoint, FormatError> {
    let dir = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !dir.join(CONFIG).exists() {
        return Err(FormatError::MissingFile {
            path: dir.to_owned(),
            file: format!("{CONFIG} beside the tensors"),
        });
    }
    checkpoint(path, dir, tensors)
}

fn checkpoint(path: &Path, dir: &Path, tensors: Tensors) -> Result<Checkpoint, FormatError> {
    let header = Header::HuggingFace {
        dir: dir.to_owned(),
        config: json(&dir.join(CONFIG))?,
        generation_config: match dir.join("generation_config.json") {
            file if file.exists() => json(&file)?,
            _ => Value::Null,
        },
    };
    let mut checkpoint = Checkpoint::new(path, header, tensors.model)
        .map_err(|tensor| FormatError::Duplicate { path: path.to_owned(), tensor })?;
    (checkpoint.others, checkpoint.container) = (tensors.others, tensors.container);
    Ok(checkpoint)
}

/// Bytes of a JSON file that are taken; the index of the largest sharded models has a few.
const MAX_JSON: u64 = 1 << 26;

pub(crate) fn json(path: &Path) -> Result<Value, FormatError> {
    let value = parse(path)?;
    match value.is_object() {
        true => Ok(value),
        false => Err(FormatError::Json { path: path.to_owned(), what: "it is no object".to_owned() }),
    }
}

fn parse(path: &Path) -> Result<Value, FormatError> {
    let len = map::len(path)?;
    if len > MAX_JSON {
        let what = format!("it has {len} bytes; at most {MAX_JSON} are taken");
        return Err(FormatError::Json { path: path.to_owned(), what });
    }
    let text = std::fs::read(path).map_err(FormatError::io(path))?;
    serde_json::from_slice(&text)
        .map_err(|e| FormatError::Json { path: path.to_owned(), what: e.to_string() })
}

/// How sentence-transformers pools the states of a model in a directory: the configuration of the module that does it.
///
/// # Errors
/// A file that should be there is not, or is no JSON.
pub fn pooling_config(dir: &Path) -> Result<Option<Value>, FormatError> {
    let index = dir.join("modules.json");
    if !index.exists() {
        return Ok(None);
    }
    let text = |module: &Value, key: &str| module.get(key).and_then(Value::as_str).map(str::to_owned);
    let modules = parse(&index)?;
    let module = modules
        .as_array()
        .into_iter()
        .flatten()
        .find(|module| text(module, "type").is_some_and(|kind| kind.ends_with(".Pooling")));
    let Some(path) = module.and_then(|module| text(module, "path")) else { return Ok(None) };
    if !matches!(Path::new(&path).components().collect::<Vec<_>>()[..], [Component::Normal(_)]) {
        let what = format!("{path:?} is no name of a folder in this directory");
        return Err(FormatError::Json { path: index, what });
    }
    json(&dir.join(path).join(CONFIG)).map(Some)
}

/// All shards of an index, which must hold exactly the tensors the index says.
fn shards(dir: &Path, layout: &Layout, index: PathBuf) -> Result<Tensors, FormatError> {
    let fail = |what: String| FormatError::Json { path: index.clone(), what };
    let value = json(&index)?;
    let places = value
        .get("weight_map")
        .and_then(Value::as_object)
        .ok_or_else(|| fail("it has no weight_map".to_owned()))?;
    let mut files: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (tensor, file) in places {
        let file = file.as_str().ok_or_else(|| fail(format!("the file of {tensor:?} is no string")))?;
        files.entry(file).or_default().insert(tensor);
    }
    let mut tensors = Tensors { container: "", model: Vec::new(), others: Vec::new() };
    for (file, names) in files {
        // A shard lies in the directory itself; an index from a stranger leads nowhere else.
        if !matches!(Path::new(file).components().collect::<Vec<_>>()[..], [Component::Normal(_)]) {
            return Err(fail(format!("{file:?} is no name of a file in this directory")));
        }
        let path = dir.join(file);
        if !path.exists() {
            return Err(FormatError::MissingFile { path: dir.to_owned(), file: file.to_owned() });
        }
        let shard = (layout.read)(&path, &map(&path)?)?;
        tensors.container = shard.container;
        // Of shards of PyTorch's, only the one with the embedding is known to be of a model by itself.
        let shard: Vec<Tensor> = shard.model.into_iter().chain(shard.others).collect();
        let there: BTreeSet<&str> = shard.iter().map(|t| t.name.as_str()).collect();
        if let Some(missing) = names.difference(&there).next() {
            return Err(fail(format!("tensor {missing:?} is not in {file}, where it should be")));
        }
        tensors.model.extend(shard.into_iter().filter(|t| names.contains(t.name.as_str())));
    }
    Ok(tensors)
}

#[cfg(test)]
mod tests;
