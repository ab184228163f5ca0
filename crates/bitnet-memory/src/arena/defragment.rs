//! Moving blocks so that holes become one: a segment is looked at in each step, and at most one block moves.
//!
//! Holes that are neighbours are one at all times, so what is left to a defragmenter are the blocks between holes. Pinned blocks stay
//! where they are.

use super::placement::{End, fitting};
use super::space::{Move, NONE, Segment, Space};
use std::ops::Range;

/// What moves blocks, and which ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Defragmenter {
    /// Nothing.
    Off,
    /// Empties the other half of an aligned window whose one half is a hole: its blocks, if they are few, go to holes elsewhere that
    /// fit. The two halves are a hole of twice the size then, which is a half of the next window.
    Buddy,
    /// Moves each block down to the end of the one below it. One hole is left at the top, or one below each pinned block; moves the
    /// most bytes.
    Sliding,
    /// Moves old blocks, from the top, to holes below that fit, and leaves young ones where they will soon be holes. A block is old
    /// when as many blocks were placed after it as there are.
    Generational,
    /// Old blocks go to holes that fit, as above, then what is left slides.
    Hybrid,
    /// One of the others, each cycle, by what holes look like: see [`Arena::maintain`](super::Arena::maintain).
    Automatic,
}

impl Defragmenter {
    /// Each of them.
    pub const ALL: [Self; 6] =
        [Self::Off, Self::Buddy, Self::Sliding, Self::Generational, Self::Hybrid, Self::Automatic];
}

/// What came of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// A block's place is another one; its bytes have to follow.
    Moved(Move),
    /// Nothing was to be done here.
    Looked,
    /// A block was to move, and is larger than what is left; it is the next one.
    Short,
    /// The whole region has been gone through.
    Through,
}

/// Bytes that may be moved.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room {
    /// In all. A larger block stays where it is.
    pub whole: usize,
    /// What is left of that. A larger block waits.
    pub left: usize,
}

/// Where a pass through the region stands.
#[derive(Debug)]
pub(super) struct Pass {
    way: Defragmenter,
    /// The window that is being emptied, in grains.
    window: Option<Range<u32>>,
    /// Windows that begin below have been tried in vain.
    tried: u32,
    /// For a hybrid: whether old blocks have had their turn.
    sliding: bool,
    /// Bytes that it has moved.
    pub moved_bytes: usize,
    /// Grains of the largest hole when it began.
    pub largest_before: u32,
    /// Whether a block stayed because it is pinned.
    pub met_pinned: bool,
    /// Whether a block stayed because it is larger than all of a budget.
    pub met_large: bool,
}

/// Blocks of a window that are worth their moves.
const FEW: usize = 16;

impl Pass {
    /// From the beginning.
    pub fn new(way: Defragmenter, space: &mut Space) -> Self {
        let pass = Self {
            way,
            window: None,
            tried: 0,
            sliding: way == Defragmenter::Sliding,
            moved_bytes: 0,
            largest_before: space.largest(),
            met_pinned: false,
            met_large: false,
        };
        space.cursor = pass.start(space);
        pass
    }

    pub fn way(&self) -> Defragmenter {
        self.way
    }

    fn start(&self, space: &Space) -> u32 {
        match self.way {
            Defragmenter::Generational => space.highest(),
            Defragmenter::Hybrid if !self.sliding => space.highest(),
            _ => space.lowest(),
        }
    }

    /// Looks at the next segment.
    pub fn step(&mut self, space: &mut Space, room: Room) -> Step {
        if space.cursor == NONE {
            if self.way == Defragmenter::Hybrid && !self.sliding {
                self.sliding = true;
                space.cursor = self.start(space);
                return Step::Looked;
            }
            return Step::Through;
        }
        let step = match self.way {
            Defragmenter::Off | Defragmenter::Automatic => Step::Through,
            Defragmenter::Buddy => self.empty(space, room),
            Defragmenter::Sliding => self.slide(space, room),
            Defragmenter::Hybrid if self.sliding => self.slide(space, room),
            Defragmenter::Generational | Defragmenter::Hybrid => self.sink(space, room),
        };
        if let Step::Moved(step) = step {
            self.moved_bytes += step.len;
        }
        step
    }

    /// Whether the block in a segment may move.
    fn may_move(&mut self, space: &Space, at: u32, room: Room) -> bool {
        let (pinned, large) = (space.is_pinned(at), space.bytes(at) > room.whole);
        self.met_pinned |= pinned;
        self.met_large |= large;
        !pinned && !large
    }

    fn empty(&mut self, space: &mut Space, room: Room) -> Step {
        if let Some(window) = self.window.take() {
            return self.empty_window(space, window, room);
        }
        let at = space.cursor;
        let hole = space.segment(at);
        if hole.is_hole()
            && let Some((window, first)) = self.window_of(space, at, room)
        {
            self.window = Some(window);
            space.cursor = first;
        } else {
            space.cursor = hole.above;
        }
        Step::Looked
    }

    /// Moves the first block that begins in a window, at or above the cursor.
    fn empty_window(&mut self, space: &mut Space, window: Range<u32>, room: Room) -> Step {
        let at = space.cursor;
        let segment = space.segment(at);
        if segment.offset >= window.end {
            // On with what the window has become.
            if let Some(below) = Some(segment.below).filter(|b| *b != NONE && space.segment(*b).is_hole()) {
                space.cursor = below;
            }
            return Step::Looked;
        }
        if segment.is_hole() {
            space.cursor = segment.above;
            self.window = Some(window).filter(|_| space.cursor != NONE);
            return Step::Looked;
        }
        // One that is larger would lose more than the window gains.
        let half = (window.end - window.start) / 2;
        let outside = |hole: u32| {
            let hole = space.segment(hole);
            hole.grains <= half && (hole.end() <= window.start || hole.offset >= window.end)
        };
        let goes = self.may_move(space, at, room);
        let Some(to) = goes.then(|| fitting(space, segment.grains, outside)).flatten() else {
            // No hole fits, or the block was pinned meanwhile.
            self.tried = segment.end();
            space.cursor = segment.above;
            return Step::Looked;
        };
        self.window = Some(window);
        if space.bytes(at) > room.left {
            return Step::Short;
        }
        Step::Moved(space.relocate(at, to, End::Low))
    }

    /// The window of a hole and its buddy, and the first segment in it, if it is worth emptying.
    fn window_of(&mut self, space: &Space, at: u32, room: Room) -> Option<(Range<u32>, u32)> {
        let hole = space.segment(at);
        // The largest aligned half that lies in the hole.
        let mut half = 1u32.checked_shl(hole.grains.ilog2())?;
        if hole.offset.checked_next_multiple_of(half)?.checked_add(half)? > hole.end() {
            half /= 2;
        }
        let own = hole.offset.checked_next_multiple_of(half.max(1))?;
        let size = half.checked_mul(2).filter(|size| *size > 0 && *size <= space.grains())?;
        let start = Some(own / size * size).filter(|start| *start >= self.tried)?;
        let window = start..start.checked_add(size).filter(|end| *end <= space.grains())?;
        // Blocks that begin below the window and reach into it have to go too, so the walk begins there.
        let mut first = at;
        for looked in 0.. {
            let Segment { offset, below, .. } = space.segment(first);
            if offset <= window.start || below == NONE {
                break;
            }
            // Holes and blocks by turns at best.
            if looked > 2 * FEW {
                return None;
            }
            first = below;
        }
        let (mut next, mut blocks, mut grains) = (first, 0, 0);
        while next != NONE && space.segment(next).offset < window.end {
            let segment = space.segment(next);
            if !segment.is_hole() {
                blocks += 1;
                grains += segment.grains;
                if blocks > FEW || grains > half || !self.may_move(space, next, room) {
                    return None;
                }
            }
            next = segment.above;
        }
        (blocks > 0).then_some((window, first))
    }

    /// Moves the block above the hole at the cursor down.
    fn slide(&mut self, space: &mut Space, room: Room) -> Step {
        let segment = space.segment(space.cursor);
        let above = segment.above;
        if above != NONE && segment.is_hole() && self.may_move(space, above, room) {
            if space.bytes(above) > room.left {
                return Step::Short;
            }
            return Step::Moved(space.slide(space.cursor));
        }
        space.cursor = above;
        Step::Looked
    }

    /// Moves the block at the cursor to a hole below it.
    fn sink(&mut self, space: &mut Space, room: Room) -> Step {
        let at = space.cursor;
        let segment = space.segment(at);
        let old = |born: u64| space.placed() - born >= space.block_count() as u64;
        let goes =
            !segment.is_hole() && old(space.block(segment.block).born) && self.may_move(space, at, room);
        let below = |hole: u32| space.segment(hole).offset < segment.offset;
        let Some(hole) = goes.then(|| fitting(space, segment.grains, below)).flatten() else {
            space.cursor = segment.below;
            return Step::Looked;
        };
        if space.bytes(at) > room.left {
            return Step::Short;
        }
        space.cursor = segment.below;
        Step::Moved(space.relocate(at, hole, End::Low))
    }
}
