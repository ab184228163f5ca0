//! A small hub on this machine, with the routes, headers and redirections of the real one, and its moods: it limits rates,
//! breaks connections, damages bytes, is slow, and forgets ranges. Large files lie on a second port, as they do on another host.

mod connection;
mod proxy;

pub use proxy::Proxy;

use connection::{Answer, Body};
use serde_json::{Value, json};
use sha1::Sha1;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

/// Files that are larger lie in large file storage.
const LARGE: usize = 10_000;

/// A repository.
#[derive(Clone, Debug, Default)]
pub struct Repo {
    /// Branches and tags, and the commits they stand for.
    pub revisions: BTreeMap<String, String>,
    /// Files of each commit.
    pub commits: BTreeMap<String, BTreeMap<String, Arc<Vec<u8>>>>,
    /// Who may see it.
    pub access: Access,
}

/// Who may see a repository.
#[derive(Clone, Debug, Default)]
pub enum Access {
    /// Everybody.
    #[default]
    Open,
    /// Everybody sees that it is there; files are for this token.
    Gated(String),
    /// It is not there, except for this token.
    Private(String),
}

impl Repo {
    /// A repository whose branch `main` has these files.
    pub fn new(files: &[(&str, Vec<u8>)]) -> Self {
        let mut repo = Self::default();
        repo.commit("main", files);
        repo
    }

    /// Lets a branch stand for a new commit with these files; returns the commit.
    pub fn commit(&mut self, branch: &str, files: &[(&str, Vec<u8>)]) -> String {
        let mut hash = Sha1::new();
        for (name, bytes) in files {
            hash.update(name.as_bytes());
            hash.update(bytes);
        }
        let commit = hex(&hash.finalize());
        let files = files.iter().map(|(name, bytes)| ((*name).to_owned(), Arc::new(bytes.clone())));
        self.commits.insert(commit.clone(), files.collect());
        self.revisions.insert(branch.to_owned(), commit.clone());
        commit
    }

    /// The files of a folder, as branch `main`.
    pub fn from_folder(folder: &Path) -> Self {
        let mut files = Vec::new();
        let mut folders = vec![folder.to_owned()];
        while let Some(at) = folders.pop() {
            for entry in std::fs::read_dir(at).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    let name = path.strip_prefix(folder).unwrap().to_str().unwrap().to_owned();
                    files.push((name, std::fs::read(path).unwrap()));
                }
            }
        }
        files.sort();
        let files: Vec<(&str, Vec<u8>)> = files.iter().map(|(n, b)| (n.as_str(), b.clone())).collect();
        Self::new(&files)
    }
}

/// A mood of the server.
#[derive(Clone, Debug)]
pub struct Fault {
    /// For requests whose method, space and path have this in them.
    pub of: String,
    /// For so many of them.
    pub times: usize,
    /// What it does.
    pub what: Mood,
}

/// What the server does to an answer.
#[derive(Clone, Debug)]
pub enum Mood {
    /// Answers with a status and headers instead.
    Status(u16, Vec<(&'static str, String)>),
    /// Answers with this text.
    Says(String),
    /// Adds or replaces a header.
    Header(&'static str, String),
    /// Closes the connection after so many bytes of the body.
    Drops(usize),
    /// Sends other bytes.
    Damages,
    /// Sends so many bytes at a time, and pauses after them.
    Slow(usize, Duration),
    /// Knows no ranges.
    Whole,
}

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Method, space and path with query; those for large files begin with `/lfs/`.
    pub line: String,
    /// The `Range` header.
    pub range: Option<String>,
    /// The `Authorization` header.
    pub token: Option<String>,
}

#[derive(Default)]
struct State {
    repos: BTreeMap<String, Repo>,
    /// Large files by their hash.
    stored: BTreeMap<String, Arc<Vec<u8>>>,
    moved: BTreeMap<String, String>,
    faults: Vec<Fault>,
    seen: Vec<Seen>,
    page: usize,
    storage: String,
}

/// A running hub. It ends with the process.
pub struct HubServer {
    url: String,
    state: Arc<Mutex<State>>,
}

impl HubServer {
    /// Starts one on free ports of this machine.
    pub fn start() -> Self {
        Self::start_at(0)
    }

    /// Starts one on a port.
    pub fn start_at(port: u16) -> Self {
        let bind = |port| TcpListener::bind(("127.0.0.1", port)).unwrap();
        let address = |l: &TcpListener| format!("http://{}", l.local_addr().unwrap());
        let (hub, storage) = (bind(port), bind(0));
        let state = State { page: 1000, storage: address(&storage), ..State::default() };
        let state = Arc::new(Mutex::new(state));
        let url = address(&hub);
        for listener in [hub, storage] {
            let state = Arc::clone(&state);
            connection::serve(listener, move |request| State::answer(&state, request));
        }
        Self { url, state }
    }

    /// Its address.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Puts a repository there: a model's `org/name`, or `datasets/org/name`.
    pub fn put(&self, id: &str, repo: Repo) {
        self.state().insert(id, repo);
    }

    /// Changes a repository.
    pub fn change(&self, id: &str, change: impl FnOnce(&mut Repo)) {
        let mut state = self.state();
        let mut repo = state.repos.remove(id).unwrap();
        change(&mut repo);
        state.insert(id, repo);
    }

    /// Lets an old name lead to a new one.
    pub fn moved(&self, from: &str, to: &str) {
        self.state().moved.insert(from.to_owned(), to.to_owned());
    }

    /// Entries of one page of a tree.
    pub fn page(&self, entries: usize) {
        self.state().page = entries;
    }

    /// Adds a mood.
    pub fn fault(&self, of: &str, times: usize, what: Mood) {
        self.state().faults.push(Fault { of: of.to_owned(), times, what });
    }

    /// Takes the requests that came so far.
    pub fn seen(&self) -> Vec<Seen> {
        std::mem::take(&mut self.state().seen)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

impl State {
    fn insert(&mut self, id: &str, repo: Repo) {
        let files = repo.commits.values().flat_map(BTreeMap::values).filter(|f| f.len() > LARGE);
        self.stored.extend(files.map(|f| (sha256(f), Arc::clone(f))));
        self.repos.insert(id.to_owned(), repo);
    }

    fn answer(state: &Mutex<Self>, request: &connection::Request) -> Answer {
        let mut state = state.lock().unwrap();
        let line = format!("{} {}", request.method, request.path);
        let of = |name: &str| request.header(name).map(str::to_owned);
        state.seen.push(Seen { line: line.clone(), range: of("range"), token: of("authorization") });
        let mut answer = state.route(request);
        for fault in &mut state.faults {
            if fault.times > 0 && line.contains(&fault.of) {
                fault.times -= 1;
                answer.spoil(&fault.what);
            }
        }
        answer
    }

    fn route(&self, request: &connection::Request) -> Answer {
        let (path, query) = request.path.split_once('?').unwrap_or((&request.path, ""));
        let path = unescape(path);
        let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
        let token = request.header("authorization").and_then(|a| a.strip_prefix("Bearer "));
        if let ["lfs", sha] = parts[..] {
            return match self.stored.get(sha) {
                Some(file) => {
                    Answer::file(Arc::clone(file)).with("ETag", format!("\"storage-{}\"", &sha[..8]))
                }
                None => Answer::error(403, "", "the signature has expired"),
            };
        }
        let (api, kind, parts) = match &parts[..] {
            ["api", "models", rest @ ..] => (true, "", rest),
            ["api", "datasets", rest @ ..] => (true, "datasets/", rest),
            ["datasets", rest @ ..] => (false, "datasets/", rest),
            all => (false, "", all),
        };
        let [org, name, verb, rest @ ..] = parts else { return Answer::error(404, "", "no such page") };
        let id = format!("{kind}{org}/{name}");
        if let Some(to) = self.moved.get(&id) {
            return Answer::error(307, "", "moved").with("Location", request.path.replacen(&id, to, 1));
        }
        let not_found = Answer::error(401, "RepoNotFound", "Repository not found");
        let Some(repo) = self.repos.get(&id) else { return not_found };
        match &repo.access {
            Access::Private(t) if token != Some(t) => return not_found,
            Access::Gated(t) if !api && token != Some(t) => {
                let status = if token.is_none() { 401 } else { 403 };
                return Answer::error(status, "GatedRepo", "Access to this model is restricted");
            }
            _ => {}
        }
        // A branch may have slashes in its name; the longest that is known is meant.
        let known = |n: &usize| repo.commit_of(&rest[..*n].join("/")).is_some();
        let Some(n) = (1..=rest.len()).rev().find(known) else {
            return Answer::error(404, "RevisionNotFound", "Invalid rev id");
        };
        let revision = rest[..n].join("/");
        let commit = repo.commit_of(&revision).unwrap();
        let (files, rest) = (&repo.commits[commit], rest[n..].join("/"));
        match (api, *verb) {
            (true, "revision") => Answer::json(&info(&id, commit, repo, files)),
            (true, "tree") => self.tree(&id, commit, files, query),
            (false, "resolve") => match files.get(&rest) {
                Some(file) => self.resolve(commit, file),
                None => Answer::error(404, "EntryNotFound", "Entry not found").with("X-Repo-Commit", commit),
            },
            _ => Answer::error(404, "", "no such page"),
        }
    }

    fn resolve(&self, commit: &str, file: &Arc<Vec<u8>>) -> Answer {
        if file.len() <= LARGE {
            let etag = format!("\"{}\"", git_blob(file));
            return Answer::file(Arc::clone(file)).with("ETag", etag).with("X-Repo-Commit", commit);
        }
        let sha = sha256(file);
        let answer = Answer {
            status: 302,
            headers: Vec::new(),
            body: Body::Text("Found".to_owned()),
            moods: Vec::new(),
        };
        answer
            .with("Location", format!("{}/lfs/{sha}?Signature=secret", self.storage))
            .with("X-Repo-Commit", commit)
            .with("X-Linked-Size", file.len().to_string())
            .with("X-Linked-Etag", format!("\"{sha}\""))
            .with("ETag", format!("\"{}\"", git_blob(sha.as_bytes())))
    }

    fn tree(&self, id: &str, commit: &str, files: &BTreeMap<String, Arc<Vec<u8>>>, query: &str) -> Answer {
        let begin: usize =
            query.split('&').find_map(|q| q.strip_prefix("cursor=")).map_or(0, |c| c.parse().unwrap());
        let entries = files.iter().skip(begin).take(self.page).map(|(path, bytes)| {
            let mut entry =
                json!({"type": "file", "oid": git_blob(bytes), "size": bytes.len(), "path": path});
            if bytes.len() > LARGE {
                entry["lfs"] = json!({"oid": sha256(bytes), "size": bytes.len(), "pointerSize": 134});
            }
            entry
        });
        let mut entries: Vec<Value> = entries.collect();
        if begin == 0 {
            let folders = files.keys().filter_map(|p| p.split_once('/')).map(|(folder, _)| folder);
            let folders: std::collections::BTreeSet<&str> = folders.collect();
            entries.extend(
                folders.iter().map(|f| json!({"type": "directory", "oid": commit, "size": 0, "path": f})),
            );
        }
        let answer = Answer::json(&Value::Array(entries));
        match begin + self.page < files.len() {
            false => answer,
            true => {
                let kind = if id.starts_with("datasets/") { "" } else { "models/" };
                let cursor = begin + self.page;
                let next = format!("/api/{kind}{id}/tree/{commit}?recursive=true&cursor={cursor}");
                answer.with("Link", format!("<{next}>; rel=\"next\""))
            }
        }
    }
}

impl Repo {
    fn commit_of<'a>(&'a self, revision: &'a str) -> Option<&'a str> {
        let known = self.revisions.get(revision).map(String::as_str);
        known.or_else(|| self.commits.get_key_value(revision).map(|(commit, _)| commit.as_str()))
    }
}

fn info(id: &str, commit: &str, repo: &Repo, files: &BTreeMap<String, Arc<Vec<u8>>>) -> Value {
    json!({
        "id": id, "modelId": id, "sha": commit, "tags": [], "downloads": 0, "likes": 0,
        "private": matches!(repo.access, Access::Private(_)),
        "gated": if matches!(repo.access, Access::Gated(_)) { json!("manual") } else { json!(false) },
        "siblings": files.keys().map(|f| json!({"rfilename": f})).collect::<Vec<_>>(),
    })
}

/// The name of a file in large file storage.
pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// The name of any other file.
pub fn git_blob(bytes: &[u8]) -> String {
    let mut hash = Sha1::new_with_prefix(format!("blob {}\0", bytes.len()));
    hash.update(bytes);
    hex(&hash.finalize())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn unescape(path: &str) -> String {
    let mut out = Vec::new();
    let mut bytes = path.bytes();
    while let Some(b) = bytes.next() {
        let hex = |b: Option<u8>| char::from(b.unwrap()).to_digit(16).unwrap() as u8;
        out.push(if b == b'%' { hex(bytes.next()) * 16 + hex(bytes.next()) } else { b });
    }
    String::from_utf8(out).unwrap()
}
