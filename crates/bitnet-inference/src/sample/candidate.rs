//! Candidates, their one order, and what is computed over them.

use std::cmp::Ordering;

/// An id that may be drawn. Its logit is finite once it is selected.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Candidate {
    pub id: u32,
    pub logit: f64,
}

impl Candidate {
    /// Logit descending, id ascending: the order that selected candidates are in between two stages.
    pub fn order(a: &Self, b: &Self) -> Ordering {
        b.logit.total_cmp(&a.logit).then(a.id.cmp(&b.id))
    }
}

/// The candidate of an id, among candidates with ascending ids.
pub(super) fn find(by_id: &mut [Candidate], id: u32) -> Option<&mut Candidate> {
    let at = by_id.binary_search_by_key(&id, |c| c.id).ok()?;
    by_id.get_mut(at)
}

/// The id of the highest logit, ties to the lowest id; `None` when all are -infinity.
pub(super) fn argmax(by_id: &[Candidate]) -> Option<u32> {
    let mut best: Option<Candidate> = None;
    for candidate in by_id {
        if candidate.logit > best.map_or(f64::NEG_INFINITY, |b| b.logit) {
            best = Some(*candidate);
        }
    }
    best.map(|b| b.id)
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
