//! From the logits of one position to the next id: a fixed chain of samplers, in llama.cpp's order.
//!
//! The result is a function of the logits, the ids so far and the options alone. All arithmetic is host `f64` with the
//! `libm` crate's `exp` and `log`, candidates are ordered by (logit descending, id ascending), and the one random number
//! of a position comes from a counter-based generator keyed by (seed, position). So a token does not depend on the
//! machine, on what was drawn before (but for mirostat, which learns from it), or on the requests it shares a batch with.

mod bias;
mod candidate;
mod dry;
mod min_p;
mod mirostat;
mod options;
mod penalties;
mod philox;
mod temperature;
#[cfg(test)]
mod tests;
mod top_k;
mod top_n_sigma;
mod top_p;
mod typical;
mod xtc;

pub use mirostat::Mirostat;
pub use options::{OptionError, SamplerOptions};
pub(crate) use philox::fresh_seed;
pub use philox::{Stream, philox4x32, uniform};

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
    /// Key of the generator.
    seed: u64,
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
    Stage { name: "dry", active: dry::active, run: Run::Adjust(dry::adjust) },
    Stage {
        name: "top-n-sigma",
        active: |o| narrows(o) && o.top_n_sigma > 0.0,
        run: Run::Adjust(top_n_sigma::adjust),
    },
    Stage { name: "top-k", active: |o| o.temperature > 0.0, run: Run::Select(top_k::select) },
    Stage {
        name: "typical-p",
        active: |o| narrows(o) && o.typical_p < 1.0,
        run: Run::Narrow(typical::narrow),
    },
    Stage { name: "top-p", active: |o| narrows(o) && o.top_p < 1.0, run: Run::Narrow(top_p::narrow) },
    Stage { name: "min-p", active: |o| narrows(o) && o.min_p > 0.0, run: Run::Narrow(min_p::narrow) },
    Stage { name: "xtc", active: |o| narrows(o) && o.xtc_probability > 0.0, run: Run::Narrow(xtc::narrow) },
    Stage { name: "temperature", active: |o| o.temperature > 0.0, run: Run::Narrow(temperature::narrow) },
];

/// Whether stages that keep some candidates run: greedy sampling needs none, and mirostat keeps its own.
fn narrows(o: &SamplerOptions) -> bool {
    o.temperature > 0.0 && o.mirostat.is_none()
}

/// Draws ids from logits.
#[derive(Debug)]
pub struct Sampler {
    options: SamplerOptions,
    seed: u64,
    vocab: usize,
    /// The surprise above which mirostat keeps no candidate.
    mu: f64,
    /// Ascending by id.
    by_id: Vec<Candidate>,
    candidates: Vec<Candidate>,
}

impl Sampler {
    /// Checks the options for a vocabulary of `vocab` ids.
    pub fn new(options: SamplerOptions, vocab: usize) -> Result<Self, OptionError> {
        options.validate(vocab)?;
        let seed = options.seed.unwrap_or_else(fresh_seed);
        let mu = 2.0 * options.mirostat_tau;
        Ok(Self { options, seed, vocab, mu, by_id: Vec::new(), candidates: Vec::new() })
    }

    /// The seed in use, also when the options left it open.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Names of the stages that the options switch on, in the order they run. Greedy sampling ends in `argmax`.
    pub fn stages(&self) -> Vec<&'static str> {
        let last = match self.options.mirostat {
            _ if self.is_greedy() => "argmax",
            Some(_) => "mirostat",
            None => "draw",
        };
        let active = CHAIN.iter().filter(|stage| (stage.active)(&self.options));
        active.map(|stage| stage.name).chain([last]).collect()
    }

    /// The logits that decide what [`Sampler::sample`] will draw after `history`: with more of them the result is the same.
    pub fn need(&self, history: &[u32]) -> LogitsNeed {
        self.need_without(history, &[])
    }

    /// The logits that decide what [`Sampler::sample_without`] will draw.
    ///
    /// Greedy sampling and top-k look at the best `k` of the adjusted logits. An adjustment moves only the ids it names, and so does a
    /// ban, so the best `k` afterwards are among those ids and the best `k` + their number before.
    pub fn need_without(&self, history: &[u32], banned: &[u32]) -> LogitsNeed {
        let o = &self.options;
        let k = if self.is_greedy() { 1 } else { o.top_k };
        if k == 0 || (narrows(o) && o.top_n_sigma > 0.0) || (o.mirostat.is_some() && !self.is_greedy()) {
            return LogitsNeed::All;
        }
        let mut also: Vec<u32> =
            o.logit_bias.iter().map(|(id, _)| *id).chain(banned.iter().copied()).collect();
        if penalties::active(o) {
            also.extend(penalties::recent(o, history));
        }
        if dry::active(o) {
            also.extend(dry::repetitions(o, history).into_keys());
        }
        also.sort_unstable();
        also.dedup();
        LogitsNeed::Top { k: k.saturating_add(also.len()), also }
    }

    /// The surprise that mirostat has learnt to keep below; what [`Sampler::set_surprise`] takes the sampler back to.
    pub(crate) fn surprise(&self) -> f64 {
        self.mu
    }

    /// Takes the sampler back to where it was.
    pub(crate) fn set_surprise(&mut self, surprise: f64) {
        self.mu = surprise;
    }

    /// The next id, given the logits of the last position and all ids of the sequence so far (whose number is the
    /// position that keys the generator). `ids` says whose logits they are, ascending; empty, there is one for each id.
    pub fn sample(&mut self, ids: &[u32], logits: &[f32], history: &[u32]) -> Result<u32, SampleError> {
        self.sample_among(ids, logits, history, None)
    }

    /// The same, where some ids may not be drawn.
    pub fn sample_without(
        &mut self,
        ids: &[u32],
        logits: &[f32],
        history: &[u32],
        banned: &[u32],
    ) -> Result<u32, SampleError> {
        match banned {
            [] => self.sample(ids, logits, history),
            _ => self.sample_among(ids, logits, history, Some(&|id| !banned.contains(&id))),
        }
    }

    /// The same, where only some ids are allowed; then the logits of all ids have to be there, unless it is few that are not (see
    /// [`Sampler::need_without`]).
    pub fn sample_among(
        &mut self,
        ids: &[u32],
        logits: &[f32],
        history: &[u32],
        allowed: Option<&dyn Fn(u32) -> bool>,
    ) -> Result<u32, SampleError> {
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
        if let Some(allowed) = allowed {
            let banned = self.by_id.iter_mut().filter(|c| !allowed(c.id));
            banned.for_each(|c| c.logit = f64::NEG_INFINITY);
        }
        self.candidates.clear();
        let context = Context { options: &self.options, history, seed: self.seed };
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
        if let Some(version) = self.options.mirostat {
            mirostat::narrow(&mut self.candidates, version, self.mu, self.vocab);
        }
        let random = uniform(self.seed, history.len() as u64, Stream::Draw);
        let drawn = candidate::draw(&self.candidates, random);
        if self.options.mirostat.is_some() {
            self.mu = mirostat::learn(&self.options, &self.candidates, drawn, self.mu);
        }
        Ok(drawn)
    }

    fn is_greedy(&self) -> bool {
        self.options.temperature == 0.0
    }
}
