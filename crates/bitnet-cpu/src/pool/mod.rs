//! The threads of a backend, and the memory that they work in. Results never depend on who computes what.

mod claims;
mod crew;
mod shares;
mod sync;

use crate::machine::{Machine, stay_on};
use crate::memory::{Memory, memory};
use bitnet_memory::Profile;
use claims::Claims;
use crew::Crew;
pub(crate) use shares::Shares;
use std::ops::Range;
use std::sync::Arc;

/// What is done with a chunk: it is given a thread's room, the chunk's number and the chunk.
type WithRoom<'a, R, T> = &'a (dyn Fn(&mut [R], usize, &mut [T]) + Sync);

/// A fixed set of threads that share the pieces of a job; the caller is one of them.
pub(crate) struct Pool {
    crew: Crew,
    claims: Claims,
    memory: Arc<Memory>,
}

impl Pool {
    /// A pool of `threads` in all, with memory of its own; zero counts as one.
    pub(crate) fn new(threads: usize) -> std::io::Result<Self> {
        Self::with(threads, memory(Profile::Inference.into()))
    }

    /// The same with memory that others may use, too. Where memory is in several places (NUMA), threads are spread over these and stay.
    pub(crate) fn with(threads: usize, memory: Arc<Memory>) -> std::io::Result<Self> {
        let threads = threads.max(1);
        Self::on(threads, Machine::detect().places(threads), memory)
    }

    /// A pool of some of `all` threads, of which others are other pools': each is where it would be in one pool of all.
    pub(crate) fn of(all: usize, own: Range<usize>, memory: Arc<Memory>) -> std::io::Result<Self> {
        let places = Machine::detect().places(all).map(|places| places[own.clone()].to_vec());
        Self::on(own.len(), places, memory)
    }

    /// A pool whose workers stay on the processors that are named for them. The first thread is the caller of a job, and nobody's to move.
    fn on(threads: usize, places: Option<Vec<Vec<u32>>>, memory: Arc<Memory>) -> std::io::Result<Self> {
        let crew = Crew::new(threads, move |worker| {
            if let Some(places) = &places {
                stay_on(&places[worker]);
            }
        })?;
        Ok(Self { claims: Claims::new(crew.threads()), crew, memory })
    }

    /// Threads, the caller included.
    pub(crate) fn threads(&self) -> usize {
        self.crew.threads()
    }

    /// Where memory comes from.
    pub(crate) fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }

    /// Calls `f` for ranges of `0..items`, spread over the threads: many items at first, in the end no fewer than `grain`. A panic
    /// in any of them continues in the caller.
    pub(crate) fn ranges(&self, items: usize, grain: usize, f: &(dyn Fn(Range<usize>) + Sync)) {
        self.share_out(items, grain, &|_, range| f(range));
    }

    /// The same, and each thread has a part of `room` to itself, all parts being as long.
    pub(crate) fn ranges_with<R: Send>(
        &self,
        room: &mut [R],
        items: usize,
        grain: usize,
        f: &(dyn Fn(&mut [R], Range<usize>) + Sync),
    ) {
        let len = room.len() / self.threads();
        let rooms = Shares::new(room);
        self.share_out(items, grain, &|thread, range| {
            // SAFETY: a thread is in one call of this at a time, and parts of different threads are disjoint; `room` stays mutably
            // borrowed until all calls have returned.
            f(unsafe { rooms.slice(thread * len, len) }, range);
        });
    }

    /// Calls `f` with the number of the thread and a range.
    fn share_out(&self, items: usize, grain: usize, f: &(dyn Fn(usize, Range<usize>) + Sync)) {
        let grain = grain.max(1);
        if items <= grain || self.threads() == 1 {
            return if items > 0 {
                f(0, 0..items)
            };
        }
        let pieces = u32::try_from(items.div_ceil(grain)).expect("fewer than 2^32 pieces");
        let turn = self.crew.turn();
        self.claims.share_out(pieces);
        turn.run(pieces as usize, &|thread| {
            while let Some(pieces) = self.claims.next(thread) {
                f(thread, pieces.start as usize * grain..items.min(pieces.end as usize * grain));
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
        self.chunks_with(&mut [] as &mut [u8], data, len, &|_, i, chunk| f(i, chunk));
    }

    /// The same, and each thread has a part of `room` to itself.
    pub(crate) fn chunks_with<R: Send, T: Send>(
        &self,
        room: &mut [R],
        data: &mut [T],
        len: usize,
        f: WithRoom<'_, R, T>,
    ) {
        let total = data.len();
        let shares = Shares::new(data);
        let len = len.max(1);
        let chunks = total.div_ceil(len);
        self.ranges_with(room, chunks, (chunks / (self.threads() * 64)).max(1), &|room, range| {
            for i in range {
                let from = i * len;
                // SAFETY: `i` is handed out once, so the chunks `from..min(from + len, total)` of `data` are disjoint, and
                // `data` stays mutably borrowed until all calls have returned.
                f(room, i, unsafe { shares.slice(from, len.min(total - from)) });
            }
        });
    }
}

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
