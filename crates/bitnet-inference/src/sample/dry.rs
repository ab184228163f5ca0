//! DRY, don't repeat yourself: the longer the end of the text has been there before, the less likely is what followed it then.
//!
//! By p-e-w, in text-generation-webui, 2024. A repetition of `n` tokens costs `multiplier * base^(n - allowed)`. It does not reach
//! over a breaker (a line end, a quotation mark), and breakers themselves may always follow.

use super::candidate::{Candidate, find};
use super::{Context, SamplerOptions};
use std::collections::BTreeMap;

/// Repetitions are not counted beyond this length.
const LONGEST: usize = 256;

pub(super) fn active(o: &SamplerOptions) -> bool {
    o.dry_multiplier > 0.0 && o.dry_last_n > 0
}

/// For each id that would go on with a repetition, the length of the longest one.
pub(super) fn repetitions(o: &SamplerOptions, history: &[u32]) -> BTreeMap<u32, usize> {
    let history = &history[history.len().saturating_sub(o.dry_last_n)..];
    let breaks = |id: &u32| o.dry_breakers.binary_search(id).is_ok();
    let limit = history.iter().rev().take(LONGEST).take_while(|id| !breaks(id)).count();
    let mut longest = BTreeMap::new();
    if limit < o.dry_allowed_length {
        return longest;
    }
    // `z[i]`: tokens that the text backwards, and the same from its token `i` on, have in common.
    let back = |i: usize| history[history.len() - 1 - i];
    let mut z = vec![0; history.len()];
    let (mut left, mut right) = (0, 0);
    for i in 1..history.len() {
        let mut common = if i < right { z[i - left].min(right - i) } else { 0 };
        while i + common < history.len() && back(common) == back(i + common) {
            common += 1;
        }
        if i + common > right {
            (left, right) = (i, i + common);
        }
        z[i] = common;
        let (next, length) = (back(i - 1), common.min(limit));
        if length >= o.dry_allowed_length.max(1) && !breaks(&next) {
            let known = longest.entry(next).or_insert(length);
            *known = length.max(*known);
        }
    }
    longest
}

pub(super) fn adjust(by_id: &mut [Candidate], context: &Context<'_>) {
    let o = context.options;
    for (id, length) in repetitions(o, context.history) {
        if let Some(candidate) = find(by_id, id) {
            let beyond = (length - o.dry_allowed_length) as f64;
            candidate.logit -= (o.dry_multiplier * libm::pow(o.dry_base, beyond)).min(1e6);
        }
    }
}
