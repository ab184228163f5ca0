//! What is counted, and how it is read.
//!
//! Counts of pieces are plain numbers at each thread's hand, added up when somebody asks; blocks are counted where the source is
//! asked, which is seldom.

mod live;
mod snapshot;

pub(crate) use live::Live;
pub use live::LivePiece;
pub use snapshot::{ClassUse, Lifetimes, Snapshot, TagUse};

use crate::pool::class::CLASSES;
use crate::tag::Tag;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering::Relaxed};
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

/// By how many bytes what a thread counted may differ from what is told to all. A peak is as exact.
const QUANTUM: i64 = 4 << 20;

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
}

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

    #[cold]
    fn used(&self, change: i64) {
        let used = self.used.fetch_add(change, Relaxed) + change;
        if used > self.used_peak.load(Relaxed) {
            self.used_peak.fetch_max(used, Relaxed);
        }
    }
}

/// What a thread counts.
pub(crate) struct Counts {
    level: Tracking,
    gauges: Arc<Gauges>,
    /// Bytes that were taken and not put back here, and that nobody was told of.
    used: i64,
    /// By tag and class.
    pieces: Vec<[PieceCount; CLASSES]>,
    /// By tag: pieces that lived so long, by powers of two of nanoseconds.
    lifetimes: [[u32; LIFETIMES]; Tag::ALL.len()],
}

/// Pieces of a class and a tag. Taken by one thread and put by another, they are negative at the second.
#[derive(Clone, Copy, Default)]
pub(crate) struct PieceCount {
    pub(crate) taken: u64,
    pub(crate) put: u64,
    /// Bytes that were asked for, of pieces in use.
    pub(crate) asked: i64,
    /// The most that they were here.
    pub(crate) peak: i64,
    /// Of the pieces that were taken, those that only the source had.
    pub(crate) made: u64,
}

impl Counts {
    pub(crate) fn new(level: Tracking, gauges: Arc<Gauges>) -> Self {
        let tags = if level >= Tracking::Standard { Tag::ALL.len() } else { 0 };
        let pieces = vec![[PieceCount::default(); CLASSES]; tags];
        Self { level, gauges, used: 0, pieces, lifetimes: [[0; LIFETIMES]; Tag::ALL.len()] }
    }

    /// A piece of `bytes` bytes is taken by who asked for `asked`.
    #[inline(always)]
    pub(crate) fn take(&mut self, class: usize, bytes: usize, asked: usize, tag: Tag) {
        self.change(bytes as i64);
        if let Some(count) = self.pieces.get_mut(tag as usize) {
            let count = &mut count[class];
            count.taken += 1;
            count.asked += asked as i64;
            count.peak = count.peak.max(count.asked);
        }
    }

    /// The source was asked for a piece that is taken next.
    #[cold]
    pub(crate) fn made(&mut self, class: usize, tag: Tag) {
        if let Some(count) = self.pieces.get_mut(tag as usize) {
            count[class].made += 1;
        }
    }

    /// It is put back.
    #[inline(always)]
    pub(crate) fn put(&mut self, class: usize, bytes: usize, asked: usize, tag: Tag) {
        self.change(-(bytes as i64));
        if let Some(count) = self.pieces.get_mut(tag as usize) {
            count[class].put += 1;
            count[class].asked -= asked as i64;
        }
    }

    #[inline(always)]
    fn change(&mut self, bytes: i64) {
        if self.level == Tracking::Off {
            return;
        }
        self.used += bytes;
        if self.used.unsigned_abs() > QUANTUM as u64 {
            self.gauges.used(std::mem::take(&mut self.used));
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

    /// Adds what this thread counted to a sum.
    pub(crate) fn add_to(&mut self, sum: &mut Sum) {
        self.gauges.used(std::mem::take(&mut self.used));
        for (tag, counts) in self.pieces.iter().enumerate() {
            for (class, count) in counts.iter().enumerate() {
                let sum = &mut sum.pieces[tag][class];
                sum.taken += count.taken;
                sum.put += count.put;
                sum.asked += count.asked;
                sum.peak += count.peak;
                sum.made += count.made;
            }
        }
        for (sum, lifetimes) in sum.lifetimes.iter_mut().zip(&self.lifetimes) {
            sum.iter_mut().zip(lifetimes).for_each(|(sum, n)| *sum += u64::from(*n));
        }
    }
}

/// The power of two that a lifetime is sorted under.
fn lifetime(nanoseconds: u64) -> usize {
    (nanoseconds.max(1).ilog2() as usize).min(LIFETIMES - 1)
}

/// What all threads counted.
pub(crate) struct Sum {
    pub(crate) pieces: [[PieceCount; CLASSES]; Tag::ALL.len()],
    pub(crate) lifetimes: [[u64; LIFETIMES]; Tag::ALL.len()],
}

impl Sum {
    pub(crate) fn new() -> Box<Self> {
        let pieces = [[PieceCount::default(); CLASSES]; Tag::ALL.len()];
        Box::new(Self { pieces, lifetimes: [[0; LIFETIMES]; Tag::ALL.len()] })
    }
}
