//! What can go wrong between here and the hub.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Why the hub or the cache could not serve.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HubError {
    /// A text is no `org/repo[:file-or-quant][@revision]`.
    #[error("{text:?} does not name a model of the hub: {what} (org/repo[:file-or-quant][@revision])")]
    Reference {
        /// The text.
        text: String,
        /// What is wrong with it.
        what: &'static str,
    },
    /// An environment variable or option cannot be used.
    #[error("{name}: {what}")]
    Setting {
        /// Its name.
        name: &'static str,
        /// What is wrong.
        what: String,
    },
    /// The cache does not hold it and the network is off.
    #[error("{reference} is not in the cache ({what}), and offline mode is on")]
    Offline {
        /// What was asked for.
        reference: String,
        /// What is missing.
        what: String,
    },
    /// The hub knows no such repository, or does not show it to this user.
    #[error("{endpoint} has no {repo}, or it is private and {token} not open it")]
    RepoNotFound {
        /// The hub.
        endpoint: String,
        /// The repository.
        repo: String,
        /// How the user was known.
        token: &'static str,
    },
    /// The repository has no such branch, tag or commit.
    #[error("{repo} has no branch, tag or commit {revision:?}")]
    RevisionNotFound {
        /// The repository.
        repo: String,
        /// The revision.
        revision: String,
    },
    /// The repository's owner must grant access first.
    #[error(
        "{repo} is gated: accept its terms at {endpoint}/{repo}, and give a token of that account in HF_TOKEN"
    )]
    Gated {
        /// The hub.
        endpoint: String,
        /// The repository.
        repo: String,
    },
    /// The token is not valid.
    #[error("{endpoint} does not accept the token (HF_TOKEN, or the one stored by `hf auth login`)")]
    Token {
        /// The hub.
        endpoint: String,
    },
    /// The hub answered with a status that no retry mends.
    #[error("{url} answered {status}{}{message}", if message.is_empty() { "" } else { ": " })]
    Status {
        /// The address.
        url: String,
        /// The status.
        status: u16,
        /// What the hub said.
        message: String,
    },
    /// The hub asks to wait for longer than is waited.
    #[error("{url} is rate limited for another {} s; a token (HF_TOKEN) raises the limit", wait.as_secs())]
    RateLimited {
        /// The address.
        url: String,
        /// For how long.
        wait: Duration,
    },
    /// The connection failed, again and again.
    #[error("{url} failed {attempts} times")]
    Network {
        /// The address.
        url: String,
        /// How often.
        attempts: u32,
        /// The last failure.
        source: io::Error,
    },
    /// An answer is not what the hub answers.
    #[error("{url} gave no valid answer: {what}")]
    Response {
        /// The address.
        url: String,
        /// What is wrong.
        what: String,
    },
    /// The repository has no file that was asked for.
    #[error("{repo} has no {wanted}; it has {}", list(has))]
    NoFile {
        /// The repository.
        repo: String,
        /// What was asked for.
        wanted: String,
        /// What it has.
        has: Vec<String>,
    },
    /// Several files could be meant.
    #[error("{repo} has several models; name one: {}", list(choices))]
    Ambiguous {
        /// The repository.
        repo: String,
        /// References that would do.
        choices: Vec<String>,
    },
    /// What came is not what the hub said would come.
    #[error("{file} has the {kind} {found}, not {expected}: it was damaged on the way, and is not kept")]
    Damaged {
        /// The file.
        file: String,
        /// Which property.
        kind: &'static str,
        /// As announced.
        expected: String,
        /// As computed.
        found: String,
    },
    /// The disk is too full.
    #[error(
        "{} has {:.2} GB free, and {:.2} GB are needed; `bitnet cache prune --max-size` makes room",
        path.display(), gigabytes(*have_bytes), gigabytes(*need_bytes)
    )]
    Space {
        /// Where.
        path: PathBuf,
        /// Bytes to come.
        need_bytes: u64,
        /// Bytes free.
        have_bytes: u64,
    },
    /// The cache does not hold it.
    #[error("{reference} is not in the cache: {what}")]
    NotCached {
        /// What was asked for.
        reference: String,
        /// What is missing.
        what: String,
    },
    /// A running program uses it.
    #[error("{repo}@{commit} is in use by a running program")]
    InUse {
        /// The repository.
        repo: String,
        /// The snapshot.
        commit: String,
    },
    /// The operating system refused.
    #[error("{}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The caller changed its mind.
    #[error("cancelled")]
    Cancelled,
}

fn gigabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e9
}

/// A list that stays on one line.
fn list(names: &[String]) -> String {
    match names {
        [] => "no files".to_owned(),
        _ if names.len() > 12 => format!("{} and {} more", names[..12].join(", "), names.len() - 12),
        _ => names.join(", "),
    }
}

impl HubError {
    pub(crate) fn io(path: &Path) -> impl FnOnce(io::Error) -> Self + '_ {
        move |source| Self::Io { path: path.to_owned(), source }
    }

    pub(crate) fn response(url: &str, what: impl Into<String>) -> Self {
        Self::Response { url: url.to_owned(), what: what.into() }
    }
}
