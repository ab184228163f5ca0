//! Locally typical sampling: keeps the candidates whose surprise is nearest the entropy, until they reach `p`.
//!
//! Meister et al., "Locally Typical Sampling", 2022. It may drop the best candidate.

use super::Context;
use super::candidate::{Candidate, softmax};

pub(super) fn narrow(candidates: &mut Vec<Candidate>, context: &Context<'_>) {
    let p = softmax(candidates);
    let entropy: f64 = p.iter().filter(|p| **p > 0.0).map(|p| -p * libm::log(*p)).sum();
    let mut ranked: Vec<(f64, f64, Candidate)> =
        candidates.iter().zip(&p).map(|(c, p)| ((-libm::log(*p) - entropy).abs(), *p, *c)).collect();
    ranked.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then_with(|| Candidate::order(&a.2, &b.2)));
    let mut reached = 0.0;
    let last = ranked.iter().position(|(_, p, _)| {
        reached += p;
        reached > context.options.typical_p
    });
    ranked.truncate(last.map_or(ranked.len(), |last| last + 1));
    candidates.clear();
    candidates.extend(ranked.into_iter().map(|(_, _, c)| c));
    candidates.sort_unstable_by(Candidate::order);
}
