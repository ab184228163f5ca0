//! What a pull puts where, against a hub on this machine.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod common;

use bitnet_hub::{Cancel, Event, Hub, HubError, Patterns, Settings, Token};
use bitnet_testkit::hub::{Access, HubServer, Repo, git_blob, sha256};
use common::{Lab, files, noise, parse, pull, told};
use std::fs;

fn model() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("README.md", b"---\nlicense: mit\n---\n".to_vec()),
        ("config.json", b"{}".to_vec()),
        ("figures/loss.png", noise(5000)),
        ("model-00001-of-00002.safetensors", noise(300_001)),
        ("model-00002-of-00002.safetensors", noise(100_000)),
        ("model.safetensors.index.json", b"{\"weight_map\":{}}".to_vec()),
        ("tokenizer.json", noise(20_000)),
    ]
}

#[test]
fn a_pull_fills_the_layout_that_all_clients_share() {
    let lab = Lab::new();
    lab.server.page(2);
    let (repo, files) = (Repo::new(&model()), model());
    let commit = repo.revisions["main"].clone();
    lab.server.put("org/name", repo);
    let (done, events) = told(&lab.hub(), "org/name");
    let done = done.unwrap();
    let root = lab.cache().join("models--org--name");
    assert_eq!(
        (done.commit.as_str(), done.path.as_path()),
        (commit.as_str(), &*root.join("snapshots").join(&commit))
    );
    let mut want = vec!["refs/main".to_owned()];
    for (name, bytes) in files.iter().filter(|f| f.0 != "figures/loss.png") {
        let etag = if bytes.len() > 10_000 { sha256(bytes) } else { git_blob(bytes) };
        let pointer = done.path.join(name);
        assert_eq!(fs::read(&pointer).unwrap(), *bytes, "{name}");
        assert_eq!(fs::read_link(&pointer).unwrap().to_str().unwrap(), format!("../../blobs/{etag}"));
        want.extend([format!("blobs/{etag}"), format!("snapshots/{commit}/{name}")]);
    }
    want.sort();
    assert_eq!(lab.names(), want);
    assert_eq!(fs::read_to_string(root.join("refs/main")).unwrap(), commit);

    // Events add up to what came.
    let received: u64 =
        events.iter().map(|e| if let Event::Received { bytes, .. } = e { *bytes } else { 0 }).sum();
    let planned: Vec<_> = events
        .iter()
        .find_map(|e| if let Event::Planned { files, .. } = e { Some(files.clone()) } else { None })
        .unwrap();
    assert_eq!((planned.len(), received), (6, planned.iter().map(|f| f.size_bytes).sum()));
    assert_eq!(events.iter().filter(|e| matches!(e, Event::Finished { .. })).count(), 6);

    // What is there does not come again, and the address of large files is not asked for twice.
    lab.server.seen();
    let again = lab.pull("org/name").unwrap();
    assert_eq!(again.path, done.path);
    let seen = lab.server.seen();
    assert!(seen.iter().all(|s| s.line.starts_with("GET /api/models/")), "{seen:?}");
    assert_eq!(seen.len(), 1 + 4, "one revision and four pages");
}

#[test]
fn large_files_come_in_pieces_from_the_other_host_which_gets_no_token() {
    let lab = Lab::with_file(1_000_000);
    let hub = Hub::new(Settings { token: Token::new("hf_secret"), ..lab.settings() });
    let done = pull(&hub, "org/name").unwrap();
    assert_eq!(fs::read(&done.path).unwrap(), noise(1_000_000));
    let (storage, at_hub): (Vec<_>, Vec<_>) =
        lab.server.seen().into_iter().partition(|s| s.line.contains("/lfs/"));
    assert!(
        storage.len() >= 16 && storage.iter().all(|s| s.range.is_some() && s.token.is_none()),
        "{storage:?}"
    );
    assert!(at_hub.iter().all(|s| s.token.as_deref() == Some("Bearer hf_secret")), "{at_hub:?}");
    // Each connection may ask before the first knows where the hub leads.
    assert!(at_hub.len() <= 3 + 8, "{at_hub:?}");
}

#[test]
fn revisions_files_and_patterns_choose_what_comes() {
    let lab = Lab::new();
    let mut repo =
        Repo::new(&[("a-i2_s.gguf", noise(20_000)), ("a-tq2_0.gguf", noise(30_000)), ("x.txt", vec![1])]);
    let main = repo.revisions["main"].clone();
    let branch = repo.commit("refs/pr/1", &[("sub/b.gguf", noise(100))]);
    lab.server.put("org/name", repo);
    assert!(matches!(lab.pull("org/name"), Err(HubError::Ambiguous { choices, .. }) if choices.len() == 2));
    for (reference, file) in [
        ("org/name:I2_S", format!("snapshots/{main}/a-i2_s.gguf")),
        ("org/name:x.txt@main", format!("snapshots/{main}/x.txt")),
        ("org/name@refs/pr/1", format!("snapshots/{branch}/sub/b.gguf")),
    ] {
        assert!(lab.pull(reference).unwrap().path.ends_with(&file), "{reference}");
    }
    let commit = format!("org/name:tq2_0@{main}");
    assert!(lab.pull(&commit).unwrap().path.ends_with("a-tq2_0.gguf"));
    // A commit that is there takes no request.
    lab.server.seen();
    lab.pull(&commit).unwrap();
    assert!(lab.server.seen().is_empty());
    let names = lab.names();
    assert!(
        names.contains(&"refs/refs/pr/1".to_owned())
            && !names.iter().any(|n| n.ends_with(&format!("refs/{main}"))),
        "{names:?}"
    );

    let other = Lab::new();
    other.server.put("org/name", Repo::new(&model()));
    let patterns = Patterns { include: vec!["*.json".into(), "fig*".into()], exclude: vec!["tok*".into()] };
    other.hub().pull(&parse("org/name"), &patterns, &|_| {}, &Cancel::new()).unwrap();
    let mut names: Vec<String> = other
        .names()
        .iter()
        .filter(|n| n.starts_with("snap"))
        .map(|n| n.rsplit('/').next().unwrap().to_owned())
        .collect();
    names.sort();
    assert_eq!(names, ["config.json", "loss.png", "model.safetensors.index.json"]);
    assert!(
        matches!(other.hub().find(&parse("org/name")), Err(HubError::NotCached { .. })),
        "without shards there is no model"
    );
}

#[test]
fn a_branch_that_moved_brings_what_changed_only() {
    let lab = Lab::new();
    let old = model();
    lab.server.put("org/name", Repo::new(&old));
    let first = lab.pull("org/name").unwrap();
    let mut new = model();
    new[1].1 = b"{\"changed\":1}".to_vec();
    lab.server.change("org/name", |repo| {
        repo.commit("main", &new);
    });
    lab.server.seen();
    // `find` and `obtain` stay with what is there; `pull` follows the branch.
    assert_eq!(lab.hub().obtain(&parse("org/name"), &|_| {}, &Cancel::new()).unwrap().commit, first.commit);
    assert!(lab.server.seen().is_empty());
    let second = lab.pull("org/name").unwrap();
    assert_ne!(second.commit, first.commit);
    let fetched: Vec<_> = lab
        .server
        .seen()
        .into_iter()
        .filter(|s| s.line.starts_with("GET") && !s.line.contains("/api/"))
        .collect();
    assert_eq!(fetched.len(), 1, "{fetched:?}");
    assert_eq!(fs::read(second.path.join("config.json")).unwrap(), new[1].1);
    assert_eq!(fs::read(first.path.join("config.json")).unwrap(), old[1].1);
}

#[test]
fn gated_and_private_repositories_open_with_their_token() {
    let lab = Lab::new();
    for (id, access) in
        [("org/gated", Access::Gated("right".into())), ("org/private", Access::Private("right".into()))]
    {
        lab.server.put(id, Repo { access, ..Repo::new(&[("m.gguf", noise(20_000))]) });
    }
    let with = |token: &str| Hub::new(Settings { token: Token::new(token), ..lab.settings() });
    let said = |token, id: &str| pull(&with(token), id).map(|_| ()).unwrap_err();
    for token in ["", "wrong"] {
        assert!(matches!(said(token, "org/gated"), HubError::Gated { .. }));
        let message = said(token, "org/private").to_string();
        assert!(message.contains("org/private, or it is private"), "{message}");
    }
    for id in ["org/gated", "org/private"] {
        pull(&with("right"), id).unwrap();
    }
    let absent = said("", "org/absent").to_string();
    assert!(absent.contains("has no org/absent") && absent.contains("no token is given"), "{absent}");
    assert!(
        matches!(pull(&with("right"), "org/gated@v9"), Err(HubError::RevisionNotFound { revision, .. }) if revision == "v9")
    );
}

#[test]
fn offline_the_cache_serves_and_says_what_it_lacks() {
    let lab = Lab::with_file(20_000);
    let offline = Hub::new(Settings { offline: true, ..lab.settings() });
    let error = pull(&offline, "org/name").unwrap_err();
    assert!(matches!(error, HubError::Offline { .. }), "{error}");
    assert!(lab.server.seen().is_empty());
    let pulled = lab.pull("org/name").unwrap();
    lab.server.seen();
    for reference in
        ["org/name".to_owned(), "org/name:model.gguf@main".to_owned(), format!("org/name@{}", pulled.commit)]
    {
        assert_eq!(pull(&offline, &reference).unwrap().path, pulled.path, "{reference}");
    }
    let error = pull(&offline, "org/name:Q2_0").unwrap_err().to_string();
    assert!(error.contains("Q2_0") && error.contains("offline mode is on"), "{error}");
    assert!(lab.server.seen().is_empty());
}

#[test]
fn a_mirror_and_a_renamed_repository_serve_as_well() {
    let lab = Lab::with_file(20_000);
    lab.server.moved("old/name", "org/name");
    let done = lab.pull("old/name").unwrap();
    assert_eq!(fs::read(done.path).unwrap(), noise(20_000));
    // A mirror below a path, for which nothing but the endpoint changes.
    let mirror = HubServer::start();
    let nowhere = Hub::new(Settings { endpoint: format!("{}/mirror", mirror.url()), ..lab.settings() });
    assert!(pull(&nowhere, "org/other").is_err());
    assert!(mirror.seen()[0].line.starts_with("GET /mirror/api/models/org/other/"));
}

#[test]
fn without_links_snapshots_hold_the_files() {
    let lab = Lab::new();
    let mut repo = Repo::new(&[("m.gguf", noise(50_000)), ("other.gguf", noise(20_000))]);
    lab.server.put("org/name", repo.clone());
    let hub = Hub::new(Settings { symlinks: false, ..lab.settings() });
    let done = pull(&hub, "org/name:m.gguf").unwrap();
    assert!(fs::symlink_metadata(&done.path).unwrap().is_file());
    assert_eq!(lab.names(), ["refs/main".to_owned(), format!("snapshots/{}/m.gguf", done.commit)]);
    // Again, and beside links that another client made.
    lab.server.seen();
    pull(&hub, "org/name:m.gguf").unwrap();
    assert!(lab.server.seen().iter().all(|s| s.line.contains("/api/")));
    lab.pull("org/name:other.gguf").unwrap();
    let next =
        repo.commit("main", &[("m.gguf", noise(50_000)), ("other.gguf", noise(20_000)), ("new", vec![])]);
    lab.server.put("org/name", repo);
    let copied = pull(&hub, "org/name:other.gguf").unwrap();
    assert_eq!(copied.commit, next);
    assert!(fs::symlink_metadata(&copied.path).unwrap().is_file());
    assert_eq!(fs::read(&copied.path).unwrap(), noise(20_000));
    assert!(files(&lab.cache()).iter().any(|n| n.contains("blobs/")), "the blob that is linked to stays");
}

#[test]
fn two_pulls_at_once_share_the_work() {
    let lab = Lab::with_file(2_000_000);
    std::thread::scope(|scope| {
        // Two hubs are as apart as two processes are: file locks belong to open files.
        let pulls: Vec<_> = (0..3).map(|_| scope.spawn(|| lab.pull("org/name").unwrap().path)).collect();
        for path in pulls.into_iter().map(|p| p.join().unwrap()) {
            assert_eq!(fs::read(path).unwrap(), noise(2_000_000));
        }
    });
    let pieces = lab.server.seen().into_iter().filter(|s| s.line.contains("/lfs/")).count();
    assert!(pieces < 2 * 31 + 8, "{pieces} requests for 31 pieces: the file came more than once");
    assert_eq!(lab.names().iter().filter(|n| n.starts_with("blobs/")).count(), 1);
}

#[test]
fn a_disk_that_is_too_full_is_known_before() {
    let lab = Lab::with_file(20_000);
    // A size that no disk has, as the hub would say it.
    lab.server.fault(
        "HEAD ",
        1,
        bitnet_testkit::hub::Mood::Header("X-Linked-Size", (1_u64 << 60).to_string()),
    );
    let error = lab.pull("org/name").unwrap_err();
    assert!(matches!(error, HubError::Space { need_bytes, .. } if need_bytes == 1 << 60), "{error}");
    assert!(!lab.names().iter().any(|n| n.starts_with("blobs/")));
}
