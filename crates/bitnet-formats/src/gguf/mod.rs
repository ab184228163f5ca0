//! GGUF, versions 2 and 3, little-endian: metadata, tensor descriptions, aligned data.

mod dialect;
mod metadata;
mod reader;
mod types;
mod writer;

pub use dialect::is_layout_key;
pub use metadata::{Metadata, Strings, Value};
pub use reader::{ReadOptions, read, read_with};
pub use writer::{TensorInfo, Writer};

/// The first bytes of a file.
pub(crate) const MAGIC: [u8; 4] = *b"GGUF";
/// The first bytes of a file of the other byte order.
pub(crate) const MAGIC_BIG_ENDIAN: [u8; 4] = *b"FUGG";

/// Alignment of tensor data where the file does not say.
const ALIGNMENT: usize = 32;

#[cfg(test)]
mod tests;
