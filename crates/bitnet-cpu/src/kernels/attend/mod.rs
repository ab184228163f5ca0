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
use crate::layout::Line;
use crate::memory::{self, OutOfMemory, Scratch};
use crate::pool::{Pool, Shares};
use crate::simd::dispatch;
use ahead::Ahead;
use bitnet_core::{KV_BLOCK, KvSpan};
use bitnet_quant::spec::SEGMENT;
use bytemuck::{Pod, Zeroable};
use merge::Merge;
use segment::{Arrange, Over, ROWS, Sees, Segment, Weights};
use std::ops::Range;
use widen::Wide;

/// Queries for which keys and values are widened once. Their results of all segments stay in the second-level cache until they
/// are merged.
const QUERIES: usize = 64;
/// Fewest tokens of a span that threads share out, where there are more.
const FEWEST: usize = 4;
/// Pieces of work that a thread has where there is enough of it, so that all end together.
const PIECES: usize = 8;

/// What segments give.
#[derive(Clone, Copy)]
pub(crate) struct Partials<'a> {
    /// `[segments][rows][d padded to 16]`: weighted values.
    values: &'a [[f32; 16]],
    /// `[segments][rows]`: maximum score and sum of weights.
    stats: &'a [[f32; 2]],
}

/// What goes into a [`Segment`].
struct Room<'a> {
    /// The queries of a unit, made by [`Arrange`].
    q: &'a mut [f32],
    /// Which of a segment's positions each of them sees.
    sees: &'a mut [Sees],
    p: &'a mut [Weights],
    wide: Wide<'a>,
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
    scratch: &Scratch<'_>,
    out: &mut [f32],
) -> Result<(), OutOfMemory> {
    Step { isa, pool, qkv, cache, first: cache.first_head(layer), spans, window }.run(scratch, out)
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

/// Neighbouring tokens of a span, by its number.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Part {
    span: u32,
    first: u32,
    row: u32,
    count: u32,
}

/// The same, with their span.
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
    fn run(&self, scratch: &Scratch<'_>, out: &mut [f32]) -> Result<(), OutOfMemory> {
        let (spans, threads) = (self.spans, self.pool.threads());
        let heads = self.cache.spec.shape.kv_heads;
        let total: usize = spans.iter().map(|span| span.len).sum();
        let mut most = (QUERIES / self.ratio()).max(1);
        while most > FEWEST && total * heads < most * threads * PIECES {
            most /= 2;
        }
        let all = scratch.buffer::<Part>(spans.iter().map(|span| span.len.div_ceil(most)).sum())?;
        let (mut parts, mut row) = (all.iter_mut(), 0);
        for (number, span) in spans.iter().enumerate() {
            for (first, part) in (0..span.len).step_by(most).zip(&mut parts) {
                let count = most.min(span.len - first);
                let [span, first, row, count] = [number, first, row + first, count].map(|n| n as u32);
                *part = Part { span, first, row, count };
            }
            row += span.len;
        }
        let outputs = Shares::new(out);
        let units = |parts: &[Part]| parts.len() * heads;
        if units(all) >= PIECES * threads || spans.iter().all(|span| span.end() <= SEGMENT) {
            return self.share_tokens(all, scratch, &outputs);
        }
        for parts in all.chunk_by(|a, b| a.span == b.span) {
            if units(parts) >= PIECES * threads || spans[parts[0].span as usize].end() <= SEGMENT {
                self.share_tokens(parts, scratch, &outputs)?;
            } else {
                for part in parts {
                    self.share_segments(self.tokens(*part), scratch, &outputs)?;
                }
            }
        }
        Ok(())
    }

    fn tokens(&self, part: Part) -> Tokens<'_> {
        let [first, row, count] = [part.first, part.row, part.count].map(|n| n as usize);
        Tokens { span: &self.spans[part.span as usize], first, row, count }
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
    fn arrange(&self, unit: Unit<'_>, q: &mut [f32]) {
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
            for (i, block) in unit.tokens.blocks(s).iter().enumerate() {
                let at = (*block as usize * cache.heads() + head) * len;
                // Of a block that is not full, the tiles that somebody sees.
                let before = s * SEGMENT + i * KV_BLOCK;
                let seen = (unit.tokens.position(unit.tokens.count) - before).min(KV_BLOCK);
                let run = at..at + len / (KV_BLOCK / 16) * seen.div_ceil(16);
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
        room: &mut Room<'_>,
        out: &mut [[f32; 16]],
        stats: &mut [[f32; 2]],
    ) {
        let (cache, head) = (self.cache, self.first + unit.group);
        let blocks = unit.tokens.blocks(s);
        let inside = |position: usize| position.clamp(s * SEGMENT, (s + 1) * SEGMENT) - s * SEGMENT;
        let Room { q, sees, p, wide } = room;
        let (sees, p) = (&mut sees[..stats.len()], &mut p[..stats.len()]);
        for (i, sees) in sees.iter_mut().enumerate() {
            let Range { start, end } = self.sees(unit.tokens, i);
            *sees = Sees { start: inside(start), end: inside(end) };
        }
        let next = next.map_or([Ahead::new(0); 2], |(unit, s)| self.ahead(unit, s));
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
        let segment = Segment::<kv::F32, kv::F32> { keys: wide.keys, values: wide.values, over };
        dispatch(self.isa, segment);
    }

    /// Row `i` of a unit becomes output; it is row `index` of the `rows` of the partials, which begin with the first segment that any
    /// of the tokens sees.
    fn merge(
        &self,
        unit: Unit<'_>,
        i: usize,
        (partials, rows, index): (Partials<'_>, usize, usize),
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

    /// Whether keys and values of a segment are widened for so many rows.
    fn widens(&self, rows: usize) -> bool {
        let same = std::mem::discriminant(&self.cache.keys) == std::mem::discriminant(&self.cache.values);
        rows > ROWS || !same
    }

    /// Lines that a [`Room`] for so many rows takes.
    fn room_lines(&self, rows: usize) -> usize {
        let d = self.cache.spec.shape.head_dim;
        let own = memory::Room::lines::<f32>(rows * d)
            + memory::Room::lines::<Sees>(rows)
            + memory::Room::lines::<Weights>(rows);
        own + if self.widens(rows) { Wide::lines(d) } else { 0 }
    }

    fn room<'r>(&self, rows: usize, room: &mut memory::Room<'r>) -> Room<'r> {
        let d = self.cache.spec.shape.head_dim;
        let (q, sees, p) = (room.take(rows * d), room.take(rows), room.take(rows));
        Room { q, sees, p, wide: Wide::new(if self.widens(rows) { d } else { 0 }, room) }
    }

    /// Tokens and key heads are shared out among the threads; a thread has all tokens of a key head before it takes the next, so that
    /// keys and values stay in its caches.
    fn share_tokens(
        &self,
        all: &[Part],
        scratch: &Scratch<'_>,
        outputs: &Shares<'_, f32>,
    ) -> Result<(), OutOfMemory> {
        let shape = self.cache.spec.shape;
        let width = shape.head_dim.div_ceil(16);
        let most = |of: &dyn Fn(Tokens<'_>) -> usize| all.iter().map(|part| of(self.tokens(*part))).max();
        let most_rows = most(&|tokens| tokens.count).unwrap_or(0) * self.ratio();
        let most_parts =
            most(&|tokens| tokens.count * self.segments(tokens).len()).unwrap_or(0) * self.ratio();
        let lines =
            most_parts * width + memory::Room::lines::<[f32; 2]>(most_parts) + self.room_lines(most_rows);
        let room = scratch.buffer::<Line>(lines * self.pool.threads())?;
        self.pool.ranges_with(room, all.len() * shape.kv_heads, 1, &|room, range| {
            let mut room = memory::Room::new(room);
            let values = room.take::<[f32; 16]>(most_parts * width);
            let stats = room.take::<[f32; 2]>(most_parts);
            let mut room = self.room(most_rows, &mut room);
            let unit = |i: usize| Unit { tokens: self.tokens(all[i % all.len()]), group: i / all.len() };
            for i in range.clone() {
                let following = (i + 1 < range.end).then(|| unit(i + 1));
                let unit = unit(i);
                let (rows, segments) = (unit.tokens.count * self.ratio(), self.segments(unit.tokens));
                self.arrange(unit, room.q);
                let outs = values.chunks_exact_mut(rows * width).zip(stats.chunks_exact_mut(rows));
                for (s, (out, stats)) in segments.clone().zip(outs) {
                    let next = match s + 1 < segments.end {
                        true => Some((unit, s + 1)),
                        false => following.map(|unit| (unit, self.segments(unit.tokens).start)),
                    };
                    self.segment((unit, s), next, &mut room, out, stats);
                }
                let partials = Partials { values, stats };
                (0..rows).for_each(|i| self.merge(unit, i, (partials, rows, i), outputs));
            }
        });
        Ok(())
    }

    /// Few queries over many positions: the segments are shared out.
    fn share_segments(
        &self,
        tokens: Tokens<'_>,
        scratch: &Scratch<'_>,
        outputs: &Shares<'_, f32>,
    ) -> Result<(), OutOfMemory> {
        let shape = self.cache.spec.shape;
        let width = shape.head_dim.div_ceil(16);
        let (segments, rows) = (self.segments(tokens), tokens.count * self.ratio());
        let all = rows * shape.kv_heads;
        let values = scratch.buffer::<[f32; 16]>(segments.len() * all * width)?;
        let stats = scratch.buffer::<[f32; 2]>(segments.len() * all)?;
        let room = scratch.buffer::<Line>(self.room_lines(rows) * self.pool.threads())?;
        let (values_out, stats_out) = (Shares::new(values), Shares::new(stats));
        let pieces = segments.len() * shape.kv_heads;
        let piece =
            |i: usize| (Unit { tokens, group: i / segments.len() }, segments.start + i % segments.len());
        self.pool.ranges_with(room, pieces, 1, &|room, range| {
            let mut room = self.room(rows, &mut memory::Room::new(room));
            let mut arranged = None;
            for i in range {
                let (unit, s) = piece(i);
                let part = (s - segments.start) * all + unit.group * rows;
                // SAFETY: every segment of every row is computed once.
                let (out, stats) =
                    unsafe { (values_out.slice(part * width, rows * width), stats_out.slice(part, rows)) };
                // The next piece is this thread's too, unless another one takes it.
                let next = (i + 1 < pieces).then(|| piece(i + 1));
                if arranged.replace(unit.group) != Some(unit.group) {
                    self.arrange(unit, room.q);
                }
                self.segment((unit, s), next, &mut room, out, stats);
            }
        });
        let partials = Partials { values, stats };
        self.pool.ranges(all, all.div_ceil(self.pool.threads()), &|range| {
            for i in range {
                self.merge(Unit { tokens, group: i / rows }, i % rows, (partials, all, i), outputs);
            }
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests;
