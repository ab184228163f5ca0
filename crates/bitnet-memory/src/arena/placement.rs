//! Where a block is put: what keeps a region from breaking into small holes in the first place.

use super::space::Space;

/// How a hole is chosen for a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Placement {
    /// The smallest hole with room, the lowest of those.
    BestFit,
    /// The lowest hole with room; for a block larger than a 64th of the region, the highest one, so that large and small blocks
    /// do not come to lie between each other.
    FirstFit,
    /// The smallest hole with room for the size rounded up to one of eight steps between powers of two: holes then have sizes that
    /// are asked for again, at the price of up to an eighth of each block.
    Segregated,
    /// Best fit where a few sizes are most of what was asked for of late, or where maintenance moves blocks; else first fit.
    /// [`Arena::placement`](super::Arena::placement) tells which.
    Adaptive,
}

impl Placement {
    /// Each of them.
    pub const ALL: [Self; 4] = [Self::BestFit, Self::FirstFit, Self::Segregated, Self::Adaptive];
}

/// Which end of a hole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Low,
    High,
}

/// How holes are ranked. Holes of a rank are in the order of their addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// By their size.
    Size,
    /// By the power of two in their size.
    Power,
}

impl Order {
    /// The rank of a hole of so many grains, at least one.
    pub fn rank(self, grains: u32) -> u32 {
        match self {
            Self::Size => grains,
            Self::Power => grains.ilog2(),
        }
    }
}

/// Holes of a rank that are looked at when not all of them have room.
const LOOK: usize = 64;

/// What a block of so many grains, in a region of `all`, is given where sizes are rounded.
fn step_of(grains: u32) -> u32 {
    let step = 1 << grains.ilog2().saturating_sub(3);
    grains.checked_next_multiple_of(step).unwrap_or(grains)
}

/// How blocks are placed now.
#[derive(Debug)]
pub(super) struct Placer {
    placement: Placement,
    /// What it is when it adapts.
    now: Placement,
    /// Whether maintenance moves blocks.
    moves: bool,
    seen: Seen,
}

impl Placer {
    pub fn new(placement: Placement, moves: bool) -> Self {
        let now = match placement {
            Placement::Adaptive => Placement::BestFit,
            other => other,
        };
        Self { placement, now, moves, seen: Seen::default() }
    }

    /// What is done now; never [`Placement::Adaptive`].
    pub fn now(&self) -> Placement {
        self.now
    }

    pub fn order(&self) -> Order {
        match self.now {
            Placement::FirstFit => Order::Power,
            _ => Order::Size,
        }
    }

    /// A hole for so many grains, how many the block gets, and at which end.
    pub fn choose(&mut self, space: &mut Space, grains: u32) -> Option<(u32, u32, End)> {
        if self.placement == Placement::Adaptive && self.seen.asked(grains) {
            let few = self.seen.few_sizes();
            self.now = if few || self.moves { Placement::BestFit } else { Placement::FirstFit };
            space.set_order(self.order());
        }
        match self.now {
            Placement::FirstFit => {
                let large = grains > space.grains() / 64;
                let (hole, end) = match large {
                    false => (lowest(space, grains)?, End::Low),
                    true => (highest(space, grains)?, End::High),
                };
                Some((hole, grains, end))
            }
            Placement::Segregated => {
                let rounded = step_of(grains);
                let at = |grains| smallest(space, grains).map(|hole| (hole, grains, End::Low));
                // Rather no rounding than no block.
                at(rounded).or_else(|| at(grains))
            }
            _ => Some((smallest(space, grains)?, grains, End::Low)),
        }
    }
}

/// The smallest hole with room in a space ordered by sizes.
fn smallest(space: &Space, grains: u32) -> Option<u32> {
    space.holes((grains, 0)..(u32::MAX, 0)).next()
}

/// The lowest hole with room in a space ordered by powers of two.
fn lowest(space: &Space, grains: u32) -> Option<u32> {
    let own = grains.ilog2();
    // All of a higher rank have room, so the first one of each rank is enough.
    let mut best: Option<u32> = None;
    let mut rank = own + 1;
    while let Some(hole) = space.holes((rank, 0)..(u32::MAX, 0)).next() {
        let segment = space.segment(hole);
        if best.is_none_or(|b| segment.offset < space.segment(b).offset) {
            best = Some(hole);
        }
        rank = segment.grains.ilog2() + 1;
    }
    let below = best.map_or(u32::MAX, |b| space.segment(b).offset);
    let same = space.holes((own, 0)..(own, below));
    let look = if best.is_some() { LOOK } else { usize::MAX };
    let in_same = same.take(look).find(|hole| space.segment(*hole).grains >= grains);
    in_same.or(best)
}

/// The same from the other side.
fn highest(space: &Space, grains: u32) -> Option<u32> {
    let own = grains.ilog2();
    let mut best: Option<u32> = None;
    for rank in own + 1..32 {
        let Some(hole) = space.holes((rank, 0)..(rank + 1, 0)).next_back() else { continue };
        if best.is_none_or(|b| space.segment(hole).offset > space.segment(b).offset) {
            best = Some(hole);
        }
    }
    let above = best.map_or(0, |b| space.segment(b).offset);
    let same = space.holes((own, above)..(own + 1, 0)).rev();
    let look = if best.is_some() { LOOK } else { usize::MAX };
    let in_same = same.take(look).find(|hole| space.segment(*hole).grains >= grains);
    in_same.or(best)
}

/// A hole with room in either order, as small as is found soon, that fulfils a condition.
pub(super) fn fitting(space: &Space, grains: u32, condition: impl Fn(u32) -> bool) -> Option<u32> {
    let from = (space.order().rank(grains), 0);
    let fits = |hole: &u32| space.segment(*hole).grains >= grains && condition(*hole);
    space.holes(from..(u32::MAX, 0)).take(LOOK).find(fits)
}

/// Sizes of late.
#[derive(Debug, Default)]
struct Seen {
    blocks: u32,
    /// Sizes that were asked for again and again, and a count that others wear down (Misra and Gries).
    frequent: [(u32, u32); 8],
}

/// Blocks between decisions.
const WINDOW: u32 = 4096;

impl Seen {
    /// Notes a size; true when it is time to decide.
    fn asked(&mut self, grains: u32) -> bool {
        self.blocks += 1;
        if let Some((_, count)) = self.frequent.iter_mut().find(|(size, count)| *size == grains && *count > 0)
        {
            *count += 1;
        } else if let Some(free) = self.frequent.iter_mut().find(|(_, count)| *count == 0) {
            *free = (grains, 1);
        } else {
            self.frequent.iter_mut().for_each(|(_, count)| *count -= 1);
        }
        self.blocks == WINDOW
    }

    /// Whether more than half of the blocks have one of a few sizes; begins anew.
    fn few_sizes(&mut self) -> bool {
        let frequent = std::mem::take(self).frequent;
        frequent.iter().map(|(_, count)| count).sum::<u32>() > WINDOW / 2
    }
}
