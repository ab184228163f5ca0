//! Size classes: four to a doubling, so that a piece is at most a quarter larger than what was asked for.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Classes of fixed sizes: 64 bytes to 32 MiB.
const FIXED: usize = 72;

/// The class of pieces that have a block, and a size, of their own.
pub(crate) const OWN: usize = FIXED;

/// All classes.
pub(crate) const CLASSES: usize = FIXED + 1;

/// The class of the pieces for `bytes` bytes.
#[inline(always)]
pub(crate) fn class_of(bytes: usize) -> usize {
    let last = bytes.saturating_sub(1);
    // Below 256 bytes classes are as far apart as from there to 512.
    let top = (last | 256).ilog2() as usize;
    // The two bits below the highest one say which quarter; with it, they are 4 to 7, and less where there is no such bit.
    if top < 25 { 4 * (top - 8) + (last >> (top - 2)) } else { OWN }
}

/// The most that a piece of a class holds; `usize::MAX` for [`OWN`].
pub(crate) const fn class_bytes(class: usize) -> usize {
    if class < 4 {
        64 * (class + 1)
    } else if class < OWN {
        let (top, quarter) = (class / 4 + 7, class % 4);
        (1 << top) + ((quarter + 1) << (top - 2))
    } else {
        usize::MAX
    }
}

/// How large pieces are, as far as it decides how they are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tier {
    /// To 1 KiB: many to a block, many at hand.
    VerySmall,
    /// To 32 KiB: many to a block.
    Small,
    /// To 256 KiB: some to a block, a few at hand.
    Medium,
    /// To 32 MiB: a block each, given back in the order of last use.
    Large,
    /// Anything above, and memory that lives long: a block of just its size, which goes back to the source at once where nothing
    /// says that it will be asked for again.
    VeryLarge,
}

impl Tier {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::VerySmall, Self::Small, Self::Medium, Self::Large, Self::VeryLarge];

    pub(crate) const fn of(class: usize) -> Self {
        match class_bytes(class) {
            0..=0x400 => Self::VerySmall,
            0x401..=0x8000 => Self::Small,
            0x8001..=0x4_0000 => Self::Medium,
            0x4_0001..=0x200_0000 => Self::Large,
            _ => Self::VeryLarge,
        }
    }

    /// Whether a block has several pieces.
    pub(crate) const fn shares_blocks(self) -> bool {
        matches!(self, Self::VerySmall | Self::Small | Self::Medium)
    }

    /// As metrics name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::VerySmall => "very_small",
            Self::Small => "small",
            Self::Medium => "medium",
            Self::Large => "large",
            Self::VeryLarge => "very_large",
        }
    }
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_is_the_smallest_that_holds_the_bytes() {
        let mut below = 0;
        for class in 0..OWN {
            let bytes = class_bytes(class);
            assert!(bytes > below && bytes.is_multiple_of(64));
            assert_eq!((class_of(below + 1), class_of(bytes)), (class, class));
            assert!(below < 256 || 4 * bytes <= 5 * below);
            below = bytes;
        }
        assert_eq!((below, class_of(below + 1), class_of(usize::MAX), class_of(0)), (32 << 20, OWN, OWN, 0));
    }

    #[test]
    fn tiers_follow_each_other() {
        let tiers: Vec<Tier> = (0..CLASSES).map(Tier::of).collect();
        assert!(tiers.is_sorted() && tiers[0] == Tier::VerySmall && tiers[OWN] == Tier::VeryLarge);
        assert_eq!(Tier::of(class_of(1 << 15)), Tier::Small);
        assert_eq!(Tier::of(class_of((1 << 18) + 1)), Tier::Large);
    }
}
