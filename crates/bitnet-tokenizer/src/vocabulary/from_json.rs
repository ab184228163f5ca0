//! `tokenizer.json` as a vocabulary. Ids must come out the same, so whatever cannot be expressed is an error, and what does
//! not decide ids is listed.

use super::{FoundVocabulary, PieceKind, Vocabulary, filler};
use crate::TokenizerError;
use crate::gguf::{GPT2, Pre};
use crate::sentencepiece::{Piece, cuts};
use serde_json::Value;
use std::collections::HashMap;

/// Tokens that a file may have; the largest vocabularies have a few hundred thousand.
const MAX_TOKENS: usize = 1 << 22;

fn invalid(why: impl Into<String>) -> TokenizerError {
    TokenizerError::Invalid { what: "tokenizer.json".to_owned(), why: why.into() }
}

fn cannot(what: &'static str, value: &Value) -> TokenizerError {
    let mut value = value.to_string();
    if value.len() > 200 {
        value.truncate((0..=200).rev().find(|at| value.is_char_boundary(*at)).unwrap_or(0));
        value.push_str("...");
    }
    TokenizerError::NoPlace { what, value }
}

fn kind(v: &Value) -> &str {
    v.get("type").and_then(Value::as_str).unwrap_or_default()
}

/// The members of a `Sequence`, or the one step that is there.
fn steps<'a>(v: Option<&'a Value>, list: &str) -> Vec<&'a Value> {
    match v {
        None | Some(Value::Null) => Vec::new(),
        Some(v) if kind(v) == "Sequence" => {
            v.get(list).and_then(Value::as_array).map(|a| a.iter().collect()).unwrap_or_default()
        }
        Some(v) => vec![v],
    }
}

fn flag(v: &Value, key: &str) -> bool {
    v.get(key).and_then(Value::as_bool).unwrap_or(false)
}

pub(super) fn read(json: &[u8]) -> Result<FoundVocabulary, TokenizerError> {
    let file: Value = serde_json::from_slice(json).map_err(|e| invalid(e.to_string()))?;
    let model = file.get("model").filter(|m| m.is_object()).ok_or_else(|| invalid("it has no model"))?;
    if model.get("type").is_some() && kind(model) != "BPE" {
        return Err(cannot("a model of this type", &model["type"]));
    }
    let mut left_out = Vec::new();
    let mut v = tokens(&file, model, &mut left_out)?;
    let merges = merges(model)?;
    let pre = steps(file.get("pre_tokenizer"), "pretokenizers");
    if pre.iter().any(|s| kind(s) == "ByteLevel") {
        v.model = "gpt2".to_owned();
        v.pre = Some(word_rule(&file, model, &pre)?);
        v.merges = merges.into_iter().map(|(a, b)| format!("{a} {b}")).collect();
    } else {
        sentencepiece(&file, model, &pre, &merges, &mut v)?;
    }
    surround(&file, &mut v);
    for key in ["truncation", "padding"] {
        if file.get(key).is_some_and(|v| !v.is_null()) {
            left_out.push(format!("{key} of tokenizer.json"));
        }
    }
    Ok(FoundVocabulary { vocabulary: v, left_out })
}

/// Tokens by id with their kinds.
fn tokens(file: &Value, model: &Value, left_out: &mut Vec<String>) -> Result<Vocabulary, TokenizerError> {
    let vocab =
        model.get("vocab").and_then(Value::as_object).ok_or_else(|| invalid("its model has no vocab"))?;
    let added = file.get("added_tokens").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let id = |v: Option<&Value>| {
        let id = v.and_then(Value::as_u64).and_then(|id| usize::try_from(id).ok());
        id.filter(|id| *id < MAX_TOKENS).ok_or_else(|| invalid("a token has no sensible id"))
    };
    let mut placed: Vec<(usize, &str, i32)> = Vec::with_capacity(vocab.len() + added.len());
    let unk = model.get("unk_token").and_then(Value::as_str);
    let bytes = flag(model, "byte_fallback");
    for (text, number) in vocab {
        let is_byte = bytes && text.len() == 6 && text.starts_with("<0x") && text.ends_with('>');
        let kind = if is_byte {
            6
        } else if Some(text.as_str()) == unk {
            2
        } else {
            1
        };
        placed.push((id(Some(number))?, text, kind));
    }
    for token in added {
        let text = token
            .get("content")
            .and_then(Value::as_str)
            .ok_or_else(|| invalid("an added token has no text"))?;
        let special = flag(token, "special");
        let kind = if Some(text) == unk {
            2
        } else if special {
            3
        } else {
            4
        };
        placed.push((id(token.get("id"))?, text, kind));
        let flags: Vec<&str> =
            ["single_word", "lstrip", "rstrip"].into_iter().filter(|f| flag(token, f)).collect();
        if !flags.is_empty() {
            left_out.push(format!("{} of token {text:?}", flags.join(", ")));
        }
    }
    let size = placed.iter().map(|(id, ..)| id + 1).max().unwrap_or(0);
    let mut v = Vocabulary {
        tokens: (0..size).map(filler).collect(),
        token_types: vec![5; size],
        unk: None,
        ..Vocabulary::default()
    };
    for (id, text, kind) in placed {
        (v.tokens[id], v.token_types[id]) = (text.to_owned(), kind);
        if Some(text) == unk {
            v.unk = u32::try_from(id).ok();
        }
    }
    Ok(v)
}

/// Merges are pairs, or strings with a space between.
fn merges(model: &Value) -> Result<Vec<(String, String)>, TokenizerError> {
    let list = model.get("merges").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let pair = |m: &Value| -> Option<(String, String)> {
        match m {
            Value::String(s) => s.split_once(' ').map(|(a, b)| (a.to_owned(), b.to_owned())),
            Value::Array(two) => match &two[..] {
                [a, b] => Some((a.as_str()?.to_owned(), b.as_str()?.to_owned())),
                _ => None,
            },
            _ => None,
        }
    };
    list.iter().map(|m| pair(m).ok_or_else(|| invalid("a merge is not two tokens"))).collect()
}

/// GGUF's name for the way a byte-level BPE cuts text.
fn word_rule(file: &Value, model: &Value, pre: &[&Value]) -> Result<String, TokenizerError> {
    let unknown = || cannot("this pre-tokenizer", file.get("pre_tokenizer").unwrap_or(&Value::Null));
    let pattern = match pre {
        [bytes] if flag(bytes, "use_regex") || bytes.get("use_regex").is_none() => GPT2,
        [split, bytes] if kind(split) == "Split" && !flag(bytes, "use_regex") => {
            let isolated = split.get("behavior").and_then(Value::as_str) == Some("Isolated");
            let pattern = split.get("pattern").and_then(|p| p.get("Regex")).and_then(Value::as_str);
            pattern.filter(|_| isolated && !flag(split, "invert")).ok_or_else(unknown)?
        }
        _ => return Err(unknown()),
    };
    if pre.iter().any(|s| kind(s) == "ByteLevel" && flag(s, "add_prefix_space")) {
        return Err(unknown());
    }
    let normalizers = steps(file.get("normalizer"), "normalizers");
    let nfc = match &normalizers[..] {
        [] => false,
        [n] if kind(n) == "NFC" => true,
        _ => return Err(cannot("this normalizer", &file["normalizer"])),
    };
    let rule = Pre::find(pattern, flag(model, "ignore_merges"), nfc).ok_or_else(unknown)?;
    Ok(rule.to_owned())
}

/// BPE over pieces with `▁` for spaces. GGUF has scores in place of merges: the best merge of a piece decides its score, and
/// the merges that follow from the scores must be those of the file.
fn sentencepiece(
    file: &Value,
    model: &Value,
    pre: &[&Value],
    merges: &[(String, String)],
    v: &mut Vocabulary,
) -> Result<(), TokenizerError> {
    let (mut prefix, mut spaces) = (false, false);
    for step in steps(file.get("normalizer"), "normalizers") {
        match kind(step) {
            "Prepend" if step["prepend"] == "\u{2581}" => prefix = true,
            "Replace" if step["content"] == "\u{2581}" && step["pattern"]["String"] == " " => spaces = true,
            _ => return Err(cannot("this normalizer", step)),
        }
    }
    for step in pre {
        // The newer way to say the same.
        let scheme = step.get("prepend_scheme").and_then(Value::as_str);
        match (kind(step), scheme) {
            ("Metaspace", Some("always" | "first")) if !flag(step, "split") => {
                (prefix, spaces) = (true, true)
            }
            ("Metaspace", Some("never")) if !flag(step, "split") => spaces = true,
            _ => return Err(cannot("this pre-tokenizer", step)),
        }
    }
    if !spaces || !flag(model, "byte_fallback") {
        return Err(cannot("a BPE that is neither byte-level nor of SentencePiece's kind", &Value::Null));
    }
    v.model = "llama".to_owned();
    v.add_space_prefix = Some(prefix);
    let mut rank: HashMap<String, usize> = HashMap::with_capacity(merges.len());
    for (a, b) in merges {
        let next = rank.len();
        rank.entry(format!("{a}{b}")).or_insert(next);
    }
    v.scores = v.tokens.iter().map(|t| rank.get(t).map_or(-1e6, |r| -(*r as f32))).collect();
    let pieces: Vec<Piece> = v
        .tokens
        .iter()
        .zip(&v.scores)
        .zip(&v.token_types)
        .map(|((text, score), kind)| Piece {
            text: text.clone(),
            score: *score,
            kind: PieceKind::from_number((*kind).into()),
        })
        .collect();
    let follow = cuts(&pieces)?;
    let same =
        follow.len() == merges.len() && follow.iter().zip(merges).all(|((a, b), m)| *a == m.0 && *b == m.1);
    match same {
        true => Ok(()),
        false => Err(cannot("merges in an order that scores of pieces cannot express", &Value::Null)),
    }
}

/// What the post-processor puts around a text.
fn surround(file: &Value, v: &mut Vocabulary) {
    for step in steps(file.get("post_processor"), "processors") {
        let Some(single) = step.get("single").and_then(Value::as_array) else { continue };
        let token = |part: Option<&Value>| {
            let text = part?.get("SpecialToken")?.get("id")?.as_str()?;
            let id = v.tokens.iter().position(|t| t == text)?;
            u32::try_from(id).ok()
        };
        let (first, last) = (token(single.first()), token(single.last()));
        (v.add_bos, v.add_eos) = (Some(first.is_some()), Some(last.is_some() && single.len() > 1));
        v.bos = first.or(v.bos);
        v.eos = last.filter(|_| single.len() > 1).or(v.eos);
    }
}
