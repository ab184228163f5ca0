//! What a pool is told.

use crate::track::Tracking;
use serde::{Deserialize, Serialize};

/// What the memory is for; gives every other choice its default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Profile {
    /// A model that answers: little is kept, very large memory goes back at once.
    Inference,
    /// A model that learns: what a step takes, the next one takes again, so everything is kept.
    Training,
    /// Between the two.
    Balanced,
    /// Begins as [`Balanced`](Self::Balanced) and learns from what is asked for.
    #[default]
    Adaptive,
}

/// What a pool does. [`Profile`]s give values to all of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// Free bytes that are kept for whoever asks next, beside those at hand of threads. Above it, what was used least recently goes
    /// back to the source until an eighth of the budget is free again. 64 MiB in inference, 4 GiB in training, else 512 MiB.
    pub keep_bytes: usize,
    /// Free bytes that lie at hand of one thread at most. 16 MiB in inference, else 64 MiB.
    pub at_hand_bytes: usize,
    /// Whether very large memory is kept under the budget, too. In training; an adaptive pool finds out.
    pub keep_very_large: bool,
    /// Whether what is asked for changes how it is kept (see [`Decision`](crate::Decision)). In adaptive pools.
    pub learn: bool,
    /// What is counted. [`Tracking::Standard`] by default.
    pub tracking: Tracking,
}

impl Profile {
    /// As the command line and configuration files name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Inference => "inference",
            Self::Training => "training",
            Self::Balanced => "balanced",
            Self::Adaptive => "adaptive",
        }
    }
}

impl From<Profile> for Config {
    fn from(profile: Profile) -> Self {
        let (keep, at_hand) = match profile {
            Profile::Inference => (64 << 20, 16 << 20),
            Profile::Training => (4 << 30, 64 << 20),
            Profile::Balanced | Profile::Adaptive => (512 << 20, 64 << 20),
        };
        Self {
            keep_bytes: keep,
            at_hand_bytes: at_hand,
            keep_very_large: profile == Profile::Training,
            learn: profile == Profile::Adaptive,
            tracking: Tracking::Standard,
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Profile::default().into()
    }
}

/// When memory that was dropped goes back to the source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Release {
    /// As it is dropped; where a block has several pieces, with the next batch after the last of them.
    Immediate,
    /// With the next batch, be there room or not.
    High,
    /// When the budget is used up, least recently used first.
    #[default]
    Normal,
    /// When the budget is used up, after all that is normal.
    Low,
    /// Only when asked for ([`Pool::trim`](crate::Pool::trim)) or when the source has nothing left.
    Deferred,
}
