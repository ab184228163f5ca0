//! The pool: memory that is asked for often, from a source that is asked seldom.
//!
//! - [`class`]: sizes are rounded up to classes, and classes belong to [`Tier`]s with a strategy each.
//! - [`slots`], [`local`]: free pieces at each thread's hand, which others come to only by asking all processors ([`fence`]).
//! - [`depot`]: free pieces of all threads, under a lock; what goes back to the source first.
//! - [`plan`], [`learn`]: how much of what is kept where, and what changes that.
//! - [`home`]: the way of a piece through all of them.

pub(crate) mod class;
mod config;
mod depot;
mod device;
mod fence;
mod home;
mod learn;
mod local;
#[cfg(test)]
mod model;
mod piece;
mod plan;
mod slots;
mod stack;
mod sync;
#[cfg(test)]
mod tests;
mod thread;

pub use class::Tier;
pub use config::{Config, Profile, Release};
pub use device::{DevicePool, DeviceSource};
pub use learn::{Decision, Learned, LearnedClass};
pub use piece::Piece;

use crate::error::OutOfMemory;
use crate::graph::Graph;
use crate::source::{Host, HostBlock, Source};
use crate::tag::Tag;
use crate::track::{LIFETIMES, LivePiece, Snapshot, Tracking};
use home::Home;
use std::fmt;
use std::sync::Arc;

/// Memory of a source, kept for whoever asks next. Any thread may ask, and drop what another got.
///
/// ```
/// use bitnet_memory::{Pool, Profile, Tag};
/// let pool = Pool::new(Profile::Adaptive);
/// let mut x = pool.zeroed::<f32>(4096, Tag::Activations)?;
/// x[7] = 0.5;
/// drop(x); // Whoever asks for as much next gets this again.
/// assert_eq!(pool.snapshot().tags[0].taken, 1);
/// # Ok::<(), bitnet_memory::OutOfMemory>(())
/// ```
pub struct Pool<S: Source = Host> {
    home: Arc<Home<S>>,
}

impl Pool {
    /// A pool of this machine's pages.
    pub fn new(profile: Profile) -> Self {
        Self::with(Host::default(), profile.into())
    }

    /// A pool of the host memory that `source` gives.
    pub fn on_host(source: impl Source<Block: HostBlock>, config: Config) -> Self {
        Self::with(Host::new(source), config)
    }
}

impl<S: Source> Pool<S> {
    /// A pool of what `source` gives.
    pub fn with(source: S, config: Config) -> Self {
        Self { home: Home::new(source, config) }
    }

    /// Where the memory comes from.
    pub fn source(&self) -> &S {
        &self.home.source
    }

    /// What the pool was told.
    pub fn config(&self) -> &Config {
        &self.home.config
    }

    /// At least `bytes` bytes. Contents are what was there before.
    ///
    /// When the source has nothing left, all free memory of the pool is given back and the source asked once more.
    #[inline]
    pub fn piece(&self, bytes: usize, tag: Tag) -> Result<Piece<S>, OutOfMemory> {
        self.home.take(bytes, tag).map(Piece::new).ok_or(OutOfMemory { bytes, tag })
    }

    /// Gives back what nobody asked for during the last collections, in one batch, and lets the pool learn from what happened. To be
    /// called where there is time: between requests, after a step of training. An adaptive pool also does it by itself, seldom, when it
    /// asks the source. Gives the bytes that went back.
    pub fn collect(&self) -> usize {
        self.home.collect()
    }

    /// Gives free memory back, whatever its priority, until at most `keep_bytes` of it are left. Blocks of which somebody has a piece
    /// stay. Gives the bytes that went back.
    pub fn trim(&self, keep_bytes: usize) -> usize {
        self.home.trim(keep_bytes)
    }

    /// What was counted.
    pub fn snapshot(&self) -> Snapshot {
        let (mut lifetimes, mut free) = ([[0; LIFETIMES]; Tag::ALL.len()], 0);
        self.home.slots.each(|local| {
            free += local.bytes();
            local.tell();
            local.counts.tell(&mut lifetimes);
        });
        free += self.home.depot().bytes;
        Snapshot::new(&self.home.gauges, &lifetimes, free)
    }

    /// Pieces in use, the oldest first; at [`Tracking::Debug`], else none.
    pub fn live(&self) -> Vec<LivePiece> {
        self.home.live.list()
    }

    /// The last decisions of the learner, the newest last.
    pub fn decisions(&self) -> Vec<Decision> {
        self.home.learner().decisions()
    }

    /// What this pool needed, to be ready for it next time. What was there at collections counts.
    pub fn learned(&self) -> Learned {
        self.home.learner().learned()
    }

    /// Asks the source for what was learned, as far as it is not there, and writes to it, so that it is resident. Stops where the
    /// budget for free memory is used up. Gives the bytes that were taken.
    pub fn prewarm(&self, learned: &Learned) -> Result<usize, OutOfMemory> {
        let mut bytes = 0;
        for class in &learned.classes {
            match self.home.prewarm(class) {
                Some(more) => bytes += more,
                None => return Err(OutOfMemory { bytes: class.piece_bytes, tag: Tag::Other }),
            }
        }
        Ok(bytes)
    }

    /// Where nodes that share buffers can be registered, to find those that hold each other; at [`Tracking::Debug`], else `None`.
    pub fn graph(&self) -> Option<&Graph> {
        self.is_debug().then_some(&self.home.graph)
    }

    pub(crate) fn is_debug(&self) -> bool {
        self.config().tracking == Tracking::Debug
    }
}

impl<S: Source> Drop for Pool<S> {
    fn drop(&mut self) {
        self.home.close();
    }
}

impl<S: Source> fmt::Debug for Pool<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("config", self.config()).finish_non_exhaustive()
    }
}
