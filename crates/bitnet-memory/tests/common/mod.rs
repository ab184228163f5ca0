//! A day of a busy server, made short: blocks of mixed sizes that come and go, some of them as badly as they can.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// What happens next; blocks are known by numbers that are given again once they are free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    Allocate {
        block: usize,
        len: usize,
    },
    Free {
        block: usize,
    },
    /// Between two steps: time for maintenance.
    Rest,
}

/// A generator of numbers (SplitMix64): the same trace on every machine.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }
}

/// The trace of an arena of so many bytes. Load rises to 85 % and falls to 40 % four times a day; the day ends at 55 %.
pub struct Day {
    random: Random,
    ops: usize,
    at: usize,
    capacity: usize,
    used: usize,
    /// Length of each block, 0 for a number that is free.
    lens: Vec<usize>,
    spare: Vec<usize>,
    /// When each block began, so that the end of an earlier one of its number is not taken for its own.
    began: Vec<usize>,
    /// Blocks in the order in which they end: `(when, block, when it began)`.
    ends: BinaryHeap<Reverse<(usize, usize, usize)>>,
    growing: usize,
}

/// Operations between two rests.
const STEP: usize = 256;

impl Day {
    pub fn new(capacity: usize, ops: usize, seed: u64) -> Self {
        Self {
            random: Random(seed),
            ops,
            at: 0,
            capacity,
            used: 0,
            lens: Vec::new(),
            spare: Vec::new(),
            began: Vec::new(),
            ends: Default::default(),
            growing: 0,
        }
    }

    /// Load that this time of the day asks for, in bytes.
    fn wanted(&self) -> usize {
        let hour = self.at as f64 / self.ops as f64;
        let share =
            if hour > 0.96 { 0.55 } else { 0.625 - 0.225 * (hour * 8.0 * std::f64::consts::PI).cos() };
        (self.capacity as f64 * share) as usize
    }

    /// A size, and how many operations later it ends.
    fn draw(&mut self) -> (usize, usize) {
        let (capacity, r) = (self.capacity as u64, &mut self.random);
        let most = capacity / 256;
        let (len, life) = match r.below(100) {
            // Activations: any size, short.
            0..45 => (64 << r.below(most.ilog2() as u64 - 6), 200 + r.below(2000)),
            45..70 => {
                let scale = 64u64 << r.below(most.ilog2() as u64 - 6);
                (scale + r.below(scale), 20 + r.below(3000))
            }
            // Blocks of a cache: two sizes, as long as a conversation.
            70..85 => (capacity / 4096, 1000 + r.below(60_000)),
            85..90 => (capacity / 1024, 1000 + r.below(60_000)),
            // The badly behaved: each a little larger than the hole that the last one left, and every second stays long.
            90..98 => {
                self.growing = (self.growing + 1) % 4096;
                let long = if self.growing.is_multiple_of(2) { 40_000 } else { 100 };
                (capacity / 8192 + 64 * self.growing as u64 / 16, long + r.below(100))
            }
            // Adapters and sessions: large or small, and they stay.
            _ => (64 + r.below(capacity / 256), 100_000 + r.below(1_000_000)),
        };
        // In a day of fewer operations nothing lives longer than a part of it.
        (len as usize, (life as usize).min(self.ops / 8).max(1))
    }

    fn free(&mut self, block: usize) -> Op {
        self.used -= std::mem::take(&mut self.lens[block]);
        self.spare.push(block);
        Op::Free { block }
    }

    /// Takes note of a block that could not be had.
    pub fn refused(&mut self, block: usize) {
        self.free(block);
    }
}

impl Iterator for Day {
    type Item = Op;
    fn next(&mut self) -> Option<Op> {
        if self.at >= self.ops {
            return None;
        }
        self.at += 1;
        if self.at.is_multiple_of(STEP) {
            return Some(Op::Rest);
        }
        // Those whose time has come, or where there is more than this hour wants, those that are next.
        while let Some(Reverse((end, block, began))) = self.ends.peek().copied() {
            if end > self.at && self.used <= self.wanted() {
                break;
            }
            self.ends.pop();
            if self.lens[block] > 0 && self.began[block] == began {
                return Some(self.free(block));
            }
        }
        let (len, life) = self.draw();
        let block = self.spare.pop().unwrap_or_else(|| {
            self.lens.push(0);
            self.began.push(0);
            self.lens.len() - 1
        });
        (self.lens[block], self.began[block]) = (len, self.at);
        self.used += len;
        self.ends.push(Reverse((self.at + life, block, self.at)));
        Some(Op::Allocate { block, len })
    }
}
