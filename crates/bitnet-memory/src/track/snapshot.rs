//! What a pool has counted up to now.

use super::{Gauges, LIFETIMES, LifetimeSums};
use crate::pool::class::{CLASSES, OWN, Tier, class_bytes};
use crate::tag::Tag;
use serde::Serialize;
use std::sync::atomic::Ordering::Relaxed;

/// A pool's numbers at one moment. Threads are asked one after the other: while they work, sums may be off by what happens meanwhile.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Snapshot {
    /// Bytes of blocks that the source gave and did not get back, without pages of free pieces that the system did.
    pub held_bytes: usize,
    /// The most that were.
    pub held_peak_bytes: usize,
    /// Blocks.
    pub blocks: usize,
    /// Bytes of pieces that lie free.
    pub free_bytes: usize,
    /// Requests to the source, and how many failed.
    pub source_requests: u64,
    /// How many of them failed.
    pub source_failures: u64,
    /// Bytes of pieces in use; from `minimal` on, else 0.
    pub used_bytes: usize,
    /// The most that were, within 16 MiB for each thread.
    pub used_peak_bytes: usize,
    /// Classes that were ever used, the smallest first; from `standard` on.
    pub classes: Vec<ClassUse>,
    /// Tags that were ever used; from `standard` on.
    pub tags: Vec<TagUse>,
}

/// A size class.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ClassUse {
    /// Where the class belongs.
    pub tier: Tier,
    /// The largest request of the class; `None` where each piece has its own size.
    pub bytes: Option<usize>,
    /// Pieces that were ever taken.
    pub taken: u64,
    /// Pieces in use.
    pub used: u64,
    /// Bytes that were asked for, of pieces in use.
    pub asked_bytes: usize,
    /// The most that they were: not less, and more where threads took their most at different times.
    pub peak_bytes: usize,
    /// How many of the pieces that were taken only the source had.
    pub source_requests: u64,
}

/// What memory is for.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TagUse {
    /// What it is for.
    pub tag: Tag,
    /// Pieces that were ever taken.
    pub taken: u64,
    /// Pieces in use.
    pub used: u64,
    /// Bytes that were asked for, of pieces in use.
    pub asked_bytes: usize,
    /// The most that they were: not less, and more where threads took their most at different times.
    pub peak_bytes: usize,
    /// How many of the pieces that were taken only the source had.
    pub source_requests: u64,
    /// How long pieces were in use; from `detailed` on, and a sample of them where the pool learns.
    pub lifetimes: Option<Lifetimes>,
}

/// How long pieces were in use.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Lifetimes {
    /// Pieces that were timed.
    pub count: u64,
    /// Half of them lived no longer than this, up to a factor of two.
    pub median_ns: u64,
    /// So did nine in ten.
    pub p90_ns: u64,
    /// And all of them.
    pub longest_ns: u64,
}

impl Lifetimes {
    pub(crate) fn of(counts: &[u64; LIFETIMES]) -> Option<Self> {
        let count: u64 = counts.iter().sum();
        let quantile = |per_cent: u64| {
            let mut below = 0;
            let place = counts.iter().position(|n| {
                below += n;
                below * 100 >= count * per_cent
            });
            2 << place.unwrap_or(LIFETIMES - 1)
        };
        (count > 0).then(|| Self {
            count,
            median_ns: quantile(50),
            p90_ns: quantile(90),
            longest_ns: quantile(100),
        })
    }
}

impl Snapshot {
    /// When all threads have told what they counted.
    pub(crate) fn new(gauges: &Gauges, lifetimes: &LifetimeSums, free_bytes: usize) -> Self {
        let pieces = gauges.pieces();
        let bytes = |n: i64| usize::try_from(n).unwrap_or(0);
        let class = |class: usize| {
            let of = || pieces.iter().map(move |tag| tag[class]);
            let taken = of().map(|c| c.taken).sum();
            (taken > 0).then(|| ClassUse {
                tier: Tier::of(class),
                bytes: (class != OWN).then(|| class_bytes(class)),
                taken,
                used: taken.saturating_sub(of().map(|c| c.put).sum()),
                asked_bytes: bytes(of().map(|c| c.asked).sum()),
                peak_bytes: bytes(of().map(|c| c.peak).sum()),
                source_requests: of().map(|c| c.made).sum(),
            })
        };
        let tag = |tag: Tag| {
            let of = || pieces[tag as usize].iter();
            let taken = of().map(|c| c.taken).sum();
            (taken > 0).then(|| TagUse {
                tag,
                taken,
                used: taken.saturating_sub(of().map(|c| c.put).sum()),
                asked_bytes: bytes(of().map(|c| c.asked).sum()),
                peak_bytes: bytes(of().map(|c| c.peak).sum()),
                source_requests: of().map(|c| c.made).sum(),
                lifetimes: Lifetimes::of(&lifetimes[tag as usize]),
            })
        };
        Self {
            held_bytes: gauges.held.load(Relaxed),
            held_peak_bytes: gauges.held_peak.load(Relaxed),
            blocks: gauges.blocks.load(Relaxed),
            free_bytes,
            source_requests: gauges.requests.load(Relaxed),
            source_failures: gauges.failures.load(Relaxed),
            used_bytes: bytes(gauges.used.load(Relaxed)),
            used_peak_bytes: bytes(gauges.used_peak.load(Relaxed)),
            classes: (0..CLASSES).filter_map(class).collect(),
            tags: Tag::ALL.into_iter().filter_map(tag).collect(),
        }
    }
}
