//! `org/repo[:file-or-quant][@revision]`, `hf://datasets/org/repo[@revision]/FILE`.

use crate::HubError;
use std::fmt;
use std::path::Path;
use std::str::FromStr;

/// The branch that is meant where none is named.
pub const MAIN: &str = "main";

/// Endings of files. A text whose repository would end so is a path.
const FILES: &[&str] = &[".gguf", ".safetensors", ".json", ".model", ".bin", ".pt", ".pth", ".onnx"];

/// What is in a repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RepoKind {
    /// A model.
    Model,
    /// Files to train on or to measure with.
    Dataset,
}

/// A repository: `org/name`, checked.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RepoId {
    kind: RepoKind,
    name: String,
}

impl RepoId {
    /// A model's `org/name`, as the hub allows it.
    pub fn new(text: &str) -> Option<Self> {
        Self::of(RepoKind::Model, text)
    }

    fn of(kind: RepoKind, text: &str) -> Option<Self> {
        let (org, name) = text.split_once('/')?;
        let part = |p: &str| {
            let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
            let edges = |c: char| matches!(c, '-' | '.');
            (1..=96).contains(&p.len())
                && p.chars().all(allowed)
                && !p.starts_with(edges)
                && !p.ends_with(edges)
                && !p.contains("--")
                && !p.contains("..")
        };
        (part(org) && part(name)).then(|| Self { kind, name: text.to_owned() })
    }

    /// What is in it.
    pub fn kind(&self) -> RepoKind {
        self.kind
    }

    /// `org/name`.
    pub fn as_str(&self) -> &str {
        &self.name
    }

    /// The folder of the cache: `models--org--name`, `datasets--org--name`.
    pub fn folder(&self) -> String {
        let kind = match self.kind {
            RepoKind::Model => "models",
            RepoKind::Dataset => "datasets",
        };
        format!("{kind}--{}", self.name.replace('/', "--"))
    }

    /// Where the hub's interface tells of it.
    pub(crate) fn api(&self) -> String {
        match self.kind {
            RepoKind::Model => format!("api/models/{}", self.name),
            RepoKind::Dataset => format!("api/datasets/{}", self.name),
        }
    }

    /// The model's repository of a folder of the cache.
    pub fn from_folder(folder: &str) -> Option<Self> {
        Self::new(&folder.strip_prefix("models--")?.replacen("--", "/", 1))
    }
}

impl fmt::Display for RepoId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            RepoKind::Model => f.write_str(&self.name),
            RepoKind::Dataset => write!(f, "datasets/{}", self.name),
        }
    }
}

/// What a user calls a model, or a file of a data set, of the hub.
///
/// ```
/// use bitnet_hub::Reference;
/// let r: Reference = "org/repo:I2_S@v1.0".parse()?;
/// assert_eq!((r.repo.as_str(), r.pick.as_deref(), r.revision()), ("org/repo", Some("I2_S"), "v1.0"));
/// assert_eq!("hf://org/repo/sub/model.gguf".parse::<Reference>()?.pick.as_deref(), Some("sub/model.gguf"));
/// let data: Reference = "hf://datasets/org/repo@v1/data/train.parquet".parse()?;
/// assert_eq!((data.repo.kind(), data.pick.as_deref()), (bitnet_hub::RepoKind::Dataset, Some("data/train.parquet")));
/// # Ok::<(), bitnet_hub::HubError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// The repository.
    pub repo: RepoId,
    /// A file of it, or the name of a quantization.
    pub pick: Option<String>,
    /// Branch, tag or commit; the branch `main` where none is named.
    pub revision: Option<String>,
}

impl Reference {
    /// Branch, tag or commit.
    pub fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or(MAIN)
    }

    /// Whether a text that is no existing path is meant as a reference: it says `hf://`, or has the form without looking
    /// like the name of a file.
    pub fn is_meant(text: &str) -> bool {
        let file = |r: &Self| FILES.iter().any(|end| r.repo.as_str().to_ascii_lowercase().ends_with(end));
        text.starts_with("hf://") || text.parse::<Self>().is_ok_and(|r| !file(&r))
    }
}

impl FromStr for Reference {
    type Err = HubError;

    fn from_str(text: &str) -> Result<Self, HubError> {
        let fail = |what: &'static str| HubError::Reference { text: text.to_owned(), what };
        let (kind, (repo, pick, revision)) = match text.strip_prefix("hf://") {
            Some(rest) => match rest.strip_prefix("datasets/") {
                Some(rest) => (RepoKind::Dataset, address(rest)),
                None => (RepoKind::Model, address(rest)),
            },
            None => (RepoKind::Model, short(text)),
        };
        let repo = RepoId::of(kind, repo).ok_or_else(|| fail("a repository is org/name"))?;
        if pick.is_some_and(|p| !is_safe_path(p)) {
            return Err(fail("what follows the colon is neither a file nor the name of a quantization"));
        }
        if revision.is_some_and(|r| !is_safe_path(r)) {
            return Err(fail("what follows the @ is no branch, tag or commit"));
        }
        Ok(Self { repo, pick: pick.map(str::to_owned), revision: revision.map(str::to_owned) })
    }
}

type Parts<'a> = (&'a str, Option<&'a str>, Option<&'a str>);

/// `org/repo[:pick][@revision]`
fn short(text: &str) -> Parts<'_> {
    let (head, revision) = match text.split_once('@') {
        Some((head, revision)) => (head, Some(revision)),
        None => (text, None),
    };
    match head.split_once(':') {
        Some((repo, pick)) => (repo, Some(pick), revision),
        None => (head, None, revision),
    }
}

/// `org/repo[@revision]/path`, or the short form.
fn address(text: &str) -> Parts<'_> {
    let second = text.match_indices('/').nth(1).filter(|(at, _)| !text[..*at].contains(':'));
    let Some((at, _)) = second else { return short(text) };
    let (repo, _, revision) = short(&text[..at]);
    // A revision such as refs/pr/1 cannot stand before a path; it goes with the short form.
    (repo, Some(&text[at + 1..]).filter(|p| !p.is_empty()), revision)
}

/// Whether a text names something below a folder, on every system: nothing absolute, no way up, no drive, no stream, no
/// control characters.
pub(crate) fn is_safe_path(text: &str) -> bool {
    let part = |p: &str| !p.is_empty() && p != "." && p != ".." && p.len() <= 255;
    text.len() <= 1024
        && !text
            .chars()
            .any(|c| c.is_control() || matches!(c, '\\' | ':' | '*' | '?' | '"' | '<' | '>' | '|'))
        && text.split('/').all(part)
        && Path::new(text).is_relative()
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.repo.kind == RepoKind::Dataset {
            f.write_str("hf://")?;
        }
        write!(f, "{}", self.repo)?;
        if let Some(pick) = &self.pick {
            write!(f, ":{pick}")?;
        }
        match &self.revision {
            Some(revision) => write!(f, "@{revision}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
