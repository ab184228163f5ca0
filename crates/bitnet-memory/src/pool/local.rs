//! What lies at hand of a thread: a stack of free pieces for each class, and counts.
//!
//! [`take`](Local::take) and [`put`](Local::put) are the way of nearly all pieces, and do nothing that could be left to the others: a
//! piece that is somehow special, or finds no room, goes by way of the depot, where time matters less.

use super::class::{CLASSES, class_bytes};
use super::config::Release;
use super::piece::{Cut, Free};
use super::plan::{OWN_FROM, Plan};
use super::stack::Stack;
use crate::source::Source;
use crate::tag::Tag;
use crate::track::{Counts, Gauges, Tracking};
use std::sync::Arc;

/// Of so many pieces that are taken one is timed, for the learner.
const SAMPLED: u32 = 64;

/// By how many bytes what a thread has in use may differ from what is told to all, which takes as long as all else. A peak is as exact.
const QUANTUM: usize = 16 << 20;

/// Free pieces of a class. Of a size that makes its place a shift.
#[repr(align(64))]
struct Shelf<S: Source> {
    free: Stack<S>,
    /// Pieces there is room for.
    depth: usize,
    /// Pieces are at least this large: what is left of a size that was too small does not come back.
    cut: usize,
    seen: Seen,
}

/// What happened at a shelf since it was last asked.
#[derive(Clone, Copy, Default)]
pub(super) struct Seen {
    /// Pieces that found no room.
    pub(super) spills: usize,
    /// Pieces that were there all the time.
    pub(super) idle: usize,
    /// The largest request.
    pub(super) largest: usize,
}

/// One thread's. What each piece needs comes first.
#[repr(C)]
pub(super) struct Local<S: Source> {
    /// Bytes on all shelves. Memory in use becomes less as they become more, so that nothing else need be counted for it.
    bytes: usize,
    /// Between these, nobody need be told of what is in use, and there is room.
    low: usize,
    high: usize,
    /// Pieces until one is timed.
    countdown: u32,
    /// Whether pieces are counted by class and tag.
    is_counting: bool,
    /// Whether pieces with blocks of their own are kept.
    pub(super) keep_own: bool,
    /// Tags whose larger pieces are [`OWN`](super::class::OWN).
    pub(super) long_lived: [bool; Tag::ALL.len()],
    limit_bytes: usize,
    /// What `bytes` would be had what is in use not changed since all were told of it.
    told: isize,
    /// What the countdown begins at; [`u32::MAX`] where none is timed.
    period: u32,
    level: Tracking,
    gauges: Arc<Gauges>,
    shelves: [Shelf<S>; CLASSES],
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
        let shelf = |_| Shelf { free: Stack::new(), depth: 0, cut: 0, seen: Seen::default() };
        let period = match learn {
            _ if level >= Tracking::Detailed => 1,
            true => SAMPLED,
            false => u32::MAX,
        };
        let mut local = Self {
            bytes: 0,
            low: 0,
            high: 0,
            countdown: period,
            is_counting: level >= Tracking::Standard,
            keep_own: false,
            long_lived: Default::default(),
            limit_bytes,
            told: 0,
            period,
            level,
            gauges: Arc::clone(gauges),
            shelves: std::array::from_fn(shelf),
            counts: Counts::new(gauges),
        };
        local.follow(plan);
        local.tell_if_due();
        local
    }

    /// Keeps things as a plan says from now on.
    pub(super) fn follow(&mut self, plan: &Plan) {
        (self.keep_own, self.long_lived) = (plan.keep_own, plan.long_lived);
        for (class, shelf) in self.shelves.iter_mut().enumerate() {
            (shelf.depth, shelf.cut) = (plan.depth[class], plan.cut[class]);
        }
    }

    /// Has no room for anything from now on.
    pub(super) fn close(&mut self) {
        self.shelves.iter_mut().for_each(|shelf| shelf.depth = 0);
    }

    /// Whether memory for this has blocks of its own.
    #[inline(always)]
    pub(super) fn is_own(&self, bytes: usize, tag: Tag) -> bool {
        bytes >= OWN_FROM && self.long_lived[tag as usize]
    }

    /// A free piece of the class that holds so many bytes, if there is one at hand; it is in use from now on.
    #[inline(always)]
    pub(super) fn take(&mut self, class: usize, bytes: usize, tag: Tag) -> Option<Free<S>> {
        if self.is_own(bytes, tag) {
            return None;
        }
        let shelf = self.shelves.get_mut(class)?;
        if bytes > shelf.seen.largest {
            shelf.seen.largest = bytes;
        }
        let mut free = shelf.free.pop_if_holds(bytes)?;
        if shelf.free.len() < shelf.seen.idle {
            shelf.seen.idle = shelf.free.len();
        }
        self.bytes -= free.bytes;
        (free.asked, free.tag) = (bytes, tag);
        let is_full = self.is_counting && self.counts.take(class, bytes, tag);
        self.countdown -= 1;
        if is_full || self.bytes < self.low || self.countdown == 0 {
            self.look_up(&mut free);
        }
        Some(free)
    }

    /// Does what is due after many pieces.
    #[cold]
    #[inline(never)]
    fn look_up(&mut self, free: &mut Cut<S>) {
        self.counts.tell_of(free.class as usize, free.tag);
        self.tell_if_due();
        if self.countdown == 0 {
            self.countdown = self.period;
            self.look_at(free);
        }
    }

    /// Keeps a piece that its user is done with, or gives it back, as it was, where that takes more.
    #[inline(always)]
    pub(super) fn put(&mut self, mut free: Free<S>) -> Option<Free<S>> {
        let class = free.class as usize;
        let Some(shelf) = self.shelves.get_mut(class) else { return Some(free) };
        let bytes = self.bytes + free.bytes;
        let has_room = shelf.free.len() < shelf.depth && free.bytes >= shelf.cut && bytes <= self.high;
        if free.is_special || !has_room {
            return Some(free);
        }
        self.bytes = bytes;
        let tag = free.tag;
        let is_full = self.is_counting && self.counts.put(class, free.asked, tag);
        free.is_fresh = false;
        shelf.free.push(free);
        if is_full {
            self.counts.tell_of(class, tag);
        }
        None
    }

    /// Notes that a piece from elsewhere is in use.
    pub(super) fn begin(&mut self, free: &mut Free<S>, bytes: usize, tag: Tag) {
        (free.asked, free.tag) = (bytes, tag);
        if self.is_counting {
            self.counts.take_any(free.class as usize, bytes, tag);
        }
        self.told += free.bytes as isize;
        self.countdown -= 1;
        self.look_up(free);
    }

    /// The same of one that the source had to make.
    pub(super) fn begin_made(&mut self, free: &mut Free<S>, bytes: usize, tag: Tag) {
        self.begin(free, bytes, tag);
        if self.is_counting {
            self.counts.made(free.class as usize, tag);
        }
    }

    /// Notes that a piece is not in use any more; it has not been put on a shelf.
    pub(super) fn end(&mut self, free: &mut Free<S>) {
        if self.is_counting {
            self.counts.put_any(free.class as usize, free.asked, free.tag);
        }
        self.told -= free.bytes as isize;
        self.tell_if_due();
        if free.since != 0 {
            let lifetime = now(&self.gauges) - std::mem::take(&mut free.since);
            self.counts.lived(free.tag, lifetime);
            if self.level == Tracking::Debug {
                free.home.live.put(free.key());
            }
        }
        (free.is_special, free.is_fresh) = (false, false);
    }

    /// Notes when a piece is taken, and by whom.
    fn look_at(&self, free: &mut Cut<S>) {
        if self.period == u32::MAX {
            return;
        }
        (free.since, free.is_special) = (now(&self.gauges), true);
        if self.level == Tracking::Debug {
            free.home.live.take(free.key(), free.asked, free.tag);
        }
    }

    /// Tells all how much is in use, if that has become much else, and finds out when it will be time again.
    fn tell_if_due(&mut self) {
        if self.change().unsigned_abs() > QUANTUM {
            self.tell();
        }
        let at_most = |bytes: isize| usize::try_from(bytes).unwrap_or(0);
        let (low, high) = match self.level {
            Tracking::Off => (0, self.limit_bytes),
            _ => (at_most(self.told - QUANTUM as isize), at_most(self.told + QUANTUM as isize)),
        };
        (self.low, self.high) = (low, high.min(self.limit_bytes));
    }

    /// Bytes in use that nobody was told of; less than none where what others took is put here.
    fn change(&self) -> isize {
        self.told - self.bytes as isize
    }

    /// Tells all how much is in use.
    pub(super) fn tell(&mut self) {
        if self.level != Tracking::Off {
            self.gauges.used(self.change() as i64);
        }
        self.told = self.bytes as isize;
    }

    /// Moves so many bytes to shelves, or off them, that nobody uses.
    fn move_bytes(&mut self, change: isize) {
        self.bytes = self.bytes.strict_add_signed(change);
        self.told += change;
        self.tell_if_due();
    }

    /// Bytes on all shelves.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Pieces on a shelf.
    pub(super) fn pieces(&self, class: usize) -> usize {
        self.shelves[class].free.len()
    }

    /// Puts a piece that nobody uses on its shelf, or gives it back where there is no room.
    pub(super) fn stock(&mut self, free: Free<S>) -> Result<(), Free<S>> {
        let shelf = &self.shelves[free.class as usize];
        let has_place = shelf.free.len() < shelf.depth && free.bytes >= shelf.cut;
        if !has_place || free.release != Release::Normal || self.bytes + free.bytes > self.limit_bytes {
            return Err(free);
        }
        self.move_bytes(free.bytes as isize);
        self.shelves[free.class as usize].free.push(free);
        Ok(())
    }

    /// Notes that a piece found no room.
    pub(super) fn spill(&mut self, class: usize) {
        self.shelves[class].seen.spills += 1;
    }

    /// Takes the pieces off a shelf that have been there longest, so many.
    pub(super) fn drain(&mut self, class: usize, count: usize) -> Stack<S> {
        let shelf = &mut self.shelves[class];
        let (old, bytes) = shelf.free.bottom(count);
        shelf.seen.idle = shelf.seen.idle.min(shelf.free.len());
        self.move_bytes(-(bytes as isize));
        old
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

/// Nanoseconds since the pool began, and one.
fn now(gauges: &Gauges) -> u64 {
    gauges.clock.elapsed().as_nanos() as u64 + 1
}
