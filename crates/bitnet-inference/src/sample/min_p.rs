//! Min-p: drops candidates whose probability is under a fraction of the best one's.
//!
//! Nguyen et al., "Turning Up the Heat: Min-p Sampling", 2024. A ratio of probabilities is a difference of logits, so no
//! softmax is needed.

use super::Context;
use super::candidate::Candidate;

pub(super) fn narrow(candidates: &mut Vec<Candidate>, context: &Context<'_>) {
    let Some(best) = candidates.first() else { return };
    let bar = best.logit + libm::log(context.options.min_p);
    let keep = candidates.partition_point(|c| c.logit >= bar);
    candidates.truncate(keep.max(1));
}
