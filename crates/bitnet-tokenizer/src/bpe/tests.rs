use super::*;
use tokenizers::Model as _;
use tokenizers::models::bpe::BPE;

/// Numbers that follow from a seed (xorshift).
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n as u64) as usize
    }
}

/// A model as `tokenizer.json` has it: letters, bytes, tokens made of earlier ones in several ways, ids that leave some out.
fn model(random: &mut Random, options: &serde_json::Value) -> String {
    let mut tokens: Vec<String> = ["a", "b", "c", "é", "<unk>"].map(str::to_owned).to_vec();
    tokens.extend("é\u{1f680}".bytes().map(|b| format!("<0x{b:02X}>")));
    let mut merges: Vec<[String; 2]> = Vec::new();
    for _ in 0..60 {
        let [left, right] = [0, 1].map(|_| tokens[random.below(tokens.len())].clone());
        let both = format!("{left}{right}");
        if both.contains('<') || both.len() > 12 || merges.contains(&[left.clone(), right.clone()]) {
            continue;
        }
        if !tokens.contains(&both) {
            tokens.push(both);
        }
        merges.push([left, right]);
    }
    let mut vocab = serde_json::Map::new();
    let mut id = 0;
    for text in &tokens {
        id += 1 + random.below(3);
        vocab.insert(text.clone(), id.into());
    }
    let mut model = options.clone();
    model["vocab"] = vocab.into();
    model["merges"] = serde_json::json!(merges);
    model.to_string()
}

fn word(random: &mut Random) -> String {
    let len = random.below(24);
    (0..len).map(|_| ["a", "b", "c", "é", "ab", "x", "y", "\u{1f680}"][random.below(8)]).collect()
}

#[test]
fn words_have_the_tokens_of_the_tokenizers_crate() {
    let mut random = Random(7);
    let options = [
        serde_json::json!({"type": "BPE"}),
        serde_json::json!({"type": "BPE", "ignore_merges": true, "dropout": null}),
        serde_json::json!({"unk_token": "<unk>"}),
        serde_json::json!({"unk_token": "<unk>", "fuse_unk": true}),
        serde_json::json!({"type": "BPE", "byte_fallback": true}),
        serde_json::json!({"unk_token": "<unk>", "fuse_unk": true, "byte_fallback": true}),
    ];
    for options in options.iter().cycle().take(120) {
        let json = model(&mut random, options);
        assert!(is_plain(&json).unwrap(), "{json}");
        let (ours, theirs) = (read(&json).unwrap(), serde_json::from_str::<BPE>(&json).unwrap());
        for _ in 0..40 {
            let word = word(&mut random);
            let want: Vec<_> = theirs.tokenize(&word).unwrap().iter().map(|t| (t.id, t.offsets)).collect();
            let got: Vec<_> = ours.tokenize(&word).unwrap().iter().map(|t| (t.id, t.offsets)).collect();
            assert_eq!(got, want, "{word:?} {json}");
        }
        for (text, id) in theirs.get_vocab() {
            let place = ours.tokens().find(&text).unwrap();
            assert_eq!((ours.tokens().id(place), ours.tokens().place_of(id)), (id, Some(place)));
            assert!(
                ours.tokens().find(&(text + "!")).is_none() && ours.tokens().place_of(id + 1000).is_none()
            );
        }
        // Written, it is what the crate writes.
        assert_eq!(serde_json::to_string(&ours).unwrap(), serde_json::to_string(&theirs).unwrap());
    }
}

#[test]
fn a_long_word_is_merged_to_its_end() {
    let mut random = Random(3);
    let bpe = read(&model(&mut random, &serde_json::json!({"type": "BPE"}))).unwrap();
    let word = "ab".repeat(500_000);
    assert_eq!(bpe.tokenize(&word).unwrap().last().unwrap().offsets.1, word.len());
}

#[test]
fn merges_are_pairs_or_strings_and_must_make_tokens() {
    let read = |vocab: &str, merges: &str| {
        read(&format!(r#"{{"type": "BPE", "vocab": {vocab}, "merges": {merges}}}"#))
    };
    let vocab = r#"{"\u0061": 0, "b": 1, "ab": 2, "b c": 3, "ab c": 4}"#;
    for merges in [r#"["a b"]"#, r#"[["a", "b"], ["a", "b c"]]"#, r##"["\u0061 b"]"##] {
        assert_eq!(read(vocab, merges).unwrap().tokenize("ab").unwrap()[0].id, 2, "{merges}");
    }
    for (merges, why) in [
        (r#"["ab"]"#, "two tokens"),
        (r#"["a b c"]"#, "two tokens"),
        (r#"[["a"]]"#, "two tokens"),
        (r#"[["a", "b", "ab"]]"#, "two tokens"),
        (r#"[7]"#, "a merge of two tokens"),
        (r#"["a x"]"#, "\"x\" is no token"),
        (r#"["b a"]"#, "\"ba\" is no token"),
        (r#"{}"#, "a list of merges"),
    ] {
        let error = read(vocab, merges).err().unwrap().to_string();
        assert!(error.contains(why), "{error}");
    }
    assert!(read(r#"{"a": 0, "a": 1}"#, "[]").err().unwrap().to_string().contains("twice"));
    assert!(read(r#"{"a": -1}"#, "[]").is_err() && read(r#"{"a": 4294967296}"#, "[]").is_err());
    let unknown =
        super::read(r#"{"type": "BPE", "unk_token": "?", "vocab": {"a": 0}, "merges": []}"#).unwrap();
    assert!(unknown.tokenize("ax").unwrap_err().contains("\"?\""));
}

#[test]
fn other_models_are_not_taken_for_plain_ones() {
    for json in [
        r#"{"type": "WordPiece", "vocab": {}}"#,
        r#"{"type": "Unigram", "vocab": [["a", 0.0]]}"#,
        r#"{"vocab": {}}"#,
        r#"{"type": "BPE", "dropout": 0.1, "vocab": {}, "merges": []}"#,
        r###"{"type": "BPE", "continuing_subword_prefix": "##", "vocab": {}, "merges": []}"###,
        r#"{"type": "BPE", "end_of_word_suffix": "</w>", "vocab": {}, "merges": []}"#,
    ] {
        assert!(!is_plain(json).unwrap(), "{json}");
    }
    assert!(is_plain(r#"{"dropout": 0.0, "end_of_word_suffix": "", "vocab": {}, "merges": []}"#).unwrap());
    assert!(is_plain("7").is_err());
}
