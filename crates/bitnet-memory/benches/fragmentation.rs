//! `cargo bench -p bitnet-memory --bench fragmentation [-- PLACEMENT...]`: a day of a busy server in ten million operations, for every
//! placement and defragmenter: what is left of the largest hole, and what it costs.

#[path = "../tests/common/mod.rs"]
mod common;

use bitnet_memory::{Arena, ArenaOptions, Budget, Defragmenter, Pages, Placement, Relocatable, Tag};
use common::{Day, Op};
use std::time::{Duration, Instant};

const CAPACITY: usize = 256 << 20;
const OPS: usize = 10_000_000;

const PLACEMENTS: [Placement; 4] =
    [Placement::BestFit, Placement::FirstFit, Placement::Segregated, Placement::Adaptive];
const DEFRAGMENTERS: [Defragmenter; 6] = [
    Defragmenter::Off,
    Defragmenter::Buddy,
    Defragmenter::Sliding,
    Defragmenter::Generational,
    Defragmenter::Hybrid,
    Defragmenter::Automatic,
];

fn main() {
    let mut chosen: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    let ops = chosen.iter().position(|a| a.parse::<usize>().is_ok()).map(|at| chosen.swap_remove(at));
    let ops = ops.and_then(|n| n.parse().ok()).unwrap_or(OPS);
    println!(
        "{:<11} {:<13} {:>9} {:>9} {:>9} {:>9} {:>8} {:>9} {:>9} {:>8} {:>8}",
        "placement",
        "defragmenter",
        "end",
        "mean",
        "internal",
        "refused",
        "ns/op",
        "moved MB",
        "maint s",
        "p99 us",
        "max us"
    );
    for placement in PLACEMENTS {
        for defragmenter in DEFRAGMENTERS {
            let name = format!("{placement:?} {defragmenter:?}");
            if chosen.is_empty() || chosen.iter().any(|c| name.contains(c.as_str())) {
                run(ArenaOptions { placement, defragmenter }, ops);
            }
        }
    }
}

fn run(options: ArenaOptions, ops: usize) {
    let arena = Arena::new(&Pages::default(), CAPACITY, Tag::Other, options).expect("memory for the arena");
    let mut day = Day::new(CAPACITY, ops, 7);
    let mut held: Vec<Option<Relocatable>> = Vec::new();
    let (mut refused, mut moved, mut external, mut internal, mut calls) = (0u64, 0, 0.0, 0.0, 0u64);
    let mut cycles: Vec<Duration> = Vec::new();
    let begin = Instant::now();
    while let Some(op) = day.next() {
        match op {
            Op::Allocate { block, len } => {
                calls += 1;
                held.resize_with(held.len().max(block + 1), || None);
                match arena.allocate(len) {
                    Ok(mut handle) => {
                        handle.write()[..8].copy_from_slice(&(len as u64).to_le_bytes());
                        held[block] = Some(handle);
                    }
                    Err(_) => {
                        refused += 1;
                        day.refused(block);
                    }
                }
            }
            Op::Free { block } => {
                calls += 1;
                let handle = held[block].take().expect("a block that was given");
                assert_eq!(handle.read()[..8], (handle.len_bytes() as u64).to_le_bytes());
            }
            Op::Rest => {
                let begin = Instant::now();
                moved += arena.maintain(Budget::default()).moved_bytes;
                cycles.push(begin.elapsed());
                let now = arena.fragmentation();
                external += now.external;
                internal += now.internal;
            }
        }
    }
    let maintaining: Duration = cycles.iter().sum();
    let took = begin.elapsed() - maintaining;
    let rests = cycles.len() as f64;
    cycles.sort_unstable();
    let p99 = cycles[cycles.len() * 99 / 100];
    println!(
        "{:<11} {:<13} {:>8.1}% {:>8.1}% {:>8.1}% {:>9} {:>8.0} {:>9.0} {:>9.2} {:>8} {:>8}",
        format!("{:?}", options.placement),
        format!("{:?}", options.defragmenter),
        100.0 * arena.fragmentation().external,
        100.0 * external / rests,
        100.0 * internal / rests,
        refused,
        took.as_nanos() as f64 / calls as f64,
        moved as f64 / 1e6,
        maintaining.as_secs_f64(),
        p99.as_micros(),
        cycles.last().map_or(0, |c| c.as_micros()),
    );
}
