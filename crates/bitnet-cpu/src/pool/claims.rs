//! Who does which pieces of a job: every thread owns a run of neighbouring pieces, and one that is done takes half of what
//! another still has.
//!
//! A thread thus reads one stream of weights, the same one in every step. It takes a part of what it has left at a time, so that parts
//! get smaller towards the end: threads of unequal speed are done at the same time, and one that lost its processor keeps only
//! the part that it was at.

use super::sync::AtomicU64;
use std::ops::Range;
use std::sync::atomic::Ordering;

/// What a thread takes at a time: one in this many of the pieces that it has left.
const PART: u32 = 2;

/// The pieces `from..to` that a thread still has, in one word. On a cache line of its own, or two: processors fetch pairs.
#[repr(align(128))]
struct Claim(AtomicU64);

/// The claims of all threads.
pub(super) struct Claims(Box<[Claim]>);

fn word(from: u32, to: u32) -> u64 {
    u64::from(from) << 32 | u64::from(to)
}

fn range(word: u64) -> (u32, u32) {
    ((word >> 32) as u32, word as u32)
}

impl Claims {
    pub(super) fn new(threads: usize) -> Self {
        Self((0..threads).map(|_| Claim(AtomicU64::new(0))).collect())
    }

    /// Gives `pieces` pieces to the threads in equal runs.
    pub(super) fn share_out(&self, pieces: u32) {
        let threads = self.0.len() as u64;
        let bound = |i: u64| (u64::from(pieces) * i / threads) as u32;
        for (i, claim) in (0..threads).zip(&self.0) {
            // Whoever reads this has seen the job open, which is a release.
            claim.0.store(word(bound(i), bound(i + 1)), Ordering::Relaxed);
        }
    }

    /// The next pieces for a thread: its own, or else another's. `None` when nothing is left to take.
    pub(super) fn next(&self, thread: usize) -> Option<Range<u32>> {
        self.own(thread).or_else(|| self.steal(thread))
    }

    fn own(&self, thread: usize) -> Option<Range<u32>> {
        let take = |w| {
            let (from, to) = range(w);
            (from < to).then(|| word(from + part(to - from), to))
        };
        let before = self.0[thread].0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).ok()?;
        let (from, to) = range(before);
        Some(from..from + part(to - from))
    }

    /// Takes the later half of what the next busy thread has.
    fn steal(&self, thief: usize) -> Option<Range<u32>> {
        let halve = |w| {
            let (from, to) = range(w);
            (from < to).then(|| word(from, from + (to - from) / 2))
        };
        let (before, after) = self.0.split_at(thief);
        for victim in after[1..].iter().chain(before) {
            if let Ok(w) = victim.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, halve) {
                let (from, to) = range(w);
                let first = from + (to - from) / 2;
                let next = first + part(to - first);
                // No piece is handed out twice in a job, so nobody can mistake this for a state that was seen before.
                self.0[thief].0.store(word(next, to), Ordering::Relaxed);
                return Some(first..next);
            }
        }
        None
    }
}

/// How many of the pieces that are left are taken, at least one.
fn part(left: u32) -> u32 {
    left.div_ceil(PART)
}
