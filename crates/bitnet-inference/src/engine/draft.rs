//! Guessing what comes next, for the model to check in the same step; so a guess changes no token.
//!
//! Guesses come from a smaller model, where there is one, and otherwise from what came before: a text often repeats itself
//! (Saxena, "Prompt Lookup Decoding", 2023).
//!
//! The small model draws with the sequence's own sampler and random numbers (Leviathan et al., "Fast Inference from Transformers via
//! Speculative Decoding", 2023, accept by a draw of its own): where both models think alike, the same number finds the same token.

use super::adapters::Chosen;
use super::cache::Cache;
use super::sequence::Sequence;
use crate::OpenError;
use crate::prepared::Files;
use bitnet_core::{Logits, LogitsNeed};
use bitnet_model::{Decoder, ModelError, Span};
use bitnet_tokenizer::Tokenizer;
use std::sync::Arc;

/// Tokens whose earlier occurrence is looked for, the longest run first.
const LONGEST: usize = 3;

/// Up to `most` tokens that followed the latest earlier occurrence of the last tokens.
pub(super) fn lookup(ids: &[u32], most: usize) -> Vec<u32> {
    if most == 0 {
        return Vec::new();
    }
    for run in (1..=LONGEST.min(ids.len().saturating_sub(1))).rev() {
        let (tail, before) = (&ids[ids.len() - run..], &ids[..ids.len() - 1]);
        if let Some(at) = before.windows(run).rposition(|w| w == tail) {
            return ids[at + run..].iter().take(most).copied().collect();
        }
    }
    Vec::new()
}

/// A model that guesses, with a cache of its own.
pub(super) struct Draft {
    pub cache: Cache,
    pub files: Arc<Files>,
    logits: Logits,
}

impl Draft {
    pub fn new(decoder: Box<dyn Decoder>, files: Arc<Files>, keep_prefixes: bool) -> Self {
        Self { cache: Cache::new(decoder, keep_prefixes), files, logits: Logits::default() }
    }

    /// Guesses for all that decode, a token of each in a step of its own. Whoever lies further back than the `budget` of a step
    /// reaches catches up first, and whoever finds no room in the cache goes without.
    pub fn guess(
        &mut self,
        running: &mut [Sequence],
        budget: usize,
        capacity: usize,
    ) -> Result<(), ModelError> {
        let reach = capacity.min(self.cache.decoder.capacity());
        let mut going: Vec<(&mut Sequence, usize)> = running
            .iter_mut()
            .map(|s| {
                let most = s.most_guesses(reach);
                (s, most)
            })
            .filter(|(_, most)| *most > 0)
            .collect();
        let mut left = budget;
        for (sequence, _) in &mut going {
            if sequence.draft.blocks.is_empty() {
                // Adapters are the other model's.
                let none = Chosen::default();
                sequence.draft = self.cache.enter(&none, self.cache.blocks.find(&none, &sequence.ids));
            }
        }
        while !going.is_empty() {
            // A step runs what is missing of everybody, as far as the budget goes.
            let mut chunks = Vec::with_capacity(going.len());
            going.retain_mut(|(sequence, _)| {
                let chunk = (sequence.ids.len() - sequence.draft.computed).min(left);
                let room = chunk > 0 && self.cache.make_room(&mut sequence.draft, chunk);
                if room {
                    left -= chunk;
                    chunks.push(chunk);
                }
                room
            });
            let needs: Vec<Option<LogitsNeed>> = going
                .iter()
                .zip(&chunks)
                .map(|((s, _), chunk)| (s.draft.computed + chunk == s.ids.len()).then(|| s.need(s.ids.len())))
                .collect();
            let spans: Vec<Span<'_>> = going
                .iter()
                .zip(chunks.iter().zip(&needs))
                .map(|((s, _), (chunk, need))| Span {
                    start: s.draft.computed,
                    ids: &s.ids[s.draft.computed..s.draft.computed + chunk],
                    blocks: &s.draft.blocks,
                    needs: need.as_slice(),
                    states: 0..0,
                    adapters: &[],
                })
                .collect();
            if spans.is_empty() {
                break;
            }
            self.cache.decoder.batch(&spans, &mut self.logits, &mut Vec::new())?;
            let mut rows = self.logits.rows();
            let mut at = 0;
            going.retain_mut(|(sequence, most)| {
                let (chunk, wanted) = (chunks[at], needs[at].is_some());
                at += 1;
                sequence.draft.computed += chunk;
                // What is guessed may have to be taken back, so only what is sure becomes a prefix for others.
                if sequence.guesses == 0 {
                    self.cache.link(&mut sequence.draft, &sequence.ids);
                }
                let Some(row) = wanted.then(|| rows.next()).flatten() else { return false };
                *most -= 1;
                sequence.guess(row) && *most > 0
            });
            // Behind the first step there is one token of each.
            left = left.max(going.len());
        }
        Ok(())
    }
}

/// Why a model's guesses would mean nothing to another one.
pub(super) fn check_vocabulary(
    (vocab, tokenizer): (usize, Option<Arc<Tokenizer>>),
    (draft_vocab, draft_tokenizer): (usize, Option<Arc<Tokenizer>>),
) -> Result<(), OpenError> {
    let differ = |why: String| Err(OpenError::DraftVocabulary { why });
    if vocab != draft_vocab {
        return differ(format!("it has {draft_vocab} tokens, not {vocab}"));
    }
    let (Some(a), Some(b)) = (tokenizer, draft_tokenizer) else { return Ok(()) };
    let (a, b) = (a.token_bytes(vocab), b.token_bytes(vocab));
    match a.iter().zip(&b).position(|(a, b)| a != b) {
        Some(id) => differ(format!("token {id} is {:?} there and {:?} here", b[id], a[id])),
        None => Ok(()),
    }
}
