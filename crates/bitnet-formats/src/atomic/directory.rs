//! Directories that appear whole or not at all.

use super::{SUFFIX, folder_of, prefix};
use crate::FormatError;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

/// A directory that appears under its name when it is whole. Where the system has files without names, nothing of it is to be
/// seen before [`NewDirectory::begin`], so that a process that is killed before leaves nothing; dropped unfinished, it leaves
/// nothing anywhere, and what a process left that was killed later is cleared away by the next one that writes to the same target.
pub struct NewDirectory {
    target: PathBuf,
    stage: PathBuf,
    /// Holds the lock, where the system can lock directories; `None` until the directory is there.
    there: Option<Option<File>>,
}

impl NewDirectory {
    /// A directory at `target`, which must not exist, or be an empty directory.
    pub fn create(target: &Path) -> Result<Self, FormatError> {
        let refuse = |what: &str| FormatError::Write { path: target.to_owned(), what: what.to_owned() };
        match fs::read_dir(target).map(|mut entries| entries.next().is_some()) {
            Ok(true) => return Err(refuse("it exists and is not empty; remove it or choose another name")),
            Err(_) if fs::symlink_metadata(target).is_ok() => {
                return Err(refuse("it exists and is no directory that could be written to"));
            }
            _ => {}
        }
        if target.file_name().is_none() {
            return Err(refuse("it is no name of a directory"));
        }
        let mut hidden = prefix(target);
        hidden.push(SUFFIX);
        let stage = folder_of(target).join(hidden);
        let mut directory = Self { target: target.to_owned(), stage, there: None };
        directory.clear()?;
        #[cfg(target_os = "linux")]
        if super::unnamed::create(folder_of(target)).is_some() {
            return Ok(directory);
        }
        directory.begin()?;
        Ok(directory)
    }

    /// Where its files are to be written.
    pub fn path(&self) -> &Path {
        &self.stage
    }

    /// Makes it, under a name of its own. Its files can be begun before, but not finished.
    pub fn begin(&mut self) -> Result<(), FormatError> {
        if self.there.is_none() {
            if let Err(e) = fs::create_dir(&self.stage) {
                return Err(match e.kind() {
                    io::ErrorKind::AlreadyExists => self.busy(),
                    _ => self.io(e),
                });
            }
            let lock = lock(&self.stage).map_err(|e| self.io(e))?;
            self.there = Some(lock.ok_or_else(|| self.busy())?);
        }
        Ok(())
    }

    /// Gives the directory its name. Files in it are flushed already.
    pub fn finish(self) -> Result<(), FormatError> {
        #[cfg(unix)]
        File::open(&self.stage).and_then(|d| d.sync_all()).map_err(|e| self.io(e))?;
        #[cfg(not(unix))]
        let _ = fs::remove_dir(&self.target);
        fs::rename(&self.stage, &self.target).map_err(|e| self.io(e))
    }

    /// Removes what a killed process has left.
    fn clear(&self) -> Result<(), FormatError> {
        if fs::symlink_metadata(&self.stage).is_err() {
            return Ok(());
        }
        match lock(&self.stage).map_err(|e| self.io(e))? {
            None => Err(self.busy()),
            Some(_lock) => fs::remove_dir_all(&self.stage).map_err(|e| self.io(e)),
        }
    }

    fn busy(&self) -> FormatError {
        FormatError::Write { path: self.target.clone(), what: "another process is writing it".to_owned() }
    }

    /// An error names the target: the hidden name means nothing to whoever reads it.
    fn io(&self, source: io::Error) -> FormatError {
        FormatError::Io { path: self.target.clone(), source }
    }
}

impl Drop for NewDirectory {
    fn drop(&mut self) {
        if self.there.is_some() {
            // After a rename there is nothing under this name.
            let _ = fs::remove_dir_all(&self.stage);
        }
    }
}

/// Where files lie that have no name yet: in their folder, or, where that is a directory that has not begun, beside it.
#[cfg(target_os = "linux")]
pub(super) fn beside(folder: &Path) -> &Path {
    let is_stage = folder.file_name().is_some_and(|name| {
        let name = name.as_encoded_bytes();
        name.starts_with(b".") && name.ends_with(SUFFIX.as_bytes())
    });
    if is_stage && !folder.exists() { folder_of(folder) } else { folder }
}

/// The inner `None` where directories cannot be locked, the outer one where another process holds the lock.
#[cfg(unix)]
fn lock(directory: &Path) -> io::Result<Option<Option<File>>> {
    let file = File::open(directory)?;
    match file.try_lock() {
        Ok(()) => Ok(Some(Some(file))),
        Err(fs::TryLockError::WouldBlock) => Ok(None),
        Err(fs::TryLockError::Error(e)) => Err(e),
    }
}

#[cfg(not(unix))]
fn lock(_directory: &Path) -> io::Result<Option<Option<File>>> {
    Ok(Some(None))
}
