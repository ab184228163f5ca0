//! What a vocabulary from a stranger may ask for. The `tokenizers` crate believes its files; a few bytes in one of them can
//! make it fill the memory, so they are looked at before.

use serde::Deserialize;
use serde_json::{Map, Value};

/// How much larger than the text everything that replaces, prepends or repeats may make it together. Real vocabularies stay
/// below 100.
const MAX_GROWTH: usize = 4096;
/// Bytes that a normalization may put for one character; Unicode's longest has 33.
const MAX_REPLACEMENT: usize = 256;

/// The parts of a `tokenizer.json` that can grow a text.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Parts {
    normalizer: Value,
    pre_tokenizer: Value,
    post_processor: Value,
    decoder: Value,
}

/// Refuses a `tokenizer.json` whose encodings or decodings would be far larger than what goes in.
pub(crate) fn check(json: &[u8]) -> Result<(), String> {
    // A key that stands there twice is an error here, so the library reads the same parts.
    let parts: Parts = serde_json::from_slice(json).map_err(|e| e.to_string())?;
    for (name, part) in [
        ("normalizer", &parts.normalizer),
        ("pre_tokenizer", &parts.pre_tokenizer),
        ("post_processor", &parts.post_processor),
        ("decoder", &parts.decoder),
    ] {
        if growth(part)? > MAX_GROWTH {
            return Err(format!("its {name} would make a text more than {MAX_GROWTH} times as long"));
        }
    }
    Ok(())
}

/// An upper bound on output bytes per input byte: the product over everything inside.
fn growth(part: &Value) -> Result<usize, String> {
    let mut factor = 1usize;
    match part {
        Value::Array(list) => {
            for inner in list {
                factor = factor.saturating_mul(growth(inner)?);
            }
        }
        Value::Object(object) => {
            let text = |key: &str| object.get(key).and_then(Value::as_str);
            if let Some(content) = text("content")
                && let Some(pattern) = object.get("pattern")
            {
                factor = replacing(pattern, content);
            }
            if let Some(prepended) = text("prepend") {
                factor = factor.saturating_mul(prepended.len().max(1));
            }
            if let Some(charsmap) = text("precompiled_charsmap") {
                let bytes = base64::decode(charsmap).map_err(|e| format!("precompiled_charsmap: {e}"))?;
                check_charsmap(&bytes)?;
            }
            check_pieces(object)?;
            let pieces = |key: &str| object.get(key).and_then(Value::as_array).map_or(0, Vec::len);
            let ids = object.get("special_tokens").and_then(Value::as_object).into_iter().flatten();
            let ids = ids.filter_map(|(_, t)| t.get("ids")?.as_array().map(Vec::len)).max().unwrap_or(0);
            factor = factor.saturating_mul((pieces("single").max(pieces("pair")) * ids.max(1)).max(1));
            for key in ["normalizers", "pretokenizers", "processors", "decoders"] {
                if let Some(inner) = object.get(key) {
                    factor = factor.saturating_mul(growth(inner)?);
                }
            }
        }
        _ => {}
    }
    Ok(factor)
}

/// Refuses a template of special tokens that names one it does not define, or puts a second text where there is one: the
/// library would panic when it encodes.
fn check_pieces(processor: &Map<String, Value>) -> Result<(), String> {
    let list = |key: &str| processor.get(key).and_then(Value::as_array).into_iter().flatten();
    let id = |piece: &Value, kind: &str| Some(piece.get(kind)?.get("id")?.as_str()?.to_owned());
    for piece in list("single").chain(list("pair")) {
        if let Some(token) = id(piece, "SpecialToken")
            && processor.get("special_tokens").and_then(|t| t.get(&token)).is_none()
        {
            return Err(format!(
                "its post_processor names the special token {token:?}, which it does not define"
            ));
        }
    }
    if list("single").any(|piece| id(piece, "Sequence").is_some_and(|id| id != "A")) {
        return Err("its post_processor puts a second text behind a single one".to_owned());
    }
    Ok(())
}

fn replacing(pattern: &Value, content: &str) -> usize {
    match pattern.get("String").and_then(Value::as_str) {
        Some(old) if !old.is_empty() => content.len().div_ceil(old.len()).max(1),
        // It may match nothing, at every place.
        _ => content.len() + 1,
    }
}

/// Refuses a SentencePiece normalization whose header lies, or that puts long texts for characters. The layout: bytes of a
/// trie (u32), the trie, replacements with a zero byte behind each.
pub(crate) fn check_charsmap(charsmap: &[u8]) -> Result<(), String> {
    let replacements = charsmap
        .split_first_chunk::<4>()
        .and_then(|(len, rest)| rest.get(usize::try_from(u32::from_le_bytes(*len)).ok()?..))
        .ok_or("the precompiled charsmap is cut off")?;
    match replacements.split(|b| *b == 0).map(<[u8]>::len).max() {
        Some(longest) if longest > MAX_REPLACEMENT => Err(format!(
            "the precompiled charsmap puts {longest} bytes for a character; at most {MAX_REPLACEMENT} are taken"
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(part: &str, value: Value) -> Result<(), String> {
        super::check(json!({ (part): value }).to_string().as_bytes())
    }

    #[test]
    fn what_real_vocabularies_do_is_taken() {
        let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
        let llama =
            json!({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, replace]});
        check("normalizer", llama).unwrap();
        check("decoder", json!({"type": "Sequence", "decoders": [replace, {"type": "Fuse"}]})).unwrap();
        let bos = json!({"SpecialToken": {"id": "<s>", "type_id": 0}});
        let template = json!({"type": "TemplateProcessing", "single": [bos, {"Sequence": {"id": "A"}}],
            "special_tokens": {"<s>": {"ids": [1]}}});
        check("post_processor", json!({"type": "Sequence", "processors": [template]})).unwrap();
        check_charsmap(&[&4u32.to_le_bytes()[..], &[0; 4], b"a\0ffi\0"].concat()).unwrap();
    }

    #[test]
    fn what_would_fill_the_memory_is_refused() {
        let double = json!({"type": "Replace", "pattern": {"String": "a"}, "content": "aa"});
        let error = check("normalizer", json!({"normalizers": vec![double.clone(); 40]})).unwrap_err();
        assert!(error.contains("normalizer"), "{error}");
        let nested = json!({"decoders": [{"decoders": vec![double; 40]}]});
        assert!(check("decoder", nested).unwrap_err().contains("decoder"));
        let empty = json!({"pattern": {"Regex": ""}, "content": "x".repeat(5000)});
        assert!(check("normalizer", empty).is_err());
        let copies = json!({"single": vec![json!({"Sequence": {"id": "A", "type_id": 0}}); 5000]});
        assert!(check("post_processor", copies).is_err());
        let ids = json!({"single": vec![json!({}); 100], "special_tokens": {"x": {"ids": vec![1; 100]}}});
        assert!(check("post_processor", ids).is_err());
        // Found by fuzzing: these panicked in the library.
        let single = |piece: Value| check("post_processor", json!({"single": [piece], "special_tokens": {}}));
        assert!(single(json!({"SpecialToken": {"id": "<x>", "type_id": 0}})).unwrap_err().contains("<x>"));
        assert!(single(json!({"Sequence": {"id": "B", "type_id": 0}})).unwrap_err().contains("second"));
        assert!(super::check(br#"{"decoder": null, "decoder": null}"#).is_err());
        assert!(check_charsmap(&u32::MAX.to_le_bytes()).unwrap_err().contains("cut off"));
        assert!(check_charsmap(&[&[0; 4][..], &[b'a'; 300]].concat()).unwrap_err().contains("300"));
        assert!(check("normalizer", json!({"precompiled_charsmap": "/////w=="})).is_err());
    }
}
