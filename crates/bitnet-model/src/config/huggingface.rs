//! `config.json` and `generation_config.json`.

use super::{
    Llama3Scaling, LocalLayers, Masters, ModelConfig, Rope, RopeScaling, ScaleMeaning, YarnScaling, bad,
};
use crate::{Architecture, ModelError, Origin, Role, Windows};
use bitnet_core::{Activation, AttentionShape};
use bitnet_formats::Checkpoint;
use serde_json::Value;

/// Layers that are looked at before their number is checked.
const MAX_LAYERS: usize = 1 << 16;

pub(super) fn read(
    config: &Value,
    generation: &Value,
    checkpoint: &Checkpoint,
) -> Result<ModelConfig, ModelError> {
    let name = text(config.get("architectures").and_then(|a| a.get(0)))
        .ok_or_else(|| ModelError::MissingKey { key: "architectures".to_owned() })?;
    let arch = Architecture::find(Origin::HuggingFace, name)
        .ok_or_else(|| ModelError::UnknownArchitecture { name: name.to_owned() })?;
    for key in ["attention_bias", "mlp_bias"] {
        if config.get(key).and_then(Value::as_bool) == Some(true) {
            return Err(bad(key, true, "projections with a bias are not supported"));
        }
    }
    let hidden = size(config, "hidden_size")?;
    let heads = size(config, "num_attention_heads")?;
    let head_dim = match optional_size(config, "head_dim")? {
        Some(d) => d,
        None if heads > 0 && hidden.is_multiple_of(heads) => hidden / heads,
        None => {
            return Err(bad(
                "num_attention_heads",
                heads,
                "it must divide hidden_size, or head_dim be given",
            ));
        }
    };
    if let Some(scalar) = number(config, "query_pre_attn_scalar")?.filter(|s| *s != head_dim as f64) {
        return Err(bad("query_pre_attn_scalar", scalar, "it must be the size of a head"));
    }
    for key in ["attn_logit_softcapping", "final_logit_softcapping"] {
        if let Some(cap) = number(config, key)? {
            return Err(bad(key, cap, "capped scores are not supported"));
        }
    }
    if config.get("use_bidirectional_attention").is_some_and(|v| *v != Value::Bool(false) && !v.is_null()) {
        return Err(bad("use_bidirectional_attention", true, "only causal attention is supported"));
    }
    let quantization = Quantization::read(config, arch)?;
    let eps = number(config, "rms_norm_eps")?.unwrap_or(1e-6) as f32;
    let layers = size(config, "num_hidden_layers")?;
    // BitNet embeddings do not say that they are ternary, but nothing else has norms of that name.
    let own_norms = checkpoint.tensor(&arch.tensor_name(Role::QIn, 0)).is_some();
    let projection_norms = quantization.projection_norms.or(own_norms.then_some(eps));
    let mut local = LocalLayers::read(config, arch, layers.min(MAX_LAYERS))?;
    if let Some(local) = &mut local {
        local.rope = local_rope(config, arch)?;
    }
    Ok(ModelConfig {
        arch,
        name: text(config.get("_name_or_path")).filter(|n| !n.is_empty()).map(str::to_owned),
        hidden,
        ffn: size(config, "intermediate_size")?,
        layers,
        shape: AttentionShape {
            heads,
            kv_heads: optional_size(config, "num_key_value_heads")?.unwrap_or(heads),
            head_dim,
        },
        vocab: vocabulary(config, arch, checkpoint)?,
        eps,
        context: optional_size(config, "max_position_embeddings")?.unwrap_or(2048),
        rope: rope(config, arch)?,
        local,
        projection_norms,
        norms_less_one: arch.norms_less_one,
        activation: activation(config)?.unwrap_or(arch.activation),
        tied: config.get("tie_word_embeddings").and_then(Value::as_bool).map(|tied| tied || arch.headless),
        bos: ids(generation.get("bos_token_id"))
            .or_else(|| ids(config.get("bos_token_id")))
            .and_then(|v| v.first().copied()),
        eos: ids(generation.get("eos_token_id"))
            .or_else(|| ids(config.get("eos_token_id")))
            .unwrap_or_default(),
        masters: match quantization.masters {
            Masters::Dense if own_norms => Masters::Absmean,
            masters => masters,
        },
        dense_modules: quantization.dense_modules,
        scale_meaning: quantization.scale_meaning,
    })
}

/// The embedding's rows where they are known; `vocab_size` must then agree, which loading checks by the shape.
fn vocabulary(config: &Value, arch: &Architecture, checkpoint: &Checkpoint) -> Result<usize, ModelError> {
    if let Some(v) = optional_size(config, "vocab_size")? {
        return Ok(v);
    }
    let embedding = checkpoint.tensor(arch.names.embedding).and_then(|t| t.shape.first().copied());
    embedding.ok_or_else(|| ModelError::MissingKey { key: "vocab_size".to_owned() })
}

fn activation(config: &Value) -> Result<Option<Activation>, ModelError> {
    // Gemma calls it `hidden_activation`, and may have a `hidden_act` beside it that nobody reads.
    match text(config.get("hidden_activation")).or(text(config.get("hidden_act"))) {
        None => Ok(None),
        Some("relu2") => Ok(Some(Activation::Relu2)),
        Some("silu" | "swish") => Ok(Some(Activation::Silu)),
        Some("gelu_pytorch_tanh") => Ok(Some(Activation::Gelu)),
        Some(other) => Err(bad("hidden_act", other, "relu2, silu and gelu_pytorch_tanh are known")),
    }
}

/// `rope_parameters` that are an object; where kinds of layers have their own, those of one kind.
fn rope_parameters<'a>(config: &'a Value, kind: &str) -> Option<&'a Value> {
    let all = config.get("rope_parameters").filter(|v| v.is_object())?;
    match all.get("full_attention").is_some() || all.get("sliding_attention").is_some() {
        true => all.get(kind).filter(|v| v.is_object()),
        false => Some(all),
    }
}

/// Layers with a window turn otherwise in Gemma 3.
fn local_rope(config: &Value, arch: &Architecture) -> Result<Option<Rope>, ModelError> {
    if arch.windows != Windows::AllBut {
        return Ok(None);
    }
    let own = rope_parameters(config, "sliding_attention").filter(|p| config["rope_parameters"] != **p);
    let theta = match own.map(|p| number(p, "rope_theta")).transpose()?.flatten() {
        Some(theta) => theta,
        None => number(config, "rope_local_base_freq")?.unwrap_or(10_000.0),
    };
    let scaling = own.map(|s| rope_scaling(s, config)).transpose()?.flatten();
    Ok(Some(Rope { theta, scaling, factors: None }))
}

fn rope(config: &Value, arch: &Architecture) -> Result<Rope, ModelError> {
    // Newer files have all of it in `rope_parameters`, older ones the theta beside and the scaling in `rope_scaling`.
    let parameters = rope_parameters(config, "full_attention");
    let scaling = parameters.or_else(|| config.get("rope_scaling").filter(|v| v.is_object()));
    let theta = match parameters.map(|p| number(p, "rope_theta")).transpose()?.flatten() {
        Some(theta) => theta,
        None => number(config, "rope_theta")?.unwrap_or(match arch.model_type {
            "bitnet" => 500_000.0,
            "gemma3_text" => 1_000_000.0,
            _ => 10_000.0,
        }),
    };
    let scaling = scaling.map(|s| rope_scaling(s, config)).transpose()?.flatten();
    Ok(Rope { theta, scaling, factors: None })
}

/// What `rope_scaling`, or `rope_parameters`, says of stretched frequencies.
fn rope_scaling(s: &Value, config: &Value) -> Result<Option<RopeScaling>, ModelError> {
    let need = |key: &str| {
        number(s, key)?.ok_or_else(|| ModelError::MissingKey { key: format!("rope_scaling.{key}") })
    };
    Ok(match text(s.get("rope_type").or_else(|| s.get("type"))) {
        None | Some("default") => None,
        Some("linear") => Some(RopeScaling::Linear(need("factor")? as f32)),
        Some("llama3") => Some(RopeScaling::Llama3(Llama3Scaling {
            factor: need("factor")? as f32,
            low_freq_factor: need("low_freq_factor")? as f32,
            high_freq_factor: need("high_freq_factor")? as f32,
            original_context: need("original_max_position_embeddings")? as f32,
        })),
        Some("yarn") => {
            let context = number(config, "max_position_embeddings")?;
            let original = number(s, "original_max_position_embeddings")?.or(context);
            let original = original
                .ok_or_else(|| ModelError::MissingKey { key: "max_position_embeddings".to_owned() })?;
            let factor = match (number(s, "factor")?, context) {
                (Some(factor), _) => factor,
                (None, Some(context)) => context / original,
                (None, None) => need("factor")?,
            };
            let magnitudes = [number(s, "mscale")?, number(s, "mscale_all_dim")?];
            let attention_factor = match (number(s, "attention_factor")?, magnitudes) {
                (Some(given), _) => given as f32,
                (None, [Some(own), Some(all)]) if own != 0.0 && all != 0.0 => {
                    YarnScaling::magnitude(factor, own) / YarnScaling::magnitude(factor, all)
                }
                _ => YarnScaling::magnitude(factor, 1.0),
            };
            Some(RopeScaling::Yarn(YarnScaling {
                factor: factor as f32,
                original_context: original as f32,
                beta_fast: number(s, "beta_fast")?.unwrap_or(32.0) as f32,
                beta_slow: number(s, "beta_slow")?.unwrap_or(1.0) as f32,
                truncate: s.get("truncate").and_then(Value::as_bool).unwrap_or(true),
                attention_factor,
            }))
        }
        Some(other) => {
            return Err(bad("rope_scaling.rope_type", other, "default, linear, llama3 and yarn are known"));
        }
    })
}

struct Quantization {
    /// Epsilon of the norms inside projections, where there are some.
    projection_norms: Option<f32>,
    masters: Masters,
    scale_meaning: ScaleMeaning,
    dense_modules: Vec<String>,
}

impl Quantization {
    /// Transformers' defaults: `linear_class` "bitlinear", `quantization_mode` "offline".
    fn read(config: &Value, arch: &Architecture) -> Result<Self, ModelError> {
        let Some(q) = config.get("quantization_config").filter(|q| q.is_object()) else {
            let masters = if arch.ternary { Masters::Online } else { Masters::Dense };
            let (projection_norms, dense_modules) = (None, Vec::new());
            return Ok(Self {
                projection_norms,
                masters,
                scale_meaning: ScaleMeaning::Divisor,
                dense_modules,
            });
        };
        if let Some(method) = text(q.get("quant_method")).filter(|m| *m != "bitnet") {
            return Err(bad("quantization_config.quant_method", method, "bitnet is known"));
        }
        if q.get("hadamard").and_then(Value::as_bool) == Some(true) {
            return Err(bad(
                "quantization_config.hadamard",
                true,
                "models with a Hadamard transform before output and down projections can be trained on, and not run",
            ));
        }
        let projection_norms = match q.get("use_rms_norm").and_then(Value::as_bool) {
            Some(true) => Some(number(q, "rms_norm_eps")?.unwrap_or(1e-6) as f32),
            _ => None,
        };
        let scale_meaning = match text(q.get("linear_class")).unwrap_or("bitlinear") {
            "autobitlinear" => ScaleMeaning::Multiplier,
            "bitlinear" => ScaleMeaning::Divisor,
            other => {
                return Err(bad(
                    "quantization_config.linear_class",
                    other,
                    "autobitlinear and bitlinear are known",
                ));
            }
        };
        let masters = match text(q.get("quantization_mode")).unwrap_or("offline") {
            "online" => Masters::Online,
            "offline" => Masters::Absmean,
            other => {
                return Err(bad(
                    "quantization_config.quantization_mode",
                    other,
                    "online and offline are known",
                ));
            }
        };
        let modules = q.get("modules_to_not_convert").and_then(Value::as_array);
        let dense_modules =
            modules.into_iter().flatten().filter_map(|m| text(Some(m))).map(str::to_owned).collect();
        Ok(Self { projection_norms, masters, scale_meaning, dense_modules })
    }
}

fn text(v: Option<&Value>) -> Option<&str> {
    v.and_then(Value::as_str)
}

/// One id or a list of them.
fn ids(v: Option<&Value>) -> Option<Vec<u32>> {
    let id = |v: &Value| v.as_u64().and_then(|v| u32::try_from(v).ok());
    match v? {
        Value::Array(list) => Some(list.iter().filter_map(id).collect()),
        single => id(single).map(|id| vec![id]),
    }
}

pub(super) fn optional_size(v: &Value, key: &str) -> Result<Option<usize>, ModelError> {
    match v.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(v) => match v.as_u64().and_then(|v| usize::try_from(v).ok()) {
            Some(v) => Ok(Some(v)),
            None => Err(bad(key, v, "it must be a whole number of at least 0")),
        },
    }
}

fn size(v: &Value, key: &str) -> Result<usize, ModelError> {
    optional_size(v, key)?.ok_or_else(|| ModelError::MissingKey { key: key.to_owned() })
}

fn number(v: &Value, key: &str) -> Result<Option<f64>, ModelError> {
    match v.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(v) => v.as_f64().map(Some).ok_or_else(|| bad(key, v, "it must be a number")),
    }
}
