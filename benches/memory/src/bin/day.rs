//! A day of a server in ten million operations: `day [SEED]`. Sizes from 64 bytes to 64 MiB; steps that give back what they took,
//! requests that live through many of them, and an adversary that keeps one piece in so many of everything.

use bitnet_memory::{Host, Piece, Pool, Profile, Tag};
use bitnet_memory_bench::{Random, resident};

const OPERATIONS: usize = 10_000_000;
/// Bytes in use at most.
const LOAD: usize = 1 << 30;
const HOURS: usize = 24;

fn size(random: &mut Random) -> usize {
    match random.below(1000) {
        0 => (4 << 20) + random.below(60 << 20),
        1..100 => f64::exp2(18.0 + 4.0 * random.unit()) as usize,
        _ => f64::exp2(6.0 + 12.0 * random.unit()) as usize,
    }
}

fn main() {
    let seed = std::env::args().nth(1).and_then(|a| a.parse().ok()).unwrap_or(1);
    let mut random = Random(seed);
    let pool = Pool::new(Profile::Adaptive);
    // By when they end: this step, some time, with the day.
    let mut lists: [Vec<Piece<Host>>; 3] = Default::default();
    let (mut used, mut operations) = ([0; 3], 0);
    let begin = resident();
    println!("resident at the start {:.1} MiB", begin as f64 / 1048576.0);
    for hour in 0..HOURS {
        // Nights are quiet.
        let busy = 0.15 + 0.85 * (std::f64::consts::PI * hour as f64 / HOURS as f64).sin().powi(2);
        let load = (LOAD as f64 * busy) as usize;
        while operations < OPERATIONS / HOURS * (hour + 1) {
            let list = match random.below(1000) {
                0 => 2,
                1..300 => 1,
                _ => 0,
            };
            let bytes = size(&mut random);
            let mut piece = pool.piece(bytes, Tag::Activations).expect("memory");
            operations += 1;
            let all = piece.bytes_mut();
            let last = all.len() - 1;
            (all[0], all[last]) = (1, 1);
            used[list] += piece.capacity_bytes();
            lists[list].push(piece);
            if lists[0].len() >= 100 {
                operations += lists[0].len();
                used[0] = 0;
                lists[0].clear();
                if random.below(100) == 0 {
                    pool.collect();
                }
            }
            // Requests end in no order, and the adversary makes room for itself only in the end.
            while used[1] + used[2] > load && !lists[1].is_empty() {
                let at = random.below(lists[1].len());
                let piece = lists[1].swap_remove(at);
                used[1] -= piece.capacity_bytes();
                operations += 1;
            }
            while used[2] > LOAD / 8 {
                let at = random.below(lists[2].len());
                let piece = lists[2].swap_remove(at);
                used[2] -= piece.capacity_bytes();
                operations += 1;
            }
        }
        if hour % 3 == 2 {
            let s = pool.snapshot();
            println!(
                "hour {:2}: in use {:6.1} MiB, free {:6.1}, held {:6.1}, resident {:6.1}",
                hour + 1,
                s.used_bytes as f64 / 1048576.0,
                s.free_bytes as f64 / 1048576.0,
                s.held_bytes as f64 / 1048576.0,
                resident() as f64 / 1048576.0
            );
        }
    }
    lists[0].clear();
    lists[1].clear();
    (0..4).for_each(|_| _ = pool.collect());
    pool.trim(0);
    let s = pool.snapshot();
    println!(
        "the adversary's pieces alone, trimmed: in use {:.1} MiB, free {:.1}, held {:.1}: external fragmentation {:.1} %",
        s.used_bytes as f64 / 1048576.0,
        s.free_bytes as f64 / 1048576.0,
        s.held_bytes as f64 / 1048576.0,
        100.0 * s.free_bytes as f64 / s.held_bytes as f64
    );
    lists[2].clear();
    pool.trim(0);
    println!(
        "all given back: held {} bytes, resident {:.1} MiB, {:.1} MiB at most held, {} requests to the source",
        pool.snapshot().held_bytes,
        resident() as f64 / 1048576.0,
        pool.snapshot().held_peak_bytes as f64 / 1048576.0,
        pool.snapshot().source_requests
    );
}
