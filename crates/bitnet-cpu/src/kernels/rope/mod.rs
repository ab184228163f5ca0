//! Rotation of queries and keys (rule 8), and rounding into the cache (rule 12 of `docs/numerics.md`).

use crate::kv::{self, KvCache, KvElement, Store};
use crate::memory::{OutOfMemory, Scratch};
use crate::pool::{Pool, Shares};
use bitnet_core::{KV_BLOCK, KvSpan, RopeRows};
use bitnet_quant::spec::rotate_half;

/// Rotates the query heads of `qkv [m, cols]` in place and writes the keys and values of their positions into a layer.
pub(crate) fn rope_append(
    pool: &Pool,
    qkv: &mut [f32],
    rope: RopeRows<'_>,
    cache: &mut KvCache,
    layer: usize,
    spans: &[KvSpan<'_>],
    scratch: &Scratch<'_>,
) -> Result<(), OutOfMemory> {
    let slots = scratch.buffer::<usize>(spans.iter().map(|span| span.len).sum())?;
    let of_all = spans.iter().flat_map(|span| (span.start..span.end()).map(|position| span.slot(position)));
    slots.iter_mut().zip(of_all).for_each(|(slot, of_token)| *slot = of_token);
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
    let row = |t: usize, head: usize| &qkv[t * cols + head * d..][..d];
    let (first, heads, all) = (cache.first_head(layer), shape.kv_heads, cache.heads());
    let key = |t, head| row(t, shape.heads + head);
    let keys = Writer { slots, row: &key, tiled: true, first, heads, all, len: cache.key };
    let value = |t, head| row(t, shape.heads + shape.kv_heads + head);
    let values = Writer { row: &value, tiled: false, len: cache.value, ..keys };
    keys.write_to(&mut cache.keys, pool);
    values.write_to(&mut cache.values, pool);
    Ok(())
}

/// Where the rows of one step go.
#[derive(Clone, Copy)]
struct Writer<'a> {
    /// The cache's position for each row.
    slots: &'a [usize],
    /// Token and head.
    row: &'a (dyn Fn(usize, usize) -> &'a [f32] + Sync),
    /// Keys lie in tiles of 16 positions, transposed; values row by row.
    tiled: bool,
    /// The layer's first head, its heads, and those of all layers.
    first: usize,
    heads: usize,
    all: usize,
    /// Elements of a head in a block.
    len: usize,
}

impl Writer<'_> {
    fn write<E: KvElement>(&self, pool: &Pool, store: &mut [E::Raw]) {
        let store = Shares::new(store);
        let write = |head: usize| {
            for (t, slot) in self.slots.iter().enumerate() {
                let (x, position) = ((self.row)(t, head), slot % KV_BLOCK);
                let at = slot / KV_BLOCK * self.all + self.first + head;
                // SAFETY: one thread writes all of a head, one position after the other.
                let rows = unsafe { store.slice(at * self.len, self.len) }.as_chunks_mut::<16>().0;
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
            1 => (0..self.heads).for_each(write),
            _ => pool.ranges(self.heads, 1, &|heads| heads.for_each(&write)),
        }
    }

    fn write_to(&self, store: &mut Store, pool: &Pool) {
        match store {
            Store::F32(s) => self.write::<kv::F32>(pool, s),
            Store::F16(s) => self.write::<kv::F16>(pool, s),
            Store::BF16(s) => self.write::<kv::BF16>(pool, s),
            Store::Q8(s) => self.write::<kv::Q8>(pool, s),
        }
    }
}
