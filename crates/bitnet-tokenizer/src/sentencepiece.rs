//! SentencePiece's `tokenizer.model`: a protobuf with pieces, their scores and kinds.
//!
//! Only the fields that decide ids are read; everything else is skipped by its wire type.

use crate::algorithm::{Algorithm, Pipeline};
use crate::bpe::{Bpe, BpeOptions, Tokens};
use crate::limits;
use crate::tokenizer::read;
use crate::{Tokenizer, TokenizerError, Vocabulary};
use std::collections::HashMap;
use std::path::Path;
use tokenizers::decoders::DecoderWrapper;
use tokenizers::decoders::byte_fallback::ByteFallback;
use tokenizers::decoders::fuse::Fuse;
use tokenizers::decoders::sequence::Sequence as Decoders;
use tokenizers::decoders::strip::Strip;
use tokenizers::models::unigram::Unigram;
use tokenizers::normalizers::replace::Replace;
use tokenizers::normalizers::{NormalizerWrapper, Precompiled, Prepend, Sequence as Normalizers};
use tokenizers::{AddedToken, ModelWrapper};

/// What stands for a space in a piece.
const SPACE: &str = "\u{2581}";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PieceKind {
    Normal,
    Unknown,
    Control,
    UserDefined,
    Unused,
    Byte,
}

impl PieceKind {
    /// The number that both the protobuf and GGUF have for it.
    pub(crate) fn from_number(n: i64) -> Self {
        match n {
            2 => Self::Unknown,
            3 => Self::Control,
            4 => Self::UserDefined,
            5 => Self::Unused,
            6 => Self::Byte,
            _ => Self::Normal,
        }
    }

    /// The reverse of [`PieceKind::from_number`].
    fn number(self) -> i32 {
        match self {
            Self::Normal => 1,
            Self::Unknown => 2,
            Self::Control => 3,
            Self::UserDefined => 4,
            Self::Unused => 5,
            Self::Byte => 6,
        }
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Piece {
    pub(crate) text: String,
    pub(crate) score: f32,
    pub(crate) kind: PieceKind,
}

/// A value on the wire.
enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
    Float(f32),
}

fn invalid(why: impl std::fmt::Display) -> TokenizerError {
    TokenizerError::Invalid { what: "tokenizer.model".to_owned(), why: why.to_string() }
}

fn varint(data: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (first, rest) = data.split_first()?;
        *data = rest;
        value |= u64::from(first & 0x7f) << shift;
        if first & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

fn take<'a>(data: &mut &'a [u8], len: u64) -> Option<&'a [u8]> {
    let (taken, rest) = data.split_at_checked(usize::try_from(len).ok()?)?;
    *data = rest;
    Some(taken)
}

/// The next field of a message: its number and value.
fn field<'a>(data: &mut &'a [u8]) -> Option<(u64, Field<'a>)> {
    let key = varint(data)?;
    let value = match key & 7 {
        0 => Field::Number(varint(data)?),
        1 => Field::Bytes(take(data, 8)?),
        2 => {
            let len = varint(data)?;
            Field::Bytes(take(data, len)?)
        }
        5 => Field::Float(f32::from_le_bytes(take(data, 4)?.try_into().ok()?)),
        _ => return None,
    };
    Some((key >> 3, value))
}

/// Calls `f` for every field of a message.
fn message<'a>(mut data: &'a [u8], mut f: impl FnMut(u64, Field<'a>)) -> Result<(), TokenizerError> {
    let len = data.len();
    while !data.is_empty() {
        let at = len - data.len();
        let (number, value) =
            field(&mut data).ok_or_else(|| invalid(format!("no field at byte {at} of a message")))?;
        f(number, value);
    }
    Ok(())
}

struct Model<'a> {
    pieces: Vec<Piece>,
    /// 1 is unigram, 2 is BPE.
    algorithm: u64,
    unk: Option<u64>,
    bos: Option<u64>,
    eos: Option<u64>,
    add_dummy_prefix: bool,
    charsmap: &'a [u8],
}

fn parse(data: &[u8]) -> Result<Model<'_>, TokenizerError> {
    let mut model = Model {
        pieces: Vec::new(),
        algorithm: 1,
        unk: Some(0),
        bos: Some(1),
        eos: Some(2),
        add_dummy_prefix: true,
        charsmap: &[],
    };
    let (mut pieces, mut trainer, mut normalizer) = (Vec::new(), None, None);
    message(data, |number, value| match (number, value) {
        (1, Field::Bytes(piece)) => pieces.push(piece),
        (2, Field::Bytes(spec)) => trainer = Some(spec),
        (3, Field::Bytes(spec)) => normalizer = Some(spec),
        _ => {}
    })?;
    for piece in pieces {
        let (mut text, mut score, mut kind) = (&[][..], 0.0, PieceKind::Normal);
        message(piece, |number, value| match (number, value) {
            (1, Field::Bytes(v)) => text = v,
            (2, Field::Float(v)) => score = v,
            (3, Field::Number(v)) => kind = PieceKind::from_number(i64::try_from(v).unwrap_or(0)),
            _ => {}
        })?;
        let text =
            std::str::from_utf8(text).map_err(|e| invalid(format!("a piece is not UTF-8: {e}")))?.to_owned();
        model.pieces.push(Piece { text, score, kind });
    }
    // An id that is not used is stored as -1.
    let id = |v: u64| (v < u64::from(u32::MAX)).then_some(v);
    if let Some(spec) = trainer {
        message(spec, |number, value| match (number, value) {
            (3, Field::Number(v)) => model.algorithm = v,
            (40, Field::Number(v)) => model.unk = id(v),
            (41, Field::Number(v)) => model.bos = id(v),
            (42, Field::Number(v)) => model.eos = id(v),
            _ => {}
        })?;
    }
    if let Some(spec) = normalizer {
        message(spec, |number, value| match (number, value) {
            (2, Field::Bytes(v)) => model.charsmap = v,
            (3, Field::Number(v)) => model.add_dummy_prefix = v != 0,
            _ => {}
        })?;
    }
    Ok(model)
}

impl Tokenizer {
    /// Reads a `tokenizer.model` from disk.
    pub fn from_sentencepiece_file(path: &Path) -> Result<Self, TokenizerError> {
        Self::from_sentencepiece(&read(path)?).map_err(|e| e.of(path))
    }

    /// Reads SentencePiece's `tokenizer.model`, of the BPE or the unigram kind.
    pub fn from_sentencepiece(data: &[u8]) -> Result<Self, TokenizerError> {
        let model = parse(data)?;
        if model.pieces.is_empty() {
            return Err(invalid("it has no pieces"));
        }
        let unk = model.unk.and_then(|id| usize::try_from(id).ok()).filter(|id| *id < model.pieces.len());
        let mut inner = match model.algorithm {
            1 => unigram(&model.pieces, unk)?,
            2 => bpe(&model.pieces, unk)?,
            other => {
                return Err(invalid(format!(
                    "its algorithm is number {other}; unigram (1) and BPE (2) are known"
                )));
            }
        };
        finish(&mut inner, &model.pieces, model.add_dummy_prefix, model.charsmap)?;
        let id = |id: Option<u64>| {
            id.and_then(|id| u32::try_from(id).ok()).filter(|id| (*id as usize) < model.pieces.len())
        };
        let (bos, eos) = (id(model.bos), id(model.eos));
        Ok(Self {
            inner,
            kind: "SentencePiece",
            bos,
            eos,
            add_bos: Some(true),
            add_eos: false,
            template: None,
        })
    }
}

/// SentencePiece's BPE from pieces, with normalizer, decoder and special tokens.
pub(crate) fn bpe_from_pieces(
    pieces: &[Piece],
    unk: Option<usize>,
    prefix: bool,
) -> Result<Pipeline, TokenizerError> {
    let mut inner = bpe(pieces, unk)?;
    finish(&mut inner, pieces, prefix, &[])?;
    Ok(inner)
}

/// The vocabulary of a `tokenizer.model` as plain data.
pub(crate) fn vocabulary(data: &[u8]) -> Result<Vocabulary, TokenizerError> {
    let model = parse(data)?;
    if model.algorithm != 2 {
        let value = "unigram".to_owned();
        return Err(TokenizerError::NoPlace { what: "a SentencePiece model of this kind", value });
    }
    let id = |id: Option<u64>| {
        id.and_then(|id| u32::try_from(id).ok()).filter(|id| (*id as usize) < model.pieces.len())
    };
    Ok(Vocabulary {
        model: "llama".to_owned(),
        tokens: model.pieces.iter().map(|p| p.text.clone()).collect(),
        token_types: model.pieces.iter().map(|p| p.kind.number()).collect(),
        scores: model.pieces.iter().map(|p| p.score).collect(),
        bos: id(model.bos),
        eos: id(model.eos),
        unk: id(model.unk),
        add_bos: Some(true),
        add_space_prefix: Some(model.add_dummy_prefix),
        ..Vocabulary::default()
    })
}

/// SentencePiece merges the pair whose union has the best score. As a list of merges: every way to cut a piece into two
/// pieces, best piece first.
pub(crate) fn cuts(pieces: &[Piece]) -> Result<Vec<(&str, &str)>, TokenizerError> {
    let mut scores: HashMap<&str, u32> = HashMap::with_capacity(pieces.len());
    for (piece, id) in pieces.iter().zip(0u32..) {
        if matches!(piece.kind, PieceKind::Normal | PieceKind::UserDefined) {
            scores.entry(&piece.text).or_insert(id);
        }
    }
    let mut cuts = Vec::new();
    let mut bytes = 0;
    for (piece, id) in pieces.iter().zip(0u32..).filter(|(p, _)| p.kind == PieceKind::Normal) {
        if piece.text.len() > MAX_PIECE {
            continue;
        }
        for (at, _) in piece.text.char_indices().skip(1) {
            let (left, right) = piece.text.split_at(at);
            if let (Some(l), Some(r)) = (scores.get(left), scores.get(right)) {
                bytes += piece.text.len();
                if bytes > MAX_MERGES {
                    return Err(invalid("its pieces can be cut into pieces in too many ways"));
                }
                cuts.push((piece.score, id, *l, *r, left, right));
            }
        }
    }
    cuts.sort_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2, a.3).cmp(&(b.1, b.2, b.3))));
    Ok(cuts.into_iter().map(|c| (c.4, c.5)).collect())
}

fn bpe(pieces: &[Piece], unk: Option<usize>) -> Result<Pipeline, TokenizerError> {
    let mut tokens = Tokens::with_capacity(pieces.len());
    for (piece, id) in pieces.iter().zip(0u32..) {
        tokens.insert(&piece.text, id).map_err(invalid)?;
    }
    let options = BpeOptions {
        unknown: unk.and_then(|id| pieces.get(id)).map(|unk| unk.text.clone()),
        fuse_unknown: true,
        byte_fallback: pieces.iter().any(|p| p.kind == PieceKind::Byte),
        ignore_merges: false,
    };
    let bpe = Bpe::new(tokens, cuts(pieces)?.into_iter(), options).map_err(invalid)?;
    Ok(Pipeline::new(Algorithm::Bpe(bpe)))
}

/// Bytes of a piece that merging may lead to: trying its cuts is quadratic in them. SentencePiece trains pieces of at most 16
/// characters.
const MAX_PIECE: usize = 512;
/// Bytes of all merges together; LLaMA-2's have half a megabyte.
const MAX_MERGES: usize = 1 << 26;

fn unigram(pieces: &[Piece], unk: Option<usize>) -> Result<Pipeline, TokenizerError> {
    let byte_fallback = pieces.iter().any(|p| p.kind == PieceKind::Byte);
    let vocab = pieces.iter().map(|p| (p.text.clone(), f64::from(p.score))).collect();
    let model = Unigram::from(vocab, unk, byte_fallback).map_err(invalid)?;
    Ok(Pipeline::new(Algorithm::Other(ModelWrapper::Unigram(model))))
}

/// Spaces, special tokens and the way back.
fn finish(
    inner: &mut Pipeline,
    pieces: &[Piece],
    prefix: bool,
    charsmap: &[u8],
) -> Result<(), TokenizerError> {
    let mut normalizers = Vec::new();
    if !charsmap.is_empty() {
        limits::check_charsmap(charsmap).map_err(invalid)?;
        normalizers.push(NormalizerWrapper::Precompiled(Precompiled::from(charsmap).map_err(invalid)?));
    }
    if prefix {
        normalizers.push(NormalizerWrapper::Prepend(Prepend::new(SPACE.to_owned())));
    }
    normalizers.push(NormalizerWrapper::Replace(Replace::new(" ", SPACE).map_err(invalid)?));
    inner.with_normalizer(Some(Normalizers::new(normalizers))).map_err(invalid)?;
    let mut decoders = vec![
        DecoderWrapper::Replace(Replace::new(SPACE, " ").map_err(invalid)?),
        DecoderWrapper::ByteFallback(ByteFallback::new()),
        DecoderWrapper::Fuse(Fuse::new()),
    ];
    if prefix {
        decoders.push(DecoderWrapper::Strip(Strip::new(' ', 1, 0)));
    }
    inner.with_decoder(Some(Decoders::new(decoders)));
    let of_kind = |kinds: &[PieceKind], special: bool| -> Vec<AddedToken> {
        let kind = |p: &&Piece| kinds.contains(&p.kind) && !p.text.is_empty();
        pieces
            .iter()
            .filter(kind)
            .map(|p| AddedToken::from(p.text.clone(), special).normalized(false))
            .collect()
    };
    inner.add_special_tokens(of_kind(&[PieceKind::Control, PieceKind::Unknown], true)).map_err(invalid)?;
    inner.add_tokens(of_kind(&[PieceKind::UserDefined], false)).map_err(invalid)?;
    Ok(())
}

#[cfg(test)]
mod tests;
