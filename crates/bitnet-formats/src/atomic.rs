//! Files that appear whole or not at all.

use crate::FormatError;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use tempfile::NamedTempFile;

/// A file under a temporary name beside its target. Dropped unfinished, it leaves nothing.
pub(crate) struct AtomicFile {
    target: PathBuf,
    file: BufWriter<NamedTempFile>,
}

impl AtomicFile {
    pub(crate) fn create(target: &Path) -> Result<Self, FormatError> {
        let folder = target.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let file = tempfile::Builder::new()
            .prefix(".bitnet-")
            .suffix(".part")
            .tempfile_in(folder)
            .map_err(FormatError::io(folder))?;
        Ok(Self { target: target.to_owned(), file: BufWriter::with_capacity(1 << 20, file) })
    }

    pub(crate) fn target(&self) -> &Path {
        &self.target
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), FormatError> {
        self.file.write_all(bytes).map_err(FormatError::io(&self.target))
    }

    /// Flushes to the disk and takes the target's name.
    pub(crate) fn finish(self) -> Result<(), FormatError> {
        let Self { target, file } = self;
        let file = file
            .into_inner()
            .map_err(|e| FormatError::Io { path: target.clone(), source: e.into_error() })?;
        file.as_file().sync_all().map_err(FormatError::io(&target))?;
        readable(&file).map_err(FormatError::io(&target))?;
        file.persist(&target).map_err(|e| FormatError::Io { path: target.clone(), source: e.error })?;
        Ok(())
    }
}

/// Temporary files are private; a model is an ordinary file.
#[cfg(unix)]
fn readable(file: &NamedTempFile) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    file.as_file().set_permissions(std::fs::Permissions::from_mode(0o644))
}

#[cfg(not(unix))]
fn readable(_file: &NamedTempFile) -> std::io::Result<()> {
    Ok(())
}
