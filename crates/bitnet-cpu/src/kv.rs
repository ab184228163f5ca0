//! The key-value cache: blocks of 64 positions that any sequence may hold.
//!
//! Positions are counted through all blocks here. Keys lie in tiles of 16 positions, transposed:
//! `[kv_head][position / 16][d][16]`, so that one vector holds a dimension of sixteen positions. Values lie row by row,
//! `[kv_head][position][d padded to 16]`. A sequence in neighbouring blocks is read as one stream. The memory is asked for
//! zeroed and whole, so pages become resident only as positions are written.

use crate::simd::Lanes;
use bitnet_core::{BackendError, KV_BLOCK, KvSpec, KvType};
use half::{bf16, f16};

/// An element type of the cache.
pub(crate) trait KvElement {
    /// What is stored. Plain numbers, because only their vectors can be had zeroed without touching the memory.
    type Raw: Copy + Default + Send + Sync;
    /// Rule 12: rounds to the cache type, ties to even.
    fn round(x: f32) -> Self::Raw;
    /// Widens sixteen elements.
    fn lanes<L: Lanes>(l: L, x: &[Self::Raw; 16]) -> L::F;
}

/// Single precision.
pub(crate) struct F32;

impl KvElement for F32 {
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

impl KvElement for F16 {
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

impl KvElement for BF16 {
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

/// Elements of one type.
pub(crate) enum Store {
    F32(Vec<f32>),
    F16(Vec<u16>),
    BF16(Vec<u16>),
}

impl Store {
    fn new(ty: KvType, len: usize) -> Result<Self, BackendError> {
        Ok(match ty {
            KvType::F32 => Self::F32(zeroed(len)?),
            KvType::F16 => Self::F16(zeroed(len)?),
            KvType::BF16 => Self::BF16(zeroed(len)?),
        })
    }
}

impl Store {
    /// Copies `len` elements at `from` to `to` in every run of `stride` elements.
    fn copy(&mut self, stride: usize, from: usize, to: usize, len: usize) {
        fn each<T: Copy>(store: &mut [T], stride: usize, from: usize, to: usize, len: usize) {
            for head in store.chunks_exact_mut(stride) {
                head.copy_within(from..from + len, to);
            }
        }
        match self {
            Self::F32(s) => each(s, stride, from, to, len),
            Self::F16(s) | Self::BF16(s) => each(s, stride, from, to, len),
        }
    }
}

/// Zeroed memory, after a check that the host would give it.
fn zeroed<T: Default + Clone>(len: usize) -> Result<Vec<T>, BackendError> {
    let mut probe = Vec::<T>::new();
    probe.try_reserve_exact(len).map_err(|_| BackendError::OutOfMemory {
        bytes: len.saturating_mul(size_of::<T>()),
        what: "the key-value cache",
    })?;
    drop(probe);
    Ok(vec![T::default(); len])
}

/// Keys and values of all blocks, all layers.
pub struct KvCache {
    pub(crate) spec: KvSpec,
    /// Every layer's keys, `kv_heads * key_stride` elements each. One allocation for all layers, since the host hands out
    /// large ones as fresh pages and small ones from what was used before.
    pub(crate) keys: Store,
    /// Every layer's values, `kv_heads * value_stride` elements each.
    pub(crate) values: Store,
    /// Elements of a head's keys.
    pub(crate) key_stride: usize,
    /// Elements of a head's values.
    pub(crate) value_stride: usize,
}

impl KvCache {
    pub(crate) fn new(spec: KvSpec) -> Result<Self, BackendError> {
        let positions = spec.blocks().saturating_mul(KV_BLOCK);
        let heads = spec.layers * spec.shape.kv_heads;
        let key_stride = positions.saturating_mul(spec.shape.head_dim);
        let value_stride = positions.saturating_mul(spec.shape.head_dim.next_multiple_of(16));
        let keys = Store::new(spec.key, key_stride.saturating_mul(heads))?;
        let values = Store::new(spec.value, value_stride.saturating_mul(heads))?;
        Ok(Self { spec, keys, values, key_stride, value_stride })
    }

    /// Copies a block of all layers.
    pub(crate) fn copy_block(&mut self, from: u32, to: u32) {
        let blocks = self.spec.blocks();
        let (key, value) = (self.key_stride / blocks, self.value_stride / blocks);
        let (from, to) = (from as usize, to as usize);
        self.keys.copy(self.key_stride, from * key, to * key, key);
        self.values.copy(self.value_stride, from * value, to * value, value);
    }

    /// The number of the first head of a layer, heads of all layers counted.
    pub(crate) fn first_head(&self, layer: usize) -> usize {
        layer * self.spec.shape.kv_heads
    }
}
