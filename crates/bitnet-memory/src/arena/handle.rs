//! Handles of blocks, and the borrows that keep a block where it is.

use super::{Arena, GRAIN};
use crate::{HostBlock, PagesBlock};
use std::ops::{Deref, DerefMut};

/// A block of an arena, which goes back to it when dropped. Where its bytes are is told for as long as they are borrowed.
pub struct Relocatable<B: HostBlock = PagesBlock> {
    arena: Arena<B>,
    block: u32,
    len: usize,
}

impl<B: HostBlock> Relocatable<B> {
    pub(super) fn new(arena: Arena<B>, block: u32, len: usize) -> Self {
        Self { arena, block, len }
    }

    /// Bytes that were asked for.
    pub fn len_bytes(&self) -> usize {
        self.len
    }

    #[cfg(test)]
    pub(super) fn number(&self) -> u32 {
        self.block
    }

    /// Pins the block and tells where it is.
    pub(super) fn pin_at(&self) -> usize {
        self.arena.0.state().pin(self.block)
    }

    fn unpin(&self) {
        self.arena.0.state().unpin(self.block);
    }

    /// Its bytes, to read.
    pub fn read(&self) -> Read<'_, B> {
        Read { offset: self.pin_at(), handle: self }
    }

    /// Its bytes, to write.
    pub fn write(&mut self) -> Write<'_, B> {
        Write { offset: self.pin_at(), handle: self }
    }

    /// Keeps the bytes where they are until [`Pinned::unpin`]: for a device that reads them, or a step that reads them often.
    pub fn pin(self) -> Pinned<B> {
        Pinned { offset: self.pin_at(), handle: self }
    }
}

impl<B: HostBlock> Drop for Relocatable<B> {
    fn drop(&mut self) {
        self.arena.0.state().remove(self.block);
    }
}

/// A block's bytes, 64-byte aligned. The block stays where it is meanwhile.
pub struct Read<'a, B: HostBlock = PagesBlock> {
    handle: &'a Relocatable<B>,
    offset: usize,
}

impl<B: HostBlock> Deref for Read<'_, B> {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: the block is pinned until this is dropped, and its handle is borrowed, so nobody can write.
        unsafe { self.handle.arena.0.region.read(self.offset, self.handle.len) }
    }
}

impl<B: HostBlock> Drop for Read<'_, B> {
    fn drop(&mut self) {
        self.handle.unpin();
    }
}

/// A block's bytes, to write. The block stays where it is meanwhile.
pub struct Write<'a, B: HostBlock = PagesBlock> {
    handle: &'a mut Relocatable<B>,
    offset: usize,
}

impl<B: HostBlock> Deref for Write<'_, B> {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: the block is pinned until this is dropped, and its handle is borrowed mutably by this, which is borrowed.
        unsafe { self.handle.arena.0.region.read(self.offset, self.handle.len) }
    }
}

impl<B: HostBlock> DerefMut for Write<'_, B> {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: the block is pinned until this is dropped, and its handle is borrowed mutably by this, which is borrowed mutably.
        unsafe { self.handle.arena.0.region.write(self.offset, self.handle.len) }
    }
}

impl<B: HostBlock> Drop for Write<'_, B> {
    fn drop(&mut self) {
        self.handle.unpin();
    }
}

/// A block that stays where it is.
pub struct Pinned<B: HostBlock = PagesBlock> {
    handle: Relocatable<B>,
    offset: usize,
}

impl<B: HostBlock> Pinned<B> {
    /// Lets it move again.
    pub fn unpin(self) -> Relocatable<B> {
        self.handle.unpin();
        self.handle
    }
}

impl<B: HostBlock> Deref for Pinned<B> {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: the block is pinned as long as this exists, which owns the handle and is borrowed.
        unsafe { self.handle.arena.0.region.read(self.offset, self.handle.len) }
    }
}

impl<B: HostBlock> DerefMut for Pinned<B> {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and this is borrowed mutably.
        unsafe { self.handle.arena.0.region.write(self.offset, self.handle.len) }
    }
}

/// What offsets of blocks are multiples of.
const _: () = assert!(GRAIN == crate::ALIGN);
