//! The tokenizer that belongs to a checkpoint.

use bitnet_formats::gguf::{Metadata, Value};
use bitnet_formats::{Checkpoint, Header};
use bitnet_tokenizer::{ChatTemplate, GgufVocab, SpecialTokens, Tokenizer, TokenizerError};

/// The tokenizer and chat template of a checkpoint; `None` where there is none.
pub fn tokenizer(checkpoint: &Checkpoint) -> Result<Option<Tokenizer>, TokenizerError> {
    match &checkpoint.header {
        Header::HuggingFace { dir, .. } => Tokenizer::from_dir(dir),
        Header::Gguf { metadata, .. } => from_metadata(metadata),
    }
}

fn from_metadata(metadata: &Metadata) -> Result<Option<Tokenizer>, TokenizerError> {
    let key = |name: &str| format!("tokenizer.ggml.{name}");
    let Some(model) = metadata.str(&key("model")).filter(|m| *m != "no_vocab" && *m != "none") else {
        return Ok(None);
    };
    let array = |name: &str| metadata.get(&key(name)).and_then(Value::as_array).unwrap_or_default();
    let strings = |name: &str| -> Result<Vec<String>, TokenizerError> {
        let texts = array(name).iter().map(|v| v.as_str().map(str::to_owned)).collect::<Option<_>>();
        texts.ok_or_else(|| TokenizerError::Invalid {
            what: "the vocabulary in the GGUF file".to_owned(),
            why: format!("{} holds something else than strings", key(name)),
        })
    };
    let (tokens, merges) = (strings("tokens")?, strings("merges")?);
    let types: Vec<i32> = array("token_type")
        .iter()
        .map(|v| if let Value::I32(t) = v { *t } else { v.as_u64().unwrap_or(1) as i32 })
        .collect();
    let scores: Vec<f32> = array("scores").iter().map(|v| v.as_f64().unwrap_or(0.0) as f32).collect();
    let id = |name: &str| metadata.u32(&key(&format!("{name}_token_id")));
    let mut tokenizer = Tokenizer::from_gguf(GgufVocab {
        model,
        pre: metadata.str(&key("pre")),
        tokens: &tokens,
        token_types: &types,
        scores: &scores,
        merges: &merges,
        bos: id("bos"),
        eos: id("eos"),
        unk: id("unknown"),
        add_bos: metadata.bool(&key("add_bos_token")),
        add_space_prefix: metadata.bool(&key("add_space_prefix")),
    })?;
    if let Some(source) = metadata.str("tokenizer.chat_template") {
        let text = |id: Option<u32>| id.and_then(|id| tokens.get(id as usize).cloned());
        let special = SpecialTokens {
            bos: text(id("bos")),
            eos: text(id("eos")),
            unk: text(id("unknown")),
            pad: text(id("padding")),
        };
        tokenizer = tokenizer.with_template(ChatTemplate::new(source, special));
    }
    Ok(Some(tokenizer))
}
