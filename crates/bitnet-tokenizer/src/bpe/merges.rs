//! Pairs of tokens that become one.

/// Merges by their pair. Tokens are known by their places in the vocabulary.
pub(super) struct Merges {
    /// `[tokens + 1]`: where the pairs of each left token begin in `pairs`.
    starts: Vec<u32>,
    /// Right token and rank, in the order of the right token and then of the rank.
    pairs: Vec<(u32, u32)>,
    /// By rank: what the pair becomes.
    merged: Vec<u32>,
}

impl Merges {
    /// `list`, best first: left token, right token and what they become, each less than `tokens`.
    pub fn new(tokens: usize, list: &[[u32; 3]]) -> Self {
        let mut starts = vec![0; tokens + 1];
        for [left, ..] in list {
            starts[*left as usize + 1] += 1;
        }
        for token in 0..tokens {
            starts[token + 1] += starts[token];
        }
        let mut ends = starts.clone();
        let mut pairs = vec![(0, 0); list.len()];
        for ([left, right, _], rank) in list.iter().zip(0u32..) {
            let end = &mut ends[*left as usize];
            pairs[*end as usize] = (*right, rank);
            *end += 1;
        }
        for bounds in starts.windows(2) {
            pairs[bounds[0] as usize..bounds[1] as usize].sort_unstable();
        }
        Self { starts, pairs, merged: list.iter().map(|[.., merged]| *merged).collect() }
    }

    /// The rank of a pair and what it becomes. Of a pair that is there twice, the last one counts.
    pub fn get(&self, left: u32, right: u32) -> Option<(u32, u32)> {
        let bounds = self.starts[left as usize] as usize..self.starts[left as usize + 1] as usize;
        let pairs = &self.pairs[bounds];
        let end = pairs.partition_point(|(r, _)| *r <= right);
        let (_, rank) = *pairs[..end].last().filter(|(r, _)| *r == right)?;
        Some((rank, self.merged[rank as usize]))
    }

    /// Left and right tokens, best first.
    pub fn list(&self) -> Vec<(u32, u32)> {
        let mut list = vec![(0, 0); self.pairs.len()];
        for (bounds, left) in self.starts.windows(2).zip(0u32..) {
            for (right, rank) in &self.pairs[bounds[0] as usize..bounds[1] as usize] {
                list[*rank as usize] = (left, *right);
            }
        }
        list
    }
}
