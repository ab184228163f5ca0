//! The certified head: which rows of a large dense matrix can hold one of the `k` largest products with a vector.
//!
//! Every row gets a cheap score from integers: its codes (what a `Q6_K` file stores, or an int8 copy of float rows) times
//! the vector in int8. With `w = c + e` (codes and what they miss) and `x = z + r` (the int8 vector and what it misses),
//! `w·x = c·z + c·r + e·x`, so by Cauchy and Schwarz the score misses the real product by at most `|c||r| + |e||x|`. Both
//! sides are rounded sums besides; the bound of their rounding errors is a multiple of `|c||z|` and `|w||x|`. A row whose
//! score plus its bound stays below the `k`-th best score minus its bound is out; for the rest the exact product is
//! computed, by the same kernel that computes all rows otherwise. So screening decides which rows are computed, never how.

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod dotprod;
#[cfg(target_arch = "aarch64")]
mod neon;
mod query;
mod rows;

use crate::Isa;
use crate::layout::Line;
use crate::pool::{Pool, Shares};
use bitnet_core::{BackendError, DenseMatrix, LogitsNeed};
use query::Query;
use rows::ByteRows;
pub(crate) use rows::Screen;

/// Scores of rows of `Q6_K` blocks: `rows` is `[out.len(), row_bytes]`.
type ScoreQ6K = fn(rows: &[u8], row_bytes: usize, query: &Query, out: &mut [f32]);
/// Scores of rows of biased int8 codes, without the row's own scale: `rows` is `[out.len(), width]`.
type ScoreInt8 = fn(rows: &[Line], width: usize, query: &Query, out: &mut [f32]);

struct ScreenKernel {
    isa: Isa,
    q6_k: ScoreQ6K,
    int8: ScoreInt8,
}

/// Instruction sets without a row here compute every row exactly.
static TABLE: &[ScreenKernel] = &[
    #[cfg(target_arch = "x86_64")]
    ScreenKernel { isa: Isa::Avx512, q6_k: avx512::q6_k, int8: avx512::int8 },
    #[cfg(target_arch = "x86_64")]
    ScreenKernel { isa: Isa::Avx2, q6_k: avx2::q6_k, int8: avx2::int8 },
    #[cfg(target_arch = "aarch64")]
    ScreenKernel { isa: Isa::Dotprod, q6_k: dotprod::q6_k, int8: dotprod::int8 },
    #[cfg(target_arch = "aarch64")]
    ScreenKernel { isa: Isa::Neon, q6_k: neon::q6_k, int8: neon::int8 },
];

fn kernel(isa: Isa) -> Option<&'static ScreenKernel> {
    TABLE.iter().find(|k| isa.includes(k.isa))
}

/// The instruction sets that heads are screened with.
pub(crate) fn isas() -> impl Iterator<Item = Isa> {
    TABLE.iter().map(|k| k.isa)
}

/// Rows that share one pair of extreme bounds.
const GROUP: usize = 64;
/// Groups of one piece of parallel work: long enough to be read as a stream.
const PIECE: usize = 8;
/// From so many tokens on they are scored together, where that can be done.
#[cfg(target_arch = "x86_64")]
const TOGETHER: usize = 3;
/// Screening is given up when more than one row in this many could be among the best.
const WORTH: usize = 8;

/// Whether an instruction set scores many tokens at once.
fn scores_many(isa: Isa) -> bool {
    #[cfg(target_arch = "x86_64")]
    return amx::is_there(isa);
    #[cfg(not(target_arch = "x86_64"))]
    {
        let _ = isa;
        false
    }
}

/// What the product of a code of `Q6_K` and its scale becomes where many tokens are scored at once: its digits but the last five.
fn coarse_code(product: i16) -> i16 {
    (((product >> 4) + 1) >> 1).clamp(-128, 127)
}

/// Rows that a token picks at most, besides those that it names; with more of them all are computed.
pub(crate) fn most_picked(rows: usize) -> usize {
    rows / WORTH
}

/// A token that rows are screened for.
#[derive(Default)]
struct Token {
    query: Query,
    /// Whether scores are those of coarser codes.
    coarse: bool,
    /// `[rows]`.
    scores: Vec<f32>,
    /// `[groups]`: the largest lower bound and the largest upper bound of a group's rows.
    extremes: Vec<(f32, f32)>,
    lower: Vec<f32>,
    /// The rows that could be among the best, ascending; none where the bounds do not separate enough of them.
    picked: Vec<u32>,
}

/// Memory that screening uses and leaves behind for the next step.
#[derive(Default)]
pub(crate) struct ScreenScratch {
    /// As many as ever were screened at once.
    tokens: Vec<Token>,
}

impl Screen {
    /// The rows, ascending, that decide what each token of `x [m, k]` needs; `None` where all have to be computed, because they are
    /// wanted or because the bounds do not separate enough of them.
    pub(crate) fn pick<'s>(
        &self,
        isa: Isa,
        pool: &Pool,
        w: &DenseMatrix,
        x: &[f32],
        needs: &[LogitsNeed],
        scratch: &'s mut ScreenScratch,
    ) -> Vec<Option<&'s [u32]>> {
        let Some(kernel) = kernel(isa) else { return vec![None; needs.len()] };
        // Which tokens are screened, and how many of the best rows they need.
        let mut asked = Vec::new();
        for (t, (x, need)) in x.chunks_exact(w.cols()).zip(needs).enumerate() {
            let LogitsNeed::Top { k, .. } = need else { continue };
            if scratch.tokens.len() == asked.len() {
                scratch.tokens.push(Token::default());
            }
            let query = &mut scratch.tokens[asked.len()].query;
            if *k <= most_picked(w.rows()) && query.set(x) && !self.overflows(query) {
                asked.push((t, (*k).max(1)));
            }
        }
        let tokens = &mut scratch.tokens[..asked.len()];
        self.score(isa, kernel, pool, w, tokens);
        pool.chunks_mut(tokens, 1, &|i, token| {
            let (t, k) = asked[i];
            let LogitsNeed::Top { also, .. } = &needs[t] else { return };
            self.select(w.rows(), k, also, &mut token[0]);
        });
        let mut picked = vec![None; needs.len()];
        for ((t, _), token) in asked.iter().zip(&*tokens) {
            picked[*t] = Some(&*token.picked).filter(|ids| !ids.is_empty());
        }
        picked
    }

    /// Fills in what a token picks, from its scores.
    fn select(&self, rows: usize, k: usize, also: &[u32], token: &mut Token) {
        let Token { query, coarse, scores, extremes, lower, picked } = token;
        // The best groups' lower bounds belong to that many different rows, so the `k`-th of them is a bar that the
        // `k`-th best product reaches.
        lower.clear();
        if extremes.len() >= 2 * k {
            lower.extend(extremes.iter().map(|(lower, _)| *lower));
        } else {
            lower.extend((0..rows).map(|row| scores[row] - self.bound(row, query, *coarse)));
        }
        let (_, bar, _) = lower.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a));
        let bar = *bar;
        picked.clear();
        // As much as it can ever become, so that no later step takes more memory.
        picked.reserve(most_picked(rows) + GROUP + also.len());
        for (group, (_, upper)) in extremes.iter().enumerate() {
            if *upper >= bar {
                let first = group * GROUP;
                let reaches = |row: &usize| scores[*row] + self.bound(*row, query, *coarse) >= bar;
                picked.extend((first..rows.min(first + GROUP)).filter(reaches).map(|row| row as u32));
                if picked.len() > most_picked(rows) {
                    return picked.clear();
                }
            }
        }
        picked.extend(also.iter().copied().filter(|id| (*id as usize) < rows));
        picked.sort_unstable();
        picked.dedup();
    }

    /// Fills in scores and groups.
    fn score(&self, isa: Isa, kernel: &ScreenKernel, pool: &Pool, w: &DenseMatrix, tokens: &mut [Token]) {
        let (rows, mut first) = (w.rows(), 0);
        for token in &mut *tokens {
            token.coarse = false;
            token.scores.resize(rows, 0.0);
            token.extremes.resize(rows.div_ceil(GROUP), (0.0, 0.0));
        }
        #[cfg(target_arch = "x86_64")]
        if amx::is_there(isa) && tokens.len() >= TOGETHER {
            self.score_together(pool, w, tokens);
            first = rows / GROUP;
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = (isa, &mut first);
        let parts: Vec<_> = tokens
            .iter_mut()
            .map(|Token { query, coarse, scores, extremes, .. }| {
                (&*query, *coarse, Shares::new(scores), Shares::new(extremes))
            })
            .collect();
        if parts.is_empty() {
            return;
        }
        pool.ranges(rows.div_ceil(GROUP) - first, PIECE, &|groups| {
            for group in groups {
                let group = first + group;
                let first = group * GROUP;
                let last = rows.min(first + GROUP);
                for (query, coarse, scores, extremes) in &parts {
                    // SAFETY: a group of a token is visited once.
                    let out = unsafe { scores.slice(first, last - first) };
                    match &self.codes {
                        None => {
                            let bytes = w.data().len() / rows;
                            (kernel.q6_k)(&w.data()[first * bytes..last * bytes], bytes, query, out);
                        }
                        Some(ByteRows { data, width, scales }) => {
                            (kernel.int8)(&data[first * width..last * width], *width, query, out);
                            for (score, scale) in out.iter_mut().zip(&scales[first..last]) {
                                *score *= scale;
                            }
                        }
                    }
                    let (mut lower, mut upper) = (f32::NEG_INFINITY, f32::NEG_INFINITY);
                    for (row, score) in (first..last).zip(&*out) {
                        let bound = self.bound(row, query, *coarse);
                        lower = lower.max(score - bound);
                        upper = upper.max(score + bound);
                    }
                    // SAFETY: as above.
                    let extreme = unsafe { &mut extremes.slice(group, 1)[0] };
                    *extreme = (lower, upper);
                }
            }
        });
    }

    /// The same for all whole groups, read once for all tokens.
    #[cfg(target_arch = "x86_64")]
    fn score_together(&self, pool: &Pool, w: &DenseMatrix, tokens: &mut [Token]) {
        tokens.iter_mut().for_each(|token| token.coarse = true);
        let chunks: Vec<amx::Tokens> =
            tokens.chunks(amx::TOKENS).map(|t| amx::Tokens::new(t.iter().map(|t| &t.query))).collect();
        let parts: Vec<_> =
            tokens.iter_mut().map(|t| (Shares::new(&mut t.scores), Shares::new(&mut t.extremes))).collect();
        let bytes = w.data().len() / w.rows();
        let errors = if self.codes.is_some() { &self.errors } else { &self.coarse };
        pool.ranges(w.rows() / GROUP, PIECE, &|groups| {
            let mut local = amx::Local::new(chunks.len());
            for group in groups {
                let range = group * GROUP..(group + 1) * GROUP;
                let rows = match &self.codes {
                    None => amx::Rows::Q6K {
                        rows: &w.data()[range.start * bytes..range.end * bytes],
                        row_bytes: bytes,
                    },
                    Some(ByteRows { data, width, scales }) => amx::Rows::Bytes {
                        rows: &data[range.start * width..range.end * width],
                        width: *width,
                        scales: &scales[range.clone()],
                    },
                };
                local.score(&rows, &chunks);
                for (chunk, parts) in parts.chunks(amx::TOKENS).enumerate() {
                    let (norms, errors) = (&self.norms[range.clone()], &errors[range.clone()]);
                    let [lower, upper] = local.extremes(chunk, &chunks[chunk], norms, errors);
                    for (t, (scores, extremes)) in parts.iter().enumerate() {
                        // SAFETY: a group of a token is visited once.
                        let (out, extreme) =
                            unsafe { (scores.slice(range.start, GROUP), extremes.slice(group, 1)) };
                        for (out, scores) in out.iter_mut().zip(&local.scores[chunk]) {
                            *out = scores[t];
                        }
                        extreme[0] = (lower[t], upper[t]);
                    }
                }
            }
        });
    }

    /// How far the exact product of a row can lie from its score, rounding included.
    #[inline]
    fn bound(&self, row: usize, query: &Query, coarse: bool) -> f32 {
        let errors = if coarse && self.codes.is_none() { &self.coarse } else { &self.errors };
        let error = errors.get(row).copied().unwrap_or(0.0);
        // The norms of coarser codes are at most those of the row and of what they miss together.
        let norm = self.norms[row] + if coarse { error } else { 0.0 };
        (norm * query.miss + error * query.norm) * ROUND_UP
    }

    /// Whether the scores that [`Screen::pick`] left behind of its first token lie within their bounds of the exact products.
    pub(crate) fn holds(&self, scratch: &ScreenScratch, products: &[f32]) -> bool {
        let token = &scratch.tokens[0];
        let near = |(row, (score, product)): (usize, (&f32, &f32))| {
            (score - product).abs() <= self.bound(row, &token.query, token.coarse)
        };
        token.scores.iter().zip(products).enumerate().all(near)
    }

    /// Whether a product could leave the range in which the bounds hold.
    fn overflows(&self, query: &Query) -> bool {
        let largest = self.largest * (query.norm + query.miss);
        largest.is_nan() || largest >= 1e37
    }
}

/// Makes up for the rounding of the bounds' own arithmetic, some ten operations.
const ROUND_UP: f32 = 1.000_01;

/// What screening wants to know of a head; `None` where it would not pay.
pub(crate) fn prepare(isa: Isa, pool: &Pool, w: &DenseMatrix) -> Result<Option<Screen>, BackendError> {
    if kernel(isa).is_none() || w.rows() < rows::SMALLEST_HEAD {
        return Ok(None);
    }
    Screen::new(isa, pool, w)
}

#[cfg(test)]
mod tests;
