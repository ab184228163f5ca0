//! Whose turn it is to compute, where engines of one process want more processors than there are.
//!
//! An engine takes as many processors as it has threads before a step and gives them back behind it, and who finds too few waits, first come
//! first served: each step then runs at full speed, and no processor has more than one thread that computes. It is an option: on two
//! cores two models that share them as the system has it are up to a twentieth faster, since one computes where the other waits for memory.

use std::collections::VecDeque;
use std::sync::{Condvar, LazyLock, Mutex, MutexGuard, PoisonError};

/// One a physical core, as threads are counted where nobody says how many.
static PROCESSORS: LazyLock<Processors> = LazyLock::new(|| Processors::new(bitnet_cpu::physical_cores()));

/// Processors that are given to one step after the other.
pub(super) struct Processors {
    count: usize,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    free: usize,
    /// Who waits, in the order in which they came.
    queue: VecDeque<u64>,
    next: u64,
}

/// Processors that a step has until this is dropped.
pub(super) struct Turn<'a> {
    processors: &'a Processors,
    count: usize,
}

impl Processors {
    pub(super) fn new(count: usize) -> Self {
        let state = State { free: count, queue: VecDeque::new(), next: 0 };
        Self { count, state: Mutex::new(state), changed: Condvar::new() }
    }

    /// This machine's, for all engines of the process.
    pub(super) fn of_process() -> &'static Self {
        &PROCESSORS
    }

    /// Waits for so many processors; all of them count as enough for more.
    pub(super) fn turn(&self, threads: usize) -> Turn<'_> {
        let count = threads.min(self.count);
        let mut state = self.state();
        if !state.queue.is_empty() || state.free < count {
            let own = state.next;
            state.next += 1;
            state.queue.push_back(own);
            let waits = |state: &mut State| state.queue.front() != Some(&own) || state.free < count;
            state = self.changed.wait_while(state, waits).unwrap_or_else(PoisonError::into_inner);
            state.queue.pop_front();
            // There may be enough for the next one, too.
            self.changed.notify_all();
        }
        state.free -= count;
        Turn { processors: self, count }
    }

    /// How many wait.
    #[cfg(test)]
    pub(super) fn waiting(&self) -> usize {
        self.state().queue.len()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut state = self.processors.state();
        state.free += self.count;
        if !state.queue.is_empty() {
            self.processors.changed.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    /// Returns when so many wait.
    fn until_waiting(processors: &Processors, count: usize) {
        while processors.waiting() != count {
            std::thread::yield_now();
        }
    }

    #[test]
    fn who_comes_first_is_served_first_and_nobody_overtakes() {
        let processors = Processors::new(4);
        let (first, second) = (processors.turn(1), processors.turn(2));
        let (told, order) = channel();
        std::thread::scope(|scope| {
            // More threads than processors wait for all of these; one that would fit waits behind it.
            for (at, threads) in [9, 1].into_iter().enumerate() {
                let (processors, told) = (&processors, told.clone());
                scope.spawn(move || {
                    let turn = processors.turn(threads);
                    told.send((threads, turn.count)).unwrap();
                });
                until_waiting(processors, at + 1);
            }
            drop(first);
            assert!(order.try_recv().is_err());
            drop(second);
        });
        assert_eq!(order.try_iter().collect::<Vec<_>>(), [(9, 4), (1, 1)]);
        assert_eq!(processors.waiting(), 0);
        assert_eq!(processors.state().free, 4);
    }

    #[test]
    fn a_panic_gives_them_back() {
        let processors = Processors::new(2);
        let step = || {
            let _turn = processors.turn(2);
            panic!("a step")
        };
        assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(step)).is_err());
        assert_eq!(processors.turn(2).count, 2);
    }
}
