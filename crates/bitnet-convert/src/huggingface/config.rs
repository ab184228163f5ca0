//! `config.json` of the output.

use crate::gguf::kept;
use crate::plan::{Plan, Source};
use crate::{Container, ConvertError, ConvertOptions, Weights};
use bitnet_core::{Activation, DenseType};
use bitnet_formats::{Header, TensorType};
use bitnet_model::{ModelConfig, RopeScaling};
use serde_json::{Map, Value, json};

/// The input's `config.json`, or one made of GGUF metadata, with a description of how weights are stored.
pub(super) fn write(
    source: &Source<'_>,
    plan: &Plan,
    options: &ConvertOptions,
) -> Result<Value, ConvertError> {
    let mut config = match &source.checkpoint.header {
        Header::HuggingFace { config: Value::Object(map), .. } => map.clone(),
        Header::HuggingFace { .. } => Map::new(),
        Header::Gguf { metadata, .. } => from_gguf(source, plan, kept(metadata, "config"))?,
    };
    let quantization = quantization(source, plan, options, config.get("quantization_config"));
    match quantization {
        Some(q) => config.insert("quantization_config".to_owned(), q),
        None => config.shift_remove("quantization_config"),
    };
    if let Weights::Dense(dtype) = options.target.weights {
        let key = if config.contains_key("dtype") { "dtype" } else { "torch_dtype" };
        config.insert(key.to_owned(), torch_name(dtype).into());
    }
    Ok(Value::Object(config))
}

fn torch_name(dtype: DenseType) -> &'static str {
    match dtype {
        DenseType::BF16 => "bfloat16",
        DenseType::F16 => "float16",
        _ => "float32",
    }
}

/// How weights are stored; `None` where all of them are plain floats.
fn quantization(
    source: &Source<'_>,
    plan: &Plan,
    options: &ConvertOptions,
    before: Option<&Value>,
) -> Option<Value> {
    let projections = source.tensors.slots().iter().filter(|s| s.role.is_projection()).count();
    if plan.dense.len() == projections {
        return None;
    }
    let mut q = before.and_then(Value::as_object).cloned().unwrap_or_default();
    let class = match options.target.weights {
        Weights::BitLinear => "bitlinear",
        // Master weights stay what they were made for.
        _ if plan.online => q.get("linear_class").and_then(Value::as_str).unwrap_or("autobitlinear"),
        _ => "autobitlinear",
    };
    let class = class.to_owned();
    q.insert("quant_method".to_owned(), "bitnet".into());
    q.insert("linear_class".to_owned(), class.into());
    q.insert("quantization_mode".to_owned(), if plan.online { "online" } else { "offline" }.into());
    // mlx-lm packs every linear layer that is not listed, the head too.
    if !plan.dense.is_empty() || options.target.container == Container::Mlx {
        let modules = plan.dense.iter().map(|slot| {
            let name = plan.arch.tensor_name(slot.role, slot.layer);
            name.strip_suffix(".weight").map_or(name.clone(), str::to_owned)
        });
        let mut modules: Vec<String> = modules.collect();
        if source.tensors.own_head() {
            modules.push("lm_head".to_owned());
        }
        q.insert("modules_to_not_convert".to_owned(), modules.into());
    }
    Some(Value::Object(q))
}

/// What GGUF metadata say, over the `config.json` that a conversion kept there.
fn from_gguf(
    source: &Source<'_>,
    plan: &Plan,
    kept: Option<Value>,
) -> Result<Map<String, Value>, ConvertError> {
    let c = source.config;
    let mut config = match kept {
        Some(Value::Object(map)) => map,
        _ => Map::new(),
    };
    let keeps_scaling =
        ["rope_scaling", "rope_parameters"].iter().any(|k| config.get(*k).is_some_and(Value::is_object));
    if c.rope.factors.is_some() && !keeps_scaling {
        return Err(ConvertError::NoPlace {
            container: Container::HuggingFace.name(),
            what: "rotary frequencies are divided by the factors of rope_freqs.weight".to_owned(),
        });
    }
    if let (Some(scaling), false) = (c.rope.scaling, keeps_scaling) {
        config.insert("rope_scaling".to_owned(), rope_scaling(scaling));
    }
    let dtype = source.tensors.slots().iter().find_map(|s| {
        let piece = plan.pieces.iter().find(|p| p.name == plan.arch.tensor_name(s.role, s.layer))?;
        match piece.ttype {
            TensorType::Dense(dtype) if s.role.is_norm() => Some(torch_name(dtype)),
            _ => None,
        }
    });
    let mut default = |key: &str, value: Value| {
        config.entry(key.to_owned()).or_insert(value);
    };
    default("architectures", json!([plan.arch.name]));
    default("model_type", plan.arch.model_type.into());
    if let Some(name) = &c.name {
        default("_name_or_path", name.clone().into());
    }
    if let Some(dtype) = dtype {
        default("torch_dtype", dtype.into());
    }
    if let Some(bos) = c.bos {
        default("bos_token_id", bos.into());
    }
    match c.eos[..] {
        [] => {}
        [one] => default("eos_token_id", one.into()),
        _ => default("eos_token_id", c.eos.clone().into()),
    }
    // What the model is computed from is the file's, whatever was kept.
    for (key, value) in computed(c, source.tensors.own_head()) {
        // Transformers computes it where it is not given.
        if key == "head_dim" && !config.contains_key(key) && c.hidden == c.shape.heads * c.shape.head_dim {
            continue;
        }
        let rope = config.get_mut("rope_parameters").and_then(Value::as_object_mut);
        match (key, rope) {
            ("rope_theta", Some(rope)) if rope.contains_key("rope_theta") => {
                rope.insert(key.to_owned(), value);
            }
            _ => {
                config.insert(key.to_owned(), value);
            }
        }
    }
    Ok(config)
}

fn rope_scaling(scaling: RopeScaling) -> Value {
    match scaling {
        RopeScaling::Linear(factor) => json!({"rope_type": "linear", "factor": factor}),
        RopeScaling::Llama3(s) => json!({"rope_type": "llama3", "factor": s.factor,
            "low_freq_factor": s.low_freq_factor, "high_freq_factor": s.high_freq_factor,
            "original_max_position_embeddings": s.original_context as u64}),
        RopeScaling::Yarn(s) => json!({"rope_type": "yarn", "factor": s.factor, "beta_fast": s.beta_fast,
            "beta_slow": s.beta_slow, "attention_factor": s.attention_factor, "truncate": s.truncate,
            "original_max_position_embeddings": s.original_context as u64}),
    }
}

fn computed(c: &ModelConfig, own_head: bool) -> Vec<(&'static str, Value)> {
    vec![
        ("hidden_size", c.hidden.into()),
        ("intermediate_size", c.ffn.into()),
        ("num_hidden_layers", c.layers.into()),
        ("num_attention_heads", c.shape.heads.into()),
        ("num_key_value_heads", c.shape.kv_heads.into()),
        ("head_dim", c.shape.head_dim.into()),
        ("vocab_size", c.vocab.into()),
        ("max_position_embeddings", c.context.into()),
        ("rope_theta", c.rope.theta.into()),
        // The shortest number that is this f32.
        ("rms_norm_eps", c.eps.to_string().parse::<f64>().unwrap_or(f64::from(c.eps)).into()),
        (
            "hidden_act",
            match c.activation {
                Activation::Relu2 => "relu2".into(),
                Activation::Silu => "silu".into(),
                Activation::Gelu => "gelu_pytorch_tanh".into(),
            },
        ),
        ("tie_word_embeddings", (!own_head).into()),
    ]
}
