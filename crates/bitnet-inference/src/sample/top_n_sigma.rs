//! Top-n-sigma: bans ids whose logit lies more than `n` standard deviations below the best one.
//!
//! Tang et al., "Top-nσ: Not All Logits Are You Need", 2024. The deviation is that of all logits that are not banned.

use super::Context;
use super::candidate::Candidate;

pub(super) fn adjust(by_id: &mut [Candidate], context: &Context<'_>) {
    let logits = || by_id.iter().map(|c| c.logit).filter(|l| *l > f64::NEG_INFINITY);
    let count = logits().count().max(1) as f64;
    let mean = logits().sum::<f64>() / count;
    let deviation = (logits().map(|l| (l - mean) * (l - mean)).sum::<f64>() / count).sqrt();
    let best = logits().fold(f64::NEG_INFINITY, f64::max);
    let bar = best - context.options.top_n_sigma * deviation;
    by_id.iter_mut().filter(|c| c.logit < bar).for_each(|c| c.logit = f64::NEG_INFINITY);
}
