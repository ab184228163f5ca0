//! Causal attention over the cache (rules 10 and 11 of `docs/numerics.md`).
//!
//! The query heads that share a key head go through its segments together, and in prefill so do a few neighbouring tokens: keys
//! and values are read and widened once for four queries. One token over many positions has its segments shared out among the
//! threads; either way every segment of every query is summed alone and merged in order.

use crate::Isa;
use crate::kv::{self, KvCache, KvElement, Store};
use crate::pool::{Pool, Shares};
use crate::simd::{Kernel, Lanes, dispatch};
use bitnet_quant::spec::SEGMENT;
use std::cell::RefCell;

/// Queries that a segment is read for at a time.
const ROWS: usize = 4;
/// Tokens whose queries go through the cache together.
const BLOCK: usize = 4;

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

/// A query head of a token: `q [d]`, and how many positions it sees.
#[derive(Clone, Copy, Default)]
struct Query<'a> {
    q: &'a [f32],
    sees: usize,
}

/// Up to [`ROWS`] queries that share keys and values, over one segment.
struct Segment<'a, K: KvElement, V: KvElement> {
    queries: &'a [Query<'a>],
    /// `[tiles][d][16]`.
    keys: &'a [K::Raw],
    /// `[positions][d padded to 16]`.
    values: &'a [V::Raw],
    /// The segment's first position.
    from: usize,
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
    /// The end of what query `r` sees in this segment.
    #[inline(always)]
    fn to(&self, r: usize) -> usize {
        self.queries[r].sees.clamp(self.from, self.from + SEGMENT)
    }

    /// Scores of tiles `tile..tile + T` of the segment.
    #[inline(always)]
    fn scores<L: Lanes, const R: usize, const T: usize>(&self, l: L, tile: usize, p: &mut [Weights; R]) {
        let d = self.queries[0].q.len();
        let q: [&[f32]; R] = std::array::from_fn(|r| &self.queries[r].q[..d]);
        let keys = &self.keys.as_chunks::<16>().0[(self.from / 16 + tile) * d..];
        let keys: [&[[K::Raw; 16]]; T] = std::array::from_fn(|t| &keys[t * d..][..d]);
        let mut s = [[l.splat(0.0); T]; R];
        // The values of the segment arrive in the second-level cache meanwhile.
        let lines = SEGMENT * d.div_ceil(16) * size_of::<[V::Raw; 16]>() / 64;
        let values = &self.values[self.from * d.next_multiple_of(16)..];
        let share = (lines * T).div_ceil(d * SEGMENT / 16);
        for i in 0..d {
            if self.stream {
                for line in 0..share {
                    let line = (tile * d + i * T) * share / T + line;
                    l.prefetch(values.as_ptr().cast::<u8>().wrapping_add(64 * line));
                }
            }
            let mut key = [l.splat(0.0); T];
            for t in 0..T {
                key[t] = K::lanes(l, &keys[t][i]);
            }
            for r in 0..R {
                let q = l.splat(q[r][i]);
                for t in 0..T {
                    s[r][t] = l.fma(q, key[t], s[r][t]);
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
    fn weights<L: Lanes>(l: L, count: usize, p: &mut Weights) -> (f32, f32) {
        p.as_flattened_mut()[count..].fill(f32::NEG_INFINITY);
        let max =
            p.as_flattened()[..count].iter().fold(f32::NEG_INFINITY, |m, s| if *s > m { *s } else { m });
        let mut sum = l.splat(0.0);
        for p in &mut p[..count.div_ceil(16)] {
            let e = l.exp(l.sub(l.load(p), l.splat(max)));
            sum = l.add(sum, e);
            l.store(e, p);
        }
        (max, l.fold(sum))
    }

    /// Weighted values of dimensions `16c..16(c + C)`.
    #[inline(always)]
    fn sums<L: Lanes, const R: usize, const C: usize>(&mut self, l: L, c: usize, p: &[Weights; R]) {
        let width = self.queries[0].q.len().div_ceil(16);
        let to: [usize; R] = std::array::from_fn(|r| self.to(r) - self.from);
        let rows = &self.values.as_chunks::<16>().0[self.from * width..];
        let all = to.iter().fold(SEGMENT, |n, to| n.min(*to));
        let mut sum = [[l.splat(0.0); C]; R];
        for i in 0..all {
            let row: &[[V::Raw; 16]; C] =
                rows[i * width + c..].first_chunk().expect("a row has the dimensions");
            let mut value = [l.splat(0.0); C];
            for j in 0..C {
                value[j] = V::lanes(l, &row[j]);
            }
            for r in 0..R {
                let p = l.splat(p[r].as_flattened()[i]);
                for j in 0..C {
                    sum[r][j] = l.fma(p, value[j], sum[r][j]);
                }
            }
        }
        // Positions that only some of the queries see.
        for r in 0..R {
            for i in all..to[r] {
                let row: &[[V::Raw; 16]; C] =
                    rows[i * width + c..].first_chunk().expect("a row has the dimensions");
                let p = l.splat(p[r].as_flattened()[i]);
                for j in 0..C {
                    sum[r][j] = l.fma(p, V::lanes(l, &row[j]), sum[r][j]);
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
        let end = (0..R).fold(self.from, |to, r| to.max(self.to(r)));
        let (tiles, mut tile) = ((end - self.from).div_ceil(16), 0);
        if L::REGISTERS >= 32 {
            while tile + 4 <= tiles {
                self.scores::<L, R, 4>(l, tile, &mut p);
                tile += 4;
            }
        }
        for tile in tile..tiles {
            self.scores::<L, R, 1>(l, tile, &mut p);
        }
        for (r, p) in p.iter_mut().enumerate() {
            self.stats[r] = Self::weights(l, self.to(r) - self.from, p);
        }
        let (width, mut c) = (self.queries[0].q.len().div_ceil(16), 0);
        if L::REGISTERS >= 32 {
            while c + 4 <= width {
                self.sums::<L, R, 4>(l, c, &p);
                c += 4;
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
        match self.queries.len() {
            1 => self.rows::<L, 1>(l),
            2 => self.rows::<L, 2>(l),
            3 => self.rows::<L, 3>(l),
            _ => self.rows::<L, ROWS>(l),
        }
    }
}

/// The segments of one row become its output (rule 11).
struct Merge<'a> {
    partials: &'a Partials,
    /// Rows of the partials, and which of them this is.
    rows: usize,
    row: usize,
    segments: usize,
    out: &'a mut [f32],
}

impl Kernel for Merge<'_> {
    type Output = ();
    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let width = self.out.len().div_ceil(16);
        let part = |segment: usize| segment * self.rows + self.row;
        let mut max = f32::NEG_INFINITY;
        for segment in 0..self.segments {
            let m = self.partials.stats[part(segment)].0;
            max = if m > max { m } else { max };
        }
        let mut total = 0.0f32;
        for segment in 0..self.segments {
            let (m, sum) = self.partials.stats[part(segment)];
            total = sum.mul_add(bitnet_quant::spec::exp(m - max), total);
        }
        for c in 0..width {
            let mut merged = l.splat(0.0);
            for segment in 0..self.segments {
                let e = bitnet_quant::spec::exp(self.partials.stats[part(segment)].0 - max);
                merged = l.fma(l.load(&self.partials.values[part(segment) * width + c]), l.splat(e), merged);
            }
            let mut lanes = [0.0; 16];
            l.store(l.div(merged, l.splat(total)), &mut lanes);
            let out = &mut self.out[16 * c..];
            let len = out.len().min(16);
            out[..len].copy_from_slice(&lanes[..len]);
        }
    }
}

/// `out [m, heads * d]`: the queries of `qkv [m, cols]` at positions `start..` over all earlier positions and themselves.
#[allow(clippy::too_many_arguments, reason = "one step: where, what and how")]
pub(crate) fn attend(
    isa: Isa,
    pool: &Pool,
    qkv: &[f32],
    cache: &KvCache,
    layer: usize,
    start: usize,
    partials: &mut Partials,
    out: &mut [f32],
) {
    match &cache.keys {
        Store::F32(k) => with_values::<kv::F32>(isa, pool, qkv, cache, k, layer, start, partials, out),
        Store::F16(k) => with_values::<kv::F16>(isa, pool, qkv, cache, k, layer, start, partials, out),
        Store::BF16(k) => with_values::<kv::BF16>(isa, pool, qkv, cache, k, layer, start, partials, out),
    }
}

#[allow(clippy::too_many_arguments, reason = "one step of resolving the two cache types")]
fn with_values<K: KvElement>(
    isa: Isa,
    pool: &Pool,
    qkv: &[f32],
    cache: &KvCache,
    keys: &[K::Raw],
    layer: usize,
    start: usize,
    partials: &mut Partials,
    out: &mut [f32],
) {
    match &cache.values {
        Store::F32(v) => heads::<K, kv::F32>(isa, pool, qkv, cache, keys, v, layer, start, partials, out),
        Store::F16(v) => heads::<K, kv::F16>(isa, pool, qkv, cache, keys, v, layer, start, partials, out),
        Store::BF16(v) => heads::<K, kv::BF16>(isa, pool, qkv, cache, keys, v, layer, start, partials, out),
    }
}

#[allow(clippy::too_many_arguments, reason = "one step of resolving the two cache types")]
fn heads<K: KvElement, V: KvElement>(
    isa: Isa,
    pool: &Pool,
    qkv: &[f32],
    cache: &KvCache,
    keys: &[K::Raw],
    values: &[V::Raw],
    layer: usize,
    start: usize,
    partials: &mut Partials,
    out: &mut [f32],
) {
    let shape = cache.spec.shape;
    let (d, cols, width) = (shape.head_dim, shape.qkv_cols(), shape.head_dim.div_ceil(16));
    let (m, ratio) = (qkv.len() / cols, shape.heads / shape.kv_heads);
    let first = cache.first_head(layer);
    // Row `i` of a block that begins with token `t` is head `i % ratio` of those that share `group`.
    let query = |t: usize, group: usize, i: usize| {
        let (t, head) = (t + i / ratio, group * ratio + i % ratio);
        (t, head, Query { q: &qkv[t * cols + head * d..][..d], sees: start + t + 1 })
    };
    let segment = |t: usize,
                   group: usize,
                   row: usize,
                   count: usize,
                   from: usize,
                   out: &mut [[f32; 16]],
                   stats: &mut [(f32, f32)]| {
        let mut queries = [Query::default(); ROWS];
        for (i, q) in queries[..count].iter_mut().enumerate() {
            *q = query(t, group, row + i).2;
        }
        let keys = &keys[(first + group) * cache.key_stride..][..cache.key_stride];
        let values = &values[(first + group) * cache.value_stride..][..cache.value_stride];
        dispatch(
            isa,
            Segment::<K, V> { queries: &queries[..count], keys, values, from, stream: m == 1, out, stats },
        );
    };
    let blocks = m.div_ceil(BLOCK);
    let outputs = Shares::new(out);
    let merge = |partials: &Partials, t: usize, group: usize, rows: usize, row: usize, index: usize| {
        let (t, head, query) = query(t, group, row);
        // SAFETY: every (token, head) is merged once.
        let out = unsafe { outputs.slice((t * shape.heads + head) * d, d) };
        dispatch(isa, Merge { partials, rows, row: index, segments: query.sees.div_ceil(SEGMENT), out });
    };
    if blocks * shape.kv_heads >= 2 * pool.threads() || start + m <= SEGMENT {
        pool.ranges(blocks * shape.kv_heads, 1, &|range| {
            for unit in range {
                let (t, group) = (unit / shape.kv_heads * BLOCK, unit % shape.kv_heads);
                let rows = BLOCK.min(m - t) * ratio;
                let segments = (start + m.min(t + BLOCK)).div_ceil(SEGMENT);
                LOCAL.with_borrow_mut(|partials| {
                    partials.resize(segments * rows, width);
                    for s in 0..segments {
                        for row in (0..rows).step_by(ROWS) {
                            let (count, part) = (ROWS.min(rows - row), s * rows + row);
                            let Partials { values, stats } = &mut *partials;
                            let (out, stats) =
                                (&mut values[part * width..][..count * width], &mut stats[part..][..count]);
                            segment(t, group, row, count, s * SEGMENT, out, stats);
                        }
                    }
                    (0..rows).for_each(|row| merge(partials, t, group, rows, row, row));
                });
            }
        });
        return;
    }
    // Few queries over many positions: the segments are shared out.
    let rows = m * ratio;
    let all = rows * shape.kv_heads;
    let segments = (start + m).div_ceil(SEGMENT);
    partials.resize(segments * all, width);
    let (values, stats) = (Shares::new(&mut partials.values), Shares::new(&mut partials.stats));
    pool.ranges(segments * shape.kv_heads, 1, &|range| {
        for unit in range {
            let (s, group) = (unit / shape.kv_heads, unit % shape.kv_heads);
            for row in (0..rows).step_by(ROWS) {
                let (count, part) = (ROWS.min(rows - row), s * all + group * rows + row);
                // SAFETY: every segment of every row is computed once.
                let (out, stats) =
                    unsafe { (values.slice(part * width, count * width), stats.slice(part, count)) };
                segment(0, group, row, count, s * SEGMENT, out, stats);
            }
        }
    });
    let partials = &*partials;
    pool.ranges(all, all.div_ceil(pool.threads()), &|range| {
        range.for_each(|i| merge(partials, 0, i / rows, all, i % rows, i));
    });
}

#[cfg(test)]
mod tests;
