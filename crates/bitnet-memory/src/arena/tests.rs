use super::space::NONE;
use super::*;
use crate::{Failing, Heap, HeapBlock};
use proptest::prelude::*;

fn every_way() -> impl Iterator<Item = ArenaOptions> {
    let with = |placement| Defragmenter::ALL.map(|defragmenter| ArenaOptions { placement, defragmenter });
    Placement::ALL.into_iter().flat_map(with)
}

/// Cases of each property; fewer under a sanitizer.
fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(64)
}

/// What an arena must be, found by walking through all of it.
fn check(state: &State, live: &[(u32, usize)]) {
    let space = &state.space;
    let (mut at, mut below, mut offset) = (space.lowest(), NONE, 0);
    let (mut free, mut blocks, mut holes) = (0, Vec::new(), Vec::new());
    while at != NONE {
        let segment = space.segment(at);
        assert_eq!((segment.offset, segment.below), (offset, below), "segments lie side by side");
        if segment.is_hole() {
            assert!(below == NONE || !space.segment(below).is_hole(), "two holes are neighbours");
            free += segment.grains;
            holes.push(at);
        } else {
            let block = space.block(segment.block);
            assert_eq!(block.segment, at, "a block knows where it is");
            assert!(block.len <= segment.grains as usize * GRAIN);
            blocks.push((segment.block, block.len));
        }
        offset = segment.end();
        (below, at) = (at, segment.above);
    }
    assert_eq!((offset, below), (space.grains(), space.highest()), "segments cover the region");
    let mut listed: Vec<u32> = space.holes((0, 0)..(u32::MAX, u32::MAX)).collect();
    listed.sort_unstable();
    let largest = holes.iter().map(|hole| space.segment(*hole).grains).max().unwrap_or(0);
    holes.sort_unstable();
    assert_eq!(listed, holes, "every hole is listed, and nothing else");
    assert_eq!((space.free(), space.largest()), (free, largest));
    blocks.sort_unstable();
    let mut live = live.to_vec();
    live.sort_unstable();
    assert_eq!(blocks, live, "every block is there once");
    assert_eq!(space.asked_bytes(), live.iter().map(|(_, len)| len).sum::<usize>());
    assert_eq!(space.block_count(), live.len());
}

#[derive(Clone, Debug)]
enum Op {
    Allocate(usize),
    Free(usize),
    Write(usize),
    Pin(usize),
    Unpin(usize),
    Maintain(usize),
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let sizes =
        prop_oneof![4 => 0usize..300, 3 => 300usize..4000, 1 => 4000usize..20_000, 2 => Just(1024usize)];
    let op = prop_oneof![
        8 => sizes.prop_map(Op::Allocate),
        6 => any::<usize>().prop_map(Op::Free),
        2 => any::<usize>().prop_map(Op::Write),
        1 => any::<usize>().prop_map(Op::Pin),
        1 => any::<usize>().prop_map(Op::Unpin),
        2 => prop_oneof![64usize..20_000, Just(usize::MAX)].prop_map(Op::Maintain),
    ];
    proptest::collection::vec(op, 1..200)
}

enum Held {
    Free(Relocatable<HeapBlock>),
    Pinned(Pinned<HeapBlock>),
}

/// A block as it is held, and what must be in it.
struct Known {
    held: Held,
    number: u32,
    bytes: Vec<u8>,
}

impl Known {
    fn check(&self) {
        match &self.held {
            Held::Free(block) => assert_eq!(*block.read(), self.bytes),
            Held::Pinned(block) => assert_eq!(**block, self.bytes),
        }
    }

    fn write(&mut self, with: u8) {
        self.bytes.iter_mut().zip(with..=u8::MAX).for_each(|(byte, b)| *byte = b);
        match &mut self.held {
            Held::Free(block) => block.write().copy_from_slice(&self.bytes),
            Held::Pinned(block) => block.copy_from_slice(&self.bytes),
        }
    }
}

fn run(options: ArenaOptions, ops: &[Op]) {
    let arena = Arena::new(&Heap, 64 * 1024, Tag::Other, options).unwrap();
    let mut known: Vec<Known> = Vec::new();
    for (op, with) in ops.iter().zip((0..=u8::MAX).cycle()) {
        let count = known.len().max(1);
        let at = |n: &usize| n % count;
        match op {
            Op::Allocate(len) => match arena.allocate(*len) {
                Ok(block) => {
                    let number = block.number();
                    known.push(Known { held: Held::Free(block), number, bytes: vec![0; *len] });
                    known.last_mut().unwrap().write(with);
                }
                Err(ArenaError::Full { free_bytes, need_bytes, .. }) => assert!(need_bytes > free_bytes),
                Err(e) => assert!(matches!(e, ArenaError::Fragmented { .. }), "{e}"),
            },
            _ if known.is_empty() => {}
            Op::Free(n) => drop(known.swap_remove(at(n))),
            Op::Write(n) => known[at(n)].write(with),
            Op::Pin(n) => {
                let Known { held, number, bytes } = known.swap_remove(at(n));
                let held = match held {
                    Held::Free(block) => Held::Pinned(block.pin()),
                    pinned => pinned,
                };
                known.push(Known { held, number, bytes });
            }
            Op::Unpin(n) => {
                let Known { held, number, bytes } = known.swap_remove(at(n));
                let held = match held {
                    Held::Pinned(block) => Held::Free(block.unpin()),
                    free => free,
                };
                known.push(Known { held, number, bytes });
            }
            Op::Maintain(bytes) => {
                let place = |k: &Known| match &k.held {
                    Held::Pinned(block) => Some(block.as_ptr()),
                    Held::Free(_) => None,
                };
                let before: Vec<_> = known.iter().map(place).collect();
                let done = arena.maintain(Budget::of_bytes(*bytes));
                assert!(done.moved_bytes <= *bytes);
                assert_eq!(known.iter().map(place).collect::<Vec<_>>(), before, "pinned blocks stay");
            }
        }
        let live: Vec<(u32, usize)> = known.iter().map(|k| (k.number, k.bytes.len())).collect();
        check(&arena.0.state(), &live);
        known.iter().for_each(Known::check);
    }
    drop(known);
    check(&arena.0.state(), &[]);
    let empty = arena.fragmentation();
    assert_eq!((empty.holes, empty.largest_bytes), (1, empty.capacity_bytes), "all of it is one hole");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(cases()))]

    #[test]
    fn every_way_keeps_what_blocks_hold(ops in ops()) {
        every_way().for_each(|options| run(options, &ops));
    }

    #[test]
    fn the_same_calls_move_the_same_blocks(ops in ops()) {
        for options in every_way() {
            let places = |()| {
                let arena = Arena::new(&Heap, 64 * 1024, Tag::Other, options).unwrap();
                let mut held = Vec::new();
                for op in &ops {
                    match op {
                        Op::Allocate(len) => held.extend(arena.allocate(*len)),
                        Op::Free(n) if !held.is_empty() => drop(held.swap_remove(n % held.len())),
                        Op::Maintain(bytes) => {
                            arena.maintain(Budget::of_bytes(*bytes));
                        }
                        _ => {}
                    }
                }
                held.iter().map(Relocatable::pin_at).collect::<Vec<_>>()
            };
            prop_assert_eq!(places(()), places(()));
        }
    }
}

/// An arena of 64 KiB whose every second KiB is in use.
fn checkered(options: ArenaOptions) -> (Arena<HeapBlock>, Vec<Relocatable<HeapBlock>>) {
    let arena = Arena::new(&Heap, 64 * 1024, Tag::Kv, options).unwrap();
    let mut all: Vec<_> = (0..64).map(|_| arena.allocate(1024).unwrap()).collect();
    let mut keep = false;
    all.retain(|_| {
        keep = !keep;
        keep
    });
    (arena, all)
}

#[test]
fn every_defragmenter_makes_one_hole_of_a_checkered_arena() {
    for defragmenter in Defragmenter::ALL.into_iter().skip(1) {
        let (arena, _held) = checkered(ArenaOptions { placement: Placement::BestFit, defragmenter });
        let error = arena.allocate(2048).err().unwrap();
        assert!(matches!(
            error,
            ArenaError::Fragmented { need_bytes: 2048, free_bytes: 32_768, largest_bytes: 1024 }
        ));
        // Blocks are old for the generational one when as many came after them.
        (0..32).for_each(|_| drop(arena.allocate(1024).unwrap()));
        let before = arena.fragmentation();
        while arena.maintain(Budget::of_bytes(2048)).defragmenter != Defragmenter::Off {}
        let after = arena.fragmentation();
        assert!(after.external < before.external / 1.5, "{defragmenter:?}: {before:?} {after:?}");
        if !matches!(defragmenter, Defragmenter::Buddy) {
            assert_eq!(after.holes, 1, "{defragmenter:?}");
        }
    }
}

#[test]
fn what_is_settled_is_not_gone_through_again() {
    let options = ArenaOptions { defragmenter: Defragmenter::Sliding, ..ArenaOptions::default() };
    let (arena, mut held) = checkered(options);
    let pinned = held.pop().unwrap().pin();
    assert!(arena.maintain(Budget::UNLIMITED).moved_blocks > 0);
    assert_eq!(arena.maintain(Budget::UNLIMITED).defragmenter, Defragmenter::Sliding);
    assert_eq!(arena.maintain(Budget::UNLIMITED).defragmenter, Defragmenter::Off, "nothing has changed");
    held.push(pinned.unpin());
    assert_eq!(arena.maintain(Budget::UNLIMITED).moved_blocks, 1);
    assert_eq!(arena.fragmentation().holes, 1);
}

#[test]
fn a_block_larger_than_the_budget_waits_for_a_larger_one() {
    let options = ArenaOptions { defragmenter: Defragmenter::Sliding, ..ArenaOptions::default() };
    let arena = Arena::new(&Heap, 64 * 1024, Tag::Kv, options).unwrap();
    let (low, large) = (arena.allocate(1024).unwrap(), arena.allocate(8192).unwrap());
    drop(low);
    assert_eq!(arena.maintain(Budget::of_bytes(4096)).moved_bytes, 0);
    assert_eq!(arena.maintain(Budget::of_bytes(16_384)).moved_bytes, 8192);
    assert_eq!(large.pin_at(), 0);
    assert_eq!(arena.maintain(Budget::of_time(Duration::ZERO)).moved_bytes, 0);
}

/// However fast copies are, a call moves what they are known to move in its time: one that is put off meanwhile moves less, none more.
#[test]
fn a_budget_of_time_is_one_of_bytes() {
    for defragmenter in [Defragmenter::Buddy, Defragmenter::Sliding, Defragmenter::Hybrid] {
        let options = ArenaOptions { placement: Placement::BestFit, defragmenter };
        let (arena, _held) = checkered(options);
        arena.0.state().speed = 100;
        let mut most = 0;
        loop {
            let done = arena.maintain(Budget::of_time(Duration::from_micros(50)));
            if done.defragmenter == Defragmenter::Off {
                break;
            }
            most = most.max(done.moved_bytes);
        }
        assert!(most > 0 && most <= 5000, "{defragmenter:?}: {most}");
    }
}

#[test]
fn what_cannot_be_had_is_told() {
    let options = ArenaOptions::default();
    let nothing = Arena::new(&Failing::nth(Heap, 0), 1024, Tag::Kv, options).err().unwrap();
    assert_eq!(nothing.to_string(), "could not allocate 1024 bytes for kv");
    assert!(matches!(Arena::new(&Heap, usize::MAX, Tag::Kv, options), Err(ArenaError::Region { .. })));
    let arena = Arena::new(&Heap, 1024, Tag::Kv, options).unwrap();
    for bytes in [1025, 1 << 40, usize::MAX] {
        assert!(matches!(arena.allocate(bytes), Err(ArenaError::Full { .. })));
    }
    let empty = Arena::new(&Heap, 0, Tag::Kv, options).unwrap();
    assert!(empty.allocate(0).is_err() && empty.maintain(Budget::UNLIMITED).through);
}

#[test]
fn sizes_are_rounded_where_they_are_segregated() {
    let options = ArenaOptions { placement: Placement::Segregated, ..ArenaOptions::default() };
    let arena = Arena::new(&Heap, 1 << 20, Tag::Kv, options).unwrap();
    let _held = arena.allocate(17 * GRAIN * 16 - 5).unwrap();
    let now = arena.fragmentation();
    assert_eq!((now.asked_bytes, now.granted_bytes), (17 * GRAIN * 16 - 5, 18 * GRAIN * 16));
    assert!(now.internal > 0.05 && now.internal < 0.125);
}

#[test]
fn threads_read_while_another_one_maintains() {
    let options = ArenaOptions { defragmenter: Defragmenter::Sliding, ..ArenaOptions::default() };
    let arena = Arena::new(&Heap, 1 << 20, Tag::Kv, options).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..3u8 {
            let arena = arena.clone();
            scope.spawn(move || {
                let mut held = Vec::new();
                for round in 0..200usize {
                    let mut block = arena.allocate(100 + round * 7).unwrap();
                    block.write().fill(thread);
                    held.push(block);
                    if round % 3 == 0 {
                        held.swap_remove(round / 2 % held.len());
                    }
                    assert!(held.iter().all(|block| block.read().iter().all(|b| *b == thread)));
                }
            });
        }
        for _ in 0..500 {
            arena.maintain(Budget::of_bytes(4096));
        }
    });
    assert_eq!(arena.fragmentation().blocks, 0);
}

#[test]
fn adaptive_placement_goes_by_sizes_and_by_what_moves() {
    let now = |defragmenter, size: fn(usize) -> usize| {
        let options = ArenaOptions { placement: Placement::Adaptive, defragmenter };
        let arena = Arena::new(&Heap, 1 << 20, Tag::Kv, options).unwrap();
        (0..4200).for_each(|i| drop(arena.allocate(size(i)).unwrap()));
        arena.placement()
    };
    assert_eq!(now(Defragmenter::Off, |i| GRAIN * (i % 97 + 1)), Placement::FirstFit);
    assert_eq!(now(Defragmenter::Off, |i| GRAIN * (i % 3 + 1)), Placement::BestFit);
    assert_eq!(now(Defragmenter::Automatic, |i| GRAIN * (i % 97 + 1)), Placement::BestFit);
}

#[test]
fn the_trend_tells_whether_it_gets_worse() {
    let options = ArenaOptions { defragmenter: Defragmenter::Sliding, ..ArenaOptions::default() };
    let arena = Arena::new(&Heap, 1 << 20, Tag::Kv, options).unwrap();
    let come_and_go = || (0..4096).for_each(|_| drop(arena.allocate(GRAIN).unwrap()));
    come_and_go();
    assert_eq!(arena.fragmentation().trend, 0.0);
    let mut held: Vec<_> = (0..512).map(|_| arena.allocate(1024).unwrap()).collect();
    held.retain(|block| block.pin_at() % 2048 == 0);
    come_and_go();
    assert!(arena.fragmentation().trend > 0.1, "{:?}", arena.fragmentation());
}
