//! Host memory of any source, behind one type.

use super::{Block, HostBlock, Pages, Source};
use std::fmt;
use std::ops::Range;
use std::ptr::NonNull;

/// Some source of host memory. Who computes on the host gets along with any of them, and has no type parameter for it.
pub struct Host(Box<dyn Give>);

/// A block of whatever source.
pub struct AnyBlock {
    /// As the block says, so that nobody has to ask it each time.
    start: NonNull<u8>,
    block: Box<dyn HostBlock>,
}

/// A [`Source`] whose blocks are all of one type.
trait Give: Send + Sync {
    fn granule(&self) -> usize;
    fn shares_blocks(&self) -> bool;
    fn give(&self, bytes: usize) -> Option<AnyBlock>;
}

impl<S: Source<Block: HostBlock>> Give for S {
    fn granule(&self) -> usize {
        Source::granule(self)
    }

    fn shares_blocks(&self) -> bool {
        Source::shares_blocks(self)
    }

    fn give(&self, bytes: usize) -> Option<AnyBlock> {
        let block = Box::new(self.allocate(bytes)?);
        Some(AnyBlock { start: block.start(), block })
    }
}

impl Host {
    /// What another source gives.
    pub fn new(source: impl Source<Block: HostBlock>) -> Self {
        Self(Box::new(source))
    }
}

impl Default for Host {
    /// Maps of pages.
    fn default() -> Self {
        Self::new(Pages::default())
    }
}

impl Source for Host {
    type Block = AnyBlock;

    fn granule(&self) -> usize {
        self.0.granule()
    }

    fn shares_blocks(&self) -> bool {
        self.0.shares_blocks()
    }

    fn allocate(&self, bytes: usize) -> Option<AnyBlock> {
        self.0.give(bytes)
    }
}

impl Block for AnyBlock {
    fn len_bytes(&self) -> usize {
        self.block.len_bytes()
    }

    fn populate(&mut self) {
        self.block.populate();
    }

    unsafe fn discard(&self, range: Range<usize>) -> usize {
        // SAFETY: the caller's promise.
        unsafe { self.block.discard(range) }
    }
}

// SAFETY: memory and promises are those of the block inside, which always gives the same address.
unsafe impl HostBlock for AnyBlock {
    fn start(&self) -> NonNull<u8> {
        self.start
    }
}

// SAFETY: the memory is the block's, which may go from thread to thread.
unsafe impl Send for AnyBlock {}
// SAFETY: as above; a shared block only tells its address and size.
unsafe impl Sync for AnyBlock {}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Host").finish_non_exhaustive()
    }
}
