//! Keys and values of a segment as f32, for many queries. They lie as in a cache whose first blocks are the segment.

use crate::Isa;
use crate::kv::{self, KvCache, KvElement, Store};
use crate::memory::Room;
use crate::simd::{Kernel, Lanes, dispatch};
use bitnet_core::KV_BLOCK;
use bitnet_quant::spec::{Q8_BLOCK, SEGMENT};
use std::ops::Range;

/// A segment of one head that was widened.
pub(super) struct Wide<'a> {
    /// `[tiles][d][16]`.
    pub(super) keys: &'a mut [f32],
    /// `[positions][d padded to 16]`.
    pub(super) values: &'a mut [f32],
}

impl<'a> Wide<'a> {
    /// Lines of room for heads of `d` elements.
    pub(super) fn lines(d: usize) -> usize {
        Room::lines::<f32>(SEGMENT * d) + Room::lines::<f32>(SEGMENT * d.next_multiple_of(16))
    }

    /// Room for a segment of heads of `d` elements.
    pub(super) fn new(d: usize, room: &mut Room<'a>) -> Self {
        let (keys, values) = (room.take(SEGMENT * d), room.take(SEGMENT * d.next_multiple_of(16)));
        Self { keys, values }
    }

    /// The blocks of a segment that lies alone.
    pub(super) const BLOCKS: [u32; SEGMENT / KV_BLOCK] = [0, 1, 2, 3];

    /// Elements of the keys and of the values from a block to the next one.
    pub(super) fn strides(d: usize) -> (usize, usize) {
        (KV_BLOCK * d, KV_BLOCK * d.next_multiple_of(16))
    }

    /// Widens the blocks `wanted` of `blocks`, which hold the segment, of head `head` of all layers.
    pub(super) fn fill(
        &mut self,
        isa: Isa,
        cache: &KvCache,
        head: usize,
        blocks: &[u32],
        wanted: Range<usize>,
    ) {
        let d = cache.spec.shape.head_dim;
        let (key, value) = (cache.key, cache.value);
        for i in wanted {
            let at = blocks[i] as usize * cache.heads() + head;
            let (keys, values) = (at * key..(at + 1) * key, at * value..(at + 1) * value);
            let (key_stride, value_stride) = Self::strides(d);
            let out = &mut self.keys[i * key_stride..][..key_stride];
            match &cache.keys {
                Store::F32(k) => dispatch(isa, Keys::<kv::F32> { d, from: &k[keys], out }),
                Store::F16(k) => dispatch(isa, Keys::<kv::F16> { d, from: &k[keys], out }),
                Store::BF16(k) => dispatch(isa, Keys::<kv::BF16> { d, from: &k[keys], out }),
                Store::Q8(k) => dispatch(isa, Keys::<kv::Q8> { d, from: &k[keys], out }),
            }
            let out = &mut self.values[i * value_stride..][..value_stride];
            match &cache.values {
                Store::F32(v) => dispatch(isa, Values::<kv::F32> { d, from: &v[values], out }),
                Store::F16(v) => dispatch(isa, Values::<kv::F16> { d, from: &v[values], out }),
                Store::BF16(v) => dispatch(isa, Values::<kv::BF16> { d, from: &v[values], out }),
                Store::Q8(v) => dispatch(isa, Values::<kv::Q8> { d, from: &v[values], out }),
            }
        }
    }
}

/// The keys of a block.
struct Keys<'a, K: KvElement> {
    d: usize,
    from: &'a [K::Raw],
    out: &'a mut [f32],
}

impl<K: KvElement> Kernel for Keys<'_, K> {
    type Output = ();
    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let (d, rows) = (self.d, K::key_rows(self.d));
        let tiles = self.from.as_chunks::<16>().0.chunks_exact(rows);
        for (tile, out) in tiles.zip(self.out.as_chunks_mut::<16>().0.chunks_exact_mut(d)) {
            for (block, (rows, out)) in tile.chunks(Q8_BLOCK).zip(out.chunks_mut(Q8_BLOCK)).enumerate() {
                let scale = K::key_scale(l, tile, d, block);
                for (row, out) in rows.iter().zip(out) {
                    l.store(K::key(l, row, scale), out);
                }
            }
        }
    }
}

/// The values of a block.
struct Values<'a, V: KvElement> {
    d: usize,
    from: &'a [V::Raw],
    out: &'a mut [f32],
}

impl<V: KvElement> Kernel for Values<'_, V> {
    type Output = ();
    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let (d, width) = (self.d, self.d.div_ceil(16));
        let rows = self.from.as_chunks::<16>().0.chunks_exact(V::value_rows(d));
        for (rows, out) in rows.zip(self.out.as_chunks_mut::<16>().0.chunks_exact_mut(width)) {
            for (c, out) in out.iter_mut().enumerate() {
                let [x]: [L::F; 1] = V::values(l, rows, d, c);
                l.store(x, out);
            }
        }
    }
}
