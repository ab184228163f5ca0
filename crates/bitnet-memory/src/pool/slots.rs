//! Values that threads use one at a time, each its own as a rule.
//!
//! A slot belongs to the thread of its number, which enters with a store, a look whether somebody else is there, and a store at the end:
//! no exchange and, on Linux, no fence. That is safe because others come seldom and go to some length ([`Slots::each`]): they say that they
//! want to be there, run a fence on every processor ([`Fence`]), and wait until the owner has left. An owner that finds somebody there does
//! not wait: it uses one of a few slots that belong to nobody and are taken by an exchange, as do threads whose number has no slot, and all
//! of them where the system refuses the fence.

use super::sync::{AtomicBool, Fence, Mutex, UnsafeCell, yield_now};
use std::sync::PoisonError;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

/// Values, each for one thread at a time.
pub(super) struct Slots<T> {
    /// By the number of the thread.
    owned: Box<[Slot<T>]>,
    shared: Box<[Slot<T>]>,
    /// Where there is none, nobody owns a slot.
    fence: Option<Fence>,
    /// Who visits all slots.
    visit: Mutex<()>,
}

/// On lines of its own, so that threads do not take them from each other; processors fetch two at a time.
#[repr(C, align(128))]
pub(super) struct Slot<T> {
    /// Whether the owner is at the value. Only the owner writes it.
    busy: AtomicBool,
    /// Whether somebody else is, or waits for the owner to leave.
    claimed: AtomicBool,
    value: UnsafeCell<T>,
}

impl<T> Slot<T> {
    /// Whether the owner may use the value: `busy` is true then. Not so if it is there already, in a call further up.
    #[inline(always)]
    fn begin(&self) -> bool {
        if self.busy.load(Relaxed) {
            return false;
        }
        self.busy.store(true, Relaxed);
        Fence::light();
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
        // SAFETY: the flag lies in slots that exist at least until somebody else is at the value (see `enter_own`).
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
        let fence = Fence::new();
        let (owned, shared) = if fence.is_some() { (owned, shared) } else { (0, owned + shared) };
        let mut slots = |count| {
            let slot = |value| Slot {
                busy: AtomicBool::new(false),
                claimed: AtomicBool::new(false),
                value: UnsafeCell::new(value),
            };
            std::iter::repeat_with(&mut value).take(count).map(slot).collect()
        };
        Self { owned: slots(owned), shared: slots(shared), fence, visit: Mutex::new(()) }
    }

    /// The slot of the thread of this number, if it has one.
    pub(super) fn of(&self, thread: usize) -> Option<&Slot<T>> {
        self.owned.get(thread)
    }

    /// Lets `f` use the value of a thread's own slot, if nobody else is there.
    ///
    /// # Safety
    ///
    /// The slot exists until `f` has been called, and from then on until somebody visits `each` of its slots or enters it. No other thread
    /// enters it as its own; a thread that gets it sees what the last one did.
    #[inline(always)]
    pub(super) unsafe fn enter_own<R>(own: *const Slot<T>, f: impl FnOnce(&mut T) -> R) -> Option<R> {
        // SAFETY: it exists, says the caller.
        let slot = unsafe { &*own };
        if !slot.begin() {
            return None;
        }
        let _leave = Leave(&raw const slot.busy);
        // SAFETY: nobody else is at the value, or will be until `_leave` is dropped. Only this thread writes `busy`, and it was false, so this
        // is not a call from one further up; and `each` sets `claimed`, runs a fence, and reads `busy` until it is false: either it reads what
        // was just written, or what it wrote would have been read.
        Some(slot.value.with_mut(|value| f(unsafe { &mut *value })))
    }

    /// Lets `f` use the value of one of the slots that nobody owns.
    ///
    /// # Safety
    ///
    /// The slots exist until `f` has been called, and from then on until somebody visits `each` of them or enters the same one.
    pub(super) unsafe fn enter_shared<R>(this: *const Self, f: impl FnOnce(&mut T) -> R) -> R {
        // SAFETY: they exist, says the caller.
        let slots = unsafe { &(*this).shared };
        let slot = loop {
            if let Some(slot) = slots.iter().find(|slot| slot.claim()) {
                break slot;
            }
            yield_now();
        };
        let _leave = Leave(&raw const slot.claimed);
        // SAFETY: `claimed` was false, so nobody else is at the value, or will be until `_leave` is dropped.
        slot.value.with_mut(|value| f(unsafe { &mut *value }))
    }

    /// Lets `f` use one value after the other. Whoever had entered one before has left it when `f` gets it. Not to be called by who is at
    /// one.
    pub(super) fn each(&self, mut f: impl FnMut(&mut T)) {
        let _visit = self.visit.lock().unwrap_or_else(PoisonError::into_inner);
        let claims = Claims(&self.owned);
        claims.0.iter().for_each(|slot| slot.claimed.store(true, Relaxed));
        if let Some(fence) = self.fence {
            fence.heavy();
        }
        for slot in claims.0 {
            while slot.busy.load(Acquire) {
                yield_now();
            }
            // SAFETY: as in `enter_own`; the lock keeps other visitors away.
            slot.value.with_mut(|value| f(unsafe { &mut *value }));
        }
        drop(claims);
        for slot in &self.shared {
            while !slot.claim() {
                yield_now();
            }
            let _leave = Leave(&raw const slot.claimed);
            // SAFETY: as in `enter_shared`.
            slot.value.with_mut(|value| f(unsafe { &mut *value }));
        }
    }
}
