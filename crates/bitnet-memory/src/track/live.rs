//! Pieces in use, one by one.

use crate::tag::Tag;
use std::backtrace::Backtrace;
use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A piece that somebody has.
#[derive(Clone, Debug)]
pub struct LivePiece {
    /// Bytes that were asked for.
    pub bytes: usize,
    /// What they are for.
    pub tag: Tag,
    /// Since when.
    pub since: Instant,
    /// Who asked for it.
    pub backtrace: Arc<Backtrace>,
}

impl LivePiece {
    /// For how long it has been in use.
    pub fn age(&self) -> Duration {
        self.since.elapsed()
    }
}

impl fmt::Display for LivePiece {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} bytes for {}, for {:.3} s, asked for by",
            self.bytes,
            self.tag,
            self.age().as_secs_f64()
        )?;
        self.backtrace.fmt(f)
    }
}

/// All of them, by what tells them apart.
#[derive(Default)]
pub(crate) struct Live(Mutex<HashMap<(usize, u32), LivePiece>>);

impl Live {
    #[cold]
    pub(crate) fn take(&self, key: (usize, u32), bytes: usize, tag: Tag) {
        let backtrace = Arc::new(Backtrace::force_capture());
        let piece = LivePiece { bytes, tag, since: Instant::now(), backtrace };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(key, piece);
    }

    #[cold]
    pub(crate) fn put(&self, key: (usize, u32)) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
    }

    /// The oldest first.
    pub(crate) fn list(&self) -> Vec<LivePiece> {
        let mut list: Vec<_> =
            self.0.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
        list.sort_by_key(|piece| piece.since);
        list
    }
}
