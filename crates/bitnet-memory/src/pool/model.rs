//! The source of slots, compiled a second time over loom's atomics and cells: loom runs it in every order that the memory model allows
//! and a bound on preemptions leaves. It finds two threads at one value, a value that is not seen as it was left, and homes that
//! nobody gives back.

#[allow(clippy::duplicate_mod, reason = "over other primitives it is another program")]
#[path = "slots.rs"]
mod slots;

mod sync {
    pub(super) use loom::cell::UnsafeCell;
    pub(super) use loom::sync::Mutex;
    pub(super) use loom::sync::atomic::AtomicBool;
    pub(super) use loom::thread::yield_now;
    use std::sync::atomic::Ordering::SeqCst;

    /// What both halves are together: a fence on each side.
    #[derive(Clone, Copy)]
    pub(super) struct Fence;

    impl Fence {
        pub(super) fn new() -> Option<Self> {
            Some(Self)
        }

        pub(super) fn light() {
            loom::sync::atomic::fence(SeqCst);
        }

        pub(super) fn heavy(self) {
            loom::sync::atomic::fence(SeqCst);
        }
    }
}

use loom::sync::{Arc, Mutex};
use slots::Slots;

/// A number of no slot.
const NONE: usize = usize::MAX;

/// Enters as the thread of a number, as the pool does. No two threads of a program here have the same one.
fn with<T, R>(slots: *const Slots<T>, thread: usize, mut f: impl FnMut(&mut T) -> R) -> R {
    // SAFETY: who calls this knows that the slots exist as long as they have to, and numbers are as above.
    unsafe {
        let own = (*slots).of(thread).map(|slot| &raw const *slot);
        let done = own.and_then(|own| Slots::enter_own(own, &mut f));
        done.unwrap_or_else(|| Slots::enter_shared(slots, f))
    }
}

fn check(preemptions: usize, program: impl Fn() + Send + Sync + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(preemptions);
    model.check(program);
}

/// Adds the numbers that are at values.
fn sum(slots: &Slots<usize>) -> usize {
    let mut sum = 0;
    slots.each(|n| sum += *n);
    sum
}

#[test]
fn an_owner_and_who_visits_it_are_not_at_a_value_together() {
    check(3, || {
        let slots = Arc::new(Slots::new(1, 1, || 0));
        let other = Arc::clone(&slots);
        let thread = loom::thread::spawn(move || {
            with(&*other, 0, |n| *n += 1);
            with(&*other, 0, |n| *n += 1);
        });
        let seen = sum(&slots);
        thread.join().unwrap();
        assert!(seen <= 2 && sum(&slots) == 2);
    });
}

#[test]
fn threads_without_a_slot_share_one() {
    check(3, || {
        let slots = Arc::new(Slots::new(1, 1, || 0));
        let other = Arc::clone(&slots);
        let thread = loom::thread::spawn(move || with(&*other, NONE, |n| *n += 1));
        with(&*slots, NONE, |n| *n += 1);
        thread.join().unwrap();
        assert_eq!(sum(&slots), 2);
    });
}

#[test]
fn visitors_take_turns() {
    for number in [0, NONE] {
        check(2, move || {
            let slots = Arc::new(Slots::new(1, 1, || 0));
            let other = Arc::clone(&slots);
            let thread = loom::thread::spawn(move || {
                with(&*other, number, |n| *n += 1);
                other.each(|n| *n *= 1);
            });
            let seen = sum(&slots);
            thread.join().unwrap();
            assert!(seen <= 1 && sum(&slots) == 1);
        });
    }
}

/// The next owner of a number gets it by way of a lock, and so sees what the last one left.
#[test]
fn a_number_goes_from_thread_to_thread() {
    check(3, || {
        let slots = Arc::new(Slots::new(1, 1, || 0));
        let number = Arc::new(Mutex::new(Some(0)));
        let run = |slots: Arc<Slots<usize>>, number: Arc<Mutex<Option<usize>>>| {
            move || {
                let mine = number.lock().unwrap().take();
                with(&*slots, mine.unwrap_or(NONE), |n| *n += 1);
                if mine.is_some() {
                    *number.lock().unwrap() = mine;
                }
            }
        };
        let thread = loom::thread::spawn(run(Arc::clone(&slots), Arc::clone(&number)));
        run(Arc::clone(&slots), number)();
        thread.join().unwrap();
        assert_eq!(sum(&slots), 2);
    });
}

#[test]
fn who_is_at_its_value_already_gets_another_one() {
    check(1, || {
        let slots = Slots::new(1, 1, || 0);
        with(&slots, 0, |outer| {
            *outer += 1;
            with(&slots, 0, |inner| *inner += 1);
        });
        assert_eq!(sum(&slots), 2);
    });
}

/// A home as the pool's is, with one class, a shelf of one piece, and a depot.
struct Home {
    slots: Slots<Shelf>,
    depot: Mutex<Depot>,
}

struct Shelf {
    depth: usize,
    free: Vec<Free>,
}

struct Depot {
    closed: bool,
    free: Vec<Free>,
}

struct Free {
    home: Arc<Home>,
}

impl Home {
    fn new() -> Arc<Self> {
        let shelf = || Shelf { depth: 1, free: Vec::new() };
        let depot = Mutex::new(Depot { closed: false, free: Vec::new() });
        Arc::new(Self { slots: Slots::new(2, 1, shelf), depot })
    }

    /// The way of `Home::put`.
    fn put(free: Free, thread: usize) {
        let slots = &raw const free.home.slots;
        let mut left = Some(free);
        with(slots, thread, |shelf| {
            if shelf.free.len() < shelf.depth {
                shelf.free.extend(left.take());
            }
        });
        if let Some(free) = left {
            let home = Arc::clone(&free.home);
            let mut depot = home.depot.lock().unwrap();
            if !depot.closed {
                depot.free.push(free);
            }
        }
    }

    /// The way of `Home::close`.
    fn close(&self) {
        let mut out = Vec::new();
        self.slots.each(|shelf| {
            shelf.depth = 0;
            self.depot.lock().unwrap().free.append(&mut shelf.free);
        });
        let mut depot = self.depot.lock().unwrap();
        depot.closed = true;
        out.append(&mut depot.free);
        drop(depot);
        drop(out);
    }
}

/// Pieces that come back while their pool ends are given up by one or the other: loom complains of a home that is left over.
#[test]
fn a_pool_ends_while_pieces_come_back() {
    for (threads, preemptions) in [(vec![0], 3), (vec![NONE], 3), (vec![0, NONE], 1), (vec![0, 1], 1)] {
        check(preemptions, move || {
            let home = Home::new();
            let put = |thread: &usize| {
                let (free, thread) = (Free { home: Arc::clone(&home) }, *thread);
                loom::thread::spawn(move || Home::put(free, thread))
            };
            let threads: Vec<_> = threads.iter().map(put).collect();
            home.close();
            drop(home);
            threads.into_iter().for_each(|thread| thread.join().unwrap());
        });
    }
}
