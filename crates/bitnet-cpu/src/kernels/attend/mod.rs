//! Causal attention over the cache (rules 10 and 11 of `docs/numerics.md`).

use crate::Isa;
use crate::kv::{self, KvCache, KvElement, Store};
use crate::pool::Pool;
use crate::simd::{Kernel, Lanes, dispatch};
use bitnet_quant::spec::SEGMENT;

/// Key tiles whose score chains run side by side.
const TILES: usize = 4;

/// One query head over positions `0..n`.
struct Head<'a, K: KvElement, V: KvElement> {
    /// `[d]`.
    q: &'a [f32],
    /// `[tiles][d][16]`.
    keys: &'a [K::Raw],
    /// `[positions][d padded to 16]`.
    values: &'a [V::Raw],
    n: usize,
    out: &'a mut [f32],
}

impl<K: KvElement, V: KvElement> Head<'_, K, V> {
    /// Scores of the positions `from..to` of a segment; lanes beyond `to` are left at minus infinity.
    #[inline(always)]
    fn scores<L: Lanes>(&self, l: L, from: usize, to: usize, p: &mut [[f32; 16]; SEGMENT / 16]) {
        let d = self.q.len();
        let scale = l.splat(1.0 / (d as f32).sqrt());
        let tiles = (to - from).div_ceil(16);
        let mut tile = 0;
        while tile < tiles {
            let count = TILES.min(tiles - tile);
            let base: [&[[K::Raw; 16]]; TILES] = std::array::from_fn(|i| {
                let first = (from / 16 + tile + i.min(count - 1)) * d;
                &self.keys.as_chunks::<16>().0[first..first + d]
            });
            let mut s = [l.splat(0.0); TILES];
            for (i, q) in self.q.iter().enumerate() {
                let q = l.splat(*q);
                for t in 0..TILES {
                    s[t] = l.fma(q, K::lanes(l, &base[t][i]), s[t]);
                }
            }
            for t in 0..count {
                l.store(l.mul(s[t], scale), &mut p[tile + t]);
            }
            tile += count;
        }
        p.as_flattened_mut()[to - from..].fill(f32::NEG_INFINITY);
    }

    /// Maximum score, sum of weights and weighted values of one segment; `o` is `[d padded to 16]`.
    #[inline(always)]
    fn segment<L: Lanes>(&self, l: L, from: usize, o: &mut [[f32; 16]]) -> (f32, f32) {
        let to = self.n.min(from + SEGMENT);
        let mut p = [[f32::NEG_INFINITY; 16]; SEGMENT / 16];
        self.scores(l, from, to, &mut p);
        let tiles = (to - from).div_ceil(16);
        let max = p.as_flattened().iter().fold(f32::NEG_INFINITY, |m, s| if *s > m { *s } else { m });
        let mut sum = l.splat(0.0);
        for p in &mut p[..tiles] {
            let e = l.exp(l.sub(l.load(p), l.splat(max)));
            sum = l.add(sum, e);
            l.store(e, p);
        }
        let width = o.len();
        let rows = &self.values.as_chunks::<16>().0[from * width..to * width];
        // Eight chains of sixteen dimensions at a time stay in registers over all positions.
        for (c, o) in o.chunks_mut(8).enumerate() {
            let mut acc = [l.splat(0.0); 8];
            for (row, p) in rows.chunks_exact(width).zip(p.as_flattened()) {
                let p = l.splat(*p);
                for (acc, v) in acc.iter_mut().zip(&row[8 * c..width.min(8 * c + 8)]) {
                    *acc = l.fma(p, V::lanes(l, v), *acc);
                }
            }
            for (o, acc) in o.iter_mut().zip(acc) {
                l.store(acc, o);
            }
        }
        (max, l.fold(sum))
    }
}

impl<K: KvElement, V: KvElement> Kernel for Head<'_, K, V> {
    type Output = ();
    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let width = self.q.len().div_ceil(16);
        let count = self.n.div_ceil(SEGMENT);
        let mut o = vec![[0.0f32; 16]; width * count];
        let mut parts = Vec::with_capacity(count);
        // A loop and not `map`: a closure would not be compiled for the instruction set.
        for (i, o) in o.chunks_exact_mut(width).enumerate() {
            parts.push(self.segment(l, i * SEGMENT, o));
        }
        let max = parts.iter().fold(f32::NEG_INFINITY, |m, p| if p.0 > m { p.0 } else { m });
        let mut total = 0.0f32;
        let mut merged = vec![[0.0f32; 16]; width];
        for ((m, sum), o) in parts.iter().zip(o.chunks_exact(width)) {
            let e = bitnet_quant::spec::exp(m - max);
            total = sum.mul_add(e, total);
            for (merged, o) in merged.iter_mut().zip(o) {
                l.store(l.fma(l.load(o), l.splat(e), l.load(merged)), merged);
            }
        }
        for (out, o) in self.out.iter_mut().zip(merged.as_flattened()) {
            *out = o / total;
        }
    }
}

/// `out [m, heads * d]`: the queries of `qkv [m, cols]` at positions `start..` over all earlier positions and themselves.
pub(crate) fn attend(
    isa: Isa,
    pool: &Pool,
    qkv: &[f32],
    cache: &KvCache,
    layer: usize,
    start: usize,
    out: &mut [f32],
) {
    match &cache.keys {
        Store::F32(k) => with_values::<kv::F32>(isa, pool, qkv, cache, k, layer, start, out),
        Store::F16(k) => with_values::<kv::F16>(isa, pool, qkv, cache, k, layer, start, out),
        Store::BF16(k) => with_values::<kv::BF16>(isa, pool, qkv, cache, k, layer, start, out),
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
    out: &mut [f32],
) {
    match &cache.values {
        Store::F32(v) => heads::<K, kv::F32>(isa, pool, qkv, cache, keys, v, layer, start, out),
        Store::F16(v) => heads::<K, kv::F16>(isa, pool, qkv, cache, keys, v, layer, start, out),
        Store::BF16(v) => heads::<K, kv::BF16>(isa, pool, qkv, cache, keys, v, layer, start, out),
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
    out: &mut [f32],
) {
    let first = cache.first_head(layer);
    let shape = cache.spec.shape;
    let (d, cols) = (shape.head_dim, shape.qkv_cols());
    pool.chunks_mut(out, d, &|i, out| {
        let (t, head) = (i / shape.heads, i % shape.heads);
        let group = first + head / (shape.heads / shape.kv_heads);
        dispatch(
            isa,
            Head::<K, V> {
                q: &qkv[t * cols + head * d..][..d],
                keys: &keys[group * cache.key_stride..][..cache.key_stride],
                values: &values[group * cache.value_stride..][..cache.value_stride],
                n: start + t + 1,
                out,
            },
        );
    });
}

#[cfg(test)]
mod tests;
