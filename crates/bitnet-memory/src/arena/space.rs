//! Which parts of a region are in use: numbers alone, no memory.
//!
//! A region is a row of segments in the order of their addresses, each a hole or the place of a block; neighbouring holes are one
//! as soon as they are neighbours. Blocks keep their number when they move, so whoever asks by number is told where a block is now.

use super::placement::{End, Order};
use std::collections::BTreeMap;
use std::ops::Range;

/// What places and sizes are multiples of: a cache line, which is the widest vector too.
pub(super) const GRAIN: usize = 64;

/// No segment.
pub(super) const NONE: u32 = u32::MAX;

/// A part of the region; offsets and sizes in grains.
#[derive(Clone, Copy, Debug)]
pub(super) struct Segment {
    pub offset: u32,
    pub grains: u32,
    /// The segments below and above.
    pub below: u32,
    pub above: u32,
    /// The block that lies here; [`NONE`] for a hole.
    pub block: u32,
}

impl Segment {
    pub fn is_hole(&self) -> bool {
        self.block == NONE
    }

    pub fn end(&self) -> u32 {
        self.offset + self.grains
    }

    /// In bytes.
    pub fn start_bytes(&self) -> usize {
        self.offset as usize * GRAIN
    }
}

/// What somebody holds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Block {
    /// Where it is.
    pub segment: u32,
    /// Bytes that were asked for.
    pub len: usize,
    /// Who relies on its address.
    pub pins: u32,
    /// How many blocks had been placed before it.
    pub born: u64,
}

/// A block's bytes go to another place; the two may overlap. Offsets and length in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Move {
    pub from: usize,
    pub to: usize,
    pub len: usize,
}

/// Items by numbers that are given out again.
#[derive(Debug)]
struct Slots<T> {
    items: Vec<T>,
    spare: Vec<u32>,
}

impl<T> Slots<T> {
    fn add(&mut self, item: T) -> u32 {
        if let Some(at) = self.spare.pop() {
            self.items[at as usize] = item;
            return at;
        }
        self.items.push(item);
        self.items.len() as u32 - 1
    }
}

/// A region's segments and blocks.
#[derive(Debug)]
pub(super) struct Space {
    grains: u32,
    segments: Slots<Segment>,
    blocks: Slots<Block>,
    lowest: u32,
    highest: u32,
    /// Holes by rank (see [`Order`]) and offset.
    holes: BTreeMap<(u32, u32), u32>,
    order: Order,
    /// Where a defragmenter goes on; never a segment that is gone.
    pub cursor: u32,
    free: u32,
    asked_bytes: usize,
    /// Blocks that were placed since the beginning.
    placed: u64,
}

impl Space {
    /// So many grains, none of them in use.
    pub fn new(grains: u32, order: Order) -> Self {
        let mut space = Self {
            grains,
            segments: Slots { items: Vec::new(), spare: Vec::new() },
            blocks: Slots { items: Vec::new(), spare: Vec::new() },
            lowest: NONE,
            highest: NONE,
            holes: BTreeMap::new(),
            order,
            cursor: NONE,
            free: grains,
            asked_bytes: 0,
            placed: 0,
        };
        if grains > 0 {
            let all = Segment { offset: 0, grains, below: NONE, above: NONE, block: NONE };
            let all = space.segments.add(all);
            (space.lowest, space.highest) = (all, all);
            space.list(all);
        }
        space
    }

    pub fn grains(&self) -> u32 {
        self.grains
    }

    pub fn free(&self) -> u32 {
        self.free
    }

    pub fn asked_bytes(&self) -> usize {
        self.asked_bytes
    }

    pub fn placed(&self) -> u64 {
        self.placed
    }

    pub fn hole_count(&self) -> usize {
        self.holes.len()
    }

    pub fn block_count(&self) -> usize {
        self.blocks.items.len() - self.blocks.spare.len()
    }

    pub fn lowest(&self) -> u32 {
        self.lowest
    }

    pub fn highest(&self) -> u32 {
        self.highest
    }

    pub fn segment(&self, at: u32) -> Segment {
        self.segments.items[at as usize]
    }

    pub fn block(&self, block: u32) -> Block {
        self.blocks.items[block as usize]
    }

    pub fn block_mut(&mut self, block: u32) -> &mut Block {
        &mut self.blocks.items[block as usize]
    }

    /// Holes of these ranks, lowest ranks first, then lowest offsets.
    pub fn holes(&self, ranks: Range<(u32, u32)>) -> impl DoubleEndedIterator<Item = u32> {
        self.holes.range(ranks).map(|(_, at)| *at)
    }

    /// How holes are ranked.
    pub fn order(&self) -> Order {
        self.order
    }

    /// Ranks holes in another way.
    pub fn set_order(&mut self, order: Order) {
        if order != self.order {
            self.order = order;
            for at in std::mem::take(&mut self.holes).into_values() {
                self.list(at);
            }
        }
    }

    /// Grains of the largest hole.
    pub fn largest(&self) -> u32 {
        let Some(((rank, _), _)) = self.holes.last_key_value() else { return 0 };
        let of_rank = self.holes((*rank, 0)..(*rank + 1, 0));
        of_rank.map(|at| self.segment(at).grains).max().unwrap_or(0)
    }

    fn key(&self, at: u32) -> (u32, u32) {
        let hole = self.segment(at);
        (self.order.rank(hole.grains), hole.offset)
    }

    fn list(&mut self, hole: u32) {
        self.holes.insert(self.key(hole), hole);
    }

    fn unlist(&mut self, hole: u32) {
        self.holes.remove(&self.key(hole));
    }

    fn segment_mut(&mut self, at: u32) -> &mut Segment {
        &mut self.segments.items[at as usize]
    }

    /// Makes `below` and `above` neighbours.
    fn join(&mut self, below: u32, above: u32) {
        match below {
            NONE => self.lowest = above,
            _ => self.segment_mut(below).above = above,
        }
        match above {
            NONE => self.highest = below,
            _ => self.segment_mut(above).below = below,
        }
    }

    /// Cuts a place of so many grains from an end of a hole, for a block to lie there.
    fn carve(&mut self, hole: u32, grains: u32, end: End, block: u32) -> u32 {
        let whole = self.segment(hole);
        self.unlist(hole);
        self.free -= grains;
        if whole.grains == grains {
            self.segment_mut(hole).block = block;
            return hole;
        }
        let rest = whole.grains - grains;
        self.segment_mut(hole).grains = rest;
        let offset = match end {
            End::Low => whole.offset,
            End::High => whole.offset + rest,
        };
        let place = self.segments.add(Segment { offset, grains, below: NONE, above: NONE, block });
        match end {
            End::Low => {
                self.segment_mut(hole).offset += grains;
                self.join(whole.below, place);
                self.join(place, hole);
            }
            End::High => {
                self.join(hole, place);
                self.join(place, whole.above);
            }
        }
        self.list(hole);
        place
    }

    /// Makes a hole of a place, one with the holes around it.
    fn clear(&mut self, at: u32) {
        self.segment_mut(at).block = NONE;
        self.free += self.segment(at).grains;
        let Segment { below, above, .. } = self.segment(at);
        if below != NONE && self.segment(below).is_hole() {
            self.absorb(at, below);
        }
        if above != NONE && self.segment(above).is_hole() {
            self.absorb(at, above);
        }
        self.list(at);
    }

    /// Makes a listed hole a part of the one that is next to it, which is not listed.
    fn absorb(&mut self, into: u32, hole: u32) {
        self.unlist(hole);
        let gone = self.segment(hole);
        if gone.above == into {
            self.segment_mut(into).offset = gone.offset;
            self.join(gone.below, into);
        } else {
            self.join(into, gone.above);
        }
        self.segment_mut(into).grains += gone.grains;
        self.segments.spare.push(hole);
        if self.cursor == hole {
            self.cursor = into;
        }
    }

    /// Places a block of `len` bytes on so many grains at an end of a hole that is as large.
    pub fn place(&mut self, hole: u32, grains: u32, end: End, len: usize) -> u32 {
        let block = self.blocks.add(Block { segment: NONE, len, pins: 0, born: self.placed });
        self.placed += 1;
        self.asked_bytes += len;
        self.block_mut(block).segment = self.carve(hole, grains, end, block);
        block
    }

    /// Ends a block.
    pub fn remove(&mut self, block: u32) {
        let Block { segment, len, .. } = self.block(block);
        self.asked_bytes -= len;
        self.blocks.spare.push(block);
        self.clear(segment);
    }

    /// Whether the block in a segment has to stay there.
    pub fn is_pinned(&self, at: u32) -> bool {
        self.block(self.segment(at).block).pins > 0
    }

    /// Bytes to copy when the block in a segment moves.
    pub fn bytes(&self, at: u32) -> usize {
        self.block(self.segment(at).block).len
    }

    /// Moves the block above a hole to the hole's beginning; the hole is above it then.
    pub fn slide(&mut self, hole: u32) -> Move {
        let gap = self.segment(hole);
        let at = gap.above;
        let place = self.segment(at);
        self.unlist(hole);
        self.join(gap.below, at);
        self.join(hole, place.above);
        self.join(at, hole);
        self.segment_mut(at).offset = gap.offset;
        self.segment_mut(hole).offset = gap.offset + place.grains;
        let above = place.above;
        if above != NONE && self.segment(above).is_hole() {
            self.absorb(hole, above);
        }
        self.list(hole);
        Move { from: place.start_bytes(), to: gap.start_bytes(), len: self.bytes(at) }
    }

    /// Moves the block in a segment to an end of a hole that has room for it. The segment it was in is a hole then, or a part of one.
    pub fn relocate(&mut self, at: u32, hole: u32, end: End) -> Move {
        let from = self.segment(at);
        let to = self.carve(hole, from.grains, end, from.block);
        self.block_mut(from.block).segment = to;
        self.clear(at);
        Move { from: from.start_bytes(), to: self.segment(to).start_bytes(), len: self.block(from.block).len }
    }
}
