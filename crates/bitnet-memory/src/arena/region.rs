//! The one block of memory that an arena shares out. All that is unsafe about arenas is here.

use super::space::Move;
use crate::HostBlock;

/// Memory whose parts are borrowed by whoever the arena says holds them.
pub(super) struct Region<B: HostBlock>(B);

impl<B: HostBlock> Region<B> {
    pub fn new(block: B) -> Self {
        Self(block)
    }

    pub fn len_bytes(&self) -> usize {
        self.0.len_bytes()
    }

    /// A pointer to `len` bytes from `offset` on.
    fn part(&self, offset: usize, len: usize) -> *mut u8 {
        let end = offset.checked_add(len).expect("a part has an end");
        assert!(end <= self.0.len_bytes(), "a part lies in its region");
        // SAFETY: the block has at least `offset` bytes, as was just checked.
        unsafe { self.0.start().as_ptr().add(offset) }
    }

    /// Some bytes, to read.
    ///
    /// # Safety
    /// As long as the slice lives, nothing writes to the bytes: they belong to a block that is pinned and whose handle is borrowed.
    pub unsafe fn read(&self, offset: usize, len: usize) -> &[u8] {
        // SAFETY: the bytes lie in the block, are initialized by `HostBlock`'s promise and those of `copy` and `write`, and the caller
        // vouches that nothing writes to them.
        unsafe { std::slice::from_raw_parts(self.part(offset, len), len) }
    }

    /// Some bytes, to write.
    ///
    /// # Safety
    /// As long as the slice lives, nothing else reads or writes the bytes: they belong to a block that is pinned and whose handle is
    /// borrowed mutably, or owned.
    #[allow(
        clippy::mut_from_ref,
        reason = "which parts are borrowed is known to handles, not to the compiler"
    )]
    pub unsafe fn write(&self, offset: usize, len: usize) -> &mut [u8] {
        // SAFETY: as above, and the caller vouches that the slice is the only way to the bytes.
        unsafe { std::slice::from_raw_parts_mut(self.part(offset, len), len) }
    }

    /// Copies a block's bytes to its new place.
    ///
    /// # Safety
    /// Nothing else reads or writes either place meanwhile: the block is not pinned, no other block lies in them, and no handle can
    /// come to its bytes before this returns.
    pub unsafe fn copy(&self, Move { from, to, len }: Move) {
        let (from, to) = (self.part(from, len), self.part(to, len));
        // SAFETY: both places lie in the block; the caller vouches for the rest. They may overlap.
        unsafe { std::ptr::copy(from, to, len) }
    }
}
