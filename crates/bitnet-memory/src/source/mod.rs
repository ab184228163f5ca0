//! Raw memory: who gives it, and what is given.

mod failing;
mod heap;
mod host;
mod pages;
mod resident;
#[cfg(test)]
mod tests;

pub use failing::{Failing, Limited};
pub use heap::{Heap, HeapBlock};
pub use host::{AnyBlock, Host};
pub use pages::{Pages, PagesBlock};
pub use resident::Resident;
use std::ops::Range;
use std::ptr::NonNull;

/// What host memory is aligned to at least: a cache line, and the widest vector of any processor.
pub const ALIGN: usize = 64;

/// Gives memory, in blocks.
///
/// A source is asked seldom and for much; it need be neither fast nor frugal with addresses. Blocks may outlive it.
pub trait Source: Send + Sync + 'static {
    /// What it gives: the ownership of some memory.
    type Block: Block;

    /// What sizes of its blocks are multiples of.
    fn granule(&self) -> usize;

    /// What places and sizes of a pool's pieces are multiples of, counted from where their block begins: a power of two, at least
    /// [`ALIGN`]. For devices that want more.
    fn align(&self) -> usize {
        ALIGN
    }

    /// Whether pieces of a pool may share a block. Not where a block is an object that is only used whole: then each piece has one of its
    /// own, at offset 0, by which it is known.
    fn shares_blocks(&self) -> bool {
        true
    }

    /// A block of at least `bytes` bytes, which are not zero; `None` when there is no such memory.
    fn allocate(&self, bytes: usize) -> Option<Self::Block>;
}

/// Owns memory of a source's, and gives it back when dropped.
///
/// The memory need not be the host's: of a device, a block may be an address or an object of its driver. A pool asks it for no more
/// than is here, and keeps nothing inside of it.
pub trait Block: Send + Sync + 'static {
    /// Its size.
    fn len_bytes(&self) -> usize;

    /// Makes its memory resident now rather than as it is first written, where there is such a difference.
    fn populate(&mut self) {}

    /// Gives the memory of a range back to the system until it is written again, as far as that is possible; gives the bytes that went.
    /// Until then they read as zero.
    ///
    /// # Safety
    ///
    /// Nobody else uses the range meanwhile.
    unsafe fn discard(&self, _range: Range<usize>) -> usize {
        0
    }
}

/// A block that the processor reads and writes.
///
/// # Safety
///
/// `start` always gives the same address, a multiple of [`ALIGN`]. The [`len_bytes`](Block::len_bytes) bytes behind it can be read and
/// written until the block is dropped, nobody else reads or writes them, and all of them are initialized: zero when the block is new.
pub unsafe trait HostBlock: Block {
    /// Where the memory begins.
    fn start(&self) -> NonNull<u8>;

    /// All of it.
    fn bytes(&self) -> &[u8] {
        // SAFETY: the trait says that so many bytes are there, initialized, and belong to the block, which is borrowed.
        unsafe { std::slice::from_raw_parts(self.start().as_ptr(), self.len_bytes()) }
    }

    /// All of it, to write.
    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and the block is borrowed for writing.
        unsafe { std::slice::from_raw_parts_mut(self.start().as_ptr(), self.len_bytes()) }
    }
}
