//! Adapters that requests may go through.

use crate::{GenerateError, OpenError};
use bitnet_formats::AdapterFiles;
use bitnet_model::{Adapter, AdapterUse};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The adapters of a sequence, ascending by number; keys and values of one list have other bits than those of another.
pub(super) type Chosen = Arc<[AdapterUse]>;

/// An adapter that is loaded.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterInfo {
    /// Its number, which no other adapter of the engine has or had.
    pub id: u32,
    /// Where it came from.
    pub path: PathBuf,
    /// The SHA-256 of its settings and matrices.
    pub hash: [u8; 32],
    /// How strongly it acts on requests that do not say; 0 is not at all.
    pub scale: f32,
}

/// An adapter whose files are read, which no engine has to wait for: [`super::Engine::add_adapter`] takes it.
pub struct OpenedAdapter {
    pub(super) path: PathBuf,
    pub(super) hash: [u8; 32],
    pub(super) files: AdapterFiles,
}

impl OpenedAdapter {
    /// Reads what peft saved.
    ///
    /// # Errors
    /// The files are damaged.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        let files = bitnet_formats::open_adapter(path)?;
        Ok(Self { path: path.to_owned(), hash: hash(&files), files })
    }
}

/// What the files of an adapter are known by.
fn hash(files: &AdapterFiles) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(files.config.to_string());
    for tensor in &files.tensors {
        hash.update(&tensor.name);
        hash.update(&tensor.bytes()[..]);
    }
    hash.finalize().into()
}

/// All adapters of an engine.
#[derive(Default)]
pub(super) struct Adapters {
    pub list: Vec<AdapterInfo>,
    /// Those that no request may choose any more, and that some still go through.
    pub leaving: Vec<u32>,
    /// The matrices of all of these, for another device.
    pub held: BTreeMap<u32, Adapter>,
    /// The number of the next one; none is given twice.
    pub next: u32,
}

impl Adapters {
    /// What a request goes through that asks for these, or does not say.
    pub fn choose(&self, asked: Option<&[AdapterUse]>) -> Result<Chosen, GenerateError> {
        let mut chosen: Vec<AdapterUse> = match asked {
            Some(asked) => asked.to_vec(),
            None => self.list.iter().map(|a| AdapterUse { id: a.id, scale: a.scale }).collect(),
        };
        for AdapterUse { id, scale } in &chosen {
            if !self.list.iter().any(|a| a.id == *id) {
                return Err(GenerateError::UnknownAdapter { id: *id });
            }
            if !scale.is_finite() {
                return Err(GenerateError::AdapterScale { id: *id, why: "is no finite number" });
            }
        }
        chosen.sort_by_key(|a| a.id);
        if let Some(twice) = chosen.windows(2).find(|pair| pair[0].id == pair[1].id) {
            return Err(GenerateError::AdapterScale { id: twice[0].id, why: "is given twice" });
        }
        chosen.retain(|a| a.scale != 0.0);
        Ok(chosen.into())
    }
}
