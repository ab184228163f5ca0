//! Top-p (nucleus): the shortest run of best candidates that reaches the probability `p`.
//!
//! Holtzman et al., "The Curious Case of Neural Text Degeneration", 2020.

use super::Context;
use super::candidate::{Candidate, softmax};

pub(super) fn narrow(candidates: &mut Vec<Candidate>, context: &Context<'_>) {
    let mut reached = 0.0;
    let keep = softmax(candidates).iter().position(|p| {
        reached += p;
        reached >= context.options.top_p
    });
    // Rounding may leave the full sum below p: then all stay.
    if let Some(last) = keep {
        candidates.truncate(last + 1);
    }
}
