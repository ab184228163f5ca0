use super::*;
use crate::{ChatTemplate, DecodeStream, GgufVocab, SpecialTokens};
use serde_json::Value;
use std::path::PathBuf;
use std::sync::Arc;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures")
}

fn json(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(fixtures().join(name)).unwrap()).unwrap()
}

fn fixture() -> Tokenizer {
    Tokenizer::from_dir(&fixtures().join("bitnet-packed")).unwrap().unwrap()
}

fn ids(v: &Value) -> Vec<u32> {
    serde_json::from_value(v.clone()).unwrap()
}

#[test]
fn prompts_of_the_reference_have_their_ids() {
    for model in ["bitnet-online", "bitnet-packed", "bitnet-packed-k256", "llama-packed"] {
        let tokenizer = Tokenizer::from_dir(&fixtures().join(model)).unwrap().unwrap();
        let reference = json(&format!("{model}/reference.json"));
        for prompt in reference["prompts"].as_array().unwrap() {
            if let Some(text) = prompt["text"].as_str() {
                assert_eq!(tokenizer.encode(text, true).unwrap(), ids(&prompt["ids"]), "{model} {text:?}");
            }
        }
    }
}

#[test]
fn chats_are_rendered_and_encoded_as_in_the_reference() {
    let (cases, tokenizer) = (json("chat_cases.json"), fixture());
    let tokens = |case: &Value| match case["tokenizer"].as_str() {
        Some("bpe512") => SpecialTokens {
            bos: Some("<|begin_of_text|>".into()),
            eos: Some("<|end_of_text|>".into()),
            ..SpecialTokens::default()
        },
        other => panic!("{other:?}"),
    };
    for case in cases["cases"].as_array().unwrap() {
        let name = case["template"].as_str().unwrap();
        let template =
            ChatTemplate::verbatim(cases["templates"][name].as_str().unwrap(), tokens(case)).unwrap();
        let prompt = case["add_generation_prompt"].as_bool().unwrap();
        let text = template.render(&case["messages"], prompt, &serde_json::Map::new()).unwrap();
        assert_eq!(text, case["text"], "{name}");
        let want = ids(&case["ids_no_added_bos"]);
        assert_eq!(tokenizer.encode(case["text"].as_str().unwrap(), false).unwrap(), want);
    }
}

#[test]
fn a_stream_gives_whole_characters_and_all_of_them() {
    let tokenizer = Arc::new(fixture());
    let reference = json("bitnet-packed/reference.json");
    let texts = ["ships at night", "Привет, 世界! 🚀🇩🇪", " leading", "a\u{fffd}b", ""];
    let mut sequences: Vec<Vec<u32>> = texts.iter().map(|t| tokenizer.encode(t, true).unwrap()).collect();
    sequences.push(ids(&reference["greedy"]["tokens"]));
    for (i, ids) in sequences.iter().enumerate() {
        let mut stream = DecodeStream::new(Arc::clone(&tokenizer), true);
        let mut text = String::new();
        for id in ids {
            let part = stream.push(*id).unwrap().unwrap_or_default();
            assert!(i == 5 || i == 3 || !part.contains('\u{fffd}'), "{part:?}");
            text += &part;
        }
        text += &stream.finish().unwrap().unwrap_or_default();
        assert_eq!(text, tokenizer.decode(ids, true).unwrap());
    }
}

#[test]
fn a_gguf_vocabulary_equals_its_twin() {
    let (twin, source) = (fixture(), json("bitnet-packed/tokenizer.json"));
    let size = twin.vocab_size();
    let tokens: Vec<String> = (0..size as u32).map(|id| twin.piece(id).unwrap()).collect();
    let merges: Vec<String> = source["model"]["merges"]
        .as_array()
        .unwrap()
        .iter()
        .map(|m| {
            m.as_str().map_or_else(
                || format!("{} {}", m[0].as_str().unwrap(), m[1].as_str().unwrap()),
                str::to_owned,
            )
        })
        .collect();
    let vocab = GgufVocab {
        model: "gpt2",
        pre: Some("llama-bpe"),
        tokens: tokens.iter().map(String::as_str).collect(),
        token_types: (0..size).map(|id| if id >= 500 { 3 } else { 1 }).collect(),
        merges: merges.iter().map(String::as_str).collect(),
        bos: Some(500),
        eos: Some(501),
        ..GgufVocab::default()
    };
    let tokenizer = Tokenizer::from_gguf(&vocab).unwrap();
    for text in
        ["ships at night", "I'LL  have 1234 of\r\n\nthem<|eot_id|>", "Привет 世界 🚀", "", " ", "\u{0}"]
    {
        for special in [true, false] {
            assert_eq!(
                tokenizer.encode(text, special).unwrap(),
                twin.encode(text, special).unwrap(),
                "{text:?}"
            );
        }
    }
    assert_eq!(tokenizer.end_tokens(), twin.end_tokens());
    let ending = Tokenizer::from_gguf(&GgufVocab { add_eos: Some(true), ..vocab.clone() }).unwrap();
    let plain = tokenizer.encode("ships", true).unwrap();
    assert_eq!(ending.encode("ships", true).unwrap(), [&plain[..], &[501]].concat());
    assert_eq!(ending.encode("ships", false).unwrap(), tokenizer.encode("ships", false).unwrap());
    let refused = |vocab| Tokenizer::from_gguf(&vocab).err().unwrap().to_string();
    assert!(refused(GgufVocab { pre: Some("klingon"), ..vocab.clone() }).contains("klingon"));
    assert!(refused(GgufVocab { merges: vec!["nospace"], ..vocab.clone() }).contains("space between"));
    assert!(refused(GgufVocab { merges: vec!["zzz yyy"], ..vocab }).contains("\"zzz\" is no token"));
}

#[test]
fn files_that_are_no_tokenizers_are_refused() {
    for bytes in
        [&b""[..], b"{}", b"[]", b"\xff\xfe", br#"{"model":{"type":"BPE","vocab":{"a":0},"merges":["a b"]}}"#]
    {
        assert!(Tokenizer::from_json(bytes).is_err());
    }
    let empty = std::env::temp_dir();
    assert!(Tokenizer::from_file(&empty.join("absent.json")).is_err());
}
