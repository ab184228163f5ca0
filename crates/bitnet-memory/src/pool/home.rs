//! Where pieces come from and go back to: at hand of the thread, else from the depot, else from the source.

use super::class::{CLASSES, OWN, class_of};
use super::config::{Config, Release};
use super::depot::Depot;
use super::learn::{LearnedClass, Learner};
use super::local::Local;
use super::piece::{Chunk, Cut, Free};
use super::plan::Plan;
use super::slots::{Slot, Slots};
use super::thread;
use crate::graph::Graph;
use crate::source::{Block, Source};
use crate::tag::Tag;
use crate::track::{Gauges, Live};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// All that pieces of a pool have in common. Whoever holds a slot may lock the depot, and nobody the other way round; of several, the
/// learner is locked first.
pub(super) struct Home<S: Source> {
    /// Of no other home, then or now.
    identity: u64,
    pub(super) source: S,
    pub(super) config: Config,
    pub(super) slots: Slots<Local<S>>,
    pub(super) depot: Mutex<Depot<S>>,
    pub(super) learner: Mutex<Learner>,
    pub(super) gauges: Arc<Gauges>,
    pub(super) live: Live,
    pub(super) graph: Graph,
}

impl<S: Source> Home<S> {
    pub(super) fn new(source: S, config: Config) -> Arc<Self> {
        let gauges = Arc::new(Gauges::new());
        let depot = Mutex::new(Depot::new(source.shares_blocks()));
        let plan = Plan::new(&config);
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let local = || Local::new(&plan, config.at_hand_bytes, config.tracking, config.learn, &gauges);
        // Twice as many slots as threads can run: whoever comes often has one of its own. The others share some.
        let owned = (2 * threads).clamp(4, 128);
        let slots = Slots::new(owned, owned / 4, local);
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Arc::new(Self {
            identity: NEXT.fetch_add(1, Relaxed),
            source,
            config,
            slots,
            depot,
            learner: Mutex::new(Learner::new(plan)),
            gauges,
            live: Live::default(),
            graph: Graph::default(),
        })
    }

    pub(super) fn depot(&self) -> MutexGuard<'_, Depot<S>> {
        self.depot.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn learner(&self) -> MutexGuard<'_, Learner> {
        self.learner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets `f` use what lies at this thread's hand.
    fn at_hand<R>(&self, mut f: impl FnMut(&mut Local<S>) -> R) -> R {
        let own = thread::find(self.identity, |number| self.slots.of(number).map(|slot| &raw const *slot));
        // SAFETY: the borrow keeps the slots; the slot is this thread's, since its number is.
        let done = own.and_then(|own| unsafe { Slots::enter_own(own, &mut f) });
        // SAFETY: the borrow keeps the slots.
        done.unwrap_or_else(|| unsafe { Slots::enter_shared(&self.slots, f) })
    }

    /// A piece of at least so many bytes; `None` when the source has nothing left.
    #[inline]
    pub(super) fn take(self: &Arc<Self>, bytes: usize, tag: Tag) -> Option<Free<S>> {
        let class = class_of(bytes);
        if let Some(own) = thread::known::<Slot<Local<S>>>(self.identity) {
            let take = |local: &mut Local<S>| local.take(class, bytes, tag);
            // SAFETY: the borrow keeps the slots; the slot is this thread's, since its number is.
            if let Some(Some(free)) = unsafe { Slots::enter_own(own, take) } {
                return Some(free);
            }
        }
        self.take_elsewhere(class, bytes, tag)
    }

    #[cold]
    #[inline(never)]
    fn take_elsewhere(self: &Arc<Self>, class: usize, bytes: usize, tag: Tag) -> Option<Free<S>> {
        let found = self.at_hand(|local| {
            if let Some(free) = local.take(class, bytes, tag) {
                return Ok(free);
            }
            let class = if local.is_own(bytes, tag) { OWN } else { class };
            let mut depot = self.depot();
            let Some(mut free) = depot.take(class, bytes) else {
                depot.made(class, bytes);
                return Err(class);
            };
            for _ in 1..local.refill(class) {
                let Some(more) = depot.take(class, bytes) else { break };
                if let Err(more) = local.stock(more) {
                    depot.put(more, Release::Normal);
                    break;
                }
            }
            local.begin(&mut free, bytes, tag);
            Ok(free)
        });
        if self.config.learn && self.depot().is_due() {
            self.collect();
        }
        match found {
            Ok(free) => Some(free),
            Err(class) => {
                let mut free = self.make(class, bytes)?;
                self.at_hand(|local| local.begin_made(&mut free, bytes, tag));
                Some(free)
            }
        }
    }

    /// A piece of a new block, whose other pieces are left in the depot.
    fn make(self: &Arc<Self>, class: usize, bytes: usize) -> Option<Free<S>> {
        let held = self.depot().cut_bytes[class];
        let (piece, wanted) = {
            let mut learner = self.learner();
            let chunk = self.chunk(&mut learner, class, bytes, held);
            if learner.has_changed() {
                self.follow(&learner, Some(class));
            }
            chunk
        };
        let block = self.ask(wanted).or_else(|| {
            // Before anything is refused, all that lies free goes back; and the smallest block does.
            self.trim(0);
            self.ask(piece)
        })?;
        Some(self.cut(block, class, piece))
    }

    /// The bytes of a new piece and of its block: see [`Plan::chunk`].
    fn chunk(&self, learner: &mut Learner, class: usize, bytes: usize, held: usize) -> (usize, usize) {
        let (piece, block) = learner.chunk(class, bytes, held, self.source.granule());
        let piece = piece.checked_next_multiple_of(self.source.align()).unwrap_or(usize::MAX);
        (piece, if self.source.shares_blocks() { block.max(piece) } else { piece })
    }

    /// Has as many pieces of a class ready as there once were, if the budget allows it.
    pub(super) fn prewarm(self: &Arc<Self>, wanted: &LearnedClass) -> Option<usize> {
        let class = class_of(wanted.piece_bytes);
        if class == OWN {
            return Some(0);
        }
        let mut bytes = 0;
        loop {
            let (there, free) = {
                let depot = self.depot();
                (depot.cut_bytes[class], depot.bytes)
            };
            let missing = wanted.pieces.saturating_mul(wanted.piece_bytes).saturating_sub(there);
            if missing == 0 || free.saturating_add(missing) > self.config.keep_bytes {
                return Some(bytes);
            }
            let (piece, chunk) = self.chunk(&mut self.learner(), class, wanted.piece_bytes, missing);
            let mut block = self.ask(chunk)?;
            block.populate();
            bytes += block.len_bytes();
            let free = self.cut(block, class, piece);
            self.depot().put(free, Release::Normal);
        }
    }

    /// Cuts a block into pieces of a class, and leaves all but one in the depot.
    fn cut(self: &Arc<Self>, block: S::Block, class: usize, piece: usize) -> Free<S> {
        let pieces = if self.source.shares_blocks() { block.len_bytes() / piece } else { 1 };
        let chunk = Arc::new(Chunk { block, pieces, gauges: Arc::clone(&self.gauges) });
        let free = |index: usize| {
            Box::new(Cut {
                below: None,
                home: Arc::clone(self),
                chunk: Arc::clone(&chunk),
                bytes: piece,
                asked: 0,
                since: 0,
                index: index as u32,
                discarded: 0,
                class: class as u8,
                tag: Tag::Other,
                release: Release::Normal,
                is_special: false,
                is_fresh: true,
            })
        };
        if class != OWN {
            let mut depot = self.depot();
            depot.cut_bytes[class] += pieces * piece;
            (1..pieces).rev().for_each(|index| depot.put(free(index), Release::Normal));
        }
        free(0)
    }

    /// Tells threads of a new plan, and calls in what lies at their hands of a class.
    fn follow(&self, learner: &Learner, class: Option<usize>) {
        self.slots.each(|local| {
            local.follow(learner.plan());
            if let Some(class) = class {
                let mut depot = self.depot();
                local.drain(class, usize::MAX).for_each(|free| depot.put(free, Release::Normal));
            }
        });
    }

    /// A block of the source's.
    fn ask(&self, bytes: usize) -> Option<S::Block> {
        self.gauges.requests.fetch_add(1, Relaxed);
        match self.source.allocate(bytes) {
            Some(block) => {
                self.gauges.gain(block.len_bytes());
                Some(block)
            }
            None => {
                self.gauges.failures.fetch_add(1, Relaxed);
                None
            }
        }
    }

    /// Takes a piece back.
    #[inline]
    pub(super) fn put(free: Free<S>) {
        let own = thread::known::<Slot<Local<S>>>(free.home.identity);
        let mut left = Some(free);
        if let Some(own) = own {
            let put = |local: &mut Local<S>| left = left.take().and_then(|free| local.put(free));
            // SAFETY: the slot is this thread's, since its number is. The piece keeps its home until it lies on a shelf. From then on the home
            // exists as long as the piece does, and who takes that off the shelf enters this slot or visits each of them.
            unsafe { Slots::enter_own(own, put) };
        }
        if let Some(free) = left {
            Self::put_elsewhere(free);
        }
    }

    #[cold]
    #[inline(never)]
    fn put_elsewhere(free: Free<S>) {
        let home = Arc::clone(&free.home);
        let class = free.class as usize;
        let mut out = Vec::new();
        let mut left = Some(free);
        home.at_hand(|local| {
            let Some(mut free) = left.take() else { return };
            local.end(&mut free);
            let Err(mut free) = local.stock(free) else { return };
            local.spill(class);
            let release = std::mem::take(&mut free.release);
            let mut depot = home.depot();
            let shares = depot.shares_blocks(class);
            let kept = class != OWN || local.keep_own || release >= Release::Low;
            if depot.closed || !kept || (release == Release::Immediate && !shares) {
                depot.dismiss(free, &mut out);
                return;
            }
            depot.put(free, release);
            // A few at once, so that the next ones find room; of large ones there are only a few.
            let surplus = if shares { local.pieces(class) / 2 } else { 0 };
            local.drain(class, surplus).for_each(|free| depot.put(free, Release::Normal));
            if depot.bytes > home.config.keep_bytes {
                depot.shrink(home.config.keep_bytes / 8 * 7, false, &mut out);
            }
        });
        drop(out);
    }

    /// Brings all that lies free at threads' hands into the depot.
    fn call_in(&self) {
        self.slots.each(|local| {
            let mut depot = self.depot();
            for class in 0..CLASSES {
                local.drain(class, usize::MAX).for_each(|free| depot.put(free, Release::Normal));
            }
        });
    }

    /// Gives free memory back until at most so many bytes of it are left, where whole blocks are free.
    pub(super) fn trim(&self, keep_bytes: usize) -> usize {
        self.call_in();
        let held = self.gauges.held.load(Relaxed);
        let mut out = Vec::new();
        self.depot().shrink(keep_bytes, true, &mut out);
        drop(out);
        held.saturating_sub(self.gauges.held.load(Relaxed))
    }

    /// Looks around: what was not used for some time goes back to the source, and the learner sees what happened.
    pub(super) fn collect(&self) -> usize {
        let held = self.gauges.held.load(Relaxed);
        let mut learner = self.learner();
        let mut seen = learner.begin();
        self.slots.each(|local| {
            let mut depot = self.depot();
            for class in 0..CLASSES {
                let of_slot = local.ask(class);
                seen.of_slot(class, of_slot);
                local.drain(class, of_slot.idle).for_each(|free| depot.put(free, Release::Normal));
            }
            seen.lifetimes(&local.counts);
        });
        let mut out = Vec::new();
        {
            let mut depot = self.depot();
            seen.of_depot(&mut depot);
            if self.config.learn {
                learner.learn(&seen, self.config.at_hand_bytes);
            }
            depot.age(learner.plan(), &mut out);
        }
        if learner.has_changed() {
            self.follow(&learner, None);
        }
        drop(learner);
        drop(out);
        held.saturating_sub(self.gauges.held.load(Relaxed))
    }

    /// Ends the pool. Pieces in use go to the source as they are dropped.
    pub(super) fn close(&self) {
        let mut out = Vec::new();
        self.slots.each(|local| {
            local.close();
            let mut depot = self.depot();
            for class in 0..CLASSES {
                local.drain(class, usize::MAX).for_each(|free| depot.put(free, Release::Normal));
            }
        });
        {
            let mut depot = self.depot();
            depot.closed = true;
            depot.empty(&mut out);
        }
        drop(out);
    }
}
