//! Queries over one segment of positions: scores, weights, weighted values.

use super::ahead::Ahead;
use crate::kv::KvElement;
use crate::simd::{Kernel, Lanes};
use bitnet_core::KV_BLOCK;
use bitnet_quant::spec::{Q8_BLOCK, SEGMENT};
use std::ops::Range;

/// Queries that go through a segment together: eight fill 24 of 32 registers, and half of them where there are sixteen.
pub(super) const ROWS: usize = 8;
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
    pub(super) out: &'a mut Vec<f32>,
}

impl Kernel for Arrange<'_> {
    type Output = ();
    #[inline(always)]
    fn run<L: Lanes>(self, _: L) {
        self.out.clear();
        let mut first = 0;
        while first < self.queries {
            let count = together::<L>(self.queries - first);
            let mut group: [&[f32]; ROWS] = [&[]; ROWS];
            for (r, q) in group[..count].iter_mut().enumerate() {
                *q = (self.query)(first + r);
            }
            (0..group[0].len()).for_each(|i| self.out.extend(group[..count].iter().map(|q| q[i])));
            first += count;
        }
    }
}

/// Queries over one segment, whatever keys and values are.
pub(super) struct Over<'a> {
    /// Elements of a head.
    pub(super) d: usize,
    /// `[queries]`: which of the segment's positions each of them sees; may be none.
    pub(super) sees: &'a [Range<usize>],
    /// Made by [`Arrange`].
    pub(super) q: &'a [f32],
    /// The blocks that hold the segment's positions.
    pub(super) blocks: &'a [u32],
    /// What is asked for from memory while scores are computed, and while values are summed.
    pub(super) ahead: [Ahead; 2],
    /// `[queries][d padded to 16]`.
    pub(super) out: &'a mut [[f32; 16]],
    /// `[queries]`.
    pub(super) stats: &'a mut [(f32, f32)],
}

/// Queries that share keys and values.
pub(super) struct Segment<'a, K: KvElement, V: KvElement> {
    /// `[tiles][rows of a tile][16]`.
    pub(super) keys: &'a [K::Raw],
    /// `[positions][rows of a value][16]`.
    pub(super) values: &'a [V::Raw],
    pub(super) over: Over<'a>,
}

impl<K: KvElement, V: KvElement> Kernel for Segment<'_, K, V> {
    type Output = ();
    #[inline(always)]
    fn run<L: Lanes>(mut self, l: L) {
        let mut first = 0;
        while first < self.over.sees.len() {
            let count = together::<L>(self.over.sees.len() - first);
            match count {
                1 => self.rows::<L, 1>(l, first),
                2 => self.rows::<L, 2>(l, first),
                3 => self.rows::<L, 3>(l, first),
                4 => self.rows::<L, 4>(l, first),
                _ => self.rows::<L, ROWS>(l, first),
            }
            first += count;
        }
    }
}

/// Scores, later weights, of one query in a segment.
type Weights = [[f32; 16]; SEGMENT / 16];

impl<K: KvElement, V: KvElement> Segment<'_, K, V> {
    /// Queries `first..first + R`.
    #[inline(always)]
    fn rows<L: Lanes, const R: usize>(&mut self, l: L, first: usize) {
        let mut p = [[[0.0f32; 16]; SEGMENT / 16]; R];
        let sees = &self.over.sees[first..first + R];
        let q = &self.over.q[first * self.over.d..].as_chunks::<R>().0[..self.over.d];
        let (from, to) =
            sees.iter().fold((SEGMENT, 0), |(from, to), sees| (from.min(sees.start), to.max(sees.end)));
        // Tiles come in blocks of four, which lie together.
        let (tiles, mut tile) = (to.div_ceil(16), from / KV_BLOCK * TILES);
        if L::REGISTERS >= 32 {
            while R <= 4 && tile + 4 <= tiles {
                self.scores::<L, R, 4>(l, q, tile, &mut p);
                tile += 4;
            }
            while tile + 2 <= tiles {
                self.scores::<L, R, 2>(l, q, tile, &mut p);
                tile += 2;
            }
        }
        for tile in tile..tiles {
            self.scores::<L, R, 1>(l, q, tile, &mut p);
        }
        for (r, p) in p.iter_mut().enumerate() {
            self.over.stats[first + r] = weights(l, self.over.sees[first + r].clone(), p);
        }
        let (width, mut c) = (self.over.d.div_ceil(16), 0);
        if L::REGISTERS >= 32 {
            while R <= 4 && c + 4 <= width {
                self.sums::<L, R, 4>(l, (first, c), &p);
                c += 4;
            }
            while c + 2 <= width {
                self.sums::<L, R, 2>(l, (first, c), &p);
                c += 2;
            }
        }
        for c in c..width {
            self.sums::<L, R, 1>(l, (first, c), &p);
        }
    }

    /// Scores of tiles `tile..tile + T` of the segment.
    #[inline(always)]
    fn scores<L: Lanes, const R: usize, const T: usize>(
        &mut self,
        l: L,
        q: &[[f32; R]],
        tile: usize,
        p: &mut [Weights; R],
    ) {
        let (d, rows) = (self.over.d, K::key_rows(self.over.d));
        // Four tiles make a block, so the tiles of one call are neighbours.
        let at = self.over.blocks[tile / TILES] as usize * TILES + tile % TILES;
        let keys = &self.keys.as_chunks::<16>().0[at * rows..];
        let keys: [&[[K::Raw; 16]]; T] = std::array::from_fn(|t| &keys[t * rows..][..rows]);
        let mut s = [[l.splat(0.0); T]; R];
        for from in (0..d).step_by(Q8_BLOCK) {
            let mut scale = [K::key_scale(l, keys[0], d, from / Q8_BLOCK); T];
            for t in 1..T {
                scale[t] = K::key_scale(l, keys[t], d, from / Q8_BLOCK);
            }
            for i in from..d.min(from + Q8_BLOCK) {
                self.over.ahead[0].ask(l);
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
        let scale = l.splat(1.0 / (d as f32).sqrt());
        for r in 0..R {
            for t in 0..T {
                l.store(l.mul(s[r][t], scale), &mut p[r][tile + t]);
            }
        }
    }

    /// Weighted values of dimensions `16c..16(c + C)`.
    #[inline(always)]
    fn sums<L: Lanes, const R: usize, const C: usize>(
        &mut self,
        l: L,
        (first, c): (usize, usize),
        p: &[Weights; R],
    ) {
        let (d, width, stride) = (self.over.d, self.over.d.div_ceil(16), V::value_rows(self.over.d));
        let from = self.over.sees[first..first + R].iter().fold(SEGMENT, |from, sees| from.min(sees.start));
        let to: [usize; R] = std::array::from_fn(|r| self.over.sees[first + r].end);
        let rows = self.values.as_chunks::<16>().0;
        let blocks = self.over.blocks;
        let slot = |i: usize| blocks[i / KV_BLOCK] as usize * KV_BLOCK + i % KV_BLOCK;
        let all = to.iter().fold(SEGMENT, |n, to| n.min(*to));
        let mut sum = [[l.splat(0.0); C]; R];
        for block in (from / KV_BLOCK * KV_BLOCK..all).step_by(KV_BLOCK) {
            let rows = &rows[slot(block) * stride..];
            for i in block.max(from)..all.min(block + KV_BLOCK) {
                self.over.ahead[1].ask(l);
                let value: [L::F; C] = V::values(l, &rows[(i - block) * stride..][..stride], d, c);
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
            for (sum, out) in sum[r].iter().zip(&mut self.over.out[(first + r) * width + c..]) {
                l.store(*sum, out);
            }
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
