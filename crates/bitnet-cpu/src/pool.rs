//! A pool of threads that spin briefly between jobs and then park.
//!
//! A decode step is some two hundred short jobs, so a worker that has just finished one looks for the next in user space
//! for a while before it sleeps. Work is taken in pieces from a shared counter, which balances the tail; results never
//! depend on who computes what.

use std::any::Any;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

/// Looks at the job counter this often before a waiting thread sleeps: some tens of microseconds.
const SPINS: usize = 8_000;

/// Called on every thread with its number and the number of threads.
type Job<'a> = &'a (dyn Fn(usize, usize) + Sync);

/// A job with its lifetime erased; [`Pool::run`] keeps the closure alive until every worker is done with it.
#[derive(Clone, Copy)]
struct JobPointer(*const (dyn Fn(usize, usize) + Sync));

// SAFETY: the closure behind the pointer is `Sync`, and `Pool::run` outlives every use of it.
unsafe impl Send for JobPointer {}

struct Shared {
    job: Mutex<Option<JobPointer>>,
    /// Counts jobs; a worker runs when it changes. Zero is before the first.
    epoch: AtomicUsize,
    running: AtomicUsize,
    closing: AtomicBool,
    spins: usize,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

/// A fixed set of threads; the caller of a job is one of them.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// One job at a time.
    turn: Mutex<()>,
}

impl Pool {
    /// A pool of `threads` in all; zero counts as one.
    pub(crate) fn new(threads: usize) -> std::io::Result<Self> {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let shared = Arc::new(Shared {
            job: Mutex::new(None),
            epoch: AtomicUsize::new(0),
            running: AtomicUsize::new(0),
            closing: AtomicBool::new(false),
            // Spinning on a core that another worker needs only delays it.
            spins: if threads <= cores { SPINS } else { 0 },
            panic: Mutex::new(None),
        });
        let mut pool = Self { shared, workers: Vec::new(), turn: Mutex::new(()) };
        for id in 1..threads {
            let shared = Arc::clone(&pool.shared);
            let builder = thread::Builder::new().name(format!("bitnet-{id}"));
            pool.workers.push(builder.spawn(move || work(&shared, id, threads))?);
        }
        Ok(pool)
    }

    /// Threads, the caller included.
    pub(crate) fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Runs `job` once on every thread and returns when all are done. A panic in any of them continues in the caller.
    pub(crate) fn run(&self, job: Job<'_>) {
        if self.workers.is_empty() {
            return job(0, 1);
        }
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let shared = &*self.shared;
        // SAFETY: only the lifetime is erased. Workers use the pointer between the change of `epoch` and their decrement of
        // `running`, and this function does not return (or unwind) before `running` is zero again.
        let erased = unsafe { std::mem::transmute::<Job<'_>, Job<'static>>(job) };
        *shared.job.lock().unwrap_or_else(PoisonError::into_inner) = Some(JobPointer(erased));
        shared.running.store(self.workers.len(), Ordering::Relaxed);
        shared.epoch.fetch_add(1, Ordering::SeqCst);
        for worker in &self.workers {
            worker.thread().unpark();
        }
        let own = catch_unwind(AssertUnwindSafe(|| job(0, self.threads())));
        let mut spins = 0;
        while shared.running.load(Ordering::Acquire) != 0 {
            spins += 1;
            if spins < shared.spins { std::hint::spin_loop() } else { thread::yield_now() }
        }
        let theirs = shared.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(panic) = own.err().or(theirs) {
            resume_unwind(panic);
        }
    }

    /// Calls `f` for pieces of at most `grain` of `0..items`, spread over the threads.
    pub(crate) fn ranges(&self, items: usize, grain: usize, f: &(dyn Fn(Range<usize>) + Sync)) {
        let grain = grain.max(1);
        if items <= grain || self.workers.is_empty() {
            return if items > 0 {
                f(0..items)
            };
        }
        let next = AtomicUsize::new(0);
        self.run(&|_, _| {
            loop {
                let from = next.fetch_add(grain, Ordering::Relaxed);
                if from >= items {
                    break;
                }
                f(from..items.min(from + grain));
            }
        });
    }

    /// Calls `f(i, chunk)` for every chunk of `len` elements (the last may be shorter), spread over the threads.
    pub(crate) fn chunks_mut<T: Send>(
        &self,
        data: &mut [T],
        len: usize,
        f: &(dyn Fn(usize, &mut [T]) + Sync),
    ) {
        let total = data.len();
        let shares = Shares::new(data);
        let len = len.max(1);
        self.ranges_one_by_one(total.div_ceil(len), &|i| {
            let from = i * len;
            // SAFETY: `i` is handed out once, so the chunks `from..min(from + len, total)` of `data` are disjoint, and
            // `data` stays mutably borrowed until all calls have returned.
            f(i, unsafe { shares.slice(from, len.min(total - from)) });
        });
    }

    fn ranges_one_by_one(&self, items: usize, f: &(dyn Fn(usize) + Sync)) {
        let grain = (items / (self.threads() * 8)).max(1);
        self.ranges(items, grain, &|range| range.for_each(f));
    }
}

/// A mutable slice whose disjoint parts are shared out among threads.
pub(crate) struct Shares<'a, T> {
    start: *mut T,
    len: usize,
    borrow: std::marker::PhantomData<&'a mut [T]>,
}

// SAFETY: the elements are `Send`, and each is reached by one thread (see `Shares::slice`).
unsafe impl<T: Send> Sync for Shares<'_, T> {}

impl<'a, T> Shares<'a, T> {
    pub(crate) fn new(data: &'a mut [T]) -> Self {
        Self { start: data.as_mut_ptr(), len: data.len(), borrow: std::marker::PhantomData }
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

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.closing.store(true, Ordering::SeqCst);
        self.shared.epoch.fetch_add(1, Ordering::SeqCst);
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
            // A worker catches the panics of jobs, so it has none of its own to report.
            let _ = worker.join();
        }
    }
}

fn work(shared: &Shared, id: usize, threads: usize) {
    let mut seen = 0;
    loop {
        seen = wait(shared, seen);
        if shared.closing.load(Ordering::SeqCst) {
            return;
        }
        let job = *shared.job.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(JobPointer(job)) = job {
            // SAFETY: `Pool::run` keeps the closure alive until `running` is decremented below.
            let result = catch_unwind(AssertUnwindSafe(|| unsafe { (*job)(id, threads) }));
            if let Err(panic) = result {
                *shared.panic.lock().unwrap_or_else(PoisonError::into_inner) = Some(panic);
            }
            shared.running.fetch_sub(1, Ordering::Release);
        }
    }
}

/// Waits for the job after `seen` and returns its number.
fn wait(shared: &Shared, seen: usize) -> usize {
    for _ in 0..shared.spins {
        let epoch = shared.epoch.load(Ordering::Acquire);
        if epoch != seen {
            return epoch;
        }
        std::hint::spin_loop();
    }
    loop {
        let epoch = shared.epoch.load(Ordering::Acquire);
        if epoch != seen {
            return epoch;
        }
        // An unpark between the load and here leaves a token, so no wake-up is lost.
        thread::park();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_element_is_visited_once_by_any_number_of_threads() {
        for threads in [0, 1, 2, 3, 7] {
            let pool = Pool::new(threads).unwrap();
            for len in [0, 1, 5, 1000] {
                let mut data = vec![0u32; len];
                for round in 1..50 {
                    pool.chunks_mut(&mut data, 3, &|i, chunk| {
                        for (j, x) in chunk.iter_mut().enumerate() {
                            assert_eq!(*x as usize, if round == 1 { 0 } else { (round - 1) * (3 * i + j) });
                            *x += (3 * i + j) as u32;
                        }
                    });
                }
            }
        }
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_goes_on() {
        let pool = Pool::new(3).unwrap();
        let result = catch_unwind(AssertUnwindSafe(|| pool.run(&|id, _| assert_ne!(id, 2, "worker two"))));
        assert!(result.is_err());
        let count = AtomicUsize::new(0);
        pool.run(&|_, threads| {
            assert_eq!(threads, 3);
            count.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(count.into_inner(), 3);
    }
}
