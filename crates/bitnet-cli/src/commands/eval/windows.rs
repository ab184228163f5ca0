//! The windows of a text.

use crate::commands::vocabulary;
use crate::failure::Failure;
use bitnet_inference::Model;
use bitnet_model::{Rows, StepOutput};
use bitnet_tokenizer::TokenBytes;
use std::path::Path;

/// Rows of logits at once: a vocabulary of 128000 takes 32 MB for them.
const ROWS: usize = 64;

/// Where windows begin, and what of each is predicted.
pub struct Windows {
    pub ids: Vec<u32>,
    pub size: usize,
    stride: usize,
    /// The first position whose successor is predicted.
    from: usize,
    count: usize,
    /// What each window begins with, in the place of its first token.
    bos: Option<u32>,
}

impl Windows {
    pub fn new(
        model: &Model,
        path: &Path,
        text: &str,
        size: usize,
        stride: Option<usize>,
        chunks: Option<usize>,
    ) -> Result<Self, Failure> {
        let ids = vocabulary::encode(model, text, path)?;
        let bos = begin(model, path)?;
        let count = match stride {
            None => ids.len() / size,
            Some(stride) => ids.len().saturating_sub(size).div_ceil(stride),
        };
        if count == 0 {
            return Err(Failure::Usage(format!(
                "the text has {} tokens, too few for a window of {size}; --ctx-size takes less",
                ids.len()
            )));
        }
        let from = stride.map_or(size / 2, |stride| size - stride - 1);
        let count = count.min(chunks.unwrap_or(count));
        Ok(Self { ids, size, stride: stride.unwrap_or(size), from, count, bos })
    }

    /// Windows of ids that a file holds, one behind the other.
    pub fn of(ids: Vec<u32>, size: usize, bos: Option<u32>, chunks: Option<usize>) -> Self {
        let count = ids.len() / size;
        Self { ids, size, stride: size, from: size / 2, count: count.min(chunks.unwrap_or(count)), bos }
    }

    pub fn len(&self) -> usize {
        self.count
    }

    /// The ids of a window, and the first position whose successor is predicted.
    pub fn get(&self, at: usize) -> (Vec<u32>, usize) {
        let mut ids = self.ids[at * self.stride..][..self.size].to_vec();
        if let Some(bos) = self.bos {
            ids[0] = bos;
        }
        (ids, self.from)
    }

    /// Bytes of text that are predicted.
    pub fn bytes(&self, model: &Model) -> usize {
        let Some(tokenizer) = model.tokenizer() else { return 0 };
        let of = tokenizer.token_bytes(model.config().vocab);
        let len = |id: &u32| match of.get(*id as usize) {
            Some(TokenBytes::Text(bytes)) => bytes.len(),
            _ => 0,
        };
        (0..self.count).map(|at| self.get(at).0[self.from + 1..].iter().map(len).sum::<usize>()).sum()
    }
}

/// What the model's texts begin with, if they do.
pub fn begin(model: &Model, path: &Path) -> Result<Option<u32>, Failure> {
    let first = vocabulary::encode(model, "", path)?.first().copied();
    Ok(first.filter(|id| model.tokenizer().and_then(|t| t.bos()) == Some(*id)))
}

/// Runs a window, and gives what comes of some positions from `from` on at a time: the first position, and logits `[rows, vocab]`, where it is
/// wanted with the residual stream.
pub fn each_rows(
    model: &mut Model,
    ids: &[u32],
    from: usize,
    batch: usize,
    keep_hidden: bool,
    each: &mut dyn FnMut(usize, &StepOutput),
) -> Result<(), Failure> {
    model.rewind(0);
    let mut out = StepOutput { rows: Rows::None, ..StepOutput::default() };
    for ids in ids[..from].chunks(batch.max(1)) {
        model.step(ids, &mut out)?;
    }
    (out.rows, out.keep_hidden) = (Rows::All, keep_hidden);
    let mut position = from;
    // What follows the last one is not known.
    for ids in ids[from..ids.len() - 1].chunks(ROWS) {
        model.step(ids, &mut out)?;
        each(position, &out);
        position += ids.len();
    }
    Ok(())
}
