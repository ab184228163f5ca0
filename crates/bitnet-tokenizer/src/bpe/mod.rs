//! Byte-pair encoding: a word is taken apart into characters, and neighbours are put together again, best pair first.
//!
//! It gives the tokens that the `tokenizers` crate gives. That crate keeps every token as two strings of their own and every merge in
//! a hash map, which for Llama 3's vocabulary are 35 MB; a token here is a part of one string ([`Tokens`]), a merge twelve
//! bytes ([`Merges`]).

mod json;
mod merges;
mod tokens;

pub(crate) use json::{is_plain, read};
pub(crate) use tokens::Tokens;

use merges::Merges;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use tokenizers::Token;

/// What becomes of characters that are no tokens, and of words that are.
#[derive(Debug, Default)]
pub(crate) struct BpeOptions {
    /// The token that stands for them.
    pub unknown: Option<String>,
    /// Whether several in a row are one such token.
    pub fuse_unknown: bool,
    /// Whether the tokens of their bytes (`<0x0A>`) come first.
    pub byte_fallback: bool,
    /// Whether words that are tokens are not taken apart.
    pub ignore_merges: bool,
}

/// A vocabulary and its merges.
pub(crate) struct Bpe {
    options: BpeOptions,
    tokens: Tokens,
    merges: Merges,
    /// Tokens of bytes, where they are wanted; empty where not.
    bytes: Vec<Option<u32>>,
}

/// A part of a word; those that are left are a list.
struct Symbol {
    token: u32,
    /// Bytes of the word. None: it has become a part of the one before it.
    len: usize,
    previous: Option<usize>,
    next: Option<usize>,
}

impl Bpe {
    /// `merges` are pairs of tokens, best first.
    ///
    /// # Errors
    /// One of them, or what it makes, is no token.
    pub fn new<'a>(
        tokens: Tokens,
        merges: impl Iterator<Item = (&'a str, &'a str)>,
        options: BpeOptions,
    ) -> Result<Self, String> {
        let tokens = tokens.in_order();
        let mut both = String::new();
        let mut list = Vec::with_capacity(merges.size_hint().0);
        for (left, right) in merges {
            both.clear();
            both.extend([left, right]);
            let find = |text: &str| {
                let absent = || format!("the merge of {left:?} and {right:?}: {text:?} is no token");
                tokens.find(text).ok_or_else(absent)
            };
            list.push([find(left)?, find(right)?, find(&both)?]);
        }
        let byte = |b: u8| tokens.find(&format!("<0x{b:02X}>"));
        let bytes = if options.byte_fallback { (0..=255).map(byte).collect() } else { Vec::new() };
        Ok(Self { merges: Merges::new(tokens.len(), &list), bytes, options, tokens })
    }

    pub fn tokens(&self) -> &Tokens {
        &self.tokens
    }

    /// Tokens of a word, with the bytes that they stand for. Their texts are left empty: who wants to know asks the vocabulary.
    ///
    /// # Errors
    /// What stands for unknown text is no token itself.
    pub fn tokenize(&self, word: &str) -> Result<Vec<Token>, String> {
        if self.options.ignore_merges
            && let Some(token) = self.tokens.find(word)
        {
            return Ok(vec![Token::new(self.tokens.id(token), String::new(), (0, word.len()))]);
        }
        let mut symbols = self.characters(word)?;
        self.merge(&mut symbols);
        let mut at = 0;
        let left = symbols.iter().filter(|s| s.len > 0);
        let token = |s: &Symbol| {
            let begin = at;
            at += s.len;
            Token::new(self.tokens.id(s.token), String::new(), (begin, at))
        };
        Ok(left.map(token).collect())
    }

    /// A symbol for each character; several for one that is no token but whose bytes are, fewer for those that are unknown.
    fn characters(&self, word: &str) -> Result<Vec<Symbol>, String> {
        let mut symbols: Vec<Symbol> = Vec::with_capacity(word.len());
        let mut push = |token: u32, len: usize| {
            let at = symbols.len();
            if let Some(last) = symbols.last_mut() {
                last.next = Some(at);
            }
            symbols.push(Symbol { token, len, previous: at.checked_sub(1), next: None });
        };
        let mut unknown: Option<(u32, usize)> = None;
        for (at, c) in word.char_indices() {
            let text = &word[at..at + c.len_utf8()];
            if let Some(token) = self.tokens.find(text) {
                if let Some((token, len)) = unknown.take() {
                    push(token, len);
                }
                push(token, text.len());
                continue;
            }
            let byte = |b: u8| self.bytes.get(usize::from(b)).copied().flatten();
            if text.bytes().all(|b| byte(b).is_some()) {
                text.bytes().filter_map(byte).for_each(|token| push(token, 1));
                continue;
            }
            // Without a token for it, unknown text is left out.
            let Some(name) = &self.options.unknown else { continue };
            let before = match unknown.take() {
                Some((_, len)) if self.options.fuse_unknown => len,
                Some((token, len)) => {
                    push(token, len);
                    0
                }
                None => 0,
            };
            let token =
                self.tokens.find(name).ok_or_else(|| format!("{name:?}, for unknown text, is no token"))?;
            unknown = Some((token, before + text.len()));
        }
        if let Some((token, len)) = unknown {
            push(token, len);
        }
        Ok(symbols)
    }

    /// Merges the pair of the lowest rank, of equal ones the first, until no two neighbours are a pair.
    fn merge(&self, symbols: &mut [Symbol]) {
        let pair = |symbols: &[Symbol], at: usize| {
            let (rank, merged) = self.merges.get(symbols[at].token, symbols[symbols[at].next?].token)?;
            Some(Reverse((rank, at, merged)))
        };
        let mut queue: BinaryHeap<_> = (0..symbols.len()).filter_map(|at| pair(symbols, at)).collect();
        while let Some(Reverse((_, at, merged))) = queue.pop() {
            // Where a neighbour has been merged meanwhile, it is another pair or none.
            let now = pair(symbols, at).filter(|now| now.0.2 == merged && symbols[at].len > 0);
            let (Some(_), Some(right)) = (now, symbols[at].next) else { continue };
            let (len, next) = (symbols[right].len, symbols[right].next);
            symbols[right].len = 0;
            symbols[at].token = merged;
            symbols[at].len += len;
            symbols[at].next = next;
            if let Some(next) = next {
                symbols[next].previous = Some(at);
            }
            queue.extend(symbols[at].previous.and_then(|previous| pair(symbols, previous)));
            queue.extend(pair(symbols, at));
        }
    }
}

#[cfg(test)]
mod tests;
