//! Logit bias: a number added to single ids before any other stage.

use super::Context;
use super::candidate::{Candidate, find};

pub(super) fn adjust(by_id: &mut [Candidate], context: &Context<'_>) {
    for &(id, bias) in &context.options.logit_bias {
        if let Some(candidate) = find(by_id, id) {
            candidate.logit += bias;
        }
    }
}
