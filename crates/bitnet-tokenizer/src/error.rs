//! What can be wrong with a vocabulary or a template.

use std::path::Path;

/// Why a tokenizer could not be built or used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenizerError {
    /// The operating system refused.
    #[error("{path}")]
    Io {
        /// The file.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// A file is not what it should be.
    #[error("{what} is not valid: {why}")]
    Invalid {
        /// What was read; its path, where it was a file.
        what: String,
        /// What is wrong.
        why: String,
    },
    /// A GGUF vocabulary of a kind that is not known.
    #[error("the vocabulary's {key} is {value:?}; {known} are known")]
    UnknownKind {
        /// The metadata key.
        key: &'static str,
        /// Its value.
        value: String,
        /// What would do.
        known: &'static str,
    },
    /// A GGUF vocabulary cannot say what a `tokenizer.json` says.
    #[error("a GGUF vocabulary has no place for {what}: {value}")]
    NoPlace {
        /// Of what kind it is.
        what: &'static str,
        /// What it is, shortened.
        value: String,
    },
    /// No vocabulary could be made of some texts.
    #[error("no vocabulary could be made: {0}")]
    Train(String),
    /// Text could not be encoded.
    #[error("the text could not be encoded: {0}")]
    Encode(String),
    /// Ids could not be decoded.
    #[error("the ids could not be decoded: {0}")]
    Decode(String),
}

impl TokenizerError {
    /// The same error of a file that is known by its path.
    pub(crate) fn of(self, path: &Path) -> Self {
        match self {
            Self::Invalid { why, .. } => Self::Invalid { what: path.display().to_string(), why },
            other => other,
        }
    }
}

/// Why a chat template could not be parsed or rendered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TemplateError {
    /// The template is no valid Jinja.
    #[error("the chat template does not parse: {0}")]
    Parse(String),
    /// Rendering failed, or the template itself raised an error.
    #[error("the chat template could not be rendered: {0}")]
    Render(String),
}
