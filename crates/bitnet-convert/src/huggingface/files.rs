//! Tokenizer, template, generation defaults and licence of the output.

use super::aside::{copied, small_file};
use super::pretty;
use crate::ConvertError;
use crate::gguf::kept;
use crate::plan::Source;
use bitnet_formats::Header;
use bitnet_formats::gguf::{Metadata, Value as Entry, is_layout_key};
use serde_json::{Map, Value, json};

/// A name and its bytes.
type File = (String, Vec<u8>);

/// The small files of the output; what has no place there is added to `left_out`.
pub(super) fn beside(source: &Source<'_>, left_out: &mut Vec<String>) -> Result<Vec<File>, ConvertError> {
    let mut files = Vec::new();
    match &source.checkpoint.header {
        Header::HuggingFace { dir, .. } => {
            for name in copied() {
                files.extend(small_file(&dir.join(name))?.map(|bytes| (name.to_owned(), bytes)));
            }
        }
        Header::Gguf { metadata, .. } => {
            if let Some(v) = bitnet_inference::vocabulary(metadata)? {
                let text = |id| v.token(id).map(Value::from);
                let before = kept(metadata, "tokenizer_config");
                let told = before.is_some();
                let mut config = object(before);
                let mut default = |key: &str, value: Option<Value>| {
                    if let Some(value) = value {
                        config.entry(key.to_owned()).or_insert(value);
                    }
                };
                default("tokenizer_class", Some("PreTrainedTokenizerFast".into()));
                for (key, id) in
                    [("bos_token", v.bos), ("eos_token", v.eos), ("unk_token", v.unk), ("pad_token", v.pad)]
                {
                    default(key, text(id));
                }
                // A configuration that was kept says by its silence that tokenizer.json says it.
                default("add_bos_token", v.add_bos.filter(|_| !told).map(Value::from));
                default("add_eos_token", v.add_eos.filter(|_| !told).map(Value::from));
                default("chat_template", metadata.str("tokenizer.chat_template").map(Value::from));
                files.push(("tokenizer.json".to_owned(), v.to_json()?));
                if v.unused() > 0 {
                    left_out.push(format!(
                        "the mark of {} tokens as unused: tokenizer.json has none",
                        v.unused()
                    ));
                }
                files.push(("tokenizer_config.json".to_owned(), pretty(&Value::Object(config))));
            }
            if let Some(map) = kept(metadata, "special_tokens_map") {
                files.push(("special_tokens_map.json".to_owned(), pretty(&map)));
            }
            let generation = generation(source, metadata);
            if !generation.is_empty() {
                files.push(("generation_config.json".to_owned(), pretty(&Value::Object(generation))));
            }
            files.extend(readme(metadata));
            left_out.extend(nameless(source, metadata));
        }
    }
    Ok(files)
}

fn object(value: Option<Value>) -> Map<String, Value> {
    match value {
        Some(Value::Object(map)) => map,
        _ => Map::new(),
    }
}

fn generation(source: &Source<'_>, metadata: &Metadata) -> Map<String, Value> {
    if let Some(kept) = kept(metadata, "generation_config") {
        return object(Some(kept));
    }
    let mut out = Map::new();
    let short = |v: &Entry| v.as_f64().map(|v| (v as f32).to_string().parse::<f64>().unwrap_or(v));
    for (setting, key) in crate::gguf::SAMPLING {
        let value = metadata.get(key);
        let number = value.and_then(|v| v.as_u64().map(Value::from).or_else(|| short(v).map(Value::from)));
        out.extend(number.map(|n| (setting.to_owned(), n)));
    }
    if !out.is_empty() || source.config.eos.len() > 1 {
        out.extend(source.config.bos.map(|id| ("bos_token_id".to_owned(), json!(id))));
        out.insert("eos_token_id".to_owned(), json!(source.config.eos));
    }
    out
}

/// A licence is the one thing of `general.*` that a `README.md` has a machine-readable place for.
fn readme(metadata: &Metadata) -> Option<File> {
    let license = metadata.str("general.license")?;
    let mut text = format!("---\nlicense: {license}\n");
    for (key, field) in [("general.license.name", "license_name"), ("general.license.link", "license_link")] {
        if let Some(value) = metadata.str(key) {
            text += &format!("{field}: {value}\n");
        }
    }
    Some(("README.md".to_owned(), (text + "---\n").into_bytes()))
}

/// Keys that say something about the model and have no place in a Hugging Face directory.
fn nameless(source: &Source<'_>, metadata: &Metadata) -> Vec<String> {
    let arch = source.config.arch.name;
    let read = [
        "vocab_size",
        "context_length",
        "embedding_length",
        "block_count",
        "feed_forward_length",
        "rope.dimension_count",
        "rope.freq_base",
        "rope.scaling.type",
        "rope.scaling.factor",
        "rope.scaling.original_context_length",
        "rope.scaling.attn_factor",
        "rope.scaling.yarn_beta_fast",
        "rope.scaling.yarn_beta_slow",
        "attention.head_count",
        "attention.head_count_kv",
        "attention.key_length",
        "attention.value_length",
        "attention.layer_norm_rms_epsilon",
    ];
    let general = [
        "architecture",
        "name",
        "type",
        "file_type",
        "quantization_version",
        "alignment",
        "license",
        "license.name",
        "license.link",
    ];
    let has_place = |key: &str| {
        let of_arch = key.strip_prefix(arch).and_then(|k| k.strip_prefix('.'));
        of_arch.is_some_and(|k| read.contains(&k))
            || key.strip_prefix("general.").is_some_and(|k| general.contains(&k))
            || crate::gguf::SAMPLING.iter().any(|(_, k)| *k == key)
            || key.starts_with("tokenizer.ggml.")
            || key == "tokenizer.chat_template"
            || key.starts_with("bitnet.huggingface.")
            || is_layout_key(key)
    };
    metadata.0.iter().filter(|(key, _)| !has_place(key)).map(|(key, _)| format!("key {key}")).collect()
}
