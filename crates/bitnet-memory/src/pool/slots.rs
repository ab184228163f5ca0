//! Values that threads use one at a time, each its own as a rule.
//!
//! A slot is a value and a flag that says whether it is in use. A thread begins at the slot of its number; should somebody be
//! there (another thread of the same slot, or whoever visits all of them), it takes the next one, so nobody waits for a thread that
//! was put to sleep. One exchange and one store are all that an entry costs. A slot stays when its threads end, and the next ones find it.

use super::sync::{AtomicBool, UnsafeCell, yield_now};
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

/// Values, each for one thread at a time.
pub(super) struct Slots<T>(Box<[Slot<T>]>);

/// On lines of its own, so that threads do not take them from each other; processors fetch two at a time.
#[repr(align(128))]
struct Slot<T> {
    taken: AtomicBool,
    value: UnsafeCell<T>,
}

impl<T> Slot<T> {
    /// Takes the slot if nobody has it. An exchange that fails writes nothing, so who waits for a slot does not slow down who is in it.
    #[inline(always)]
    fn take(&self) -> bool {
        self.taken.compare_exchange(false, true, Acquire, Relaxed).is_ok()
    }
}

// SAFETY: `taken` lets one thread at a time at a value, which may go from thread to thread.
unsafe impl<T: Send> Sync for Slots<T> {}

/// Gives the slot free again, also when its user panics.
struct Leave(*const AtomicBool);

impl Drop for Leave {
    #[inline(always)]
    fn drop(&mut self) {
        // SAFETY: the flag lies in slots that exist at least until somebody else takes this one (see `enter`).
        unsafe { &*self.0 }.store(false, Release);
    }
}

impl<T> Slots<T> {
    /// `count` values, a power of two.
    pub(super) fn new(count: usize, value: impl FnMut() -> T) -> Self {
        assert!(count.is_power_of_two(), "slots are found by a mask");
        let slot = |value| Slot { taken: AtomicBool::new(false), value: UnsafeCell::new(value) };
        Self(std::iter::repeat_with(value).take(count).map(slot).collect())
    }

    /// Lets `f` use the value of the thread of this number, or another that is free.
    #[inline(always)]
    pub(super) fn with<R>(&self, thread: usize, f: impl FnOnce(&mut T) -> R) -> R {
        // SAFETY: the borrow keeps the slots.
        unsafe { Self::enter(self, thread, f) }
    }

    /// As `with`, for who may let go of the last reason for the slots to exist by what `f` does.
    ///
    /// # Safety
    ///
    /// The slots must exist until `f` has been called, and from then on until somebody visits `each` of them or enters the same slot.
    #[inline(always)]
    pub(super) unsafe fn enter<R>(this: *const Self, thread: usize, f: impl FnOnce(&mut T) -> R) -> R {
        // SAFETY: they exist, says the caller.
        let slots = unsafe { &(*this).0 };
        let mut at = thread & (slots.len() - 1);
        let mut tries = 0;
        while !slots[at].take() {
            at = (at + 1) & (slots.len() - 1);
            tries += 1;
            if tries & (slots.len() - 1) == 0 {
                yield_now();
            }
        }
        let _leave = Leave(&raw const slots[at].taken);
        // SAFETY: the flag was false, so nobody else is at the value, or will be until `_leave` is dropped.
        slots[at].value.with_mut(|value| f(unsafe { &mut *value }))
    }

    /// Lets `f` use one value after the other. Whoever had entered one before has left it when `f` gets it.
    pub(super) fn each(&self, mut f: impl FnMut(&mut T)) {
        for slot in &self.0 {
            while !slot.take() {
                yield_now();
            }
            let _leave = Leave(&raw const slot.taken);
            // SAFETY: as in `enter`.
            slot.value.with_mut(|value| f(unsafe { &mut *value }));
        }
    }
}
