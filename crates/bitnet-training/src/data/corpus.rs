//! Tokens of files, encoded once: a file of examples one behind the other, mapped when it is used.
//!
//! An example is the number of its words (u32, little-endian) and the words: ids, whose highest bit says that they count as targets.

use super::encode::{COUNTS, words};
use super::read::{Placed, Skipped, examples};
use crate::TrainError;
use crate::run::Kind;
use bitnet_core::Bytes;
use bitnet_formats::{AtomicFile, write_file};
use bitnet_tokenizer::Tokenizer;
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};

/// Encoded examples.
#[derive(Debug)]
pub(crate) struct Corpus {
    bytes: Bytes,
    /// Where each example's words begin, in bytes, and how many there are.
    places: Vec<(usize, u32)>,
}

/// What a corpus is made with.
pub(crate) struct Maker<'a> {
    pub(crate) tokenizer: &'a Tokenizer,
    /// Tells tokenizers apart: the hash of its files.
    pub(crate) identity: &'a str,
    pub(crate) kind: Kind,
    pub(crate) vocab: usize,
    pub(crate) threads: usize,
}

impl Corpus {
    /// The tokens of some files: from `folder` where they were encoded before, else encoded by several threads and put there.
    pub(crate) fn of(
        files: &[PathBuf],
        folder: &Path,
        maker: &Maker<'_>,
        skipped: &mut Skipped,
    ) -> Result<Self, TrainError> {
        let mut hash = Sha256::new();
        hash.update(format!("2 {} {}", maker.kind.name(), maker.identity));
        for file in files {
            // The name's end says how it is read.
            hash.update(file.extension().unwrap_or_default().as_encoded_bytes());
            hash.update(crate::hash::of_file(file)?);
        }
        let name = crate::hash::hex(&hash.finalize()[..16]);
        let path = folder.join(format!("{name}.tokens"));
        // What is told of rows that are no examples is told again when the tokens are taken from here.
        let beside = path.with_extension("skipped.json");
        if !path.exists() {
            std::fs::create_dir_all(folder).map_err(TrainError::io(folder))?;
            let (mut out, mut bad) = (AtomicFile::create(&path)?, Skipped::default());
            for file in files {
                examples(file, &mut bad, &mut |some| write(maker, some, &mut out))?;
            }
            write_file(&beside, bad.to_json().to_string().as_bytes())?;
            out.finish()?;
        }
        let corpus = Self::open(&path, maker.vocab)?;
        let told = std::fs::read(&beside).ok().and_then(|text| serde_json::from_slice(&text).ok());
        let damaged = || TrainError::Data {
            what: format!("{} is damaged; remove {}", beside.display(), path.display()),
        };
        skipped.append(told.as_ref().and_then(Skipped::from_json).ok_or_else(damaged)?);
        if corpus.places.is_empty() {
            let names: Vec<String> = files.iter().map(|f| f.display().to_string()).collect();
            let first = skipped.first.first().map_or_else(String::new, |f| format!(" ({f})"));
            return Err(TrainError::Data {
                what: format!("there is no example in {}{first}", names.join(", ")),
            });
        }
        Ok(corpus)
    }

    fn open(path: &Path, vocab: usize) -> Result<Self, TrainError> {
        let bytes = bitnet_formats::map_file(path)?;
        let damaged = || TrainError::Data { what: format!("{} is damaged; remove it", path.display()) };
        let (mut places, mut at) = (Vec::new(), 0);
        while at < bytes.len() {
            let word =
                |at: usize| bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_le_bytes);
            let count = word(at).ok_or_else(damaged)?;
            let end = (count as usize).checked_mul(4).and_then(|len| len.checked_add(at + 4));
            let end = end.filter(|end| *end <= bytes.len()).ok_or_else(damaged)?;
            if (at + 4..end).step_by(4).any(|at| word(at).is_none_or(|w| (w & !COUNTS) as usize >= vocab)) {
                return Err(damaged());
            }
            places.push((at + 4, count));
            at = end;
        }
        Ok(Self { bytes, places })
    }

    /// Examples.
    pub(crate) fn len(&self) -> usize {
        self.places.len()
    }

    /// Tokens of an example.
    pub(crate) fn tokens(&self, example: usize) -> usize {
        self.places[example].1 as usize
    }

    /// Whether every token of an example but the first counts.
    pub(crate) fn all_count(&self, example: usize) -> bool {
        self.words(example, 0, self.tokens(example)).iter().skip(1).all(|(_, counts)| *counts)
    }

    /// Ids of an example's tokens from `from` to `to`, each with whether it counts.
    pub(crate) fn words(&self, example: usize, from: usize, to: usize) -> Vec<(u32, bool)> {
        let start = self.places[example].0;
        let bytes = &self.bytes[start + 4 * from..start + 4 * to];
        let words = bytes.as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b));
        words.map(|w| (w & !COUNTS, w & COUNTS != 0)).collect()
    }
}

/// Encodes examples on several threads and writes them in their order.
fn write(maker: &Maker<'_>, some: Vec<Placed>, out: &mut AtomicFile) -> Result<(), TrainError> {
    let share = some.len().div_ceil(maker.threads.max(1)).max(1);
    let encode = |part: &[Placed]| -> Vec<Result<Vec<u32>, String>> {
        part.iter().map(|(_, example)| words(maker.tokenizer, maker.kind, example)).collect()
    };
    let encoded: Vec<Result<Vec<u32>, String>> = std::thread::scope(|scope| {
        let parts: Vec<_> = some.chunks(share).map(|part| scope.spawn(move || encode(part))).collect();
        let join = |part: std::thread::ScopedJoinHandle<'_, _>| {
            part.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        parts.into_iter().flat_map(join).collect()
    });
    for ((place, _), words) in some.iter().zip(encoded) {
        // A row with the right keys that cannot be encoded is a matter of the settings, not of the row.
        let words = words.map_err(|why| TrainError::Data { what: format!("{place}: {why}") })?;
        if let Some(id) = words.iter().map(|w| w & !COUNTS).find(|id| *id as usize >= maker.vocab) {
            let what = format!(
                "{place}: the tokenizer gives the id {id}, and the model has {} tokens: they do not belong together",
                maker.vocab
            );
            return Err(TrainError::Data { what });
        }
        let bytes: Vec<u8> =
            [words.len() as u32].iter().chain(&words).flat_map(|word| word.to_le_bytes()).collect();
        out.write(&bytes)?;
    }
    Ok(())
}
