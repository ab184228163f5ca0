//! Memory that is there before anybody writes it.

use super::{Block, Source};

/// Another source, whose blocks are resident when they are given: no first write to a page waits for the system to find one, which takes
/// milliseconds where pages are huge. For an [`Arena`](crate::Arena) whose maintenance has to keep to its time.
#[derive(Clone, Copy, Debug, Default)]
pub struct Resident<S>(pub S);

impl<S: Source> Source for Resident<S> {
    type Block = S::Block;

    fn granule(&self) -> usize {
        self.0.granule()
    }

    fn align(&self) -> usize {
        self.0.align()
    }

    fn shares_blocks(&self) -> bool {
        self.0.shares_blocks()
    }

    fn allocate(&self, bytes: usize) -> Option<Self::Block> {
        let mut block = self.0.allocate(bytes)?;
        block.populate();
        Some(block)
    }
}
