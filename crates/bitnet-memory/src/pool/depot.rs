//! Free pieces that lie at no thread's hand: who gets them next, and which go back to the source first.

use super::class::{CLASSES, OWN, Tier, class_bytes};
use super::config::Release;
use super::piece::Free;
use super::plan::Plan;
use crate::source::Source;
use std::collections::VecDeque;
use std::sync::Arc;

/// A very large piece serves a request that leaves at most one part in so many of it.
const SLACK: usize = 8;

/// Pieces that come between two collections of a pool that collects by itself.
const DUE: u64 = 4096;

/// Pieces that went and are remembered, of a class.
const NOTED: usize = 64;

/// Free pieces by class and by when they are to be given back: high, normal, low, deferred. Behind each queue's front are the older ones.
pub(super) struct Depot<S: Source> {
    classes: Box<[[VecDeque<Kept<S>>; 4]; CLASSES]>,
    pub(super) seen: Box<[Dealt; CLASSES]>,
    /// Bytes of all pieces here, as far as they are resident.
    pub(super) bytes: usize,
    /// Bytes of blocks that were cut for a class and not given back.
    pub(super) cut_bytes: Box<[usize; CLASSES]>,
    /// Counts what was brought, for the order of age.
    tick: u64,
    /// What it was at the last collection.
    collected: u64,
    /// Collections so far.
    epoch: u32,
    /// Whether the source's blocks are cut.
    shares_blocks: bool,
    /// Sizes of pieces with blocks of their own that were not kept.
    gone: VecDeque<usize>,
    /// Pieces of a class that were given back for their age.
    aged: Box<[usize; CLASSES]>,
    pub(super) closed: bool,
}

/// A free piece, since when it is, and since which collection.
struct Kept<S: Source> {
    free: Free<S>,
    tick: u64,
    epoch: u32,
}

/// What happened to a class here since the last collection.
#[derive(Clone, Copy, Default)]
pub(super) struct Dealt {
    /// Requests that a piece was found for.
    pub(super) hits: usize,
    /// Requests that only the source could serve.
    pub(super) made: usize,
    /// Of them, those that a piece would have served that was given back not long before.
    pub(super) late: usize,
}

fn queue(release: Release) -> usize {
    match release {
        Release::Immediate | Release::High => 0,
        Release::Normal => 1,
        Release::Low => 2,
        Release::Deferred => 3,
    }
}

impl<S: Source> Depot<S> {
    pub(super) fn new(shares_blocks: bool) -> Self {
        Self {
            classes: Box::new(std::array::from_fn(|_| Default::default())),
            seen: Box::new([Dealt::default(); CLASSES]),
            bytes: 0,
            cut_bytes: Box::new([0; CLASSES]),
            tick: 0,
            collected: 0,
            epoch: 0,
            shares_blocks,
            gone: VecDeque::new(),
            aged: Box::new([0; CLASSES]),
            closed: false,
        }
    }

    /// Whether a block has several pieces of this class.
    pub(super) fn shares_blocks(&self, class: usize) -> bool {
        self.shares_blocks && Tier::of(class).shares_blocks()
    }

    /// Keeps a piece.
    pub(super) fn put(&mut self, free: Free<S>, release: Release) {
        self.tick += 1;
        self.bytes += free.bytes;
        let kept = Kept { tick: self.tick, epoch: self.epoch, free };
        self.classes[kept.free.class as usize][queue(release)].push_back(kept);
    }

    /// The piece of the class that was used last and holds so many bytes; of pieces with blocks of their own, the one that fits best.
    pub(super) fn take(&mut self, class: usize, bytes: usize) -> Option<Free<S>> {
        let most = if class == OWN { bytes.saturating_add(bytes / SLACK) } else { usize::MAX };
        // What would stay longest goes first, so that what is to be given back is left alone.
        for queue in self.classes[class].iter_mut().rev() {
            let fits = |kept: &Kept<S>| (bytes..=most).contains(&kept.free.bytes);
            let at = if class == OWN {
                (0..queue.len()).filter(|at| fits(&queue[*at])).min_by_key(|at| queue[*at].free.bytes)
            } else {
                (0..queue.len()).rev().find(|at| fits(&queue[*at]))
            };
            let Some(mut kept) = at.and_then(|at| queue.remove(at)) else { continue };
            self.bytes -= kept.free.resident();
            kept.free.recall();
            self.seen[class].hits += 1;
            return Some(kept.free);
        }
        None
    }

    /// Notes that the source is asked, and whether a piece that is gone would have done.
    pub(super) fn made(&mut self, class: usize, bytes: usize) {
        self.seen[class].made += 1;
        if class == OWN {
            let fits = |size: &usize| (bytes..=bytes.saturating_add(bytes / SLACK)).contains(size);
            if let Some(at) = self.gone.iter().position(fits) {
                self.gone.remove(at);
                self.seen[OWN].late += 1;
            }
        } else if self.aged[class] > 0 {
            self.aged[class] -= 1;
            self.seen[class].late += 1;
        }
    }

    /// Notes that a piece with a block of its own is not kept.
    fn gone(&mut self, bytes: usize) {
        if self.gone.len() == NOTED {
            self.gone.pop_front();
        }
        self.gone.push_back(bytes);
    }

    /// Whether so much has happened here since the last collection that there is something to learn.
    pub(super) fn is_due(&self) -> bool {
        self.tick - self.collected >= DUE
    }

    /// Takes out what has to go for the depot to hold at most `limit` bytes: high priorities, then normal and low ones, the oldest
    /// first, then blocks that are shared and quite free; and where `all` is to go, deferred ones.
    pub(super) fn shrink(&mut self, limit: usize, all: bool, out: &mut Vec<Free<S>>) {
        for release in 0..if all { 4 } else { 3 } {
            while self.bytes > limit {
                let oldest = (0..CLASSES)
                    .filter(|class| !self.shares_blocks(*class))
                    .filter_map(|class| Some((self.classes[class][release].front()?.tick, class)))
                    .min();
                let Some((_, class)) = oldest else { break };
                let kept = self.classes[class][release].pop_front().expect("a class whose front was seen");
                self.give_up(kept.free, out);
            }
        }
        // Larger pieces first: fewer of them make a block.
        for class in (0..CLASSES).rev() {
            if self.bytes > limit && self.shares_blocks(class) {
                self.whole_blocks(class, |_| true, out);
            }
        }
    }

    /// Takes out what is old: high priorities, and normal and low ones that nobody asked for during more collections than their class has
    /// patience for. Counts a collection.
    pub(super) fn age(&mut self, plan: &Plan, out: &mut Vec<Free<S>>) {
        self.epoch += 1;
        self.collected = self.tick;
        for class in 0..CLASSES {
            let before = out.len();
            self.age_class(class, plan, out);
            if class == OWN {
                out[before..].iter().for_each(|free| self.gone(free.bytes));
            } else {
                self.aged[class] = (self.aged[class] + out.len() - before).min(NOTED);
            }
        }
    }

    fn age_class(&mut self, class: usize, plan: &Plan, out: &mut Vec<Free<S>>) {
        let (epoch, patience) = (self.epoch, plan.patience[class]);
        let cut = if class == OWN { 0 } else { plan.cut[class] };
        let old = |kept: &Kept<S>| epoch - kept.epoch > patience || kept.free.bytes < cut;
        if self.shares_blocks(class) {
            let [high, rest @ ..] = &self.classes[class];
            let is_news = |kept: &Kept<S>| kept.free.discarded == 0 && old(kept);
            if !high.is_empty() || rest.iter().flatten().any(is_news) {
                self.whole_blocks(class, old, out);
            }
            return;
        }
        for release in 0..3 {
            let mut at = 0;
            while let Some(kept) = self.classes[class][release].get(at) {
                if release > 0 && !old(kept) {
                    at += 1;
                } else if let Some(kept) = self.classes[class][release].remove(at) {
                    self.give_up(kept.free, out);
                }
            }
        }
    }

    /// Takes out the pieces of blocks of which all are here, if one of them is of high priority or `old`; of other blocks, gives back
    /// pages of the pieces that are.
    fn whole_blocks(&mut self, class: usize, old: impl Fn(&Kept<S>) -> bool, out: &mut Vec<Free<S>>) {
        // By block: how many of its pieces are here, and whether it may go.
        let mut blocks: Vec<(usize, usize, bool)> = Vec::new();
        let may_go = |release: usize, kept: &Kept<S>| release == 0 || old(kept);
        for (release, queue) in self.classes[class].iter().enumerate() {
            blocks.extend(queue.iter().map(|kept| (address(&kept.free), 1, may_go(release, kept))));
        }
        blocks.sort_unstable_by_key(|(block, ..)| *block);
        blocks.dedup_by(|(b, n, old), (a, sum, any)| {
            let same = a == b;
            if same {
                (*sum, *any) = (*sum + *n, *any | *old);
            }
            same
        });
        for release in 0..4 {
            for _ in 0..self.classes[class][release].len() {
                let mut kept = self.classes[class][release].pop_front().expect("pieces that were counted");
                let at = blocks.binary_search_by_key(&address(&kept.free), |(block, ..)| *block);
                let (_, here, block_may_go) = blocks[at.expect("a block that was noted")];
                if block_may_go && here == kept.free.chunk.pieces {
                    self.give_up(kept.free, out);
                    continue;
                }
                if may_go(release, &kept) && kept.free.discarded == 0 {
                    kept.free.discard();
                    self.bytes -= kept.free.discarded as usize;
                    // What has no whole page is looked at again when it has waited as long once more.
                    kept.epoch = self.epoch;
                }
                self.classes[class][release].push_back(kept);
            }
        }
    }

    /// Takes out a piece that never came here.
    pub(super) fn dismiss(&mut self, free: Free<S>, out: &mut Vec<Free<S>>) {
        if free.class as usize == OWN {
            self.gone(free.bytes);
        }
        self.bytes += free.bytes;
        self.give_up(free, out);
    }

    fn give_up(&mut self, free: Free<S>, out: &mut Vec<Free<S>>) {
        let class = free.class as usize;
        self.bytes -= free.resident();
        self.cut_bytes[class] = self.cut_bytes[class].saturating_sub(free.bytes);
        out.push(free);
    }

    /// All pieces, out of here.
    pub(super) fn empty(&mut self, out: &mut Vec<Free<S>>) {
        for queue in self.classes.iter_mut().flatten() {
            out.extend(queue.drain(..).map(|kept| kept.free));
        }
        self.bytes = 0;
    }
}

fn address<S: Source>(free: &Free<S>) -> usize {
    Arc::as_ptr(&free.chunk) as usize
}

/// What profiles and the learner may make of a class at most.
pub(super) fn deepest(class: usize, at_hand_bytes: usize) -> usize {
    (at_hand_bytes / 4 / class_bytes(class)).min(256)
}
