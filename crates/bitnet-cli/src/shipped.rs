//! The model that is part of the program, for whoever names none.
//!
//! It lies in the program itself: a path would have to be found again after `cargo install`, and from any folder. It is as small as
//! that makes sense for, and is read where it lies, as a mapped file is.

use bitnet_core::{Bytes, Storage};
use bitnet_formats::{Checkpoint, FormatError, ReadOptions, gguf};
use std::path::Path;
use std::sync::Arc;

/// What it is called.
pub const NAME: &str = "bitnet-mini";

/// Tensors begin at multiples of 32 bytes of a file, and should in memory, too.
#[repr(C, align(64))]
struct Aligned<T>(T);

static FILE: Aligned<[u8; include_bytes!("../../../models/bitnet-mini.gguf").len()]> =
    Aligned(*include_bytes!("../../../models/bitnet-mini.gguf"));

struct Shipped;

impl AsRef<[u8]> for Shipped {
    fn as_ref(&self) -> &[u8] {
        &FILE.0
    }
}

impl Storage for Shipped {}

/// Whether a word means it: no file has this name.
pub fn is_meant(model: &Path) -> bool {
    model == Path::new(NAME) && !model.exists()
}

/// Bytes of its file.
pub fn size() -> usize {
    FILE.0.len()
}

/// Opens a model of this machine, or the one of this program.
pub fn open(model: &Path) -> Result<Checkpoint, FormatError> {
    open_with(model, &ReadOptions::default())
}

/// The same of a file that does not say everything.
pub fn open_with(model: &Path, options: &ReadOptions) -> Result<Checkpoint, FormatError> {
    match is_meant(model) {
        true => gguf::read_with(model, Bytes::new(Arc::new(Shipped)), options),
        false => bitnet_formats::open_with(model, options),
    }
}
