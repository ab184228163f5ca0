//! From a reference to files in the cache.

use crate::cache::{LinkAs, RepoFolder};
use crate::download::{Blob, Permits, Transfer, keep_first, lock};
use crate::event::{Event, Events, PlannedFile};
use crate::http::{Follow, Method, Request};
use crate::partial::Partial;
use crate::select::{Patterns, Place, Selection, by_patterns, select};
use crate::wire::{self, FileHead, KeepSlash, RemoteFile};
use crate::{Cancel, Hub, HubError, Lease, Reference};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

/// Files that are fetched side by side; each of them with several connections.
const FILES_AT_A_TIME: usize = 4;

/// Pages of a tree that are read.
const MAX_PAGES: usize = 1000;

/// A model in the cache. Nothing removes it while this lives.
#[derive(Debug)]
pub struct Cached {
    /// The model: a file, or the folder of a snapshot.
    pub path: PathBuf,
    /// The commit whose snapshot it is.
    pub commit: String,
    /// Absent where the cache cannot be written to, and so not be cleared either.
    _lease: Option<Lease>,
}

impl Hub {
    /// Fetches what a reference needs and the cache lacks, of the commit that the revision stands for now.
    ///
    /// A commit that is cached already takes no request.
    pub fn pull(
        &self,
        reference: &Reference,
        patterns: &Patterns,
        events: Events<'_>,
        cancel: &Cancel,
    ) -> Result<Cached, HubError> {
        let settings = self.client.settings();
        let fixed = reference.revision.as_deref().is_some_and(wire::is_commit);
        if settings.offline || (fixed && patterns.is_empty()) {
            match self.find(reference) {
                Ok(found) => return Ok(found),
                Err(HubError::NotCached { reference, what }) if settings.offline => {
                    return Err(HubError::Offline { reference, what });
                }
                Err(e) if settings.offline => return Err(e),
                Err(_) => {}
            }
        }
        let commit = self.resolve(reference, events, cancel)?;
        events(Event::Resolved { commit: commit.clone() });
        let tree = self.tree(reference, &commit, events, cancel)?;
        let names: Vec<&str> = tree.iter().map(|f| f.path.as_str()).collect();
        let Selection { files, place } = match patterns.is_empty() {
            true => select(reference, &names)?,
            false => by_patterns(reference, &names, patterns)?,
        };
        let folder = RepoFolder::new(&settings.cache, &reference.repo);
        folder.create(&commit)?;
        let lease = folder.lease(&commit, cancel)?;
        let wanted: Vec<&RemoteFile> = tree.iter().filter(|f| files.contains(&f.path)).collect();
        if let Err(e) = self.fetch(reference, &commit, &folder, &wanted, events, cancel) {
            // Only a folder that is empty goes.
            let _ = fs::remove_dir(folder.snapshot(&commit));
            return Err(e);
        }
        if !fixed {
            folder.write_ref(reference.revision(), &commit, cancel)?;
        }
        Ok(Cached { path: placed(&folder.snapshot(&commit), &place), commit, _lease: Some(lease) })
    }

    /// The model as the cache has it; the network is not used.
    pub fn find(&self, reference: &Reference) -> Result<Cached, HubError> {
        let absent = |what: String| HubError::NotCached { reference: reference.to_string(), what };
        let folder = RepoFolder::new(&self.client.settings().cache, &reference.repo);
        let Some(commit) = folder.commit(reference.revision()) else {
            return Err(absent(format!("there is no snapshot of {}", reference.revision())));
        };
        let snapshot = folder.snapshot(&commit);
        // First the lease, then the look: nothing may vanish between them.
        let lease = folder.lease(&commit, &Cancel::new()).ok();
        let names = snapshot_names(&snapshot);
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let place = select(reference, &names).map_err(|e| match e {
            HubError::NoFile { wanted, .. } => absent(format!("its snapshot has no {wanted}")),
            other => other,
        })?;
        Ok(Cached { path: placed(&snapshot, &place.place), commit, _lease: lease })
    }

    /// The model from the cache, or from the hub where the cache lacks it.
    pub fn obtain(
        &self,
        reference: &Reference,
        events: Events<'_>,
        cancel: &Cancel,
    ) -> Result<Cached, HubError> {
        match self.find(reference) {
            Err(HubError::NotCached { .. }) => self.pull(reference, &Patterns::default(), events, cancel),
            found => found,
        }
    }

    fn resolve(
        &self,
        reference: &Reference,
        events: Events<'_>,
        cancel: &Cancel,
    ) -> Result<String, HubError> {
        let revision = wire::escaped(reference.revision(), KeepSlash::No);
        let url = format!("{}/{}/revision/{revision}", self.client.settings().endpoint, reference.repo.api());
        let (_, _, body) = self.client.get(&url, events, cancel)?;
        let commit = wire::commit(&body).map_err(|what| HubError::response(&url, what))?;
        match reference.revision.as_deref() {
            Some(fixed) if wire::is_commit(fixed) && fixed != commit => {
                Err(HubError::response(&url, format!("it is about {commit}")))
            }
            _ => Ok(commit),
        }
    }

    fn tree(
        &self,
        reference: &Reference,
        commit: &str,
        events: Events<'_>,
        cancel: &Cancel,
    ) -> Result<Vec<RemoteFile>, HubError> {
        let endpoint = &self.client.settings().endpoint;
        let mut url = format!("{endpoint}/{}/tree/{commit}?recursive=true", reference.repo.api());
        let mut files = Vec::new();
        for _ in 0..MAX_PAGES {
            let (from, link, body) = self.client.get(&url, events, cancel)?;
            files.extend(wire::tree(&body).map_err(|what| HubError::response(&url, what))?);
            if files.len() > wire::MAX_ENTRIES {
                return Err(HubError::response(&url, format!("more than {} files", wire::MAX_ENTRIES)));
            }
            let Some(next) = link.as_deref().and_then(wire::next_page) else { return Ok(files) };
            let next = wire::redirect(&from, next);
            url = next.ok_or_else(|| HubError::response(&from, "its next page is no address"))?;
        }
        Err(HubError::response(&url, "its pages do not end"))
    }

    fn fetch(
        &self,
        reference: &Reference,
        commit: &str,
        folder: &RepoFolder,
        wanted: &[&RemoteFile],
        events: Events<'_>,
        cancel: &Cancel,
    ) -> Result<(), HubError> {
        let settings = self.client.settings();
        let snapshot = folder.snapshot(commit);
        let missing: Vec<&RemoteFile> = wanted.iter().copied().filter(|f| !is_there(&snapshot, f)).collect();
        let heads = Mutex::new(Vec::new());
        each(&missing, settings.connections, cancel, &|file, cancel| {
            let blob = self.head(reference, commit, file, events, cancel)?;
            lock(&heads).push(blob);
            Ok(())
        })?;
        let mut blobs = heads.into_inner().expect("threads that panicked were joined");
        // Large files last: what is small is soon done, and the large ones share all connections.
        blobs.sort_by(|a, b| (a.size, &a.file).cmp(&(b.size, &b.file)));
        let planned = blobs.iter().filter(|b| !folder.blob(&b.head.etag).exists()).map(|b| PlannedFile {
            file: Arc::clone(&b.file),
            size_bytes: b.size,
            present_bytes: Partial::present_bytes(&folder.blob(&b.head.etag), b.size),
        });
        let planned: Vec<PlannedFile> = planned.collect();
        let need = planned.iter().map(|f| f.size_bytes - f.present_bytes).sum();
        let have = fs4::available_space(&settings.cache).map_err(HubError::io(&settings.cache))?;
        if need > have {
            return Err(HubError::Space { path: settings.cache.clone(), need_bytes: need, have_bytes: have });
        }
        events(Event::Planned { cached: wanted.len() - planned.len(), files: planned });
        let transfer =
            Transfer { client: &self.client, folder, events, permits: Permits::new(settings.connections) };
        each(&blobs, FILES_AT_A_TIME, cancel, &|blob, cancel| {
            let etag = &blob.head.etag;
            let mut waiting = || events(Event::Waiting { file: Arc::clone(&blob.file) });
            let _one_writer = folder.lock(etag, cancel, &mut waiting)?;
            let is_new = !folder.blob(etag).exists();
            if is_new && is_there_with_size(&snapshot.join(&*blob.file), blob.size) {
                return Ok(()); // Another process put the file itself there.
            }
            if is_new {
                transfer.blob(blob, cancel)?;
            }
            let link = match (settings.symlinks, is_new) {
                (false, _) => LinkAs::File,
                (true, true) => LinkAs::NewBlob,
                (true, false) => LinkAs::SharedBlob,
            };
            folder.link(commit, &blob.file, etag, link)?;
            events(Event::Finished { file: Arc::clone(&blob.file) });
            Ok(())
        })
    }

    /// What the hub says of a file.
    fn head(
        &self,
        reference: &Reference,
        commit: &str,
        file: &RemoteFile,
        events: Events<'_>,
        cancel: &Cancel,
    ) -> Result<Blob, HubError> {
        let path = wire::escaped(&file.path, KeepSlash::Yes);
        let url = format!("{}/{}/resolve/{commit}/{path}", self.client.settings().endpoint, reference.repo);
        let head = self.client.persist(&url, events, cancel, &mut || {
            let request = Request { method: Method::Head, url: &url, range: None, follow: Follow::OnTheHub };
            let answer = self.client.accepted(&request)?;
            FileHead::parse(|name| answer.header(name)).map_err(|what| HubError::response(&url, what).into())
        })?;
        let size = head.size_bytes.unwrap_or(file.size_bytes);
        Ok(Blob { file: file.path.as_str().into(), url, head, size })
    }
}

fn placed(snapshot: &Path, place: &Place) -> PathBuf {
    match place {
        Place::Folder => snapshot.to_owned(),
        Place::File(file) => snapshot.join(file),
    }
}

/// The names of a snapshot's files that are really there, with `/` between folders.
fn snapshot_names(snapshot: &Path) -> Vec<String> {
    let name = |p: &PathBuf| {
        let parts: Option<Vec<&str>> =
            p.strip_prefix(snapshot).ok()?.iter().map(|part| part.to_str()).collect();
        parts.map(|p| p.join("/"))
    };
    crate::cache::files_below(snapshot).iter().filter(|p| p.exists()).filter_map(name).collect()
}

/// Whether a snapshot has a file. What is there was verified when it came; only a length that does not fit is fetched anew.
fn is_there(snapshot: &Path, file: &RemoteFile) -> bool {
    is_there_with_size(&snapshot.join(&file.path), file.size_bytes)
}

fn is_there_with_size(path: &Path, size: u64) -> bool {
    fs::metadata(path).is_ok_and(|m| m.is_file() && m.len() == size)
}

/// Runs something for each item, some at a time. The first error stops the others.
fn each<T: Sync>(
    items: &[T],
    at_a_time: usize,
    cancel: &Cancel,
    run: &(dyn Fn(&T, &Cancel) -> Result<(), HubError> + Sync),
) -> Result<(), HubError> {
    let (next, stop, first_error) = (AtomicUsize::new(0), cancel.child(), Mutex::new(None));
    thread::scope(|scope| {
        for _ in 0..at_a_time.min(items.len()) {
            scope.spawn(|| {
                while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Err(e) = stop.check().and_then(|()| run(item, &stop)) {
                        stop.cancel();
                        keep_first(&first_error, e);
                        return;
                    }
                }
            });
        }
    });
    let first = lock(&first_error).take();
    first.map_or(Ok(()), Err)
}
