//! The tokenizer that belongs to a checkpoint.

use bitnet_formats::gguf::{Metadata, Value};
use bitnet_formats::{Checkpoint, Header};
use bitnet_tokenizer::{ChatTemplate, GgufVocab, SpecialTokens, Tokenizer, TokenizerError, Vocabulary};

/// The tokenizer and chat template of a checkpoint; `None` where there is none.
pub fn tokenizer(checkpoint: &Checkpoint) -> Result<Option<Tokenizer>, TokenizerError> {
    match &checkpoint.header {
        Header::HuggingFace { dir, .. } => Tokenizer::from_dir(dir),
        Header::Gguf { metadata, .. } => from_metadata(metadata),
    }
}

fn from_metadata(metadata: &Metadata) -> Result<Option<Tokenizer>, TokenizerError> {
    let Some(v) = stored(metadata)? else { return Ok(None) };
    let mut tokenizer = Tokenizer::from_gguf(&v)?;
    if let Some(source) = metadata.str("tokenizer.chat_template") {
        let text = |id| v.token(id).map(str::to_owned);
        let special =
            SpecialTokens { bos: text(v.bos), eos: text(v.eos), unk: text(v.unk), pad: text(v.pad) };
        tokenizer = tokenizer.with_template(ChatTemplate::new(source, special));
    }
    Ok(Some(tokenizer))
}

/// The vocabulary in the metadata of a GGUF file; `None` where there is none.
pub fn vocabulary(metadata: &Metadata) -> Result<Option<Vocabulary>, TokenizerError> {
    Ok(stored(metadata)?.map(|v| v.to_vocabulary()))
}

/// The same where it lies.
fn stored(metadata: &Metadata) -> Result<Option<GgufVocab<'_>>, TokenizerError> {
    let key = |name: &str| format!("tokenizer.ggml.{name}");
    let Some(model) = metadata.str(&key("model")).filter(|m| *m != "no_vocab" && *m != "none") else {
        return Ok(None);
    };
    let array = |name: &str| metadata.get(&key(name)).and_then(Value::as_array).unwrap_or_default();
    let strings = |name: &str| match metadata.get(&key(name)) {
        Some(Value::Strings(list)) => Ok(list.iter().collect()),
        Some(Value::Array(_)) => Err(TokenizerError::Invalid {
            what: "the vocabulary in the GGUF file".to_owned(),
            why: format!("{} holds something else than strings", key(name)),
        }),
        _ => Ok(Vec::new()),
    };
    let id = |name: &str| metadata.u32(&key(&format!("{name}_token_id")));
    Ok(Some(GgufVocab {
        model,
        pre: metadata.str(&key("pre")),
        tokens: strings("tokens")?,
        token_types: array("token_type")
            .iter()
            .map(|v| if let Value::I32(t) = v { *t } else { v.as_u64().unwrap_or(1) as i32 })
            .collect(),
        scores: array("scores").iter().map(|v| v.as_f64().unwrap_or(0.0) as f32).collect(),
        merges: strings("merges")?,
        bos: id("bos"),
        eos: id("eos"),
        unk: id("unknown"),
        pad: id("padding"),
        add_bos: metadata.bool(&key("add_bos_token")),
        add_eos: metadata.bool(&key("add_eos_token")),
        add_space_prefix: metadata.bool(&key("add_space_prefix")),
    }))
}
