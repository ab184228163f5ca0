//! What a model takes on a device, told before it is loaded.

use super::{LoadOptions, ModelTensors};
use crate::config::Masters;
use crate::{ModelConfig, ModelError, Role, Slot};
use bitnet_core::{KV_BLOCK, TernaryMatrix};
use bitnet_formats::{Checkpoint, TensorType};

/// About how many bytes a model takes on a device, by its parts; activations are not among them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// The embedding.
    pub embedding: u64,
    /// The weights of each layer.
    pub layers: Vec<u64>,
    /// The head, with what a backend keeps beside it to leave rows out.
    pub head: u64,
    /// Whether the embedding is the head, so that a device that has both holds one.
    pub tied: bool,
    /// Keys and values of a layer, of all positions of the cache.
    pub cache: u64,
}

impl Sizes {
    /// Those of a model that is to be loaded so; only headers are read.
    ///
    /// # Errors
    /// A tensor is missing, or the model was not made for so long a context.
    pub fn of(
        checkpoint: &Checkpoint,
        config: &ModelConfig,
        options: &LoadOptions,
    ) -> Result<Self, ModelError> {
        let config = ModelConfig { layers: options.layers_of(config), ..config.clone() };
        let tensors = ModelTensors::new(checkpoint, &config);
        let spec = options.cache_of(&config, 1)?;
        let element = spec.key.head_bytes(spec.shape.head_dim) + spec.value.head_bytes(spec.shape.head_dim);
        let positions = spec.blocks().saturating_mul(KV_BLOCK);
        let mut sizes = Self {
            embedding: 0,
            layers: vec![0; config.layers],
            head: 0,
            tied: !tensors.own_head(),
            cache: positions.saturating_mul(spec.shape.kv_heads * element) as u64,
        };
        for slot in tensors.slots() {
            let bytes = bytes(&tensors, &config, &slot)?;
            let screened = bytes + slot.rows as u64 * slot.cols as u64;
            match slot.role {
                Role::Embedding => {
                    sizes.embedding = bytes;
                    if sizes.tied {
                        sizes.head += screened;
                    }
                }
                Role::Head => sizes.head += screened,
                Role::FinalNorm => sizes.head += bytes,
                _ => sizes.layers[slot.layer] += bytes,
            }
        }
        Ok(sizes)
    }

    /// All of it, on one device.
    pub fn total(&self) -> u64 {
        let embedding = if self.tied { 0 } else { self.embedding };
        embedding + self.head + self.layers.iter().map(|layer| layer + self.cache).sum::<u64>()
    }
}

/// Bytes of a tensor as it is prepared.
fn bytes(tensors: &ModelTensors<'_>, config: &ModelConfig, slot: &Slot) -> Result<u64, ModelError> {
    let tensor = tensors.stored(slot)?;
    let trits = slot.rows as u64 * TernaryMatrix::row_bytes(slot.cols) as u64;
    Ok(match tensor.ttype {
        _ if slot.role.is_norm() => 4 * slot.cols as u64,
        TensorType::Ternary(_) | TensorType::Tiled(..) | TensorType::U8 => trits,
        // Floats that become trits when they are read; where only their values say so, they may not.
        TensorType::Dense(dtype)
            if slot.role.is_projection()
                && dtype.block().0 == 1
                && !matches!(config.masters, Masters::Dense)
                && !tensors.is_kept_dense(slot) =>
        {
            trits
        }
        _ => tensor.data.len() as u64,
    })
}
