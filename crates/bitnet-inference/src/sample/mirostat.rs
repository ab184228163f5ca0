//! Mirostat: keeps as many candidates as bring the surprise of the text near a target, and learns from each token drawn.
//!
//! Basu et al., "Mirostat: A Neural Text Decoding Algorithm that Directly Controls Perplexity", 2021. Surprise is in bits. The
//! first version estimates from the best hundred candidates how fast probabilities fall; the second cuts where a candidate's own
//! surprise is above the bound.

use super::SamplerOptions;
use super::candidate::{Candidate, softmax};

/// Candidates that the first version looks at.
const LOOKED_AT: usize = 100;

/// Which version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mirostat {
    /// From an estimate of Zipf's exponent.
    One,
    /// From each candidate's surprise.
    Two,
}

/// Drops candidates beyond the bound `mu`; `vocab` is the number of all ids.
pub(super) fn narrow(candidates: &mut Vec<Candidate>, version: Mirostat, mu: f64, vocab: usize) {
    let p = softmax(candidates);
    let keep = match version {
        Mirostat::One => {
            let (mut above, mut below) = (0.0, 0.0);
            for (i, pair) in p.windows(2).take(LOOKED_AT - 1).enumerate().filter(|(_, pair)| pair[1] > 0.0) {
                let t = libm::log((i + 2) as f64 / (i + 1) as f64);
                above += t * libm::log(pair[0] / pair[1]);
                below += t * t;
            }
            let s = if below > 0.0 { above / below } else { 1.0 };
            let epsilon = s - 1.0;
            let k = libm::pow(epsilon * libm::exp2(mu) / (1.0 - libm::pow(vocab as f64, -epsilon)), 1.0 / s);
            // Where the estimate breaks down, nothing is known of a bound.
            if k.is_finite() { k.round().clamp(1.0, vocab as f64) as usize } else { p.len() }
        }
        Mirostat::Two => p.iter().take_while(|p| -libm::log2(**p) <= mu).count(),
    };
    candidates.truncate(keep.max(1));
}

/// The bound after a token of the kept candidates was drawn.
pub(super) fn learn(o: &SamplerOptions, kept: &[Candidate], drawn: u32, mu: f64) -> f64 {
    let p = softmax(kept);
    let of = kept.iter().position(|c| c.id == drawn).map_or(1.0, |at| p[at]);
    mu - o.mirostat_eta * (-libm::log2(of) - o.mirostat_tau)
}
