//! The source of the crew and its claims, compiled a second time over loom's threads, atomics and cells: loom runs it in every
//! order that the memory model allows and a bound on preemptions leaves. It finds a worker that sleeps on (all threads are then blocked),
//! a job's memory in use by two threads or after its end (cells are watched), and what is lost or done twice.

#[allow(clippy::duplicate_mod, reason = "over other primitives it is another program")]
#[path = "claims.rs"]
mod claims;
#[allow(clippy::duplicate_mod, dead_code, reason = "over other primitives it is another program")]
#[path = "crew.rs"]
mod crew;

mod sync {
    pub(super) use loom::cell::UnsafeCell;
    pub(super) use loom::sync::atomic::{AtomicBool, AtomicU64, fence};
    pub(super) use loom::sync::{Arc, Mutex, MutexGuard};
    pub(super) use loom::thread;
    use std::time::Duration;

    /// Whoever would look around for a while may as well find nothing.
    pub(super) fn spin(_: Duration, done: impl Fn() -> bool) -> bool {
        done()
    }
}

use claims::Claims;
use crew::Crew;
use loom::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Runs `program` in every order with so many preemptions at most.
fn check(preemptions: usize, program: impl Fn() + Send + Sync + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(preemptions);
    model.check(program);
}

fn crew_of(threads: usize) -> (Crew, Claims) {
    let crew = Crew::new(threads, |_| {}).unwrap();
    let claims = Claims::new(crew.threads());
    (crew, claims)
}

/// Does to `pieces` pieces what the pool does, and looks at each of them afterwards.
fn job(crew: &Crew, claims: &Claims, pieces: u32) {
    let visits = Visits((0..pieces).map(|_| UnsafeCell::new(0)).collect());
    let turn = crew.turn();
    claims.share_out(pieces);
    turn.run(pieces as usize, &|thread| {
        while let Some(pieces) = claims.next(thread) {
            pieces.for_each(|piece| visits.add(piece));
        }
    });
    // Nobody is at a piece any more, or loom refuses this look at it.
    assert!((0..pieces).all(|piece| visits.of(piece) == 1));
}

/// How often each piece was visited.
struct Visits(Vec<UnsafeCell<u32>>);

// SAFETY: loom, under which all of this runs, refuses every order in which two threads reach one cell.
unsafe impl Sync for Visits {}

impl Visits {
    fn add(&self, piece: u32) {
        // SAFETY: the pointer is not used outside, and loom refuses every order in which another thread has one.
        self.0[piece as usize].with_mut(|visits| unsafe { *visits += 1 });
    }

    fn of(&self, piece: u32) -> u32 {
        // SAFETY: as above.
        self.0[piece as usize].with(|visits| unsafe { *visits })
    }
}

#[test]
fn jobs_follow_each_other() {
    check(3, || {
        let (crew, claims) = crew_of(2);
        job(&crew, &claims, 2);
        job(&crew, &claims, 3);
    });
}

#[test]
fn two_workers_steal_from_the_caller_and_from_each_other() {
    check(1, || {
        let (crew, claims) = crew_of(3);
        job(&crew, &claims, 3);
    });
}

#[test]
fn a_worker_that_nobody_wakes_is_not_waited_for() {
    check(2, || {
        let (crew, claims) = crew_of(3);
        job(&crew, &claims, 2);
    });
}

#[test]
fn threads_end_without_a_job() {
    check(3, || drop(Crew::new(3, |_| {}).unwrap()));
}

#[test]
fn callers_take_turns() {
    check(2, || {
        let shared = loom::sync::Arc::new(crew_of(2));
        let other = loom::sync::Arc::clone(&shared);
        let caller = loom::thread::spawn(move || job(&other.0, &other.1, 2));
        job(&shared.0, &shared.1, 2);
        caller.join().unwrap();
    });
}

#[test]
fn a_worker_takes_part_in_its_caller_s_panic_only() {
    check(2, || {
        let (crew, claims) = crew_of(2);
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            crew.turn().run(2, &|thread| {
                if thread == 1 {
                    std::panic::resume_unwind(Box::new("from the worker"));
                }
            });
        }));
        if let Err(panic) = panicked {
            assert_eq!(panic.downcast_ref::<&str>(), Some(&"from the worker"));
        }
        job(&crew, &claims, 2);
    });
}
