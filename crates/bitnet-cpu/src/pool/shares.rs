//! A mutable slice shared out among threads.

use std::marker::PhantomData;

/// A mutable slice whose disjoint parts are shared out among threads.
pub(crate) struct Shares<'a, T> {
    start: *mut T,
    len: usize,
    borrow: PhantomData<&'a mut [T]>,
}

// SAFETY: the elements are `Send`, and each is reached by one thread (see `Shares::slice`).
unsafe impl<T: Send> Sync for Shares<'_, T> {}

impl<'a, T> Shares<'a, T> {
    pub(crate) fn new(data: &'a mut [T]) -> Self {
        Self { start: data.as_mut_ptr(), len: data.len(), borrow: PhantomData }
    }

    /// Elements `from..from + len`; panics when they do not lie inside.
    ///
    /// # Safety
    /// While the returned slice lives, no other slice that overlaps it may exist.
    #[allow(clippy::mut_from_ref, reason = "disjointness is the caller's promise")]
    pub(crate) unsafe fn slice(&self, from: usize, len: usize) -> &mut [T] {
        assert!(from <= self.len && len <= self.len - from, "{from}+{len} lies outside {}", self.len);
        // SAFETY: the range lies inside the borrowed slice, and the caller promises that it is not aliased.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(from), len) }
    }
}
