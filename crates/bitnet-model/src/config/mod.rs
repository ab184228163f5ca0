//! Hyper-parameters, from `config.json` or GGUF metadata.

mod gguf;
mod huggingface;
mod local;
mod quantization;
mod rope;

pub use local::LocalLayers;
pub(crate) use quantization::{Masters, ScaleMeaning};
pub use rope::{Llama3Scaling, Rope, RopeScaling, YarnScaling};

use crate::{Architecture, ModelError, Role, Slot};
use bitnet_core::{Activation, AttentionShape};
use bitnet_formats::{Checkpoint, Header};
use bitnet_quant::spec;

/// Positions beyond this are not exact in f32, which the rotation needs.
const MAX_CONTEXT: usize = 1 << 24;

/// What a model is, whatever file it came from.
#[derive(Clone, Debug)]
pub struct ModelConfig {
    /// The architecture's row.
    pub arch: &'static Architecture,
    /// Name of the model, where the file has one.
    pub name: Option<String>,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width of the feed-forward block.
    pub ffn: usize,
    /// Transformer layers.
    pub layers: usize,
    /// Attention heads.
    pub shape: AttentionShape,
    /// Rows of the embedding.
    pub vocab: usize,
    /// Epsilon of every RMSNorm.
    pub eps: f32,
    /// Positions the model was made for.
    pub context: usize,
    /// Position embedding.
    pub rope: Rope,
    /// Layers that see a sliding window.
    pub local: Option<LocalLayers>,
    /// Epsilon of the norms of projections' own inputs, where there are such norms.
    pub projection_norms: Option<f32>,
    /// Whether norm weights, but those of projections, are stored less 1.
    pub norms_less_one: bool,
    /// Nonlinearity of the feed-forward block.
    pub activation: Activation,
    /// Whether the head is the embedding; `None` where the presence of a head decides.
    pub tied: Option<bool>,
    /// Beginning of text.
    pub bos: Option<u32>,
    /// Every id that ends a text.
    pub eos: Vec<u32>,
    /// What float projections and scales in the file mean.
    pub(crate) masters: Masters,
    /// Projections that stay dense, by the end of their module's name.
    pub(crate) dense_modules: Vec<String>,
    /// What `weight_scale` tensors mean.
    pub(crate) scale_meaning: ScaleMeaning,
}

impl ModelConfig {
    /// Reads the configuration of a checkpoint.
    pub fn read(checkpoint: &Checkpoint) -> Result<Self, ModelError> {
        let config = match &checkpoint.header {
            Header::HuggingFace { config, generation_config, .. } => {
                huggingface::read(config, generation_config, checkpoint)?
            }
            Header::Gguf { metadata, .. } => gguf::read(metadata, checkpoint)?,
        };
        config.check()?;
        Ok(config)
    }

    /// The shape of a tensor.
    pub fn slot(&self, role: Role, layer: usize) -> Slot {
        let AttentionShape { heads, kv_heads, head_dim } = self.shape;
        let (q, kv) = (heads * head_dim, kv_heads * head_dim);
        let (rows, cols) = match role {
            Role::Embedding | Role::Head => (self.vocab, self.hidden),
            Role::AttnNorm | Role::FfnNorm | Role::FinalNorm => (1, self.hidden),
            Role::AttnPostNorm | Role::FfnPostNorm => (1, self.hidden),
            Role::QIn | Role::KIn | Role::VIn | Role::GateIn | Role::UpIn => (1, self.hidden),
            Role::OIn => (1, q),
            Role::DownIn => (1, self.ffn),
            Role::QNorm | Role::KNorm => (1, head_dim),
            Role::AttnSubNorm => (1, q),
            Role::FfnSubNorm => (1, self.ffn),
            Role::Q => (q, self.hidden),
            Role::K | Role::V => (kv, self.hidden),
            Role::O => (self.hidden, q),
            Role::Gate | Role::Up => (self.ffn, self.hidden),
            Role::Down => (self.hidden, self.ffn),
        };
        Slot { role, layer, rows, cols }
    }

    /// What each of the `head_dim/2` frequencies is divided by, where a table or Llama 3's scaling does that: with these factors in
    /// [`Rope::factors`] and no other scaling the frequencies have the same bits, as far as a division can give them.
    pub fn rope_factors(&self) -> Option<Vec<f32>> {
        if self.rope.factors.is_some() || !matches!(self.rope.scaling, Some(RopeScaling::Llama3(_))) {
            return self.rope.factors.clone();
        }
        let plain = spec::inverse_frequencies(self.rope.theta, self.shape.head_dim);
        let factor = |(plain, scaled): (&f32, &f32)| {
            let near = plain / scaled;
            let around = |ulp: i32| f32::from_bits(near.to_bits().wrapping_add_signed(ulp));
            let gives = |f: &f32| (plain / f).to_bits() == scaled.to_bits();
            [0, 1, -1, 2, -2].map(around).into_iter().find(gives).unwrap_or(near)
        };
        Some(plain.iter().zip(&self.inverse_frequencies()).map(factor).collect())
    }

    /// Positions that queries of a layer see, where it is not all.
    pub fn window(&self, layer: usize) -> Option<usize> {
        self.local.as_ref().filter(|local| local.layers.get(layer) == Some(&true)).map(|local| local.window)
    }

    /// What the embedding is multiplied with.
    pub fn embedding_scale(&self) -> Option<f32> {
        self.arch.scaled_embedding.then(|| (self.hidden as f64).sqrt() as f32)
    }

    /// Frequencies of the rotation, `[head_dim/2]`.
    pub fn inverse_frequencies(&self) -> Vec<f32> {
        self.rope.inverse_frequencies(self.shape.head_dim)
    }

    /// Refuses what no model has, so that sizes computed from these numbers cannot overflow.
    fn check(&self) -> Result<(), ModelError> {
        let AttentionShape { heads, kv_heads, head_dim } = self.shape;
        for (key, value) in [
            ("hidden size", self.hidden),
            ("feed-forward size", self.ffn),
            ("attention heads", heads),
            ("key and value heads", kv_heads),
            ("head size", head_dim),
            ("vocabulary size", self.vocab),
            ("layers", self.layers),
            ("context length", self.context),
        ] {
            within(key, value, MAX_CONTEXT)?;
        }
        if !heads.is_multiple_of(kv_heads) {
            return Err(bad("key and value heads", kv_heads, "it must divide the number of heads"));
        }
        if !head_dim.is_multiple_of(2) {
            return Err(bad("head size", head_dim, "it must be even"));
        }
        if !(self.eps >= 0.0 && self.eps.is_finite()) {
            return Err(bad("norm epsilon", self.eps, "it must be a number of at least 0"));
        }
        if let Some(local) = &self.local {
            within("sliding window", local.window, MAX_CONTEXT)?;
            local.rope.as_ref().map_or(Ok(()), |rope| rope.check(head_dim))?;
        }
        self.rope.check(head_dim)
    }
}

fn within(key: &str, value: usize, max: usize) -> Result<(), ModelError> {
    if value == 0 || value > max {
        return Err(bad(key, value, "it must be at least 1 and at most 16777216"));
    }
    Ok(())
}

pub(crate) fn bad(key: &str, value: impl ToString, need: &'static str) -> ModelError {
    ModelError::BadValue { key: key.to_owned(), value: value.to_string(), need }
}

#[cfg(test)]
mod tests;
