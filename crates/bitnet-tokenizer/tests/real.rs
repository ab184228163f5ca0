//! The tokenizers that users have, all cases. Their files are megabytes, so `scripts/check-real-tokenizers` fetches them and
//! runs this test with their folder in `BITNET_TOKENIZERS`.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use bitnet_tokenizer::Tokenizer;
use serde_json::Value;
use std::path::{Path, PathBuf};

fn folder() -> PathBuf {
    std::env::var_os("BITNET_TOKENIZERS")
        .expect("BITNET_TOKENIZERS names the folder of the tokenizer files")
        .into()
}

fn check(tokenizer: &Tokenizer, cases: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(cases);
    let cases: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let ids = |v: &Value| -> Vec<u32> { serde_json::from_value(v.clone()).unwrap() };
    let mut checked = 0;
    for case in cases["cases"].as_array().unwrap() {
        let text = case["text"].as_str().unwrap();
        let want = ids(&case["ids"]);
        assert_eq!(tokenizer.encode(text, false).unwrap(), want, "{text:?}");
        if case["ids_with_special"].is_array() {
            assert_eq!(
                tokenizer.encode(text, true).unwrap(),
                ids(&case["ids_with_special"]),
                "{text:?} with special"
            );
        }
        // `decoded` stands there only where it is not the text.
        let decoded = case["decoded"].as_str().unwrap_or(text);
        assert_eq!(tokenizer.decode(&want, false).unwrap(), decoded, "decoding of {text:?}");
        checked += 1;
    }
    assert_eq!(checked, 245);
}

#[test]
#[ignore = "needs files of scripts/check-real-tokenizers"]
fn llama3() {
    check(&Tokenizer::from_file(&folder().join("llama3.json")).unwrap(), "tokenizer_llama3_cases.json");
}

#[test]
#[ignore = "needs files of scripts/check-real-tokenizers"]
fn byte_fallback() {
    check(
        &Tokenizer::from_file(&folder().join("bytefallback.json")).unwrap(),
        "tokenizer_bytefallback_cases.json",
    );
}

#[test]
#[ignore = "needs files of scripts/check-real-tokenizers"]
fn llama2() {
    let model = std::fs::read(folder().join("llama2.model")).unwrap();
    check(&Tokenizer::from_sentencepiece(&model).unwrap(), "tokenizer_llama2_cases.json");
}
