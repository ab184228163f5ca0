//! Guessing what comes next from what came before: a text often repeats itself.
//!
//! Saxena, "Prompt Lookup Decoding", 2023. A guess is checked by the model in the same step, so it changes no token.

/// Tokens whose earlier occurrence is looked for, the longest run first.
const LONGEST: usize = 3;

/// Up to `most` tokens that followed the latest earlier occurrence of the last tokens.
pub(super) fn lookup(ids: &[u32], most: usize) -> Vec<u32> {
    if most == 0 {
        return Vec::new();
    }
    for run in (1..=LONGEST.min(ids.len().saturating_sub(1))).rev() {
        let (tail, before) = (&ids[ids.len() - run..], &ids[..ids.len() - 1]);
        if let Some(at) = before.windows(run).rposition(|w| w == tail) {
            return ids[at + run..].iter().take(most).copied().collect();
        }
    }
    Vec::new()
}
