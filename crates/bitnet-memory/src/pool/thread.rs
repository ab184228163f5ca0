//! What is known of a thread: its number, and its place in the pool that it came to last.
//!
//! Numbers are small ones, given out again, and never the same to two threads at a time.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::ptr::null;
use std::sync::{Mutex, MutexGuard, PoisonError};

thread_local! {
    // Without anything to drop, these are words at a fixed place, which can be read until the very end of a thread.
    static NUMBER: Cell<usize> = const { Cell::new(UNKNOWN) };
    static PLACE: Cell<(u64, *const ())> = const { Cell::new((0, null())) };
    static END: End = const { End };
}

/// Of a thread that has not asked yet.
const UNKNOWN: usize = usize::MAX;
/// Of a thread that has given its number back.
const ENDED: usize = usize::MAX - 1;

/// Numbers that were given back, and the first one that was never given out.
static FREE: Mutex<(BTreeSet<usize>, usize)> = Mutex::new((BTreeSet::new(), 0));

fn free() -> MutexGuard<'static, (BTreeSet<usize>, usize)> {
    FREE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Gives the number of its thread back.
struct End;

impl Drop for End {
    fn drop(&mut self) {
        PLACE.set((0, null()));
        free().0.insert(NUMBER.replace(ENDED));
    }
}

/// The place of this thread in what has this identity, if it was the last one that it had to be [found](find) for.
///
/// So the address of what a thread needs first depends on nothing that has to be read from the pool.
#[inline(always)]
pub(super) fn known<T>(identity: u64) -> Option<*const T> {
    let (last, place) = PLACE.get();
    (last == identity).then_some(place.cast())
}

/// The place of this thread in what has an identity, which is never 0 and of nothing else, then or now: what `of` makes of the
/// thread's number, unless it is known already.
pub(super) fn find<T>(identity: u64, of: impl FnOnce(usize) -> Option<*const T>) -> Option<*const T> {
    if let known @ Some(_) = known(identity) {
        return known;
    }
    let number = number();
    let place = of(number).filter(|_| number < ENDED)?;
    PLACE.set((identity, place.cast()));
    Some(place)
}

/// The number of this thread, which no other thread has as long as this one may use it; [`usize::MAX`] or the number below for one that
/// has none any more. Who gets a number sees all that its last owner did.
fn number() -> usize {
    let number = NUMBER.get();
    if number == UNKNOWN { first() } else { number }
}

fn first() -> usize {
    // A thread whose end could not be noticed has no number: it is about to be gone.
    if END.try_with(|_| {}).is_ok() {
        let (back, next) = &mut *free();
        NUMBER.set(back.pop_first().unwrap_or_else(|| {
            *next += 1;
            *next - 1
        }));
    }
    NUMBER.get()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Barrier;

    #[test]
    fn living_threads_have_their_own_numbers_and_dead_ones_leave_them() {
        let mut most = 0;
        for _ in 0..20 {
            let all_here = Barrier::new(8);
            let mut numbers: Vec<usize> = std::thread::scope(|scope| {
                let ask = || {
                    let number = number();
                    all_here.wait();
                    (number == super::number()).then_some(number)
                };
                let threads: Vec<_> = (0..8).map(|_| scope.spawn(ask)).collect();
                threads.into_iter().filter_map(|thread| thread.join().ok().flatten()).collect()
            });
            numbers.sort_unstable();
            numbers.dedup();
            assert_eq!(numbers.len(), 8);
            most = most.max(numbers[7]);
        }
        // 160 threads were there; other tests have a few of their own meanwhile.
        assert!(most < 150, "{most}");
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_thread_that_ends_has_no_number_when_its_last_values_are_dropped() {
        use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
        static SEEN: AtomicUsize = AtomicUsize::new(0);
        struct Late;
        impl Drop for Late {
            fn drop(&mut self) {
                SEEN.store(number(), SeqCst);
            }
        }
        thread_local!(static LATE: Late = const { Late });
        let thread = std::thread::spawn(|| {
            // What is registered later is dropped earlier.
            LATE.with(|_| {});
            assert!(number() < ENDED);
        });
        assert!(thread.join().is_ok());
        assert_eq!(SEEN.load(SeqCst), ENDED);
    }
}
