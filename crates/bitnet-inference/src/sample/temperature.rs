//! Temperature: divides the logits. Greedy sampling (0) never gets here.

use super::Context;
use super::candidate::Candidate;

pub(super) fn narrow(candidates: &mut Vec<Candidate>, context: &Context<'_>) {
    let Some(best) = candidates.first().map(|c| c.logit) else { return };
    for candidate in candidates {
        // Measured from the best, so that a tiny temperature sends the others to -infinity and the best stays at 0.
        candidate.logit = (candidate.logit - best) / context.options.temperature;
    }
}
