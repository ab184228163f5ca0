//! GGUF metadata. Keys begin with the name of the architecture.

use super::{LocalLayers, Masters, ModelConfig, Rope, RopeScaling, ScaleMeaning, YarnScaling, bad};
use crate::load::dense_values;
use crate::{Architecture, ModelError, Origin, Role, Windows};
use bitnet_core::AttentionShape;
use bitnet_formats::Checkpoint;
use bitnet_formats::gguf::Metadata;

/// Layers that are looked at before their number is checked.
const MAX_LAYERS: usize = 1 << 16;

/// Every sixth layer of Gemma 3 sees everything; its files do not say so.
const GEMMA3_PATTERN: usize = 6;

struct Keys<'a> {
    metadata: &'a Metadata,
    arch: &'a str,
}

impl Keys<'_> {
    fn whole(&self, key: &str) -> Result<Option<usize>, ModelError> {
        let Some(v) = self.metadata.get(key) else { return Ok(None) };
        match v.as_u64().and_then(|n| usize::try_from(n).ok()) {
            Some(n) => Ok(Some(n)),
            None => Err(bad(key, format!("{v:?}"), "it must be a whole number of at least 0")),
        }
    }

    fn size(&self, key: &str) -> Result<Option<usize>, ModelError> {
        self.whole(&format!("{}.{key}", self.arch))
    }

    fn need(&self, key: &str) -> Result<usize, ModelError> {
        self.size(key)?.ok_or_else(|| ModelError::MissingKey { key: format!("{}.{key}", self.arch) })
    }

    fn float(&self, key: &str) -> Result<Option<f64>, ModelError> {
        let key = format!("{}.{key}", self.arch);
        let Some(v) = self.metadata.get(&key) else { return Ok(None) };
        v.as_f64().map(Some).ok_or_else(|| bad(&key, format!("{v:?}"), "it must be a float"))
    }

    fn id(&self, key: &str) -> Option<u32> {
        self.metadata.u32(key)
    }
}

/// What `rope.scaling` keys say; as in llama.cpp, a factor without a type is linear.
fn rope_scaling(keys: &Keys<'_>) -> Result<Option<RopeScaling>, ModelError> {
    let kind = keys.metadata.str(&format!("{}.rope.scaling.type", keys.arch));
    let factor = match keys.float("rope.scaling.factor")? {
        None => keys.float("rope.scale_linear")?,
        factor => factor,
    };
    let factor = factor.filter(|f| *f != 0.0);
    Ok(match kind.unwrap_or("linear") {
        "none" => None,
        "linear" => factor.filter(|f| *f != 1.0).map(|f| RopeScaling::Linear(f as f32)),
        "yarn" => {
            let factor = factor.unwrap_or(1.0);
            let original = match keys.size("rope.scaling.original_context_length")? {
                Some(original) => original,
                None => keys.need("context_length")?,
            };
            let set = |key: &str, default: f64| keys.float(key).map(|v| v.unwrap_or(default));
            // llama.cpp blends by `ext_factor`; only whole YaRN is known in files.
            let blend = set("rope.scaling.yarn_ext_factor", 1.0)?;
            if blend != 1.0 {
                return Err(bad("rope.scaling.yarn_ext_factor", blend, "only 1 is known"));
            }
            let attention =
                set("rope.scaling.attn_factor", 1.0)? * set("rope.scaling.yarn_attn_factor", 1.0)?;
            Some(RopeScaling::Yarn(YarnScaling {
                factor: factor as f32,
                original_context: original as f32,
                beta_fast: set("rope.scaling.yarn_beta_fast", 32.0)? as f32,
                beta_slow: set("rope.scaling.yarn_beta_slow", 1.0)? as f32,
                truncate: true,
                attention_factor: attention as f32 * YarnScaling::magnitude(factor, 1.0),
            }))
        }
        other => return Err(bad("rope.scaling.type", other, "none, linear and yarn are known")),
    })
}

pub(super) fn read(metadata: &Metadata, checkpoint: &Checkpoint) -> Result<ModelConfig, ModelError> {
    let mut keys = Keys { metadata, arch: "" };
    let name = keys
        .metadata
        .str("general.architecture")
        .ok_or_else(|| ModelError::MissingKey { key: "general.architecture".to_owned() })?;
    let arch = Architecture::find(Origin::Gguf, name)
        .ok_or_else(|| ModelError::UnknownArchitecture { name: name.to_owned() })?;
    keys.arch = arch.name;
    let hidden = keys.need("embedding_length")?;
    let heads = keys.need("attention.head_count")?;
    let head_dim = match keys.size("attention.key_length")? {
        Some(d) => d,
        None if heads > 0 && hidden.is_multiple_of(heads) => hidden / heads,
        None => {
            return Err(bad(
                "attention.head_count",
                heads,
                "it must divide embedding_length, or key_length be given",
            ));
        }
    };
    if let Some(v) = keys.size("attention.value_length")?.filter(|v| *v != head_dim) {
        return Err(bad("attention.value_length", v, "it must equal key_length"));
    }
    if let Some(d) = keys.size("rope.dimension_count")?.filter(|d| *d != head_dim) {
        return Err(bad("rope.dimension_count", d, "only rotation of whole heads is supported"));
    }
    let embedding = checkpoint
        .tensor(arch.names.embedding)
        .ok_or_else(|| ModelError::MissingTensor { name: arch.names.embedding.to_owned() })?;
    let factors =
        checkpoint.tensor("rope_freqs.weight").map(|t| dense_values(t, &[head_dim / 2])).transpose()?;
    let projection_norms = checkpoint.tensor(&arch.tensor_name(Role::QIn, 0)).is_some();
    let eps = keys.float("attention.layer_norm_rms_epsilon")?.ok_or_else(|| ModelError::MissingKey {
        key: format!("{}.attention.layer_norm_rms_epsilon", arch.name),
    })? as f32;
    let layers = keys.need("block_count")?;
    let window = keys.size("attention.sliding_window")?;
    let mut local = LocalLayers::by_rule(arch, window, layers.min(MAX_LAYERS), GEMMA3_PATTERN);
    if let Some(local) = local.as_mut().filter(|_| arch.windows == Windows::AllBut) {
        let theta = keys.float("rope.freq_base_swa")?.unwrap_or(10_000.0);
        local.rope = Some(Rope { theta, scaling: None, factors: None });
    }
    let ends = ["eos", "eot", "eom"].map(|end| keys.id(&format!("tokenizer.ggml.{end}_token_id")));
    let mut eos: Vec<u32> = Vec::new();
    for id in ends.into_iter().flatten() {
        if !eos.contains(&id) {
            eos.push(id);
        }
    }
    Ok(ModelConfig {
        arch,
        name: metadata.str("general.name").map(str::to_owned),
        hidden,
        ffn: keys.need("feed_forward_length")?,
        layers,
        shape: AttentionShape {
            heads,
            kv_heads: keys.size("attention.head_count_kv")?.unwrap_or(heads),
            head_dim,
        },
        vocab: match keys.size("vocab_size")? {
            Some(v) => v,
            None => embedding.shape.first().copied().unwrap_or(0),
        },
        eps,
        context: keys.need("context_length")?,
        rope: Rope {
            theta: keys.float("rope.freq_base")?.unwrap_or(10_000.0),
            scaling: rope_scaling(&keys)?,
            factors,
        },
        local,
        projection_norms: projection_norms.then_some(eps),
        // Converters for llama.cpp add the 1; the one for BitNet embeddings, whose projections have norms, writes what it finds.
        norms_less_one: arch.norms_less_one || (arch.post_norms && projection_norms),
        activation: arch.activation,
        tied: None,
        bos: keys.id("tokenizer.ggml.bos_token_id"),
        eos,
        masters: if arch.ternary || projection_norms { Masters::Absmean } else { Masters::Dense },
        dense_modules: Vec::new(),
        scale_meaning: ScaleMeaning::Multiplier,
    })
}
