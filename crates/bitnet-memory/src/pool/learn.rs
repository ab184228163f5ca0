//! What a pool makes of what it sees.
//!
//! From one collection to the next, slots and the depot count what happened to each class; a collection adds that up, and from it
//! follow changes of the [`Plan`], each with its reason.

use super::class::{CLASSES, OWN, Tier, class_bytes};
use super::depot::{Dealt, Depot, deepest};
use super::local::Seen;
use super::plan::Plan;
use crate::source::Source;
use crate::tag::Tag;
use crate::track::{Counts, LIFETIMES, Lifetimes};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::fmt;

/// So often between two collections a class must pass by threads' hands, both ways, for more of it to be kept there.
const PASSES: usize = 64;

/// Below this, the rest of a piece is no matter.
const EXACT_FROM: usize = 16 << 10;

/// The most collections that a free piece outlives although nobody asks for it.
const PATIENCE: u32 = 1024;

/// Collections without use after which very large memory is no longer kept.
const FORGET: u32 = 8;

/// Decisions that are remembered.
const LOG: usize = 256;

/// What a pool changed in how it keeps memory, and why. [`Display`](fmt::Display) makes a sentence of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decision {
    /// More pieces of a class lie at hand of each thread.
    Deeper {
        /// The largest request of the class.
        class_bytes: usize,
        /// Pieces that may lie there.
        pieces: usize,
        /// So many requests found none there while so many pieces found no room, since the last collection.
        passes: usize,
    },
    /// Fewer do.
    Shallower {
        /// The largest request of the class.
        class_bytes: usize,
        /// Pieces that may lie there.
        pieces: usize,
        /// Pieces that nobody touched since the last collection.
        idle: usize,
    },
    /// New pieces of a class are smaller than the class.
    Narrower {
        /// The largest request of the class that there could be.
        class_bytes: usize,
        /// What its pieces have from now on: the largest request that there was.
        piece_bytes: usize,
    },
    /// They are as large as the class for good.
    Wider {
        /// The largest request of the class.
        class_bytes: usize,
        /// A request that was larger than pieces were.
        request_bytes: usize,
    },
    /// Free pieces of a class wait longer for somebody to ask for them.
    MorePatience {
        /// The largest request of the class.
        class_bytes: usize,
        /// Collections that they wait.
        collections: u32,
        /// Requests that came too late.
        late: usize,
    },
    /// Very large memory is kept.
    KeepVeryLarge {
        /// Requests since the last collection that memory given back before would have served.
        missed: usize,
    },
    /// It no longer is.
    ReleaseVeryLarge {
        /// Collections in which nobody asked for it.
        unused: u32,
    },
    /// Memory of a tag has blocks of its own from 64 KiB on.
    LongLived {
        /// What it is for.
        tag: Tag,
        /// Half of it lived at least about this long.
        median_ns: u64,
    },
    /// It no longer has.
    ShortLived {
        /// What it is for.
        tag: Tag,
        /// Half of it lived no longer than this.
        median_ns: u64,
    },
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Deeper { class_bytes, pieces, passes } => {
                write!(
                    f,
                    "{pieces} pieces of {class_bytes} bytes at hand: {passes} passed by in both directions"
                )
            }
            Self::Shallower { class_bytes, pieces, idle } => {
                write!(f, "{pieces} pieces of {class_bytes} bytes at hand: {idle} lay idle")
            }
            Self::Narrower { class_bytes, piece_bytes } => {
                write!(f, "pieces of {piece_bytes} bytes, not {class_bytes}: nobody asked for more")
            }
            Self::Wider { class_bytes, request_bytes } => {
                write!(f, "pieces of {class_bytes} bytes again: somebody asked for {request_bytes}")
            }
            Self::MorePatience { class_bytes, collections, late } => write!(
                f,
                "pieces of {class_bytes} bytes wait for {collections} collections: {late} requests came too late"
            ),
            Self::KeepVeryLarge { missed } => {
                write!(f, "very large memory is kept: {missed} requests could have used what was given back")
            }
            Self::ReleaseVeryLarge { unused } => {
                write!(f, "very large memory is given back: nobody used it during {unused} collections")
            }
            Self::LongLived { tag, median_ns } => {
                write!(f, "blocks of their own for {tag}: half live {:.1} s or more", median_ns as f64 / 1e9)
            }
            Self::ShortLived { tag, median_ns } => {
                write!(f, "shared blocks for {tag}: half live {:.3} ms at most", median_ns as f64 / 1e6)
            }
        }
    }
}

/// What a program needed, for the next one to have it ready ([`Pool::prewarm`](crate::Pool::prewarm)).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Learned {
    /// Classes of which there were pieces, the smallest first.
    pub classes: Vec<LearnedClass>,
}

/// A class, as far as the next program wants to know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LearnedClass {
    /// Bytes of a piece.
    pub piece_bytes: usize,
    /// The most that there were at a collection.
    pub pieces: usize,
}

/// What happened since the last collection.
pub(super) struct Observed {
    pub(super) slots: Box<[Seen; CLASSES]>,
    pub(super) depot: Box<[Dealt; CLASSES]>,
    pub(super) cut_bytes: Box<[usize; CLASSES]>,
    pub(super) lifetimes: [[u64; LIFETIMES]; Tag::ALL.len()],
}

impl Observed {
    pub(super) fn of_slot(&mut self, class: usize, seen: Seen) {
        let sum = &mut self.slots[class];
        sum.spills += seen.spills;
        sum.idle += seen.idle;
        sum.largest = sum.largest.max(seen.largest);
    }

    pub(super) fn of_depot<S: Source>(&mut self, depot: &mut Depot<S>) {
        std::mem::swap(&mut self.depot, &mut depot.seen);
        self.cut_bytes.copy_from_slice(&*depot.cut_bytes);
    }

    pub(super) fn lifetimes(&mut self, counts: &Counts) {
        for tag in Tag::ALL {
            let sums = self.lifetimes[tag as usize].iter_mut();
            sums.zip(counts.lifetimes(tag)).for_each(|(sum, n)| *sum += u64::from(*n));
        }
    }
}

/// The plan, and how it came about.
pub(super) struct Learner {
    first: Plan,
    plan: Plan,
    changed: bool,
    /// Classes of which a request was once larger than their pieces.
    wide: [bool; CLASSES],
    /// The largest request of a class so far.
    largest: [usize; CLASSES],
    /// Collections in which a class was asked for.
    busy: [u32; CLASSES],
    /// Bytes that were cut for a class, at most.
    most_bytes: [usize; CLASSES],
    /// Collections since very large memory that was kept was used.
    unused: u32,
    log: VecDeque<Decision>,
}

impl Learner {
    pub(super) fn new(plan: Plan) -> Self {
        Self {
            first: plan.clone(),
            plan,
            changed: false,
            wide: [false; CLASSES],
            largest: [0; CLASSES],
            busy: [0; CLASSES],
            most_bytes: [0; CLASSES],
            unused: 0,
            log: VecDeque::new(),
        }
    }

    pub(super) fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Whether the plan changed since this was last asked.
    pub(super) fn has_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    pub(super) fn decisions(&self) -> Vec<Decision> {
        self.log.iter().copied().collect()
    }

    pub(super) fn learned(&self) -> Learned {
        let class = |class: usize| {
            let piece_bytes = self.plan.cut[class];
            let pieces = self.most_bytes[class] / piece_bytes;
            (pieces > 0).then_some(LearnedClass { piece_bytes, pieces })
        };
        Learned { classes: (0..OWN).filter_map(class).collect() }
    }

    fn decide(&mut self, decision: Decision) {
        if self.log.len() == LOG {
            self.log.pop_front();
        }
        self.log.push_back(decision);
        self.changed = true;
    }

    pub(super) fn begin(&self) -> Observed {
        Observed {
            slots: Box::new([Seen::default(); CLASSES]),
            depot: Box::new([Dealt::default(); CLASSES]),
            cut_bytes: Box::new([0; CLASSES]),
            lifetimes: [[0; LIFETIMES]; Tag::ALL.len()],
        }
    }

    /// See [`Plan::chunk`]. A request that its class's pieces are too small for makes them as large as the class.
    pub(super) fn chunk(
        &mut self,
        class: usize,
        bytes: usize,
        held: usize,
        granule: usize,
    ) -> (usize, usize) {
        if class != OWN && bytes > self.plan.cut[class] {
            let class_bytes = class_bytes(class);
            self.plan.cut[class] = class_bytes;
            self.wide[class] = true;
            self.decide(Decision::Wider { class_bytes, request_bytes: bytes });
        }
        self.plan.chunk(class, bytes, held, granule)
    }

    /// Changes the plan by what happened.
    pub(super) fn learn(&mut self, seen: &Observed, at_hand_bytes: usize) {
        for class in 0..OWN {
            self.most_bytes[class] = self.most_bytes[class].max(seen.cut_bytes[class]);
            self.depth(class, &seen.slots[class], &seen.depot[class], at_hand_bytes);
            self.size(class, &seen.slots[class]);
            self.patience(class, &seen.depot[class]);
        }
        self.very_large(&seen.depot[OWN]);
        for tag in Tag::ALL {
            if let Some(lifetimes) = Lifetimes::of(&seen.lifetimes[tag as usize]) {
                self.generation(tag, &lifetimes);
            }
        }
    }

    fn depth(&mut self, class: usize, slots: &Seen, depot: &Dealt, at_hand_bytes: usize) {
        let (depth, class_bytes) = (self.plan.depth[class], class_bytes(class));
        let passes = slots.spills.min(depot.hits);
        let deeper = (2 * depth.max(1)).min(deepest(class, at_hand_bytes));
        if passes >= PASSES && deeper > depth {
            self.plan.depth[class] = deeper;
            self.decide(Decision::Deeper { class_bytes, pieces: deeper, passes });
        } else if depth > self.first.depth[class] && slots.spills == 0 && 2 * slots.idle >= depth {
            let pieces = (depth / 2).max(self.first.depth[class]);
            self.plan.depth[class] = pieces;
            self.decide(Decision::Shallower { class_bytes, pieces, idle: slots.idle });
        }
    }

    fn size(&mut self, class: usize, slots: &Seen) {
        let (class_bytes, granule) =
            (class_bytes(class), if Tier::of(class).shares_blocks() { 64 } else { 4096 });
        if slots.largest == 0 || class_bytes < EXACT_FROM || self.wide[class] {
            return;
        }
        self.largest[class] = self.largest[class].max(slots.largest);
        self.busy[class] += 1;
        let piece_bytes = self.largest[class].next_multiple_of(granule);
        // Less than a sixteenth is not worth the risk of a larger request.
        let worth = piece_bytes + piece_bytes / 16 <= class_bytes;
        if self.busy[class] == 2 && worth {
            self.plan.cut[class] = piece_bytes;
            self.decide(Decision::Narrower { class_bytes, piece_bytes });
        }
    }

    fn patience(&mut self, class: usize, depot: &Dealt) {
        let collections = (2 * self.plan.patience[class]).min(PATIENCE);
        if depot.late > 0 && collections > self.plan.patience[class] {
            self.plan.patience[class] = collections;
            let class_bytes = class_bytes(class);
            self.decide(Decision::MorePatience { class_bytes, collections, late: depot.late });
        }
    }

    fn very_large(&mut self, depot: &Dealt) {
        self.unused = if depot.hits + depot.late > 0 { 0 } else { self.unused + 1 };
        if !self.plan.keep_own && depot.late >= 2 {
            self.plan.keep_own = true;
            self.plan.patience[OWN] = FORGET;
            self.decide(Decision::KeepVeryLarge { missed: depot.late });
        } else if self.plan.keep_own && !self.first.keep_own && self.unused >= FORGET {
            self.plan.keep_own = false;
            self.decide(Decision::ReleaseVeryLarge { unused: self.unused });
        }
    }

    fn generation(&mut self, tag: Tag, lifetimes: &Lifetimes) {
        const LONG_NS: u64 = 10_000_000_000;
        const SHORT_NS: u64 = 100_000_000;
        let (long, median_ns) = (self.plan.long_lived[tag as usize], lifetimes.median_ns);
        if lifetimes.count < 64 {
            return;
        }
        if !long && median_ns >= LONG_NS {
            self.plan.long_lived[tag as usize] = true;
            self.decide(Decision::LongLived { tag, median_ns });
        } else if long && median_ns <= SHORT_NS {
            self.plan.long_lived[tag as usize] = false;
            self.decide(Decision::ShortLived { tag, median_ns });
        }
    }
}
