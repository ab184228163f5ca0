//! What is counted, and how it is read.
//!
//! Counts of pieces are plain numbers at each thread's hand, added up when somebody asks; blocks are counted where the source is
//! asked, which is seldom.

mod live;
mod snapshot;

pub(crate) use live::Live;
pub use live::LivePiece;
pub use snapshot::{ClassUse, Lifetimes, Snapshot, TagUse};

use crate::pool::class::{CLASSES, OWN};
use crate::tag::Tag;
use serde::{Deserialize, Serialize};
use std::sync::atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// How much is counted; each level also has what those before it have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tracking {
    /// What the source was asked for, without which nothing could be kept under a budget.
    Off,
    /// Bytes in use, and the most that were.
    Minimal,
    /// Pieces and bytes of each class and tag.
    #[default]
    Standard,
    /// How long pieces were in use, for each tag.
    Detailed,
    /// Each piece in use, with the place that asked for it; new buffers that are not asked to be zero are filled with 0xFF, which no
    /// float is, so that whoever reads before writing is found out.
    Debug,
}

impl Tracking {
    /// As the command line and configuration files name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Minimal => "minimal",
            Self::Standard => "standard",
            Self::Detailed => "detailed",
            Self::Debug => "debug",
        }
    }
}

/// Powers of two of nanoseconds that lifetimes are sorted by: to 4 minutes, and more.
pub(crate) const LIFETIMES: usize = 39;

/// Numbers of a whole pool.
#[derive(Debug)]
pub(crate) struct Gauges {
    pub(crate) clock: Instant,
    pub(crate) held: AtomicUsize,
    pub(crate) held_peak: AtomicUsize,
    pub(crate) blocks: AtomicUsize,
    pub(crate) requests: AtomicU64,
    pub(crate) failures: AtomicU64,
    used: AtomicI64,
    used_peak: AtomicI64,
    /// What threads counted by tag and class, up to when they were last asked.
    pieces: Mutex<Pieces>,
}

/// By tag and class.
pub(crate) type Pieces = Box<[[PieceCount; CLASSES]; Tag::ALL.len()]>;

impl Gauges {
    pub(crate) fn new() -> Self {
        Self {
            clock: Instant::now(),
            held: AtomicUsize::new(0),
            held_peak: AtomicUsize::new(0),
            blocks: AtomicUsize::new(0),
            requests: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            used: AtomicI64::new(0),
            used_peak: AtomicI64::new(0),
            pieces: Mutex::new(Box::new([[PieceCount::default(); CLASSES]; Tag::ALL.len()])),
        }
    }

    /// A block of so many bytes is there.
    pub(crate) fn gain(&self, bytes: usize) {
        self.blocks.fetch_add(1, Relaxed);
        self.grow(bytes);
    }

    /// A block of so many bytes has gone.
    pub(crate) fn lose(&self, bytes: usize) {
        self.blocks.fetch_sub(1, Relaxed);
        self.shrink(bytes);
    }

    /// Blocks hold so many bytes more.
    pub(crate) fn grow(&self, bytes: usize) {
        let held = self.held.fetch_add(bytes, Relaxed) + bytes;
        self.held_peak.fetch_max(held, Relaxed);
    }

    /// Blocks hold so many bytes less.
    pub(crate) fn shrink(&self, bytes: usize) {
        self.held.fetch_sub(bytes, Relaxed);
    }

    fn pieces(&self) -> MutexGuard<'_, Pieces> {
        self.pieces.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// So many bytes more are in use.
    pub(crate) fn used(&self, change: i64) {
        let used = self.used.fetch_add(change, Relaxed) + change;
        if used > self.used_peak.load(Relaxed) {
            self.used_peak.fetch_max(used, Relaxed);
        }
    }
}

/// What a thread counts.
pub(crate) struct Counts {
    gauges: Arc<Gauges>,
    /// By class and tag, of which there is one more than there are, so that a place is found by shifts.
    recent: [[Recent; 8]; CLASSES],
    /// By tag: pieces that lived so long, by powers of two of nanoseconds.
    lifetimes: [[u32; LIFETIMES]; Tag::ALL.len()],
}

/// Pieces taken and put since all were told of them. A word has their number above [`ONE`] and their bytes below, so that one addition
/// counts both.
#[derive(Clone, Copy, Default)]
struct Recent {
    taken: u64,
    put: u64,
}

/// One piece. A word is emptied when its highest bit is set, by which it has counted 2¹⁸ pieces; of at most 2²⁵ bytes each, they fill no more
/// than the bits below.
const ONE: u64 = 1 << 45;

/// Pieces of a class and a tag. Taken by one thread and put by another, they are negative at the second.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct PieceCount {
    pub(crate) taken: u64,
    pub(crate) put: u64,
    /// Bytes that were asked for, of pieces in use.
    pub(crate) asked: i64,
    /// The most that they were when all were told, which is the case whenever the source has to make one.
    pub(crate) peak: i64,
    /// Of the pieces that were taken, those that only the source had.
    pub(crate) made: u64,
}

impl PieceCount {
    fn add(&mut self, Recent { taken, put }: Recent) {
        self.taken += taken / ONE;
        self.put += put / ONE;
        self.asked += (taken % ONE) as i64 - (put % ONE) as i64;
        self.peak = self.peak.max(self.asked);
    }
}

impl Counts {
    pub(crate) fn new(gauges: &Arc<Gauges>) -> Self {
        Self {
            gauges: Arc::clone(gauges),
            recent: [[Recent::default(); 8]; CLASSES],
            lifetimes: [[0; LIFETIMES]; Tag::ALL.len()],
        }
    }

    /// A piece of a class of fixed size is taken by who asked for `asked`. Whether it is time to [tell](Self::tell_of) of its class and tag.
    #[inline(always)]
    pub(crate) fn take(&mut self, class: usize, asked: usize, tag: Tag) -> bool {
        let taken = &mut self.recent[class][tag as usize].taken;
        *taken += ONE + asked as u64;
        *taken >> 63 != 0
    }

    /// Of pieces of a class and a tag, the one that was taken last was made for it: only the source had the memory.
    #[cold]
    pub(crate) fn made(&mut self, class: usize, tag: Tag) {
        let count = &mut self.gauges.pieces()[tag as usize][class];
        // More of them than before were in use at no other time.
        count.add(std::mem::take(&mut self.recent[class][tag as usize]));
        count.made += 1;
    }

    /// It is put back.
    #[inline(always)]
    pub(crate) fn put(&mut self, class: usize, asked: usize, tag: Tag) -> bool {
        let put = &mut self.recent[class][tag as usize].put;
        *put += ONE + asked as u64;
        *put >> 63 != 0
    }

    /// A piece of any class is taken.
    pub(crate) fn take_any(&mut self, class: usize, asked: usize, tag: Tag) {
        if class < OWN {
            self.take(class, asked, tag);
            return self.tell_of(class, tag);
        }
        let count = &mut self.gauges.pieces()[tag as usize][class];
        count.taken += 1;
        count.asked += asked as i64;
        count.peak = count.peak.max(count.asked);
    }

    /// It is put back.
    pub(crate) fn put_any(&mut self, class: usize, asked: usize, tag: Tag) {
        if class < OWN {
            self.put(class, asked, tag);
            return self.tell_of(class, tag);
        }
        let count = &mut self.gauges.pieces()[tag as usize][class];
        count.put += 1;
        count.asked -= asked as i64;
    }

    /// Tells all how many pieces of a class and a tag were taken and put, if a word is full.
    #[cold]
    pub(crate) fn tell_of(&mut self, class: usize, tag: Tag) {
        let recent = &mut self.recent[class][tag as usize];
        if (recent.taken | recent.put) >> 63 != 0 {
            self.gauges.pieces()[tag as usize][class].add(std::mem::take(recent));
        }
    }

    /// A piece is put back that was taken so many nanoseconds ago.
    #[cold]
    pub(crate) fn lived(&mut self, tag: Tag, nanoseconds: u64) {
        self.lifetimes[tag as usize][lifetime(nanoseconds)] += 1;
    }

    /// Lifetimes that were noted.
    pub(crate) fn lifetimes(&self, tag: Tag) -> &[u32; LIFETIMES] {
        &self.lifetimes[tag as usize]
    }

    /// Tells all what this thread counted, but for lifetimes, which it adds to a sum.
    pub(crate) fn tell(&mut self, lifetimes: &mut LifetimeSums) {
        let mut pieces = self.gauges.pieces();
        for (class, recent) in self.recent.iter_mut().enumerate() {
            for (tag, recent) in recent.iter_mut().take(Tag::ALL.len()).enumerate() {
                pieces[tag][class].add(std::mem::take(recent));
            }
        }
        drop(pieces);
        for (sum, lifetimes) in lifetimes.iter_mut().zip(&self.lifetimes) {
            sum.iter_mut().zip(lifetimes).for_each(|(sum, n)| *sum += u64::from(*n));
        }
    }
}

/// By tag: pieces that lived so long.
pub(crate) type LifetimeSums = [[u64; LIFETIMES]; Tag::ALL.len()];

/// The power of two that a lifetime is sorted under.
fn lifetime(nanoseconds: u64) -> usize {
    (nanoseconds.max(1).ilog2() as usize).min(LIFETIMES - 1)
}
