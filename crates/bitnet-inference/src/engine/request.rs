//! What the engine is asked for, and what it answers.

use crate::sample::SamplerOptions;
use crate::{Constraint, EmbedOptions, FinishReason, GenerateError, Timings};
use bitnet_model::AdapterUse;
use std::sync::Arc;
use std::time::Instant;

/// Names a request among those of one engine.
pub type RequestId = u64;

/// A prompt, and how its answers are to be made.
#[derive(Clone, Debug)]
pub struct Request {
    /// Ids of the prompt.
    pub prompt: Vec<u32>,
    /// The sampler chain. The seeds of further choices follow the first one's.
    pub sampling: SamplerOptions,
    /// Tokens of an answer at most; `None` is bounded by the context alone.
    pub max_tokens: Option<usize>,
    /// Texts that end an answer and do not appear in it.
    pub stop: Vec<String>,
    /// Texts that an answer may not contain, ASCII letters of either case being the same; 1024 at most. What leads to one is taken back
    /// and made anew. They are looked for before stop strings are; an answer whose form demands one fails.
    pub banned: Vec<String>,
    /// Ids that end an answer besides the model's own.
    pub stop_ids: Vec<u32>,
    /// The model's end tokens are banned instead of obeyed.
    pub ignore_eos: bool,
    /// What each answer has to look like; it ends when that is complete.
    pub form: Option<Constraint>,
    /// Answers to the one prompt.
    pub choices: usize,
    /// Give each token's log-probability, and those of so many of the likeliest.
    pub logprobs: Option<usize>,
    /// The same for the tokens of the prompt, which is then computed from its beginning.
    pub prompt_logprobs: Option<usize>,
    /// Texts that the sampler's repetitions do not reach over: tokens with one of them in them.
    pub dry_breakers: Vec<String>,
    /// Tokens to guess ahead: by the engine's draft model, where it has one, and otherwise by looking for the last few tokens earlier in
    /// the text; 0 guesses none. Changes no token.
    pub draft: usize,
    /// Begin with what the cache holds of the prompt. Changes no token.
    pub cache_prompt: bool,
    /// The adapters that prompt and answer go through; when `None`, all that are loaded, each with its own scale.
    pub adapters: Option<Vec<AdapterUse>>,
    /// Ask for the vector of the prompt instead of an answer to it.
    pub embedding: Option<EmbedOptions>,
    /// Requests of a higher priority are admitted first.
    pub priority: i32,
    /// Who asks: those with one name share what those with another get too.
    pub client: Arc<str>,
    /// When the answer has to end, whatever is there.
    pub deadline: Option<Instant>,
}

/// Where llama.cpp's repetitions break.
const DRY_BREAKERS: [&str; 4] = ["\n", ":", "\"", "*"];

impl Default for Request {
    fn default() -> Self {
        Self {
            prompt: Vec::new(),
            sampling: SamplerOptions::default(),
            max_tokens: Some(512),
            stop: Vec::new(),
            banned: Vec::new(),
            stop_ids: Vec::new(),
            ignore_eos: false,
            form: None,
            choices: 1,
            logprobs: None,
            prompt_logprobs: None,
            dry_breakers: DRY_BREAKERS.map(str::to_owned).to_vec(),
            draft: 0,
            cache_prompt: true,
            adapters: None,
            embedding: None,
            priority: 0,
            client: Arc::from(""),
            deadline: None,
        }
    }
}

/// Log-probabilities at one position, before sampling changes anything.
#[derive(Clone, Debug, PartialEq)]
pub struct Logprob {
    /// The token that stands there.
    pub id: u32,
    /// Its natural logarithm of the probability.
    pub logprob: f64,
    /// The likeliest tokens with theirs, best first.
    pub top: Vec<(u32, f64)>,
}

/// News of a request.
#[derive(Debug)]
pub struct Event {
    /// Whose.
    pub request: RequestId,
    /// Which of its answers.
    pub choice: usize,
    /// What.
    pub news: News,
}

/// What happened to an answer. Each ends with one of `Finished` and `Failed`, and nothing comes after it.
#[derive(Debug)]
pub enum News {
    /// Log-probabilities of some more tokens of the prompt, beginning with its second.
    Prompt(Vec<Logprob>),
    /// The vector of the prompt, `[hidden]`.
    Embedding(Vec<f32>),
    /// A token, or text that was held back until the end.
    Piece {
        /// Its id; `None` for text that was held back.
        id: Option<u32>,
        /// Text that is complete with it; may be empty.
        text: String,
        /// Asked for with [`Request::logprobs`].
        logprob: Option<Logprob>,
    },
    /// The end.
    Finished {
        /// Why.
        reason: FinishReason,
        /// The stop string that ended it.
        stop: Option<String>,
        /// What it took.
        timings: Timings,
    },
    /// It cannot go on.
    Failed(Arc<GenerateError>),
}

/// The log-probability of `id` in a row of all logits, and the `top` likeliest.
pub(super) fn logprob(row: &[f32], id: u32, top: usize) -> Logprob {
    let max = row.iter().fold(f32::NEG_INFINITY, |m, l| m.max(*l));
    let total: f64 = row.iter().map(|l| libm::exp(f64::from(*l) - f64::from(max))).sum();
    let base = f64::from(max) + libm::log(total);
    let of = |id: u32| f64::from(row[id as usize]) - base;
    let mut order: Vec<u32> = (0..row.len() as u32).collect();
    let by = |a: &u32, b: &u32| row[*b as usize].total_cmp(&row[*a as usize]).then(a.cmp(b));
    if top < order.len() {
        if top > 0 {
            order.select_nth_unstable_by(top - 1, by);
        }
        order.truncate(top);
    }
    order.sort_unstable_by(by);
    Logprob { id, logprob: of(id), top: order.into_iter().map(|id| (id, of(id))).collect() }
}
