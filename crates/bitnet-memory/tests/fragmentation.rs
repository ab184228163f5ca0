//! A short day of the trace that `benches/fragmentation.rs` runs at full length: blocks keep what is in them, and what is free ends up in
//! one place.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod common;

use bitnet_memory::{
    Arena, ArenaOptions, Budget, Defragmenter, Pages, PagesBlock, Placement, Relocatable, Tag,
};
use common::{Day, Op};

const CAPACITY: usize = 16 << 20;

/// The arena after a day, with what is held in it.
fn day(options: ArenaOptions, ops: usize) -> (Arena<PagesBlock>, Vec<Option<Relocatable>>) {
    let arena = Arena::new(&Pages::default(), CAPACITY, Tag::Other, options).unwrap();
    let mut day = Day::new(CAPACITY, ops, 1);
    let mut held: Vec<Option<Relocatable>> = Vec::new();
    while let Some(op) = day.next() {
        match op {
            Op::Allocate { block, len } => {
                held.resize_with(held.len().max(block + 1), || None);
                match arena.allocate(len) {
                    Ok(mut handle) => {
                        stamp(&mut handle.write(), len as u8);
                        held[block] = Some(handle);
                    }
                    Err(_) => day.refused(block),
                }
            }
            Op::Free { block } => {
                let handle = held[block].take().unwrap();
                let (bytes, len) = (handle.read(), handle.len_bytes() as u8);
                assert_eq!((bytes.first(), bytes.last()), (Some(&len), Some(&len)));
            }
            Op::Rest => {
                rest(&arena);
            }
        }
    }
    (arena, held)
}

/// What the default budget moves in its half millisecond.
fn rest(arena: &Arena<PagesBlock>) {
    arena.maintain(Budget::of_bytes(1 << 20));
}

fn stamp(bytes: &mut [u8], with: u8) {
    bytes[0] = with;
    bytes[bytes.len() - 1] = with;
}

#[test]
fn a_day_ends_with_less_than_a_tenth_outside_of_the_largest_hole() {
    for placement in [Placement::BestFit, Placement::Adaptive] {
        let options = ArenaOptions { placement, defragmenter: Defragmenter::Automatic };
        let (arena, held) = day(options, 200_000);
        // Nobody comes any more for a moment.
        (0..8).for_each(|_| rest(&arena));
        let fragmentation = arena.fragmentation();
        assert!(fragmentation.external < 0.1, "{placement:?}: {fragmentation:?}");
        drop(held);
        assert_eq!(arena.fragmentation().free_bytes, arena.fragmentation().capacity_bytes);
    }
}

#[test]
fn without_maintenance_it_does_not() {
    let options = ArenaOptions { placement: Placement::BestFit, defragmenter: Defragmenter::Off };
    let (arena, _held) = day(options, 200_000);
    assert!(arena.fragmentation().external > 0.3, "{:?}", arena.fragmentation());
}
