//! Immutable bytes with shared ownership: a slice of the heap or of a memory map.

use std::fmt;
use std::ops::{Deref, Range};
use std::sync::Arc;

/// What owns the memory behind a [`Bytes`].
pub trait Storage: AsRef<[u8]> + Send + Sync + 'static {
    /// Tells the owner that `range` (in bytes) will not be read soon. A memory map gives the pages back to the operating
    /// system; the contents stay readable. The heap ignores it.
    fn release(&self, _range: Range<usize>) {}
}

impl Storage for Vec<u8> {}

/// A cheaply cloned, immutable range of bytes.
#[derive(Clone)]
pub struct Bytes {
    storage: Arc<dyn Storage>,
    start: usize,
    len: usize,
}

impl Bytes {
    /// All bytes of a storage.
    pub fn new(storage: Arc<dyn Storage>) -> Self {
        let len = (*storage).as_ref().len();
        Self { storage, start: 0, len }
    }

    /// The bytes of `range`, relative to this one; `None` when it does not lie inside.
    pub fn slice(&self, range: Range<usize>) -> Option<Self> {
        (range.start <= range.end && range.end <= self.len).then(|| Self {
            storage: Arc::clone(&self.storage),
            start: self.start + range.start,
            len: range.end - range.start,
        })
    }

    /// Where they begin in their storage, in bytes: of a file that is mapped whole, their place in the file.
    pub fn offset(&self) -> usize {
        self.start
    }

    /// Gives the pages behind these bytes back where the owner can (see [`Storage::release`]).
    pub fn release(&self) {
        self.storage.release(self.start..self.start + self.len);
    }
}

impl Deref for Bytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &(*self.storage).as_ref()[self.start..self.start + self.len]
    }
}

impl From<Vec<u8>> for Bytes {
    fn from(v: Vec<u8>) -> Self {
        Self::new(Arc::new(v))
    }
}

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Bytes({} bytes)", self.len)
    }
}
