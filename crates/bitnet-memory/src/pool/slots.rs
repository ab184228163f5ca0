//! Values that threads use one at a time, each its own as a rule.
//!
//! A slot belongs to the thread of its number, which enters with a store, a look whether somebody else is there, and a store at the end:
//! no exchange, no fence. That is safe because others come seldom and go to some length ([`Slots::each`]): they say that they want to be
//! there, run a fence on every processor ([`Fence`]), and wait until the owner has left. An owner that finds somebody there does not
//! wait: it uses one of a few slots that belong to nobody and are taken by an exchange, as do threads whose number has no slot.

use super::sync::{AtomicBool, Fence, Mutex, UnsafeCell, yield_now};
use std::sync::PoisonError;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

/// Values, each for one thread at a time.
pub(super) struct Slots<T> {
    /// By the number of the thread.
    owned: Box<[Slot<T>]>,
    shared: Box<[Slot<T>]>,
    fence: Fence,
    /// Who visits all slots.
    visit: Mutex<()>,
}

/// On lines of its own, so that threads do not take them from each other; processors fetch two at a time.
#[repr(C, align(128))]
struct Slot<T> {
    /// Whether the owner is at the value. Only the owner writes it.
    busy: AtomicBool,
    /// Whether somebody else is, or waits for the owner to leave.
    claimed: AtomicBool,
    value: UnsafeCell<T>,
}

impl<T> Slot<T> {
    /// Whether the owner may use the value: `busy` is true then. Not so if it is there already, in a call further up.
    #[inline(always)]
    fn begin(&self, fence: Fence) -> bool {
        if self.busy.load(Relaxed) {
            return false;
        }
        self.busy.store(true, Relaxed);
        fence.light();
        if self.claimed.load(Acquire) {
            self.busy.store(false, Release);
            return false;
        }
        true
    }

    /// Takes a slot that nobody owns, if nobody has it. An exchange that fails writes nothing, so who waits does not slow down who is there.
    fn claim(&self) -> bool {
        self.claimed.compare_exchange(false, true, Acquire, Relaxed).is_ok()
    }
}

// SAFETY: the flags let one thread at a time at a value, which may go from thread to thread.
unsafe impl<T: Send> Sync for Slots<T> {}

/// Takes a flag back, also when the user of a value panics.
struct Leave(*const AtomicBool);

impl Drop for Leave {
    #[inline(always)]
    fn drop(&mut self) {
        // SAFETY: the flag lies in slots that exist at least until somebody else is at the value (see `enter`).
        unsafe { &*self.0 }.store(false, Release);
    }
}

/// All owned slots, claimed.
struct Claims<'a, T>(&'a [Slot<T>]);

impl<T> Drop for Claims<'_, T> {
    fn drop(&mut self) {
        self.0.iter().for_each(|slot| slot.claimed.store(false, Release));
    }
}

impl<T> Slots<T> {
    /// So many values that belong to a thread, and some that do not, at least one.
    pub(super) fn new(owned: usize, shared: usize, mut value: impl FnMut() -> T) -> Self {
        assert!(shared > 0, "who finds somebody at its slot needs another one");
        let mut slots = |count| {
            let slot = |value| Slot {
                busy: AtomicBool::new(false),
                claimed: AtomicBool::new(false),
                value: UnsafeCell::new(value),
            };
            std::iter::repeat_with(&mut value).take(count).map(slot).collect()
        };
        Self { owned: slots(owned), shared: slots(shared), fence: Fence::new(), visit: Mutex::new(()) }
    }

    /// Lets `f` use the value of the thread of this number, or another that is free.
    ///
    /// # Safety
    ///
    /// The slots exist until `f` has been called, and from then on until somebody visits `each` of them or enters the same slot. No two
    /// threads have the same number at a time, if it is that of an owned slot, and who gets it sees what its last thread did.
    #[inline(always)]
    pub(super) unsafe fn enter<R>(this: *const Self, thread: usize, f: impl FnOnce(&mut T) -> R) -> R {
        // SAFETY: they exist, says the caller.
        let slots = unsafe { &*this };
        let (slot, flag) = match slots.owned.get(thread) {
            Some(slot) if slot.begin(slots.fence) => (slot, &slot.busy),
            _ => slots.share(thread),
        };
        let _leave = Leave(&raw const *flag);
        // SAFETY: nobody else is at the value, or will be until `_leave` is dropped. Of a shared slot, `claimed` was false and is true. Of an
        // owned one, only this thread writes `busy`, and it was false, so this is not a call from one further up; and `each` sets `claimed`,
        // runs a fence, and reads `busy` until it is false: either it reads what was just written, or what it wrote would have been read.
        slot.value.with_mut(|value| f(unsafe { &mut *value }))
    }

    /// Takes a slot that nobody owns, and gives it with the flag to take back.
    #[cold]
    #[inline(never)]
    fn share(&self, thread: usize) -> (&Slot<T>, &AtomicBool) {
        let mut at = thread % self.shared.len();
        let mut tries = 0;
        while !self.shared[at].claim() {
            at = (at + 1) % self.shared.len();
            tries += 1;
            if tries % self.shared.len() == 0 {
                yield_now();
            }
        }
        let slot = &self.shared[at];
        (slot, &slot.claimed)
    }

    /// Lets `f` use one value after the other. Whoever had entered one before has left it when `f` gets it. Not to be called by who is at
    /// one.
    pub(super) fn each(&self, mut f: impl FnMut(&mut T)) {
        let _visit = self.visit.lock().unwrap_or_else(PoisonError::into_inner);
        let claims = Claims(&self.owned);
        claims.0.iter().for_each(|slot| slot.claimed.store(true, Relaxed));
        self.fence.heavy();
        for slot in claims.0 {
            while slot.busy.load(Acquire) {
                yield_now();
            }
            // SAFETY: as in `enter`; the lock keeps other visitors away.
            slot.value.with_mut(|value| f(unsafe { &mut *value }));
        }
        drop(claims);
        for slot in &self.shared {
            while !slot.claim() {
                yield_now();
            }
            let _leave = Leave(&raw const slot.claimed);
            // SAFETY: as in `enter`.
            slot.value.with_mut(|value| f(unsafe { &mut *value }));
        }
    }
}
