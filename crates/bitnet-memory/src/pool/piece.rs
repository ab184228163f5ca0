//! Pieces of blocks: free ones, and those that somebody has.

use super::config::Release;
use super::home::Home;
use crate::source::{Block, HostBlock, Source};
use crate::tag::Tag;
use std::mem::ManuallyDrop;
use std::ptr::NonNull;
use std::sync::Arc;

/// A block of the source's and what was cut from it. Given back when nobody has a piece of it any more, free or not.
pub(super) struct Chunk<S: Source> {
    pub(super) block: S::Block,
    pub(super) piece_bytes: usize,
    pub(super) class: usize,
    /// Pieces that it was cut into.
    pub(super) pieces: usize,
    /// A cycle while pieces lie free in their home. A pool that is dropped takes them out.
    pub(super) home: Arc<Home<S>>,
}

impl<S: Source> Drop for Chunk<S> {
    fn drop(&mut self) {
        self.home.gauges.lose(self.block.len_bytes());
    }
}

/// A piece that nobody uses.
pub(super) struct Free<S: Source> {
    pub(super) chunk: Arc<Chunk<S>>,
    /// The number of the piece in its chunk.
    pub(super) index: u32,
    /// Whether nobody has used it yet.
    pub(super) fresh: bool,
}

impl<S: Source> Free<S> {
    pub(super) fn bytes(&self) -> usize {
        self.chunk.piece_bytes
    }
}

/// What is known of a piece in use.
#[derive(Clone, Copy)]
pub(super) struct Use {
    pub(super) bytes: usize,
    /// When it was taken, in nanoseconds of the pool's clock; 0 where nobody looked.
    pub(super) since: u64,
    pub(super) tag: Tag,
    pub(super) release: Release,
}

/// Some memory of a pool, of whatever kind its source gives; returns to the pool when dropped, from any thread, also when the pool
/// itself has been dropped before.
pub struct Piece<S: Source> {
    free: ManuallyDrop<Free<S>>,
    used: Use,
}

impl<S: Source> Piece<S> {
    pub(super) fn new(free: Free<S>, used: Use) -> Self {
        Self { free: ManuallyDrop::new(free), used }
    }

    /// The block that the piece is a part of.
    pub fn block(&self) -> &S::Block {
        &self.free.chunk.block
    }

    /// Where in the block it begins, in bytes.
    pub fn offset(&self) -> usize {
        self.free.index as usize * self.free.bytes()
    }

    /// Bytes that were asked for.
    pub fn len_bytes(&self) -> usize {
        self.used.bytes
    }

    /// Bytes that there are.
    pub fn capacity_bytes(&self) -> usize {
        self.free.bytes()
    }

    /// What it is for.
    pub fn tag(&self) -> Tag {
        self.used.tag
    }

    /// Whether nobody used this memory before.
    pub fn is_fresh(&self) -> bool {
        self.free.fresh
    }

    /// Says when the memory goes back to the source once it is dropped.
    pub fn release(&mut self, when: Release) {
        self.used.release = when;
    }
}

impl<S: Source<Block: HostBlock>> Piece<S> {
    /// The address of its first byte. [`capacity_bytes`](Self::capacity_bytes) are the piece's alone, and initialized.
    pub fn start(&self) -> NonNull<u8> {
        // SAFETY: the block has `pieces` times `piece_bytes` bytes, and this is one of its pieces.
        unsafe { self.block().start().add(self.offset()) }
    }

    /// All its bytes, those that were not asked for included.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: the bytes of the block are initialized, and those of the piece belong to nobody else; it is borrowed for writing.
        unsafe { std::slice::from_raw_parts_mut(self.start().as_ptr(), self.capacity_bytes()) }
    }
}

impl<S: Source> Drop for Piece<S> {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: nobody takes it but this, once.
        let free = unsafe { ManuallyDrop::take(&mut self.free) };
        Home::put(free, self.used);
    }
}
