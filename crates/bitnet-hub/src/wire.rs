//! What the hub answers, parsed. Every function takes any bytes: a mirror, a proxy or an attacker may have written them.

use crate::reference::is_safe_path;
use jiff::Timestamp;
use serde::Deserialize;
use std::time::Duration;

/// Entries of a repository that are taken; the largest model repositories have some thousands.
pub const MAX_ENTRIES: usize = 100_000;

/// A file of a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteFile {
    /// Its path in the repository: relative, with `/`, never leading out.
    pub path: String,
    /// Its size.
    pub size_bytes: u64,
}

/// The commit that a revision stands for, from `api/models/REPO/revision/REV`.
pub fn commit(body: &[u8]) -> Result<String, String> {
    #[derive(Deserialize)]
    struct Info {
        sha: String,
    }
    let info: Info = serde_json::from_slice(body).map_err(|e| e.to_string())?;
    match is_commit(&info.sha) {
        true => Ok(info.sha),
        false => Err(format!("{:?} is no commit", shortened(&info.sha))),
    }
}

/// Whether a text is a commit's full hash.
pub fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// The files of one page of `api/models/REPO/tree/REV`.
pub fn tree(body: &[u8]) -> Result<Vec<RemoteFile>, String> {
    #[derive(Deserialize)]
    struct Entry {
        r#type: String,
        path: String,
        #[serde(default)]
        size: u64,
    }
    let entries: Vec<Entry> = serde_json::from_slice(body).map_err(|e| e.to_string())?;
    if entries.len() > MAX_ENTRIES {
        return Err(format!("a page of {} entries", entries.len()));
    }
    let mut files = Vec::new();
    for entry in entries.into_iter().filter(|e| e.r#type == "file") {
        if !is_safe_path(&entry.path) {
            return Err(format!("{:?} is no path of a file that can be kept", shortened(&entry.path)));
        }
        files.push(RemoteFile { path: entry.path, size_bytes: entry.size });
    }
    Ok(files)
}

/// The address of the next page, from a `Link` header.
pub fn next_page(link: &str) -> Option<&str> {
    link.split(',').find_map(|part| {
        let (address, rest) = part.trim().strip_prefix('<')?.split_once('>')?;
        let next = |p: &str| matches!(p.trim(), "rel=\"next\"" | "rel=next");
        rest.split(';').any(next).then_some(address)
    })
}

/// The hash that a file's content must have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HashKind {
    /// SHA-256 of the content: files in large file storage.
    Sha256,
    /// SHA-1 of git's blob header and the content: all others.
    GitBlob,
    /// The name of the content is of no known kind (some mirrors); its size is all there is to compare.
    Unknown,
}

/// What the headers of a file's address say of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileHead {
    /// The name of the content, and of the blob in the cache: letters, digits, `-`, `_` and `.`.
    pub etag: String,
    /// Its size, where it is said.
    pub size_bytes: Option<u64>,
}

impl FileHead {
    /// From the headers of an answer. What is about the file that is linked to goes before what is about the link.
    pub fn parse<'a>(header: impl Fn(&str) -> Option<&'a str>) -> Result<Self, String> {
        let etag = header("x-linked-etag").or_else(|| header("etag")).ok_or("it has no ETag")?;
        let name = etag.trim().trim_start_matches("W/").trim_matches('"');
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if !(1..=128).contains(&name.len())
            || !name.chars().all(allowed)
            || name.starts_with('.')
            || name.contains("..")
        {
            return Err(format!("its ETag {:?} cannot name a file", shortened(etag)));
        }
        let linked = header("x-linked-size");
        // The length of a redirection is not the file's.
        let size =
            if header("location").is_some() { linked } else { linked.or_else(|| header("content-length")) };
        let number =
            |text: &str| text.trim().parse().map_err(|_| format!("its size is {:?}", shortened(text)));
        Ok(Self { etag: name.to_owned(), size_bytes: size.map(number).transpose()? })
    }

    /// What the name of the content is made of.
    pub fn hash_kind(&self) -> HashKind {
        let hex = self.etag.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        match (hex, self.etag.len()) {
            (true, 64) => HashKind::Sha256,
            (true, 40) => HashKind::GitBlob,
            _ => HashKind::Unknown,
        }
    }
}

/// `bytes A-B/SIZE` of a `Content-Range` header: first byte, byte after the last, size of the whole.
pub fn content_range(text: &str) -> Option<(u64, u64, u64)> {
    let (range, size) = text.trim().strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last, size): (u64, u64, u64) = (first.parse().ok()?, last.parse().ok()?, size.parse().ok()?);
    (first <= last && last < size).then(|| (first, last + 1, size))
}

/// How long a `Retry-After` header asks to wait: seconds, or a date.
pub fn retry_after(text: &str, now: Timestamp) -> Option<Duration> {
    let text = text.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = jiff::fmt::rfc2822::parse(text).ok()?.timestamp();
    Some(Duration::try_from(date.duration_since(now)).unwrap_or(Duration::ZERO))
}

/// Where a `Location` header leads from an address. Nothing leads from encrypted to plain.
pub fn redirect(from: &str, location: &str) -> Option<String> {
    let (scheme, rest) = from.split_once("://")?;
    let host = rest.split(['/', '?', '#']).next()?;
    let absolute = location.starts_with("https://") || location.starts_with("http://");
    let to = if absolute {
        location.to_owned()
    } else if location.starts_with("//") {
        format!("{scheme}:{location}")
    } else if location.starts_with('/') {
        format!("{scheme}://{host}{location}")
    } else {
        return None;
    };
    let plain = to.chars().all(|c| c.is_ascii_graphic()) && !host_of(&to)?.is_empty();
    (plain && !(scheme == "https" && to.starts_with("http://"))).then_some(to)
}

/// `host:port` of an address, with its scheme: what a token is sent to.
pub fn origin(url: &str) -> Option<&str> {
    let begin = url.find("://")? + 3;
    let len = url[begin..].find(['/', '?', '#']).unwrap_or(url.len() - begin);
    Some(&url[..begin + len])
}

fn host_of(url: &str) -> Option<&str> {
    Some(origin(url)?.split_once("://")?.1)
}

/// A path or revision in an address; `/` stays in a path.
pub fn escaped(text: &str, keep_slash: KeepSlash) -> String {
    let mut out = String::with_capacity(text.len());
    for b in text.bytes() {
        let plain = b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'~');
        if plain || (b == b'/' && keep_slash == KeepSlash::Yes) {
            out.push(char::from(b));
        } else {
            out += &format!("%{b:02X}");
        }
    }
    out
}

/// Whether `/` separates (in a path) or is a letter like others (in a revision).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeepSlash {
    /// It separates.
    Yes,
    /// It is escaped.
    No,
}

/// A stranger's text, short enough and plain enough for a message.
pub fn shortened(text: &str) -> String {
    let plain = |c: char| if c.is_control() { ' ' } else { c };
    let mut short: String = text.chars().take(200).map(plain).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short.trim().to_owned()
}

#[cfg(test)]
mod tests;
