//! What lies at hand of a thread: a stack of free pieces for each class, and counts.

use super::class::{CLASSES, class_bytes};
use super::config::Release;
use super::piece::Free;
use super::plan::Plan;
use crate::source::Source;
use crate::tag::Tag;
use crate::track::{Counts, Gauges, Tracking};
use std::sync::Arc;
use std::time::Instant;

/// Of so many pieces that are taken one is timed, for the learner.
const SAMPLED: u32 = 64;

/// Free pieces of a class, the last one used on top.
pub(super) struct Shelf<S: Source> {
    pub(super) free: Vec<Free<S>>,
    /// Pieces there is room for.
    depth: usize,
    /// Pieces are at least this large: what is left of a size that was too small does not come back.
    cut: usize,
    pub(super) seen: Seen,
}

/// What happened at a shelf since it was last asked.
#[derive(Clone, Copy, Default)]
pub(super) struct Seen {
    /// Requests that found nothing.
    pub(super) misses: usize,
    /// Pieces that found no room.
    pub(super) spills: usize,
    /// Pieces that were there all the time.
    pub(super) idle: usize,
    /// The largest request.
    pub(super) largest: usize,
}

/// One thread's.
pub(super) struct Local<S: Source> {
    pub(super) shelves: Box<[Shelf<S>; CLASSES]>,
    /// Bytes on all shelves.
    pub(super) bytes: usize,
    limit_bytes: usize,
    /// Whether pieces with blocks of their own are kept.
    pub(super) keep_own: bool,
    /// Tags whose larger pieces are [`OWN`](super::class::OWN).
    pub(super) long_lived: [bool; Tag::ALL.len()],
    /// Pieces until one is timed, and what it begins at; both 0 where none is.
    countdown: (u32, u32),
    /// When the pool began.
    clock: Instant,
    pub(super) counts: Counts,
}

impl<S: Source> Local<S> {
    pub(super) fn new(
        plan: &Plan,
        limit_bytes: usize,
        level: Tracking,
        learn: bool,
        gauges: &Arc<Gauges>,
    ) -> Self {
        let shelf = |_| Shelf { free: Vec::new(), depth: 0, cut: 0, seen: Seen::default() };
        let period = if level >= Tracking::Detailed { 1 } else { u32::from(learn) * SAMPLED };
        let mut local = Self {
            shelves: Box::new(std::array::from_fn(shelf)),
            bytes: 0,
            limit_bytes,
            keep_own: false,
            long_lived: Default::default(),
            countdown: (period, period),
            clock: gauges.clock,
            counts: Counts::new(level, Arc::clone(gauges)),
        };
        local.follow(plan);
        local
    }

    /// Keeps things as a plan says from now on.
    pub(super) fn follow(&mut self, plan: &Plan) {
        (self.keep_own, self.long_lived) = (plan.keep_own, plan.long_lived);
        for (class, shelf) in self.shelves.iter_mut().enumerate() {
            (shelf.depth, shelf.cut) = (plan.depth[class], plan.cut[class]);
            shelf.free.reserve_exact(shelf.depth.saturating_sub(shelf.free.len()));
        }
    }

    /// Has no room for anything from now on.
    pub(super) fn close(&mut self) {
        self.shelves.iter_mut().for_each(|shelf| shelf.depth = 0);
    }

    /// A free piece of the class that holds so many bytes, if there is one at hand.
    #[inline(always)]
    pub(super) fn take(&mut self, class: usize, bytes: usize) -> Option<Free<S>> {
        let shelf = &mut self.shelves[class];
        shelf.seen.largest = shelf.seen.largest.max(bytes);
        if let Some(free) = shelf.free.pop_if(|free| free.bytes >= bytes) {
            self.bytes -= free.bytes;
            shelf.seen.idle = shelf.seen.idle.min(shelf.free.len());
            return Some(free);
        }
        shelf.seen.misses += 1;
        None
    }

    /// Notes what a piece is taken for.
    #[inline(always)]
    pub(super) fn begin(&mut self, free: &mut Free<S>, bytes: usize, tag: Tag) {
        (free.asked, free.tag, free.since) = (bytes, tag, 0);
        self.counts.take(free.class, free.bytes, bytes, tag);
        let (left, period) = &mut self.countdown;
        if *left > 0 {
            *left -= 1;
            if *left == 0 {
                *left = *period;
                free.since = self.now();
            }
        }
    }

    /// Nanoseconds since the pool began, and one.
    #[cold]
    fn now(&self) -> u64 {
        self.clock.elapsed().as_nanos() as u64 + 1
    }

    /// Keeps a piece that its user is done with, or gives it back where there is no room.
    #[inline(always)]
    pub(super) fn put(&mut self, free: Free<S>) -> Option<Free<S>> {
        self.counts.put(free.class, free.bytes, free.asked, free.tag);
        if free.since != 0 {
            let lifetime = self.now() - free.since;
            self.counts.lived(free.tag, lifetime);
        }
        let shelf = &mut self.shelves[free.class];
        let bytes = self.bytes + free.bytes;
        let has_room = shelf.free.len() < shelf.depth && free.bytes >= shelf.cut && bytes <= self.limit_bytes;
        if has_room && free.release == Release::Normal {
            self.bytes = bytes;
            shelf.free.push(free);
            return None;
        }
        shelf.seen.spills += 1;
        Some(free)
    }

    /// Puts a piece on its shelf that comes from the depot, or gives it back where there is no room.
    pub(super) fn stock(&mut self, free: Free<S>) -> Result<(), Free<S>> {
        let (shelf, bytes) = (&mut self.shelves[free.class], free.bytes);
        if shelf.free.len() >= shelf.depth || self.bytes + bytes > self.limit_bytes {
            return Err(free);
        }
        self.bytes += bytes;
        shelf.free.push(free);
        Ok(())
    }

    /// Takes the pieces off a shelf that have been there longest, so many.
    pub(super) fn drain(&mut self, class: usize, count: usize) -> impl Iterator<Item = Free<S>> + '_ {
        let shelf = &mut self.shelves[class];
        let count = count.min(shelf.free.len());
        shelf.seen.idle = shelf.seen.idle.min(shelf.free.len() - count);
        let bytes = &mut self.bytes;
        shelf.free.drain(..count).inspect(move |free| *bytes -= free.bytes)
    }

    /// What happened at a shelf since this was last asked.
    pub(super) fn ask(&mut self, class: usize) -> Seen {
        let shelf = &mut self.shelves[class];
        std::mem::replace(&mut shelf.seen, Seen { idle: shelf.free.len(), ..Seen::default() })
    }

    /// Pieces that a refill brings: half of what there is room for.
    pub(super) fn refill(&self, class: usize) -> usize {
        let by_bytes = (self.limit_bytes - self.bytes.min(self.limit_bytes)) / class_bytes(class).max(1);
        (self.shelves[class].depth / 2).min(by_bytes)
    }
}
