//! `cargo bench -p bitnet-memory --bench fragmentation [-- PLACEMENT...]`: a day of a busy server in ten million operations, for every
//! placement and defragmenter: what is left of the largest hole, and what it costs: how long calls of maintenance took, and the longest
//! one, with the time of a processor that it had; and by how much the process is larger when all is over.

#[path = "../tests/common/mod.rs"]
mod common;

use bitnet_memory::{
    Arena, ArenaOptions, Budget, Defragmenter, Pages, Placement, Relocatable, Resident, Tag,
};
use common::{Day, Op};
use std::time::{Duration, Instant};

const CAPACITY: usize = 256 << 20;
const OPS: usize = 10_000_000;

fn main() {
    let mut chosen: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    let ops = chosen.iter().position(|a| a.parse::<usize>().is_ok()).map(|at| chosen.swap_remove(at));
    let ops = ops.and_then(|n| n.parse().ok()).unwrap_or(OPS);
    println!(
        "{:<11} {:<13} {:>7} {:>7} {:>9} {:>8} {:>6} {:>9} {:>8} {:>8} {:>7} {:>7} {:>8} {:>9}",
        "placement",
        "defragmenter",
        "end",
        "mean",
        "internal",
        "refused",
        "ns/op",
        "moved MB",
        "maint s",
        "mean us",
        "p99 us",
        "max us",
        "max CPU",
        "kept MiB"
    );
    for placement in Placement::ALL {
        for defragmenter in Defragmenter::ALL {
            let name = format!("{placement:?} {defragmenter:?}");
            if chosen.is_empty() || chosen.iter().any(|c| name.contains(c.as_str())) {
                run(ArenaOptions { placement, defragmenter }, ops);
            }
        }
    }
}

fn run(options: ArenaOptions, ops: usize) {
    let before = resident();
    let source = Resident(Pages::default());
    let arena = Arena::new(&source, CAPACITY, Tag::Other, options).expect("memory for the arena");
    let mut day = Day::new(CAPACITY, ops, 7);
    let mut held: Vec<Option<Relocatable>> = Vec::new();
    let (mut refused, mut moved, mut external, mut internal, mut calls) = (0u64, 0, 0.0, 0.0, 0u64);
    // How long each call took, and how long it was on a processor.
    let mut cycles: Vec<(Duration, Duration)> = Vec::new();
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
                let (begin, on_cpu) = (Instant::now(), thread_time());
                moved += arena.maintain(Budget::default()).moved_bytes;
                cycles.push((begin.elapsed(), thread_time().saturating_sub(on_cpu)));
                let now = arena.fragmentation();
                external += now.external;
                internal += now.internal;
            }
        }
    }
    let maintaining: Duration = cycles.iter().map(|(time, _)| time).sum();
    let took = begin.elapsed() - maintaining;
    let rests = cycles.len() as f64;
    cycles.sort_unstable();
    let p99 = cycles[cycles.len() * 99 / 100].0;
    let longest = cycles.last().copied().unwrap_or_default();
    let longest_on_cpu = cycles.iter().map(|(_, on_cpu)| *on_cpu).max().unwrap_or_default();
    let end = arena.fragmentation().external;
    drop((held, arena, day, cycles));
    println!(
        "{:<11} {:<13} {:>6.1}% {:>6.1}% {:>8.1}% {:>8} {:>6.0} {:>9.0} {:>8.2} {:>8.0} {:>7} {:>7} {:>8} {:>9.1}",
        format!("{:?}", options.placement),
        format!("{:?}", options.defragmenter),
        100.0 * end,
        100.0 * external / rests,
        100.0 * internal / rests,
        refused,
        took.as_nanos() as f64 / calls as f64,
        moved as f64 / 1e6,
        maintaining.as_secs_f64(),
        maintaining.as_secs_f64() * 1e6 / rests,
        p99.as_micros(),
        longest.0.as_micros(),
        longest_on_cpu.as_micros(),
        (resident() as f64 - before as f64) / 1048576.0,
    );
}

/// Time that this thread was on a processor.
fn thread_time() -> Duration {
    #[cfg(target_os = "linux")]
    {
        use rustix::time::{ClockId, clock_gettime};
        let time = clock_gettime(ClockId::ThreadCPUTime);
        Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
    }
    #[cfg(not(target_os = "linux"))]
    Duration::ZERO
}

/// Resident bytes of this process, from Linux; 0 elsewhere.
fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    statm.split(' ').nth(1).and_then(|pages| pages.parse::<usize>().ok()).unwrap_or(0) * 4096
}
