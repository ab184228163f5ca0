//! What the cache holds.

use crate::cache::{RepoFolder, files_below, first_hop, sub_folders};
use crate::reference::RepoId;
use crate::{Hub, HubError, wire};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// A snapshot in the cache.
#[derive(Clone, Debug)]
pub struct CachedSnapshot {
    /// The repository.
    pub repo: RepoId,
    /// The commit.
    pub commit: String,
    /// Branches and tags that stand for it.
    pub refs: Vec<String>,
    /// Its files.
    pub files: Vec<CachedFile>,
    /// When a program last opened it, as far as that was written down.
    pub last_used: SystemTime,
    /// Its folder.
    pub path: PathBuf,
}

impl CachedSnapshot {
    /// Bytes of its files, each content once. Other snapshots may share some.
    pub fn size_bytes(&self) -> u64 {
        let contents: BTreeMap<&Path, u64> =
            self.files.iter().map(|f| (f.content.as_path(), f.size_bytes)).collect();
        contents.values().sum()
    }
}

/// A file of a snapshot.
#[derive(Clone, Debug)]
pub struct CachedFile {
    /// Its path in the repository.
    pub name: String,
    /// Its size.
    pub size_bytes: u64,
    /// Where its content lies: a blob, or where there are no links the file itself.
    pub content: PathBuf,
}

/// Numbers of the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheStats {
    /// The folder.
    pub cache: PathBuf,
    /// Model repositories.
    pub repos: usize,
    /// Snapshots of them.
    pub snapshots: usize,
    /// Contents, each counted once.
    pub blobs: usize,
    /// Their bytes.
    pub size_bytes: u64,
    /// Bytes that no snapshot has: interrupted downloads, and what removals left.
    pub leftover_bytes: u64,
    /// Bytes free on the disk.
    pub free_bytes: u64,
}

impl Hub {
    /// All model snapshots of the cache, by repository. Other clients' downloads are among them.
    pub fn scan(&self) -> Vec<CachedSnapshot> {
        self.repo_folders().iter().flat_map(|(repo, folder)| snapshots(repo, folder)).collect()
    }

    /// Numbers of the cache.
    pub fn stats(&self) -> Result<CacheStats, HubError> {
        let cache = self.settings().cache.clone();
        let snapshots = self.scan();
        let contents: BTreeMap<&Path, u64> =
            snapshots.iter().flat_map(|s| &s.files).map(|f| (f.content.as_path(), f.size_bytes)).collect();
        let repos: BTreeSet<&RepoId> = snapshots.iter().map(|s| &s.repo).collect();
        let folders = self.repo_folders();
        let blobs = folders.iter().flat_map(|(_, folder)| files_below(&folder.blobs()));
        let leftovers = blobs.filter(|f| !contents.contains_key(f.as_path()));
        let there = cache.ancestors().find(|p| p.is_dir()).unwrap_or(&cache);
        Ok(CacheStats {
            repos: repos.len(),
            snapshots: snapshots.len(),
            blobs: contents.len(),
            size_bytes: contents.values().sum(),
            leftover_bytes: leftovers.map(|f| used_bytes(&f)).sum(),
            free_bytes: fs4::available_space(there).map_err(HubError::io(there))?,
            cache,
        })
    }

    /// The folders of the model repositories.
    pub(crate) fn repo_folders(&self) -> Vec<(RepoId, RepoFolder)> {
        let cache = &self.settings().cache;
        let repo = |path: &PathBuf| RepoId::from_folder(path.file_name()?.to_str()?);
        sub_folders(cache).iter().filter_map(repo).map(|r| (r.clone(), RepoFolder::new(cache, &r))).collect()
    }
}

pub(crate) fn snapshots(repo: &RepoId, folder: &RepoFolder) -> Vec<CachedSnapshot> {
    let refs = refs(folder);
    let snapshot = |path: PathBuf| {
        let commit = path.file_name()?.to_str().filter(|c| wire::is_commit(c))?.to_owned();
        Some(CachedSnapshot {
            repo: repo.clone(),
            refs: refs.iter().filter(|(_, c)| **c == commit).map(|(name, _)| name.clone()).collect(),
            last_used: SystemTime::UNIX_EPOCH,
            files: files_below(&path).iter().filter_map(|f| file(&path, f)).collect(),
            commit,
            path,
        })
    };
    let mut found: Vec<CachedSnapshot> =
        sub_folders(&folder.snapshots()).into_iter().filter_map(snapshot).collect();
    let mut users: BTreeMap<PathBuf, usize> = BTreeMap::new();
    for content in found.iter().flat_map(|s| s.files.iter().map(|f| &f.content).collect::<BTreeSet<_>>()) {
        *users.entry(content.clone()).or_default() += 1;
    }
    for snapshot in &mut found {
        // Other clients leave no mark, but reading leaves a time; of what two snapshots share it says nothing.
        let own = snapshot.files.iter().filter(|f| users.get(&f.content) == Some(&1));
        let read = own.filter_map(|f| fs::metadata(&f.content).ok()?.accessed().ok());
        let marked = fs::metadata(folder.use_mark(&snapshot.commit)).and_then(|m| m.modified()).ok();
        snapshot.last_used = read.chain(marked).max().unwrap_or(SystemTime::UNIX_EPOCH);
    }
    found
}

fn file(snapshot: &Path, path: &Path) -> Option<CachedFile> {
    let parts: Option<Vec<&str>> = path.strip_prefix(snapshot).ok()?.iter().map(|p| p.to_str()).collect();
    let size_bytes = fs::metadata(path).ok()?.len();
    Some(CachedFile {
        name: parts?.join("/"),
        size_bytes,
        content: first_hop(path).unwrap_or_else(|| path.to_owned()),
    })
}

/// Branches and tags, and the commits they stand for.
pub(crate) fn refs(folder: &RepoFolder) -> BTreeMap<String, String> {
    let root = folder.refs();
    let entry = |path: &PathBuf| {
        let parts: Option<Vec<&str>> = path.strip_prefix(&root).ok()?.iter().map(|p| p.to_str()).collect();
        Some((parts?.join("/"), fs::read_to_string(path).ok()?.trim().to_owned()))
    };
    files_below(&root).iter().filter_map(entry).collect()
}

/// Bytes that a file takes on the disk: a download that has begun is as long as the whole from its beginning.
#[cfg(unix)]
pub(crate) fn used_bytes(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    fs::symlink_metadata(path).map_or(0, |m| m.len().min(m.blocks() * 512))
}

#[cfg(not(unix))]
pub(crate) fn used_bytes(path: &Path) -> u64 {
    fs::symlink_metadata(path).map_or(0, |m| m.len())
}
