//! Examples packed into rows of a fixed number of tokens, and their order.

use super::{Batch, Corpus};
use crate::TrainError;
use crate::random::{Purpose, bits, permutation};
use crate::run::Kind;

/// A part of an example: its tokens from `from` to `to`, of which the last one is a target only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Piece {
    example: u32,
    from: u32,
    to: u32,
}

/// Which examples are packed.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Split {
    /// All.
    All,
    /// Those that a share for validation leaves.
    Train(f64),
    /// That share.
    Validation(f64),
}

impl Split {
    fn has(self, seed: u64, example: usize) -> bool {
        let drawn = (bits(seed, Purpose::Validation, 0, example as u64) >> 11) as f64 / (1u64 << 53) as f64;
        let held = |share: f64| drawn < share;
        match self {
            Self::All => true,
            Self::Train(share) => !held(share),
            Self::Validation(share) => held(share),
        }
    }
}

/// Rows of tokens. Documents of pre-training (and of `qat` and `distill`) fill every row and are cut where it ends; examples of fine-tuning stay
/// whole; of pairs each is a row, the better answer first.
#[derive(Debug)]
pub(crate) struct Rows {
    rows: Vec<Vec<Piece>>,
    seed: u64,
    /// Examples that were longer than a row and left out.
    pub(crate) dropped: usize,
}

impl Rows {
    /// Packs examples in a random order.
    pub(crate) fn new(
        corpus: &Corpus,
        kind: Kind,
        split: Split,
        sequence: usize,
        drop_long: bool,
        seed: u64,
    ) -> Result<Self, TrainError> {
        if kind == Kind::Dpo {
            return Self::pairs(corpus, split, sequence, drop_long, seed);
        }
        let (mut rows, mut row, mut used, mut dropped) = (Vec::new(), Vec::new(), 0, 0);
        let order = permutation(seed, Purpose::Documents, 0, corpus.len());
        for example in order.into_iter().filter(|e| split.has(seed, *e as usize)) {
            let tokens = corpus.tokens(example as usize);
            // Inputs: the last token is a target only.
            let inputs = tokens.saturating_sub(1);
            let whole = match kind {
                Kind::Pretrain => false,
                // Of documents every token counts.
                Kind::Lora | Kind::Qat | Kind::Distill => !corpus.all_count(example as usize),
                Kind::Sft | Kind::Dpo => true,
            };
            if whole && inputs > sequence {
                if drop_long {
                    dropped += 1;
                    continue;
                }
                return Err(too_long("example", example, tokens, sequence));
            }
            let mut from = 0;
            while from < inputs {
                if used == sequence || whole && used + inputs > sequence {
                    rows.push(std::mem::take(&mut row));
                    used = 0;
                }
                let count = (inputs - from).min(sequence - used);
                row.push(Piece { example, from: from as u32, to: (from + count + 1) as u32 });
                (from, used) = (from + count, used + count);
            }
        }
        rows.extend((!row.is_empty()).then_some(row));
        Ok(Self { rows, seed, dropped })
    }

    fn pairs(
        corpus: &Corpus,
        split: Split,
        sequence: usize,
        drop_long: bool,
        seed: u64,
    ) -> Result<Self, TrainError> {
        let (mut rows, mut dropped) = (Vec::new(), 0);
        let order = permutation(seed, Purpose::Documents, 0, corpus.len() / 2);
        for pair in order.into_iter().filter(|pair| split.has(seed, *pair as usize)) {
            let both = [2 * pair, 2 * pair + 1];
            let tokens = both.map(|example| corpus.tokens(example as usize)).into_iter().max().unwrap_or(0);
            if tokens > sequence + 1 {
                if drop_long {
                    dropped += 1;
                    continue;
                }
                return Err(too_long("pair", pair, tokens, sequence));
            }
            let piece = |example: u32| Piece { example, from: 0, to: corpus.tokens(example as usize) as u32 };
            rows.push(both.map(piece).to_vec());
        }
        Ok(Self { rows, seed, dropped })
    }

    pub(crate) fn len(&self) -> usize {
        self.rows.len()
    }

    /// Rows `first..first + count` of an endless sequence: all rows in a random order, then all in another one, and so on.
    pub(crate) fn shuffled(&self, corpus: &Corpus, first: u64, count: usize) -> Batch {
        let all = self.rows.len() as u64;
        let (mut batch, mut order) = (Batch::default(), (u64::MAX, Vec::new()));
        for at in first..first + count as u64 {
            let epoch = at / all;
            if order.0 != epoch {
                order = (epoch, permutation(self.seed, Purpose::Rows, epoch, self.rows.len()));
            }
            self.add(corpus, order.1[(at % all) as usize] as usize, &mut batch);
        }
        batch
    }

    /// The examples that rows are made of.
    pub(crate) fn examples(&self) -> impl Iterator<Item = u32> + '_ {
        self.rows.iter().flatten().map(|piece| piece.example)
    }

    /// Rows in their own order.
    pub(crate) fn plain(&self, corpus: &Corpus, first: usize, count: usize) -> Batch {
        let mut batch = Batch::default();
        (first..self.rows.len().min(first + count)).for_each(|row| self.add(corpus, row, &mut batch));
        batch
    }

    fn add(&self, corpus: &Corpus, row: usize, batch: &mut Batch) {
        for piece in &self.rows[row] {
            let words = corpus.words(piece.example as usize, piece.from as usize, piece.to as usize);
            let ids: Vec<u32> = words.iter().map(|(id, _)| *id).collect();
            batch.push(&ids, |i| words[i].1);
            // A sequence of one token is none.
            batch.examples.resize(batch.spans.len(), piece.example);
        }
    }
}

fn too_long(what: &str, index: u32, tokens: usize, sequence: usize) -> TrainError {
    let what = format!(
        "{what} {} has {tokens} tokens and a row has {sequence}: raise data.sequence, or set data.too_long to drop",
        index + 1
    );
    TrainError::Data { what }
}
