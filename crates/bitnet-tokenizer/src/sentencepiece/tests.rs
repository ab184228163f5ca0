use super::*;
use crate::GgufVocab;

/// A message of one field after the other.
fn bytes(number: u64, data: &[u8]) -> Vec<u8> {
    let mut out = vec![(number << 3 | 2) as u8, data.len() as u8];
    out.extend(data);
    out
}

fn piece(text: &str, score: f32, kind: u8) -> Vec<u8> {
    let mut out = bytes(1, text.as_bytes());
    out.push(2 << 3 | 5);
    out.extend(score.to_le_bytes());
    out.extend([3 << 3, kind]);
    bytes(1, &out)
}

const PIECES: [(&str, f32, u8); 14] = [
    ("<unk>", 0.0, 2),
    ("<s>", 0.0, 3),
    ("</s>", 0.0, 3),
    ("<0xC3>", 0.0, 6),
    ("<0xA9>", 0.0, 6),
    ("▁a", -1.0, 1),
    ("ab", -2.0, 1),
    ("▁ab", -3.0, 1),
    ("bc", -4.0, 1),
    ("▁abc", -5.0, 1),
    ("▁", -6.0, 1),
    ("a", -7.0, 1),
    ("b", -8.0, 1),
    ("c", -9.0, 1),
];

fn model(algorithm: u8) -> Vec<u8> {
    let mut out: Vec<u8> = PIECES.iter().flat_map(|(text, score, kind)| piece(text, *score, *kind)).collect();
    out.extend(bytes(2, &[3 << 3, algorithm]));
    out
}

#[test]
fn bpe_merges_the_best_score_first() {
    let tokenizer = Tokenizer::from_sentencepiece(&model(2)).unwrap();
    let encode = |text: &str| tokenizer.encode(text, true).unwrap();
    assert_eq!(encode("abc"), [1, 9]);
    // "▁a" has the best score, "ab" the next: the third letter is left alone.
    assert_eq!(encode("aab"), [1, 5, 6]);
    assert_eq!(encode("b bc"), [1, 10, 12, 10, 8]);
    // Bytes stand for what no piece holds.
    assert_eq!(encode("é"), [1, 10, 3, 4]);
    assert_eq!(tokenizer.decode(&[1, 10, 3, 4, 9], true).unwrap(), "é abc");
    assert_eq!(encode("a</s>"), [1, 5, 2]);
    assert_eq!((tokenizer.bos(), tokenizer.eos()), (Some(1), Some(2)));
}

#[test]
fn the_same_vocabulary_in_a_gguf_file_gives_the_same_ids() {
    let vocab = GgufVocab {
        model: "llama",
        tokens: PIECES.iter().map(|(text, ..)| *text).collect(),
        scores: PIECES.iter().map(|(_, score, _)| *score).collect(),
        token_types: PIECES.iter().map(|(.., kind)| i32::from(*kind)).collect(),
        bos: Some(1),
        unk: Some(0),
        ..GgufVocab::default()
    };
    let (gguf, twin) =
        (Tokenizer::from_gguf(&vocab).unwrap(), Tokenizer::from_sentencepiece(&model(2)).unwrap());
    for text in ["abc", "aab  cc", "é</s>a", "", "zz"] {
        assert_eq!(gguf.encode(text, true).unwrap(), twin.encode(text, true).unwrap(), "{text:?}");
    }
}

#[test]
fn unigram_takes_the_most_likely_cut() {
    let tokenizer = Tokenizer::from_sentencepiece(&model(1)).unwrap();
    assert_eq!(tokenizer.encode("abc", true).unwrap(), [1, 9]);
    assert_eq!(tokenizer.encode("ac", true).unwrap(), [1, 5, 13]);
}

#[test]
fn every_truncation_and_flip_is_a_tokenizer_or_an_error() {
    let model = model(2);
    for len in 0..model.len() {
        let _ = Tokenizer::from_sentencepiece(&model[..len]);
    }
    for at in 0..model.len() {
        let mut bad = model.clone();
        bad[at] ^= 0xff;
        let _ = Tokenizer::from_sentencepiece(&bad);
    }
    assert!(Tokenizer::from_sentencepiece(b"").is_err());
    assert!(Tokenizer::from_sentencepiece(&[0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f]).is_err());
}
