//! Adapters that requests may go through.

use super::Engine;
use super::sequence::Sequence;
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

/// An adapter whose files are read, which no engine has to wait for: [`Engine::add_adapter`] takes it.
pub struct OpenedAdapter {
    path: PathBuf,
    hash: [u8; 32],
    files: AdapterFiles,
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

impl Engine {
    /// Loads an adapter that peft saved. It acts on requests that do not choose adapters with `scale`; with 0, only on those that
    /// choose it. Requests that are running go on as they are.
    ///
    /// # Errors
    /// The files are damaged, or are no adapter of this model.
    pub fn load_adapter(&mut self, path: &Path, scale: f32) -> Result<u32, OpenError> {
        self.add_adapter(OpenedAdapter::open(path)?, scale)
    }

    /// Loads an adapter as [`Engine::load_adapter`] does, but for reading its files: what is left is done in a moment.
    ///
    /// # Errors
    /// It is no adapter of this model.
    pub fn add_adapter(&mut self, opened: OpenedAdapter, scale: f32) -> Result<u32, OpenError> {
        if !scale.is_finite() {
            return Err(OpenError::AdapterScale { scale });
        }
        let OpenedAdapter { path, hash, files } = opened;
        let (id, adapter) = (self.adapters.next, Adapter::read(&files, self.config())?);
        self.cache.decoder.load_adapter(id, &adapter)?;
        self.adapters.next += 1;
        self.adapters.held.insert(id, adapter);
        self.adapters.list.push(AdapterInfo { id, path, hash, scale });
        Ok(id)
    }

    /// Unloads an adapter: no request may choose it any more, those that have it keep it to their end.
    ///
    /// # Errors
    /// There is none of this number.
    pub fn unload_adapter(&mut self, id: u32) -> Result<(), GenerateError> {
        let at = self.adapters.list.iter().position(|a| a.id == id);
        self.adapters.list.remove(at.ok_or(GenerateError::UnknownAdapter { id })?);
        self.adapters.leaving.push(id);
        self.let_adapters_go();
        Ok(())
    }

    /// Gives back the memory of adapters that are unloaded and that nobody goes through.
    pub(super) fn let_adapters_go(&mut self) {
        let (queue, running, decoder) = (&self.queue, &self.running, &mut self.cache.decoder);
        let Adapters { leaving, held, .. } = &mut self.adapters;
        leaving.retain(|id| {
            let uses = |s: &Sequence| s.adapters.iter().any(|a| a.id == *id);
            let used = running.iter().any(uses) || queue.any(uses);
            if !used {
                decoder.unload_adapter(*id);
                held.remove(id);
            }
            used
        });
    }

    /// The adapters that requests may choose.
    pub fn adapters(&self) -> &[AdapterInfo] {
        &self.adapters.list
    }

    /// Sets how strongly adapters act on requests that do not choose any; those that are not named get 0.
    ///
    /// # Errors
    /// A number that no adapter has, or a scale that means nothing.
    pub fn set_adapter_scales(&mut self, scales: &[AdapterUse]) -> Result<(), GenerateError> {
        let chosen = self.adapters.choose(Some(scales))?;
        for adapter in &mut self.adapters.list {
            adapter.scale = chosen.iter().find(|a| a.id == adapter.id).map_or(0.0, |a| a.scale);
        }
        Ok(())
    }

    /// The adapters of requests that choose none.
    pub(crate) fn chosen_by_default(&self) -> Chosen {
        self.adapters.choose(None).expect("adapters that are loaded can be chosen")
    }
}
