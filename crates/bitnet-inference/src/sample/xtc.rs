//! XTC, exclude top choices: now and then, of the candidates above a probability, only the last one stays.
//!
//! By p-e-w, in text-generation-webui, 2024. Whether it happens at a position is a random number of its own.

use super::Context;
use super::candidate::{Candidate, softmax};
use super::philox::{Stream, uniform};

pub(super) fn narrow(candidates: &mut Vec<Candidate>, context: &Context<'_>) {
    if uniform(context.seed, context.history.len() as u64, Stream::Xtc) >= context.options.xtc_probability {
        return;
    }
    let p = softmax(candidates);
    let above = p.iter().take_while(|p| **p >= context.options.xtc_threshold).count();
    if above > 1 {
        candidates.drain(..above - 1);
    }
}
