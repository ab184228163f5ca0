//! The `model` of a `tokenizer.json`, read without a value for every token in between, and written.

use super::tokens::Texts;
use super::{Bpe, BpeOptions, Tokens};
use serde::de::{Deserialize, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::ser::{Serialize, SerializeStruct, Serializer};
use std::borrow::Cow;
use std::fmt;

/// What decides whether a model is one of ours.
#[derive(serde::Deserialize)]
struct Kind<'a> {
    #[serde(borrow, rename = "type")]
    name: Option<Cow<'a, str>>,
    merges: Option<IgnoredAny>,
    dropout: Option<f64>,
    continuing_subword_prefix: Option<Cow<'a, str>>,
    end_of_word_suffix: Option<Cow<'a, str>>,
}

/// Whether a model is BPE that gives the same tokens each time and has no marks inside of words or behind them, which is what [`Bpe`] does.
pub(crate) fn is_plain(json: &str) -> serde_json::Result<bool> {
    let kind: Kind<'_> = serde_json::from_str(json)?;
    let empty = |mark: &Option<Cow<'_, str>>| mark.as_ref().is_none_or(|mark| mark.is_empty());
    Ok(kind.name.map_or(kind.merges.is_some(), |name| name == "BPE")
        && kind.dropout.is_none_or(|p| p == 0.0)
        && empty(&kind.continuing_subword_prefix)
        && empty(&kind.end_of_word_suffix))
}

#[derive(serde::Deserialize)]
struct File {
    unk_token: Option<String>,
    fuse_unk: Option<bool>,
    byte_fallback: Option<bool>,
    ignore_merges: Option<bool>,
    vocab: Tokens,
    merges: Pairs,
}

/// Reads a model for which [`is_plain`] holds.
pub(crate) fn read(json: &str) -> serde_json::Result<Bpe> {
    let file: File = serde_json::from_str(json)?;
    let texts = &file.merges.0;
    let pairs = (0..texts.iter().len() / 2).map(|pair| (texts.get(2 * pair), texts.get(2 * pair + 1)));
    let options = BpeOptions {
        unknown: file.unk_token,
        fuse_unknown: file.fuse_unk.unwrap_or(false),
        byte_fallback: file.byte_fallback.unwrap_or(false),
        ignore_merges: file.ignore_merges.unwrap_or(false),
    };
    Bpe::new(file.vocab, pairs, options).map_err(Error::custom)
}

/// A string where it lies, if it has no escapes.
#[derive(serde::Deserialize)]
#[serde(transparent)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'de> Deserialize<'de> for Tokens {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Map;
        impl<'de> Visitor<'de> for Map {
            type Value = Tokens;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("ids by the texts of tokens")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Tokens, A::Error> {
                let mut tokens = Tokens::default();
                while let Some((Text(text), id)) = map.next_entry::<Text<'de>, u32>()? {
                    if !tokens.insert(&text, id).map_err(Error::custom)? {
                        return Err(Error::custom(format!("the token {text:?} is there twice")));
                    }
                }
                Ok(tokens)
            }
        }
        deserializer.deserialize_map(Map)
    }
}

/// Merges as they are listed, left and right in turn.
struct Pairs(Texts);

impl<'de> Deserialize<'de> for Pairs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct List;
        impl<'de> Visitor<'de> for List {
            type Value = Pairs;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of merges")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Pairs, A::Error> {
                let mut texts = Texts::default();
                while let Some(Pair(left, right)) = list.next_element()? {
                    texts.push(&left).and_then(|()| texts.push(&right)).map_err(Error::custom)?;
                }
                Ok(Pairs(texts))
            }
        }
        deserializer.deserialize_seq(List)
    }
}

/// One merge: two tokens, or a string with a space between them.
struct Pair<'a>(Cow<'a, str>, Cow<'a, str>);

impl<'de> Deserialize<'de> for Pair<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct One;
        impl<'de> Visitor<'de> for One {
            type Value = Pair<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a merge of two tokens")
            }

            fn visit_borrowed_str<E: Error>(self, text: &'de str) -> Result<Pair<'de>, E> {
                let (left, right) = halves(text)?;
                Ok(Pair(left.into(), right.into()))
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Pair<'de>, E> {
                let (left, right) = halves(text)?;
                Ok(Pair(left.to_owned().into(), right.to_owned().into()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Pair<'de>, A::Error> {
                let [left, right] = [seq.next_element::<Text<'de>>()?, seq.next_element::<Text<'de>>()?];
                match (left, right, seq.next_element::<IgnoredAny>()?) {
                    (Some(Text(left)), Some(Text(right)), None) => Ok(Pair(left, right)),
                    _ => Err(Error::custom("a merge is not two tokens")),
                }
            }
        }
        deserializer.deserialize_any(One)
    }
}

fn halves<E: Error>(text: &str) -> Result<(&str, &str), E> {
    let halves = text.split_once(' ').filter(|(_, right)| !right.contains(' '));
    halves.ok_or_else(|| E::custom(format!("the merge {text:?} is not two tokens with a space between")))
}

impl Serialize for Bpe {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        struct Vocab<'a>(&'a Tokens);
        impl Serialize for Vocab<'_> {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_map(self.0.iter())
            }
        }
        struct Merges<'a>(&'a Bpe);
        impl Serialize for Merges<'_> {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                let text = |token| self.0.tokens.text(token);
                serializer.collect_seq(self.0.merges.list().into_iter().map(|(a, b)| [text(a), text(b)]))
            }
        }
        // All that the format has, in its usual order.
        let mut model = serializer.serialize_struct("BPE", 10)?;
        model.serialize_field("type", "BPE")?;
        model.serialize_field("dropout", &None::<f32>)?;
        model.serialize_field("unk_token", &self.options.unknown)?;
        model.serialize_field("continuing_subword_prefix", &None::<&str>)?;
        model.serialize_field("end_of_word_suffix", &None::<&str>)?;
        model.serialize_field("fuse_unk", &self.options.fuse_unknown)?;
        model.serialize_field("byte_fallback", &self.options.byte_fallback)?;
        model.serialize_field("ignore_merges", &self.options.ignore_merges)?;
        model.serialize_field("vocab", &Vocab(&self.tokens))?;
        model.serialize_field("merges", &Merges(self))?;
        model.end()
    }
}
