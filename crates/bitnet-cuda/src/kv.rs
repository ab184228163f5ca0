//! The key-value cache: blocks of 64 positions that any sequence may hold, two buffers a layer (`kernels/attention.cu` says what
//! lies where in a block).

use crate::gpu::Gpu;
use crate::kernels::CacheKernels;
use crate::memory::Buffer;
use bitnet_core::{BackendError, KV_BLOCK, KvSpec, KvType};
use bitnet_memory::Tag;

/// Bytes that a head takes: whole words of elements, and of scales.
pub(crate) fn head_bytes(ty: KvType, head_dim: usize) -> usize {
    ty.head_bytes(head_dim).next_multiple_of(4)
}

/// Keys and values of all blocks, all layers.
pub struct CudaKv {
    pub(crate) spec: KvSpec,
    /// Of each layer.
    pub(crate) keys: Vec<Buffer>,
    pub(crate) values: Vec<Buffer>,
    /// Bytes of a block's keys and of its values, of one layer.
    block: (usize, usize),
    pub(crate) kernels: CacheKernels,
}

impl CudaKv {
    pub(crate) fn new(gpu: &Gpu, spec: KvSpec) -> Result<Self, BackendError> {
        let d = spec.shape.head_dim;
        if !d.is_multiple_of(4) {
            return Err(BackendError::Unsupported {
                backend: "cuda",
                what: format!("heads of {d} elements, no multiple of four"),
                hint: "--device cpu would do",
            });
        }
        let kernels = CacheKernels::load(&gpu.driver, spec.key, spec.value);
        let kernels = kernels.map_err(|e| gpu.error(e, 0, "kernels"))?;
        let bytes = |ty: KvType| spec.shape.kv_heads * KV_BLOCK * head_bytes(ty, d);
        let block = (bytes(spec.key), bytes(spec.value));
        let layers = |bytes: usize| {
            let layer = |_| gpu.zeroed(Tag::Kv, spec.blocks().saturating_mul(bytes), "the key-value cache");
            (0..spec.layers).map(layer).collect::<Result<Vec<_>, _>>()
        };
        Ok(Self { spec, keys: layers(block.0)?, values: layers(block.1)?, block, kernels })
    }

    /// Bytes of a block of all layers.
    pub(crate) fn block_bytes(&self) -> usize {
        self.spec.layers * (self.block.0 + self.block.1)
    }

    /// Bytes of a block in the buffer of this number, counted as [`CudaKv::buffers`] has them.
    pub(crate) fn part_bytes(&self, number: usize) -> usize {
        if number.is_multiple_of(2) { self.block.0 } else { self.block.1 }
    }

    /// Each buffer, and the bytes that a block takes in it: keys and values of one layer after the other.
    pub(crate) fn buffers(&self) -> impl Iterator<Item = (&Buffer, usize)> {
        let (key_bytes, value_bytes) = self.block;
        let pairs = self.keys.iter().zip(&self.values);
        pairs.flat_map(move |(key, value)| [(key, key_bytes), (value, value_bytes)])
    }
}
