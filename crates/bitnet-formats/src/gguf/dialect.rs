//! Numbers of types that stand for two layouts each, and how a file tells which of them it has.
//!
//! What a caller says goes first, then a key that our own files have, then sizes, then what the tensors hold. Where all of that
//! is silent about `I2_S`, it is the layout of x86, which every published file has and every converter in Python writes;
//! any other doubt is an error that names both.

use super::TensorInfo;
use super::metadata::{Metadata, Value};
use crate::TensorType;
use bitnet_quant::packing::{I2_S, I2_S_ARM, Packing, Q2_0_G64, Q2_0_G128};
use std::collections::HashMap;

/// The layouts of one number.
pub(super) struct Dialects {
    /// The number.
    pub(super) id: u32,
    pub(super) name: &'static str,
    /// What the layouts differ in.
    part: &'static str,
    /// Our own files say it under this key.
    pub(super) key: &'static str,
    pub(super) layouts: [Layout; 2],
    /// Whether the layouts differ in size, so that a tensor's bytes must reach to the next tensor.
    sized: bool,
    /// What the tensors hold says: a layout, or that both are as likely.
    content: fn(&[Candidate<'_>]) -> Option<&'static Packing>,
}

pub(super) struct Layout {
    pub(super) packing: &'static Packing,
    /// Codes of a block or group.
    pub(super) size: u32,
    whose: &'static str,
    /// What `bitnet convert` calls it.
    flag: &'static str,
}

/// A tensor of a number that stands for two layouts.
pub(super) struct Candidate<'a> {
    pub(super) name: &'a str,
    /// Rows first.
    pub(super) shape: &'a [usize],
    /// From the tensor's beginning to the next one's, or to the end of the file.
    pub(super) room: &'a [u8],
}

impl<'a> Candidate<'a> {
    /// The bytes of so many two-bit codes.
    fn codes(&self, weights: usize) -> Option<&'a [u8]> {
        self.room.get(..weights / 4)
    }
}

/// Every number that stands for two layouts.
pub(super) static DIALECTS: [Dialects; 2] = [
    Dialects {
        id: 36,
        name: "I2_S",
        part: "blocks",
        key: "bitnet.i2_s.block_size",
        layouts: [
            Layout { packing: &I2_S, size: 128, whose: "bitnet.cpp's on x86", flag: "i2_s" },
            Layout { packing: &I2_S_ARM, size: 64, whose: "bitnet.cpp's on ARM", flag: "i2_s-arm" },
        ],
        sized: false,
        content: coupled_channels,
    },
    Dialects {
        id: 42,
        name: "Q2_0",
        part: "groups",
        key: "bitnet.q2_0.group_size",
        layouts: [
            Layout { packing: &Q2_0_G64, size: 64, whose: "ggml's", flag: "q2_0" },
            Layout { packing: &Q2_0_G128, size: 128, whose: "Prism's first files'", flag: "q2_0-g128" },
        ],
        sized: true,
        content: valid_codes,
    },
];

/// Whether a key is about the layout of a file's own tensors, which is another one in another file.
pub fn is_layout_key(key: &str) -> bool {
    DIALECTS.iter().any(|d| d.key == key)
}

impl Dialects {
    /// Whether a packing is one of the layouts.
    pub(super) fn has(&self, packing: &Packing) -> bool {
        self.layouts.iter().any(|l| l.packing.name == packing.name)
    }

    /// The key and what it says of tensors that are to be written.
    pub(super) fn told(&self, tensors: &[TensorInfo]) -> Option<(String, Value)> {
        let layout = tensors.iter().find_map(|t| match t.ttype {
            TensorType::Ternary(p) => self.layouts.iter().find(|l| l.packing.name == p.name),
            _ => None,
        })?;
        Some((self.key.to_owned(), Value::U32(layout.size)))
    }

    /// The layout of a file's tensors of this number; `asked` is what a caller says.
    ///
    /// # Errors
    /// In words: no layout fits, both do, or the file's key makes no sense.
    pub(super) fn find(
        &self,
        asked: Option<&'static Packing>,
        metadata: &Metadata,
        tensors: &[Candidate<'_>],
        alignment: usize,
    ) -> Result<&'static Packing, String> {
        let Self { name, part, key, layouts: [a, b], .. } = self;
        if let Some(asked) = asked.filter(|p| self.has(p)) {
            return Ok(asked);
        }
        if let Some(told) = metadata.get(key) {
            let told = self.layouts.iter().find(|l| told.as_u64() == Some(l.size.into()));
            return told
                .map(|l| l.packing)
                .ok_or_else(|| format!("its {key} is neither {} nor {}", a.size, b.size));
        }
        match [a, b].map(|l| tensors.iter().all(|t| self.fits(l.packing, t, alignment))) {
            [true, false] => Ok(a.packing),
            [false, true] => Ok(b.packing),
            [true, true] => (self.content)(tensors).ok_or_else(|| {
                format!(
                    "its {name} tensors could have {part} of {} ({}) or of {} ({}): both fit; `bitnet convert --from {}` or \
                     `--from {}` reads it so, and writes a file that tells",
                    a.size, a.whose, b.size, b.whose, a.flag, b.flag
                )
            }),
            [false, false] if self.sized => {
                Err(format!("its {name} tensors have neither {part} of {} nor of {}", a.size, b.size))
            }
            // Whoever places the tensors says which of them is wrong.
            [false, false] => Ok(a.packing),
        }
    }

    fn fits(&self, packing: &Packing, t: &Candidate<'_>, alignment: usize) -> bool {
        bytes(packing, t.shape)
            .is_some_and(|len| len <= t.room.len() && (!self.sized || t.room.len() - len < alignment))
    }
}

fn bytes(packing: &Packing, shape: &[usize]) -> Option<usize> {
    let (cols, outer) = shape.split_last()?;
    (packing.bytes)(outer.iter().try_fold(1usize, |n, d| n.checked_mul(*d))?, *cols)
}

/// `Q2_0` tensors so small that sizes fit both layouts: read in the wrong groups, scales become codes, one of which is no trit.
fn valid_codes(tensors: &[Candidate<'_>]) -> Option<&'static Packing> {
    let valid = |packing: &Packing| {
        tensors.iter().all(|t| {
            let data = bytes(packing, t.shape).and_then(|len| t.room.get(..len));
            let cols = t.shape.last().copied().unwrap_or(0).max(1);
            let rows = t.shape.iter().product::<usize>() / cols;
            data.is_some_and(|data| (packing.unpack)(rows, cols, data).is_ok())
        })
    };
    match [&Q2_0_G64, &Q2_0_G128].map(valid) {
        [true, false] => Some(&Q2_0_G64),
        [false, true] => Some(&Q2_0_G128),
        _ => None,
    }
}

/// Layers that are looked at.
const LAYERS: usize = 4;

/// Standard deviations beyond which a correlation is no chance.
const SURE: f64 = 8.0;

/// `I2_S` tensors have the same codes in both layouts, in another order of columns. What tells the orders apart is what training
/// does to a feed-forward channel: one that matters little has many zeros in its rows of `gate` and `up` and in its column of
/// `down`. Rows are the same in both layouts, so columns must go with them in the right one, and in the wrong one do not.
/// Random weights, which say nothing, are taken for what they most likely are: [`I2_S`].
fn coupled_channels(tensors: &[Candidate<'_>]) -> Option<&'static Packing> {
    let by_name: HashMap<&str, &Candidate<'_>> = tensors.iter().map(|t| (t.name, t)).collect();
    let (mut sums, mut sure) = ([0.0; 2], false);
    for layer in 0..LAYERS {
        let tensor = |part: &str| by_name.get(&*format!("blk.{layer}.ffn_{part}.weight")).copied();
        let (Some(gate), Some(up), Some(down)) = (tensor("gate"), tensor("up"), tensor("down")) else {
            break;
        };
        let Some(deviations) = coupling(gate, up, down) else { break };
        sums = [sums[0] + deviations[0], sums[1] + deviations[1]];
        let [x86, arm] = sums.map(|sum| sum.abs() / (layer as f64 + 1.0).sqrt());
        sure = x86.max(arm) > SURE;
        if sure && x86 > 2.0 * arm {
            return Some(&I2_S);
        }
        if sure && arm > 2.0 * x86 {
            return Some(&I2_S_ARM);
        }
    }
    (!sure).then_some(&I2_S)
}

/// The correlation of zeros in rows of `gate` and `up` with zeros in columns of `down`, in each layout, in standard deviations
/// of what is not correlated; of channels that lie elsewhere in the other layout.
fn coupling(gate: &Candidate<'_>, up: &Candidate<'_>, down: &Candidate<'_>) -> Option<[f64; 2]> {
    let [hidden, channels] = *down.shape else { return None };
    let whole = |n: usize| n > 0 && n.is_multiple_of(128);
    if [gate.shape, up.shape] != [&[channels, hidden]; 2] || !whole(hidden) || !whole(channels) {
        return None;
    }
    let weights = hidden * channels;
    let mut rows = vec![0u32; channels];
    for matrix in [gate.codes(weights)?, up.codes(weights)?] {
        for (row, zeros) in matrix.chunks_exact(hidden / 4).zip(&mut rows) {
            *zeros += row.iter().map(|b| (b & !(b >> 1) & 0x55).count_ones()).sum::<u32>();
        }
    }
    // In the order of blocks of 128.
    let mut columns = vec![0u32; channels];
    // As many rows at a time as a byte can count.
    for rows in down.codes(weights)?.chunks(channels / 4 * 255) {
        let mut counts = vec![0u8; channels];
        for row in rows.chunks_exact(channels / 4) {
            for (block, counts) in row.as_chunks::<32>().0.iter().zip(counts.as_chunks_mut::<128>().0) {
                let zeros = block.map(|b| b & !(b >> 1) & 0x55);
                for (run, shift) in counts.as_chunks_mut::<32>().0.iter_mut().zip([6, 4, 2, 0]) {
                    for (count, zeros) in run.iter_mut().zip(&zeros) {
                        *count += zeros >> shift & 1;
                    }
                }
            }
        }
        for (sum, count) in columns.iter_mut().zip(counts) {
            *sum += u32::from(count);
        }
    }
    let arm = |i: usize| {
        let (run, byte) = (i % 128 / 32, i % 32);
        i / 128 * 128 + byte / 16 * 64 + run * 16 + byte % 16
    };
    let moved = (0..channels).filter(|i| arm(*i) != *i);
    let pairs = |place: fn(usize, usize) -> usize| {
        moved.clone().map(|i| (f64::from(rows[place(i, arm(i))]), f64::from(columns[i]))).collect::<Vec<_>>()
    };
    Some([pairs(|x86, _| x86), pairs(|_, arm| arm)].map(|pairs| correlation(&pairs)))
}

/// Pearson's, times the root of the number of pairs.
fn correlation(pairs: &[(f64, f64)]) -> f64 {
    let n = pairs.len() as f64;
    let (x, y) = pairs.iter().fold((0.0, 0.0), |(x, y), p| (x + p.0 / n, y + p.1 / n));
    let (mut xx, mut yy, mut xy) = (0.0, 0.0, 0.0);
    for (p, q) in pairs {
        (xx, yy, xy) = (xx + (p - x) * (p - x), yy + (q - y) * (q - y), xy + (p - x) * (q - y));
    }
    // Where all are alike there is nothing to go with.
    if xx * yy > 0.0 { xy / (xx * yy).sqrt() * n.sqrt() } else { 0.0 }
}
