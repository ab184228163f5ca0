//! What two checkpoints of one model have in common: trits, scales, dense values, logits.

use crate::ConvertError;
use crate::ordered::ordered;
use crate::plan::Source;
use bitnet_core::{ActivationPrecision, Matrix, Scale, TernaryMatrix};
use bitnet_formats::Checkpoint;
use bitnet_inference::{LoadOptions, Model, OpenOptions};
use bitnet_model::{ModelConfig, Role, Rows, Slot, StepOutput};
use bitnet_quant::dense::dequantize_row;
use std::collections::BTreeMap;
use std::ops::Range;

/// The tensors of one role.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RoleComparison {
    /// Tensors.
    pub tensors: usize,
    /// Trits that were compared.
    pub trits: u64,
    /// How many of them differ.
    pub trits_differ: u64,
    /// Scales of trits that were compared.
    pub scales: u64,
    /// How many of them differ in a bit.
    pub scales_differ: u64,
    /// The largest relative difference of scales.
    pub scale_error: f64,
    /// Values that were compared, where one side is not ternary.
    pub values: u64,
    /// How many of them differ.
    pub values_differ: u64,
    /// The largest difference of values, relative to the largest magnitude of their tensor.
    pub value_error: f64,
}

impl RoleComparison {
    /// Whether nothing differs in a bit.
    pub fn is_same(&self) -> bool {
        self.trits_differ == 0 && self.scales_differ == 0 && self.values_differ == 0
    }

    fn add(&mut self, part: &Self) {
        self.tensors += part.tensors;
        self.trits += part.trits;
        self.trits_differ += part.trits_differ;
        self.scales += part.scales;
        self.scales_differ += part.scales_differ;
        self.scale_error = self.scale_error.max(part.scale_error);
        self.values += part.values;
        self.values_differ += part.values_differ;
        self.value_error = self.value_error.max(part.value_error);
    }
}

/// What a comparison found.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Comparison {
    /// By role, in the order of a layer.
    pub roles: BTreeMap<Role, RoleComparison>,
    /// Tensors that differ, by the first checkpoint's names.
    pub different: Vec<(String, RoleComparison)>,
    /// Tensors that only one of the two has, or that have two shapes.
    pub unmatched: Vec<String>,
}

impl Comparison {
    /// Trits that differ.
    pub fn trits_differ(&self) -> u64 {
        self.roles.values().map(|r| r.trits_differ).sum()
    }
}

/// Values of embedding or head that are compared at a time.
const CHUNK: usize = 1 << 20;

/// Compares all tensors of two checkpoints.
///
/// Trits are compared with trits, whatever packs them, and blocks or floats of one magnitude count as trits; everything else
/// is compared by value. `progress` is told how many of how many steps are done.
pub fn compare(
    a: &Checkpoint,
    b: &Checkpoint,
    threads: usize,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Comparison, ConvertError> {
    let (config_a, config_b) = (ModelConfig::read(a)?, ModelConfig::read(b)?);
    let source_a = Source::new(a, &config_a, None);
    let source_b = Source::new(b, &config_b, None);
    let (slots, others) = (source_a.tensors.slots(), source_b.tensors.slots());
    let mut found = Comparison::default();
    let name = |slot: &Slot| config_a.arch.tensor_name(slot.role, slot.layer);
    for slot in
        slots.iter().filter(|s| !others.contains(s)).chain(others.iter().filter(|s| !slots.contains(s)))
    {
        let name = name(slot);
        if !found.unmatched.contains(&name) {
            found.unmatched.push(name);
        }
    }
    let mut jobs: Vec<(Slot, Range<usize>)> = Vec::new();
    for slot in slots.into_iter().filter(|s| others.contains(s)) {
        let step = if slot.role.is_table() { (CHUNK / slot.cols).max(1) } else { slot.rows };
        jobs.extend((0..slot.rows).step_by(step).map(|from| (slot, from..(from + step).min(slot.rows))));
    }
    ordered(
        jobs.len(),
        threads,
        |i| tensor(&source_a, &source_b, &jobs[i].0, jobs[i].1.clone()),
        |i, part| {
            let slot = &jobs[i].0;
            found.roles.entry(slot.role).or_default().add(&part);
            if !part.is_same() {
                match found.different.last_mut().filter(|(last, _)| *last == name(slot)) {
                    Some((_, all)) => all.add(&part),
                    None => found.different.push((name(slot), part)),
                }
            }
            progress(i + 1, jobs.len());
            Ok(())
        },
    )?;
    Ok(found)
}

fn tensor(
    a: &Source<'_>,
    b: &Source<'_>,
    slot: &Slot,
    rows: Range<usize>,
) -> Result<RoleComparison, ConvertError> {
    let mut found = RoleComparison { tensors: usize::from(rows.start == 0), ..RoleComparison::default() };
    if slot.role.is_norm() {
        values(&mut found, &a.tensors.vector(slot)?, &b.tensors.vector(slot)?, &mut 0.0);
        return Ok(found);
    }
    let sides = [matrix(a, slot, rows.clone())?, matrix(b, slot, rows)?];
    let [(x, x_rows), (y, y_rows)] = &sides;
    let pairs = x_rows.clone().zip(y_rows.clone());
    match (x, y) {
        (Matrix::Ternary(x), Matrix::Ternary(y)) => {
            trits(&mut found, x, y, pairs.clone());
            scales(&mut found, x, y, pairs);
        }
        (x, y) => {
            let (mut p, mut q) = (vec![0.0; slot.cols], vec![0.0; slot.cols]);
            let mut largest = 0.0;
            for (r, s) in pairs {
                real_row(x, r, &mut p);
                real_row(y, s, &mut q);
                values(&mut found, &p, &q, &mut largest);
            }
        }
    }
    for (source, (side, _)) in [a, b].into_iter().zip(&sides) {
        match side {
            Matrix::Dense(m) => m.data().release(),
            Matrix::Ternary(_) => source.tensors.stored(slot)?.data.release(),
        }
    }
    Ok(found)
}

/// A matrix with some rows of a slot, and which of its rows they are.
fn matrix(
    source: &Source<'_>,
    slot: &Slot,
    rows: Range<usize>,
) -> Result<(Matrix, Range<usize>), ConvertError> {
    if slot.role.is_table() {
        return Ok(source.tensors.table_rows(slot, rows)?);
    }
    Ok(match source.trits(slot)? {
        Some(m) => (Matrix::Ternary(m), rows),
        None => (source.tensors.matrix(slot)?, rows),
    })
}

/// Counts trits that differ; `rows` are pairs of a row of one and a row of the other.
fn trits(
    found: &mut RoleComparison,
    x: &TernaryMatrix,
    y: &TernaryMatrix,
    rows: impl Iterator<Item = (usize, usize)>,
) {
    for (r, s) in rows {
        found.trits += x.cols() as u64;
        let pairs = x.row_codes(r).iter().zip(y.row_codes(s));
        found.trits_differ += pairs
            .map(|(x, y)| {
                let d = x ^ y;
                u64::from(((d | d >> 1) & 0b0101_0101).count_ones())
            })
            .sum::<u64>();
    }
}

/// Scales of trits that are not all zero: a scale of zeros says nothing.
fn scales(
    found: &mut RoleComparison,
    x: &TernaryMatrix,
    y: &TernaryMatrix,
    rows: impl Iterator<Item = (usize, usize)>,
) {
    let mut one = |p: f32, q: f32| {
        found.scales += 1;
        found.scales_differ += u64::from(p.to_bits() != q.to_bits());
        if p.to_bits() != q.to_bits() {
            found.scale_error = found.scale_error.max((f64::from(q) / f64::from(p) - 1.0).abs());
        }
    };
    let step = match (x.scale(), y.scale()) {
        (Scale::Tensor(p), Scale::Tensor(q)) => return one(*p, *q),
        (Scale::Groups { size, .. }, Scale::Groups { size: other, .. }) => *size.min(other),
        (Scale::Groups { size, .. }, _) | (_, Scale::Groups { size, .. }) => *size,
        _ => x.cols().max(1),
    };
    for (r, s) in rows {
        for col in (0..x.cols()).step_by(step) {
            let end = (col + step).min(x.cols());
            if (col..end).any(|c| x.trit(r, c) != 0 || y.trit(s, c) != 0) {
                one(x.scale_at(r, col), y.scale_at(s, col));
            }
        }
    }
}

fn real_row(m: &Matrix, row: usize, out: &mut [f32]) {
    match m {
        Matrix::Dense(m) => dequantize_row(m.dtype(), m.row(row), out),
        Matrix::Ternary(m) => {
            for (col, out) in out.iter_mut().enumerate() {
                *out = f32::from(m.trit(row, col)) * m.scale_at(row, col);
            }
        }
    }
}

/// `largest` is the largest magnitude so far.
fn values(found: &mut RoleComparison, p: &[f32], q: &[f32], largest: &mut f32) {
    *largest = p.iter().fold(*largest, |m, v| m.max(v.abs()));
    found.values += p.len() as u64;
    for (p, q) in p.iter().zip(q) {
        // Zeros of both signs multiply alike.
        if p != q {
            found.values_differ += 1;
            let error = f64::from((p - q).abs()) / f64::from(largest.max(f32::MIN_POSITIVE));
            found.value_error = found.value_error.max(error);
        }
    }
}

/// What two checkpoints compute.
#[derive(Clone, Debug, PartialEq)]
pub struct LogitComparison {
    /// Tokens that were run.
    pub tokens: usize,
    /// Whether all logits have the same bits.
    pub same: bool,
    /// The largest difference.
    pub error: f32,
    /// The largest magnitude.
    pub magnitude: f32,
    /// Positions at which the most likely token is another one.
    pub other_tokens: usize,
}

/// Runs two checkpoints, one after the other, on the same made-up tokens. `progress` is told how much of both is loaded.
pub fn compare_logits(
    a: &Checkpoint,
    b: &Checkpoint,
    options: &OpenOptions,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<LogitComparison, ConvertError> {
    const TOKENS: usize = 32;
    let (config_a, config_b) = (ModelConfig::read(a)?, ModelConfig::read(b)?);
    let vocab = config_a.vocab.min(config_b.vocab) as u64;
    let tokens = TOKENS.min(config_a.context).min(config_b.context);
    let ids: Vec<u32> = (1..=tokens as u64).map(|i| (i * 2_654_435_761 % vocab) as u32).collect();
    let mut run = |checkpoint: &Checkpoint, before: usize| -> Result<Vec<f32>, ConvertError> {
        // Formats differ in what their models are run with by default; here both are run alike.
        let load = LoadOptions {
            act: options.load.act.or(Some(ActivationPrecision::Int8)),
            context: Some(tokens),
            ..options.load
        };
        let options = OpenOptions { load, device: options.device.clone() };
        let mut model = Model::from_checkpoint(checkpoint, &options, &mut |done, all| {
            progress(before * all + done, 2 * all);
        })?;
        let mut logits = Vec::new();
        let want = StepOutput { rows: Rows::All, ..StepOutput::default() };
        model.evaluate(&ids, tokens, want, &mut |out| logits.extend_from_slice(&out.logits))?;
        Ok(logits)
    };
    let (p, q) = (run(a, 0)?, run(b, 1)?);
    let pairs = || p.iter().zip(&q);
    let best = |row: &[f32]| row.iter().enumerate().fold(0, |b, (i, v)| if *v > row[b] { i } else { b });
    let (wide_a, wide_b) = (config_a.vocab, config_b.vocab);
    Ok(LogitComparison {
        tokens,
        same: p.len() == q.len() && pairs().all(|(p, q)| p.to_bits() == q.to_bits()),
        error: pairs().map(|(p, q)| (p - q).abs()).fold(0.0, f32::max),
        magnitude: p.iter().fold(0.0, |m, v| v.abs().max(m)),
        other_tokens: p.chunks(wide_a).zip(q.chunks(wide_b)).filter(|(p, q)| best(p) != best(q)).count(),
    })
}
