//! Causal attention over the cache (rules 10 and 11 of `docs/numerics.md`).
//!
//! Every sequence of a step is attended to by itself, so its sums do not depend on who else is there, and a segment is read
//! block by block in the order of its positions, so they do not depend on where the blocks lie.
//!
//! The query heads that share a key head go through its segments together, and in prefill so do a few neighbouring tokens: keys
//! and values are read and widened once for up to eight queries. One token over many positions has its segments shared out among
//! the threads; either way every segment of every query is summed alone and merged in order.

use crate::Isa;
use crate::kv::{self, KvCache, KvElement, Store};
use crate::pool::{Pool, Shares};
use crate::simd::{Kernel, Lanes, dispatch};
use bitnet_core::{KV_BLOCK, KvSpan};
use bitnet_quant::spec::{Q8_BLOCK, SEGMENT};
use std::cell::RefCell;
use std::ops::Range;

/// Queries that a segment is read for at a time: eight fill 24 of 32 registers, and half of them where there are sixteen.
const ROWS: usize = 8;
/// Tiles of 16 positions in a block of the cache.
const TILES: usize = KV_BLOCK / 16;
/// Tokens whose queries go through the cache together.
const BLOCK: usize = 4;

/// Vectors of a row that are merged at a time, each segment's weight being computed once for all of them.
const CHUNK: usize = 8;

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

thread_local! {
    static LOCAL: RefCell<Partials> = RefCell::default();
}

/// A query head of a token: `q [d]`, and the positions that it sees.
#[derive(Clone, Copy, Default)]
struct Query<'a> {
    q: &'a [f32],
    first: usize,
    end: usize,
}

/// Up to [`ROWS`] queries that share keys and values, over one segment.
struct Segment<'a, K: KvElement, V: KvElement> {
    queries: &'a [Query<'a>],
    /// `[tiles][rows of a tile][16]`.
    keys: &'a [K::Raw],
    /// `[positions][rows of a value][16]`.
    values: &'a [V::Raw],
    /// The segment's first position in the sequence.
    from: usize,
    /// The blocks that hold the segment's positions.
    blocks: &'a [u32],
    /// Whether nothing but these queries reads keys and values, so that they come from memory.
    stream: bool,
    /// `[queries][d padded to 16]`.
    out: &'a mut [[f32; 16]],
    /// `[queries]`.
    stats: &'a mut [(f32, f32)],
}

/// Scores, later weights, of one query in a segment.
type Weights = [[f32; 16]; SEGMENT / 16];

impl<'a, K: KvElement, V: KvElement> Segment<'a, K, V> {
    /// What query `r` sees of this segment, counted from its beginning; may be nothing.
    #[inline(always)]
    fn sees(&self, r: usize) -> Range<usize> {
        let inside = |position: usize| position.clamp(self.from, self.from + SEGMENT) - self.from;
        inside(self.queries[r].first)..inside(self.queries[r].end)
    }

    /// Scores of tiles `tile..tile + T` of the segment.
    #[inline(always)]
    fn scores<L: Lanes, const R: usize, const T: usize>(&self, l: L, tile: usize, p: &mut [Weights; R]) {
        let d = self.queries[0].q.len();
        let q: [&[f32]; R] = std::array::from_fn(|r| &self.queries[r].q[..d]);
        // Four tiles make a block, so the tiles of one call are neighbours.
        let at = self.blocks[tile / TILES] as usize * TILES + tile % TILES;
        let rows = K::key_rows(d);
        let keys = &self.keys.as_chunks::<16>().0[at * rows..];
        let keys: [&[[K::Raw; 16]]; T] = std::array::from_fn(|t| &keys[t * rows..][..rows]);
        let mut s = [[l.splat(0.0); T]; R];
        // The values of the segment arrive in the second-level cache meanwhile.
        let lines = SEGMENT * V::value_rows(d) * size_of::<[V::Raw; 16]>() / 64;
        let values = &self.values[at * 16 * 16 * V::value_rows(d)..];
        let share = (lines * T).div_ceil(d * SEGMENT / 16);
        for from in (0..d).step_by(Q8_BLOCK) {
            let mut scale = [K::key_scale(l, keys[0], d, from / Q8_BLOCK); T];
            for t in 1..T {
                scale[t] = K::key_scale(l, keys[t], d, from / Q8_BLOCK);
            }
            for i in from..d.min(from + Q8_BLOCK) {
                if self.stream {
                    for line in 0..share {
                        let line = i * share + line;
                        l.prefetch(values.as_ptr().cast::<u8>().wrapping_add(64 * line));
                    }
                }
                let mut key = [l.splat(0.0); T];
                for t in 0..T {
                    key[t] = K::key(l, &keys[t][i], scale[t]);
                }
                for r in 0..R {
                    let q = l.splat(q[r][i]);
                    for t in 0..T {
                        s[r][t] = l.fma(q, key[t], s[r][t]);
                    }
                }
            }
        }
        let scale = l.splat(1.0 / (d as f32).sqrt());
        for r in 0..R {
            for t in 0..T {
                l.store(l.mul(s[r][t], scale), &mut p[r][tile + t]);
            }
        }
    }

    /// Turns the scores of what a query sees into weights; returns the maximum and the sum.
    #[inline(always)]
    fn weights<L: Lanes>(l: L, sees: Range<usize>, p: &mut Weights) -> (f32, f32) {
        if sees.is_empty() {
            *p = [[0.0; 16]; SEGMENT / 16];
            return (f32::NEG_INFINITY, 0.0);
        }
        // The weight of what it does not see is +0, and adding that changes no sum.
        p.as_flattened_mut()[..sees.start].fill(f32::NEG_INFINITY);
        p.as_flattened_mut()[sees.end..].fill(f32::NEG_INFINITY);
        let p = &mut p[..sees.end.div_ceil(16)];
        let highest = p.iter().fold(l.splat(f32::NEG_INFINITY), |max, p| l.max(l.load(p), max));
        let mut lanes = [0.0; 16];
        l.store(highest, &mut lanes);
        let max = lanes.iter().fold(f32::NEG_INFINITY, |m, s| if *s > m { *s } else { m });
        let mut sum = l.splat(0.0);
        for p in p {
            let e = l.exp(l.sub(l.load(p), l.splat(max)));
            sum = l.add(sum, e);
            l.store(e, p);
        }
        (max, l.fold(sum))
    }

    /// Weighted values of dimensions `16c..16(c + C)`.
    #[inline(always)]
    fn sums<L: Lanes, const R: usize, const C: usize>(&mut self, l: L, c: usize, p: &[Weights; R]) {
        let d = self.queries[0].q.len();
        let (width, stride) = (d.div_ceil(16), V::value_rows(d));
        let from = (0..R).fold(SEGMENT, |from, r| from.min(self.sees(r).start));
        let to: [usize; R] = std::array::from_fn(|r| self.sees(r).end);
        let rows = self.values.as_chunks::<16>().0;
        let blocks = self.blocks;
        let slot = |i: usize| blocks[i / KV_BLOCK] as usize * KV_BLOCK + i % KV_BLOCK;
        let all = to.iter().fold(SEGMENT, |n, to| n.min(*to));
        let mut sum = [[l.splat(0.0); C]; R];
        for first in (from / KV_BLOCK * KV_BLOCK..all).step_by(KV_BLOCK) {
            let rows = &rows[slot(first) * stride..];
            for i in first.max(from)..all.min(first + KV_BLOCK) {
                let value: [L::F; C] = V::values(l, &rows[(i - first) * stride..][..stride], d, c);
                for r in 0..R {
                    let p = l.splat(p[r].as_flattened()[i]);
                    for j in 0..C {
                        sum[r][j] = l.fma(p, value[j], sum[r][j]);
                    }
                }
            }
        }
        // Positions that only some of the queries see.
        for r in 0..R {
            for i in all.max(from)..to[r] {
                let value: [L::F; C] = V::values(l, &rows[slot(i) * stride..][..stride], d, c);
                let p = l.splat(p[r].as_flattened()[i]);
                for j in 0..C {
                    sum[r][j] = l.fma(p, value[j], sum[r][j]);
                }
            }
            for (sum, out) in sum[r].iter().zip(&mut self.out[r * width + c..]) {
                l.store(*sum, out);
            }
        }
    }

    #[inline(always)]
    fn rows<L: Lanes, const R: usize>(mut self, l: L) {
        let mut p = [[[0.0f32; 16]; SEGMENT / 16]; R];
        let (first, end) = (0..R).fold((SEGMENT, 0), |(first, end), r| {
            let sees = self.sees(r);
            (first.min(sees.start), end.max(sees.end))
        });
        // Tiles come in blocks of four, which lie together.
        let (tiles, mut tile) = (end.div_ceil(16), first / KV_BLOCK * TILES);
        if L::REGISTERS >= 32 {
            while R <= 4 && tile + 4 <= tiles {
                self.scores::<L, R, 4>(l, tile, &mut p);
                tile += 4;
            }
            while tile + 2 <= tiles {
                self.scores::<L, R, 2>(l, tile, &mut p);
                tile += 2;
            }
        }
        for tile in tile..tiles {
            self.scores::<L, R, 1>(l, tile, &mut p);
        }
        for (r, p) in p.iter_mut().enumerate() {
            self.stats[r] = Self::weights(l, self.sees(r), p);
        }
        let (width, mut c) = (self.queries[0].q.len().div_ceil(16), 0);
        if L::REGISTERS >= 32 {
            while R <= 4 && c + 4 <= width {
                self.sums::<L, R, 4>(l, c, &p);
                c += 4;
            }
            while c + 2 <= width {
                self.sums::<L, R, 2>(l, c, &p);
                c += 2;
            }
        }
        for c in c..width {
            self.sums::<L, R, 1>(l, c, &p);
        }
    }
}

impl<K: KvElement, V: KvElement> Kernel for Segment<'_, K, V> {
    type Output = ();
    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let full = L::REGISTERS >= 32 && self.queries.len() == ROWS;
        let (most, width) = (if full { ROWS } else { ROWS / 2 }, self.queries[0].q.len().div_ceil(16));
        let parts = self.queries.chunks(most).zip(self.out.chunks_mut(most * width));
        for ((queries, out), stats) in parts.zip(self.stats.chunks_mut(most)) {
            let part = Segment { queries, out, stats, ..self };
            match queries.len() {
                1 => part.rows::<L, 1>(l),
                2 => part.rows::<L, 2>(l),
                3 => part.rows::<L, 3>(l),
                4 => part.rows::<L, 4>(l),
                _ => part.rows::<L, ROWS>(l),
            }
        }
    }
}

/// The segments of one row become its output (rule 11).
struct Merge<'a> {
    partials: &'a Partials,
    /// Rows of the partials, and which of them this is.
    rows: usize,
    row: usize,
    segments: Range<usize>,
    out: &'a mut [f32],
}

impl Kernel for Merge<'_> {
    type Output = ();
    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let width = self.out.len().div_ceil(16);
        let part = |segment: usize| segment * self.rows + self.row;
        let mut max = f32::NEG_INFINITY;
        for segment in self.segments.clone() {
            let m = self.partials.stats[part(segment)].0;
            max = if m > max { m } else { max };
        }
        let weight = |l: L, segment| l.exp(l.splat(self.partials.stats[part(segment)].0 - max));
        let total = self.segments.clone().fold(l.splat(0.0), |total, segment| {
            l.fma(l.splat(self.partials.stats[part(segment)].1), weight(l, segment), total)
        });
        for first in (0..width).step_by(CHUNK) {
            let mut merged = [l.splat(0.0); CHUNK];
            for segment in self.segments.clone() {
                let (e, values) =
                    (weight(l, segment), &self.partials.values[part(segment) * width..][..width]);
                for (merged, value) in merged.iter_mut().zip(&values[first..]) {
                    *merged = l.fma(l.load(value), e, *merged);
                }
            }
            for (merged, out) in merged.into_iter().zip(self.out[16 * first..].chunks_mut(16)) {
                let mut lanes = [0.0; 16];
                l.store(l.div(merged, total), &mut lanes);
                out.copy_from_slice(&lanes[..out.len()]);
            }
        }
    }
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
    let step = Step { isa, pool, qkv, cache, first: cache.first_head(layer), spans, window };
    match &cache.keys {
        Store::F32(k) => with_values::<kv::F32>(&step, k, partials, out),
        Store::F16(k) => with_values::<kv::F16>(&step, k, partials, out),
        Store::BF16(k) => with_values::<kv::BF16>(&step, k, partials, out),
        Store::Q8(k) => with_values::<kv::Q8>(&step, k, partials, out),
    }
}

/// What is attended to, whatever the cache's types.
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

impl Step<'_> {
    /// The positions that a query at one of them sees.
    fn sees(&self, position: usize) -> Range<usize> {
        (position + 1).saturating_sub(self.window.unwrap_or(usize::MAX))..position + 1
    }
}

fn with_values<K: KvElement>(step: &Step<'_>, keys: &[K::Raw], partials: &mut Partials, out: &mut [f32]) {
    match &step.cache.values {
        Store::F32(values) => Job::<K, kv::F32> { step, keys, values }.run(partials, out),
        Store::F16(values) => Job::<K, kv::F16> { step, keys, values }.run(partials, out),
        Store::BF16(values) => Job::<K, kv::BF16> { step, keys, values }.run(partials, out),
        Store::Q8(values) => Job::<K, kv::Q8> { step, keys, values }.run(partials, out),
    }
}

struct Job<'a, K: KvElement, V: KvElement> {
    step: &'a Step<'a>,
    keys: &'a [K::Raw],
    values: &'a [V::Raw],
}

/// Up to [`BLOCK`] tokens of a span.
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
}

impl<K: KvElement, V: KvElement> Job<'_, K, V> {
    fn run(&self, partials: &mut Partials, out: &mut [f32]) {
        let (spans, threads) = (self.step.spans, self.step.pool.threads());
        let mut all = Vec::new();
        let mut row = 0;
        for span in spans {
            let tokens = (0..span.len).step_by(BLOCK);
            all.extend(tokens.map(|first| Tokens {
                span,
                first,
                row: row + first,
                count: BLOCK.min(span.len - first),
            }));
            row += span.len;
        }
        let outputs = Shares::new(out);
        let units = |tokens: &[Tokens<'_>]| tokens.len() * self.step.cache.spec.shape.kv_heads;
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

    /// The segments that any of some tokens sees.
    fn segments(&self, tokens: Tokens<'_>) -> Range<usize> {
        let first = self.step.sees(tokens.position(0)).start / SEGMENT;
        first..tokens.position(tokens.count).div_ceil(SEGMENT)
    }

    /// Query heads that share a key head.
    fn ratio(&self) -> usize {
        let shape = self.step.cache.spec.shape;
        shape.heads / shape.kv_heads
    }

    /// Row `i` of some tokens is head `i % ratio` of those that share `group`: the token's row in the step, the head, the query.
    fn query(&self, tokens: Tokens<'_>, group: usize, i: usize) -> (usize, usize, Query<'_>) {
        let shape = self.step.cache.spec.shape;
        let (t, head) = (i / self.ratio(), group * self.ratio() + i % self.ratio());
        let row = tokens.row + t;
        let q = &self.step.qkv[row * shape.qkv_cols() + head * shape.head_dim..][..shape.head_dim];
        let Range { start: first, end } = self.step.sees(tokens.position(t));
        (row, head, Query { q, first, end })
    }

    /// Rows `rows` of some tokens over segment `s`.
    fn segment(
        &self,
        tokens: Tokens<'_>,
        group: usize,
        rows: Range<usize>,
        s: usize,
        out: &mut [[f32; 16]],
        stats: &mut [(f32, f32)],
    ) {
        let (cache, count) = (self.step.cache, rows.len());
        let mut queries = [Query::default(); ROWS];
        for (q, i) in queries.iter_mut().zip(rows) {
            *q = self.query(tokens, group, i).2;
        }
        let head = self.step.first + group;
        let segment = Segment::<K, V> {
            queries: &queries[..count],
            keys: &self.keys[head * cache.key_stride..][..cache.key_stride],
            values: &self.values[head * cache.value_stride..][..cache.value_stride],
            from: s * SEGMENT,
            blocks: &tokens.span.blocks[s * SEGMENT / KV_BLOCK..],
            stream: tokens.span.len == 1,
            out,
            stats,
        };
        dispatch(self.step.isa, segment);
    }

    /// Row `i` of some tokens becomes output; it is row `index` of the `rows` of the partials, which begin with the first segment
    /// that any of the tokens sees.
    fn merge(
        &self,
        tokens: Tokens<'_>,
        group: usize,
        i: usize,
        (partials, rows, index): (&Partials, usize, usize),
        outputs: &Shares<'_, f32>,
    ) {
        let shape = self.step.cache.spec.shape;
        let (row, head, query) = self.query(tokens, group, i);
        // SAFETY: every (token, head) is merged once.
        let out = unsafe { outputs.slice((row * shape.heads + head) * shape.head_dim, shape.head_dim) };
        let before = self.segments(tokens).start;
        let segments = query.first / SEGMENT - before..query.end.div_ceil(SEGMENT) - before;
        dispatch(self.step.isa, Merge { partials, rows, row: index, segments, out });
    }

    /// Tokens and key heads are shared out among the threads.
    fn share_tokens(&self, all: &[Tokens<'_>], outputs: &Shares<'_, f32>) {
        let shape = self.step.cache.spec.shape;
        let width = shape.head_dim.div_ceil(16);
        self.step.pool.ranges(all.len() * shape.kv_heads, 1, &|range| {
            for unit in range {
                let (tokens, group) = (all[unit / shape.kv_heads], unit % shape.kv_heads);
                let rows = tokens.count * self.ratio();
                LOCAL.with_borrow_mut(|partials| {
                    let segments = self.segments(tokens);
                    partials.resize(segments.len() * rows, width);
                    for (i, s) in segments.enumerate() {
                        for row in (0..rows).step_by(ROWS) {
                            let (count, part) = (ROWS.min(rows - row), i * rows + row);
                            let Partials { values, stats } = &mut *partials;
                            let (out, stats) =
                                (&mut values[part * width..][..count * width], &mut stats[part..][..count]);
                            self.segment(tokens, group, row..row + count, s, out, stats);
                        }
                    }
                    (0..rows).for_each(|i| self.merge(tokens, group, i, (partials, rows, i), outputs));
                });
            }
        });
    }

    /// Few queries over many positions: the segments are shared out.
    fn share_segments(&self, tokens: Tokens<'_>, partials: &mut Partials, outputs: &Shares<'_, f32>) {
        let (shape, pool) = (self.step.cache.spec.shape, self.step.pool);
        let width = shape.head_dim.div_ceil(16);
        let rows = tokens.count * self.ratio();
        let all = rows * shape.kv_heads;
        let segments = self.segments(tokens);
        partials.resize(segments.len() * all, width);
        let (values, stats) = (Shares::new(&mut partials.values), Shares::new(&mut partials.stats));
        pool.ranges(segments.len() * shape.kv_heads, 1, &|range| {
            for unit in range {
                let (i, group) = (unit / shape.kv_heads, unit % shape.kv_heads);
                let s = segments.start + i;
                for row in (0..rows).step_by(ROWS) {
                    let (count, part) = (ROWS.min(rows - row), i * all + group * rows + row);
                    // SAFETY: every segment of every row is computed once.
                    let (out, stats) =
                        unsafe { (values.slice(part * width, count * width), stats.slice(part, count)) };
                    self.segment(tokens, group, row..row + count, s, out, stats);
                }
            }
        });
        let partials = &*partials;
        pool.ranges(all, all.div_ceil(pool.threads()), &|range| {
            range.for_each(|i| self.merge(tokens, i / rows, i % rows, (partials, all, i), outputs));
        });
    }
}

#[cfg(test)]
mod tests;
