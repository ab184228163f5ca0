//! Top-k: the sorted list of the `k` best candidates, without sorting the vocabulary.

use super::Context;
use super::candidate::Candidate;

pub(super) fn select(by_id: &[Candidate], context: &Context<'_>, out: &mut Vec<Candidate>) {
    // Mirostat looks at all.
    let k = if context.options.mirostat.is_some() { 0 } else { context.options.top_k };
    if k == 0 {
        out.extend(possible(by_id));
    } else {
        best(by_id, k, out);
    }
    out.sort_unstable_by(Candidate::order);
}

/// Ids that are not banned, ascending.
fn possible(by_id: &[Candidate]) -> impl Iterator<Item = Candidate> + '_ {
    by_id.iter().copied().filter(|c| c.logit > f64::NEG_INFINITY)
}

/// The best `k`, in any order. One pass with a buffer of a few `k`: when it is full, the worse part goes and the worst
/// kept logit becomes the bar for what comes next, so nearly all of a large vocabulary costs one comparison each.
fn best(by_id: &[Candidate], k: usize, out: &mut Vec<Candidate>) {
    let room = k.saturating_mul(4).max(256);
    let mut bar = f64::NEG_INFINITY;
    for candidate in possible(by_id) {
        // Ids ascend, so an equal logit seen later loses its tie.
        if out.len() >= k && candidate.logit <= bar {
            continue;
        }
        out.push(candidate);
        if out.len() >= room {
            bar = cut(out, k);
        }
    }
    cut(out, k);
}

/// Keeps the best `k` and returns the worst logit kept.
fn cut(out: &mut Vec<Candidate>, k: usize) -> f64 {
    if out.len() <= k {
        return f64::NEG_INFINITY;
    }
    let (_, worst, _) = out.select_nth_unstable_by(k - 1, Candidate::order);
    let bar = worst.logit;
    out.truncate(k);
    bar
}
