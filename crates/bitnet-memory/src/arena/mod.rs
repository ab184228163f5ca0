//! Relocatable blocks of one large region, whose holes can be made one.
//!
//! A block is known by its handle, which says where the bytes are only for as long as it is asked ([`Relocatable::read`],
//! [`Relocatable::write`]) or is [pinned](Relocatable::pin). At any other time [`Arena::maintain`] may move them.
//!
//! ```
//! use bitnet_memory::{Arena, ArenaOptions, Budget, Defragmenter, Pages, Tag};
//!
//! let options = ArenaOptions { defragmenter: Defragmenter::Sliding, ..ArenaOptions::default() };
//! let arena = Arena::new(&Pages::default(), 1 << 20, Tag::Kv, options)?;
//! let (low, mut high) = (arena.allocate(1 << 18)?, arena.allocate(1 << 18)?);
//! high.write().fill(7);
//! drop(low);
//! assert!(arena.allocate(700_000).is_err(), "two holes");
//! arena.maintain(Budget::UNLIMITED);
//! assert!(arena.allocate(700_000).is_ok() && high.read().iter().all(|b| *b == 7));
//! # Ok::<(), bitnet_memory::ArenaError>(())
//! ```

mod defragment;
mod error;
mod handle;
mod metrics;
mod placement;
mod region;
mod space;
#[cfg(test)]
mod tests;

pub use defragment::Defragmenter;
pub use error::ArenaError;
pub use handle::{Pinned, Read, Relocatable, Write};
pub use metrics::Fragmentation;
pub use placement::Placement;

use crate::{HostBlock, OutOfMemory, PagesBlock, Source, Tag};
use defragment::{Pass, Room, Step};
use metrics::Trend;
use placement::Placer;
use region::Region;
use space::{GRAIN, Move, Space};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How an arena goes about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ArenaOptions {
    /// How a hole is chosen for a block.
    pub placement: Placement,
    /// What [`Arena::maintain`] moves.
    pub defragmenter: Defragmenter,
}

impl Default for ArenaOptions {
    fn default() -> Self {
        Self { placement: Placement::BestFit, defragmenter: Defragmenter::Automatic }
    }
}

/// How much one [`Arena::maintain`] may do. A block larger than all of it stays where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Time, kept to by how long copies took before: no more is copied than took as long then. Whoever asks for a block or its bytes meanwhile
    /// waits as long. A first write to memory of the system takes longer than that: see [`Resident`](crate::Resident).
    pub time: Duration,
    /// Bytes to copy; a place that is looked at counts as 64. With a limit here and none on time, the same arena moves the same
    /// blocks each time.
    pub bytes: usize,
}

impl Budget {
    /// To the end.
    pub const UNLIMITED: Self = Self { time: Duration::MAX, bytes: usize::MAX };

    /// So many bytes, however long it takes.
    pub fn of_bytes(bytes: usize) -> Self {
        Self { bytes, ..Self::UNLIMITED }
    }

    /// So much time.
    pub fn of_time(time: Duration) -> Self {
        Self { time, ..Self::UNLIMITED }
    }
}

/// Half a millisecond.
impl Default for Budget {
    fn default() -> Self {
        Self::of_time(Duration::from_micros(500))
    }
}

/// What a [`Arena::maintain`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Maintenance {
    /// What moved blocks; never [`Defragmenter::Automatic`].
    pub defragmenter: Defragmenter,
    /// Blocks that moved.
    pub moved_blocks: usize,
    /// Their bytes.
    pub moved_bytes: usize,
    /// Whether it came to the end of the region: more budget would do nothing more now.
    pub through: bool,
}

/// A region of memory and what lies where in it. Clones are the same arena; it lives as long as any of its blocks.
pub struct Arena<B: HostBlock = PagesBlock>(Arc<Shared<B>>);

impl<B: HostBlock> Clone for Arena<B> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

struct Shared<B: HostBlock> {
    region: Region<B>,
    state: Mutex<State>,
}

struct State {
    space: Space,
    placer: Placer,
    trend: Trend,
    defragmenter: Defragmenter,
    pass: Option<Pass>,
    /// Whether blocks were placed or removed since the pass began.
    changed: bool,
    /// Whether the last pass made no larger hole and the next one would not either.
    settled: bool,
    /// Whether that is so because of pinned blocks.
    by_pins: bool,
    /// Bytes that a copy moves in a microsecond.
    speed: usize,
    /// Bytes that the last pass moved, none if no hole is larger for it; more than any if it slid.
    gain_bytes: usize,
}

impl<B: HostBlock> Shared<B> {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Bytes that any machine copies in a microsecond: a copy that was interrupted may say less, and would end all copies.
const SLOWEST: usize = 500;

/// Bytes of the largest arena.
const MOST_BYTES: usize = (u32::MAX as usize - 1).saturating_mul(GRAIN);

impl<B: HostBlock> Arena<B> {
    /// An arena of at least `bytes` bytes, which `source` gives at once.
    ///
    /// # Errors
    /// The source has not so much, or it is beyond 256 GiB.
    pub fn new<S>(source: &S, bytes: usize, tag: Tag, options: ArenaOptions) -> Result<Self, ArenaError>
    where
        S: Source<Block = B>,
    {
        if bytes > MOST_BYTES {
            return Err(ArenaError::Region { asked_bytes: bytes, most_bytes: MOST_BYTES });
        }
        let region = Region::new(source.allocate(bytes).ok_or(OutOfMemory { bytes, tag })?);
        let grains = (region.len_bytes() / GRAIN).min(MOST_BYTES / GRAIN) as u32;
        let placer = Placer::new(options.placement, options.defragmenter != Defragmenter::Off);
        let state = State {
            space: Space::new(grains, placer.order()),
            placer,
            trend: Trend::default(),
            defragmenter: options.defragmenter,
            pass: None,
            changed: false,
            settled: false,
            by_pins: false,
            speed: 2000,
            gain_bytes: usize::MAX,
        };
        Ok(Self(Arc::new(Shared { region, state: Mutex::new(state) })))
    }

    /// A block of `len` bytes, 64-byte aligned whenever it has an address. They hold what was last written there. Nothing is moved for it.
    ///
    /// # Errors
    /// No hole has room; [`ArenaError::Fragmented`] where maintenance would make one that does.
    pub fn allocate(&self, len: usize) -> Result<Relocatable<B>, ArenaError> {
        let state = &mut *self.0.state();
        let block = state.allocate(len)?;
        Ok(Relocatable::new(self.clone(), block, len))
    }

    /// Moves blocks so that holes become one, as far as the budget goes; the next call goes on from there. Pinned blocks stay.
    ///
    /// It is for between two steps of whatever runs: everybody else who comes to the arena waits.
    ///
    /// [`Defragmenter::Automatic`] begins when a 16th of what is free is not in the largest hole, and ends at a 32nd. It is generational
    /// as long as that moves a 16th of what is scattered in a pass, since that copies least, and slides in between.
    pub fn maintain(&self, budget: Budget) -> Maintenance {
        let mut state = self.0.state();
        state.maintain(budget, |step| {
            // SAFETY: the state is locked, so no block is placed or pinned meanwhile, and handles come to bytes of blocks that are
            // pinned only; the space has just made the new place this block's, which was not pinned.
            unsafe { self.0.region.copy(step) }
        })
    }

    /// How broken up it is.
    pub fn fragmentation(&self) -> Fragmentation {
        let state = self.0.state();
        Fragmentation::of(&state.space, state.trend.get())
    }

    /// How blocks are placed now: what [`Placement::Adaptive`] has come to.
    pub fn placement(&self) -> Placement {
        self.0.state().placer.now()
    }
}

impl State {
    fn allocate(&mut self, len: usize) -> Result<u32, ArenaError> {
        let full = |space: &Space| {
            let bytes = |grains: u32| grains as usize * GRAIN;
            let (free_bytes, need_bytes) = (bytes(space.free()), len);
            if need_bytes <= free_bytes {
                ArenaError::Fragmented { need_bytes, free_bytes, largest_bytes: bytes(space.largest()) }
            } else {
                ArenaError::Full { need_bytes, free_bytes, capacity_bytes: bytes(space.grains()) }
            }
        };
        let grains = u32::try_from(len.div_ceil(GRAIN).max(1)).map_err(|_| full(&self.space))?;
        let chosen = self.placer.choose(&mut self.space, grains);
        let (hole, grains, end) = chosen.ok_or_else(|| full(&self.space))?;
        let block = self.space.place(hole, grains, end, len);
        (self.changed, self.settled) = (true, false);
        self.trend.placed(&self.space);
        Ok(block)
    }

    fn remove(&mut self, block: u32) {
        self.space.remove(block);
        (self.changed, self.settled) = (true, false);
    }

    /// Pins a block and tells where it is.
    fn pin(&mut self, block: u32) -> usize {
        let block = self.space.block_mut(block);
        // One that is pinned too often to count, as by borrows that are forgotten, stays for good.
        block.pins = block.pins.saturating_add(1);
        let segment = block.segment;
        self.space.segment(segment).start_bytes()
    }

    fn unpin(&mut self, block: u32) {
        let block = self.space.block_mut(block);
        if block.pins < u32::MAX {
            block.pins -= 1;
        }
        self.settled &= !self.by_pins;
    }

    fn maintain(&mut self, budget: Budget, mut copy: impl FnMut(Move)) -> Maintenance {
        let begin = Instant::now();
        let mut done =
            Maintenance { defragmenter: Defragmenter::Off, moved_blocks: 0, moved_bytes: 0, through: true };
        if self.settled || self.space.hole_count() == 0 {
            return done;
        }
        let mut pass = match self.pass.take() {
            Some(pass) => pass,
            None => match self.way() {
                Defragmenter::Off => return done,
                way => {
                    self.changed = false;
                    Pass::new(way, &mut self.space)
                }
            },
        };
        done.defragmenter = pass.way();
        let speed = self.speed;
        let bytes_in =
            |time: Duration| usize::try_from(time.as_micros()).unwrap_or(usize::MAX).saturating_mul(speed);
        let (whole, mut spent) = (bytes_in(budget.time).min(budget.bytes), 0usize);
        while spent < whole {
            let left = budget.time.saturating_sub(begin.elapsed());
            if left.is_zero() {
                break;
            }
            let room = Room { whole, left: bytes_in(left).min(whole - spent) };
            match pass.step(&mut self.space, room) {
                Step::Short => break,
                Step::Through => {
                    let in_vain = self.space.largest() <= pass.largest_before;
                    // Where there is a choice, sliding has the last word.
                    let last = self.defragmenter == pass.way() || pass.way() == Defragmenter::Sliding;
                    self.settled = in_vain && last && !self.changed && !pass.met_large;
                    self.by_pins = pass.met_pinned;
                    self.gain_bytes = match pass.way() {
                        Defragmenter::Sliding => usize::MAX,
                        _ if in_vain => 0,
                        _ => pass.moved_bytes,
                    };
                    return done;
                }
                Step::Looked => spent += GRAIN,
                Step::Moved(step) => {
                    self.timed(step, &mut copy);
                    done.moved_blocks += 1;
                    done.moved_bytes += step.len;
                    spent += step.len.max(GRAIN);
                    let enough = self.scattered_bytes() < self.free_bytes() / 32;
                    if self.defragmenter == Defragmenter::Automatic && enough {
                        return done;
                    }
                }
            }
        }
        done.through = false;
        self.pass = Some(pass);
        done
    }

    /// Copies, and learns how fast that is.
    fn timed(&mut self, step: Move, copy: &mut impl FnMut(Move)) {
        if step.len < 64 * 1024 {
            return copy(step);
        }
        let begin = Instant::now();
        copy(step);
        let micros = begin.elapsed().as_micros().max(1);
        let speed = step.len / usize::try_from(micros).unwrap_or(usize::MAX);
        // It falls faster than it rises, because what takes too long is worse than what is left for the next time.
        let weight = if speed < self.speed { 2 } else { 16 };
        self.speed = (((weight - 1) * self.speed + speed) / weight).max(SLOWEST);
    }

    /// Bytes of holes other than the largest.
    fn scattered_bytes(&self) -> usize {
        (self.space.free() - self.space.largest()) as usize * GRAIN
    }

    /// What the next pass is to be.
    fn way(&self) -> Defragmenter {
        if self.defragmenter != Defragmenter::Automatic {
            return self.defragmenter;
        }
        if self.scattered_bytes() < self.free_bytes() / 16 {
            Defragmenter::Off
        } else if self.gain_bytes >= self.scattered_bytes() / 16 {
            Defragmenter::Generational
        } else {
            Defragmenter::Sliding
        }
    }

    fn free_bytes(&self) -> usize {
        self.space.free() as usize * GRAIN
    }
}
