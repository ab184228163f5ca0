//! Rotation of queries and keys (rule 8), and rounding into the cache (rule 12 of `docs/numerics.md`).

use crate::Isa;
use crate::kv::{self, KvCache, KvElement, Store};
use crate::pool::Pool;
use bitnet_core::{KvSpan, RopeRows};
use bitnet_quant::spec::rotate_half;
use std::ops::Range;

/// Rotates the query heads of `qkv [m, cols]` in place and writes the keys and values of their positions into a layer.
pub(crate) fn rope_append(
    _isa: Isa,
    pool: &Pool,
    qkv: &mut [f32],
    rope: RopeRows<'_>,
    cache: &mut KvCache,
    layer: usize,
    spans: &[KvSpan<'_>],
) {
    let shape = cache.spec.shape;
    let (d, cols) = (shape.head_dim, shape.qkv_cols());
    let angles = |t: usize| (&rope.cos[t * d / 2..][..d / 2], &rope.sin[t * d / 2..][..d / 2]);
    pool.chunks_mut(qkv, cols, &|t, row| {
        let (cos, sin) = angles(t);
        for head in row[..(shape.heads + shape.kv_heads) * d].chunks_exact_mut(d) {
            rotate_half(head, cos, sin);
        }
    });
    let qkv = &*qkv;
    let slots: Vec<usize> =
        spans.iter().flat_map(|span| (span.start..span.end()).map(|position| span.slot(position))).collect();
    let row = |t: usize, head: usize| &qkv[t * cols + head * d..][..d];
    let heads = cache.first_head(layer)..cache.first_head(layer + 1);
    each_store(
        &mut cache.keys,
        pool,
        heads.clone(),
        cache.key_stride,
        &Writer { slots: &slots, row: &|t, h| row(t, shape.heads + h), tiled: true },
    );
    each_store(
        &mut cache.values,
        pool,
        heads,
        cache.value_stride,
        &Writer { slots: &slots, row: &|t, h| row(t, shape.heads + shape.kv_heads + h), tiled: false },
    );
}

/// Where the rows of one step go.
struct Writer<'a> {
    /// The cache's position for each row.
    slots: &'a [usize],
    row: &'a (dyn Fn(usize, usize) -> &'a [f32] + Sync),
    /// Keys lie in tiles of 16 positions, transposed; values row by row.
    tiled: bool,
}

impl Writer<'_> {
    fn write<E: KvElement>(&self, pool: &Pool, store: &mut [E::Raw], stride: usize) {
        let write = |head: usize, store: &mut [E::Raw]| {
            let rows = store.as_chunks_mut::<16>().0;
            for (t, &position) in self.slots.iter().enumerate() {
                let x = (self.row)(t, head);
                if self.tiled {
                    let count = E::key_rows(x.len());
                    E::put_key(&mut rows[position / 16 * count..][..count], position % 16, x);
                } else {
                    let count = E::value_rows(x.len());
                    E::put_value(&mut rows[position * count..][..count], x);
                }
            }
        };
        // A token's heads are written sooner than another thread would have begun.
        match self.slots.len() {
            1 => store.chunks_mut(stride).enumerate().for_each(|(head, store)| write(head, store)),
            _ => pool.chunks_mut(store, stride, &write),
        }
    }
}

fn each_store(store: &mut Store, pool: &Pool, heads: Range<usize>, stride: usize, writer: &Writer<'_>) {
    let range = heads.start * stride..heads.end * stride;
    match store {
        Store::F32(s) => writer.write::<kv::F32>(pool, &mut s[range], stride),
        Store::F16(s) => writer.write::<kv::F16>(pool, &mut s[range], stride),
        Store::BF16(s) => writer.write::<kv::BF16>(pool, &mut s[range], stride),
        Store::Q8(s) => writer.write::<kv::Q8>(pool, &mut s[range], stride),
    }
}
