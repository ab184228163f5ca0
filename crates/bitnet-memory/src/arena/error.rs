//! Why an arena gives no block.

use crate::OutOfMemory;

/// Why there is no arena, or no block of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ArenaError {
    /// The source has not so much.
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
    /// Places are counted in 32 bits.
    #[error("an arena of {asked_bytes} bytes was asked for; one has {most_bytes} at most")]
    Region {
        /// What was asked for.
        asked_bytes: usize,
        /// What can be had.
        most_bytes: usize,
    },
    /// Less is free than is needed.
    #[error(
        "the arena has {free_bytes} of {capacity_bytes} bytes left, and {need_bytes} are needed; free some blocks"
    )]
    Full {
        /// What is needed.
        need_bytes: usize,
        /// What is free.
        free_bytes: usize,
        /// All of it.
        capacity_bytes: usize,
    },
    /// Enough is free, in holes that are too small.
    #[error(
        "the arena has {free_bytes} bytes left, {largest_bytes} of them in one place, and {need_bytes} are needed; maintenance makes \
         room"
    )]
    Fragmented {
        /// What is needed.
        need_bytes: usize,
        /// What is free.
        free_bytes: usize,
        /// The largest hole.
        largest_bytes: usize,
    },
}
