//! Many answers at once, through the engine.

use super::report::statistics;
use crate::failure::Failure;
use bitnet_inference::engine::{Engine, Event, News, Request, RequestId};
use bitnet_inference::sample::SamplerOptions;
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// Requests of one size that come at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    pub requests: usize,
    pub prompt: usize,
    pub answer: usize,
}

/// What all repetitions of a load took.
#[derive(Debug, Default)]
pub struct Together {
    pub requests: usize,
    /// Answers' tokens a second, of each repetition.
    rates: Vec<f64>,
    /// Until the first token of each request.
    first: Vec<Duration>,
    /// Between two tokens of a request.
    between: Vec<Duration>,
    /// All repetitions, and what the decoder took of that.
    time: Duration,
    decoder: Duration,
}

impl Load {
    /// Positions that it takes at most, given blocks of `block`: the last one of each request is begun.
    pub fn positions(&self, block: usize) -> usize {
        self.requests * (self.prompt + self.answer + 1).next_multiple_of(block)
    }

    /// One repetition; how long it took.
    pub fn run(&self, engine: &mut Engine, result: &mut Together) -> Result<Duration, Failure> {
        let vocab = engine.config().vocab as u32;
        let (mut open, mut last) = (self.requests, HashMap::<RequestId, Instant>::new());
        let mut events: Vec<Event> = Vec::new();
        let (begin, decoder) = (Instant::now(), engine.stats().decoder_time);
        for of in 0..self.requests as u32 {
            // No two prompts begin alike, and none with what the cache holds: each is computed.
            let id = |at: u32| (at + 7919 * (of + 1)).wrapping_mul(2_654_435_761) % vocab;
            engine.submit(&Request {
                prompt: (0..self.prompt as u32).map(id).collect(),
                sampling: SamplerOptions { seed: Some(u64::from(of)), ..SamplerOptions::default() },
                max_tokens: Some(self.answer),
                ignore_eos: true,
                cache_prompt: false,
                ..Request::default()
            })?;
        }
        while open > 0 {
            engine.step(&mut events);
            let now = Instant::now();
            for event in events.drain(..) {
                match event.news {
                    News::Piece { id: Some(_), .. } => match last.insert(event.request, now) {
                        None => result.first.push(now - begin),
                        Some(before) => result.between.push(now - before),
                    },
                    News::Finished { .. } => open -= 1,
                    News::Failed(e) => return Err(Failure::Runtime(crate::failure::chain(&*e))),
                    _ => {}
                }
            }
        }
        let time = begin.elapsed();
        result.time += time;
        result.decoder += engine.stats().decoder_time - decoder;
        result.requests = self.requests;
        result.rates.push((self.requests * self.answer) as f64 / time.as_secs_f64());
        Ok(time)
    }
}

impl Together {
    /// Answers' tokens a second, and how far repetitions differ.
    pub fn rate(&self) -> (f64, f64) {
        statistics(&self.rates)
    }

    /// What the engine takes of the time: all but the decoder's steps.
    pub fn engine_share(&self) -> f64 {
        1.0 - self.decoder.as_secs_f64() / self.time.as_secs_f64()
    }

    /// The time until the first token that a share of all requests stays below.
    pub fn first(&self, share: f64) -> Duration {
        percentile(&self.first, share)
    }

    /// The same for the time between two tokens.
    pub fn between(&self, share: f64) -> Duration {
        percentile(&self.between, share)
    }
}

/// The smallest value that a share of all is no greater than; nothing where there are no values.
fn percentile(values: &[Duration], share: f64) -> Duration {
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    let place = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(place.saturating_sub(1)).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values() {
        let values: Vec<Duration> = (1..=100).rev().map(Duration::from_millis).collect();
        for (share, want) in [(0.5, 50), (0.99, 99), (1.0, 100), (0.0, 1)] {
            assert_eq!(percentile(&values, share), Duration::from_millis(want), "{share}");
        }
        assert_eq!(percentile(&[], 0.5), Duration::ZERO);
    }
}
