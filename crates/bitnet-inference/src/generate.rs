//! One answer: prefill, then token by token until something says stop.

use crate::sample::{Sampler, SamplerOptions};
use crate::stop::StopStrings;
use crate::{GenerateError, Model};
use bitnet_model::{Rows, StepOutput};
use bitnet_tokenizer::DecodeStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How an answer is to be made.
#[derive(Clone, Debug)]
pub struct GenerateOptions {
    /// The sampler chain.
    pub sampling: SamplerOptions,
    /// Tokens at most; `None` is bounded by the context alone.
    pub max_tokens: Option<usize>,
    /// Texts that end the answer and do not appear in it.
    pub stop: Vec<String>,
    /// End tokens are banned instead of obeyed.
    pub ignore_eos: bool,
    /// Tokens of one prefill step. Changes speed and memory, no bit.
    pub batch: usize,
    /// Set from outside to end the answer after the present step.
    pub cancel: Option<Arc<AtomicBool>>,
}

impl Default for GenerateOptions {
    fn default() -> Self {
        Self {
            sampling: SamplerOptions::default(),
            max_tokens: Some(512),
            stop: Vec::new(),
            ignore_eos: false,
            batch: 512,
            cancel: None,
        }
    }
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// An end token or a stop string.
    Stop,
    /// As many tokens as were allowed, or the context is full.
    Length,
    /// Somebody cancelled it.
    Cancelled,
}

impl FinishReason {
    /// The word that clients of the OpenAI API know.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::Cancelled => "cancelled",
        }
    }
}

/// A token of the answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Its id; `None` for text that was held back until the end.
    pub id: Option<u32>,
    /// Text that is complete with it; may be empty.
    pub text: String,
}

/// What an answer took.
#[derive(Clone, Copy, Debug, Default)]
pub struct Timings {
    /// Tokens of the prompt that were computed.
    pub prompt_tokens: usize,
    /// Tokens of the prompt that the cache held already.
    pub cached_tokens: usize,
    /// Time for them.
    pub prompt: Duration,
    /// Tokens of the answer.
    pub tokens: usize,
    /// Time from the first one on.
    pub generation: Duration,
}

impl Timings {
    /// Prompt tokens a second.
    pub fn prompt_per_second(&self) -> f64 {
        rate(self.prompt_tokens, self.prompt)
    }

    /// Steps of generation a second: the first token comes with the prompt.
    pub fn tokens_per_second(&self) -> f64 {
        rate(self.tokens.saturating_sub(1), self.generation)
    }
}

fn rate(tokens: usize, time: Duration) -> f64 {
    if time.is_zero() { 0.0 } else { tokens as f64 / time.as_secs_f64() }
}

/// An answer in the making: an iterator over its pieces.
pub struct Generation<'a> {
    model: &'a mut Model,
    options: GenerateOptions,
    sampler: Sampler,
    stream: Option<DecodeStream>,
    stop: StopStrings,
    end_ids: Vec<u32>,
    /// Prompt and answer.
    ids: Vec<u32>,
    prompt_len: usize,
    out: StepOutput,
    timings: Timings,
    finish: Option<FinishReason>,
    /// Whether held text has been given out.
    drained: bool,
}

impl<'a> Generation<'a> {
    pub(crate) fn new(
        model: &'a mut Model,
        prompt: &[u32],
        mut options: GenerateOptions,
    ) -> Result<Self, GenerateError> {
        model.check(prompt, 1)?;
        let end_ids = model.end_ids();
        let vocab = model.config().vocab;
        if options.ignore_eos {
            let known = end_ids.iter().filter(|id| (**id as usize) < vocab);
            options.sampling.logit_bias.extend(known.map(|id| (*id, f64::NEG_INFINITY)));
        }
        let sampler = Sampler::new(options.sampling.clone(), vocab)?;
        let stream = model.tokenizer.as_ref().map(|t| DecodeStream::new(Arc::clone(t), true));
        let stop = StopStrings::new(options.stop.clone());
        let finish = (options.max_tokens == Some(0)).then_some(FinishReason::Length);
        Ok(Self {
            model,
            options,
            sampler,
            stream,
            stop,
            end_ids,
            ids: prompt.to_vec(),
            prompt_len: prompt.len(),
            out: StepOutput::default(),
            timings: Timings::default(),
            finish,
            drained: false,
        })
    }

    /// Why it ended; `None` while it goes on.
    pub fn finish_reason(&self) -> Option<FinishReason> {
        self.finish
    }

    /// What it took so far.
    pub fn timings(&self) -> Timings {
        self.timings
    }

    /// Tokens of the answer so far, the end token among them.
    pub fn tokens(&self) -> &[u32] {
        &self.ids[self.prompt_len..]
    }

    /// The seed in use.
    pub fn seed(&self) -> u64 {
        self.sampler.seed()
    }

    fn cancelled(&self) -> bool {
        self.options.cancel.as_ref().is_some_and(|c| c.load(Ordering::Relaxed))
    }

    /// Brings the cache to all ids and leaves the logits of the last one.
    fn advance(&mut self) -> Result<(), GenerateError> {
        let model = &mut *self.model;
        let common = model.cached.iter().zip(&self.ids).take_while(|(a, b)| a == b).count();
        // The last id is always computed: its logits are wanted.
        let keep = common.min(self.ids.len() - 1);
        model.decoder.rewind(keep);
        model.cached.truncate(keep);
        let chunks: Vec<&[u32]> = self.ids[keep..].chunks(self.options.batch.max(1)).collect();
        for (i, chunk) in chunks.iter().enumerate() {
            let last = i + 1 == chunks.len();
            if !last && self.options.cancel.as_ref().is_some_and(|c| c.load(Ordering::Relaxed)) {
                return Ok(());
            }
            self.out.rows = if last { Rows::Last } else { Rows::None };
            self.out.need = self.sampler.need(&self.ids);
            model.decoder.step(chunk, &mut self.out)?;
            model.cached.extend(*chunk);
        }
        if self.timings.tokens == 0 {
            (self.timings.cached_tokens, self.timings.prompt_tokens) = (keep, self.ids.len() - keep);
        }
        Ok(())
    }

    fn token(&mut self) -> Result<Option<Piece>, GenerateError> {
        let begin = Instant::now();
        self.advance()?;
        if self.cancelled() {
            self.finish = Some(FinishReason::Cancelled);
            return Ok(None);
        }
        let id = self.sampler.sample(&self.out.ids, &self.out.logits, &self.ids)?;
        self.ids.push(id);
        if self.timings.tokens == 0 {
            self.timings.prompt = begin.elapsed();
        } else {
            self.timings.generation += begin.elapsed();
        }
        self.timings.tokens += 1;
        let text = match (&mut self.stream, self.end_ids.contains(&id)) {
            (_, true) => {
                self.finish = Some(FinishReason::Stop);
                return Ok(Some(Piece { id: Some(id), text: String::new() }));
            }
            (Some(stream), _) => stream.push(id)?.unwrap_or_default(),
            (None, _) => String::new(),
        };
        let (text, stopped) = self.stop.push(&text);
        if stopped {
            self.finish = Some(FinishReason::Stop);
            self.drained = true;
        } else if self.options.max_tokens.is_some_and(|max| self.timings.tokens >= max)
            || self.ids.len() >= self.model.capacity()
        {
            self.finish = Some(FinishReason::Length);
        }
        Ok(Some(Piece { id: Some(id), text }))
    }

    /// What was held back: half a character, or the beginning of a stop string that never came.
    fn rest(&mut self) -> Result<Option<Piece>, GenerateError> {
        self.drained = true;
        let tail = match &mut self.stream {
            Some(stream) => stream.finish()?.unwrap_or_default(),
            None => String::new(),
        };
        let (mut text, stopped) = self.stop.push(&tail);
        if !stopped {
            text += &self.stop.finish();
        }
        Ok((!text.is_empty()).then_some(Piece { id: None, text }))
    }
}

impl Iterator for Generation<'_> {
    type Item = Result<Piece, GenerateError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.finish.is_none() {
            match self.token() {
                Ok(Some(piece)) => return Some(Ok(piece)),
                Ok(None) => {}
                Err(e) => {
                    self.finish = Some(FinishReason::Cancelled);
                    self.drained = true;
                    return Some(Err(e));
                }
            }
        }
        if self.drained { None } else { self.rest().transpose() }
    }
}
