//! Numbers of threads.

use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

thread_local! {
    static NUMBER: Cell<usize> = const { Cell::new(usize::MAX) };
}

/// The number of this thread; the next one is that of the next thread that asks.
#[inline(always)]
pub(super) fn number() -> usize {
    NUMBER.with(|number| if number.get() == usize::MAX { first(number) } else { number.get() })
}

#[cold]
fn first(number: &Cell<usize>) -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    number.set(NEXT.fetch_add(1, Relaxed));
    number.get()
}
