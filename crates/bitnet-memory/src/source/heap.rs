//! The system's allocator.

use super::{ALIGN, Block, HostBlock, Source};
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;

/// The allocator that the whole program uses.
#[derive(Clone, Copy, Debug, Default)]
pub struct Heap;

/// Memory of the program's allocator.
#[derive(Debug)]
pub struct HeapBlock {
    /// What the allocator gave.
    memory: NonNull<u8>,
    /// How far from there a cache line begins.
    shift: usize,
    len: usize,
}

impl HeapBlock {
    /// What the allocator is asked for. Asked for 64-byte alignment, it would write zeros over memory that the system has just
    /// cleared; with room to shift, it knows better.
    fn layout(len: usize) -> Option<Layout> {
        Layout::from_size_align(len.checked_add(ALIGN)?, 16).ok()
    }
}

impl Source for Heap {
    type Block = HeapBlock;

    fn granule(&self) -> usize {
        ALIGN
    }

    fn allocate(&self, bytes: usize) -> Option<HeapBlock> {
        let len = bytes.checked_next_multiple_of(ALIGN)?;
        let layout = HeapBlock::layout(len)?;
        // SAFETY: the layout has at least `ALIGN` bytes.
        let memory = NonNull::new(unsafe { alloc_zeroed(layout) })?;
        let shift = memory.as_ptr().align_offset(ALIGN);
        Some(HeapBlock { memory, shift, len })
    }
}

impl Block for HeapBlock {
    fn len_bytes(&self) -> usize {
        self.len
    }
}

// SAFETY: the block is `len` bytes of an allocation that is its own, zeroed, and at least `ALIGN` bytes longer than that; `shift` is
// the distance, below `ALIGN`, to an aligned address.
unsafe impl HostBlock for HeapBlock {
    fn start(&self) -> NonNull<u8> {
        // SAFETY: the allocation is longer than `shift`.
        unsafe { self.memory.add(self.shift) }
    }
}

// SAFETY: the memory is the block's alone, and allocators take memory back from any thread.
unsafe impl Send for HeapBlock {}
// SAFETY: a shared block only tells its address and size.
unsafe impl Sync for HeapBlock {}

impl Drop for HeapBlock {
    fn drop(&mut self) {
        let layout = Self::layout(self.len).expect("the layout that it was allocated with");
        // SAFETY: the allocator gave this memory for this layout, and nobody has given it back.
        unsafe { dealloc(self.memory.as_ptr(), layout) }
    }
}
