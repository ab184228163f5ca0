//! How broken up an arena is.

use super::space::{GRAIN, Space};
use std::collections::VecDeque;

/// An arena's blocks and holes. Fractions are of 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
pub struct Fragmentation {
    /// All of it.
    pub capacity_bytes: usize,
    /// What blocks were asked for with.
    pub asked_bytes: usize,
    /// What they take.
    pub granted_bytes: usize,
    /// What no block takes.
    pub free_bytes: usize,
    /// The largest hole: the largest block that can be had.
    pub largest_bytes: usize,
    /// Blocks.
    pub blocks: usize,
    /// Holes.
    pub holes: usize,
    /// External: the part of what is free that is not in the largest hole.
    pub external: f64,
    /// Internal: the part of what is granted that was not asked for.
    pub internal: f64,
    /// By how much external fragmentation was greater of late than before, of the last samples the newer against the older half.
    pub trend: f64,
}

impl Fragmentation {
    pub(super) fn of(space: &Space, trend: f64) -> Self {
        let bytes = |grains: u32| grains as usize * GRAIN;
        let free_bytes = bytes(space.free());
        let largest_bytes = bytes(space.largest());
        let granted_bytes = bytes(space.grains()) - free_bytes;
        let part = |rest: usize, whole: usize| if whole == 0 { 0.0 } else { rest as f64 / whole as f64 };
        Self {
            capacity_bytes: bytes(space.grains()),
            asked_bytes: space.asked_bytes(),
            granted_bytes,
            free_bytes,
            largest_bytes,
            blocks: space.block_count(),
            holes: space.hole_count(),
            external: part(free_bytes - largest_bytes, free_bytes),
            internal: part(granted_bytes - space.asked_bytes(), granted_bytes),
            trend,
        }
    }
}

/// External fragmentation over time: a sample each [`Trend::EVERY`] blocks that were placed.
#[derive(Debug, Default)]
pub(super) struct Trend(VecDeque<f64>);

impl Trend {
    const SAMPLES: usize = 64;
    const EVERY: u64 = 1024;

    /// Notes how things are, if it is time to.
    pub fn placed(&mut self, space: &Space) {
        if space.placed().is_multiple_of(Self::EVERY) {
            if self.0.len() == Self::SAMPLES {
                self.0.pop_front();
            }
            self.0.push_back(Fragmentation::of(space, 0.0).external);
        }
    }

    pub fn get(&self) -> f64 {
        let half = self.0.len() / 2;
        if half == 0 {
            return 0.0;
        }
        let mean = |part: &mut dyn Iterator<Item = &f64>| part.sum::<f64>() / half as f64;
        mean(&mut self.0.iter().rev().take(half)) - mean(&mut self.0.iter().rev().skip(half).take(half))
    }
}
