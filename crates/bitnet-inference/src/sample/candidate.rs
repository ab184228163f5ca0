//! Candidates, their one order, and what is computed over them.

use std::cmp::Ordering;

/// An id that may be drawn. Its logit is finite.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Candidate {
    pub id: u32,
    pub logit: f64,
}

impl Candidate {
    /// Logit descending, id ascending: the only order candidates are ever in between two stages.
    pub fn order(a: &Self, b: &Self) -> Ordering {
        b.logit.total_cmp(&a.logit).then(a.id.cmp(&b.id))
    }
}

/// The id of the highest logit, ties to the lowest id; `None` when all are -infinity.
pub(super) fn argmax(logits: &[f64]) -> Option<u32> {
    let mut best: Option<(usize, f64)> = None;
    for (id, &logit) in logits.iter().enumerate() {
        if logit > best.map_or(f64::NEG_INFINITY, |(_, l)| l) {
            best = Some((id, logit));
        }
    }
    best.map(|(id, _)| id as u32)
}

/// Probabilities of sorted candidates, in their order.
pub(super) fn softmax(sorted: &[Candidate]) -> Vec<f64> {
    let max = sorted.first().map_or(0.0, |c| c.logit);
    let mut p: Vec<f64> = sorted.iter().map(|c| libm::exp(c.logit - max)).collect();
    let total: f64 = p.iter().sum();
    p.iter_mut().for_each(|v| *v /= total);
    p
}

/// Inverts the cumulative distribution of sorted, non-empty candidates at `u` in `[0, 1)`.
pub(super) fn draw(sorted: &[Candidate], u: f64) -> u32 {
    let p = softmax(sorted);
    let mut cumulative = 0.0;
    let mut chosen = 0;
    for (at, &p) in p.iter().enumerate() {
        // Rounding can leave the whole sum a little below `u`; then the last candidate that has any weight is the one.
        if p > 0.0 {
            chosen = at;
        }
        cumulative += p;
        if u < cumulative {
            break;
        }
    }
    sorted.get(chosen).expect("a stage never leaves the list of candidates empty").id
}
