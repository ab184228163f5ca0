//! Taking things out of the cache: never what a running program uses, and never half.

use crate::cache::{RepoFolder, files_below, first_hop, sub_folders};
use crate::reference::Reference;
use crate::scan::{CachedSnapshot, refs, snapshots, used_bytes};
use crate::select::select;
use crate::{Hub, HubError};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The ending of a snapshot that is being removed.
const GONE: &str = ".gone";

/// What was taken out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// Snapshots, as `org/name@commit`.
    pub snapshots: Vec<String>,
    /// Snapshots that had to stay because a program uses them.
    pub in_use: Vec<String>,
    /// Bytes that became free.
    pub freed_bytes: u64,
}

/// What [`Hub::prune`] may do.
#[derive(Clone, Copy, Debug, Default)]
pub struct PruneOptions {
    /// Remove snapshots, least recently used first, until no more than this is left.
    pub max_bytes: Option<u64>,
    /// Say what would go, and let it stay.
    pub dry_run: bool,
}

impl Hub {
    /// Removes a repository, one revision of it, or one model of a revision.
    pub fn remove(&self, reference: &Reference) -> Result<Removed, HubError> {
        let folder = RepoFolder::new(&self.settings().cache, &reference.repo);
        let absent = |what: String| HubError::NotCached { reference: reference.to_string(), what };
        let mut chosen = snapshots(&reference.repo, &folder);
        if reference.revision.is_some() || reference.pick.is_some() {
            let commit = folder.commit(reference.revision());
            chosen.retain(|s| Some(&s.commit) == commit.as_ref());
        }
        if chosen.is_empty() {
            return Err(absent("there is no snapshot of it".to_owned()));
        }
        let mut removed = Removed::default();
        for snapshot in &chosen {
            let names: Vec<&str> = snapshot.files.iter().map(|f| f.name.as_str()).collect();
            let files = match reference.pick {
                Some(_) => Some(select(reference, &names)?.files),
                None => None,
            };
            removed.freed_bytes += take_out(&folder, snapshot, files.as_deref())?;
            removed.snapshots.push(named(snapshot));
        }
        if reference.revision.is_none() && reference.pick.is_none() {
            removed.freed_bytes += leftovers(&folder, Do::Remove);
        }
        tidy(&folder);
        Ok(removed)
    }

    /// Removes what no snapshot has (interrupted downloads, contents without a link), and snapshots that are too much.
    pub fn prune(&self, options: &PruneOptions) -> Result<Removed, HubError> {
        let action = if options.dry_run { Do::Count } else { Do::Remove };
        let folders = self.repo_folders();
        let mut removed = Removed::default();
        for (_, folder) in &folders {
            removed.freed_bytes += leftovers(folder, action);
        }
        let mut all = self.scan();
        all.sort_by_key(|s| s.last_used);
        // How many snapshots have each content.
        let mut contents: BTreeMap<PathBuf, (usize, u64)> = BTreeMap::new();
        for content in all.iter().flat_map(contents_of) {
            contents.entry(content.0).or_insert((0, content.1)).0 += 1;
        }
        let mut size: u64 = contents.values().map(|c| c.1).sum();
        for snapshot in &all {
            if options.max_bytes.is_none_or(|max| size <= max) {
                break;
            }
            let folder = RepoFolder::new(&self.settings().cache, &snapshot.repo);
            let freed = match options.dry_run {
                true => folder.try_remove(&snapshot.commit)?.map(|_| ()).ok_or_else(|| in_use(snapshot)),
                false => take_out(&folder, snapshot, None).map(|_| ()),
            };
            match freed {
                Err(HubError::InUse { .. }) => {
                    removed.in_use.push(named(snapshot));
                    continue;
                }
                other => other?,
            }
            for (content, bytes) in contents_of(snapshot) {
                let entry = contents.entry(content).or_default();
                entry.0 = entry.0.saturating_sub(1);
                if entry.0 == 0 {
                    size -= bytes;
                    removed.freed_bytes += bytes;
                }
            }
            removed.snapshots.push(named(snapshot));
        }
        if !options.dry_run {
            folders.iter().for_each(|(_, folder)| tidy(folder));
        }
        Ok(removed)
    }

    /// Removes every model snapshot that no program uses.
    pub fn clear(&self) -> Result<Removed, HubError> {
        self.prune(&PruneOptions { max_bytes: Some(0), dry_run: false })
    }
}

fn named(snapshot: &CachedSnapshot) -> String {
    format!("{}@{}", snapshot.repo, snapshot.commit)
}

fn in_use(snapshot: &CachedSnapshot) -> HubError {
    HubError::InUse { repo: snapshot.repo.to_string(), commit: snapshot.commit.clone() }
}

/// Contents of a snapshot with their sizes, each once.
fn contents_of(snapshot: &CachedSnapshot) -> BTreeMap<PathBuf, u64> {
    snapshot.files.iter().map(|f| (f.content.clone(), f.size_bytes)).collect()
}

/// Removes a snapshot, or some of its files, and what only they had. The number is the bytes that became free.
///
/// Killed in between, it leaves a whole snapshot or none, no reference to one that is gone, and contents without a link,
/// which the next `prune` takes.
fn take_out(
    folder: &RepoFolder,
    snapshot: &CachedSnapshot,
    files: Option<&[String]>,
) -> Result<u64, HubError> {
    let _nobody_uses_it = folder.try_remove(&snapshot.commit)?.ok_or_else(|| in_use(snapshot))?;
    let goes = |name: &String| files.is_none_or(|f| f.contains(name));
    let going: Vec<_> = snapshot.files.iter().filter(|f| goes(&f.name)).collect();
    let mut freed = 0;
    if going.len() == snapshot.files.len() {
        for (name, _) in refs(folder).iter().filter(|(_, commit)| **commit == snapshot.commit) {
            let path = folder.refs().join(name);
            fs::remove_file(&path).map_err(HubError::io(&path))?;
        }
        let gone = folder.use_mark(&snapshot.commit).with_extension(&GONE[1..]);
        let _ = fs::remove_dir_all(&gone);
        fs::rename(&snapshot.path, &gone).map_err(HubError::io(&snapshot.path))?;
        fs::remove_dir_all(&gone).map_err(HubError::io(&gone))?;
        let _ = fs::remove_file(folder.path.join("trees").join(format!("{}.json", snapshot.commit)));
        let _ = fs::remove_dir_all(folder.path.join(".no_exist").join(&snapshot.commit));
        let _ = fs::remove_file(folder.use_mark(&snapshot.commit));
    } else {
        for file in &going {
            let path = snapshot.path.join(&file.name);
            fs::remove_file(&path).map_err(HubError::io(&path))?;
        }
    }
    let contents: BTreeMap<&Path, u64> = going.iter().map(|f| (f.content.as_path(), f.size_bytes)).collect();
    for (content, bytes) in contents {
        match content.parent() == Some(&*folder.blobs()) {
            true => freed += unlinked(folder, content, Do::Remove),
            false => freed += bytes,
        }
    }
    Ok(freed)
}

/// Whether something is removed or only counted.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Do {
    Remove,
    Count,
}

/// Removes a blob, or what is left of its download, if no snapshot has it and nobody is fetching it.
fn unlinked(folder: &RepoFolder, path: &Path, action: Do) -> u64 {
    let Some(name) = path.file_name().and_then(|n| n.to_str()) else { return 0 };
    let partial = [".incomplete", ".ranges", ".tmp"].iter().any(|end| name.ends_with(end));
    // `ETAG.bitnet.incomplete`, `ETAG.1a2b3c4d.incomplete`.
    let etag = if partial { name.split('.').next().unwrap_or(name) } else { name };
    let Ok(Some(_nobody_fetches_it)) = folder.try_lock(etag) else { return 0 };
    if !partial && folder.is_linked(etag) {
        return 0;
    }
    let bytes = used_bytes(path);
    match action == Do::Count || fs::remove_file(path).is_ok() {
        true => bytes,
        false => 0,
    }
}

/// Removes what no snapshot of a repository has.
fn leftovers(folder: &RepoFolder, action: Do) -> u64 {
    if action == Do::Remove {
        for path in
            sub_folders(folder.locks()).iter().filter(|p| p.extension().is_some_and(|e| e == &GONE[1..]))
        {
            let _ = fs::remove_dir_all(path);
        }
    }
    let linked: BTreeSet<PathBuf> = sub_folders(&folder.snapshots())
        .iter()
        .flat_map(|s| files_below(s))
        .filter_map(|f| first_hop(&f))
        .collect();
    let blobs = files_below(&folder.blobs());
    blobs.iter().filter(|b| !linked.contains(*b)).map(|b| unlinked(folder, b, action)).sum()
}

/// Removes a repository's folders if nothing is in them; what is not empty stays.
fn tidy(folder: &RepoFolder) {
    if !sub_folders(&folder.snapshots()).is_empty() || !files_below(&folder.blobs()).is_empty() {
        return;
    }
    for folder in [folder.path.join("trees"), folder.path.join(".no_exist")] {
        let _ = fs::remove_dir_all(folder);
    }
    let mut folders = vec![folder.path.clone()];
    let mut next = 0;
    while let Some(path) = folders.get(next).cloned() {
        folders.extend(sub_folders(&path));
        next += 1;
    }
    for path in folders.iter().rev() {
        let _ = fs::remove_dir(path);
    }
}
