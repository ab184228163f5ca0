//! The one thing that goes wrong with memory.

use crate::Tag;

/// A source gave no memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("could not allocate {bytes} bytes for {tag}")]
pub struct OutOfMemory {
    /// Bytes that were asked for; `usize::MAX` where their number is beyond what can be counted.
    pub bytes: usize,
    /// What they were for.
    pub tag: Tag,
}
