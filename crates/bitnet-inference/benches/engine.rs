//! Throughput of the engine against the number of requests at once, and what it adds to the decoder's own time.
//!
//! ```text
//! cargo bench -p bitnet-inference --bench engine -- model.gguf [--levels 1,4,16] [--prompt 32] [--answer 64] [--draft N]
//! ```
//!
//! Every request has a prompt of random ids and llama.cpp's default sampling. Tokens a second are those of answers, from the first step
//! to the last, prompts included; a step's time is the median over steps in which every seat decodes.

use bitnet_inference::engine::{EngineOptions, Event, News, Request};
use bitnet_inference::sample::SamplerOptions;
use bitnet_inference::{LoadOptions, Model, OpenOptions};
use std::time::{Duration, Instant};

/// What the command line says.
struct Setup {
    model: String,
    levels: Vec<usize>,
    prompt: usize,
    answer: usize,
    draft: usize,
}

fn setup() -> Setup {
    let mut setup =
        Setup { model: String::new(), levels: vec![1, 2, 4, 8, 16, 32], prompt: 32, answer: 64, draft: 0 };
    // Cargo adds `--bench`.
    let mut args = std::env::args().skip(1).filter(|arg| arg != "--bench");
    while let Some(arg) = args.next() {
        let mut numbers = || -> Vec<usize> {
            let value = args.next().unwrap_or_default();
            value.split(',').map(|n| n.parse().unwrap_or_else(|_| panic!("{arg} {value:?}"))).collect()
        };
        match arg.as_str() {
            "--levels" => setup.levels = numbers(),
            "--prompt" => setup.prompt = numbers()[0],
            "--answer" => setup.answer = numbers()[0],
            "--draft" => setup.draft = numbers()[0],
            _ => setup.model = arg,
        }
    }
    setup
}

/// The value below which half of them lie.
fn median(mut times: Vec<Duration>) -> f64 {
    times.sort_unstable();
    times.get(times.len() / 2).map_or(f64::NAN, |t| t.as_secs_f64() * 1e3)
}

fn main() {
    let setup = setup();
    if setup.model.is_empty() {
        return println!("no model was named");
    }
    let most = setup.levels.iter().copied().max().unwrap_or(1);
    let load = LoadOptions {
        cache: Some(most * (setup.prompt + setup.answer).next_multiple_of(64)),
        ..LoadOptions::default()
    };
    let open = OpenOptions { load, ..OpenOptions::default() };
    let model = Model::open(setup.model.as_ref(), &open, &mut |_, _| {}).expect("the model opens");
    let options = EngineOptions { seats: most, prefix_cache: false, ..EngineOptions::default() };
    let mut engine = model.into_engine(options);
    println!("| at once | tokens/s | to one | first token p50 ms | step ms | engine's share |");
    println!("|---:|---:|---:|---:|---:|---:|");
    let mut alone = None;
    let (mut seed, vocab) = (1u64, engine.config().vocab as u64);
    let mut random = move || {
        // Knuth's MMIX generator.
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % (vocab - 3) + 3
    };
    // The first level runs once more before it counts.
    for (round, level) in setup.levels.first().into_iter().chain(&setup.levels).enumerate() {
        for _ in 0..*level {
            let request = Request {
                prompt: (0..setup.prompt).map(|_| random() as u32).collect(),
                sampling: SamplerOptions { seed: Some(random()), ..SamplerOptions::default() },
                max_tokens: Some(setup.answer),
                ignore_eos: true,
                draft: setup.draft,
                ..Request::default()
            };
            engine.submit(&request).expect("a good request");
        }
        let (begin, before) = (Instant::now(), engine.stats());
        let (mut events, mut steps, mut first, mut tokens) = (Vec::<Event>::new(), vec![], vec![], 0);
        let (mut inside, mut outside) = (Duration::ZERO, Duration::ZERO);
        let mut seen = before;
        while !engine.is_idle() {
            let begun = Instant::now();
            engine.step(&mut events);
            let (took, stats) = (begun.elapsed(), engine.stats());
            let came = events.iter().filter(|e| matches!(e.news, News::Piece { id: Some(_), .. })).count();
            tokens += came;
            if first.len() < *level {
                first.extend(vec![begin.elapsed(); came.min(*level - first.len())]);
            } else {
                let decoder = stats.decoder_time - seen.decoder_time;
                inside += decoder;
                outside += took.saturating_sub(decoder);
                if came >= *level {
                    steps.push(took);
                }
            }
            seen = stats;
            events.clear();
        }
        if round == 0 {
            continue;
        }
        let rate = tokens as f64 / begin.elapsed().as_secs_f64();
        let one = *alone.get_or_insert(rate);
        let share = 100.0 * outside.as_secs_f64() / (inside + outside).as_secs_f64();
        println!(
            "| {level} | {rate:.1} | {:.2} | {:.1} | {:.2} | {share:.2} % |",
            rate / one,
            median(first),
            median(steps)
        );
        let (drafted, accepted) = (seen.drafted - before.drafted, seen.accepted - before.accepted);
        if drafted > 0 {
            println!("  {accepted} of {drafted} guesses were right");
        }
    }
}
