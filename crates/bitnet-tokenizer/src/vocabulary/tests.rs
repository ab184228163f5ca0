use super::*;
use std::path::PathBuf;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(name)
}

fn strings(file: &str) -> Vec<String> {
    let cases: Value = serde_json::from_slice(&std::fs::read(fixture(file)).unwrap()).unwrap();
    let list = cases["cases"].as_array().unwrap();
    list.iter().map(|c| c["text"].as_str().unwrap().to_owned()).collect()
}

/// From `tokenizer.json` to a vocabulary and back, every string of the real tokenizers' cases has the same ids.
fn round_trip(json: &[u8]) -> Vocabulary {
    let (here, found) = (Tokenizer::from_json(json).unwrap(), from_json::read(json).unwrap());
    let v = found.vocabulary;
    let there = Tokenizer::from_gguf(&v.as_gguf()).unwrap();
    let back = Tokenizer::from_json(&v.to_json().unwrap()).unwrap();
    for file in
        ["tokenizer_llama3_cases.json", "tokenizer_llama2_cases.json", "tokenizer_bytefallback_cases.json"]
    {
        for text in strings(file) {
            let (bare, want) = (here.encode(&text, false).unwrap(), here.encode(&text, true).unwrap());
            assert_eq!(there.encode(&text, false).unwrap(), bare, "{text:?}");
            // A text that begins with the token has it twice by tokenizer.json, and once by GGUF.
            if bare.first() != v.bos.as_ref() {
                assert_eq!(there.encode(&text, true).unwrap(), want, "{text:?}");
            }
            assert_eq!(back.encode(&text, true).unwrap(), want, "{text:?}");
            assert_eq!(back.decode(&want, false).unwrap(), here.decode(&want, false).unwrap(), "{text:?}");
        }
    }
    v
}

#[test]
fn byte_level_vocabularies_go_both_ways() {
    let dir = fixture("bitnet-packed");
    let v = round_trip(&std::fs::read(dir.join("tokenizer.json")).unwrap());
    assert_eq!((v.model.as_str(), v.pre.as_deref(), v.add_bos), ("gpt2", Some("llama-bpe"), Some(true)));
    assert_eq!((v.tokens.len(), v.token(v.bos), v.token_types[500]), (512, Some("<|begin_of_text|>"), 3));
    let found = Vocabulary::from_dir(&dir).unwrap().unwrap();
    assert_eq!((found.vocabulary.bos, found.vocabulary.eos), (Some(500), Some(501)));
    assert_eq!(found.left_out, Vec::<String>::new());
    let mut v = found.vocabulary;
    v.fill(600);
    assert_eq!(v.unused(), 0);
    v.token_types[7] = 5;
    assert_eq!(v.unused(), 1);
}

/// A small vocabulary of SentencePiece's kind, as tokenizer.json has it.
fn pieces() -> Value {
    let mut tokens = vec!["<unk>".to_owned(), "<s>".to_owned(), "</s>".to_owned()];
    tokens.extend((0..256).map(|b| format!("<0x{b:02X}>")));
    // By their scores, best first, then single characters.
    let merged = ["\u{2581}t", "he", "\u{2581}the", "in", "er", "\u{2581}a", "\u{2581}in"];
    tokens.extend(merged.map(str::to_owned));
    tokens.extend("\u{2581}thenira.".chars().map(String::from));
    let vocab: serde_json::Map<String, Value> =
        tokens.iter().zip(0u32..).map(|(t, i)| (t.clone(), i.into())).collect();
    let special = |id: u32, text: &str| {
        json!({"id": id, "content": text, "special": true, "normalized": false,
            "single_word": false, "lstrip": false, "rstrip": false})
    };
    json!({
        "version": "1.0",
        "added_tokens": [special(0, "<unk>"), special(1, "<s>"), special(2, "</s>")],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "\u{2581}"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"}]},
        "pre_tokenizer": null,
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "\u{2581}"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "unk_token": "<unk>", "fuse_unk": true, "byte_fallback": true, "vocab": vocab,
            "merges": [["\u{2581}", "t"], ["h", "e"], ["\u{2581}t", "he"], ["i", "n"], ["e", "r"], ["\u{2581}", "a"], ["\u{2581}", "in"]]},
    })
}

#[test]
fn sentencepiece_vocabularies_go_both_ways() {
    let v = round_trip(&serde_json::to_vec(&pieces()).unwrap());
    assert_eq!((v.model.as_str(), v.add_space_prefix, v.bos, v.unk), ("llama", Some(true), Some(1), Some(0)));
    assert_eq!((v.token_types[0], v.token_types[1], v.token_types[3], v.token_types[260]), (2, 3, 6, 1));
    // Merges that no scores stand for: the worse piece first.
    let mut other = pieces();
    other["model"]["merges"] =
        json!([["\u{2581}", "t"], ["\u{2581}t", "he"], ["h", "e"], ["\u{2581}t", "h"]]);
    assert!(matches!(
        from_json::read(&serde_json::to_vec(&other).unwrap()),
        Err(TokenizerError::NoPlace { what, .. }) if what.contains("merges")
    ));
}

#[test]
fn what_has_no_place_is_refused_or_listed() {
    let fixture = std::fs::read(fixture("bitnet-packed/tokenizer.json")).unwrap();
    let read = |change: &dyn Fn(&mut Value)| {
        let mut file: Value = serde_json::from_slice(&fixture).unwrap();
        change(&mut file);
        from_json::read(&serde_json::to_vec(&file).unwrap())
    };
    let refused = |change: &dyn Fn(&mut Value)| read(change).unwrap_err().to_string();
    assert!(refused(&|f| f["normalizer"] = json!({"type": "Lowercase"})).contains("Lowercase"));
    assert!(refused(&|f| f["model"]["type"] = "WordPiece".into()).contains("WordPiece"));
    assert!(refused(&|f| f["model"]["ignore_merges"] = false.into()).contains("pre-tokenizer"));
    assert!(
        refused(&|f| f["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = ".".into())
            .contains("pre-tokenizer")
    );
    let found = read(&|f| {
        f["added_tokens"][0]["lstrip"] = true.into();
        f["truncation"] = json!({"max_length": 3});
    });
    let left = found.unwrap().left_out.join("; ");
    assert!(left.contains("lstrip of token \"<|begin_of_text|>\"") && left.contains("truncation"), "{left}");
}

#[test]
fn places_are_filled_to_the_size_of_the_embedding() {
    let mut v = from_json::read(&serde_json::to_vec(&pieces()).unwrap()).unwrap().vocabulary;
    let n = v.tokens.len();
    v.fill(n + 2);
    assert_eq!(
        (v.tokens[n].as_str(), v.token_types[n + 1], v.scores.len()),
        (format!("[PAD{n}]").as_str(), 5, n + 2)
    );
}
