//! A file that has arrived in part: `ETAG.bitnet.incomplete` beside the blobs, as long as the whole, and
//! `ETAG.bitnet.ranges`, which says which bytes of it are there. Python's client does not take it for its own, which it
//! would continue at its end.

use crate::HubError;
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The endings of what is left of an interrupted download.
pub(crate) const INCOMPLETE: &str = ".bitnet.incomplete";
pub(crate) const RANGES: &str = ".bitnet.ranges";
const RANGES_TEMPORARY: &str = ".bitnet.ranges.tmp";

/// How often the ranges are written down. What arrived since is fetched again after a kill.
const SAVE_INTERVAL: Duration = Duration::from_millis(250);

#[derive(Serialize, Deserialize)]
struct Saved {
    size: u64,
    done: Vec<(u64, u64)>,
}

/// The bytes of a file that are there, those that are on their way, and those that nobody fetches yet.
pub(crate) struct Partial {
    path: PathBuf,
    ranges: PathBuf,
    temporary: PathBuf,
    size: u64,
    /// First byte and byte after the last; sorted, apart from each other.
    done: Vec<(u64, u64)>,
    taken: Vec<(u64, u64)>,
    saved: Instant,
}

impl Partial {
    /// What an earlier attempt left, or a new file.
    pub(crate) fn open(blob: &Path, size: u64) -> Result<Self, HubError> {
        let [path, ranges, temporary] = [INCOMPLETE, RANGES, RANGES_TEMPORARY].map(|end| beside(blob, end));
        let done = present(&path, &ranges, size);
        let file = File::options().write(true).create(true).truncate(false).open(&path);
        file.and_then(|f| f.set_len(size)).map_err(HubError::io(&path))?;
        Ok(Self { path, ranges, temporary, size, done, taken: Vec::new(), saved: Instant::now() })
    }

    /// How much of a file an earlier attempt left.
    pub(crate) fn present_bytes(blob: &Path, size: u64) -> u64 {
        total(&present(&beside(blob, INCOMPLETE), &beside(blob, RANGES), size))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn done_bytes(&self) -> u64 {
        total(&self.done)
    }

    /// The next bytes to fetch, at most `limit`; nobody else gets them until they are given back.
    pub(crate) fn take(&mut self, limit: u64) -> Option<(u64, u64)> {
        let mut busy: Vec<(u64, u64)> = self.done.iter().chain(&self.taken).copied().collect();
        busy.sort_unstable();
        let mut at = 0;
        for (first, end) in busy.into_iter().chain([(self.size, self.size)]) {
            if at < first {
                let range = (at, first.min(at + limit.max(1)));
                self.taken.push(range);
                return Some(range);
            }
            at = at.max(end);
        }
        None
    }

    /// A range that was taken is fetched, or given up.
    pub(crate) fn give_back(&mut self, range: (u64, u64)) {
        self.taken.retain(|r| *r != range);
    }

    /// Bytes are in the file.
    pub(crate) fn arrived(&mut self, first: u64, end: u64) -> Result<(), HubError> {
        add(&mut self.done, (first, end));
        if self.saved.elapsed() >= SAVE_INTERVAL {
            self.save()?;
        }
        Ok(())
    }

    /// Writes down what is there.
    pub(crate) fn save(&mut self) -> Result<(), HubError> {
        let saved = Saved { size: self.size, done: self.done.clone() };
        let text = serde_json::to_vec(&saved).expect("numbers are JSON");
        fs::write(&self.temporary, text).map_err(HubError::io(&self.temporary))?;
        fs::rename(&self.temporary, &self.ranges).map_err(HubError::io(&self.ranges))?;
        self.saved = Instant::now();
        Ok(())
    }

    /// Forgets everything that arrived.
    pub(crate) fn clear(&mut self) -> Result<(), HubError> {
        self.done.clear();
        self.taken.clear();
        self.save()
    }

    /// Takes the blob's name.
    pub(crate) fn finish(self, blob: &Path) -> Result<(), HubError> {
        let file = File::open(&self.path).map_err(HubError::io(&self.path))?;
        file.sync_all().map_err(HubError::io(&self.path))?;
        fs::rename(&self.path, blob).map_err(HubError::io(blob))?;
        self.remove();
        Ok(())
    }

    /// Removes all traces.
    pub(crate) fn remove(self) {
        for path in [self.path, self.ranges, self.temporary] {
            let _ = fs::remove_file(path);
        }
    }
}

fn beside(blob: &Path, end: &str) -> PathBuf {
    let mut name = blob.as_os_str().to_owned();
    name.push(end);
    PathBuf::from(name)
}

/// The ranges that were written down, as far as they can be true.
fn present(path: &Path, ranges: &Path, size: u64) -> Vec<(u64, u64)> {
    let whole = fs::metadata(path).is_ok_and(|m| m.len() == size);
    let saved = fs::read(ranges).ok().and_then(|text| serde_json::from_slice::<Saved>(&text).ok());
    let Some(saved) = saved.filter(|s| whole && s.size == size) else { return Vec::new() };
    let mut done = Vec::new();
    for (first, end) in saved.done {
        if first < end && end <= size {
            add(&mut done, (first, end));
        }
    }
    done
}

fn total(ranges: &[(u64, u64)]) -> u64 {
    ranges.iter().map(|(first, end)| end - first).sum()
}

/// Adds a range to sorted ones, and joins those that touch.
fn add(ranges: &mut Vec<(u64, u64)>, (mut first, mut end): (u64, u64)) {
    ranges.retain(|r| {
        let touches = r.0 <= end && first <= r.1;
        if touches {
            first = first.min(r.0);
            end = end.max(r.1);
        }
        !touches
    });
    let at = ranges.partition_point(|r| r.0 < first);
    ranges.insert(at, (first, end));
}

#[cfg(test)]
mod tests;
