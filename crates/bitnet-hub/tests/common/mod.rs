//! A hub on this machine and a cache in a temporary folder.

#![allow(dead_code, clippy::unwrap_used, reason = "each test file uses a part; tests fail by panicking")]

use bitnet_hub::{Cached, Cancel, Event, Hub, HubError, Patterns, Reference, Settings};
use bitnet_testkit::hub::{HubServer, Repo};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;
use tempfile::TempDir;

pub struct Lab {
    pub server: HubServer,
    pub folder: TempDir,
}

impl Lab {
    pub fn new() -> Self {
        Self { server: HubServer::start(), folder: tempfile::tempdir().unwrap() }
    }

    /// With a GGUF file of so many bytes as `org/name`.
    pub fn with_file(len: usize) -> Self {
        let lab = Self::new();
        lab.server.put("org/name", Repo::new(&[("model.gguf", noise(len))]));
        lab
    }

    pub fn settings(&self) -> Settings {
        Settings {
            endpoint: self.server.url().to_owned(),
            piece_bytes: 64 << 10,
            timeout: Duration::from_secs(2),
            backoff: Duration::from_millis(1),
            ..Settings::new(self.cache())
        }
    }

    pub fn cache(&self) -> PathBuf {
        self.folder.path().join("hub")
    }

    pub fn hub(&self) -> Hub {
        Hub::new(self.settings())
    }

    pub fn pull(&self, reference: &str) -> Result<Cached, HubError> {
        pull(&self.hub(), reference)
    }

    /// What the cache holds below the repository's folder, sorted.
    pub fn names(&self) -> Vec<String> {
        let root = self.cache().join("models--org--name");
        let mut names = if root.is_dir() { files(&root) } else { Vec::new() };
        names.sort();
        names
    }
}

pub fn pull(hub: &Hub, reference: &str) -> Result<Cached, HubError> {
    hub.pull(&parse(reference), &Patterns::default(), &|_| {}, &Cancel::new())
}

/// Pulls, and returns the events too.
pub fn told(hub: &Hub, reference: &str) -> (Result<Cached, HubError>, Vec<Event>) {
    let events = Mutex::new(Vec::new());
    let done = hub.pull(
        &parse(reference),
        &Patterns::default(),
        &|e| events.lock().unwrap().push(e),
        &Cancel::new(),
    );
    (done, events.into_inner().unwrap())
}

pub fn parse(reference: &str) -> Reference {
    reference.parse().unwrap()
}

/// Bytes that no two pieces have in common.
pub fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let word = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    let mut bytes: Vec<u8> = (0..len.div_ceil(8)).flat_map(word).collect();
    bytes.truncate(len);
    bytes
}

/// Names of files and links below a folder.
pub fn files(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(at) = folders.pop() {
        for entry in fs::read_dir(at).unwrap() {
            let entry = entry.unwrap();
            match entry.file_type().unwrap().is_dir() {
                true => folders.push(entry.path()),
                false => found.push(entry.path().strip_prefix(folder).unwrap().to_str().unwrap().to_owned()),
            }
        }
    }
    found
}
