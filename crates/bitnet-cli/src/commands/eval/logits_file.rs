//! llama.cpp's file of log-probabilities (`--kl-divergence-base`).
//!
//! `_logits_`, then 32-bit numbers: tokens of a window, of the vocabulary, and windows; the tokens; then for each predicted
//! position a row of 16-bit words: two f32 (scale and least log-probability), a word for each token of the vocabulary, and one
//! more where that is odd.

use super::divergence::rows;
use super::windows::{self, Windows};
use crate::failure::Failure;
use bitnet_inference::Model;
use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use tempfile::NamedTempFile;

const MAGIC: &[u8; 8] = b"_logits_";
/// Log-probabilities reach as far below the likeliest.
const REACH: f32 = 16.0;
/// Windows and vocabularies beyond this are no model's.
const MOST: u32 = 1 << 24;

/// Bytes of a row.
fn row_bytes(vocab: usize) -> usize {
    2 * (2 * vocab.div_ceil(2) + 4)
}

fn failed(path: &Path) -> impl Fn(std::io::Error) -> Failure + '_ {
    move |e| Failure::Runtime(format!("{}: {e}", path.display()))
}

/// Writes a file; it is whole, or as it was before.
pub struct Writer {
    path: PathBuf,
    out: BufWriter<NamedTempFile>,
}

impl Writer {
    pub fn create(path: &Path, windows: &Windows, vocab: usize) -> Result<Self, Failure> {
        let at = failed(path);
        let folder = path.parent().filter(|f| !f.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let file =
            tempfile::Builder::new().prefix(".logits-").suffix(".part").tempfile_in(folder).map_err(&at)?;
        let mut out = BufWriter::new(file);
        out.write_all(MAGIC).map_err(&at)?;
        let ids = &windows.ids[..windows.len() * windows.size];
        let numbers = [windows.size as u32, vocab as u32, windows.len() as u32];
        for number in numbers.iter().chain(ids) {
            out.write_all(&number.to_le_bytes()).map_err(&at)?;
        }
        Ok(Self { path: path.to_owned(), out })
    }

    /// Adds rows of logits.
    pub fn rows(&mut self, logits: &[f32], vocab: usize, threads: usize) -> Result<(), Failure> {
        for row in rows(logits, vocab, threads, |_, logits| encode(logits)) {
            self.out.write_all(&row).map_err(failed(&self.path))?;
        }
        Ok(())
    }

    pub fn finish(self) -> Result<(), Failure> {
        let at = failed(&self.path);
        let file = self.out.into_inner().map_err(|e| at(e.into_error()))?;
        file.persist(&self.path).map_err(|e| at(e.error))?;
        Ok(())
    }
}

/// A row of the file.
fn encode(logits: &[f32]) -> Vec<u8> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let min = logits.iter().copied().fold(f32::INFINITY, f32::min).max(max - REACH);
    let sum: f64 = logits.iter().map(|v| f64::from(v - max).exp()).sum();
    let scale = (max - min) / 65535.0;
    let mut row = Vec::with_capacity(row_bytes(logits.len()));
    row.extend(scale.to_le_bytes());
    row.extend((min - max - sum.ln() as f32).to_le_bytes());
    for v in logits {
        let step = if scale > 0.0 && *v > min { ((v - min) / scale).round_ties_even() as u16 } else { 0 };
        row.extend(step.to_le_bytes());
    }
    row.resize(row_bytes(logits.len()), 0);
    row
}

/// Reads a file window by window.
pub struct Reader {
    path: PathBuf,
    input: BufReader<File>,
    pub window: usize,
    pub vocab: usize,
    ids: Vec<u32>,
}

/// The rows of a window.
pub struct Stored {
    vocab: usize,
    bytes: Vec<u8>,
}

impl Stored {
    /// Scale, least log-probability, and the words of a row.
    pub fn row(&self, at: usize) -> (f32, f32, &[u8]) {
        let len = row_bytes(self.vocab);
        let row = &self.bytes[at * len..][..len];
        let float = |at: usize| f32::from_le_bytes([row[at], row[at + 1], row[at + 2], row[at + 3]]);
        (float(0), float(4), &row[8..])
    }
}

impl Reader {
    pub fn open(path: &Path) -> Result<Self, Failure> {
        let wrong = |what: &str| Failure::Usage(format!("{}: {what}", path.display()));
        let file = File::open(path).map_err(|e| wrong(&e.to_string()))?;
        let len = file.metadata().map_err(failed(path))?.len();
        let mut input = BufReader::new(file);
        let mut magic = [0; 8];
        if input.read_exact(&mut magic).is_err() || magic != *MAGIC {
            return Err(wrong("no file of logits; --kl-divergence-base without --kl-divergence writes one"));
        }
        let mut number = || -> Result<u32, Failure> {
            let mut bytes = [0; 4];
            input.read_exact(&mut bytes).map_err(|_| wrong("it ends in its header"))?;
            Ok(u32::from_le_bytes(bytes))
        };
        let [window, vocab, count] = [number()?, number()?, number()?];
        if !(4..MOST).contains(&window) || !(1..MOST).contains(&vocab) {
            return Err(wrong("its header makes no sense"));
        }
        let (window, vocab, count) = (u64::from(window), u64::from(vocab), u64::from(count));
        // Products of numbers below 2^24 and 2^32 do not reach 2^64.
        let rows = (window - 1 - window / 2) * row_bytes(vocab as usize) as u64;
        let want = count.checked_mul(4 * window + rows).and_then(|n| n.checked_add(20));
        if want.is_none_or(|want| want > len) || count == 0 {
            return Err(wrong("it is cut off, or its header lies"));
        }
        let ids = (0..count * window).map(|_| number()).collect::<Result<_, _>>()?;
        Ok(Self { path: path.to_owned(), input, window: window as usize, vocab: vocab as usize, ids })
    }

    pub fn windows(&mut self, model: &Model, path: &Path, chunks: Option<usize>) -> Result<Windows, Failure> {
        let bos = windows::begin(model, path)?;
        Ok(Windows::of(std::mem::take(&mut self.ids), self.window, bos, chunks))
    }

    /// The rows of the next window.
    pub fn window_rows(&mut self) -> Result<Stored, Failure> {
        let rows = self.window - 1 - self.window / 2;
        let mut bytes = vec![0; rows * row_bytes(self.vocab)];
        self.input.read_exact(&mut bytes).map_err(failed(&self.path))?;
        Ok(Stored { vocab: self.vocab, bytes })
    }
}
