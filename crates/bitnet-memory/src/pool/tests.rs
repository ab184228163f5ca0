use super::class::{class_bytes, class_of};
use super::*;
use crate::Buffer;
use crate::source::{Block, Failing, Heap, HostBlock};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::mpsc;

fn config(profile: Profile, tracking: Tracking) -> Config {
    Config { tracking, ..profile.into() }
}

/// What somebody does with a pool.
#[derive(Clone, Debug)]
enum Act {
    Take { bytes: usize, tag: Tag, release: Release },
    Drop { which: usize },
    Collect,
    Trim { keep: usize },
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let bytes = prop_oneof![
        8 => 0..3000usize,
        4 => 3000..300_000usize,
        // A few sizes that come again.
        4 => prop::sample::select(vec![16_384usize, 81_920, 110_592, 1 << 20, 3_500_000]),
        1 => (32usize << 20)..(40 << 20),
    ];
    let release = prop::sample::select(vec![
        Release::Normal,
        Release::Normal,
        Release::Immediate,
        Release::High,
        Release::Low,
        Release::Deferred,
    ]);
    let take = (bytes, prop::sample::select(&Tag::ALL[..]), release)
        .prop_map(|(bytes, tag, release)| Act::Take { bytes, tag, release });
    let act = prop_oneof![
        10 => take,
        9 => any::<usize>().prop_map(|which| Act::Drop { which }),
        1 => Just(Act::Collect),
        1 => (0..4_000_000usize).prop_map(|keep| Act::Trim { keep }),
    ];
    prop::collection::vec(act, 1..150)
}

fn configs() -> impl Strategy<Value = Config> {
    let profile = prop::sample::select(vec![
        Profile::Inference,
        Profile::Training,
        Profile::Balanced,
        Profile::Adaptive,
    ]);
    let tracking = prop::sample::select(vec![
        Tracking::Off,
        Tracking::Minimal,
        Tracking::Standard,
        Tracking::Detailed,
        Tracking::Debug,
    ]);
    let budgets = (0..8_000_000usize, 0..2_000_000usize);
    (profile, tracking, budgets, any::<bool>()).prop_map(|(profile, tracking, (keep, at_hand), small)| {
        let mut config = config(profile, tracking);
        if small {
            (config.keep_bytes, config.at_hand_bytes) = (keep, at_hand);
        }
        config
    })
}

/// Where a piece lies, and what its first and last bytes were made to be.
type Held<S> = (Piece<S>, u8);

fn range<S: Source<Block: HostBlock>>(piece: &Piece<S>) -> Range<usize> {
    let start = piece.start().as_ptr() as usize;
    start..start + piece.capacity_bytes()
}

/// The ends of a piece: whole megabytes would only take time.
fn ends<S: Source<Block: HostBlock>>(piece: &mut Piece<S>) -> [&mut [u8]; 2] {
    let bytes = piece.bytes_mut();
    let (first, rest) = bytes.split_at_mut(32);
    [first, rest.last_chunk_mut::<32>().expect("a piece has 64 bytes or more")]
}

/// Runs `acts` beside a model that knows which addresses are whose. Requests may fail where the source has a limit.
fn run<S: Source<Block: HostBlock> + Clone>(source: Failing<S>, config: Config, acts: &[Act], limited: bool) {
    let pool = Pool::with(source.clone(), config);
    let mut held: Vec<Held<Failing<S>>> = Vec::new();
    let mut taken: BTreeMap<usize, usize> = BTreeMap::new();
    for (i, act) in acts.iter().enumerate() {
        match *act {
            Act::Take { bytes, tag, release } => {
                let Ok(mut piece) = pool.piece(bytes, tag) else {
                    assert!(limited, "{bytes} bytes were refused");
                    continue;
                };
                assert!(piece.capacity_bytes() >= bytes && piece.len_bytes() == bytes && piece.tag() == tag);
                let at = range(&piece);
                assert!(at.start.is_multiple_of(64));
                assert!(piece.offset() + piece.capacity_bytes() <= piece.block().len_bytes());
                assert!(source.shares_blocks() || piece.offset() == 0);
                // Nobody else has these addresses.
                let below = taken.range(..at.end).next_back();
                assert!(below.is_none_or(|(_, end)| *end <= at.start), "{at:?} overlaps {below:?}");
                taken.insert(at.start, at.end);
                if piece.is_fresh() {
                    assert!(ends(&mut piece).iter().all(|end| end.iter().all(|b| *b == 0)));
                }
                ends(&mut piece).into_iter().for_each(|end| end.fill(i as u8));
                piece.release(release);
                held.push((piece, i as u8));
            }
            Act::Drop { which } if !held.is_empty() => {
                let (mut piece, mark) = held.swap_remove(which % held.len());
                assert!(ends(&mut piece).iter().all(|end| end.iter().all(|b| *b == mark)));
                taken.remove(&range(&piece).start);
            }
            Act::Drop { .. } => {}
            Act::Collect => _ = pool.collect(),
            Act::Trim { keep } => _ = pool.trim(keep),
        }
        let snapshot = pool.snapshot();
        let used: usize = held.iter().map(|(piece, _)| piece.capacity_bytes()).sum();
        // Pages of pieces whose block is in use go back without it.
        assert!(snapshot.held_bytes <= source.held_bytes());
        assert!(
            used + snapshot.free_bytes <= snapshot.held_bytes
                && snapshot.held_bytes <= snapshot.held_peak_bytes
        );
        if config.tracking >= Tracking::Minimal {
            assert_eq!(snapshot.used_bytes, used);
        }
        if config.tracking >= Tracking::Standard {
            let asked: usize = held.iter().map(|(piece, _)| piece.len_bytes()).sum();
            assert_eq!(snapshot.tags.iter().map(|tag| tag.asked_bytes).sum::<usize>(), asked);
            assert_eq!(snapshot.classes.iter().map(|class| class.asked_bytes).sum::<usize>(), asked);
            assert_eq!(snapshot.tags.iter().map(|tag| tag.used).sum::<u64>(), held.len() as u64);
        }
        let live = if config.tracking == Tracking::Debug { held.len() } else { 0 };
        assert_eq!(pool.live().len(), live);
    }
    // Half of the pieces come back before the pool ends and half after it; in the end the source has everything.
    held.truncate(held.len() / 2);
    if held.is_empty() {
        pool.trim(0);
        assert_eq!(source.held_bytes(), 0);
    }
    drop(pool);
    for (mut piece, mark) in held {
        assert!(ends(&mut piece).iter().all(|end| end.iter().all(|b| *b == mark)));
    }
    assert_eq!(source.held_bytes(), 0);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nobody_has_what_another_has_and_all_comes_back(config in configs(), acts in acts()) {
        run(Failing::above(crate::Pages::default(), usize::MAX), config, &acts, false);
    }

    #[test]
    fn a_source_with_little_refuses_and_goes_on(config in configs(), acts in acts(), limit in 0..4_000_000usize) {
        run(Failing::above(Heap, limit), config, &acts, true);
    }

    #[test]
    fn a_source_whose_blocks_stay_whole_is_pooled_as_others_are(config in configs(), acts in acts(), limit in any::<u32>()) {
        let limit = limit as usize % 64_000_000;
        run(Failing::above(Whole, usize::MAX), config, &acts, false);
        run(Failing::above(Whole, limit), config, &acts, true);
    }
}

/// Memory whose blocks are not cut.
#[derive(Clone, Copy, Debug)]
struct Whole;

impl Source for Whole {
    type Block = <Heap as Source>::Block;

    fn granule(&self) -> usize {
        Heap.granule()
    }

    fn shares_blocks(&self) -> bool {
        false
    }

    fn allocate(&self, bytes: usize) -> Option<Self::Block> {
        Heap.allocate(bytes)
    }
}

/// Where each piece is a block, small ones go back one by one too, and of them those that were used least recently.
#[test]
fn blocks_that_stay_whole_go_back_by_age() {
    const KIB: usize = 1 << 10;
    let source = Failing::above(Whole, usize::MAX);
    let config = Config { at_hand_bytes: 0, keep_bytes: 64 * KIB, ..Profile::Balanced.into() };
    let pool = Pool::with(source.clone(), config);
    let pieces: Vec<_> = (0..16).map(|_| pool.piece(4 * KIB, Tag::Scratch).unwrap()).collect();
    let places: Vec<_> = pieces.iter().map(range).collect();
    assert_eq!((source.requests(), source.held_bytes()), (16, 64 * KIB), "a block each, of just its size");
    drop(pieces);
    assert_eq!(source.held_bytes(), 64 * KIB);
    // What is too much for the budget is taken from what has waited longest.
    drop(pool.piece(8 * KIB, Tag::Scratch).unwrap());
    assert_eq!(source.held_bytes(), 56 * KIB);
    let again: Vec<_> = (0..12).map(|_| pool.piece(4 * KIB, Tag::Scratch).unwrap()).collect();
    assert!(
        again.iter().map(range).rev().eq(places[4..].iter().cloned()),
        "the newest of them are still there"
    );
    assert_eq!(source.requests(), 17);
    drop(again);
    (0..4).for_each(|_| _ = pool.collect());
    assert_eq!(source.held_bytes(), 0, "and nobody asked for them");
}

#[test]
fn a_failed_request_is_an_error_and_the_next_one_is_not() {
    let pool = Pool::with(Failing::nth(Heap, 0), Config::default());
    // The pool gives back what it has and asks again.
    assert!(pool.piece(100, Tag::Kv).is_ok());
    let pool = Pool::with(Failing::above(Heap, 1 << 20), Config::default());
    let refused = pool.piece(2 << 20, Tag::Kv).err();
    assert_eq!(refused, Some(OutOfMemory { bytes: 2 << 20, tag: Tag::Kv }));
    assert!(pool.piece(1000, Tag::Kv).is_ok());
    assert_eq!(pool.buffer::<u64>(usize::MAX, Tag::Kv).err().map(|e| e.bytes), Some(usize::MAX));
    // What lies free is given up for a request of another size.
    drop(pool.piece(600_000, Tag::Scratch).unwrap());
    assert!(pool.piece(900_000, Tag::Scratch).is_ok());
}

#[test]
fn memory_comes_back_to_who_asks_next() {
    for bytes in [100, 20_000, 200_000, 5 << 20] {
        let pool = Pool::new(Profile::Balanced);
        let first = pool.piece(bytes, Tag::Scratch).unwrap();
        let place = range(&first);
        drop(first);
        let again = pool.piece(bytes, Tag::Scratch).unwrap();
        assert!(range(&again) == place && !again.is_fresh());
        assert_eq!(pool.snapshot().source_requests, 1);
    }
}

#[test]
fn zeroed_is_zero_where_others_wrote() {
    let pool = Pool::new(Profile::Balanced);
    pool.buffer::<u8>(5000, Tag::Scratch).unwrap().fill(9);
    let mut x = pool.zeroed::<f32>(1250, Tag::Scratch).unwrap();
    assert!(x.iter().all(|x| *x == 0.0) && x.len() == 1250);
    let place = x.as_ptr();
    pool.fit(&mut x, 3).unwrap();
    assert_eq!((x.len(), x.as_ptr()), (3, place));
    pool.fit(&mut x, 100_000).unwrap();
    assert_eq!(x.len(), 100_000);
    let mut none = Buffer::<i8>::default();
    assert!(none.is_empty() && none.capacity() == 0);
    pool.fit(&mut none, 7).unwrap();
    assert_eq!(none.len(), 7);
}

#[test]
fn priorities_say_what_goes_back_when() {
    let source = Failing::above(Heap, usize::MAX);
    let of = |release, bytes: usize, pool: &Pool<Failing<Heap>>| {
        let mut piece = pool.piece(bytes, Tag::Scratch).unwrap();
        piece.release(release);
        move || drop(piece)
    };
    const MIB: usize = 1 << 20;
    let config = Config { at_hand_bytes: 0, keep_bytes: 8 * MIB, ..Profile::Balanced.into() };
    let pool = Pool::with(source.clone(), config);
    let [immediate, high, deferred, low, first, second] = [
        Release::Immediate,
        Release::High,
        Release::Deferred,
        Release::Low,
        Release::Normal,
        Release::Normal,
    ];
    let pieces = [immediate, high, deferred, low, first, second].map(|release| of(release, 2 * MIB, &pool));
    assert_eq!(source.held_bytes(), 12 * MIB);
    let [immediate, high, deferred, low, first, second] = pieces;
    immediate();
    assert_eq!(source.held_bytes(), 10 * MIB);
    high();
    deferred();
    low();
    first();
    assert_eq!(source.held_bytes(), 10 * MIB);
    // One more than the budget: it shrinks to seven eighths of it, high priority first, then normal ones.
    second();
    assert_eq!(source.held_bytes(), 6 * MIB);
    (0..8).for_each(|_| _ = pool.collect());
    assert_eq!(source.held_bytes(), 2 * MIB, "deferred memory waits for a word");
    pool.trim(0);
    assert_eq!(source.held_bytes(), 0);
}

#[test]
#[cfg(target_os = "linux")]
fn pages_go_back_where_a_block_cannot() {
    let pool = Pool::new(Profile::Balanced);
    let bytes = crate::Pages::default().granule().max(16 << 10);
    let mut pieces: Vec<_> = (0..64).map(|_| pool.piece(bytes, Tag::Scratch).unwrap()).collect();
    pieces.iter_mut().for_each(|piece| piece.bytes_mut().fill(1));
    // One of each eight stays, so that hardly a block is free.
    let mut i = 0;
    pieces.retain(|_| {
        i += 1;
        i % 8 == 0
    });
    pool.trim(0);
    let snapshot = pool.snapshot();
    assert_eq!((snapshot.held_bytes, snapshot.free_bytes), (8 * bytes, 0));
    assert!(pieces.iter_mut().all(|piece| piece.bytes_mut().iter().all(|b| *b == 1)));
    let requests = snapshot.source_requests;
    pieces.extend((0..32).map(|_| pool.piece(bytes, Tag::Scratch).unwrap()));
    let snapshot = pool.snapshot();
    assert!(snapshot.source_requests <= requests + 2 && snapshot.held_bytes >= 40 * bytes);
    drop(pieces);
    pool.trim(0);
    assert_eq!(pool.snapshot().held_bytes, 0);
}

#[test]
fn long_lived_memory_has_just_its_size() {
    let pool = Pool::new(Profile::Inference);
    let weights = pool.piece(5_300_000, Tag::Weights).unwrap();
    assert!(weights.capacity_bytes() - 5_300_000 < crate::Pages::default().granule());
    assert_eq!(pool.snapshot().held_bytes, weights.capacity_bytes());
    drop(weights);
    assert_eq!(pool.snapshot().held_bytes, 0);
}

#[test]
fn threads_hand_pieces_to_each_other() {
    let source = Failing::above(Heap, usize::MAX);
    let pool = Pool::with(source.clone(), config(Profile::Adaptive, Tracking::Detailed));
    std::thread::scope(|scope| {
        let (sender, receiver) = mpsc::sync_channel::<Piece<_>>(64);
        scope.spawn(move || {
            for mut piece in receiver {
                assert!(ends(&mut piece).iter().all(|end| end.iter().all(|b| *b == 5)));
            }
        });
        for thread in 0..4usize {
            let (pool, sender) = (&pool, sender.clone());
            scope.spawn(move || {
                let mut own = Vec::new();
                for i in 0..3000usize {
                    let bytes = (i * 7919 + thread * 104_729) % 70_000;
                    let mut piece = pool.piece(bytes, Tag::Scratch).unwrap();
                    ends(&mut piece).into_iter().for_each(|end| end.fill(5));
                    if i % 3 == 0 {
                        sender.send(piece).unwrap()
                    } else {
                        own.push(piece)
                    }
                    if own.len() > 20 {
                        drop(own.swap_remove(i % 20));
                    }
                    if i % 500 == 499 {
                        pool.collect();
                    }
                }
            });
        }
    });
    let snapshot = pool.snapshot();
    assert_eq!((snapshot.used_bytes, snapshot.tags[0].taken, snapshot.tags[0].used), (0, 12_000, 0));
    assert_eq!(snapshot.tags[0].lifetimes.as_ref().map(|l| l.count), Some(12_000));
    pool.trim(0);
    assert_eq!(source.held_bytes(), 0);
}

#[test]
fn tags_have_peaks_and_the_requests_that_met_the_source() {
    let pool = Pool::new(Profile::Balanced);
    let of = |bytes| pool.zeroed::<u8>(bytes, Tag::Kv).unwrap();
    let (a, b) = (of(1000), of(2000));
    drop(a);
    let c = of(900);
    let snapshot = pool.snapshot();
    let [kv] = &snapshot.tags[..] else { panic!("{snapshot:?}") };
    assert_eq!((kv.taken, kv.used, kv.asked_bytes, kv.peak_bytes), (3, 2, 2900, 3000));
    assert_eq!(kv.source_requests, 2, "the third one found the place of the first");
    assert_eq!(snapshot.classes.iter().map(|c| c.source_requests).sum::<u64>(), 2);
    drop((b, c));
}

#[test]
#[cfg(target_os = "linux")]
fn what_is_discarded_of_a_buffer_is_zero_and_the_rest_stays() {
    let pool = Pool::new(Profile::Balanced);
    const PAGE: usize = if cfg!(target_arch = "x86_64") { 4096 } else { 64 * 1024 };
    // Small enough to share a block with others, and with one of its own.
    for (pages, tag) in [(4, Tag::Other), (40, Tag::Kv)] {
        let mut x = pool.zeroed::<u16>(pages * PAGE / 2, tag).unwrap();
        x.fill(7);
        let gone = x.discard(10..PAGE);
        assert!(gone <= PAGE && gone.is_multiple_of(PAGE));
        assert_eq!(x.iter().filter(|x| **x == 0).count(), gone / 2);
        assert_eq!(x.discard(0..10) + x.discard(5..5), 0);
        assert!(x[PAGE..].iter().all(|x| *x == 7));
        #[allow(clippy::reversed_empty_ranges, reason = "it must not matter")]
        let backwards = x.discard(9..5) + x.discard(0..pages * PAGE);
        assert_eq!(backwards, 0, "ranges that are none");
    }
}

#[test]
fn leaks_are_found_with_who_asked() {
    let pool = Pool::with(Heap, config(Profile::Balanced, Tracking::Debug));
    let kept = pool.piece(300, Tag::Gradients).unwrap();
    drop(pool.piece(400, Tag::Kv));
    let live = pool.live();
    assert_eq!(
        live.iter().map(|piece| (piece.bytes, piece.tag)).collect::<Vec<_>>(),
        [(300, Tag::Gradients)]
    );
    assert!(live[0].to_string().contains("leaks_are_found_with_who_asked"), "{}", live[0]);
    drop(kept);
    assert!(pool.live().is_empty());
    assert!(pool.buffer::<f32>(9, Tag::Scratch).unwrap().iter().all(|x| x.is_nan()));
}

#[test]
fn sizes_are_learned_and_unlearned() {
    let pool = Pool::with(Heap, Profile::Adaptive.into());
    let (bytes, class) = (270_000, class_bytes(class_of(270_000)));
    for _ in 0..3 {
        drop(pool.piece(bytes, Tag::Activations));
        pool.collect();
    }
    let narrower = Decision::Narrower { class_bytes: class, piece_bytes: 270_336 };
    assert_eq!(pool.decisions(), [narrower]);
    let pieces: Vec<_> = (0..4).map(|_| pool.piece(bytes, Tag::Activations).unwrap()).collect();
    assert!(pieces.iter().any(|piece| piece.capacity_bytes() == 270_336));
    drop(pieces);
    let larger: Vec<_> = (0..4).map(|_| pool.piece(class, Tag::Activations).unwrap()).collect();
    assert!(larger.iter().all(|piece| piece.capacity_bytes() == class));
    assert_eq!(pool.decisions()[1..], [Decision::Wider { class_bytes: class, request_bytes: class }]);
}

#[test]
fn threads_get_more_at_hand_where_much_passes_by() {
    let pool = Pool::with(Heap, Profile::Adaptive.into());
    for _ in 0..20 {
        let pieces: Vec<_> = (0..200).map(|_| pool.piece(30_000, Tag::Scratch).unwrap()).collect();
        drop(pieces);
    }
    pool.collect();
    assert!(matches!(pool.decisions()[0], Decision::Deeper { class_bytes: 32_768, pieces: 32, .. }));
}

#[test]
fn very_large_memory_that_is_asked_for_again_is_kept() {
    let pool = Pool::new(Profile::Adaptive);
    for _ in 0..4 {
        drop(pool.piece(64 << 20, Tag::Activations));
    }
    assert_eq!(pool.snapshot().held_bytes, 0);
    pool.collect();
    assert!(matches!(pool.decisions()[..], [Decision::KeepVeryLarge { missed: 3 }]));
    drop(pool.piece(64 << 20, Tag::Activations));
    assert_eq!(pool.snapshot().held_bytes, 64 << 20);
    // A little less fits, much less does not.
    assert_eq!(pool.piece(60 << 20, Tag::Activations).unwrap().capacity_bytes(), 64 << 20);
    assert_eq!(pool.piece(40 << 20, Tag::Activations).unwrap().capacity_bytes(), 40 << 20);
    (0..20).for_each(|_| _ = pool.collect());
    assert_eq!(pool.snapshot().held_bytes, 0);
    assert!(matches!(pool.decisions().last(), Some(Decision::ReleaseVeryLarge { unused: 8 })));
}

#[test]
fn what_was_learned_is_ready_next_time() {
    let pool = Pool::new(Profile::Adaptive);
    let pieces: Vec<_> = (0..10).map(|i| pool.piece(2000 + 40_000 * i, Tag::Activations).unwrap()).collect();
    pool.collect();
    let learned = pool.learned();
    drop(pieces);
    let next = Pool::new(Profile::Adaptive);
    assert!(next.prewarm(&learned).unwrap() >= 10 * 2000);
    let requests = next.snapshot().source_requests;
    let pieces: Vec<_> = (0..10).map(|i| next.piece(2000 + 40_000 * i, Tag::Activations).unwrap()).collect();
    assert_eq!(next.snapshot().source_requests, requests);
    drop(pieces);
    assert_eq!(next.prewarm(&learned), Ok(0));
}
