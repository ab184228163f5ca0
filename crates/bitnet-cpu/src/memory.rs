//! Memory of a backend: all of it comes from one pool.
//!
//! What lives as long as a model (weights, the key-value cache) and what tensors hold are buffers of the pool. What an operation needs
//! while it runs is handed out by a region that has all of it free again when the next one begins.

use crate::layout::Line;
use bitnet_core::BackendError;
use bitnet_memory::{Config, Pages, Region, Tag};
use bytemuck::Pod;
use std::panic::resume_unwind;
use std::sync::Arc;

pub(crate) use bitnet_memory::{Buffer, OutOfMemory, Pool as Memory};

/// What an operation needs while it runs.
pub(crate) type Scratch<'r> = bitnet_memory::Step<'r>;

/// A pool for a backend: of pages, of which neighbouring blocks, and not large ones alone, make up large pages where the system has them.
/// Weights and the cache are read as streams once a token, which is a few percent faster so.
pub fn memory(config: Config) -> Arc<Memory> {
    Arc::new(Memory::on_host(Pages { huge_from_bytes: 0 }, config))
}

/// `len` zeros that live as long as a model.
pub(crate) fn kept<T: Pod>(
    memory: &Memory,
    len: usize,
    tag: Tag,
    what: &'static str,
) -> Result<Buffer<T>, BackendError> {
    memory.zeroed(len, tag).map_err(|e| BackendError::OutOfMemory { bytes: e.bytes, what })
}

/// A thread's part of an operation's scratch memory, of which it takes what it needs from the front.
pub(crate) struct Room<'a>(&'a mut [Line]);

impl<'a> Room<'a> {
    pub(crate) fn new(lines: &'a mut [Line]) -> Self {
        Self(lines)
    }

    /// Lines that so many elements take.
    pub(crate) const fn lines<T: Pod>(len: usize) -> usize {
        (len * size_of::<T>()).div_ceil(size_of::<Line>())
    }

    /// The next `len` elements; what they hold has no meaning.
    pub(crate) fn take<T: Pod>(&mut self, len: usize) -> &'a mut [T] {
        let (own, rest) = std::mem::take(&mut self.0).split_at_mut(Self::lines::<T>(len));
        self.0 = rest;
        &mut bytemuck::cast_slice_mut(own)[..len]
    }
}

/// `len` elements of a buffer that is kept from one operation of training to the next; what they hold has no meaning. Without memory for them it
/// unwinds with [`OutOfMemory`]: nobody between here and who began the run can do without.
pub(crate) fn at_least<'a, T: Pod>(memory: &Memory, room: &'a mut Buffer<T>, len: usize) -> &'a mut [T] {
    if room.capacity() < len {
        *room = Buffer::default();
        *room = memory.buffer(len, Tag::Scratch).unwrap_or_else(|e| resume_unwind(Box::new(e)));
    }
    memory.fit(room, len).unwrap_or_else(|e| resume_unwind(Box::new(e)));
    room
}

/// Zeros for as long as an operation of training runs. As [`at_least`] it unwinds.
pub(crate) fn zeros<T: Pod>(memory: &Memory, len: usize) -> Buffer<T> {
    memory.zeroed(len, Tag::Scratch).unwrap_or_else(|e| resume_unwind(Box::new(e)))
}

/// Lets `f` compute with scratch memory that is its alone, for tests: those of this crate, and those that `doctor` runs.
pub(crate) fn alone<R>(memory: &Memory, f: impl FnOnce(&Scratch<'_>) -> Result<R, OutOfMemory>) -> R {
    f(&Region::default().begin(memory)).expect("a few megabytes")
}
