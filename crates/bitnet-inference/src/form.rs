//! Answers of a given form: before every token, llguidance says which ids may follow.

use crate::GenerateError;
use bitnet_tokenizer::{TokenBytes, Tokenizer};
use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::{ApproximateTokEnv, SimpleVob, TokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory};
use serde_json::Value;
use std::fmt;
use std::sync::{Arc, OnceLock};

/// What an answer has to look like.
#[derive(Clone, Debug, PartialEq)]
pub enum Form {
    /// JSON that a schema describes.
    JsonSchema(Value),
    /// Text that a regular expression matches as a whole.
    Regex(String),
    /// Text that a grammar in llguidance's Lark dialect produces from `start`.
    Lark(String),
}

/// Whitespace between the parts of JSON: a space, or a line end with an indent. A model that is unsure likes to write nothing else.
const WHITESPACE: &str = r"( |\n[ \t]{0,20})";

/// A schema for which llguidance lets whitespace run no further than anybody needs; one that says itself how is left alone.
pub fn bounded_whitespace(mut schema: Value) -> Value {
    if let Some(object) = schema.as_object_mut() {
        object.entry("x-guidance").or_insert_with(|| serde_json::json!({"whitespace_pattern": WHITESPACE}));
    }
    schema
}

/// Compiles forms for one vocabulary.
pub struct Forms {
    tokenizer: Arc<Tokenizer>,
    vocab: usize,
    end_ids: Vec<u32>,
    factory: OnceLock<Result<ParserFactory, String>>,
}

impl Forms {
    pub(crate) fn new(tokenizer: Arc<Tokenizer>, vocab: usize, end_ids: Vec<u32>) -> Self {
        Self { tokenizer, vocab, end_ids, factory: OnceLock::new() }
    }

    /// Compiles a form. The first time, the vocabulary is prepared, which takes a good part of a second for a large one.
    ///
    /// # Errors
    /// The form is wrong, or larger than the compiler's limits.
    pub fn compile(&self, form: &Form) -> Result<Constraint, GenerateError> {
        let factory = self.factory.get_or_init(|| self.factory()).as_ref().map_err(|e| wrong(e))?;
        let grammar = match form {
            Form::JsonSchema(schema) => TopLevelGrammar::from_json_schema(bounded_whitespace(schema.clone())),
            Form::Regex(regex) => TopLevelGrammar::from_regex(regex),
            Form::Lark(grammar) => TopLevelGrammar::from_lark(grammar.clone()),
        };
        let matcher = Matcher::new(factory.create_parser(grammar));
        match matcher.get_error() {
            None => Ok(Constraint(matcher)),
            Some(why) => Err(wrong(&why)),
        }
    }

    fn factory(&self) -> Result<ParserFactory, String> {
        let end = *self.end_ids.first().ok_or("the model has no token that ends a text")?;
        let words: Vec<Vec<u8>> = self
            .tokenizer
            .token_bytes(self.vocab)
            .into_iter()
            .map(|token| match token {
                TokenBytes::Text(bytes) => bytes,
                TokenBytes::Special(name) => [&[TokTrie::SPECIAL_TOKEN_MARKER], name.as_bytes()].concat(),
            })
            .collect();
        let info = TokRxInfo::new(self.vocab as u32, end);
        let trie = TokTrie::from(&info, &words).with_eos_tokens(&self.end_ids);
        let environment: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let mut factory = ParserFactory::new_simple(&environment).map_err(|e| e.to_string())?;
        factory.quiet();
        Ok(factory)
    }
}

/// What the compiler says, in one line and without the state of its parser.
fn wrong(why: &str) -> GenerateError {
    let words: Vec<&str> = why.split("<state>").next().unwrap_or_default().split_whitespace().collect();
    GenerateError::Form { why: words.join(" ") }
}

/// A compiled form, and how far an answer has come in it.
pub struct Constraint(Matcher);

impl Constraint {
    /// The ids that may follow; the end tokens where the form is complete.
    pub(crate) fn allowed(&mut self) -> Result<SimpleVob, GenerateError> {
        self.0.compute_mask_or_eos().map_err(|e| wrong(&e.to_string()))
    }

    /// An id follows.
    pub(crate) fn follow(&mut self, id: u32) -> Result<(), GenerateError> {
        // Behind a complete form nothing follows but the end.
        if self.0.is_stopped() && !self.0.is_error() {
            return Ok(());
        }
        self.0.consume_token(id).map_err(|e| wrong(&e.to_string()))
    }

    /// Forgets the last ids that followed.
    pub(crate) fn take_back(&mut self, ids: usize) -> Result<(), GenerateError> {
        self.0.rollback(ids).map_err(|e| wrong(&e.to_string()))
    }
}

impl Clone for Constraint {
    fn clone(&self) -> Self {
        Self(self.0.deep_clone())
    }
}

impl fmt::Debug for Constraint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Constraint")
    }
}
