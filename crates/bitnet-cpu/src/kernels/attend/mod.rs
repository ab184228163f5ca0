//! Causal attention over the cache (rules 10 and 11 of `docs/numerics.md`).
//!
//! Every sequence of a step is attended to by itself, so its sums do not depend on who else is there, and a segment is read
//! block by block in the order of its positions, so they do not depend on where the blocks lie.
//!
//! The query heads that share a key head go through its segments together, and in prefill so do neighbouring tokens: a segment's
//! keys and values are read and widened once for all of them. One token over many positions has its segments shared out among the
//! threads; either way every segment of every query is summed alone and merged in order. What the next segment needs is asked for
//! from memory while this one is computed.

mod ahead;
mod merge;
mod segment;
mod widen;

use crate::Isa;
use crate::kv::{self, KvCache, Store};
use crate::pool::{Pool, Shares};
use crate::simd::dispatch;
use ahead::Ahead;
use bitnet_core::{KV_BLOCK, KvSpan};
use bitnet_quant::spec::SEGMENT;
use merge::Merge;
use segment::{Arrange, Over, ROWS, Segment, Weights};
use std::cell::RefCell;
use std::ops::Range;
use widen::Wide;

/// Queries for which keys and values are widened once. Their results of all segments stay in the second-level cache until they
/// are merged.
const QUERIES: usize = 64;
/// Fewest tokens of a span that threads share out, where there are more.
const FEWEST: usize = 4;
/// Pieces of work that a thread has where there is enough of it, so that all end together.
const PIECES: usize = 8;

/// What [`attend`] uses and leaves behind for the next step.
#[derive(Default)]
pub(crate) struct Partials {
    /// `[segments][rows][d padded to 16]`: weighted values.
    values: Vec<[f32; 16]>,
    /// `[segments][rows]`: maximum score and sum of weights.
    stats: Vec<(f32, f32)>,
}

impl Partials {
    fn resize(&mut self, parts: usize, width: usize) {
        self.values.resize(parts * width, [0.0; 16]);
        self.stats.resize(parts, (0.0, 0.0));
    }
}

/// What a thread keeps between pieces of work.
#[derive(Default)]
struct Local {
    partials: Partials,
    room: Room,
}

/// What goes into a [`Segment`].
#[derive(Default)]
struct Room {
    /// The queries of a unit, made by [`Arrange`].
    q: Vec<f32>,
    /// Which of a segment's positions each of them sees.
    sees: Vec<Range<usize>>,
    p: Vec<Weights>,
    wide: Wide,
}

thread_local! {
    static LOCAL: RefCell<Local> = RefCell::default();
}

/// `out [m, heads * d]`: every query of `qkv [m, cols]` over the earlier positions of its sequence and its own; with a window, over
/// so many of them.
#[allow(clippy::too_many_arguments, reason = "one step: where, what and how")]
pub(crate) fn attend(
    isa: Isa,
    pool: &Pool,
    qkv: &[f32],
    cache: &KvCache,
    layer: usize,
    (spans, window): (&[KvSpan<'_>], Option<usize>),
    partials: &mut Partials,
    out: &mut [f32],
) {
    Step { isa, pool, qkv, cache, first: cache.first_head(layer), spans, window }.run(partials, out);
}

/// What is attended to.
struct Step<'a> {
    isa: Isa,
    pool: &'a Pool,
    /// `[m, cols]`.
    qkv: &'a [f32],
    cache: &'a KvCache,
    /// The number of the layer's first key head.
    first: usize,
    spans: &'a [KvSpan<'a>],
    window: Option<usize>,
}

/// Neighbouring tokens of a span.
#[derive(Clone, Copy)]
struct Tokens<'a> {
    span: &'a KvSpan<'a>,
    /// The first one's number in the span, and in the whole step.
    first: usize,
    row: usize,
    count: usize,
}

impl Tokens<'_> {
    /// The position of one of them.
    fn position(&self, t: usize) -> usize {
        self.span.start + self.first + t
    }

    /// The blocks that hold what they see of segment `s`, and others before it.
    fn blocks(&self, s: usize) -> &[u32] {
        let end = self.position(self.count).min((s + 1) * SEGMENT);
        &self.span.blocks[s * SEGMENT / KV_BLOCK..end.div_ceil(KV_BLOCK)]
    }
}

/// Tokens and the key head that their queries share. Row `i` is head `i % ratio` of those that share it.
#[derive(Clone, Copy)]
struct Unit<'a> {
    tokens: Tokens<'a>,
    group: usize,
}

impl Step<'_> {
    fn run(&self, partials: &mut Partials, out: &mut [f32]) {
        let (spans, threads) = (self.spans, self.pool.threads());
        let heads = self.cache.spec.shape.kv_heads;
        let total: usize = spans.iter().map(|span| span.len).sum();
        let mut most = (QUERIES / self.ratio()).max(1);
        while most > FEWEST && total * heads < most * threads * PIECES {
            most /= 2;
        }
        let mut all = Vec::new();
        let mut row = 0;
        for span in spans {
            let tokens = (0..span.len).step_by(most);
            all.extend(tokens.map(|first| Tokens {
                span,
                first,
                row: row + first,
                count: most.min(span.len - first),
            }));
            row += span.len;
        }
        let outputs = Shares::new(out);
        let units = |tokens: &[Tokens<'_>]| tokens.len() * heads;
        if units(&all) >= 2 * threads || spans.iter().all(|span| span.end() <= SEGMENT) {
            return self.share_tokens(&all, &outputs);
        }
        for tokens in all.chunk_by(|a, b| std::ptr::eq(a.span, b.span)) {
            match units(tokens) >= 2 * threads || tokens[0].span.end() <= SEGMENT {
                true => self.share_tokens(tokens, &outputs),
                false => tokens.iter().for_each(|t| self.share_segments(*t, partials, &outputs)),
            }
        }
    }

    /// Query heads that share a key head.
    fn ratio(&self) -> usize {
        let shape = self.cache.spec.shape;
        shape.heads / shape.kv_heads
    }

    /// The positions that row `i` of a unit sees.
    fn sees(&self, tokens: Tokens<'_>, i: usize) -> Range<usize> {
        let end = tokens.position(i / self.ratio()) + 1;
        end.saturating_sub(self.window.unwrap_or(usize::MAX))..end
    }

    /// The segments that any of some tokens sees.
    fn segments(&self, tokens: Tokens<'_>) -> Range<usize> {
        self.sees(tokens, 0).start / SEGMENT..tokens.position(tokens.count).div_ceil(SEGMENT)
    }

    /// Row `i` of a unit: the token's row in the step, and the query head.
    fn row(&self, unit: Unit<'_>, i: usize) -> (usize, usize) {
        (unit.tokens.row + i / self.ratio(), unit.group * self.ratio() + i % self.ratio())
    }

    /// Takes over the queries of a unit.
    fn arrange(&self, unit: Unit<'_>, q: &mut Vec<f32>) {
        let shape = self.cache.spec.shape;
        let query = |i: usize| {
            let (row, head) = self.row(unit, i);
            &self.qkv[row * shape.qkv_cols() + head * shape.head_dim..][..shape.head_dim]
        };
        dispatch(self.isa, Arrange { queries: unit.tokens.count * self.ratio(), query: &query, out: q });
    }

    /// What asks for the keys of segment `s`, and for its values.
    fn ahead(&self, unit: Unit<'_>, s: usize) -> [Ahead; 2] {
        let (cache, head) = (self.cache, self.first + unit.group);
        let runs = |store: &Store, len: usize| {
            let mut ahead = Ahead::new(store.element_bytes());
            for i in unit.tokens.blocks(s) {
                let at = *i as usize * cache.heads() + head;
                let run = at * len..(at + 1) * len;
                match store {
                    Store::F32(x) => ahead.push(&x[run]),
                    Store::F16(x) | Store::BF16(x) => ahead.push(&x[run]),
                    Store::Q8(x) => ahead.push(&x[run]),
                }
            }
            ahead
        };
        [runs(&cache.keys, cache.key), runs(&cache.values, cache.value)]
    }

    /// The queries of a unit over segment `s`; `next` is the segment that this thread goes on with.
    fn segment(
        &self,
        (unit, s): (Unit<'_>, usize),
        next: Option<(Unit<'_>, usize)>,
        room: &mut Room,
        out: &mut [[f32; 16]],
        stats: &mut [(f32, f32)],
    ) {
        let (cache, head) = (self.cache, self.first + unit.group);
        let blocks = unit.tokens.blocks(s);
        let inside = |position: usize| position.clamp(s * SEGMENT, (s + 1) * SEGMENT) - s * SEGMENT;
        room.sees.clear();
        room.sees.extend((0..stats.len()).map(|i| {
            let Range { start, end } = self.sees(unit.tokens, i);
            inside(start)..inside(end)
        }));
        let next = next.map_or([Ahead::new(0); 2], |(unit, s)| self.ahead(unit, s));
        room.p.resize(stats.len(), [[0.0; 16]; SEGMENT / 16]);
        let Room { q, sees, p, wide } = room;
        let d = cache.spec.shape.head_dim;
        let strides = cache.strides();
        let mut over = Over { d, sees, q, blocks, strides, ahead: next, p, out, stats };
        if over.sees.len() <= ROWS {
            // The values of this segment, then the keys of the next one.
            over.ahead = [self.ahead(unit, s)[1], next[0]];
            let (k, v) = (head * cache.key, head * cache.value);
            macro_rules! segment {
                ($ty:ty, $keys:expr, $values:expr) => {{
                    let segment = Segment::<$ty, $ty> { keys: &$keys[k..], values: &$values[v..], over };
                    return dispatch(self.isa, segment);
                }};
            }
            match (&cache.keys, &cache.values) {
                (Store::F32(keys), Store::F32(values)) => segment!(kv::F32, keys, values),
                (Store::F16(keys), Store::F16(values)) => segment!(kv::F16, keys, values),
                (Store::BF16(keys), Store::BF16(values)) => segment!(kv::BF16, keys, values),
                (Store::Q8(keys), Store::Q8(values)) => segment!(kv::Q8, keys, values),
                // Types that few mix are widened too: kernels for all pairs would take long to compile.
                _ => over.ahead = next,
            }
        }
        let first = over.sees.iter().fold(SEGMENT, |first, sees| first.min(sees.start)) / KV_BLOCK;
        wide.fill(self.isa, cache, head, blocks, first..blocks.len());
        (over.blocks, over.strides) = (&Wide::BLOCKS, Wide::strides(d));
        let segment = Segment::<kv::F32, kv::F32> { keys: &wide.keys, values: &wide.values, over };
        dispatch(self.isa, segment);
    }

    /// Row `i` of a unit becomes output; it is row `index` of the `rows` of the partials, which begin with the first segment that any
    /// of the tokens sees.
    fn merge(
        &self,
        unit: Unit<'_>,
        i: usize,
        (partials, rows, index): (&Partials, usize, usize),
        outputs: &Shares<'_, f32>,
    ) {
        let shape = self.cache.spec.shape;
        let (row, head) = self.row(unit, i);
        // SAFETY: every (token, head) is merged once.
        let out = unsafe { outputs.slice((row * shape.heads + head) * shape.head_dim, shape.head_dim) };
        let (sees, before) = (self.sees(unit.tokens, i), self.segments(unit.tokens).start);
        let segments = sees.start / SEGMENT - before..sees.end.div_ceil(SEGMENT) - before;
        dispatch(self.isa, Merge { partials, rows, row: index, segments, out });
    }

    /// Tokens and key heads are shared out among the threads; a thread has all tokens of a key head before it takes the next, so that
    /// keys and values stay in its caches.
    fn share_tokens(&self, all: &[Tokens<'_>], outputs: &Shares<'_, f32>) {
        let shape = self.cache.spec.shape;
        let width = shape.head_dim.div_ceil(16);
        self.pool.ranges(all.len() * shape.kv_heads, 1, &|range| {
            for unit in range {
                let unit = Unit { tokens: all[unit % all.len()], group: unit / all.len() };
                let (rows, segments) = (unit.tokens.count * self.ratio(), self.segments(unit.tokens));
                LOCAL.with_borrow_mut(|Local { partials, room }| {
                    self.arrange(unit, &mut room.q);
                    partials.resize(segments.len() * rows, width);
                    let Partials { values, stats } = &mut *partials;
                    let outs = values.chunks_exact_mut(rows * width).zip(stats.chunks_exact_mut(rows));
                    for (s, (out, stats)) in segments.clone().zip(outs) {
                        let next = (s + 1 < segments.end).then_some((unit, s + 1));
                        self.segment((unit, s), next, room, out, stats);
                    }
                    (0..rows).for_each(|i| self.merge(unit, i, (partials, rows, i), outputs));
                });
            }
        });
    }

    /// Few queries over many positions: the segments are shared out.
    fn share_segments(&self, tokens: Tokens<'_>, partials: &mut Partials, outputs: &Shares<'_, f32>) {
        let shape = self.cache.spec.shape;
        let width = shape.head_dim.div_ceil(16);
        let (segments, rows) = (self.segments(tokens), tokens.count * self.ratio());
        let all = rows * shape.kv_heads;
        partials.resize(segments.len() * all, width);
        let (values, stats) = (Shares::new(&mut partials.values), Shares::new(&mut partials.stats));
        let pieces = segments.len() * shape.kv_heads;
        let piece =
            |i: usize| (Unit { tokens, group: i / segments.len() }, segments.start + i % segments.len());
        self.pool.ranges(pieces, 1, &|range| {
            for i in range {
                let (unit, s) = piece(i);
                let part = (s - segments.start) * all + unit.group * rows;
                // SAFETY: every segment of every row is computed once.
                let (out, stats) =
                    unsafe { (values.slice(part * width, rows * width), stats.slice(part, rows)) };
                // The next piece is this thread's too, unless another one takes it.
                let next = (i + 1 < pieces).then(|| piece(i + 1));
                LOCAL.with_borrow_mut(|Local { room, .. }| {
                    self.arrange(unit, &mut room.q);
                    self.segment((unit, s), next, room, out, stats);
                });
            }
        });
        let partials = &*partials;
        self.pool.ranges(all, all.div_ceil(self.pool.threads()), &|range| {
            for i in range {
                self.merge(Unit { tokens, group: i / rows }, i % rows, (partials, all, i), outputs);
            }
        });
    }
}

#[cfg(test)]
mod tests;
