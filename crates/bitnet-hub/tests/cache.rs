//! What the cache holds, and what is taken out of it.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod common;

use bitnet_hub::{Cached, Cancel, Hub, HubError, Lease, PruneOptions, Settings};
use bitnet_testkit::hub::{Repo, sha256};
use common::{Lab, files, noise, parse, pull};
use std::fs::{self, File, FileTimes};
use std::path::Path;
use std::time::{Duration, SystemTime};

/// Three snapshots: two of a repository, which share a file, and one of another.
struct Shelf {
    lab: Lab,
    old: Cached,
    new: Cached,
    other: Cached,
}

const SHARED: usize = 30_000;

impl Shelf {
    fn new() -> Self {
        let lab = Lab::new();
        let mut repo = Repo::new(&[("a.gguf", noise(SHARED)), ("b.gguf", noise(20_000))]);
        lab.server.put("org/name", repo.clone());
        lab.server.put("org/other", Repo::new(&[("c.gguf", noise(50_000))]));
        let all = |reference: &str| {
            let patterns = bitnet_hub::Patterns { include: vec!["*".into()], exclude: vec![] };
            lab.hub().pull(&parse(reference), &patterns, &|_| {}, &Cancel::new()).unwrap()
        };
        let old = all("org/name");
        repo.commit("v2", &[("a.gguf", noise(SHARED)), ("b.gguf", noise(40_000))]);
        lab.server.put("org/name", repo);
        let (new, other) = (all("org/name@v2"), all("org/other"));
        let shelf = Self { lab, old, new, other };
        for (n, at) in [&shelf.old, &shelf.new, &shelf.other].into_iter().enumerate() {
            shelf.used(at, n as u64);
        }
        shelf
    }

    /// Lets everything about a snapshot have been used so many hours after a day long ago.
    fn used(&self, cached: &Cached, hours: u64) {
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000 + hours * 3600);
        let times = FileTimes::new().set_accessed(time).set_modified(time);
        let repo = folder(cached).file_name().unwrap().to_owned();
        let mark = self.lab.cache().join(".locks").join(repo).join(format!("{}.use", cached.commit));
        File::options().append(true).open(mark).unwrap().set_times(times).unwrap();
        for name in fs::read_dir(snapshot(cached)).unwrap() {
            File::open(name.unwrap().path()).unwrap().set_times(times).unwrap();
        }
    }

    fn hub(&self) -> Hub {
        self.lab.hub()
    }

    fn commits(&self) -> Vec<String> {
        self.hub().scan().into_iter().map(|s| s.commit).collect()
    }

    /// Lets go of the leases.
    fn drop_leases(self) -> (Lab, [String; 3]) {
        (self.lab, [self.old.commit, self.new.commit, self.other.commit])
    }
}

fn snapshot(cached: &Cached) -> &Path {
    if cached.path.is_dir() { &cached.path } else { cached.path.parent().unwrap() }
}

fn folder(cached: &Cached) -> &Path {
    snapshot(cached).parent().unwrap().parent().unwrap()
}

#[test]
fn a_scan_and_the_numbers_tell_what_is_there() {
    let shelf = Shelf::new();
    let stats = shelf.hub().stats().unwrap();
    assert_eq!((stats.repos, stats.snapshots, stats.blobs), (2, 3, 4));
    assert_eq!((stats.size_bytes, stats.leftover_bytes), (SHARED as u64 + 20_000 + 40_000 + 50_000, 0));
    assert!(stats.free_bytes > 0);
    let scan = shelf.hub().scan();
    let new = scan.iter().find(|s| s.commit == shelf.new.commit).unwrap();
    assert_eq!((new.refs.as_slice(), new.size_bytes(), new.files.len()), (&["v2".to_owned()][..], 70_000, 2));
    assert_eq!(new.last_used, SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_003_600));
    let empty = Lab::new();
    assert!(empty.hub().scan().is_empty());
    assert_eq!(empty.hub().stats().unwrap().size_bytes, 0);
}

#[test]
fn the_least_recently_used_goes_first_and_what_is_shared_stays() {
    let (lab, [old, new, other]) = Shelf::new().drop_leases();
    let prune = |max: u64, dry_run| lab.hub().prune(&PruneOptions { max_bytes: Some(max), dry_run }).unwrap();
    let commits = || lab.hub().scan().into_iter().map(|s| s.commit).collect::<Vec<_>>();
    assert!(prune(140_000, false).snapshots.is_empty());
    // The old snapshot has 20000 bytes of its own.
    for dry_run in [true, false] {
        let removed = prune(139_999, dry_run);
        assert_eq!((removed.freed_bytes, removed.snapshots), (20_000, vec![format!("org/name@{old}")]));
        assert_eq!(commits().len(), if dry_run { 3 } else { 2 });
    }
    let root = lab.cache().join("models--org--name");
    assert!(!root.join("refs/main").exists() && root.join("refs/v2").exists());
    assert_eq!(fs::read_dir(root.join("blobs")).unwrap().count(), 2);
    // A look into a snapshot makes it the one that was used last.
    lab.hub().find(&parse("org/name:a.gguf@v2")).unwrap();
    assert_eq!(prune(70_000, false).snapshots, [format!("org/other@{other}")]);
    assert_eq!(commits(), [new]);
    assert!(!lab.cache().join("models--org--other").exists());
    lab.hub().clear().unwrap();
    let rest: Vec<_> = files(&lab.cache()).into_iter().filter(|f| !f.ends_with(".lock")).collect();
    assert!(rest.is_empty(), "{rest:?}");
}

#[test]
fn what_is_in_use_stays() {
    let shelf = Shelf::new();
    let removed = shelf.hub().clear().unwrap();
    assert_eq!((removed.snapshots.len(), removed.in_use.len(), removed.freed_bytes), (0, 3, 0));
    assert!(matches!(shelf.hub().remove(&parse("org/other")), Err(HubError::InUse { .. })));
    assert_eq!(shelf.commits().len(), 3);
    // A program that was given a path of the cache holds it as well.
    let (lab, [_, new, _]) = shelf.drop_leases();
    let path = lab.cache().join("models--org--name/snapshots").join(&new).join("a.gguf");
    let lease = Lease::of(&path).unwrap();
    assert_eq!(lab.hub().clear().unwrap().in_use, [format!("org/name@{new}")]);
    assert_eq!(fs::read(&path).unwrap(), noise(SHARED));
    drop(lease);
    assert_eq!(lab.hub().clear().unwrap().snapshots.len(), 1);
    assert!(Lease::of(Path::new("/etc/hosts")).is_none() && Lease::of(&path).is_none());
}

#[test]
fn repositories_revisions_and_files_are_removed_by_name() {
    let (lab, [old, ..]) = Shelf::new().drop_leases();
    let remove = |reference: &str| lab.hub().remove(&parse(reference));
    let file = remove("org/name:b.gguf@main").unwrap();
    assert_eq!((file.freed_bytes, file.snapshots), (20_000, vec![format!("org/name@{old}")]));
    assert!(lab.hub().find(&parse("org/name:a.gguf")).is_ok());
    assert_eq!(remove("org/name@main").unwrap().freed_bytes, 0, "the other snapshot has it too");
    assert!(matches!(remove("org/name@main"), Err(HubError::NotCached { .. })));
    assert_eq!(remove("org/name").unwrap().freed_bytes, SHARED as u64 + 40_000);
    assert!(!lab.cache().join("models--org--name").exists());
    // What was removed comes again.
    assert_eq!(fs::read(pull(&lab.hub(), "org/name:b.gguf").unwrap().path).unwrap(), noise(20_000));
}

#[test]
fn leftovers_go_unless_somebody_is_at_them() {
    let lab = Lab::with_file(60_000);
    let kept = lab.pull("org/name").unwrap();
    let blobs = lab.cache().join("models--org--name/blobs");
    let etag = sha256(b"gone");
    let left = [
        format!("{etag}.bitnet.incomplete"),
        format!("{etag}.bitnet.ranges"),
        format!("{etag}.0a1b2c3d.incomplete"),
        etag.clone(),
    ];
    for name in &left {
        fs::write(blobs.join(name), noise(1000)).unwrap();
    }
    assert_eq!(lab.hub().stats().unwrap().leftover_bytes, 4000);
    let lock = File::create(lab.cache().join(format!(".locks/models--org--name/{etag}.lock"))).unwrap();
    lock.lock().unwrap();
    assert_eq!(lab.hub().prune(&PruneOptions::default()).unwrap().freed_bytes, 0);
    lock.unlock().unwrap();
    let count = lab.hub().prune(&PruneOptions { dry_run: true, ..Default::default() }).unwrap();
    assert_eq!((count.freed_bytes, lab.hub().stats().unwrap().leftover_bytes), (4000, 4000));
    assert_eq!(lab.hub().prune(&PruneOptions::default()).unwrap().freed_bytes, 4000);
    assert_eq!(fs::read_dir(&blobs).unwrap().count(), 1);
    assert_eq!(fs::read(kept.path).unwrap(), noise(60_000));
}

#[test]
fn snapshots_without_links_are_removed_too() {
    let lab = Lab::with_file(60_000);
    let hub = Hub::new(Settings { symlinks: false, ..lab.settings() });
    drop(pull(&hub, "org/name").unwrap());
    assert_eq!(hub.stats().unwrap().size_bytes, 60_000);
    assert_eq!(hub.clear().unwrap().freed_bytes, 60_000);
    assert!(lab.names().is_empty());
}

#[test]
fn folders_that_are_no_cache_are_let_alone() {
    let lab = Lab::with_file(20_000);
    drop(lab.pull("org/name").unwrap());
    for name in
        ["datasets--org--name/blobs/x", "models--nonsense/blobs/x", "models--org--half/notes", "version.txt"]
    {
        let path = lab.cache().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "mine").unwrap();
    }
    assert_eq!(lab.hub().clear().unwrap().snapshots.len(), 1);
    let rest: Vec<_> = files(&lab.cache()).into_iter().filter(|f| !f.starts_with(".locks")).collect();
    assert_eq!(rest.len(), 4, "{rest:?}");
}
