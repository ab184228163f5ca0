//! What a pull tells whoever started it.

use std::sync::Arc;
use std::time::Duration;

/// A step of a pull. Events of several files come interleaved, from several threads.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event {
    /// The revision is known.
    Resolved {
        /// The commit it stands for.
        commit: String,
    },
    /// What will come.
    Planned {
        /// The files that the cache lacks.
        files: Vec<PlannedFile>,
        /// How many files it has already.
        cached: usize,
    },
    /// Another process is fetching this file; it is waited for.
    Waiting {
        /// The file.
        file: Arc<str>,
    },
    /// A file's transfer begins or goes on.
    Started {
        /// The file.
        file: Arc<str>,
        /// Bytes that an earlier attempt left.
        present_bytes: u64,
    },
    /// Bytes have arrived.
    Received {
        /// The file.
        file: Arc<str>,
        /// How many.
        bytes: u64,
    },
    /// What had arrived cannot be used; the file begins again.
    Restarted {
        /// The file.
        file: Arc<str>,
    },
    /// A request failed and will be repeated.
    Retrying {
        /// What failed.
        error: String,
        /// When it is repeated.
        after: Duration,
    },
    /// The hash is being computed.
    Verifying {
        /// The file.
        file: Arc<str>,
    },
    /// A file is whole, verified and in place.
    Finished {
        /// The file.
        file: Arc<str>,
    },
}

/// A file that a pull will fetch.
#[derive(Clone, Debug)]
pub struct PlannedFile {
    /// Its path in the repository.
    pub file: Arc<str>,
    /// Its size.
    pub size_bytes: u64,
    /// Bytes that an earlier attempt left.
    pub present_bytes: u64,
}

/// Takes events, from several threads.
pub type Events<'a> = &'a (dyn Fn(Event) + Sync);
