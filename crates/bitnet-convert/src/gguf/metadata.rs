//! What GGUF files say beside their tensors.

use crate::huggingface::aside::{self, Aside};
use crate::plan::{Plan, Source};
use crate::{ConvertError, ConvertOptions, Weights};
use bitnet_core::DenseType;
use bitnet_formats::Header;
use bitnet_formats::gguf::{Metadata, Value, is_layout_key};
use bitnet_model::{ModelConfig, RopeScaling, YarnScaling};
use bitnet_tokenizer::{TokenizerError, Vocabulary};
use serde_json::Value as Json;

/// Settings of `generation_config.json` and their keys.
pub(crate) const SAMPLING: [(&str, &str); 3] = [
    ("temperature", "general.sampling.temp"),
    ("top_k", "general.sampling.top_k"),
    ("top_p", "general.sampling.top_p"),
];

/// Metadata of the output; what has no place there is added to `left_out`.
pub(super) fn write(
    source: &Source<'_>,
    plan: &Plan,
    options: &ConvertOptions,
    left_out: &mut Vec<String>,
) -> Result<Metadata, ConvertError> {
    let mut out = match &source.checkpoint.header {
        Header::Gguf { metadata, .. } => from_gguf(metadata),
        Header::HuggingFace { dir, config, generation_config } => {
            let aside = aside::read(dir)?;
            let mut out = Metadata::default();
            describe(&mut out, source.config, plan.arch.name, &aside);
            sampling(&mut out, generation_config);
            vocabulary(&mut out, source.config, &aside, options.strict, left_out)?;
            // Whoever converts back finds the files as they were.
            keep(&mut out, "config", config);
            keep(&mut out, "generation_config", generation_config);
            keep(&mut out, "tokenizer_config", &aside.tokenizer_config_without_template());
            keep(&mut out, "special_tokens_map", &aside.special_tokens_map);
            left_out.extend(aside.no_place);
            out
        }
    };
    if let Some(origin) = &options.origin
        && ["repo_url", "url"].iter().all(|key| out.get(&format!("general.source.{key}")).is_none())
    {
        set(&mut out, "general.source.repo_url", Value::String(origin.clone()));
    }
    if let Some(number) = options.target.file_type {
        set(&mut out, "general.file_type", Value::U32(number));
    }
    let floats = [DenseType::F32, DenseType::F16, DenseType::BF16];
    if !matches!(options.target.weights, Weights::Dense(d) if floats.contains(&d)) {
        set(&mut out, "general.quantization_version", Value::U32(2));
    }
    Ok(out)
}

/// Another file's metadata, without what is true of its tensors only.
fn from_gguf(metadata: &Metadata) -> Metadata {
    let own = |key: &str| {
        ["general.file_type", "general.quantization_version", "general.alignment"].contains(&key)
            || key.starts_with("split.")
            || is_layout_key(key)
    };
    Metadata(metadata.0.iter().filter(|(key, _)| !own(key)).cloned().collect())
}

fn set(out: &mut Metadata, key: &str, value: Value) {
    out.0.push((key.to_owned(), value));
}

/// The key under which a Hugging Face file is kept.
fn kept_key(file: &str) -> String {
    format!("bitnet.huggingface.{file}")
}

/// A JSON file of the Hugging Face directory that a GGUF file was made of.
pub(crate) fn kept(metadata: &Metadata, file: &str) -> Option<Json> {
    serde_json::from_str(metadata.str(&kept_key(file))?).ok()
}

fn keep(out: &mut Metadata, file: &str, value: &Json) {
    if !value.is_null() {
        set(out, &kept_key(file), Value::String(value.to_string()));
    }
}

/// Name, licence and hyper-parameters.
fn describe(out: &mut Metadata, c: &ModelConfig, arch: &str, aside: &Aside) {
    set(out, "general.architecture", Value::String(arch.to_owned()));
    set(out, "general.type", Value::String("model".to_owned()));
    if let Some(name) = &c.name {
        set(out, "general.name", Value::String(name.clone()));
    }
    for (field, key) in [
        ("license", "general.license"),
        ("license_name", "general.license.name"),
        ("license_link", "general.license.link"),
    ] {
        if let Some(text) = aside.front_matter(field) {
            set(out, key, Value::String(text.to_owned()));
        }
    }
    let mut number = |key: &str, n: usize| {
        // Sizes of a checked configuration are below 2^24.
        set(out, &format!("{arch}.{key}"), Value::U32(u32::try_from(n).unwrap_or(u32::MAX)));
    };
    number("vocab_size", c.vocab);
    number("context_length", c.context);
    number("embedding_length", c.hidden);
    number("block_count", c.layers);
    number("feed_forward_length", c.ffn);
    number("rope.dimension_count", c.shape.head_dim);
    number("attention.head_count", c.shape.heads);
    number("attention.head_count_kv", c.shape.kv_heads);
    if let Some(local) = &c.local {
        number("attention.sliding_window", local.window);
    }
    if c.shape.heads * c.shape.head_dim != c.hidden {
        number("attention.key_length", c.shape.head_dim);
        number("attention.value_length", c.shape.head_dim);
    }
    set(out, &format!("{arch}.attention.layer_norm_rms_epsilon"), Value::F32(c.eps));
    set(out, &format!("{arch}.rope.freq_base"), Value::F32(c.rope.theta as f32));
    let mut scaling = |key: &str, value: Value| set(out, &format!("{arch}.rope.scaling.{key}"), value);
    match c.rope.scaling {
        // Its factors are a tensor.
        None | Some(RopeScaling::Llama3(_)) => {}
        Some(RopeScaling::Linear(factor)) => {
            scaling("type", Value::String("linear".to_owned()));
            scaling("factor", Value::F32(factor));
        }
        Some(RopeScaling::Yarn(yarn)) => {
            scaling("type", Value::String("yarn".to_owned()));
            scaling("factor", Value::F32(yarn.factor));
            scaling("original_context_length", Value::U32(yarn.original_context as u32));
            scaling("yarn_beta_fast", Value::F32(yarn.beta_fast));
            scaling("yarn_beta_slow", Value::F32(yarn.beta_slow));
            // Readers multiply with the usual one.
            let usual = YarnScaling::magnitude(f64::from(yarn.factor), 1.0);
            if yarn.attention_factor != usual {
                scaling("attn_factor", Value::F32(yarn.attention_factor / usual));
            }
        }
    }
}

fn sampling(out: &mut Metadata, generation: &Json) {
    for (setting, key) in SAMPLING {
        match generation.get(setting) {
            Some(Json::Number(n)) if setting == "top_k" => {
                if let Some(n) = n.as_i64().and_then(|n| i32::try_from(n).ok()) {
                    set(out, key, Value::I32(n));
                }
            }
            Some(Json::Number(n)) => {
                if let Some(n) = n.as_f64() {
                    set(out, key, Value::F32(n as f32));
                }
            }
            _ => {}
        }
    }
}

fn vocabulary(
    out: &mut Metadata,
    config: &ModelConfig,
    aside: &Aside,
    strict: bool,
    left_out: &mut Vec<String>,
) -> Result<(), ConvertError> {
    let found = match Vocabulary::from_dir(&aside.dir) {
        Ok(Some(found)) => found,
        Ok(None) => {
            left_out.push("the tokenizer: there is none beside the model".to_owned());
            return Ok(());
        }
        // The model runs without, on ids.
        Err(e @ TokenizerError::NoPlace { .. }) if !strict => {
            left_out.push(format!("the tokenizer: {e}"));
            return Ok(());
        }
        Err(e) => return Err(e.into()),
    };
    left_out.extend(found.left_out);
    let mut v = found.vocabulary;
    v.fill(config.vocab);
    let mut key = |name: &str, value| set(out, &format!("tokenizer.ggml.{name}"), value);
    key("model", Value::String(v.model.clone()));
    if let Some(pre) = &v.pre {
        key("pre", Value::String(pre.clone()));
    }
    key("tokens", Value::Strings(v.tokens.iter().collect()));
    key("token_type", Value::Array(v.token_types.into_iter().map(Value::I32).collect()));
    if !v.scores.is_empty() {
        key("scores", Value::Array(v.scores.into_iter().map(Value::F32).collect()));
    }
    if v.model == "gpt2" {
        key("merges", Value::Strings(v.merges.iter().collect()));
    }
    // The configuration's ends of text come first: the tokenizer's own end is often another one.
    let mut ends: Vec<u32> = v.eos.into_iter().collect();
    for id in &config.eos {
        if !ends.contains(id) {
            ends.push(*id);
        }
    }
    let mut ends = ends.into_iter();
    for (name, id) in [
        ("bos_token_id", v.bos.or(config.bos)),
        ("eos_token_id", ends.next()),
        ("eot_token_id", ends.next()),
        ("eom_token_id", ends.next()),
        ("unknown_token_id", v.unk),
        ("padding_token_id", v.pad),
    ] {
        if let Some(id) = id {
            key(name, Value::U32(id));
        }
    }
    left_out.extend(ends.map(|id| format!("end of text {id}: GGUF has places for three")));
    for (name, flag) in
        [("add_bos_token", v.add_bos), ("add_eos_token", v.add_eos), ("add_space_prefix", v.add_space_prefix)]
    {
        if let Some(flag) = flag {
            key(name, Value::Bool(flag));
        }
    }
    if let Some(template) = aside.template() {
        set(out, "tokenizer.chat_template", Value::String(template));
    }
    Ok(())
}
