//! One test: what is run, and how long it takes.

use crate::failure::Failure;
use bitnet_inference::sample::{Sampler, SamplerOptions};
use bitnet_inference::{GenerateError, Model};
use bitnet_model::{Rows, StepOutput};
use std::time::{Duration, Instant};

/// A prompt in steps of [`Sizes::step`] tokens, then an answer token by token, behind `depth` tokens.
#[derive(Clone, Copy, Debug)]
pub struct Test {
    pub prompt: usize,
    pub answer: usize,
    pub depth: usize,
}

/// The batch sizes of llama.cpp: one for callers, one for the machine.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    pub batch: usize,
    pub ubatch: usize,
}

impl Sizes {
    /// Tokens of one prefill step.
    pub fn step(self) -> usize {
        self.batch.min(self.ubatch)
    }
}

/// What one repetition took.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    pub time: Duration,
    /// Until the logits of the answer's first token were there.
    pub first: Duration,
}

impl Test {
    /// Positions it takes.
    pub fn len(&self) -> usize {
        self.depth + self.prompt + self.answer
    }

    /// Tokens that are timed.
    pub fn tokens(&self) -> usize {
        self.prompt + self.answer
    }

    /// llama-bench's name: `pp512`, `tg128`, `pp512+tg128`, `tg128 @ d512`.
    pub fn name(&self) -> String {
        let mut name = match (self.prompt, self.answer) {
            (prompt, 0) => format!("pp{prompt}"),
            (0, answer) => format!("tg{answer}"),
            (prompt, answer) => format!("pp{prompt}+tg{answer}"),
        };
        if self.depth > 0 {
            name += &format!(" @ d{}", self.depth);
        }
        name
    }

    /// Where each step begins, and its tokens.
    pub fn steps(&self, sizes: Sizes) -> impl Iterator<Item = (usize, usize)> {
        let (from, to) = (self.depth, self.depth + self.prompt);
        let prompt = (from..to).step_by(sizes.step()).map(move |at| (at, sizes.step().min(to - at)));
        prompt.chain((to..to + self.answer).map(|at| (at, 1)))
    }

    /// Fills the cache up to the test's depth.
    pub fn fill(&self, model: &mut Model, sizes: Sizes) -> Result<(), Failure> {
        model.rewind(self.depth);
        let from = model.position();
        Self { prompt: self.depth - from, answer: 0, depth: from }.each_step(model, sizes)?;
        Ok(())
    }

    /// Runs what is timed once before: caches, page tables and clocks. One step of an answer is like the next.
    pub fn warm(&self, model: &mut Model, sizes: Sizes) -> Result<(), Failure> {
        Self { answer: self.answer.min(1), ..*self }.each_step(model, sizes)?;
        model.rewind(self.depth);
        Ok(())
    }

    /// One repetition.
    pub fn run(&self, model: &mut Model, sizes: Sizes) -> Result<Sample, Failure> {
        let sample = self.each_step(model, sizes)?;
        model.rewind(self.depth);
        Ok(sample)
    }

    fn each_step(&self, model: &mut Model, sizes: Sizes) -> Result<Sample, Failure> {
        let vocab = model.config().vocab;
        // What the default sampler chain looks at.
        let sampler = Sampler::new(SamplerOptions::default(), vocab).map_err(GenerateError::from)?;
        let mut out = StepOutput { need: sampler.need(&[]), ..StepOutput::default() };
        let mut ids = Vec::new();
        let (begin, mut first) = (Instant::now(), None);
        for (at, m) in self.steps(sizes) {
            // Which ids they are does not matter to speed.
            ids.clear();
            ids.extend((at..at + m).map(|i| (i as u32).wrapping_mul(2_654_435_761) % vocab as u32));
            out.rows = if at + m < self.depth + self.prompt { Rows::None } else { Rows::Last };
            model.step(&ids, &mut out)?;
            if out.rows == Rows::Last {
                first.get_or_insert_with(|| begin.elapsed());
            }
        }
        let time = begin.elapsed();
        Ok(Sample { time, first: first.unwrap_or(time) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_steps_are_those_of_llama_bench() {
        let sizes = Sizes { batch: 2048, ubatch: 512 };
        let steps = |prompt, answer, depth| {
            let test = Test { prompt, answer, depth };
            (test.name(), test.steps(sizes).collect::<Vec<_>>())
        };
        assert_eq!(steps(600, 0, 0), ("pp600".to_owned(), vec![(0, 512), (512, 88)]));
        assert_eq!(steps(0, 2, 9), ("tg2 @ d9".to_owned(), vec![(9, 1), (10, 1)]));
        assert_eq!(steps(3, 1, 0), ("pp3+tg1".to_owned(), vec![(0, 3), (3, 1)]));
    }
}
