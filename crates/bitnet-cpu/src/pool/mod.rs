//! The thread pool. Results never depend on who computes what.

mod claims;
mod crew;
mod shares;
mod sync;

use crate::machine::{Machine, stay_on};
use claims::Claims;
use crew::Crew;
pub(crate) use shares::Shares;
use std::ops::Range;

/// A fixed set of threads that share the pieces of a job; the caller is one of them.
pub(crate) struct Pool {
    crew: Crew,
    claims: Claims,
}

impl Pool {
    /// A pool of `threads` in all; zero counts as one. Where memory is in several places (NUMA), they are spread over these and stay.
    pub(crate) fn new(threads: usize) -> std::io::Result<Self> {
        Self::of(threads.max(1), 0..threads.max(1))
    }

    /// A pool of some of `all` threads, of which others are other pools': each is where it would be in one pool of all.
    pub(crate) fn of(all: usize, own: Range<usize>) -> std::io::Result<Self> {
        Self::on(own.len(), Machine::detect().places(all).map(|places| places[own].to_vec()))
    }

    /// A pool whose workers stay on the processors that are named for them. The first thread is the caller of a job, and nobody's to move.
    fn on(threads: usize, places: Option<Vec<Vec<u32>>>) -> std::io::Result<Self> {
        let crew = Crew::new(threads, move |worker| {
            if let Some(places) = &places {
                stay_on(&places[worker]);
            }
        })?;
        Ok(Self { claims: Claims::new(crew.threads()), crew })
    }

    /// Threads, the caller included.
    pub(crate) fn threads(&self) -> usize {
        self.crew.threads()
    }

    /// Calls `f` for ranges of `0..items`, spread over the threads: many items at first, in the end no fewer than `grain`. A panic
    /// in any of them continues in the caller.
    pub(crate) fn ranges(&self, items: usize, grain: usize, f: &(dyn Fn(Range<usize>) + Sync)) {
        let grain = grain.max(1);
        if items <= grain || self.threads() == 1 {
            return if items > 0 {
                f(0..items)
            };
        }
        let pieces = u32::try_from(items.div_ceil(grain)).expect("fewer than 2^32 pieces");
        let turn = self.crew.turn();
        self.claims.share_out(pieces);
        turn.run(pieces as usize, &|thread| {
            while let Some(pieces) = self.claims.next(thread) {
                f(pieces.start as usize * grain..items.min(pieces.end as usize * grain));
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
        let chunks = total.div_ceil(len);
        self.ranges(chunks, (chunks / (self.threads() * 64)).max(1), &|range| {
            for i in range {
                let from = i * len;
                // SAFETY: `i` is handed out once, so the chunks `from..min(from + len, total)` of `data` are disjoint, and
                // `data` stays mutably borrowed until all calls have returned.
                f(i, unsafe { shares.slice(from, len.min(total - from)) });
            }
        });
    }
}

/// Room for `len` elements at the beginning of a vector that only ever grows; what they hold has no meaning.
pub(crate) fn at_least<T: Copy>(room: &mut Vec<T>, len: usize, new: T) -> &mut [T] {
    if room.len() < len {
        room.resize(len, new);
    }
    &mut room[..len]
}

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
