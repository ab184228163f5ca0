//! Files that appear whole or not at all.

mod directory;

pub use directory::NewDirectory;

use crate::FormatError;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use tempfile::NamedTempFile;

/// A file without a name where the system has such, else under a temporary one beside its target. Dropped unfinished, it
/// leaves nothing; without a name, a process that is killed leaves nothing either.
pub struct AtomicFile {
    target: PathBuf,
    file: BufWriter<Sink>,
}

enum Sink {
    #[cfg(target_os = "linux")]
    Unnamed(File),
    Temporary(NamedTempFile),
    /// A device or a pipe, which takes bytes as they come and must not be replaced.
    Stream(File),
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            #[cfg(target_os = "linux")]
            Self::Unnamed(file) => file.write(bytes),
            Self::Temporary(file) => file.write(bytes),
            Self::Stream(file) => file.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            #[cfg(target_os = "linux")]
            Self::Unnamed(file) => file.flush(),
            Self::Temporary(file) => file.flush(),
            Self::Stream(file) => file.flush(),
        }
    }
}

impl AtomicFile {
    /// Begins a file that will be called `target`; devices and pipes are written to as they are.
    ///
    /// # Errors
    /// The file system's.
    pub fn create(target: &Path) -> Result<Self, FormatError> {
        let capacity = 1 << 20;
        let is_stream = fs::metadata(target).is_ok_and(|m| !m.is_file() && !m.is_dir());
        if is_stream {
            let file = File::options().write(true).open(target).map_err(FormatError::io(target))?;
            let file = BufWriter::with_capacity(capacity, Sink::Stream(file));
            return Ok(Self { target: target.to_owned(), file });
        }
        // What a link points at is replaced, not the link.
        let target = fs::canonicalize(target).unwrap_or_else(|_| target.to_owned());
        if target.is_dir() {
            return Err(FormatError::Write { path: target, what: "it is a directory".to_owned() });
        }
        let folder = folder_of(&target);
        #[cfg(target_os = "linux")]
        if let Some(file) = unnamed::create(directory::beside(folder)) {
            return Ok(Self { target, file: BufWriter::with_capacity(capacity, Sink::Unnamed(file)) });
        }
        let file = tempfile::Builder::new()
            .prefix(".bitnet-")
            .suffix(".part")
            .tempfile_in(folder)
            .map_err(|e| FormatError::Io { path: folder.to_owned(), source: plain(e) })?;
        Ok(Self { target, file: BufWriter::with_capacity(capacity, Sink::Temporary(file)) })
    }

    /// What it will be called.
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// Writes behind what is there.
    ///
    /// # Errors
    /// The file system's.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), FormatError> {
        self.file
            .write_all(bytes)
            .map_err(|e| FormatError::Io { path: self.target.clone(), source: plain(e) })
    }

    /// Flushes to the disk; taking a name is a matter of a moment then.
    pub(crate) fn sync(&mut self) -> Result<(), FormatError> {
        let flushed = self.file.flush().and_then(|()| match self.file.get_ref() {
            #[cfg(target_os = "linux")]
            Sink::Unnamed(file) => file.sync_all(),
            Sink::Temporary(file) => file.as_file().sync_all(),
            Sink::Stream(_) => Ok(()),
        });
        flushed.map_err(|e| FormatError::Io { path: self.target.clone(), source: plain(e) })
    }

    /// Flushes to the disk and takes the target's name.
    ///
    /// # Errors
    /// The file system's; the target is then as it was.
    pub fn finish(self) -> Result<(), FormatError> {
        let Self { target, file } = self;
        let fail = |source| FormatError::Io { path: target.clone(), source: plain(source) };
        match file.into_inner().map_err(|e| fail(e.into_error()))? {
            Sink::Stream(_) => Ok(()),
            #[cfg(target_os = "linux")]
            Sink::Unnamed(file) => {
                file.sync_all().map_err(fail)?;
                unnamed::name(&file, &target).map_err(fail)
            }
            Sink::Temporary(file) => {
                file.as_file().sync_all().map_err(fail)?;
                readable(&file).map_err(fail)?;
                file.persist(&target).map_err(|e| fail(e.error))?;
                Ok(())
            }
        }
    }
}

fn folder_of(target: &Path) -> &Path {
    target.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Files that have no name until they are whole.
#[cfg(target_os = "linux")]
mod unnamed {
    use super::{SUFFIX, folder_of, prefix};
    use rustix::fs::{AtFlags, CWD, Mode, OFlags, linkat, open};
    use std::fs::{self, File};
    use std::io;
    use std::os::fd::AsRawFd;
    use std::path::Path;

    /// `None` where the file system has no such files.
    pub(super) fn create(folder: &Path) -> Option<File> {
        let file = open(folder, OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC, Mode::from(0o644)).ok()?;
        let file = File::from(file);
        // Whether it can be named later depends on /proc.
        fs::symlink_metadata(path(&file)).ok()?;
        Some(file)
    }

    fn path(file: &File) -> String {
        format!("/proc/self/fd/{}", file.as_raw_fd())
    }

    /// Gives the file its name. A link cannot take the place of a file, a rename can: where there is one, the new file has
    /// another name first. What a process that was killed between the two has left is cleared away by the next one; the
    /// lock, which ends with its process, tells that from what another one is about to rename.
    pub(super) fn name(file: &File, target: &Path) -> io::Result<()> {
        let link =
            |to: &Path| linkat(CWD, path(file), CWD, to, AtFlags::SYMLINK_FOLLOW).map_err(io::Error::from);
        // Where files cannot be locked, nothing is cleared away.
        let _ = file.lock();
        match link(target) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                let passing = tempfile::Builder::new()
                    .prefix(&prefix(target))
                    .suffix(SUFFIX)
                    .make_in(folder_of(target), link)?;
                passing.into_temp_path().persist(target).map_err(|e| e.error)?;
            }
            done => done?,
        }
        clear(target);
        Ok(())
    }

    /// Removes what killed processes have left beside a target. Whatever cannot be looked at stays.
    fn clear(target: &Path) {
        let (prefix, entries) = (prefix(target), fs::read_dir(folder_of(target)));
        for entry in entries.into_iter().flatten().flatten() {
            let name = entry.file_name();
            let (name, prefix) = (name.as_encoded_bytes(), prefix.as_encoded_bytes());
            let is_left = name.starts_with(prefix)
                && name.ends_with(SUFFIX.as_bytes())
                && entry.file_type().is_ok_and(|t| t.is_file())
                && File::open(entry.path()).is_ok_and(|f| f.try_lock().is_ok());
            if is_left {
                let _ = fs::remove_file(entry.path());
            }
        }
    }
}

/// The end of names that things have before they are whole.
const SUFFIX: &str = ".bitnet-part";

/// The beginning of such names beside a target.
fn prefix(target: &Path) -> OsString {
    let mut name = OsString::from(".");
    name.push(target.file_name().unwrap_or_default());
    name
}

/// A whole file at once, under the same rules.
pub fn write_file(target: &Path, bytes: &[u8]) -> Result<(), FormatError> {
    let mut file = AtomicFile::create(target)?;
    file.write(bytes)?;
    file.finish()
}

/// The error without the temporary file's name, which means nothing to whoever reads it.
fn plain(e: io::Error) -> io::Error {
    match e.to_string().split_once(" at path ") {
        Some((what, _)) => io::Error::new(e.kind(), what),
        None => e,
    }
}

/// Temporary files are private; a model is an ordinary file.
#[cfg(unix)]
fn readable(file: &NamedTempFile) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    file.as_file().set_permissions(fs::Permissions::from_mode(0o644))
}

#[cfg(not(unix))]
fn readable(_file: &NamedTempFile) -> io::Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests;
