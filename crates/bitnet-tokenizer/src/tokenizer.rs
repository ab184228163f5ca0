//! The tokenizer that every kind of vocabulary becomes.

use crate::algorithm::Pipeline;
use crate::limits;
use crate::{ChatTemplate, TemplateError, TokenizerError};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

/// Names of tokens that end a turn or a text, whatever the configuration says.
const END_TOKENS: [&str; 7] =
    ["<|eot_id|>", "<|end_of_text|>", "<|im_end|>", "<|endoftext|>", "<end_of_turn>", "<|end|>", "</s>"];

/// A vocabulary and its algorithm, special tokens, and the chat template that lay beside it.
pub struct Tokenizer {
    pub(crate) inner: Pipeline,
    pub(crate) kind: &'static str,
    pub(crate) bos: Option<u32>,
    pub(crate) eos: Option<u32>,
    /// Whether a text begins with `bos`; `None` leaves it to the post-processor of `tokenizer.json`.
    pub(crate) add_bos: Option<bool>,
    /// Whether a text ends with `eos`, besides what the post-processor of `tokenizer.json` does.
    pub(crate) add_eos: bool,
    /// One that does not parse is kept as its error: only who wants to chat needs to hear of it.
    pub(crate) template: Option<Result<ChatTemplate, TemplateError>>,
}

impl Tokenizer {
    /// Reads a `tokenizer.json`.
    pub fn from_json(json: &[u8]) -> Result<Self, TokenizerError> {
        let invalid = |why: String| TokenizerError::Invalid { what: "tokenizer.json".to_owned(), why };
        limits::check(json).map_err(invalid)?;
        // The library answers some inconsistent files (a merge of tokens that are not there) with a panic.
        let mut inner = catch_unwind(|| serde_json::from_slice::<Pipeline>(json))
            .map_err(|_| invalid("its parts contradict each other".to_owned()))?
            .map_err(|e| invalid(e.to_string()))?;
        // Settings of whoever trained it. As in transformers, a text is neither cut nor filled up unless the caller asks.
        inner.with_padding(None).with_truncation(None).map_err(|e| invalid(e.to_string()))?;
        Ok(Self {
            inner,
            kind: "tokenizer.json",
            bos: None,
            eos: None,
            add_bos: None,
            add_eos: false,
            template: None,
        })
    }

    /// Reads a `tokenizer.json` from disk.
    pub fn from_file(path: &Path) -> Result<Self, TokenizerError> {
        Self::from_json(&read(path)?).map_err(|e| e.of(path))
    }

    /// Ids of a text; `special` puts in front and behind what the model expects there. Special tokens inside the text are recognised.
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
        if let (true, true, Some(eos)) = (special, self.add_eos, self.eos)
            && ids.last() != Some(&eos)
        {
            ids.push(eos);
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

    /// The same tokenizer with a chat template, or with the reason why there is none to be had.
    pub fn with_template(self, template: Result<ChatTemplate, TemplateError>) -> Self {
        Self { template: Some(template), ..self }
    }

    /// The chat template beside the vocabulary, if there is one.
    ///
    /// # Errors
    /// It does not parse. Everything but chatting works all the same.
    pub fn template(&self) -> Result<Option<&ChatTemplate>, &TemplateError> {
        self.template.as_ref().map(Result::as_ref).transpose()
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

/// Bytes of a file that are taken; the largest vocabularies have 35 MB.
const MAX_FILE: u64 = 1 << 28;

/// A whole file, which must be a regular one: a pipe may never end.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>, TokenizerError> {
    let io = |source| TokenizerError::Io { path: path.display().to_string(), source };
    let invalid = |why| TokenizerError::Invalid { what: path.display().to_string(), why };
    let metadata = std::fs::metadata(path).map_err(io)?;
    if !metadata.is_file() {
        return Err(invalid("it is no regular file".to_owned()));
    }
    if metadata.len() > MAX_FILE {
        return Err(invalid(format!("it has {} bytes; at most {MAX_FILE} are taken", metadata.len())));
    }
    std::fs::read(path).map_err(io)
}

#[cfg(test)]
mod tests;
