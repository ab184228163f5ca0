//! Memory that runs out when a test wants it to.

use super::{Block, HostBlock, Source};
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

/// Another source, of which some requests fail. Clones share their counts.
#[derive(Clone, Debug)]
pub struct Failing<S> {
    inner: S,
    /// Requests of these numbers fail.
    fails: Range<usize>,
    limit_bytes: usize,
    counts: Arc<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    requests: AtomicUsize,
    held_bytes: AtomicUsize,
    healed: AtomicBool,
}

impl<S> Failing<S> {
    /// Fails the request number `nth` (from 0), and no other.
    pub fn nth(inner: S, nth: usize) -> Self {
        Self { inner, fails: nth..nth.saturating_add(1), limit_bytes: usize::MAX, counts: Arc::default() }
    }

    /// Fails the request number `nth` (from 0) and all behind it, until somebody [heals](Self::heal) it.
    pub fn from(inner: S, nth: usize) -> Self {
        Self { inner, fails: nth..usize::MAX, limit_bytes: usize::MAX, counts: Arc::default() }
    }

    /// From now on no request fails because of its number.
    pub fn heal(&self) {
        self.counts.healed.store(true, Relaxed);
    }

    /// Fails requests that would make blocks of more than so many bytes exist at once.
    pub fn above(inner: S, limit_bytes: usize) -> Self {
        Self { inner, fails: 0..0, limit_bytes, counts: Arc::default() }
    }

    /// Requests so far, those that failed included.
    pub fn requests(&self) -> usize {
        self.counts.requests.load(Relaxed)
    }

    /// Bytes of blocks that exist.
    pub fn held_bytes(&self) -> usize {
        self.counts.held_bytes.load(Relaxed)
    }
}

/// A block that is counted while it exists.
#[derive(Debug)]
pub struct Limited<B: Block> {
    inner: B,
    counts: Arc<Counts>,
}

impl<S: Source> Source for Failing<S> {
    type Block = Limited<S::Block>;

    fn granule(&self) -> usize {
        self.inner.granule()
    }

    fn align(&self) -> usize {
        self.inner.align()
    }

    fn shares_blocks(&self) -> bool {
        self.inner.shares_blocks()
    }

    fn allocate(&self, bytes: usize) -> Option<Self::Block> {
        let request = self.counts.requests.fetch_add(1, Relaxed);
        if self.fails.contains(&request) && !self.counts.healed.load(Relaxed) {
            return None;
        }
        let inner = self.inner.allocate(bytes)?;
        let held_bytes = self.counts.held_bytes.fetch_add(inner.len_bytes(), Relaxed) + inner.len_bytes();
        let block = Limited { inner, counts: Arc::clone(&self.counts) };
        // One that is too much is counted off again as it is dropped.
        (held_bytes <= self.limit_bytes).then_some(block)
    }
}

impl<B: Block> Block for Limited<B> {
    fn len_bytes(&self) -> usize {
        self.inner.len_bytes()
    }

    fn populate(&mut self) {
        self.inner.populate();
    }

    unsafe fn discard(&self, range: Range<usize>) -> usize {
        // SAFETY: the caller's promise.
        unsafe { self.inner.discard(range) }
    }
}

// SAFETY: memory and promises are those of the block inside.
unsafe impl<B: HostBlock> HostBlock for Limited<B> {
    fn start(&self) -> NonNull<u8> {
        self.inner.start()
    }
}

impl<B: Block> Drop for Limited<B> {
    fn drop(&mut self) {
        self.counts.held_bytes.fetch_sub(self.inner.len_bytes(), Relaxed);
    }
}
