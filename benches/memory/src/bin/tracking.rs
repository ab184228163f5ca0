//! What levels of tracking cost in a loop that only takes and gives back: `tracking`.

use bitnet_memory::{Config, Host, Pages, Piece, Pool, Profile, Tag, Tracking};
use bitnet_memory_bench::clock::{calibrate, ticks};
use bitnet_memory_bench::{Random, quantile};

const LEVELS: [Tracking; 4] = [Tracking::Off, Tracking::Minimal, Tracking::Standard, Tracking::Detailed];

/// Memory that lives long is not for loops.
const TAGS: [Tag; 4] = [Tag::Activations, Tag::Scratch, Tag::Gradients, Tag::Other];

/// Ticks of many pairs, eight pieces in use.
#[inline(never)]
fn pass(pool: &Pool, sizes: &[usize]) -> u64 {
    let mut live: [Option<Piece<Host>>; 8] = Default::default();
    let first = ticks();
    for (i, bytes) in sizes.iter().enumerate() {
        live[i % 8] = None;
        live[i % 8] = pool.piece(*bytes, TAGS[i % 4]).ok();
    }
    ticks() - first
}

fn main() {
    let (ns, _) = calibrate();
    let mut random = Random(7);
    for (name, low, high) in [("16 KiB to 4 MiB", 14.0, 22.0), ("64 B to 64 KiB", 6.0, 16.0)] {
        let sizes: Vec<usize> =
            (0..20_000).map(|_| f64::exp2(low + (high - low) * random.unit()) as usize).collect();
        let mut times: [Vec<f64>; 4] = Default::default();
        // Several pools of each level: where one happens to lie in memory makes more of a difference than what it counts.
        for _ in 0..20 {
            let pools = LEVELS.map(|tracking| {
                let config = Config { tracking, ..Profile::Balanced.into() };
                Pool::on_host(Pages::default(), config)
            });
            for round in 0..30 {
                for (times, pool) in times.iter_mut().zip(&pools) {
                    let time = pass(pool, &sizes) as f64 * ns / sizes.len() as f64;
                    if round > 10 {
                        times.push(time);
                    }
                }
            }
        }
        println!("{name}:");
        let off = {
            times[0].sort_by(f64::total_cmp);
            quantile(&times[0], 0.5)
        };
        for (level, times) in LEVELS.iter().zip(&mut times) {
            times.sort_by(f64::total_cmp);
            let [low, median, high] = [0.25, 0.5, 0.75].map(|q| quantile(times, q));
            println!(
                "  {:9} {median:6.2} ns a pair ({low:.2}-{high:.2}), {:+.1} %",
                level.name(),
                100.0 * (median / off - 1.0)
            );
        }
    }
}
