//! How a pool keeps what, class by class: what profiles say and what the learner changes.

use super::class::{CLASSES, OWN, Tier, class_bytes};
use super::config::{Config, Profile};
use crate::tag::Tag;

/// From so many bytes on, what lives long has a block of its own.
pub(super) const OWN_FROM: usize = 64 << 10;

/// How free pieces are kept.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Plan {
    /// Pieces at hand of a thread.
    pub(super) depth: [usize; CLASSES],
    /// Bytes that new pieces have.
    pub(super) cut: [usize; CLASSES],
    /// Collections that a free piece outlives although nobody asks for it.
    pub(super) patience: [u32; CLASSES],
    /// Whether pieces of their own blocks are kept.
    pub(super) keep_own: bool,
    /// Tags whose memory lives long: from 64 KiB on it has blocks of its own, of just the size, which nothing else holds on to.
    pub(super) long_lived: [bool; Tag::ALL.len()],
}

impl Plan {
    pub(super) fn new(config: &Config) -> Self {
        let depth = |class| {
            let depth = match Tier::of(class) {
                Tier::VerySmall => 64,
                Tier::Small => 16,
                Tier::Medium => 8,
                Tier::Large => 2,
                Tier::VeryLarge => 0,
            };
            depth.min(config.at_hand_bytes / class_bytes(class))
        };
        Self {
            depth: std::array::from_fn(depth),
            cut: std::array::from_fn(class_bytes),
            patience: [2; CLASSES],
            keep_own: config.keep_very_large,
            long_lived: Tag::ALL.map(|tag| matches!(tag, Tag::Weights | Tag::Kv | Tag::Optimizer)),
        }
    }

    /// The bytes that a new piece gets for a request, and of how many bytes of pieces its block would best be where the class
    /// already holds `held`: as many again, so that little use takes little and much use is seldom a matter for the source.
    pub(super) fn chunk(&self, class: usize, bytes: usize, held: usize, granule: usize) -> (usize, usize) {
        if class == OWN {
            let piece = bytes.max(1).checked_next_multiple_of(granule).unwrap_or(usize::MAX);
            return (piece, piece);
        }
        let piece = self.cut[class];
        if !Tier::of(class).shares_blocks() {
            return (piece, piece);
        }
        let most = match Tier::of(class) {
            Tier::VerySmall => 64 << 10,
            Tier::Small => 1 << 20,
            _ => 2 << 20,
        };
        (piece, held.clamp(64 << 10, most).max(piece))
    }
}

impl Default for Plan {
    fn default() -> Self {
        Self::new(&Profile::default().into())
    }
}
