//! Vocabularies of one's own: byte-level BPE, trained on texts.

use crate::gguf::llama3_words;
use crate::{ChatTemplate, SpecialTokens, TokenizerError, Vocabulary};
use serde_json::json;
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, Tokenizer as Inner};

/// What begins and ends every text.
pub const END_OF_TEXT: &str = "<|endoftext|>";

/// A template in ChatML, and the special tokens that it puts around what is said.
pub const CHATML_TEMPLATE: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + \
     '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
const CHATML_TOKENS: [&str; 2] = ["<|im_start|>", "<|im_end|>"];

/// Bytes, each of which is a token.
const ALPHABET: usize = 256;
/// Tokens that are taken; more would be more than anybody has trained.
const MAX_SIZE: usize = 1 << 20;
/// Bytes of text in all: the trainer counts pairs in 31 bits.
const MAX_BYTES: usize = i32::MAX as usize;

/// What a vocabulary is to be.
#[derive(Clone, Debug)]
pub struct BpeOptions {
    /// Tokens in all, special ones and the 256 bytes among them.
    pub size: usize,
    /// Special tokens besides [`END_OF_TEXT`] and those of the default template.
    pub special: Vec<String>,
    /// The chat template; [`CHATML_TEMPLATE`] where `None`.
    pub template: Option<String>,
}

/// The two files of a tokenizer; the same bytes for the same texts and options, whatever the number of threads and the order of texts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrainedTokenizer {
    /// `tokenizer.json`.
    pub tokenizer: Vec<u8>,
    /// `tokenizer_config.json`, with the chat template.
    pub config: Vec<u8>,
}

impl BpeOptions {
    /// Trains on texts. Words are cut as Llama 3's are; merges are those of the most frequent pairs, that occur at least twice.
    ///
    /// # Errors
    /// Options that contradict each other, a template that does not parse, and texts that are too many or have too few words.
    ///
    /// ```
    /// let options = bitnet_tokenizer::BpeOptions { size: 264, special: Vec::new(), template: None };
    /// let files = options.train(["ships sail at night".to_owned(), "ships sail home".to_owned()].into_iter())?;
    /// let tokenizer = bitnet_tokenizer::Tokenizer::from_json(&files.tokenizer)?;
    /// assert_eq!(tokenizer.vocab_size(), 264);
    /// # Ok::<(), bitnet_tokenizer::TokenizerError>(())
    /// ```
    pub fn train(
        &self,
        texts: impl Iterator<Item = String> + Send,
    ) -> Result<TrainedTokenizer, TokenizerError> {
        let special = self.special_tokens();
        let least = ALPHABET + special.len();
        if self.size < least || self.size > MAX_SIZE {
            return Err(training(format!(
                "it is to have {} tokens; with {} special ones and a token for each byte it has {least} at least, and {MAX_SIZE} at most",
                self.size,
                special.len(),
            )));
        }
        if let Some((_, text)) = special.iter().enumerate().find(|(i, t)| special[..*i].contains(t)) {
            return Err(training(format!("the special token {text:?} is there twice")));
        }
        let template = self.template.as_deref().unwrap_or(CHATML_TEMPLATE);
        ChatTemplate::new(template, SpecialTokens::default()).map_err(|e| training(e.to_string()))?;

        let mut inner = Inner::new(BPE::default());
        inner
            .with_pre_tokenizer(Some(llama3_words()?))
            .with_decoder(Some(ByteLevel::new(false, true, false)));
        let mut trainer = TrainerWrapper::from(
            BpeTrainer::builder()
                .vocab_size(self.size)
                .min_frequency(2)
                .show_progress(false)
                .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
                .special_tokens(special.iter().map(|t| AddedToken::from(t.clone(), true)).collect())
                .build(),
        );
        let mut bytes = 0;
        let counted = texts.take_while(|text| {
            bytes += text.len();
            bytes <= MAX_BYTES
        });
        inner.train(&mut trainer, counted).map_err(|e| training(e.to_string()))?;
        if bytes > MAX_BYTES {
            return Err(training(format!("the texts have more than {MAX_BYTES} bytes; a part of them does")));
        }
        let found = inner.get_vocab_size(true);
        if found < self.size {
            let what = format!(
                "the texts have pairs for {found} tokens only, and it is to have {}: give more texts, or ask for fewer tokens",
                self.size
            );
            return Err(training(what));
        }
        let mut json: serde_json::Value = inner
            .to_string(false)
            .map_err(|e| e.to_string())
            .and_then(|text| serde_json::from_str(&text).map_err(|e| e.to_string()))
            .map_err(training)?;
        json["model"]["ignore_merges"] = true.into();
        // By way of the form that GGUF files have, so that the vocabulary fits into one.
        let mut vocabulary = Vocabulary::from_json(json.to_string().as_bytes())?.vocabulary;
        let id =
            vocabulary.tokens.iter().position(|t| t == END_OF_TEXT).and_then(|id| u32::try_from(id).ok());
        (vocabulary.bos, vocabulary.eos, vocabulary.add_bos) = (id, id, Some(true));
        let config = json!({
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": END_OF_TEXT,
            "eos_token": END_OF_TEXT,
            "pad_token": END_OF_TEXT,
            "add_bos_token": true,
            "add_prefix_space": false,
            "clean_up_tokenization_spaces": false,
            "chat_template": template,
        });
        let config = serde_json::to_vec_pretty(&config).map_err(|e| training(e.to_string()))?;
        Ok(TrainedTokenizer { tokenizer: vocabulary.to_json()?, config: [&config[..], b"\n"].concat() })
    }

    fn special_tokens(&self) -> Vec<String> {
        let chat = CHATML_TOKENS.iter().filter(|_| self.template.is_none());
        let own = [END_OF_TEXT].iter().chain(chat).map(|t| (*t).to_owned());
        own.chain(self.special.iter().cloned()).collect()
    }
}

fn training(why: impl Into<String>) -> TokenizerError {
    TokenizerError::Train(why.into())
}

#[cfg(test)]
mod tests;
