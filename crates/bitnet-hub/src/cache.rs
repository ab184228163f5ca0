//! The cache that the hub's clients share: `models--org--name/{blobs,refs,snapshots}`, and `.locks` beside them.
//!
//! A blob's name is the hash of its content, and it takes that name only when it is whole and verified. A snapshot is a
//! folder of links to blobs. A branch's file in `refs` is written last: where it names a snapshot, the snapshot is there.

use crate::reference::{RepoId, is_safe_path};
use crate::{Cancel, HubError, wire};
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, SystemTime};

/// How often a lock that another process holds is tried.
const LOCK_INTERVAL: Duration = Duration::from_millis(100);

/// The folders of one repository.
#[derive(Clone, Debug)]
pub(crate) struct RepoFolder {
    pub(crate) path: PathBuf,
    locks: PathBuf,
}

impl RepoFolder {
    pub(crate) fn new(root: &Path, repo: &RepoId) -> Self {
        let folder = repo.folder();
        Self { path: root.join(&folder), locks: root.join(".locks").join(&folder) }
    }

    pub(crate) fn blobs(&self) -> PathBuf {
        self.path.join("blobs")
    }

    pub(crate) fn blob(&self, etag: &str) -> PathBuf {
        self.blobs().join(etag)
    }

    pub(crate) fn snapshots(&self) -> PathBuf {
        self.path.join("snapshots")
    }

    pub(crate) fn snapshot(&self, commit: &str) -> PathBuf {
        self.snapshots().join(commit)
    }

    pub(crate) fn refs(&self) -> PathBuf {
        self.path.join("refs")
    }

    pub(crate) fn locks(&self) -> &Path {
        &self.locks
    }

    /// Makes what a download needs.
    pub(crate) fn create(&self, commit: &str) -> Result<(), HubError> {
        for folder in [self.blobs(), self.snapshot(commit), self.locks.clone()] {
            create_dir(&folder)?;
        }
        Ok(())
    }

    /// The snapshot that a revision stands for, as far as the cache knows.
    pub(crate) fn commit(&self, revision: &str) -> Option<String> {
        if wire::is_commit(revision) {
            return self.snapshot(revision).is_dir().then(|| revision.to_owned());
        }
        if !is_safe_path(revision) {
            return None;
        }
        let text = fs::read_to_string(self.refs().join(revision)).ok()?;
        let commit = text.trim();
        (wire::is_commit(commit) && self.snapshot(commit).is_dir()).then(|| commit.to_owned())
    }

    /// Lets a branch or tag stand for a snapshot.
    pub(crate) fn write_ref(&self, revision: &str, commit: &str, cancel: &Cancel) -> Result<(), HubError> {
        let target = self.refs().join(revision);
        if fs::read_to_string(&target).is_ok_and(|old| old == commit) {
            return Ok(());
        }
        let _one_writer = self.lock("refs", cancel, &mut || {})?;
        create_dir(target.parent().unwrap_or(&target))?;
        // Not in `refs`: every file there is taken for a reference.
        let temporary = self.locks.join("refs.tmp");
        fs::write(&temporary, commit).map_err(HubError::io(&temporary))?;
        fs::rename(&temporary, &target).map_err(HubError::io(&target))
    }

    /// Puts a blob under a file's name into a snapshot: as a link, or where there are none as the file itself.
    pub(crate) fn link(&self, commit: &str, file: &str, etag: &str, link: LinkAs) -> Result<(), HubError> {
        let (blob, pointer) = (self.blob(etag), self.snapshot(commit).join(file));
        create_dir(pointer.parent().unwrap_or(&pointer))?;
        let ups = Path::new(file).components().count() + 1;
        let target: PathBuf =
            std::iter::repeat_n(Component::ParentDir, ups).collect::<PathBuf>().join("blobs").join(etag);
        if fs::read_link(&pointer).is_ok_and(|old| old == target) {
            return Ok(());
        }
        let fail = HubError::io(&pointer);
        // A link or a file appears whole under its name. The lock on the blob keeps this name ours.
        let temporary = self.locks.join(format!("{etag}.link"));
        let _ = fs::remove_file(&temporary);
        if link != LinkAs::File && symlink(&target, &temporary).is_ok() {
            return fs::rename(&temporary, &pointer).map_err(fail);
        }
        if link == LinkAs::NewBlob || link == LinkAs::File && !self.is_linked(etag) {
            return fs::rename(&blob, &pointer).map_err(fail);
        }
        fs::copy(&blob, &temporary).map_err(HubError::io(&temporary))?;
        fs::rename(&temporary, &pointer).map_err(fail)
    }

    /// Whether a snapshot has a link to a blob.
    pub(crate) fn is_linked(&self, etag: &str) -> bool {
        let blob = self.blob(etag);
        let snapshots = sub_folders(&self.snapshots());
        snapshots.iter().any(|s| files_below(s).iter().any(|f| first_hop(f).is_some_and(|b| b == blob)))
    }

    /// Takes a lock of this repository; what Python's client locks before a blob is written is `ETAG`.
    pub(crate) fn lock(
        &self,
        name: &str,
        cancel: &Cancel,
        waiting: &mut dyn FnMut(),
    ) -> Result<Lock, HubError> {
        create_dir(&self.locks)?;
        let path = self.locks.join(format!("{name}.lock"));
        let mut told = false;
        loop {
            if let Some(lock) = try_lock(&path, Sharing::Alone)? {
                return Ok(lock);
            }
            if !std::mem::replace(&mut told, true) {
                waiting();
            }
            cancel.sleep(LOCK_INTERVAL)?;
        }
    }

    /// Takes a lock unless somebody has it.
    pub(crate) fn try_lock(&self, name: &str) -> Result<Option<Lock>, HubError> {
        create_dir(&self.locks)?;
        try_lock(&self.locks.join(format!("{name}.lock")), Sharing::Alone)
    }

    /// Marks a snapshot as in use for as long as the lease lives.
    pub(crate) fn lease(&self, commit: &str, cancel: &Cancel) -> Result<Lease, HubError> {
        create_dir(&self.locks)?;
        let path = self.use_mark(commit);
        loop {
            if let Some(lock) = try_lock(&path, Sharing::Together)? {
                // What is used least recently is cleared first.
                let _ = lock.file.set_modified(SystemTime::now());
                return Ok(Lease { _lock: lock });
            }
            cancel.sleep(LOCK_INTERVAL)?;
        }
    }

    /// The right to remove a snapshot: nobody uses it, and nobody begins to.
    pub(crate) fn try_remove(&self, commit: &str) -> Result<Option<Lock>, HubError> {
        create_dir(&self.locks)?;
        try_lock(&self.use_mark(commit), Sharing::Alone)
    }

    pub(crate) fn use_mark(&self, commit: &str) -> PathBuf {
        self.locks.join(format!("{commit}.use"))
    }
}

/// How a snapshot gets a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LinkAs {
    /// A link to a blob that other snapshots may share; a copy where links fail.
    SharedBlob,
    /// A link to a blob that was just made; where links fail the file itself.
    NewBlob,
    /// The file itself.
    File,
}

/// A file lock, for as long as it lives.
#[derive(Debug)]
pub(crate) struct Lock {
    file: File,
}

/// Says that a snapshot is in use. While it lives, neither `rm` nor `prune` of any process removes the snapshot.
#[derive(Debug)]
pub struct Lease {
    _lock: Lock,
}

/// The snapshot of a cache in which a path lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The repository.
    pub repo: RepoId,
    /// The commit.
    pub commit: String,
    /// The folder in which the repository's folder lies.
    pub cache: PathBuf,
}

/// Where a file or folder is from, if it lies in a snapshot of some cache.
pub fn snapshot_of(path: &Path) -> Option<Origin> {
    let path = std::path::absolute(path).ok()?;
    path.ancestors().find_map(|snapshot| {
        let commit = snapshot.file_name()?.to_str().filter(|c| wire::is_commit(c))?;
        let snapshots = snapshot.parent().filter(|p| p.ends_with("snapshots"))?;
        let folder = snapshots.parent()?;
        let repo = RepoId::from_folder(folder.file_name()?.to_str()?)?;
        let cache = folder.parent()?.to_owned();
        snapshot.is_dir().then(|| Origin { repo, commit: commit.to_owned(), cache })
    })
}

impl Lease {
    /// Holds the snapshot in which a path lies, if it lies in one and the cache can be written to.
    pub fn of(path: &Path) -> Option<Self> {
        let origin = snapshot_of(path)?;
        RepoFolder::new(&origin.cache, &origin.repo).lease(&origin.commit, &Cancel::new()).ok()
    }
}

#[derive(Clone, Copy)]
enum Sharing {
    Alone,
    Together,
}

fn try_lock(path: &Path, sharing: Sharing) -> Result<Option<Lock>, HubError> {
    let fail = HubError::io;
    let file = File::options().read(true).append(true).create(true).open(path).map_err(fail(path))?;
    let locked = match sharing {
        Sharing::Alone => file.try_lock(),
        Sharing::Together => file.try_lock_shared(),
    };
    match locked {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Ok(None),
        Err(TryLockError::Error(e)) => return Err(fail(path)(e)),
    }
    // Whoever held it may have removed the file; a lock on what has no name protects nothing.
    Ok(is_at(&file, path).then_some(Lock { file }))
}

#[cfg(unix)]
fn is_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    match (file.metadata(), fs::metadata(path)) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        _ => false,
    }
}

/// Files that are open are not removed on other systems.
#[cfg(not(unix))]
fn is_at(_file: &File, _path: &Path) -> bool {
    true
}

#[cfg(unix)]
fn symlink(target: &Path, link: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(target, link)
}

#[cfg(windows)]
fn symlink(target: &Path, link: &Path) -> io::Result<()> {
    std::os::windows::fs::symlink_file(target, link)
}

#[cfg(not(any(unix, windows)))]
fn symlink(_target: &Path, _link: &Path) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

pub(crate) fn create_dir(path: &Path) -> Result<(), HubError> {
    fs::create_dir_all(path).map_err(HubError::io(path))
}

/// What a link says it points at, made absolute; nothing for what is no link. Links of links are not followed: where
/// caches share blobs, the second hop belongs to all of them.
pub(crate) fn first_hop(link: &Path) -> Option<PathBuf> {
    let target = fs::read_link(link).ok()?;
    let mut path = link.parent()?.to_owned();
    for part in target.components() {
        match part {
            Component::ParentDir => {
                path.pop();
            }
            Component::CurDir => {}
            other => path.push(other),
        }
    }
    Some(path)
}

/// Files and links below a folder, at most a few folders deep.
pub(crate) fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![(folder.to_owned(), 0)];
    while let Some((folder, depth)) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() && depth < 32 => folders.push((entry.path(), depth + 1)),
                Ok(kind) if !kind.is_dir() => found.push(entry.path()),
                _ => {}
            }
        }
    }
    found.sort();
    found
}

pub(crate) fn sub_folders(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> =
        entries.filter(|e| e.file_type().is_ok_and(|k| k.is_dir())).map(|e| e.path()).collect();
    found.sort();
    found
}
