//! The bytes that tokens stand for.

use crate::Tokenizer;

/// What an id adds to a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenBytes {
    /// These bytes; a character may be spread over several tokens.
    Text(Vec<u8>),
    /// Nothing: a special token of this name.
    Special(String),
}

impl Tokenizer {
    /// What each id below `vocab` stands for; ids that the vocabulary lacks stand for no bytes.
    pub fn token_bytes(&self, vocab: usize) -> Vec<TokenBytes> {
        let decoder =
            self.inner.get_decoder().and_then(|d| serde_json::to_string(d).ok()).unwrap_or_default();
        let byte_level = decoder.contains("ByteLevel");
        let added = self.inner.get_added_vocabulary().get_added_tokens_decoder();
        let of = |id: u32| match (added.get(&id), self.inner.id_to_token(id)) {
            (Some(token), _) if token.special => TokenBytes::Special(token.content.clone()),
            (Some(token), _) => TokenBytes::Text(token.content.clone().into_bytes()),
            (None, Some(piece)) if byte_level => TokenBytes::Text(from_byte_level(&piece)),
            (None, Some(piece)) => TokenBytes::Text(from_sentencepiece(&piece)),
            (None, None) => TokenBytes::Text(Vec::new()),
        };
        (0..vocab as u32).map(of).collect()
    }
}

/// GPT-2 writes each byte as a character that can be seen: those that can be as themselves, the others from U+0100 on.
fn from_byte_level(piece: &str) -> Vec<u8> {
    let seen = |b: u8| matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let byte = |c: char| match u32::from(c) {
        c @ 0..0x100 => Some(c as u8),
        c => (0..=255u8).filter(|b| !seen(*b)).nth(c as usize - 0x100),
    };
    match piece.chars().map(byte).collect() {
        Some(bytes) => bytes,
        None => piece.as_bytes().to_vec(),
    }
}

/// SentencePiece writes a space as U+2581, and a byte that is no character as `<0x0A>`.
fn from_sentencepiece(piece: &str) -> Vec<u8> {
    let byte = piece.strip_prefix("<0x").and_then(|p| p.strip_suffix('>')).filter(|p| p.len() == 2);
    match byte.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
        Some(byte) => vec![byte],
        None => piece.replace('\u{2581}', " ").into_bytes(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_back_from_either_way_of_writing_them() {
        assert_eq!(from_byte_level("Ġhi"), b" hi");
        assert_eq!(from_byte_level("Ċ"), b"\n");
        assert_eq!(from_byte_level("ÃŃ"), [0xc3, 0xad]);
        assert_eq!(from_sentencepiece("▁hi"), b" hi");
        assert_eq!(from_sentencepiece("<0xE2>"), [0xe2]);
        assert_eq!(from_sentencepiece("<0xZZ>"), b"<0xZZ>");
    }
}
