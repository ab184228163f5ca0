//! Repetition, frequency and presence penalties over the last ids of the sequence.
//!
//! As in llama.cpp: the repetition penalty divides a positive logit and multiplies one that is not, so that it always
//! makes the id less likely; then `count * frequency + presence` is subtracted. Prompt ids count.

use super::candidate::{Candidate, find};
use super::{Context, SamplerOptions};
use std::collections::BTreeMap;

pub(super) fn active(o: &SamplerOptions) -> bool {
    o.repeat_last_n > 0
        && (o.repeat_penalty != 1.0 || o.frequency_penalty != 0.0 || o.presence_penalty != 0.0)
}

/// The ids that the penalties look at.
pub(super) fn recent<'a>(options: &SamplerOptions, history: &'a [u32]) -> &'a [u32] {
    &history[history.len().saturating_sub(options.repeat_last_n)..]
}

pub(super) fn adjust(by_id: &mut [Candidate], context: &Context<'_>) {
    let options = context.options;
    let mut counts: BTreeMap<u32, u32> = BTreeMap::new();
    for &id in recent(options, context.history) {
        *counts.entry(id).or_default() += 1;
    }
    for (id, count) in counts {
        let Some(Candidate { logit, .. }) = find(by_id, id) else { continue };
        if *logit > 0.0 {
            *logit /= options.repeat_penalty;
        } else {
            *logit *= options.repeat_penalty;
        }
        *logit -= f64::from(count) * options.frequency_penalty + options.presence_penalty;
    }
}
