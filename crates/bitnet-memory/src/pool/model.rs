//! The source of slots, compiled a second time over loom's atomics and cells: loom runs it in every order that the memory model allows
//! and a bound on preemptions leaves. It finds two threads at one value, a value that is not seen as it was left, and homes that
//! nobody gives back.

#[allow(clippy::duplicate_mod, reason = "over other primitives it is another program")]
#[path = "slots.rs"]
mod slots;

mod sync {
    pub(super) use loom::cell::UnsafeCell;
    pub(super) use loom::sync::atomic::AtomicBool;
    pub(super) use loom::thread::yield_now;
}

use loom::sync::{Arc, Mutex};
use slots::Slots;

fn check(preemptions: usize, program: impl Fn() + Send + Sync + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(preemptions);
    model.check(program);
}

#[test]
fn one_thread_at_a_time_is_at_a_value() {
    check(3, || {
        let slots = Arc::new(Slots::new(1, || 0));
        let other = Arc::clone(&slots);
        let thread = loom::thread::spawn(move || other.with(0, |n| *n += 1));
        slots.with(0, |n| *n += 1);
        thread.join().unwrap();
        let mut sum = 0;
        slots.each(|n| sum += *n);
        assert_eq!(sum, 2);
    });
}

#[test]
fn who_finds_a_slot_taken_uses_another() {
    check(2, || {
        let slots = Arc::new(Slots::new(2, || 0));
        let threads: Vec<_> = (0..2)
            .map(|_| {
                let slots = Arc::clone(&slots);
                loom::thread::spawn(move || slots.with(1, |n| *n += 1))
            })
            .collect();
        let mut seen = 0;
        slots.each(|n| seen += *n);
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        let mut sum = 0;
        slots.each(|n| sum += *n);
        assert!(seen <= sum && sum == 2);
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
        Arc::new(Self { slots: Slots::new(2, shelf), depot })
    }

    /// The way of `Home::put`.
    fn put(free: Free, thread: usize) {
        let slots = &raw const free.home.slots;
        let keep = |shelf: &mut Shelf| {
            if shelf.free.len() < shelf.depth {
                shelf.free.push(free);
                return None;
            }
            Some(free)
        };
        // SAFETY: as in the pool.
        if let Some(free) = unsafe { Slots::enter(slots, thread, keep) } {
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
    check(2, || {
        let home = Home::new();
        let threads: Vec<_> = (0..2)
            .map(|thread| {
                let free = Free { home: Arc::clone(&home) };
                loom::thread::spawn(move || Home::put(free, thread))
            })
            .collect();
        home.close();
        drop(home);
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    });
}
