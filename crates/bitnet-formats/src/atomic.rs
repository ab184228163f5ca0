//! Files that appear whole or not at all.

use crate::FormatError;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use tempfile::NamedTempFile;

/// A file under a temporary name beside its target. Dropped unfinished, it leaves nothing.
pub(crate) struct AtomicFile {
    target: PathBuf,
    file: BufWriter<Sink>,
}

enum Sink {
    Temporary(NamedTempFile),
    /// A device or a pipe, which takes bytes as they come and must not be replaced.
    Stream(File),
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Temporary(file) => file.write(bytes),
            Self::Stream(file) => file.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Temporary(file) => file.flush(),
            Self::Stream(file) => file.flush(),
        }
    }
}

impl AtomicFile {
    pub(crate) fn create(target: &Path) -> Result<Self, FormatError> {
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
        let folder = target.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let file = tempfile::Builder::new()
            .prefix(".bitnet-")
            .suffix(".part")
            .tempfile_in(folder)
            .map_err(|e| FormatError::Io { path: folder.to_owned(), source: plain(e) })?;
        Ok(Self { target, file: BufWriter::with_capacity(capacity, Sink::Temporary(file)) })
    }

    pub(crate) fn target(&self) -> &Path {
        &self.target
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), FormatError> {
        self.file
            .write_all(bytes)
            .map_err(|e| FormatError::Io { path: self.target.clone(), source: plain(e) })
    }

    /// Flushes to the disk and takes the target's name.
    pub(crate) fn finish(self) -> Result<(), FormatError> {
        let Self { target, file } = self;
        let fail = |source| FormatError::Io { path: target.clone(), source: plain(source) };
        match file.into_inner().map_err(|e| fail(e.into_error()))? {
            Sink::Stream(_) => Ok(()),
            Sink::Temporary(file) => {
                file.as_file().sync_all().map_err(fail)?;
                readable(&file).map_err(fail)?;
                file.persist(&target).map_err(|e| fail(e.error))?;
                Ok(())
            }
        }
    }
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
