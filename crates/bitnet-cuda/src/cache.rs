//! Machine code that was compiled at run time, kept in a folder: a file for each kernel, architecture, driver and state of the sources.

use sha2::{Digest, Sha256};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// What a file begins with; behind it are the key, the hash of the code, a line each, and the code.
const MAGIC: &str = "bitnet kernel 1\n";
/// A larger file is none of ours: code of a kernel has some ten thousand bytes.
const MAX_FILE: u64 = 16 << 20;
const SUFFIX: &str = "cubin";

/// A folder of machine code, of which what is oldest goes when it has more than so many bytes.
#[derive(Clone, Debug)]
pub struct KernelCache {
    /// Where it is; made when there is something to keep.
    pub folder: PathBuf,
    /// Bytes of its files, at most.
    pub max_bytes: u64,
}

impl KernelCache {
    /// The code that is kept under a key. A file that is damaged or has another key counts as none.
    pub(crate) fn get(&self, key: &str) -> Option<Vec<u8>> {
        let path = self.path(key);
        if fs::metadata(&path).ok()?.len() > MAX_FILE {
            return None;
        }
        let file = fs::read(path).ok()?;
        let rest = file.strip_prefix(MAGIC.as_bytes())?.strip_prefix(key.as_bytes())?.strip_prefix(b"\n")?;
        let (hash, code) = rest.split_at_checked(64)?;
        let code = code.strip_prefix(b"\n")?;
        (hash == hex(code).as_bytes()).then(|| code.to_vec())
    }

    /// Keeps code under a key, a line. The file is whole, or not there.
    pub(crate) fn put(&self, key: &str, code: &[u8]) -> std::io::Result<()> {
        fs::create_dir_all(&self.folder)?;
        let mut file =
            tempfile::Builder::new().prefix(".kernel-").suffix(".part").tempfile_in(&self.folder)?;
        write!(file, "{MAGIC}{key}\n{}\n", hex(code))?;
        file.write_all(code)?;
        file.as_file().sync_all()?;
        let path = self.path(key);
        file.persist(&path).map_err(|e| e.error)?;
        self.prune(&path);
        Ok(())
    }

    fn path(&self, key: &str) -> PathBuf {
        self.folder.join(format!("{}.{SUFFIX}", &hex(key.as_bytes())[..32]))
    }

    /// Removes what is oldest until the rest is small enough; `newest` stays. What cannot be removed stays too.
    fn prune(&self, newest: &Path) {
        let Ok(entries) = fs::read_dir(&self.folder) else { return };
        let mut files: Vec<(SystemTime, u64, PathBuf)> = entries
            .filter_map(|entry| {
                let path = entry.ok()?.path();
                let data = fs::metadata(&path).ok().filter(fs::Metadata::is_file)?;
                let own = path.extension().is_some_and(|suffix| suffix == SUFFIX) && path != newest;
                own.then(|| Some((data.modified().ok()?, data.len(), path)))?
            })
            .collect();
        files.sort();
        let kept = fs::metadata(newest).map_or(0, |data| data.len());
        let mut bytes = kept + files.iter().map(|(_, bytes, _)| bytes).sum::<u64>();
        for (_, own, path) in files {
            if bytes <= self.max_bytes {
                break;
            }
            if fs::remove_file(path).is_ok() {
                bytes -= own;
            }
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests;
