//! Hugging Face directories: `config.json`, one `model.safetensors` or shards with an index.

use crate::map::{self, map};
use crate::{Checkpoint, FormatError, Header, Tensor, safetensors_file};
use bitnet_core::Bytes;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path};

const CONFIG: &str = "config.json";
const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

pub(crate) fn open_dir(dir: &Path) -> Result<Checkpoint, FormatError> {
    if !dir.join(CONFIG).exists() {
        return Err(FormatError::MissingFile { path: dir.to_owned(), file: CONFIG.to_owned() });
    }
    let tensors = if dir.join(SINGLE).exists() {
        let path = dir.join(SINGLE);
        safetensors_file::read(&path, &map(&path)?)?
    } else if dir.join(INDEX).exists() {
        shards(dir)?
    } else {
        let file = format!("{SINGLE} and no {INDEX}");
        return Err(FormatError::MissingFile { path: dir.to_owned(), file });
    };
    checkpoint(dir, dir, tensors)
}

/// A lone safetensors file; what describes it lies beside it.
pub(crate) fn open_file(path: &Path, bytes: Bytes) -> Result<Checkpoint, FormatError> {
    let dir = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let tensors = safetensors_file::read(path, &bytes)?;
    if !dir.join(CONFIG).exists() {
        return Err(FormatError::MissingFile {
            path: dir.to_owned(),
            file: format!("{CONFIG} beside the tensors"),
        });
    }
    checkpoint(path, dir, tensors)
}

fn checkpoint(path: &Path, dir: &Path, tensors: Vec<Tensor>) -> Result<Checkpoint, FormatError> {
    let header = Header::HuggingFace {
        dir: dir.to_owned(),
        config: json(&dir.join(CONFIG))?,
        generation_config: match dir.join("generation_config.json") {
            file if file.exists() => json(&file)?,
            _ => Value::Null,
        },
    };
    Checkpoint::new(path, header, tensors)
        .map_err(|tensor| FormatError::Duplicate { path: path.to_owned(), tensor })
}

/// Bytes of a JSON file that are taken; the index of the largest sharded models has a few.
const MAX_JSON: u64 = 1 << 26;

fn json(path: &Path) -> Result<Value, FormatError> {
    let len = map::len(path)?;
    if len > MAX_JSON {
        let what = format!("it has {len} bytes; at most {MAX_JSON} are taken");
        return Err(FormatError::Json { path: path.to_owned(), what });
    }
    let text = std::fs::read(path).map_err(FormatError::io(path))?;
    let value: Value = serde_json::from_slice(&text)
        .map_err(|e| FormatError::Json { path: path.to_owned(), what: e.to_string() })?;
    match value.is_object() {
        true => Ok(value),
        false => Err(FormatError::Json { path: path.to_owned(), what: "it is no object".to_owned() }),
    }
}

/// All shards of an index, which must hold exactly the tensors the index says.
fn shards(dir: &Path) -> Result<Vec<Tensor>, FormatError> {
    let index = dir.join(INDEX);
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
    let mut tensors = Vec::new();
    for (file, names) in files {
        // A shard lies in the directory itself; an index from a stranger leads nowhere else.
        if !matches!(Path::new(file).components().collect::<Vec<_>>()[..], [Component::Normal(_)]) {
            return Err(fail(format!("{file:?} is no name of a file in this directory")));
        }
        let path = dir.join(file);
        if !path.exists() {
            return Err(FormatError::MissingFile { path: dir.to_owned(), file: file.to_owned() });
        }
        let shard = safetensors_file::read(&path, &map(&path)?)?;
        let there: BTreeSet<&str> = shard.iter().map(|t| t.name.as_str()).collect();
        if let Some(missing) = names.difference(&there).next() {
            return Err(fail(format!("tensor {missing:?} is not in {file}, where it should be")));
        }
        tensors.extend(shard.into_iter().filter(|t| names.contains(t.name.as_str())));
    }
    Ok(tensors)
}

#[cfg(test)]
mod tests;
