//! Free pieces, the last one used on top; each holds the one below, so that a stack is one word and its count.

use super::piece::Free;
use crate::source::Source;

/// Some free pieces.
pub(super) struct Stack<S: Source> {
    top: Option<Free<S>>,
    len: usize,
}

impl<S: Source> Stack<S> {
    pub(super) fn new() -> Self {
        Self { top: None, len: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    #[inline(always)]
    pub(super) fn push(&mut self, mut free: Free<S>) {
        // A piece outside of a stack holds none, so there is nothing to drop, which the compiler does not know.
        std::mem::forget(std::mem::replace(&mut free.below, self.top.take()));
        self.top = Some(free);
        self.len += 1;
    }

    /// The piece on top, if it holds so many bytes.
    #[inline(always)]
    pub(super) fn pop_if_holds(&mut self, bytes: usize) -> Option<Free<S>> {
        let mut free = self.top.take_if(|free| free.bytes >= bytes)?;
        self.top = free.below.take();
        self.len -= 1;
        Some(free)
    }

    /// The pieces that have been here longest, so many, the oldest first, and their bytes.
    pub(super) fn bottom(&mut self, count: usize) -> (Self, usize) {
        let (mut last, keep) = (&mut self.top, self.len - count.min(self.len));
        for _ in 0..keep {
            last = &mut last.as_mut().expect("pieces that were counted").below;
        }
        let newest_first = Self { top: last.take(), len: self.len - keep };
        self.len = keep;
        let (mut oldest_first, mut bytes) = (Self::new(), 0);
        for free in newest_first {
            bytes += free.bytes;
            oldest_first.push(free);
        }
        (oldest_first, bytes)
    }
}

/// From the top.
impl<S: Source> Iterator for Stack<S> {
    type Item = Free<S>;
    fn next(&mut self) -> Option<Free<S>> {
        self.pop_if_holds(0)
    }
}

/// One after the other: dropped as a chain, each would be dropped inside the one above.
impl<S: Source> Drop for Stack<S> {
    fn drop(&mut self) {
        self.for_each(drop);
    }
}
