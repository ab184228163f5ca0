//! Low-rank adapters as the peft library saves them: `adapter_config.json` beside a file of tensors.

use crate::huggingface::json;
use crate::map::map;
use crate::{FormatError, Tensor, gguf, safetensors_file, torch};
use serde_json::Value;
use std::path::{Path, PathBuf};

const CONFIG: &str = "adapter_config.json";

/// Files of tensors; the first that is there is taken.
const TENSORS: [&str; 2] = ["adapter_model.safetensors", "adapter_model.bin"];

/// An adapter on disk.
#[derive(Clone, Debug)]
pub struct AdapterFiles {
    /// What was opened.
    pub path: PathBuf,
    /// `adapter_config.json`.
    pub config: Value,
    /// Its tensors, in place in the file's memory map.
    pub tensors: Vec<Tensor>,
}

/// Opens a directory that peft saved, or the file of tensors in it.
///
/// # Errors
/// [`FormatError`] names the file and what is wrong with it.
pub fn open_adapter(path: &Path) -> Result<AdapterFiles, FormatError> {
    let missing =
        |dir: &Path, file: &str| FormatError::MissingFile { path: dir.to_owned(), file: file.to_owned() };
    let (dir, file) = match std::fs::metadata(path).map_err(FormatError::io(path))?.is_dir() {
        true => {
            let file = TENSORS.map(|name| path.join(name)).into_iter().find(|file| file.exists());
            (path, file.ok_or_else(|| missing(path, &TENSORS.join(", no ")))?)
        }
        false => {
            let dir = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
            (dir, path.to_owned())
        }
    };
    let bytes = map(&file)?;
    if bytes.starts_with(&gguf::MAGIC) {
        let what = "the file is GGUF; adapters are read from directories that peft saved";
        return Err(FormatError::Unrecognized { path: file, what });
    }
    if !dir.join(CONFIG).exists() {
        return Err(missing(dir, CONFIG));
    }
    let tensors = if safetensors_file::looks_like(&bytes) {
        safetensors_file::read(&file, &bytes)?
    } else {
        let torch::Contents { model, others } = torch::read(&file, &bytes)?;
        model.into_iter().chain(others).collect()
    };
    Ok(AdapterFiles { path: path.to_owned(), config: json(&dir.join(CONFIG))?, tensors })
}
