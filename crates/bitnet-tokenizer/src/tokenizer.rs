//! The tokenizer that every kind of vocabulary becomes.

use crate::{ChatTemplate, TokenizerError};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use tokenizers::Tokenizer as Inner;

/// Names of tokens that end a turn or a text, whatever the configuration says.
const END_TOKENS: [&str; 7] =
    ["<|eot_id|>", "<|end_of_text|>", "<|im_end|>", "<|endoftext|>", "<end_of_turn>", "<|end|>", "</s>"];

/// A vocabulary and its algorithm, special tokens, and the chat template that lay beside it.
pub struct Tokenizer {
    pub(crate) inner: Inner,
    pub(crate) kind: &'static str,
    pub(crate) bos: Option<u32>,
    pub(crate) eos: Option<u32>,
    /// Whether a text begins with `bos`; `None` leaves it to the post-processor of `tokenizer.json`.
    pub(crate) add_bos: Option<bool>,
    pub(crate) template: Option<ChatTemplate>,
}

impl Tokenizer {
    /// Reads a `tokenizer.json`.
    pub fn from_json(json: &[u8]) -> Result<Self, TokenizerError> {
        let invalid = |why: String| TokenizerError::Invalid { what: "tokenizer.json", why };
        // The library answers some inconsistent files (a merge of tokens that are not there) with a panic.
        let inner = catch_unwind(|| Inner::from_bytes(json))
            .map_err(|_| invalid("its parts contradict each other".to_owned()))?
            .map_err(|e| invalid(e.to_string()))?;
        Ok(Self { inner, kind: "tokenizer.json", bos: None, eos: None, add_bos: None, template: None })
    }

    /// Reads a `tokenizer.json` from disk.
    pub fn from_file(path: &Path) -> Result<Self, TokenizerError> {
        Self::from_json(&read(path)?)
    }

    /// Ids of a text; `special` puts in front what the model expects there. Special tokens inside the text are recognised.
    pub fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>, TokenizerError> {
        // A panic of the library on a file it accepted must not end a server.
        let encoding = catch_unwind(AssertUnwindSafe(|| self.inner.encode_fast(text, special)))
            .map_err(|_| TokenizerError::Encode("its vocabulary is inconsistent".to_owned()))?
            .map_err(|e| TokenizerError::Encode(e.to_string()))?;
        let mut ids = encoding.get_ids().to_vec();
        if let (true, Some(true), Some(bos)) = (special, self.add_bos, self.bos)
            && ids.first() != Some(&bos)
        {
            ids.insert(0, bos);
        }
        Ok(ids)
    }

    /// Ids of a rendered conversation: special tokens are in it already, but for `bos` where the template leaves it to the
    /// tokenizer.
    pub fn encode_chat(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let mut ids = self.encode(text, false)?;
        if let Some(bos) = self.bos.filter(|bos| self.add_bos != Some(false) && ids.first() != Some(bos)) {
            ids.insert(0, bos);
        }
        Ok(ids)
    }

    /// Text of ids; bytes that are no UTF-8 become U+FFFD.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String, TokenizerError> {
        catch_unwind(AssertUnwindSafe(|| self.inner.decode(ids, skip_special)))
            .map_err(|_| TokenizerError::Decode("its vocabulary is inconsistent".to_owned()))?
            .map_err(|e| TokenizerError::Decode(e.to_string()))
    }

    /// The token of an id as it stands in the vocabulary.
    pub fn piece(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// The id of a token.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// Tokens in all, special ones included.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// Beginning of text.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// End of text.
    pub fn eos(&self) -> Option<u32> {
        self.eos
    }

    /// What kind of file it came from.
    pub fn kind(&self) -> &'static str {
        self.kind
    }

    /// The same tokenizer with a chat template.
    pub fn with_template(self, template: ChatTemplate) -> Self {
        Self { template: Some(template), ..self }
    }

    /// The chat template beside the vocabulary.
    pub fn template(&self) -> Option<&ChatTemplate> {
        self.template.as_ref()
    }

    /// Ids of tokens that are known to end a turn or a text.
    pub fn end_tokens(&self) -> Vec<u32> {
        let added = self.inner.get_added_vocabulary();
        let special = |name: &&&str| added.is_special_token(name);
        let mut ids: Vec<u32> = END_TOKENS.iter().filter(special).filter_map(|t| self.token_id(t)).collect();
        ids.extend(self.eos.filter(|eos| !ids.contains(eos)));
        ids
    }
}

pub(crate) fn read(path: &Path) -> Result<Vec<u8>, TokenizerError> {
    std::fs::read(path).map_err(|source| TokenizerError::Io { path: path.display().to_string(), source })
}

#[cfg(test)]
mod tests;
