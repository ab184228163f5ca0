//! The key-value cache: blocks of 64 positions that any sequence may hold.
//!
//! A block has the heads of all layers one behind the other, so that what was written fills few pages, which may then be large.
//! Keys of a head lie in tiles of 16 positions, transposed: `[block][layer][kv_head][position / 16][d][16]`, so that one vector
//! holds a dimension of sixteen positions. Values lie row by row, `[block][layer][kv_head][position][d padded to 16]`. Scales,
//! where a type has some, follow in the same tile or row. The memory is asked for zeroed and whole, so pages become resident only
//! as positions are written.

use crate::memory::{Buffer, Memory, kept};
use crate::simd::Lanes;
use bitnet_core::{BackendError, KV_BLOCK, KvSpec, KvType};
use bitnet_memory::Tag;
use bitnet_quant::spec::{Q8_BLOCK, quantize_q8};
use bytemuck::Pod;
use half::{bf16, f16};
use std::ops::Range;

/// A type of cached keys or values: how a head lies in rows of sixteen elements.
pub(crate) trait KvElement {
    /// What is stored. Plain numbers, because only they are zero in memory that was never touched.
    type Raw: Pod + Send + Sync;
    /// What [`Q8_BLOCK`] neighbouring dimensions have in common, in lanes `F`.
    type Scale<F: Copy>: Copy;
    /// Rows that sixteen keys of `d` dimensions take, one for each dimension first.
    fn key_rows(d: usize) -> usize;
    /// Rows that a value of `d` dimensions takes.
    fn value_rows(d: usize) -> usize;
    /// Rule 12: rounds a key `x [d]` into a lane of a tile.
    fn put_key(tile: &mut [[Self::Raw; 16]], lane: usize, x: &[f32]);
    /// Rule 12: rounds a value `x [d]` into its rows.
    fn put_value(rows: &mut [[Self::Raw; 16]], x: &[f32]);
    /// The scales of block `block` of sixteen keys.
    fn key_scale<L: Lanes>(l: L, tile: &[[Self::Raw; 16]], d: usize, block: usize) -> Self::Scale<L::F>;
    /// A dimension of sixteen keys, widened.
    fn key<L: Lanes>(l: L, row: &[Self::Raw; 16], scale: Self::Scale<L::F>) -> L::F;
    /// Dimensions `16c..16(c + C)` of a value whose rows these are, widened.
    fn values<L: Lanes, const C: usize>(l: L, rows: &[[Self::Raw; 16]], d: usize, c: usize) -> [L::F; C];
}

/// A type whose elements stand for themselves.
pub(crate) trait Plain {
    type Raw: Pod + Send + Sync;
    /// Rounds to the type, ties to even.
    fn round(x: f32) -> Self::Raw;
    /// Widens sixteen elements.
    fn lanes<L: Lanes>(l: L, x: &[Self::Raw; 16]) -> L::F;
}

impl<T: Plain> KvElement for T {
    type Raw = T::Raw;
    type Scale<F: Copy> = ();
    #[inline(always)]
    fn key_rows(d: usize) -> usize {
        d
    }
    #[inline(always)]
    fn value_rows(d: usize) -> usize {
        d.div_ceil(16)
    }
    fn put_key(tile: &mut [[T::Raw; 16]], lane: usize, x: &[f32]) {
        for (row, x) in tile.iter_mut().zip(x) {
            row[lane] = T::round(*x);
        }
    }
    fn put_value(rows: &mut [[T::Raw; 16]], x: &[f32]) {
        for (out, x) in rows.as_flattened_mut().iter_mut().zip(x) {
            *out = T::round(*x);
        }
    }
    #[inline(always)]
    fn key_scale<L: Lanes>(_l: L, _tile: &[[T::Raw; 16]], _d: usize, _block: usize) {}
    #[inline(always)]
    fn key<L: Lanes>(l: L, row: &[T::Raw; 16], (): ()) -> L::F {
        T::lanes(l, row)
    }
    #[inline(always)]
    fn values<L: Lanes, const C: usize>(l: L, rows: &[[T::Raw; 16]], _d: usize, c: usize) -> [L::F; C] {
        let rows: &[[T::Raw; 16]; C] = rows[c..].first_chunk().expect("a value has the dimensions");
        let mut out = [l.splat(0.0); C];
        for (out, row) in out.iter_mut().zip(rows) {
            *out = T::lanes(l, row);
        }
        out
    }
}

/// Single precision.
pub(crate) struct F32;

impl Plain for F32 {
    type Raw = f32;
    #[inline(always)]
    fn round(x: f32) -> f32 {
        x
    }
    #[inline(always)]
    fn lanes<L: Lanes>(l: L, x: &[f32; 16]) -> L::F {
        l.load(x)
    }
}

/// IEEE half precision; values beyond its range saturate.
pub(crate) struct F16;

impl Plain for F16 {
    type Raw = u16;
    #[inline(always)]
    fn round(x: f32) -> u16 {
        f16::from_f32(x.clamp(-65504.0, 65504.0)).to_bits()
    }
    #[inline(always)]
    fn lanes<L: Lanes>(l: L, x: &[u16; 16]) -> L::F {
        l.load_f16(x)
    }
}

/// The upper half of an f32.
pub(crate) struct BF16;

impl Plain for BF16 {
    type Raw = u16;
    #[inline(always)]
    fn round(x: f32) -> u16 {
        bf16::from_f32(x).to_bits()
    }
    #[inline(always)]
    fn lanes<L: Lanes>(l: L, x: &[u16; 16]) -> L::F {
        l.load_bf16(x)
    }
}

/// Eight bits. Behind its dimensions a tile of keys has two rows for each block of 32: the f16 scales of its sixteen keys, low bytes
/// first. Behind its dimensions a value has its blocks' scales.
pub(crate) struct Q8;

/// The f16 at an even byte of some rows.
#[inline(always)]
fn f16_bits(rows: &[[i8; 16]], at: usize) -> u16 {
    let bytes = rows.as_flattened();
    u16::from_le_bytes([bytes[at] as u8, bytes[at + 1] as u8])
}

fn put_f16(rows: &mut [[i8; 16]], at: usize, x: f16) {
    let bytes = &mut rows.as_flattened_mut()[at..at + 2];
    bytes.copy_from_slice(&x.to_le_bytes().map(|b| b as i8));
}

impl KvElement for Q8 {
    type Raw = i8;
    type Scale<F: Copy> = F;
    #[inline(always)]
    fn key_rows(d: usize) -> usize {
        d + 2 * d.div_ceil(Q8_BLOCK)
    }
    #[inline(always)]
    fn value_rows(d: usize) -> usize {
        d.div_ceil(16) + (2 * d.div_ceil(Q8_BLOCK)).div_ceil(16)
    }
    fn put_key(tile: &mut [[i8; 16]], lane: usize, x: &[f32]) {
        let (dims, scales) = tile.split_at_mut(x.len());
        let mut q = [0; Q8_BLOCK];
        for (block, (x, dims)) in x.chunks(Q8_BLOCK).zip(dims.chunks_mut(Q8_BLOCK)).enumerate() {
            put_f16(scales, 32 * block + 2 * lane, quantize_q8(x, &mut q));
            dims.iter_mut().zip(q).for_each(|(row, q)| row[lane] = q);
        }
    }
    fn put_value(rows: &mut [[i8; 16]], x: &[f32]) {
        let (dims, scales) = rows.split_at_mut(x.len().div_ceil(16));
        let blocks = x.chunks(Q8_BLOCK).zip(dims.as_flattened_mut().chunks_mut(Q8_BLOCK));
        for (block, (x, dims)) in blocks.enumerate() {
            put_f16(scales, 2 * block, quantize_q8(x, &mut dims[..x.len()]));
        }
    }
    #[inline(always)]
    fn key_scale<L: Lanes>(l: L, tile: &[[i8; 16]], d: usize, block: usize) -> L::F {
        let rows = &tile[d + 2 * block..][..2];
        let mut bits = [0; 16];
        for (lane, bits) in bits.iter_mut().enumerate() {
            *bits = f16_bits(rows, 2 * lane);
        }
        l.load_f16(&bits)
    }
    #[inline(always)]
    fn key<L: Lanes>(l: L, row: &[i8; 16], scale: L::F) -> L::F {
        l.mul(l.load_i8(row), scale)
    }
    #[inline(always)]
    fn values<L: Lanes, const C: usize>(l: L, rows: &[[i8; 16]], d: usize, c: usize) -> [L::F; C] {
        let dims: &[[i8; 16]; C] = rows[c..].first_chunk().expect("a value has the dimensions");
        let scales = &rows[d.div_ceil(16)..];
        let mut out = [l.splat(0.0); C];
        for j in 0..C {
            let scale = l.load_f16(&[f16_bits(scales, (c + j) * 16 / Q8_BLOCK * 2); 16]);
            out[j] = l.mul(l.load_i8(&dims[j]), scale);
        }
        out
    }
}

/// Elements of one type.
pub(crate) enum Store {
    F32(Buffer<f32>),
    F16(Buffer<u16>),
    BF16(Buffer<u16>),
    Q8(Buffer<i8>),
}

/// A number that is `N` bytes in a file, lowest first.
trait Stored<const N: usize>: Copy {
    fn bytes(self) -> [u8; N];
    fn of(bytes: [u8; N]) -> Self;
}

impl Stored<4> for f32 {
    fn bytes(self) -> [u8; 4] {
        self.to_le_bytes()
    }
    fn of(bytes: [u8; 4]) -> Self {
        Self::from_le_bytes(bytes)
    }
}

impl Stored<2> for u16 {
    fn bytes(self) -> [u8; 2] {
        self.to_le_bytes()
    }
    fn of(bytes: [u8; 2]) -> Self {
        Self::from_le_bytes(bytes)
    }
}

impl Stored<1> for i8 {
    fn bytes(self) -> [u8; 1] {
        self.to_le_bytes()
    }
    fn of(bytes: [u8; 1]) -> Self {
        Self::from_le_bytes(bytes)
    }
}

impl Store {
    fn new(memory: &Memory, ty: KvType, len: usize) -> Result<Self, BackendError> {
        const WHAT: &str = "the key-value cache";
        Ok(match ty {
            KvType::F32 => Self::F32(kept(memory, len, Tag::Kv, WHAT)?),
            KvType::F16 => Self::F16(kept(memory, len, Tag::Kv, WHAT)?),
            KvType::BF16 => Self::BF16(kept(memory, len, Tag::Kv, WHAT)?),
            KvType::Q8_0 => Self::Q8(kept(memory, len, Tag::Kv, WHAT)?),
        })
    }

    pub(crate) fn element_bytes(&self) -> usize {
        match self {
            Self::F32(_) => 4,
            Self::F16(_) | Self::BF16(_) => 2,
            Self::Q8(_) => 1,
        }
    }

    /// Copies a range to another place.
    fn copy(&mut self, from: Range<usize>, to: usize) {
        match self {
            Self::F32(s) => s.copy_within(from, to),
            Self::F16(s) | Self::BF16(s) => s.copy_within(from, to),
            Self::Q8(s) => s.copy_within(from, to),
        }
    }

    /// Gives a range back to the system.
    fn discard(&mut self, range: Range<usize>) -> usize {
        match self {
            Self::F32(s) => s.discard(range),
            Self::F16(s) | Self::BF16(s) => s.discard(range),
            Self::Q8(s) => s.discard(range),
        }
    }

    /// Appends a range.
    fn save(&self, range: Range<usize>, out: &mut Vec<u8>) {
        match self {
            Self::F32(s) => out.extend(s[range].iter().flat_map(|x| x.bytes())),
            Self::F16(s) | Self::BF16(s) => out.extend(s[range].iter().flat_map(|x| x.bytes())),
            Self::Q8(s) => out.extend(s[range].iter().flat_map(|x| x.bytes())),
        }
    }

    /// The reverse.
    fn load(&mut self, range: Range<usize>, bytes: &[u8]) {
        fn fill<T: Stored<N>, const N: usize>(s: &mut [T], bytes: &[u8]) {
            s.iter_mut().zip(bytes.as_chunks::<N>().0).for_each(|(x, bytes)| *x = T::of(*bytes));
        }
        match self {
            Self::F32(s) => fill(&mut s[range], bytes),
            Self::F16(s) | Self::BF16(s) => fill(&mut s[range], bytes),
            Self::Q8(s) => fill(&mut s[range], bytes),
        }
    }
}

/// Keys and values of all blocks, all layers.
pub struct KvCache {
    pub(crate) spec: KvSpec,
    pub(crate) keys: Store,
    pub(crate) values: Store,
    /// Elements of a head's keys in a block.
    pub(crate) key: usize,
    /// Elements of a head's values in a block.
    pub(crate) value: usize,
}

impl KvCache {
    pub(crate) fn new(memory: &Memory, spec: KvSpec) -> Result<Self, BackendError> {
        let d = spec.shape.head_dim;
        let (key_rows, value_rows) = match (spec.key, spec.value) {
            (KvType::Q8_0, KvType::Q8_0) => (Q8::key_rows(d), Q8::value_rows(d)),
            (KvType::Q8_0, _) => (Q8::key_rows(d), F32::value_rows(d)),
            (_, KvType::Q8_0) => (F32::key_rows(d), Q8::value_rows(d)),
            _ => (F32::key_rows(d), F32::value_rows(d)),
        };
        let (key, value) = (KV_BLOCK * key_rows, KV_BLOCK * 16 * value_rows);
        let heads = spec.blocks().saturating_mul(spec.layers * spec.shape.kv_heads);
        let keys = Store::new(memory, spec.key, key.saturating_mul(heads))?;
        let values = Store::new(memory, spec.value, value.saturating_mul(heads))?;
        Ok(Self { spec, keys, values, key, value })
    }

    /// Key heads of all layers.
    pub(crate) fn heads(&self) -> usize {
        self.spec.layers * self.spec.shape.kv_heads
    }

    /// The number of the first head of a layer, heads of all layers counted.
    pub(crate) fn first_head(&self, layer: usize) -> usize {
        layer * self.spec.shape.kv_heads
    }

    /// Elements of the keys and of the values from a block to the next one.
    pub(crate) fn strides(&self) -> (usize, usize) {
        (self.heads() * self.key, self.heads() * self.value)
    }

    /// Where the keys and the values of a block lie.
    fn block(&self, block: u32) -> (Range<usize>, Range<usize>) {
        let (key, value) = self.strides();
        let block = block as usize;
        (block * key..(block + 1) * key, block * value..(block + 1) * value)
    }

    /// Copies a block of all layers.
    pub(crate) fn copy_block(&mut self, from: u32, to: u32) {
        let ((keys, values), to) = (self.block(from), self.block(to));
        self.keys.copy(keys, to.0.start);
        self.values.copy(values, to.1.start);
    }

    /// Gives the memory of a block back, which is zero then; tells how many bytes.
    pub(crate) fn discard_block(&mut self, block: u32) -> usize {
        let (keys, values) = self.block(block);
        self.keys.discard(keys) + self.values.discard(values)
    }

    /// Bytes of a block of all layers.
    pub(crate) fn block_bytes(&self) -> usize {
        let (key, value) = self.strides();
        key * self.keys.element_bytes() + value * self.values.element_bytes()
    }

    /// Appends a block of all layers: keys, head by head, then values.
    pub(crate) fn save_block(&self, block: u32, out: &mut Vec<u8>) {
        let (keys, values) = self.block(block);
        self.keys.save(keys, out);
        self.values.save(values, out);
    }

    /// Fills a block with what [`KvCache::save_block`] gave.
    pub(crate) fn load_block(&mut self, block: u32, bytes: &[u8]) {
        let (keys, values) = self.block(block);
        let (key_bytes, value_bytes) = bytes.split_at(keys.len() * self.keys.element_bytes());
        self.keys.load(keys, key_bytes);
        self.values.load(values, value_bytes);
    }
}
