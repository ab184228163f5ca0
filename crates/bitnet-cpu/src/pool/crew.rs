//! Threads that wait for jobs.
//!
//! A decode step is some two hundred short jobs, so a worker that has just finished one looks for the next in user space for
//! a while before it sleeps. Nobody waits for a worker that has not taken up a job: where other processes want the
//! processor, a worker may get it only after the others have done all there was to do.

use super::sync::thread::{self, JoinHandle, Thread};
use super::sync::{Arc, AtomicBool, AtomicU64, Mutex, MutexGuard, UnsafeCell, fence, spin};
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::PoisonError;
#[cfg(test)]
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::thread::available_parallelism;
use std::time::Duration;

/// Called on every thread that takes part, with its number.
type Job<'a> = &'a (dyn Fn(usize) + Sync);

/// A thread that waits looks around for this long before it sleeps: longer than nearly all gaps between the jobs of a decode
/// step, and short enough that a thread whose peers were preempted gives its processor back. Measured beside a busy process:
/// 20 µs decodes 15 % faster than 100 µs, and 40 % faster than 1 ms.
const SPIN: Duration = Duration::from_micros(20);

/// Whether a job is open, and who is at it, in one word: the number of the job (32 bits), open (1), workers inside (31).
struct Gate(AtomicU64);

const OPEN: u64 = 1 << 31;
const INSIDE: u64 = OPEN - 1;

impl Gate {
    fn number(word: u64) -> u32 {
        (word >> 32) as u32
    }

    /// Opens the next job.
    fn open(&self) {
        let word = self.0.load(Ordering::Relaxed);
        let number = Self::number(word).wrapping_add(1);
        self.0.store(u64::from(number) << 32 | OPEN, Ordering::Release);
    }

    /// Lets nobody in any more.
    fn close(&self) {
        self.0.fetch_and(!OPEN, Ordering::Relaxed);
    }

    /// Enters the job `number`, unless it is over.
    fn enter(&self, number: u32) -> bool {
        let inside = |w| (Self::number(w) == number && w & OPEN != 0).then_some(w + 1);
        self.0.fetch_update(Ordering::Acquire, Ordering::Relaxed, inside).is_ok()
    }

    /// Leaves; true for the last one out of a closed job.
    fn leave(&self) -> bool {
        self.0.fetch_sub(1, Ordering::Release) & (OPEN | INSIDE) == 1
    }

    fn is_empty(&self) -> bool {
        self.0.load(Ordering::Acquire) & INSIDE == 0
    }

    /// The number of the newest job.
    fn newest(&self) -> u32 {
        Self::number(self.0.load(Ordering::Acquire))
    }
}

/// The job of the open gate. Its lifetime is erased; [`Crew::run`] outlives every use of it.
struct JobCell(UnsafeCell<Option<*const (dyn Fn(usize) + Sync)>>);

// SAFETY: the cell is written while the gate is closed and empty, and read by those inside; the closure is `Sync`.
unsafe impl Sync for JobCell {}
// SAFETY: as above.
unsafe impl Send for JobCell {}

struct Shared {
    gate: Gate,
    job: JobCell,
    /// `[workers]`: who sleeps. Between raising this flag or the caller's and looking at the gate lies a fence, and another one
    /// between changing the gate and looking at flags: one of the two sees what the other did, and nobody sleeps on.
    asleep: Box<[AtomicBool]>,
    /// The caller of a job, where it sleeps until the last worker is out.
    caller: Mutex<Option<Thread>>,
    caller_asleep: AtomicBool,
    closing: AtomicBool,
    /// How often a worker was woken for a job.
    #[cfg(test)]
    woken: AtomicUsize,
    /// `[workers]`: who was woken, and has not gone to sleep since.
    #[cfg(test)]
    called: Box<[AtomicBool]>,
    spin: Duration,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

/// A fixed set of threads; the caller of a job is one of them, number 0.
pub(super) struct Crew {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// One job at a time.
    turn: Mutex<()>,
}

/// The right to the next job.
pub(super) struct Turn<'a> {
    crew: &'a Crew,
    _turn: MutexGuard<'a, ()>,
}

impl Crew {
    /// `threads` in all; zero counts as one. Each worker calls `begin` with its number first.
    pub(super) fn new(
        threads: usize,
        begin: impl Fn(usize) + Clone + Send + 'static,
    ) -> std::io::Result<Self> {
        let cores = available_parallelism().map_or(1, usize::from);
        let workers = threads.saturating_sub(1);
        let shared = Arc::new(Shared {
            gate: Gate(AtomicU64::new(0)),
            job: JobCell(UnsafeCell::new(None)),
            asleep: (0..workers).map(|_| AtomicBool::new(false)).collect(),
            caller: Mutex::new(None),
            caller_asleep: AtomicBool::new(false),
            closing: AtomicBool::new(false),
            #[cfg(test)]
            woken: AtomicUsize::new(0),
            #[cfg(test)]
            called: (0..workers).map(|_| AtomicBool::new(false)).collect(),
            // Spinning on a core that another thread needs only delays it.
            spin: if threads <= cores { SPIN } else { Duration::ZERO },
            panic: Mutex::new(None),
        });
        let mut crew = Self { shared, workers: Vec::new(), turn: Mutex::new(()) };
        for id in 1..threads {
            let (shared, begin) = (Arc::clone(&crew.shared), begin.clone());
            let builder = thread::Builder::new().name(format!("bitnet-{id}"));
            crew.workers.push(builder.spawn(move || {
                begin(id);
                shared.work(id);
            })?);
        }
        Ok(crew)
    }

    /// Threads, the caller included.
    pub(super) fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// How many workers sleep, and are not about to wake.
    #[cfg(test)]
    pub(super) fn asleep(&self) -> usize {
        let workers = self.shared.asleep.iter().zip(&self.shared.called);
        let sleeps = |(asleep, called): &(&AtomicBool, &AtomicBool)| {
            asleep.load(Ordering::SeqCst) && !called.load(Ordering::SeqCst)
        };
        workers.filter(sleeps).count()
    }

    /// How often a worker was woken for a job.
    #[cfg(test)]
    pub(super) fn woken(&self) -> usize {
        self.shared.woken.load(Ordering::SeqCst)
    }

    /// Waits until no other job runs; what a job reads may then be changed.
    pub(super) fn turn(&self) -> Turn<'_> {
        Turn { crew: self, _turn: lock(&self.turn) }
    }
}

impl Turn<'_> {
    /// Runs `job`, which has work for so many threads, on the caller, and on each worker that comes before the caller is through with
    /// it; returns when all are out. Workers that sleep are woken as far as there is work for them. A panic in any of them continues
    /// in the caller.
    pub(super) fn run(self, threads: usize, job: Job<'_>) {
        let shared = &*self.crew.shared;
        // SAFETY: only the lifetime is erased. Workers use the pointer inside the gate alone, and this function does not
        // return (or unwind) before the gate is closed and empty.
        let erased = unsafe { std::mem::transmute::<Job<'_>, Job<'static>>(job) };
        // SAFETY: the gate is closed and empty: the last turn left it so, and this one is the only one.
        shared.job.0.with_mut(|cell| unsafe { *cell = Some(erased) });
        shared.gate.open();
        fence(Ordering::SeqCst);
        for (id, worker) in self.crew.workers.iter().enumerate().take(threads.saturating_sub(1)) {
            if shared.asleep[id].load(Ordering::Relaxed) {
                #[cfg(test)]
                {
                    shared.woken.fetch_add(1, Ordering::Relaxed);
                    shared.called[id].store(true, Ordering::SeqCst);
                }
                worker.thread().unpark();
            }
        }
        let own = catch_unwind(AssertUnwindSafe(|| job(0)));
        shared.gate.close();
        shared.wait_until_empty();
        let theirs = lock(&shared.panic).take();
        if let Some(panic) = own.err().or(theirs) {
            drop(self);
            resume_unwind(panic);
        }
    }
}

impl Shared {
    fn wait_until_empty(&self) {
        if spin(self.spin, || self.gate.is_empty()) {
            return;
        }
        *lock(&self.caller) = Some(thread::current());
        self.caller_asleep.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        while !self.gate.is_empty() {
            thread::park();
        }
        self.caller_asleep.store(false, Ordering::Relaxed);
    }

    /// What worker `id` does all its life.
    fn work(&self, id: usize) {
        let mut seen = 0;
        loop {
            seen = self.wait_for_job(id, seen);
            if self.closing.load(Ordering::Relaxed) {
                return;
            }
            if !self.gate.enter(seen) {
                continue;
            }
            self.job.0.with(|cell| {
                // SAFETY: inside the gate nobody writes the cell, and entering has seen what was written before it opened.
                let Some(job) = (unsafe { *cell }) else { return };
                // SAFETY: `Turn::run` keeps the closure alive until this worker has left.
                if let Err(panic) = catch_unwind(AssertUnwindSafe(|| unsafe { (*job)(id) })) {
                    *lock(&self.panic) = Some(panic);
                }
            });
            if self.gate.leave() {
                fence(Ordering::SeqCst);
                if self.caller_asleep.load(Ordering::Relaxed)
                    && let Some(caller) = &*lock(&self.caller)
                {
                    caller.unpark();
                }
            }
        }
    }

    /// Waits for a job other than `seen` and returns its number.
    fn wait_for_job(&self, id: usize, seen: u32) -> u32 {
        if !spin(self.spin, || self.gate.newest() != seen) {
            let asleep = &self.asleep[id - 1];
            #[cfg(test)]
            self.called[id - 1].store(false, Ordering::SeqCst);
            asleep.store(true, Ordering::Relaxed);
            fence(Ordering::SeqCst);
            while self.gate.newest() == seen {
                thread::park();
            }
            asleep.store(false, Ordering::Relaxed);
        }
        self.gate.newest()
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        self.shared.closing.store(true, Ordering::Relaxed);
        self.shared.gate.open();
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
            // A worker catches the panics of jobs, so it has none of its own to report.
            let _ = worker.join();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
