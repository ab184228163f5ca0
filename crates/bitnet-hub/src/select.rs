//! Which files of a repository a model needs.

use crate::HubError;
use crate::reference::{Reference, RepoKind};
use bitnet_formats::{CARD_FILES, TOKENIZER_FILES};

/// What describes a model, beside its vocabulary and its card.
const CONFIGURATION: [&str; 2] = ["config.json", "generation_config.json"];

/// Where a model lies in a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// The folder is the model.
    Folder,
    /// A file is.
    File(String),
}

/// The files of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selection {
    /// Their paths in the repository.
    pub files: Vec<String>,
    /// Where the model lies.
    pub place: Place,
}

/// Patterns that replace or narrow the choice: `*` is any text, `?` one character, and `*` crosses folders.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Patterns {
    /// Take what one of these fits, instead of what the model needs.
    pub include: Vec<String>,
    /// Leave out what one of these fits.
    pub exclude: Vec<String>,
}

impl Patterns {
    /// Whether nothing is asked for.
    pub fn is_empty(&self) -> bool {
        self.include.is_empty() && self.exclude.is_empty()
    }
}

/// The files that a reference needs (of a data set, the one that it names) of those that a repository (or a snapshot of it) has.
pub fn select(reference: &Reference, names: &[&str]) -> Result<Selection, HubError> {
    let no_file = |wanted: String| HubError::NoFile {
        repo: reference.repo.to_string(),
        wanted,
        has: names.iter().map(|n| (*n).to_owned()).collect(),
    };
    if reference.repo.kind() == RepoKind::Dataset {
        return match &reference.pick {
            Some(pick) if names.contains(&pick.as_str()) => Ok(single(pick)),
            Some(pick) => Err(no_file(format!("{pick:?}"))),
            None => Err(no_file("file named (hf://datasets/org/name/FILE)".to_owned())),
        };
    }
    let ggufs = || names.iter().copied().filter(|n| n.to_ascii_lowercase().ends_with(".gguf"));
    let Some(pick) = &reference.pick else {
        if let Some(weights) = safetensors(names) {
            return Ok(folder(names, weights.map_err(no_file)?.into_iter()));
        }
        return match ggufs().collect::<Vec<_>>()[..] {
            [one] => Ok(single(one)),
            [] => {
                let bins = names.iter().copied().filter(|n| is_bin(n)).collect::<Vec<_>>();
                match bins.is_empty() {
                    true => Err(no_file("model that is known (safetensors or GGUF)".to_owned())),
                    false => Ok(folder(names, bins.into_iter())),
                }
            }
            _ => Err(ambiguous(reference, ggufs())),
        };
    };
    if let Some(exact) = names.iter().find(|n| *n == pick) {
        let alone = exact.to_ascii_lowercase().ends_with(".gguf") || exact.contains('/');
        return Ok(if alone {
            single(exact)
        } else {
            Selection { place: Place::File((*exact).to_owned()), ..folder(names, [*exact].into_iter()) }
        });
    }
    for strictly in [true, false] {
        let found: Vec<&str> = ggufs().filter(|n| names_quantization(n, pick, strictly)).collect();
        match found[..] {
            [] => {}
            [one] => return Ok(single(one)),
            _ => return Err(ambiguous(reference, found.into_iter())),
        }
    }
    Err(no_file(format!("{pick:?}")))
}

/// All files that patterns leave, and where a model lies among them, if there is one.
pub fn by_patterns(
    reference: &Reference,
    names: &[&str],
    patterns: &Patterns,
) -> Result<Selection, HubError> {
    let fits = |list: &[String], name: &str| list.iter().any(|p| glob(p.as_bytes(), name.as_bytes()));
    let mut files: Vec<String> = match patterns.include.is_empty() {
        true => select(reference, names)?.files,
        false => names.iter().filter(|n| fits(&patterns.include, n)).map(|n| (*n).to_owned()).collect(),
    };
    files.retain(|n| !fits(&patterns.exclude, n));
    if files.is_empty() {
        return Err(HubError::NoFile {
            repo: reference.repo.to_string(),
            wanted: "file that the patterns leave".to_owned(),
            has: names.iter().map(|n| (*n).to_owned()).collect(),
        });
    }
    let kept: Vec<&str> = files.iter().map(String::as_str).collect();
    let place = select(reference, &kept).map_or(Place::Folder, |s| s.place);
    Ok(Selection { files, place })
}

fn single(name: &str) -> Selection {
    Selection { files: vec![name.to_owned()], place: Place::File(name.to_owned()) }
}

fn folder<'a>(names: &[&str], weights: impl Iterator<Item = &'a str>) -> Selection {
    let beside = CONFIGURATION.into_iter().chain(TOKENIZER_FILES).chain(CARD_FILES);
    let files = beside.filter(|name| names.contains(name)).chain(weights);
    Selection { files: files.map(str::to_owned).collect(), place: Place::Folder }
}

/// The weights of a Hugging Face directory: one file, or an index and its shards. `Err` says what is missing.
fn safetensors<'a>(names: &[&'a str]) -> Option<Result<Vec<&'a str>, String>> {
    if let Some(one) = names.iter().find(|n| **n == "model.safetensors") {
        return Some(Ok(vec![one]));
    }
    let index = names.iter().find(|n| **n == "model.safetensors.index.json")?;
    let mut shards: Vec<(&str, u32, u32)> =
        names.iter().filter_map(|n| shard(n).map(|(part, of)| (*n, part, of))).collect();
    shards.sort_by_key(|s| s.1);
    let of = shards.first().map_or(1, |s| s.2);
    let whole = shards.iter().map(|s| (s.1, s.2)).eq((1..=of).map(|part| (part, of)));
    if !whole {
        return Some(Err(format!("complete model ({} of {of} shards are there)", shards.len())));
    }
    Some(Ok([*index].into_iter().chain(shards.into_iter().map(|s| s.0)).collect()))
}

/// `model-00001-of-00003.safetensors`: which part of how many.
fn shard(name: &str) -> Option<(u32, u32)> {
    let (part, of) = name.strip_prefix("model-")?.strip_suffix(".safetensors")?.split_once("-of-")?;
    let (part, of) = (part.parse().ok()?, of.parse().ok()?);
    (of <= 100_000).then_some((part, of))
}

fn is_bin(name: &str) -> bool {
    name == "pytorch_model.bin.index.json" || (name.starts_with("pytorch_model") && name.ends_with(".bin"))
}

/// Whether a file's name has the tag as a word of its own: `i2_s` is one of `ggml-model-i2_s.gguf`, `q2_0` none of
/// `model-tq2_0.gguf`. Strictly, `q4_k` is none of `model-q4_k_m.gguf` either.
fn names_quantization(name: &str, tag: &str, strictly: bool) -> bool {
    let (name, tag) = (name.to_ascii_lowercase(), tag.to_ascii_lowercase());
    let stem = name.strip_suffix(".gguf").unwrap_or(&name);
    stem.match_indices(&tag).any(|(at, _)| {
        let before = stem[..at].chars().next_back();
        let after = stem[at + tag.len()..].chars().next();
        !before.is_some_and(char::is_alphanumeric)
            && !after.is_some_and(|c| c.is_alphanumeric() || (strictly && c == '_'))
    })
}

fn ambiguous<'a>(reference: &Reference, names: impl Iterator<Item = &'a str>) -> HubError {
    let choice = |n: &str| Reference { pick: Some(n.to_owned()), ..reference.clone() }.to_string();
    HubError::Ambiguous { repo: reference.repo.to_string(), choices: names.map(choice).collect() }
}

/// Whether a pattern fits a text, in time proportional to their product.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t, mut star) = (0, 0, None);
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(c) if *c == b'?' || *c == text[t] => {
                p += 1;
                t += 1;
            }
            _ => match star {
                None => return false,
                Some((at, from)) => {
                    star = Some((at, from + 1));
                    p = at + 1;
                    t = from + 1;
                }
            },
        }
    }
    pattern[p..].iter().all(|c| *c == b'*')
}

#[cfg(test)]
mod tests;
