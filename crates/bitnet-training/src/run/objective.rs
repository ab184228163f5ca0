//! What a run makes small: cross-entropies of tokens, or losses of pairs of answers.

use super::event::Preferences;
use crate::Batch;
use crate::TrainError;
use crate::data::{Corpus, Rows};
use crate::hash;
use crate::model::{Model, Precision};
use crate::preference::{Dpo, Preferred};
use bitnet_formats::write_file;
use sha2::{Digest, Sha256};
use std::path::Path;

/// What is measured on batches.
pub(super) enum Objective {
    /// The mean cross-entropy of counted tokens.
    Tokens,
    /// The mean loss of pairs.
    Pairs(Dpo),
}

/// Sums over what was measured.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sums {
    /// Tokens or pairs.
    pub(super) count: usize,
    pub(super) loss: f64,
    margin: f64,
    won: usize,
}

impl Sums {
    /// Of cross-entropies of tokens.
    pub(super) fn tokens(count: usize, loss: f64) -> Self {
        Self { count, loss, ..Self::default() }
    }

    pub(super) fn mean(&self) -> f64 {
        self.loss / self.count.max(1) as f64
    }

    pub(super) fn add(&mut self, other: Self) {
        self.count += other.count;
        self.loss += other.loss;
        self.margin += other.margin;
        self.won += other.won;
    }

    fn pair(&mut self, pair: Preferred) {
        self.count += 1;
        self.loss += pair.loss;
        self.margin += pair.margin;
        self.won += usize::from(pair.margin > 0.0);
    }
}

impl Objective {
    /// What a mean is over.
    pub(super) fn count(&self, batch: &Batch) -> usize {
        match self {
            Self::Tokens => batch.counted(),
            Self::Pairs(_) => batch.spans.len() / 2,
        }
    }

    /// Measures a batch; gradients are left alone. `reference` has the log-likelihoods of a corpus' examples under the model at the start.
    pub(super) fn measure(&self, model: &mut Model, batch: &Batch, reference: &[f64]) -> Sums {
        match self {
            Self::Tokens => {
                let count = batch.counted();
                Sums::tokens(count, model.loss(batch) * count as f64)
            }
            Self::Pairs(dpo) => {
                let likelihoods = model.log_likelihoods(batch);
                let mut sums = Sums::default();
                pairs(dpo, batch, &likelihoods, reference).for_each(|pair| sums.pair(pair));
                sums
            }
        }
    }

    /// Measures a batch and adds to the gradients those of its sum, divided by `total`.
    pub(super) fn backward(&self, model: &mut Model, batch: &Batch, total: usize, reference: &[f64]) -> Sums {
        match self {
            Self::Tokens => {
                let loss = model.backward(batch, total);
                Sums::tokens(batch.counted(), loss)
            }
            Self::Pairs(dpo) => {
                let mut sums = Sums::default();
                model.backward_by_sequence(batch, &mut |likelihoods| {
                    let slopes = pairs(dpo, batch, likelihoods, reference).flat_map(|pair| {
                        sums.pair(pair);
                        let slope = pair.slope / total.max(1) as f64;
                        [slope, -slope]
                    });
                    slopes.collect()
                });
                sums
            }
        }
    }

    /// What is told beside the loss.
    pub(super) fn preferences(&self, sums: &Sums) -> Option<Preferences> {
        let n = sums.count.max(1) as f64;
        match self {
            Self::Tokens => None,
            Self::Pairs(_) => Some(Preferences { accuracy: sums.won as f64 / n, margin: sums.margin / n }),
        }
    }
}

fn pairs<'a>(
    dpo: &'a Dpo,
    batch: &'a Batch,
    likelihoods: &'a [f64],
    reference: &'a [f64],
) -> impl Iterator<Item = Preferred> + 'a {
    let both = likelihoods.as_chunks::<2>().0.iter().zip(batch.examples.as_chunks::<2>().0);
    both.map(|(model, of)| dpo.pair(*model, of.map(|example| reference[example as usize])))
}

/// Log-likelihoods of a corpus' examples under a model: from `folder` where they were computed before, else put there. Those of examples that
/// are in no rows are no numbers. `begin` is told of how many pairs are computed.
pub(super) fn reference(
    model: &mut Model,
    precision: Precision,
    corpus: &Corpus,
    rows: &[&Rows],
    folder: &Path,
    batch: usize,
    begin: &mut dyn FnMut(usize),
) -> Result<Vec<f64>, TrainError> {
    let mut digest = Sha256::new();
    digest.update(format!("1 {} {precision:?}", corpus.name));
    model.hash(&mut digest);
    let path = folder.join(format!("{}.reference", hash::hex(&digest.finalize()[..16])));
    let mut all = vec![f64::NAN; corpus.len()];
    if let Ok(bytes) = std::fs::read(&path)
        && bytes.len() == 8 * all.len()
    {
        all = bytes.as_chunks::<8>().0.iter().map(|b| f64::from_le_bytes(*b)).collect();
    }
    let missing = |rows: &&Rows| rows.examples().any(|example| all[example as usize].is_nan());
    let rows: Vec<&&Rows> = rows.iter().filter(|rows| missing(rows)).collect();
    if rows.is_empty() {
        return Ok(all);
    }
    begin(rows.iter().map(|rows| rows.len()).sum());
    model.quantize()?;
    for rows in rows {
        for first in (0..rows.len()).step_by(batch) {
            let batch = rows.plain(corpus, first, batch);
            for (example, value) in batch.examples.iter().zip(model.log_likelihoods(&batch)) {
                all[*example as usize] = value;
            }
        }
    }
    write_file(&path, &all.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>())?;
    Ok(all)
}
