use super::*;
use crate::Tokenizer;

const WORDS: [&str; 9] = ["ships", "at", "night", "sail", "home", "don't", "1897", "Größe", "<|im_end|>"];

fn texts() -> Vec<String> {
    let word = |i: usize| WORDS[i % WORDS.len()];
    (0..200).map(|i| format!("{} {}, {}.\n\n{}", word(i), word(i * i), word(i / 3), word(i * 7))).collect()
}

fn options(size: usize) -> BpeOptions {
    BpeOptions { size, special: Vec::new(), template: None }
}

fn opened(files: &TrainedTokenizer) -> (tempfile::TempDir, Tokenizer) {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("tokenizer.json"), &files.tokenizer).unwrap();
    std::fs::write(dir.path().join("tokenizer_config.json"), &files.config).unwrap();
    let tokenizer = Tokenizer::from_dir(dir.path()).unwrap().unwrap();
    (dir, tokenizer)
}

#[test]
fn the_same_texts_give_the_same_bytes_in_any_order() {
    let files = options(300).train(texts().into_iter()).unwrap();
    assert_eq!(files, options(300).train(texts().into_iter().rev()).unwrap());
}

#[test]
fn texts_come_back_and_frequent_words_are_tokens() {
    let files = options(300).train(texts().into_iter()).unwrap();
    let (dir, tokenizer) = opened(&files);
    assert_eq!(tokenizer.vocab_size(), 300);
    let end = tokenizer.token_id(END_OF_TEXT);
    assert_eq!((tokenizer.bos(), tokenizer.eos()), (end, end));
    for text in ["ships sail at night", "Größe \u{1f30a}\t\r\n  x", "don't 18970"] {
        let ids = tokenizer.encode(text, true).unwrap();
        assert_eq!(Some(ids[0]), end);
        assert_eq!(tokenizer.decode(&ids, true).unwrap(), text);
    }
    assert_eq!(tokenizer.encode("ships", false).unwrap().len(), 1);
    // What GGUF files hold gives the same ids.
    let vocabulary = Vocabulary::from_dir(dir.path()).unwrap().unwrap().vocabulary;
    assert_eq!(vocabulary.pre.as_deref(), Some("llama-bpe"));
    let gguf = Tokenizer::from_gguf(&vocabulary.as_gguf()).unwrap();
    for text in texts() {
        assert_eq!(gguf.encode(&text, true).unwrap(), tokenizer.encode(&text, true).unwrap());
    }
}

#[test]
fn a_conversation_is_rendered_with_its_special_tokens() {
    let (_dir, tokenizer) = opened(&options(290).train(texts().into_iter()).unwrap());
    let template = tokenizer.template().unwrap().unwrap();
    let said = json!([{"role": "user", "content": "ships"}]);
    let text = template.render(&said, true, &serde_json::Map::new()).unwrap();
    assert_eq!(text, "<|im_start|>user\nships<|im_end|>\n<|im_start|>assistant\n");
    let ids = tokenizer.encode_chat(&text).unwrap();
    for token in [END_OF_TEXT, "<|im_start|>", "<|im_end|>"] {
        assert!(ids.contains(&tokenizer.token_id(token).unwrap()), "{token}");
    }
    assert!(tokenizer.end_tokens().contains(&tokenizer.token_id("<|im_end|>").unwrap()));
    // With a template of one's own come special tokens of one's own.
    let own = BpeOptions {
        size: 290,
        special: vec!["<turn>".to_owned()],
        template: Some("{{ messages[0].content }}<turn>".to_owned()),
    };
    let (_dir, tokenizer) = opened(&own.train(texts().into_iter()).unwrap());
    assert_eq!(tokenizer.token_id("<|im_start|>"), None);
    assert_eq!(tokenizer.encode("<turn>", false).unwrap().len(), 1);
}

#[test]
fn what_cannot_be_is_refused() {
    let refused = |options: BpeOptions, words: &str| {
        let error = options.train(texts().into_iter()).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    };
    refused(options(258), "has 259 at least");
    refused(options(MAX_SIZE + 1), "at most");
    refused(options(4000), "give more texts, or ask for fewer tokens");
    refused(BpeOptions { special: vec![END_OF_TEXT.to_owned()], ..options(300) }, "twice");
    refused(BpeOptions { template: Some("{% if %}".to_owned()), ..options(300) }, "does not parse");
    let none = options(300).train(std::iter::empty()).unwrap_err().to_string();
    assert!(none.contains("259 tokens only"), "{none}");
}
