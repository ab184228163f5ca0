//! The key-value cache: blocks of 64 positions that any sequence may hold, two buffers a layer (`shaders/cache.wgsl` says
//! what lies where in a block).

use crate::gpu::Gpu;
use crate::kernel::{MAX_HEAD_DIM, head_words, values_a_word};
use crate::memory::Buffer;
use bitnet_core::{BackendError, KV_BLOCK, KvSpec};
use bitnet_memory::Tag;

/// Keys and values of all blocks, all layers.
pub struct WgpuKv {
    pub(crate) spec: KvSpec,
    /// Of each layer.
    pub(crate) keys: Vec<Buffer>,
    pub(crate) values: Vec<Buffer>,
    /// Bytes of a block's keys and of its values, of one layer.
    pub(crate) block: (usize, usize),
}

impl WgpuKv {
    pub(crate) fn new(gpu: &Gpu, spec: KvSpec) -> Result<Self, BackendError> {
        let unsupported = |what: String, hint| BackendError::Unsupported { backend: "wgpu", what, hint };
        let d = spec.shape.head_dim;
        if d > MAX_HEAD_DIM || d % 2 == 1 {
            let what = format!("heads of {d} elements; their number is even and {MAX_HEAD_DIM} at most");
            return Err(unsupported(what, "--device cpu would do"));
        }
        if !d.is_multiple_of(values_a_word(spec.key)) || !d.is_multiple_of(values_a_word(spec.value)) {
            let what = format!("a cache of q8_0 for heads of {d} elements; their number is a multiple of 4");
            return Err(unsupported(what, "--cache-type f16, or --device cpu, would do"));
        }
        let block_bytes = |ty| spec.shape.kv_heads * KV_BLOCK * head_words(ty, d) * 4;
        let block = (block_bytes(spec.key), block_bytes(spec.value));
        let layer = |bytes: usize| {
            let layers = (0..spec.layers)
                .map(|_| gpu.zeroed(Tag::Kv, spec.blocks().saturating_mul(bytes), "the key-value cache"));
            layers.collect::<Result<Vec<_>, _>>()
        };
        Ok(Self { spec, keys: layer(block.0)?, values: layer(block.1)?, block })
    }

    /// Bytes of a block of all layers.
    pub(crate) fn block_bytes(&self) -> usize {
        self.spec.layers * (self.block.0 + self.block.1)
    }

    /// Each buffer, and the bytes that a block takes in it: keys and values of one layer after the other.
    pub(crate) fn buffers(&self) -> impl Iterator<Item = (&Buffer, usize)> {
        let (key_bytes, value_bytes) = self.block;
        let pairs = self.keys.iter().zip(&self.values);
        pairs.flat_map(move |(key, value)| [(key, key_bytes), (value, value_bytes)])
    }
}
