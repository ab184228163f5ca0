//! Queries over one segment of positions: scores, weights, weighted values.

use super::ahead::Ahead;
use crate::kv::KvElement;
use crate::simd::{Kernel, Lanes};
use bitnet_core::KV_BLOCK;
use bitnet_quant::spec::{Q8_BLOCK, SEGMENT};
use bytemuck::{Pod, Zeroable};
use std::ops::Range;

/// Queries that go through a segment together: eight fill 24 of 32 registers, and half of them where there are sixteen.
pub(super) const ROWS: usize = 8;
const TILES_INSIDE: &str = "a segment has the tiles";
const COLUMNS_INSIDE: &str = "an output has the columns";
/// Tiles of 16 positions in a block of the cache.
const TILES: usize = KV_BLOCK / 16;

/// How many of the queries that are left go through a segment together.
#[inline(always)]
fn together<L: Lanes>(left: usize) -> usize {
    if L::REGISTERS >= 32 && left >= ROWS { ROWS } else { left.min(ROWS / 2) }
}

/// Arranges queries for [`Segment`]: those that go together lie element by element, `[d][queries]`.
pub(super) struct Arrange<'a> {
    pub(super) queries: usize,
    /// A query, `[d]`.
    pub(super) query: &'a dyn Fn(usize) -> &'a [f32],
    pub(super) out: &'a mut [f32],
}

impl Kernel for Arrange<'_> {
    type Output = ();
    #[inline(always)]
    fn run<L: Lanes>(self, _: L) {
        let (mut first, mut out) = (0, self.out);
        while first < self.queries {
            let count = together::<L>(self.queries - first);
            let mut group: [&[f32]; ROWS] = [&[]; ROWS];
            for (r, q) in group[..count].iter_mut().enumerate() {
                *q = (self.query)(first + r);
            }
            let (own, rest) = out.split_at_mut(count * group[0].len());
            for (i, out) in own.chunks_exact_mut(count).enumerate() {
                out.iter_mut().zip(&group).for_each(|(out, q)| *out = q[i]);
            }
            out = rest;
            first += count;
        }
    }
}

/// Positions of a segment, from one to before another.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct Sees {
    pub(super) start: usize,
    pub(super) end: usize,
}

/// Queries over one segment, whatever keys and values are.
pub(super) struct Over<'a> {
    /// Elements of a head.
    pub(super) d: usize,
    /// `[queries]`: which of the segment's positions each of them sees; may be none.
    pub(super) sees: &'a [Sees],
    /// Made by [`Arrange`].
    pub(super) q: &'a [f32],
    /// The blocks that hold the segment's positions.
    pub(super) blocks: &'a [u32],
    /// Elements of the keys and of the values from a block to the next one.
    pub(super) strides: (usize, usize),
    /// What is asked for from memory while scores are computed, and while values are summed.
    pub(super) ahead: [Ahead; 2],
    /// `[queries]`: room for scores and weights.
    pub(super) p: &'a mut [Weights],
    /// `[queries][d padded to 16]`.
    pub(super) out: &'a mut [[f32; 16]],
    /// `[queries]`.
    pub(super) stats: &'a mut [[f32; 2]],
}

/// Queries that share keys and values.
pub(super) struct Segment<'a, K: KvElement, V: KvElement> {
    /// `[blocks]`, each as far as its stride from the last one: `[tiles][rows of a tile][16]`.
    pub(super) keys: &'a [K::Raw],
    /// The same: `[positions][rows of a value][16]`.
    pub(super) values: &'a [V::Raw],
    pub(super) over: Over<'a>,
}

impl<K: KvElement, V: KvElement> Kernel for Segment<'_, K, V> {
    type Output = ();
    /// Block by block, all queries over each, so that a block is in the first-level cache for all but the first of them.
    #[inline(always)]
    fn run<L: Lanes>(mut self, l: L) {
        for block in 0..self.over.blocks.len() {
            self.each_group(l, &Scores { block });
        }
        let rows = self.over.sees.iter().zip(&mut *self.over.p).zip(&mut *self.over.stats);
        for ((sees, p), stats) in rows {
            *stats = weights(l, *sees, p);
        }
        self.over.out.fill([0.0; 16]);
        for block in 0..self.over.blocks.len() {
            self.each_group(l, &Sums { block });
        }
    }
}

/// Scores, later weights, of one query in a segment.
pub(super) type Weights = [[f32; 16]; SEGMENT / 16];

/// Something that is done with `R` queries from `first` on.
trait Step {
    fn step<L: Lanes, K: KvElement, V: KvElement, const R: usize>(
        &self,
        l: L,
        segment: &mut Segment<'_, K, V>,
        first: usize,
    );
}

/// The scores of a block.
struct Scores {
    block: usize,
}

/// The weighted values of a block are added.
struct Sums {
    block: usize,
}

impl Step for Scores {
    #[inline(always)]
    fn step<L: Lanes, K: KvElement, V: KvElement, const R: usize>(
        &self,
        l: L,
        segment: &mut Segment<'_, K, V>,
        first: usize,
    ) {
        let sees = segment.sees_of::<R>(first);
        let (mut tile, last) = (self.block * TILES, (self.block + 1) * TILES);
        let tiles = last.min(sees.end.div_ceil(16));
        if sees.start >= last * 16 {
            return;
        }
        if L::REGISTERS >= 32 {
            while R <= 4 && tile + 4 <= tiles {
                segment.scores::<L, R, 4>(l, first, tile);
                tile += 4;
            }
            while tile + 2 <= tiles {
                segment.scores::<L, R, 2>(l, first, tile);
                tile += 2;
            }
        }
        for tile in tile..tiles {
            segment.scores::<L, R, 1>(l, first, tile);
        }
    }
}

impl Step for Sums {
    #[inline(always)]
    fn step<L: Lanes, K: KvElement, V: KvElement, const R: usize>(
        &self,
        l: L,
        segment: &mut Segment<'_, K, V>,
        first: usize,
    ) {
        let sees = segment.sees_of::<R>(first);
        let positions = self.block * KV_BLOCK..(self.block + 1) * KV_BLOCK;
        if sees.start >= positions.end || sees.end <= positions.start {
            return;
        }
        let (width, mut c) = (segment.over.d.div_ceil(16), 0);
        if L::REGISTERS >= 32 {
            while R <= 4 && c + 4 <= width {
                segment.sums::<L, R, 4>(l, (first, c), &positions);
                c += 4;
            }
            while c + 2 <= width {
                segment.sums::<L, R, 2>(l, (first, c), &positions);
                c += 2;
            }
        }
        for c in c..width {
            segment.sums::<L, R, 1>(l, (first, c), &positions);
        }
    }
}

impl<K: KvElement, V: KvElement> Segment<'_, K, V> {
    #[inline(always)]
    fn each_group<L: Lanes>(&mut self, l: L, step: &impl Step) {
        let mut first = 0;
        while first < self.over.sees.len() {
            let count = together::<L>(self.over.sees.len() - first);
            match count {
                1 => step.step::<L, K, V, 1>(l, self, first),
                2 => step.step::<L, K, V, 2>(l, self, first),
                3 => step.step::<L, K, V, 3>(l, self, first),
                4 => step.step::<L, K, V, 4>(l, self, first),
                _ => step.step::<L, K, V, ROWS>(l, self, first),
            }
            first += count;
        }
    }

    /// From the first position that any of `R` queries sees to the last one.
    #[inline(always)]
    fn sees_of<const R: usize>(&self, first: usize) -> Range<usize> {
        let all = self.over.sees[first..first + R].iter();
        let (start, end) =
            all.fold((SEGMENT, 0), |(start, end), sees| (start.min(sees.start), end.max(sees.end)));
        start..end
    }

    /// Scores of tiles `tile..tile + T` of the segment.
    #[inline(always)]
    fn scores<L: Lanes, const R: usize, const T: usize>(&mut self, l: L, first: usize, tile: usize) {
        let (d, rows) = (self.over.d, K::key_rows(self.over.d));
        let q = &self.over.q[first * d..].as_chunks::<R>().0[..d];
        // Four tiles make a block, so the tiles of one call are neighbours.
        let block = self.over.blocks[tile / TILES] as usize * self.over.strides.0;
        let keys = &self.keys[block..].as_chunks::<16>().0[tile % TILES * rows..];
        let keys: [&[[K::Raw; 16]]; T] = std::array::from_fn(|t| &keys[t * rows..][..rows]);
        let (ahead, mut at) = (&self.over.ahead[0], self.over.ahead[0].at);
        let mut s = [[l.splat(0.0); T]; R];
        for from in (0..d).step_by(Q8_BLOCK) {
            let mut scale = [K::key_scale(l, keys[0], d, from / Q8_BLOCK); T];
            for t in 1..T {
                scale[t] = K::key_scale(l, keys[t], d, from / Q8_BLOCK);
            }
            for i in from..d.min(from + Q8_BLOCK) {
                ahead.ask(l, &mut at);
                let mut key = [l.splat(0.0); T];
                for t in 0..T {
                    key[t] = K::key(l, &keys[t][i], scale[t]);
                }
                for r in 0..R {
                    let q = l.splat(q[i][r]);
                    for t in 0..T {
                        s[r][t] = l.fma(q, key[t], s[r][t]);
                    }
                }
            }
        }
        self.over.ahead[0].at = at;
        let scale = l.splat(1.0 / (d as f32).sqrt());
        for (r, s) in s.iter().enumerate() {
            let p: &mut [[f32; 16]; T] =
                self.over.p[first + r][tile..].first_chunk_mut().expect(TILES_INSIDE);
            for (s, p) in s.iter().zip(p) {
                l.store(l.mul(*s, scale), p);
            }
        }
    }

    /// Adds weighted values of dimensions `16c..16(c + C)` of a block's positions.
    #[inline(always)]
    fn sums<L: Lanes, const R: usize, const C: usize>(
        &mut self,
        l: L,
        (first, c): (usize, usize),
        positions: &Range<usize>,
    ) {
        let (d, width, stride) = (self.over.d, self.over.d.div_ceil(16), V::value_rows(self.over.d));
        let inside = |i: usize| i.clamp(positions.start, positions.end);
        let from = inside(self.sees_of::<R>(first).start);
        let to: [usize; R] = std::array::from_fn(|r| inside(self.over.sees[first + r].end));
        let all = to.iter().fold(positions.end, |n, to| n.min(*to)).max(from);
        let p: &[Weights; R] = self.over.p[first..].first_chunk().expect("weights of all queries");
        let block = self.over.blocks[positions.start / KV_BLOCK] as usize * self.over.strides.1;
        let rows = self.values[block..].as_chunks::<16>().0;
        let row = |i: usize| &rows[(i - positions.start) * stride..][..stride];
        let (ahead, mut at) = (&self.over.ahead[1], self.over.ahead[1].at);
        let out = &mut self.over.out[first * width + c..];
        // Indices are constants, and nobody else needs the sums: so they stay in registers.
        let mut sum = [[l.splat(0.0); C]; R];
        for r in 0..R {
            let out: &[[f32; 16]; C] = out[r * width..].first_chunk().expect(COLUMNS_INSIDE);
            for j in 0..C {
                sum[r][j] = l.load(&out[j]);
            }
        }
        for i in from..all {
            ahead.ask(l, &mut at);
            let value: [L::F; C] = V::values(l, row(i), d, c);
            for r in 0..R {
                let p = l.splat(p[r].as_flattened()[i]);
                for j in 0..C {
                    sum[r][j] = l.fma(p, value[j], sum[r][j]);
                }
            }
        }
        for r in 0..R {
            let out: &mut [[f32; 16]; C] = out[r * width..].first_chunk_mut().expect(COLUMNS_INSIDE);
            for j in 0..C {
                l.store(sum[r][j], &mut out[j]);
            }
        }
        // Positions that only some of the queries see.
        for r in 0..R {
            let out: &mut [[f32; 16]; C] = out[r * width..].first_chunk_mut().expect(COLUMNS_INSIDE);
            for i in all..to[r] {
                let value: [L::F; C] = V::values(l, row(i), d, c);
                let p = l.splat(p[r].as_flattened()[i]);
                for j in 0..C {
                    l.store(l.fma(p, value[j], l.load(&out[j])), &mut out[j]);
                }
            }
        }
        self.over.ahead[1].at = at;
    }
}

/// Turns the scores of what a query sees into weights; returns the maximum and the sum.
#[inline(always)]
fn weights<L: Lanes>(l: L, sees: Sees, p: &mut Weights) -> [f32; 2] {
    if sees.start >= sees.end {
        *p = [[0.0; 16]; SEGMENT / 16];
        return [f32::NEG_INFINITY, 0.0];
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
    [max, l.fold(sum)]
}
