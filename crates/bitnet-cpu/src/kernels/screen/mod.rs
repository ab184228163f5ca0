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
#[cfg(target_arch = "x86_64")]
mod streams;

use crate::Isa;
use crate::layout::Line;
use crate::memory::{OutOfMemory, Scratch};
use crate::pool::{Pool, Shares};
use bitnet_core::{BackendError, DenseMatrix, LogitsNeed};
use bytemuck::{Pod, Zeroable};
use query::{Queries, Query};
use rows::ByteRows;
pub(crate) use rows::Screen;

/// Scores of rows of `Q6_K` blocks: `rows` is `[out.len(), row_bytes]`.
type ScoreQ6K = fn(rows: &[u8], row_bytes: usize, query: Query<'_>, out: &mut [f32]);
/// Scores of rows of biased int8 codes, without the row's own scale: `rows` is `[out.len(), width]`.
type ScoreInt8 = fn(rows: &[Line], width: usize, query: Query<'_>, out: &mut [f32]);

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
#[inline(always)]
fn coarse_code(product: i16) -> i16 {
    (((product >> 4) + 1) >> 1).clamp(-128, 127)
}

/// Rows that a token picks at most, besides those that it names; with more of them all are computed.
pub(crate) fn most_picked(rows: usize) -> usize {
    rows / WORTH
}

/// A token that rows are screened for: its number in the step, and how many of the best rows it needs.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Asked {
    token: u32,
    k: u32,
}

/// Scores of the rows for each token that is screened for.
struct Scores<'a> {
    queries: Queries<'a>,
    /// Whether they are those of coarser codes.
    coarse: bool,
    /// `[tokens][rows]`.
    scores: &'a mut [f32],
    /// `[tokens][groups]`: the largest lower bound and the largest upper bound of a group's rows.
    extremes: &'a mut [[f32; 2]],
}

/// Which rows decide what tokens need.
pub(crate) struct Picked<'a> {
    asked: &'a [Asked],
    /// `[asked]`: how many were picked; none where the bounds do not separate enough of them.
    counts: &'a [u32],
    /// `[asked][most]`: them, ascending.
    ids: &'a [u32],
    most: usize,
    scores: Option<Scores<'a>>,
}

impl Picked<'_> {
    /// Nothing.
    fn none() -> Self {
        Self { asked: &[], counts: &[], ids: &[], most: 0, scores: None }
    }

    /// The rows, ascending, that decide what a token needs; `None` where all have to be computed.
    pub(crate) fn of(&self, token: usize) -> Option<&[u32]> {
        let at = self.asked.binary_search_by_key(&token, |asked| asked.token as usize).ok()?;
        Some(&self.ids[at * self.most..][..self.counts[at] as usize]).filter(|ids| !ids.is_empty())
    }
}

impl Screen {
    /// The rows that decide what each token of `x [m, k]` needs; none where all are wanted or the bounds do not separate enough of them.
    pub(crate) fn pick<'s>(
        &self,
        isa: Isa,
        pool: &Pool,
        w: &DenseMatrix,
        x: &[f32],
        needs: &[LogitsNeed],
        scratch: &'s Scratch<'_>,
    ) -> Result<Picked<'s>, OutOfMemory> {
        let (rows, Some(kernel)) = (w.rows(), kernel(isa)) else { return Ok(Picked::none()) };
        let wants = |need: &LogitsNeed| match need {
            LogitsNeed::Top { k, also } if *k <= most_picked(rows) => Some(((*k).max(1), also.len())),
            _ => None,
        };
        // Which tokens are screened, and how many of the best rows they need.
        let most_asked = needs.iter().filter_map(wants).count();
        let (asked, mut tokens) = (scratch.buffer::<Asked>(most_asked)?, 0);
        let mut queries = Queries::new(most_asked, w.cols(), scratch)?;
        for (t, (x, need)) in x.chunks_exact(w.cols()).zip(needs).enumerate() {
            let Some((k, _)) = wants(need) else { continue };
            if queries.set(tokens, x) && !self.overflows(queries.get(tokens)) {
                asked[tokens] = Asked { token: t as u32, k: k as u32 };
                tokens += 1;
            }
        }
        if tokens == 0 {
            return Ok(Picked::none());
        }
        let (asked, groups) = (&asked[..tokens], rows.div_ceil(GROUP));
        let mut scores = Scores {
            queries,
            coarse: false,
            scores: scratch.buffer(tokens * rows)?,
            extremes: scratch.buffer(tokens * groups)?,
        };
        self.score(isa, kernel, pool, w, &mut scores, scratch)?;
        let most_also = needs.iter().filter_map(wants).map(|(_, also)| also).max().unwrap_or(0);
        let most = most_picked(rows) + GROUP + most_also;
        let (counts, ids) = (scratch.buffer::<u32>(tokens)?, scratch.buffer::<u32>(tokens * most)?);
        let bounds = |asked: &Asked| if groups >= 2 * asked.k as usize { groups } else { rows };
        let most_bounds = asked.iter().map(bounds).max().unwrap_or(0);
        let lower = scratch.buffer::<f32>(tokens * most_bounds)?;
        let counts_out = Shares::new(counts);
        let lower = Shares::new(lower);
        pool.chunks_mut(ids, most, &|i, ids| {
            let LogitsNeed::Top { also, .. } = &needs[asked[i].token as usize] else { return };
            // SAFETY: a token is visited once.
            let (count, lower) =
                unsafe { (counts_out.slice(i, 1), lower.slice(i * most_bounds, bounds(&asked[i]))) };
            count[0] = self.select(rows, &scores, (i, asked[i].k as usize), also, lower, ids) as u32;
        });
        Ok(Picked { asked, counts, ids, most, scores: Some(scores) })
    }

    /// Which rows the token that was asked for as number `at` picks, from its scores; gives how many.
    fn select(
        &self,
        rows: usize,
        all: &Scores<'_>,
        (at, k): (usize, usize),
        also: &[u32],
        lower: &mut [f32],
        ids: &mut [u32],
    ) -> usize {
        let (query, coarse, groups) = (all.queries.get(at), all.coarse, rows.div_ceil(GROUP));
        let (scores, extremes) = (&all.scores[at * rows..][..rows], &all.extremes[at * groups..][..groups]);
        // The best groups' lower bounds belong to that many different rows, so the `k`-th of them is a bar that the
        // `k`-th best product reaches.
        if lower.len() == groups {
            lower.iter_mut().zip(extremes).for_each(|(lower, extreme)| *lower = extreme[0]);
        } else {
            for (row, lower) in lower.iter_mut().enumerate() {
                *lower = scores[row] - self.bound(row, query, coarse);
            }
        }
        let (_, bar, _) = lower.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a));
        let (bar, mut count) = (*bar, 0);
        let mut pick = |id: usize| {
            ids[count] = id as u32;
            count += 1;
            count
        };
        for (group, [_, upper]) in extremes.iter().enumerate() {
            if *upper >= bar {
                let first = group * GROUP;
                let reaches = |row: &usize| scores[*row] + self.bound(*row, query, coarse) >= bar;
                let picked = (first..rows.min(first + GROUP)).filter(reaches).map(&mut pick).last();
                if picked.is_some_and(|picked| picked > most_picked(rows)) {
                    return 0;
                }
            }
        }
        also.iter().map(|id| *id as usize).filter(|id| *id < rows).for_each(|id| {
            pick(id);
        });
        let ids = &mut ids[..count];
        ids.sort_unstable();
        let mut kept = 0;
        for at in 0..ids.len() {
            if kept == 0 || ids[at] != ids[kept - 1] {
                ids[kept] = ids[at];
                kept += 1;
            }
        }
        kept
    }

    /// Fills in scores and groups.
    fn score(
        &self,
        isa: Isa,
        kernel: &ScreenKernel,
        pool: &Pool,
        w: &DenseMatrix,
        all: &mut Scores<'_>,
        scratch: &Scratch<'_>,
    ) -> Result<(), OutOfMemory> {
        let (rows, mut first) = (w.rows(), 0);
        let groups = rows.div_ceil(GROUP);
        let tokens = all.scores.len() / rows;
        #[cfg(target_arch = "x86_64")]
        if amx::is_there(isa) && tokens >= TOGETHER {
            self.score_together(pool, w, all, scratch)?;
            first = rows / GROUP;
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = (isa, &mut first, scratch);
        let Scores { queries, coarse, scores, extremes } = all;
        let (queries, coarse) = (&*queries, *coarse);
        let (scores, extremes) = (Shares::new(scores), Shares::new(extremes));
        pool.ranges(groups - first, PIECE, &|range| {
            for group in range {
                let group = first + group;
                let first = group * GROUP;
                let last = rows.min(first + GROUP);
                for token in 0..tokens {
                    let query = queries.get(token);
                    // SAFETY: a group of a token is visited once.
                    let out = unsafe { scores.slice(token * rows + first, last - first) };
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
                        let bound = self.bound(row, query, coarse);
                        lower = lower.max(score - bound);
                        upper = upper.max(score + bound);
                    }
                    // SAFETY: as above.
                    let extreme = unsafe { &mut extremes.slice(token * groups + group, 1)[0] };
                    *extreme = [lower, upper];
                }
            }
        });
        Ok(())
    }

    /// The same for all whole groups, read once for all tokens.
    #[cfg(target_arch = "x86_64")]
    fn score_together(
        &self,
        pool: &Pool,
        w: &DenseMatrix,
        all: &mut Scores<'_>,
        scratch: &Scratch<'_>,
    ) -> Result<(), OutOfMemory> {
        let (rows, groups) = (w.rows(), w.rows().div_ceil(GROUP));
        let tokens = all.scores.len() / rows;
        let chunks = (0..tokens).step_by(amx::TOKENS).map(|first| {
            let queries = (first..tokens.min(first + amx::TOKENS)).map(|token| all.queries.get(token));
            amx::Tokens::new(queries, w.cols(), scratch)
        });
        let chunks = chunks.collect::<Result<Vec<_>, _>>()?;
        all.coarse = true;
        let (scores, extremes) = (Shares::new(all.scores), Shares::new(all.extremes));
        let bytes = w.data().len() / rows;
        let errors = if self.codes.is_some() { &self.errors } else { &self.coarse };
        let room = scratch.buffer::<amx::GroupScores>(chunks.len() * pool.threads())?;
        pool.ranges_with(room, rows / GROUP, PIECE, &|room, range| {
            let mut local = amx::Local::new(room);
            for group in range {
                let range = group * GROUP..(group + 1) * GROUP;
                let rows_of = match &self.codes {
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
                local.score(&rows_of, &chunks);
                for (chunk, first) in (0..tokens).step_by(amx::TOKENS).enumerate() {
                    let (norms, errors) = (&self.norms[range.clone()], &errors[range.clone()]);
                    let [lower, upper] = local.extremes(chunk, &chunks[chunk], norms, errors);
                    for (t, token) in (first..tokens.min(first + amx::TOKENS)).enumerate() {
                        // SAFETY: a group of a token is visited once.
                        let (out, extreme) = unsafe {
                            (
                                scores.slice(token * rows + range.start, GROUP),
                                extremes.slice(token * groups + group, 1),
                            )
                        };
                        for (out, scores) in out.iter_mut().zip(&local.scores[chunk]) {
                            *out = scores[t];
                        }
                        extreme[0] = [lower[t], upper[t]];
                    }
                }
            }
        });
        Ok(())
    }

    /// How far the exact product of a row can lie from its score, rounding included.
    #[inline]
    fn bound(&self, row: usize, query: Query<'_>, coarse: bool) -> f32 {
        let errors = if coarse && self.codes.is_none() { &self.coarse } else { &self.errors };
        let error = errors.get(row).copied().unwrap_or(0.0);
        // The norms of coarser codes are at most those of the row and of what they miss together.
        let norm = self.norms[row] + if coarse { error } else { 0.0 };
        (norm * query.miss + error * query.norm) * ROUND_UP
    }

    /// Whether the scores of the first token that was screened for lie within their bounds of the exact products.
    pub(crate) fn holds(&self, picked: &Picked<'_>, products: &[f32]) -> bool {
        let Some(all) = &picked.scores else { return false };
        let near = |(row, (score, product)): (usize, (&f32, &f32))| {
            (score - product).abs() <= self.bound(row, all.queries.get(0), all.coarse)
        };
        all.scores.iter().zip(products).enumerate().all(near)
    }

    /// Whether a product could leave the range in which the bounds hold.
    fn overflows(&self, query: Query<'_>) -> bool {
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
