//! Replays traces through the pool and other allocators, in turn: `replay [--touch] [TRACE]...`; without a trace, two that are made up.
//!
//! A replay is first run whole, which gives its time without that of the loop, and then with a look at the clock before and after each
//! allocation and each giving back, which gives the time of each size. With `--touch`, bytes are written as they are taken.

use bitnet_memory::{Pool, Profile};
use bitnet_memory_bench::allocator::{Allocator, Global, Mimalloc, Nothing};
use bitnet_memory_bench::clock::{calibrate, ticks};
use bitnet_memory_bench::trace::{Event, churn, decode, layers, of_sizes};
use bitnet_memory_bench::{Random, quantile};
use std::alloc::System;

const ROUNDS: usize = 41;
const SIZES: std::ops::RangeInclusive<usize> = 16 << 10..=4 << 20;
const BOUNDS: [usize; 6] = [16 << 10, 64 << 10, 256 << 10, 1 << 20, 2 << 20, usize::MAX];

/// A byte in so many is written: nearly each page, each at another line. Were it the first line each time, memory that begins with a page
/// would meet in one set of the first cache, which no program does that writes all of it.
const TOUCHED: usize = 4096 + 64;

struct Run {
    name: &'static str,
    /// Nanoseconds of each whole replay.
    whole: Vec<f64>,
    /// Ticks of taking and giving back together, by size.
    each: Vec<Vec<u64>>,
}

#[inline(always)]
fn touch<A: Allocator>(memory: &A::Memory, bytes: usize) {
    for at in (0..bytes).step_by(TOUCHED) {
        // SAFETY: there are so many bytes.
        unsafe { A::start(memory).add(at).write_volatile(1) }
    }
}

/// Nanoseconds of a replay repeated until it has some thousand events.
#[inline(never)]
fn whole<A: Allocator>(
    a: &A,
    events: &[Event],
    room: &mut Vec<Option<A::Memory>>,
    is_touched: bool,
    ns: f64,
) -> f64 {
    let times = (20_000 / events.len()).max(1);
    let first = ticks();
    for _ in 0..times {
        let mut next = 0;
        for event in events {
            match *event {
                Event::Take(bytes) => {
                    let memory = a.take(bytes);
                    if is_touched {
                        touch::<A>(&memory, bytes);
                    }
                    room[next] = Some(memory);
                    next += 1;
                }
                Event::Put(number) => a.put(room[number].take().expect("memory that was taken")),
            }
        }
    }
    (ticks() - first) as f64 * ns / times as f64
}

#[inline(never)]
fn each<A: Allocator>(
    a: &A,
    events: &[Event],
    room: &mut [Option<(A::Memory, u64, usize)>],
    is_touched: bool,
    nothing: u64,
    out: &mut [Vec<u64>],
) {
    let mut next = 0;
    for event in events {
        match *event {
            Event::Take(bytes) => {
                let first = ticks();
                let memory = a.take(bytes);
                if is_touched {
                    touch::<A>(&memory, bytes);
                }
                room[next] = Some((memory, (ticks() - first).saturating_sub(nothing), bytes));
                next += 1;
            }
            Event::Put(number) => {
                let (memory, taking, bytes) = room[number].take().expect("memory that was taken");
                let first = ticks();
                a.put(memory);
                let giving = (ticks() - first).saturating_sub(nothing);
                let class = BOUNDS.iter().position(|bound| bytes < *bound).unwrap_or(0);
                out[class.max(1) - 1].push(taking + giving);
            }
        }
    }
}

fn main() {
    let mut args: Vec<String> = std::env::args().skip(1).collect();
    let is_touched = args.iter().any(|a| a == "--touch");
    args.retain(|a| a != "--touch");
    let (ns, nothing) = calibrate();
    let (system, jemalloc) = (Global(System), Global(tikv_jemallocator::Jemalloc));
    let read = |path: String| (decode(&std::fs::read(&path).expect("a trace")), path);
    let mut traces: Vec<(Vec<Event>, String)> = args.into_iter().map(read).collect();
    if traces.is_empty() {
        traces = vec![(layers(), "layers".into()), (churn(&mut Random(3)), "churn".into())];
    }
    // Nanoseconds of all traces, once.
    let mut total = [0.0; 4];
    for (events, path) in &traces {
        // A pool for each trace, so that what it learned is of that trace.
        let pool = Pool::new(Profile::Adaptive);
        let events = of_sizes(events, SIZES);
        if events.is_empty() {
            println!("{path}: nothing of these sizes");
            continue;
        }
        let names = ["pool", "system", "jemalloc", "mimalloc"];
        let run = |name| Run { name, whole: Vec::new(), each: vec![Vec::new(); BOUNDS.len() - 1] };
        let mut runs = names.map(run);
        let mut loops = Vec::new();
        macro_rules! go {
            ($round:expr, $a:expr, $run:expr) => {{
                let time = whole($a, &events, &mut (0..events.len()).map(|_| None).collect(), is_touched, ns);
                let mut times = vec![Vec::new(); BOUNDS.len() - 1];
                let mut room: Vec<_> = (0..events.len()).map(|_| None).collect();
                each($a, &events, &mut room, is_touched, nothing, &mut times);
                if $round > 2 {
                    $run.whole.push(time);
                    $run.each.iter_mut().zip(times).for_each(|(all, new)| all.extend(new));
                }
            }};
        }
        for round in 0..ROUNDS + 3 {
            loops.push(whole(&Nothing, &events, &mut (0..events.len()).map(|_| None).collect(), false, ns));
            go!(round, &pool, runs[0]);
            go!(round, &system, runs[1]);
            go!(round, &jemalloc, runs[2]);
            go!(round, &Mimalloc, runs[3]);
        }
        loops.sort_by(f64::total_cmp);
        let (empty, pairs) = (quantile(&loops, 0.5), events.len() as f64 / 2.0);
        println!("{path}: {} events; the loop itself {:.1} ns a pair", events.len(), empty / pairs);
        for (run, total) in runs.iter_mut().zip(&mut total) {
            run.whole.sort_by(f64::total_cmp);
            *total += quantile(&run.whole, 0.5) - empty;
            let [low, median, high] = [0.25, 0.5, 0.75].map(|q| (quantile(&run.whole, q) - empty) / pairs);
            println!("  {:9} {median:8.1} ns a pair ({low:.1}-{high:.1})", run.name);
        }
        println!("  ns to take and give back, median (quartiles), by size from");
        for (class, from) in BOUNDS[..BOUNDS.len() - 1].iter().enumerate() {
            if runs[0].each[class].is_empty() {
                continue;
            }
            print!("  {:5} KiB", from >> 10);
            for run in &mut runs {
                let times = &mut run.each[class];
                times.sort_unstable();
                let [low, median, high] = [0.25, 0.5, 0.75].map(|q| quantile(times, q) as f64 * ns);
                print!("  {} {median:.0} ({low:.0}-{high:.0})", run.name);
            }
            println!();
        }
        let decisions = pool.decisions();
        (0..4).for_each(|_| _ = pool.collect());
        let kept = pool.snapshot();
        pool.trim(0);
        println!(
            "  the pool asked the source {} times and held {:.1} MiB at most, {:.1} after four collections without use, {} trimmed",
            kept.source_requests,
            kept.held_peak_bytes as f64 / 1048576.0,
            kept.held_bytes as f64 / 1048576.0,
            pool.snapshot().held_bytes
        );
        decisions.iter().for_each(|decision| println!("    {decision}"));
    }
    let best = total[1..].iter().copied().fold(f64::INFINITY, f64::min);
    println!(
        "all traces: {:.1} us; system {:.1}, jemalloc {:.1}, mimalloc {:.1}: {:.2} of the best other",
        total[0] / 1e3,
        total[1] / 1e3,
        total[2] / 1e3,
        total[3] / 1e3,
        total[0] / best
    );
}
