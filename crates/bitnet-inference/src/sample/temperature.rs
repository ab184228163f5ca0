//! Temperature: divides the logits. Greedy sampling (0) never gets here.
//!
//! A dynamic temperature is lower where the model is sure and higher where it is not: by the entropy of the candidates, as a share of
//! what it could be.

use super::Context;
use super::candidate::{Candidate, softmax};

pub(super) fn narrow(candidates: &mut Vec<Candidate>, context: &Context<'_>) {
    let o = context.options;
    let Some(best) = candidates.first().map(|c| c.logit) else { return };
    let mut temperature = o.temperature;
    if o.dynatemp_range > 0.0 {
        let p = softmax(candidates);
        let entropy: f64 = p.iter().filter(|p| **p > 0.0).map(|p| -p * libm::log(*p)).sum();
        let most = libm::log(p.len() as f64);
        let share = if most > 0.0 { (entropy / most).clamp(0.0, 1.0) } else { 0.0 };
        let lowest = (o.temperature - o.dynatemp_range).max(0.0);
        let highest = o.temperature + o.dynatemp_range;
        temperature = lowest + (highest - lowest) * libm::pow(share, o.dynatemp_exponent);
    }
    for candidate in candidates {
        // Measured from the best, so that a tiny temperature sends the others to -infinity and the best stays at 0.
        let behind = candidate.logit - best;
        candidate.logit = if behind < 0.0 { behind / temperature } else { 0.0 };
    }
}
