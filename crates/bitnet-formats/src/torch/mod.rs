//! PyTorch checkpoints (`.bin`, `.pt`, `.pth`): zip archives and the older format of pickles one behind the other.
//!
//! Tensors stay where they lie in the file's memory map. A pickle that asks for anything but containers, numbers and tensors is
//! refused: nothing in a file is executed.

mod legacy;
mod pickle;
mod tensors;
mod writer;
mod zip;

pub use writer::{TensorInfo, Writer};

use crate::{FormatError, Tensor};
use bitnet_core::Bytes;
use std::path::Path;

/// The tensors of a file.
#[derive(Clone, Debug)]
pub struct Contents {
    /// Those of the dictionary that holds the model, under their names there.
    pub model: Vec<Tensor>,
    /// All others (optimizer state, mostly), named by the keys that lead to them, with dots between.
    pub others: Vec<Tensor>,
}

/// Whether a file begins as one of PyTorch's does.
pub(crate) fn looks_like(bytes: &[u8]) -> bool {
    bytes.starts_with(&zip::MAGIC) || legacy::looks_like(bytes)
}

/// Reads a file; `path` is what errors call it.
///
/// # Errors
/// [`FormatError::Torch`] says what is wrong, or which name a pickle asked for.
pub fn read(path: &Path, bytes: &Bytes) -> Result<Contents, FormatError> {
    let contents = if bytes.starts_with(&zip::MAGIC) { archive(bytes) } else { legacy::read(bytes) };
    contents.map_err(|what| FormatError::Torch { path: path.to_owned(), what })
}

fn archive(bytes: &Bytes) -> Result<Contents, String> {
    let entries = zip::entries(bytes)?;
    let main = entries.keys().find(|name| name.ends_with("/data.pkl"));
    let main = main.ok_or("it is a zip archive without a data.pkl, and thus not PyTorch's")?;
    let folder = main.strip_suffix("data.pkl").unwrap_or_default();
    let entry = |name: &str| entries.get(&format!("{folder}{name}"));
    if let Some(order) = entry("byteorder").and_then(|r| bytes.get(r.clone()))
        && order != b"little"
    {
        return Err("its numbers are big-endian".to_owned());
    }
    let pickle = pickle::read(&bytes[entries[main].clone()])?;
    let storage = |key: &str| entry(&format!("data/{key}")).and_then(|r| bytes.slice(r.clone()));
    tensors::collect(&pickle, &storage, bytes.len())
}

#[cfg(test)]
mod tests;
