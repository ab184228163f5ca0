//! Keys: those given at the start, and those of a file that is read again when it changes.

use axum::http::{HeaderMap, header};
use sha2::{Digest, Sha256};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

/// How often a key file is looked at.
const LOOK: Duration = Duration::from_secs(1);

type Hash = [u8; 32];

/// The keys that open a server. Only their hashes are kept.
#[derive(Debug, Default)]
pub struct Keys {
    given: Vec<Hash>,
    file: Option<Mutex<KeyFile>>,
}

#[derive(Debug)]
struct KeyFile {
    path: PathBuf,
    keys: Vec<Hash>,
    changed: Option<SystemTime>,
    looked: Instant,
}

impl Keys {
    /// Keys, and a file with one on each line.
    ///
    /// # Errors
    /// The file cannot be read, or holds no key.
    pub fn new(keys: &[String], file: Option<PathBuf>) -> std::io::Result<Self> {
        let file = file
            .map(|path| {
                let keys = read(&path)?;
                let changed = modified(&path);
                Ok::<_, std::io::Error>(Mutex::new(KeyFile { path, keys, changed, looked: Instant::now() }))
            })
            .transpose()?;
        Ok(Self { given: keys.iter().map(|key| hash(key.as_bytes())).collect(), file })
    }

    /// Whether nobody needs a key.
    pub fn is_open(&self) -> bool {
        self.given.is_empty() && self.file.is_none()
    }

    /// The name of whoever holds the key of a request; `None` where it opens nothing.
    pub(crate) fn client(&self, headers: &HeaderMap) -> Option<String> {
        if self.is_open() {
            return Some(String::new());
        }
        let bearer = headers.get(header::AUTHORIZATION).and_then(|v| v.to_str().ok()).and_then(|v| {
            let (scheme, key) = v.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then(|| key.trim().as_bytes())
        });
        let key = hash(bearer.or_else(|| headers.get("x-api-key").map(|v| v.as_bytes()))?);
        let mut right = false;
        // Every key is compared, each in a time that does not depend on where it differs.
        let mut compare = |known: &[Hash]| known.iter().for_each(|known| right |= equal(known, &key));
        compare(&self.given);
        if let Some(file) = &self.file {
            let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
            file.refresh();
            compare(&file.keys);
        }
        // A piece of the hash names a client in the queue without giving its key away.
        right.then(|| key[..8].iter().map(|b| format!("{b:02x}")).collect())
    }
}

impl KeyFile {
    fn refresh(&mut self) {
        if self.looked.elapsed() < LOOK {
            return;
        }
        self.looked = Instant::now();
        let changed = modified(&self.path);
        if changed == self.changed {
            return;
        }
        match read(&self.path) {
            Ok(keys) => (self.keys, self.changed) = (keys, changed),
            Err(e) => tracing::warn!("the key file keeps its old keys: {e}"),
        }
    }
}

fn modified(path: &std::path::Path) -> Option<SystemTime> {
    std::fs::metadata(path).and_then(|m| m.modified()).ok()
}

fn read(path: &std::path::Path) -> std::io::Result<Vec<Hash>> {
    let text = std::fs::read_to_string(path)?;
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let keys: Vec<Hash> = lines.map(|key| hash(key.as_bytes())).collect();
    match keys.is_empty() {
        true => Err(std::io::Error::other(format!("{} holds no key", path.display()))),
        false => Ok(keys),
    }
}

fn hash(key: &[u8]) -> Hash {
    Sha256::digest(key).into()
}

fn equal(a: &Hash, b: &Hash) -> bool {
    std::hint::black_box(a.iter().zip(b).fold(0, |difference, (a, b)| difference | (a ^ b))) == 0
}
