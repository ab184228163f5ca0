//! `config.json` and `generation_config.json`.

use super::{Llama3Scaling, Masters, ModelConfig, Rope, RopeScaling, ScaleMeaning, YarnScaling, bad};
use crate::{Architecture, ModelError, Origin};
use bitnet_core::{Activation, AttentionShape};
use bitnet_formats::Checkpoint;
use serde_json::Value;

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
    let quantization = Quantization::read(config, arch)?;
    Ok(ModelConfig {
        arch,
        name: text(config.get("_name_or_path")).filter(|n| !n.is_empty()).map(str::to_owned),
        hidden,
        ffn: size(config, "intermediate_size")?,
        layers: size(config, "num_hidden_layers")?,
        shape: AttentionShape {
            heads,
            kv_heads: optional_size(config, "num_key_value_heads")?.unwrap_or(heads),
            head_dim,
        },
        vocab: vocabulary(config, arch, checkpoint)?,
        eps: number(config, "rms_norm_eps")?.unwrap_or(1e-6) as f32,
        context: optional_size(config, "max_position_embeddings")?.unwrap_or(2048),
        rope: rope(config, arch)?,
        activation: activation(config)?.unwrap_or(arch.activation),
        tied: config.get("tie_word_embeddings").and_then(Value::as_bool),
        bos: ids(generation.get("bos_token_id"))
            .or_else(|| ids(config.get("bos_token_id")))
            .and_then(|v| v.first().copied()),
        eos: ids(generation.get("eos_token_id"))
            .or_else(|| ids(config.get("eos_token_id")))
            .unwrap_or_default(),
        masters: quantization.masters,
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
    match text(config.get("hidden_act")) {
        None => Ok(None),
        Some("relu2") => Ok(Some(Activation::Relu2)),
        Some("silu" | "swish") => Ok(Some(Activation::Silu)),
        Some(other) => Err(bad("hidden_act", other, "relu2 and silu are known")),
    }
}

fn rope(config: &Value, arch: &Architecture) -> Result<Rope, ModelError> {
    // Newer files have all of it in `rope_parameters`, older ones the theta beside and the scaling in `rope_scaling`.
    let parameters = config.get("rope_parameters").filter(|v| v.is_object());
    let scaling = parameters.or_else(|| config.get("rope_scaling").filter(|v| v.is_object()));
    let theta = match parameters.map(|p| number(p, "rope_theta")).transpose()?.flatten() {
        Some(theta) => theta,
        None => number(config, "rope_theta")?.unwrap_or(if arch.name == "BitNetForCausalLM" {
            500_000.0
        } else {
            10_000.0
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
    masters: Masters,
    scale_meaning: ScaleMeaning,
    dense_modules: Vec<String>,
}

impl Quantization {
    /// Transformers' defaults: `linear_class` "bitlinear", `quantization_mode` "offline".
    fn read(config: &Value, arch: &Architecture) -> Result<Self, ModelError> {
        let Some(q) = config.get("quantization_config").filter(|q| q.is_object()) else {
            let masters = if arch.ternary { Masters::Online } else { Masters::Dense };
            return Ok(Self { masters, scale_meaning: ScaleMeaning::Divisor, dense_modules: Vec::new() });
        };
        if let Some(method) = text(q.get("quant_method")).filter(|m| *m != "bitnet") {
            return Err(bad("quantization_config.quant_method", method, "bitnet is known"));
        }
        if q.get("use_rms_norm").and_then(Value::as_bool) == Some(true) {
            return Err(bad(
                "quantization_config.use_rms_norm",
                true,
                "norms inside projections are not supported",
            ));
        }
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
        Ok(Self { masters, scale_meaning, dense_modules })
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

fn optional_size(v: &Value, key: &str) -> Result<Option<usize>, ModelError> {
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
