//! The vocabulary inside a GGUF file, of the `gpt2` (byte-level BPE) and the `llama` (SentencePiece BPE) kind.

use crate::algorithm::{Algorithm, Pipeline};
use crate::bpe::{Bpe, BpeOptions, Tokens};
use crate::sentencepiece::{Piece, PieceKind, bpe_from_pieces};
use crate::vocabulary::filler;
use crate::{Tokenizer, TokenizerError, Vocabulary};
use tokenizers::normalizers::unicode::NFC;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, SplitDelimiterBehavior};

/// What the `tokenizer.ggml.*` keys of a file hold.
#[derive(Clone, Debug, Default)]
pub struct GgufVocab<'a> {
    /// `model`: `gpt2` or `llama`.
    pub model: &'a str,
    /// `pre`: how text is cut into words (`gpt2` only).
    pub pre: Option<&'a str>,
    /// `tokens`, by id.
    pub tokens: Vec<&'a str>,
    /// `token_type`, by id; all normal where empty.
    pub token_types: Vec<i32>,
    /// `scores`, by id (`llama` only).
    pub scores: Vec<f32>,
    /// `merges`, best first (`gpt2` only): two tokens with a space between.
    pub merges: Vec<&'a str>,
    /// `bos_token_id`.
    pub bos: Option<u32>,
    /// `eos_token_id`.
    pub eos: Option<u32>,
    /// `unknown_token_id`.
    pub unk: Option<u32>,
    /// `padding_token_id`; what fills batches is no part of a tokenizer.
    pub pad: Option<u32>,
    /// `add_bos_token`; where absent, a `llama` vocabulary and those cut like Llama 3's add one.
    pub add_bos: Option<bool>,
    /// `add_eos_token`: embedding models expect the end of the text.
    pub add_eos: Option<bool>,
    /// `add_space_prefix` (`llama` only).
    pub add_space_prefix: Option<bool>,
}

impl GgufVocab<'_> {
    /// The text of a token.
    pub fn token(&self, id: Option<u32>) -> Option<&str> {
        self.tokens.get(usize::try_from(id?).ok()?).copied()
    }

    /// A copy.
    pub fn to_vocabulary(&self) -> Vocabulary {
        let owned = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        Vocabulary {
            model: self.model.to_owned(),
            pre: self.pre.map(str::to_owned),
            tokens: owned(&self.tokens),
            token_types: self.token_types.clone(),
            scores: self.scores.clone(),
            merges: owned(&self.merges),
            bos: self.bos,
            eos: self.eos,
            unk: self.unk,
            pad: self.pad,
            add_bos: self.add_bos,
            add_eos: self.add_eos,
            add_space_prefix: self.add_space_prefix,
        }
    }
}

/// Types of tokens in GGUF files that matter here.
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;

const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
pub(crate) const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

/// As GPT-2's, behind a cut before and behind every digit: a space before one ends what it stands in.
const SMOLLM: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+";

/// How text is cut into words.
pub(crate) struct Pre {
    names: &'static [&'static str],
    pattern: &'static str,
    /// Words that are tokens are not taken apart and merged again.
    ignore_merges: bool,
    nfc: bool,
    add_bos: bool,
}

static PRES: &[Pre] = &[
    Pre {
        names: &["llama-bpe", "llama3", "llama-v3", "falcon3"],
        pattern: LLAMA3,
        ignore_merges: true,
        nfc: false,
        add_bos: true,
    },
    Pre { names: &["qwen2", "qwen3"], pattern: QWEN2, ignore_merges: false, nfc: true, add_bos: false },
    Pre { names: &["smollm"], pattern: SMOLLM, ignore_merges: false, nfc: false, add_bos: false },
    Pre { names: &["gpt-2", "gpt2"], pattern: GPT2, ignore_merges: false, nfc: false, add_bos: false },
];

impl Pre {
    /// The name of a way to cut text.
    pub(crate) fn find(pattern: &str, ignore_merges: bool, nfc: bool) -> Option<&'static str> {
        let same = |p: &&Self| p.pattern == pattern && p.ignore_merges == ignore_merges && p.nfc == nfc;
        PRES.iter().find(same).and_then(|p| p.names.first().copied())
    }
}

/// Size of Llama 3's vocabulary, which older files of BitNet 2B-4T have without saying how text is cut.
const LLAMA3_TOKENS: usize = 128_256;

impl Tokenizer {
    /// Builds the tokenizer of a GGUF file.
    pub fn from_gguf(vocab: &GgufVocab<'_>) -> Result<Self, TokenizerError> {
        if vocab.tokens.is_empty() {
            return Err(invalid("tokenizer.ggml.tokens is absent or empty"));
        }
        let mut tokenizer = match vocab.model {
            "gpt2" => byte_level(vocab)?,
            "llama" => sentencepiece(vocab)?,
            other => {
                let (key, value) = ("tokenizer.ggml.model", other.to_owned());
                return Err(TokenizerError::UnknownKind { key, value, known: "gpt2 and llama" });
            }
        };
        let exists = |id: &u32| usize::try_from(*id).is_ok_and(|id| id < vocab.tokens.len());
        tokenizer.bos = vocab.bos.filter(exists);
        tokenizer.eos = vocab.eos.filter(exists);
        tokenizer.add_eos = vocab.add_eos == Some(true);
        let added = |kind: i32, special: bool| -> Vec<AddedToken> {
            let of_kind = vocab.tokens.iter().zip(&vocab.token_types).filter(|(_, t)| **t == kind);
            of_kind.map(|(token, _)| AddedToken::from(*token, special).normalized(false)).collect()
        };
        tokenizer.inner.add_special_tokens(added(CONTROL, true)).map_err(invalid)?;
        tokenizer.inner.add_tokens(added(USER_DEFINED, false)).map_err(invalid)?;
        Ok(tokenizer)
    }
}

fn invalid(e: impl std::fmt::Display) -> TokenizerError {
    TokenizerError::Invalid { what: "the vocabulary in the GGUF file".to_owned(), why: e.to_string() }
}

fn byte_level(vocab: &GgufVocab<'_>) -> Result<Tokenizer, TokenizerError> {
    let name = match vocab.pre {
        Some(name) if name != "default" => name,
        _ if vocab.tokens.len() == LLAMA3_TOKENS => "llama-bpe",
        _ => "gpt-2",
    };
    let pre = PRES.iter().find(|p| p.names.contains(&name)).ok_or_else(|| TokenizerError::UnknownKind {
        key: "tokenizer.ggml.pre",
        value: name.to_owned(),
        known: "llama-bpe, llama3, llama-v3, falcon3, qwen2, qwen3, smollm and gpt-2",
    })?;
    let mut tokens = Tokens::with_capacity(vocab.tokens.len());
    for (token, id) in vocab.tokens.iter().zip(0u32..) {
        // What fills the vocabulary up to the embedding's size is no token of any text.
        if vocab.token_types.get(id as usize) == Some(&UNUSED) && *token == filler(id as usize) {
            continue;
        }
        tokens.insert(token, id).map_err(invalid)?;
    }
    let merges = vocab
        .merges
        .iter()
        // Neither half is empty, so the space that divides them is not the first character.
        .map(|m| m.char_indices().skip(1).find(|(_, c)| *c == ' ').map(|(at, _)| (&m[..at], &m[at + 1..])))
        .collect::<Option<Vec<_>>>()
        .ok_or_else(|| invalid("a merge is not two tokens with a space between"))?;
    let options = BpeOptions { ignore_merges: pre.ignore_merges, ..BpeOptions::default() };
    let bpe = Bpe::new(tokens, merges.into_iter(), options).map_err(invalid)?;
    let mut inner = Pipeline::new(Algorithm::Bpe(bpe));
    inner.with_pre_tokenizer(Some(words(pre.pattern)?));
    inner.with_decoder(Some(ByteLevel::new(false, true, false)));
    if pre.nfc {
        inner.with_normalizer(Some(NFC)).map_err(invalid)?;
    }
    let add_bos = Some(vocab.add_bos.unwrap_or(pre.add_bos));
    Ok(Tokenizer {
        inner,
        kind: "GGUF, byte-level BPE",
        bos: None,
        eos: None,
        add_bos,
        add_eos: false,
        template: None,
    })
}

/// Cuts a text where a pattern says, and makes characters of bytes.
fn words(pattern: &str) -> Result<Sequence, TokenizerError> {
    let pattern = SplitPattern::Regex(pattern.to_owned());
    let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false).map_err(invalid)?;
    let bytes = ByteLevel::new(false, true, false);
    Ok(Sequence::new(vec![PreTokenizerWrapper::Split(split), PreTokenizerWrapper::ByteLevel(bytes)]))
}

/// As Llama 3 cuts texts.
pub(crate) fn llama3_words() -> Result<Sequence, TokenizerError> {
    words(LLAMA3)
}

fn sentencepiece(vocab: &GgufVocab<'_>) -> Result<Tokenizer, TokenizerError> {
    let pieces: Vec<Piece> = vocab
        .tokens
        .iter()
        .enumerate()
        .map(|(i, text)| Piece {
            text: (*text).to_owned(),
            score: vocab.scores.get(i).copied().unwrap_or(0.0),
            kind: PieceKind::from_number(vocab.token_types.get(i).copied().unwrap_or(1).into()),
        })
        .collect();
    let unk = vocab.unk.and_then(|id| usize::try_from(id).ok());
    let inner = bpe_from_pieces(&pieces, unk, vocab.add_space_prefix.unwrap_or(true)).map_err(invalid)?;
    let add_bos = Some(vocab.add_bos.unwrap_or(true));
    Ok(Tokenizer {
        inner,
        kind: "GGUF, SentencePiece",
        bos: None,
        eos: None,
        add_bos,
        add_eos: false,
        template: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokenizers::pre_tokenizers::digits::Digits;
    use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer};

    fn cut(by: &[PreTokenizerWrapper], text: &str) -> Vec<String> {
        let mut string = PreTokenizedString::from(text);
        by.iter().for_each(|step| step.pre_tokenize(&mut string).unwrap());
        let splits = string.get_splits(OffsetReferential::Original, OffsetType::Byte);
        splits.into_iter().map(|(text, ..)| text.to_owned()).collect()
    }

    #[test]
    fn one_pattern_cuts_as_two_steps_do() {
        // What the model's own tokenizer.json does.
        let steps: [PreTokenizerWrapper; 2] =
            [Digits::new(true).into(), ByteLevel::new(false, true, true).into()];
        let own = [PreTokenizerWrapper::Sequence(words(SMOLLM).unwrap())];
        let parts =
            ["a", " ", "  ", "5", "12", "'s", "\n", " !", "é", "\t", "½", "x7", "don't", "\u{a0}", ""];
        for a in parts {
            for b in parts {
                for c in parts {
                    let text = format!("{a}{b}{c}{a}");
                    assert_eq!(cut(&own, &text), cut(&steps, &text), "{text:?}");
                }
            }
        }
    }
}
