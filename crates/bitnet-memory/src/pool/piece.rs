//! Pieces of blocks: free ones, and those that somebody has.

use super::class::CLASSES;
use super::config::Release;
use super::home::Home;
use crate::source::{Block, HostBlock, Pages, Source};
use crate::tag::Tag;
use crate::track::Gauges;
use std::mem::ManuallyDrop;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

/// A block of the source's and what was cut from it. Given back when nobody has a piece of it any more, free or not.
pub(super) struct Chunk<S: Source> {
    pub(super) block: S::Block,
    /// Pieces that it was cut into.
    pub(super) pieces: usize,
    pub(super) gauges: Arc<Gauges>,
}

impl<S: Source> Drop for Chunk<S> {
    fn drop(&mut self) {
        self.gauges.lose(self.block.len_bytes());
    }
}

/// A piece of a chunk, free or in use. In a box of its own, so that a piece goes from hand to hand as one word: moved as several, they
/// are read again before they have arrived in the cache, which costs more than all else. It fills a cache line.
pub(super) struct Cut<S: Source> {
    /// What it lies on, where it lies on a stack.
    pub(super) below: Option<Free<S>>,
    /// A cycle while it lies free there. A pool that is dropped takes it out.
    pub(super) home: Arc<Home<S>>,
    pub(super) chunk: Arc<Chunk<S>>,
    pub(super) bytes: usize,
    /// Bytes that its user asked for.
    pub(super) asked: usize,
    /// When it was taken, in nanoseconds of the pool's clock; 0 where nobody looked.
    pub(super) since: u64,
    /// The number of the piece in its chunk.
    pub(super) index: u32,
    /// Bytes of it that the system has, until somebody takes it; of pieces that share blocks, which are not large.
    pub(super) discarded: u32,
    pub(super) class: u8,
    pub(super) tag: Tag,
    pub(super) release: Release,
    /// Whether its return is to be noted somewhere, or is not as that of others.
    pub(super) is_special: bool,
    /// Whether nobody has used it yet.
    pub(super) is_fresh: bool,
}

const _: () = assert!(size_of::<Cut<Pages>>() == 64 && CLASSES <= u8::MAX as usize);

impl<S: Source> Cut<S> {
    /// What tells it from other pieces in use.
    pub(super) fn key(&self) -> (usize, u32) {
        (Arc::as_ptr(&self.chunk) as usize, self.index)
    }

    /// Bytes of it that are resident.
    pub(super) fn resident(&self) -> usize {
        self.bytes - self.discarded as usize
    }

    /// Gives its pages to the system, if it has whole ones, and counts them off.
    pub(super) fn discard(&mut self) {
        let start = self.index as usize * self.bytes;
        // SAFETY: the range is that of this piece, which nobody uses, and which is borrowed for writing.
        let discarded = unsafe { self.chunk.block.discard(start..start + self.bytes) };
        self.discarded = u32::try_from(discarded).expect("pieces of shared blocks are not large");
        self.chunk.gauges.shrink(discarded);
    }

    /// Counts its pages as held again, since they will be.
    pub(super) fn recall(&mut self) {
        if self.discarded > 0 {
            self.chunk.gauges.grow(std::mem::take(&mut self.discarded) as usize);
        }
    }
}

impl<S: Source> Drop for Cut<S> {
    fn drop(&mut self) {
        // What its chunk is about to count off was counted off before.
        if self.discarded > 0 {
            self.chunk.gauges.held.fetch_add(self.discarded as usize, Relaxed);
        }
    }
}

/// A piece that nobody uses.
pub(super) type Free<S> = Box<Cut<S>>;

/// Some memory of a pool, of whatever kind its source gives; returns to the pool when dropped, from any thread, also when the pool
/// itself has been dropped before.
pub struct Piece<S: Source> {
    cut: ManuallyDrop<Free<S>>,
}

impl<S: Source> Piece<S> {
    #[inline(always)]
    pub(super) fn new(cut: Free<S>) -> Self {
        Self { cut: ManuallyDrop::new(cut) }
    }

    /// The block that the piece is a part of.
    pub fn block(&self) -> &S::Block {
        &self.cut.chunk.block
    }

    /// Where in the block it begins, in bytes.
    pub fn offset(&self) -> usize {
        self.cut.index as usize * self.cut.bytes
    }

    /// Bytes that were asked for.
    pub fn len_bytes(&self) -> usize {
        self.cut.asked
    }

    /// Bytes that there are.
    pub fn capacity_bytes(&self) -> usize {
        self.cut.bytes
    }

    /// What it is for.
    pub fn tag(&self) -> Tag {
        self.cut.tag
    }

    /// Whether nobody used this memory before.
    pub fn is_fresh(&self) -> bool {
        self.cut.is_fresh
    }

    /// Says when the memory goes back to the source once it is dropped.
    pub fn release(&mut self, when: Release) {
        self.cut.release = when;
        self.cut.is_special |= when != Release::Normal;
    }
}

impl<S: Source<Block: HostBlock>> Piece<S> {
    /// The address of its first byte. [`capacity_bytes`](Self::capacity_bytes) are the piece's alone, and initialized.
    pub fn start(&self) -> NonNull<u8> {
        // SAFETY: the block has `pieces` times `bytes` bytes, and this is one of its pieces.
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
        let free = unsafe { ManuallyDrop::take(&mut self.cut) };
        Home::put(free);
    }
}
