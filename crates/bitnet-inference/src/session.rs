//! A sequence on disk: its ids, and the keys and values that the cache holds of them.
//!
//! The file: eight bytes that name the format, its version, the length of a JSON header, the header, the blocks of the cache one after
//! the other, and the SHA-256 of all that. Numbers are little-endian. The header says which model, which adapters and which ids the
//! blocks belong to; with another model, or other settings of the cache, they would mean nothing.

use crate::engine::Engine;
use crate::{Device, DeviceInfo, GenerateError, Model};
use bitnet_core::KV_BLOCK;
use bitnet_formats::{AtomicFile, Checkpoint, FormatError};
use bitnet_model::{AdapterUse, LoadOptions, LoadReport, ModelConfig};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

const MAGIC: [u8; 8] = *b"bitnetKV";
const VERSION: u32 = 1;
/// Bytes of a header that are taken: an id is at most eight of them.
const MAX_HEADER: u64 = 1 << 28;
/// Bytes at both ends of a tensor that a model is known by.
const SAMPLE: usize = 4096;

/// Why a session could not be saved or restored.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SessionError {
    /// The file could not be written.
    #[error(transparent)]
    Write(#[from] FormatError),
    /// The file could not be read.
    #[error("{}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is no session, or is damaged.
    #[error("{} is no session that can be restored: {why}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The file belongs to something else.
    #[error("{} was saved with {what}", path.display())]
    Other {
        /// The file.
        path: PathBuf,
        /// What differs.
        what: &'static str,
    },
    /// The cache has no room, or keeps nothing that no sequence holds.
    #[error("{} needs {need} blocks of the cache, {have} can be had", path.display())]
    Room {
        /// The file.
        path: PathBuf,
        /// Blocks of the session.
        need: usize,
        /// Blocks that nobody holds.
        have: usize,
    },
    /// Its ids are none of this model, or the device failed.
    #[error(transparent)]
    Model(#[from] GenerateError),
}

/// What a model and its cache are known by: settings, and name, type, shape and both ends of every tensor.
pub(crate) fn identity(
    tensors: &[u8; 32],
    c: &ModelConfig,
    report: &LoadReport,
    (load, device): (&LoadOptions, &DeviceInfo),
) -> [u8; 32] {
    let mut hash = Sha256::new();
    let settings = (c.arch.name, c.hidden, c.ffn, c.layers, c.shape, c.vocab, c.eps.to_bits(), c.activation);
    let more = (&c.rope, &c.local, c.projection_norms, report.act, load.key, load.value);
    hash.update(format!("{settings:?} {more:?}"));
    // Each backend has an order of its own in the blocks of its cache, of the layers that it has.
    let kinds = device.device.devices().iter().map(|device| match device {
        Device::Cpu => "cpu",
        Device::Cuda(_) => "cuda",
        Device::Wgpu(_) => "wgpu",
    });
    let kinds: Vec<&str> = kinds.collect();
    match kinds.as_slice() {
        [kind] => hash.update(kind),
        // Layer by layer, however many GPUs there are.
        kinds if kinds.iter().all(|kind| *kind == "cuda") => hash.update("cuda"),
        kinds => hash.update(format!("{kinds:?} {:?}", device.layers)),
    }
    hash.update(tensors);
    hash.finalize().into()
}

/// What a model's tensors are known by. It is to be asked for before they are loaded, which gives back the file's pages: reading a few bytes
/// makes the system map many around them.
pub(crate) fn sample(checkpoint: &Checkpoint) -> [u8; 32] {
    let mut hash = Sha256::new();
    for tensor in checkpoint.tensors() {
        hash.update(format!("{:?} {} {:?}", tensor.name, tensor.ttype.name(), tensor.shape));
        let data = tensor.bytes();
        hash.update(&data[..data.len().min(SAMPLE)]);
        hash.update(&data[data.len().saturating_sub(SAMPLE)..]);
    }
    hash.finalize().into()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// The adapters that keys and values went through, as files say it.
fn adapters(engine: &Engine, chosen: &[AdapterUse]) -> Value {
    let name =
        |a: &AdapterUse| engine.adapters().iter().find(|info| info.id == a.id).map(|info| hex(&info.hash));
    chosen.iter().map(|a| json!({"sha256": name(a), "scale": a.scale})).collect()
}

impl Engine {
    /// Saves ids, and what the cache holds of them as a prefix: all that was computed of a sequence that ended, unless others needed
    /// its blocks since. The ids went through the adapters that act where a request does not say.
    ///
    /// # Errors
    /// The file could not be written; it is then as it was.
    pub fn save_session(&self, path: &Path, ids: &[u32]) -> Result<(), SessionError> {
        let chosen = self.chosen_by_default();
        let (blocks, positions) = self.cached(&chosen, ids);
        let header = json!({
            "model": hex(&self.identity()), "adapters": adapters(self, &chosen), "ids": ids,
            "positions": positions, "block_positions": KV_BLOCK, "block_bytes": self.decoder().block_bytes(),
        })
        .to_string();
        let mut file = AtomicFile::create(path)?;
        let mut hash = Sha256::new();
        let mut put = |bytes: &[u8]| {
            hash.update(bytes);
            file.write(bytes)
        };
        put(&MAGIC)?;
        put(&VERSION.to_le_bytes())?;
        put(&(header.len() as u64).to_le_bytes())?;
        put(header.as_bytes())?;
        let mut bytes = Vec::new();
        for block in blocks {
            bytes.clear();
            self.decoder().save_block(block, &mut bytes).map_err(GenerateError::from)?;
            put(&bytes)?;
        }
        let sum: [u8; 32] = hash.finalize().into();
        file.write(&sum)?;
        Ok(file.finish()?)
    }

    /// Restores a session: gives its ids, and puts what it holds of them into the cache, so that a prompt that begins with them goes on
    /// where it ended, with the same bits as if it had never been saved.
    ///
    /// # Errors
    /// The file is no session, is damaged, was saved with another model or other settings, or does not fit the cache.
    pub fn load_session(&mut self, path: &Path) -> Result<Vec<u32>, SessionError> {
        let damaged = |why: &str| SessionError::Damaged { path: path.to_owned(), why: why.to_owned() };
        let read = |source: std::io::Error| match source.kind() {
            std::io::ErrorKind::UnexpectedEof => damaged("it ends too early"),
            _ => SessionError::Read { path: path.to_owned(), source },
        };
        let file = File::open(path).map_err(read)?;
        let len = file.metadata().map_err(read)?.len();
        let mut reader = Hashed { reader: BufReader::with_capacity(1 << 20, file), hash: Sha256::new() };
        if reader.array::<8>().map_err(read)? != MAGIC {
            return Err(damaged("it begins with something else"));
        }
        let version = u32::from_le_bytes(reader.array().map_err(read)?);
        if version != VERSION {
            return Err(damaged(&format!("its version is {version}, {VERSION} is known")));
        }
        let header_len = u64::from_le_bytes(reader.array().map_err(read)?);
        if header_len > MAX_HEADER.min(len) {
            return Err(damaged("its header is longer than it is"));
        }
        let header = reader.bytes(header_len as usize).map_err(read)?;
        let header: Value = serde_json::from_slice(&header).map_err(|_| damaged("its header is no JSON"))?;
        let number =
            |key: &str| header.get(key).and_then(Value::as_u64).and_then(|n| usize::try_from(n).ok());
        let other = |what| SessionError::Other { path: path.to_owned(), what };
        if header.get("model").and_then(Value::as_str) != Some(hex(&self.identity()).as_str()) {
            return Err(other("another model or device, or other types of cache or activations"));
        }
        let chosen = self.chosen_by_default();
        if header.get("adapters") != Some(&adapters(self, &chosen)) {
            return Err(other("other adapters"));
        }
        let block_bytes = self.decoder().block_bytes();
        if (number("block_positions"), number("block_bytes")) != (Some(KV_BLOCK), Some(block_bytes)) {
            return Err(other("blocks of another size"));
        }
        let id = |v: &Value| v.as_u64().and_then(|id| u32::try_from(id).ok());
        let ids: Option<Option<Vec<u32>>> =
            header.get("ids").and_then(Value::as_array).map(|ids| ids.iter().map(id).collect());
        let ids = ids.flatten().ok_or_else(|| damaged("its ids are no list of numbers"))?;
        if !ids.is_empty() {
            self.check(&ids, 0)?;
        }
        let positions = number("positions").filter(|n| *n <= ids.len());
        let positions = positions.ok_or_else(|| damaged("it holds more positions than ids"))?;
        let need = positions.div_ceil(KV_BLOCK);
        let rest =
            (need as u64).checked_mul(block_bytes as u64).and_then(|n| n.checked_add(20 + header_len + 32));
        if rest != Some(len) {
            return Err(damaged(&format!("it has {len} bytes, by its header it should have {rest:?}")));
        }
        // Nothing of the cache is touched before all of the file is known to be whole.
        let data = reader.bytes(need * block_bytes).map_err(read)?;
        let sum: [u8; 32] = reader.hash.clone().finalize().into();
        if reader.array::<32>().map_err(read)? != sum {
            return Err(damaged("its checksum is another one"));
        }
        match self.keep(&chosen, &ids[..positions], &data) {
            Ok(()) => Ok(ids),
            Err(have) => Err(SessionError::Room { path: path.to_owned(), need, have }),
        }
    }
}

/// A reader that hashes what passes through it.
struct Hashed<R> {
    reader: R,
    hash: Sha256,
}

impl<R: Read> Hashed<R> {
    fn array<const N: usize>(&mut self) -> std::io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.reader.read_exact(&mut bytes)?;
        self.hash.update(bytes);
        Ok(bytes)
    }

    /// So many bytes, which memory is asked for as they come.
    fn bytes(&mut self, len: usize) -> std::io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.reader.by_ref().take(len as u64).read_to_end(&mut bytes)?;
        if bytes.len() < len {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        self.hash.update(&bytes);
        Ok(bytes)
    }
}

impl Model {
    /// Saves a sequence: [`Engine::save_session`].
    ///
    /// # Errors
    /// The file could not be written; it is then as it was.
    pub fn save_session(&self, path: &Path, ids: &[u32]) -> Result<(), SessionError> {
        self.engine.save_session(path, ids)
    }

    /// Restores a sequence and gives its ids: [`Engine::load_session`].
    ///
    /// # Errors
    /// The file is no session, is damaged, was saved with another model or other settings, or does not fit the cache.
    pub fn load_session(&mut self, path: &Path) -> Result<Vec<u32>, SessionError> {
        self.engine.load_session(path)
    }
}

#[cfg(test)]
mod tests;
