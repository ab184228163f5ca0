//! From the logits of one position to the next id: a fixed chain of samplers, in llama.cpp's order.
//!
//! The result is a function of the logits, the ids so far and the options alone. All arithmetic is host `f64` with the
//! `libm` crate's `exp` and `log`, candidates are ordered by (logit descending, id ascending), and the one random number
//! of a position comes from a counter-based generator keyed by (seed, position). So a token does not depend on the
//! machine, on what was drawn before, or on the requests it shares a batch with.

mod bias;
mod candidate;
mod min_p;
mod options;
mod penalties;
mod philox;
mod temperature;
#[cfg(test)]
mod tests;
mod top_k;
mod top_p;
mod typical;

pub use options::{OptionError, SamplerOptions};
pub(crate) use philox::fresh_seed;
pub use philox::{philox4x32, uniform};

use bitnet_core::LogitsNeed;
use candidate::Candidate;

/// Why no id could be drawn.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum SampleError {
    /// The model produced NaN or +infinity.
    #[error("the logit of id {id} is {value}; the weights or the prompt drove the model out of range")]
    NotFinite {
        /// The first id with such a logit.
        id: u32,
        /// What was found.
        value: f32,
    },
    /// Every id has a logit of -infinity.
    #[error("no id can be drawn: all {vocab} logits are -infinity")]
    NothingLeft {
        /// Size of the vocabulary.
        vocab: usize,
    },
    /// There are more or fewer logits than ids.
    #[error("expected {need} logits, got {got}")]
    Length {
        /// Ids.
        need: usize,
        /// Logits given.
        got: usize,
    },
}

/// What a stage may read besides the candidates.
struct Context<'a> {
    options: &'a SamplerOptions,
    /// All ids of the sequence so far, prompt included.
    history: &'a [u32],
}

/// One row of the chain.
struct Stage {
    name: &'static str,
    /// Whether the options ask for this stage at all.
    active: fn(&SamplerOptions) -> bool,
    run: Run,
}

/// What a stage works on. All `Adjust` rows come before the one `Select` row, all `Narrow` rows after it.
enum Run {
    /// Changes logits of candidates that ascend by id.
    Adjust(fn(&mut [Candidate], &Context<'_>)),
    /// Makes the sorted list of candidates.
    Select(fn(&[Candidate], &Context<'_>, &mut Vec<Candidate>)),
    /// Drops or rescales candidates and leaves them sorted, never empty.
    Narrow(fn(&mut Vec<Candidate>, &Context<'_>)),
}

/// The chain. A new sampler is a file and a row.
static CHAIN: &[Stage] = &[
    Stage { name: "logit-bias", active: |o| !o.logit_bias.is_empty(), run: Run::Adjust(bias::adjust) },
    Stage { name: "penalties", active: penalties::active, run: Run::Adjust(penalties::adjust) },
    Stage { name: "top-k", active: |o| o.temperature > 0.0, run: Run::Select(top_k::select) },
    Stage {
        name: "typical-p",
        active: |o| o.temperature > 0.0 && o.typical_p < 1.0,
        run: Run::Narrow(typical::narrow),
    },
    Stage {
        name: "top-p",
        active: |o| o.temperature > 0.0 && o.top_p < 1.0,
        run: Run::Narrow(top_p::narrow),
    },
    Stage {
        name: "min-p",
        active: |o| o.temperature > 0.0 && o.min_p > 0.0,
        run: Run::Narrow(min_p::narrow),
    },
    Stage { name: "temperature", active: |o| o.temperature > 0.0, run: Run::Narrow(temperature::narrow) },
];

/// Draws ids from logits.
#[derive(Debug)]
pub struct Sampler {
    options: SamplerOptions,
    seed: u64,
    vocab: usize,
    /// Ascending by id.
    by_id: Vec<Candidate>,
    candidates: Vec<Candidate>,
}

impl Sampler {
    /// Checks the options for a vocabulary of `vocab` ids.
    pub fn new(options: SamplerOptions, vocab: usize) -> Result<Self, OptionError> {
        options.validate(vocab)?;
        let seed = options.seed.unwrap_or_else(fresh_seed);
        Ok(Self { options, seed, vocab, by_id: Vec::new(), candidates: Vec::new() })
    }

    /// The seed in use, also when the options left it open.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Names of the stages that the options switch on, in the order they run. Greedy sampling ends in `argmax`.
    pub fn stages(&self) -> Vec<&'static str> {
        let last = if self.is_greedy() { "argmax" } else { "draw" };
        let active = CHAIN.iter().filter(|stage| (stage.active)(&self.options));
        active.map(|stage| stage.name).chain([last]).collect()
    }

    /// The logits that decide what [`Sampler::sample`] will draw after `history`: with more of them the result is the same.
    ///
    /// Greedy sampling and top-k look at the best `k` of the adjusted logits. An adjustment moves only the ids it names, so
    /// the best `k` afterwards are among those ids and the best `k` + their number before.
    pub fn need(&self, history: &[u32]) -> LogitsNeed {
        let o = &self.options;
        let k = if self.is_greedy() { 1 } else { o.top_k };
        if k == 0 {
            return LogitsNeed::All;
        }
        let mut also: Vec<u32> = o.logit_bias.iter().map(|(id, _)| *id).collect();
        if penalties::active(o) {
            also.extend(penalties::recent(o, history));
        }
        also.sort_unstable();
        also.dedup();
        LogitsNeed::Top { k: k.saturating_add(also.len()), also }
    }

    /// The next id, given the logits of the last position and all ids of the sequence so far (whose number is the
    /// position that keys the generator). `ids` says whose logits they are, ascending; empty, there is one for each id.
    pub fn sample(&mut self, ids: &[u32], logits: &[f32], history: &[u32]) -> Result<u32, SampleError> {
        let need = if ids.is_empty() { self.vocab } else { ids.len() };
        if logits.len() != need {
            return Err(SampleError::Length { need, got: logits.len() });
        }
        let id = |at: usize| ids.get(at).copied().unwrap_or(at as u32);
        if let Some(at) = logits.iter().position(|l| l.is_nan() || *l == f32::INFINITY) {
            return Err(SampleError::NotFinite { id: id(at), value: logits[at] });
        }
        self.by_id.clear();
        let candidates =
            logits.iter().enumerate().map(|(at, &l)| Candidate { id: id(at), logit: f64::from(l) });
        self.by_id.extend(candidates);
        self.candidates.clear();
        let context = Context { options: &self.options, history };
        for stage in CHAIN.iter().filter(|stage| (stage.active)(&self.options)) {
            match stage.run {
                Run::Adjust(adjust) => adjust(&mut self.by_id, &context),
                Run::Select(select) => {
                    select(&self.by_id, &context, &mut self.candidates);
                    if self.candidates.is_empty() {
                        return Err(SampleError::NothingLeft { vocab: self.vocab });
                    }
                }
                Run::Narrow(narrow) => narrow(&mut self.candidates, &context),
            }
        }
        if self.is_greedy() {
            return candidate::argmax(&self.by_id).ok_or(SampleError::NothingLeft { vocab: self.vocab });
        }
        Ok(candidate::draw(&self.candidates, uniform(self.seed, history.len() as u64)))
    }

    fn is_greedy(&self) -> bool {
        self.options.temperature == 0.0
    }
}
