//! Matrices that nothing trains: trits packed as inference has them, all others in the type of their file.

use super::Model;
use crate::ops::{Array, Trits, Values, View};
use crate::parameters::Parameters;
use crate::{Parameter, Quantized, Rounding, TrainError, WeightQuantizer};
use bitnet_core::{DenseMatrix, Matrix, Scale, TernaryMatrix};
use bitnet_cpu::{CpuTraining, DEPTH, TernaryWeights};
use bitnet_formats::Checkpoint;
use bitnet_model::{ModelError, ModelTensors};
use bitnet_quant::dense::{dequantize_row, first_not_finite};
use sha2::{Digest, Sha256};
use std::ops::Range;
use std::sync::OnceLock;

/// A matrix that nothing trains.
pub(crate) enum Frozen {
    /// Trits, and their scale, or that of each row; none where groups of columns have scales, which the weights know then.
    Trits { weights: TernaryWeights, scales: Vec<f32> },
    /// Floats, or quantized blocks.
    Dense(DenseMatrix),
}

impl Frozen {
    /// The scale of trits, or that of each row.
    pub(crate) fn scales(&self) -> Option<&[f32]> {
        match self {
            Self::Trits { scales, .. } if !scales.is_empty() => Some(scales),
            _ => None,
        }
    }

    /// A row as floats.
    fn row(&self, row: usize, out: &mut [f32]) {
        match self {
            Self::Trits { weights, .. } => weights.row(row, out),
            Self::Dense(m) => dequantize_row(m.dtype(), m.row(row), out),
        }
    }
}

/// What one model has of a matrix on the device that it computes on, made when it is first needed: several may share what is frozen.
#[derive(Default)]
pub(super) struct Copies {
    pub(super) trits: OnceLock<Array<u8>>,
    scales: OnceLock<Array>,
    /// As floats, where it is dense or groups of columns have scales.
    floats: OnceLock<Array>,
}

/// The matrices of a model by their places in the list; `None` for what is no matrix. Projections are trits where the quantizer makes such: as
/// their file has them, or made by the quantizer of master weights.
pub(crate) fn read(
    ops: &CpuTraining,
    parameters: &Parameters,
    checkpoint: &Checkpoint,
    tensors: &ModelTensors<'_>,
) -> Result<Vec<Option<Frozen>>, TrainError> {
    let quantizer = parameters.quantizer();
    let read = |p: &Parameter| -> Result<Option<Frozen>, TrainError> {
        let at = |source| TrainError::Model { path: checkpoint.path.clone(), source };
        if p.slot.role.is_norm() {
            return Ok(None);
        }
        // What readers make of master weights is what absmean makes of them.
        let masters = match quantizer {
            WeightQuantizer::Absmean => None,
            _ => tensors.masters(&p.slot).map_err(at)?,
        };
        let matrix = match masters {
            Some(masters) => Matrix::Dense(masters),
            None => tensors.matrix(&p.slot).map_err(at)?,
        };
        let matrix = match matrix {
            Matrix::Dense(m) if p.quantized && quantizer.is_ternary() => {
                Matrix::Ternary(ternary(ops, quantizer, &p.name, &m).map_err(at)?)
            }
            other => other,
        };
        Ok(Some(match matrix {
            Matrix::Dense(m) => {
                finite(&p.name, &m).map_err(at)?;
                Frozen::Dense(m)
            }
            Matrix::Ternary(m) => Frozen::Trits { scales: scales(&m), weights: ops.pack(&m)? },
        }))
    };
    parameters.tensors().map(read).collect()
}

fn scales(m: &TernaryMatrix) -> Vec<f32> {
    match m.scale() {
        Scale::Tensor(scale) => vec![*scale],
        Scale::Rows(scales) => scales.to_vec(),
        Scale::Groups { .. } => Vec::new(),
    }
}

/// Trits of dense weights.
fn ternary(
    ops: &CpuTraining,
    quantizer: WeightQuantizer,
    name: &str,
    m: &DenseMatrix,
) -> Result<TernaryMatrix, ModelError> {
    finite(name, m)?;
    let (rows, cols) = (m.rows(), m.cols());
    let mut values = vec![0.0; rows * cols];
    ops.chunks(&mut values, cols, &|row, out| dequantize_row(m.dtype(), m.row(row), out));
    m.data().release();
    let mut quantized = Quantized::default();
    quantizer.quantize(ops, &values, cols, &[], Rounding::Nearest, &mut quantized);
    let scale = match quantized.scales[..] {
        [scale] => Scale::Tensor(scale),
        _ => Scale::Rows(quantized.scales.to_vec().into()),
    };
    Ok(TernaryMatrix::from_trits(rows, cols, &quantized.codes, scale)?)
}

fn finite(name: &str, m: &DenseMatrix) -> Result<(), ModelError> {
    match first_not_finite(m.dtype(), m.data()) {
        None => Ok(()),
        Some(value) => {
            let source = bitnet_core::BackendError::NotFinite { value };
            Err(ModelError::Prepare { name: name.to_owned(), source })
        }
    }
}

/// Some rows of a projection's weights as passes use them, row-major, their scale, or that of each row.
pub(super) struct Rows<'a> {
    pub(super) range: Range<usize>,
    pub(super) values: Values<'a>,
    pub(super) scales: Option<&'a Array>,
}

fn float<'a>(range: Range<usize>, values: impl Into<View<'a>>) -> Rows<'a> {
    Rows { range, values: Values::F32(values.into()), scales: None }
}

impl Model {
    pub(super) fn frozen(&self, place: usize) -> Option<&Frozen> {
        self.frozen.get(place)?.as_ref()
    }

    /// Whether a matrix is held here and has no values.
    pub(super) fn is_frozen(&self, place: usize) -> bool {
        self.frozen(place).is_some()
    }

    /// All of them, by place.
    pub(crate) fn all_frozen(&self) -> &[Option<Frozen>] {
        &self.frozen
    }

    /// Packed trits of a projection for products with quantized inputs.
    pub(super) fn trits(&self, place: usize) -> Option<&TernaryWeights> {
        match (self.frozen(place), &self.prepared[place]) {
            (Some(_), _) if !self.precision.quantizes_inputs() => None,
            // Those that an adapter has made of them.
            (_, Some(weights)) => Some(weights),
            (Some(Frozen::Trits { weights, .. }), None) => Some(weights),
            _ => None,
        }
    }

    /// A row of a matrix as passes use it.
    pub(super) fn row(&self, place: usize, row: usize, out: &mut [f32]) {
        let own = row * out.len()..(row + 1) * out.len();
        match (self.frozen(place), &self.quantized[place]) {
            (Some(frozen), _) => frozen.row(row, out),
            (None, q) if !q.mixed.is_empty() => out.copy_from_slice(&q.mixed[own]),
            (None, q) if q.codes.is_empty() => out.copy_from_slice(&self.value(place).host()[own]),
            (None, q) => {
                let scale = q.scale(row);
                out.iter_mut().zip(&q.codes[own]).for_each(|(out, code)| *out = f32::from(*code) * scale);
            }
        }
    }

    /// Calls `f` with all rows of a matrix as floats: at once where they are that already, else with so many at a time that a sum over them may
    /// go on from one part to the next ([`bitnet_cpu::Store::Continue`]).
    pub(super) fn parts(&self, place: usize, f: &mut dyn FnMut(Range<usize>, View<'_>)) {
        let slot = self.parameters.list()[place].slot;
        let Some(frozen) = self.frozen(place) else { return f(0..slot.rows, self.value(place)) };
        if self.ops.is_on_device() {
            // It stays there.
            let all = self.copies[place].floats.get_or_init(|| {
                let mut all = vec![0.0; slot.rows * slot.cols];
                self.ops.chunks(&mut all, slot.cols, &|row, out| frozen.row(row, out));
                all.into()
            });
            return f(0..slot.rows, all.into());
        }
        let mut room = Array::default();
        for first in (0..slot.rows).step_by(DEPTH) {
            let rows = first..slot.rows.min(first + DEPTH);
            let part = room.sized(rows.len() * slot.cols);
            self.ops.chunks(part, slot.cols, &|i, out| frozen.row(first + i, out));
            f(rows, (&*part).into());
        }
    }

    /// Calls `f` with the weights of a projection as passes use them, in one part or, of dense ones that are frozen, in several.
    pub(super) fn weights(&self, place: usize, f: &mut dyn FnMut(Rows<'_>)) {
        let all = 0..self.parameters.list()[place].slot.rows;
        match (self.frozen(place), &self.quantized[place]) {
            // Scales of groups are the weights' own affair on the CPU alone.
            (Some(Frozen::Trits { weights, scales }), _)
                if !(scales.is_empty() && self.ops.is_on_device()) =>
            {
                let (weights, copies) =
                    (self.prepared[place].as_ref().unwrap_or(weights), &self.copies[place]);
                let values = Values::Trits(Trits { weights, copy: &copies.trits });
                let scales =
                    (!scales.is_empty()).then(|| copies.scales.get_or_init(|| scales.clone().into()));
                f(Rows { range: all, values, scales });
            }
            (Some(_), _) => self.parts(place, &mut |range, part| f(float(range, part))),
            (None, q) if !q.mixed.is_empty() => f(float(all, &q.mixed)),
            (None, q) if q.codes.is_empty() => f(float(all, self.value(place))),
            (None, q) => f(Rows { range: all, values: Values::Codes(&q.codes), scales: Some(&q.scales) }),
        }
    }

    /// What tells this model's weights from others.
    pub(crate) fn hash(&self, digest: &mut Sha256) {
        floats_into(digest, &self.values);
        for frozen in self.frozen.iter().flatten() {
            match frozen {
                Frozen::Trits { weights, scales } => {
                    floats_into(digest, scales);
                    digest.update(weights.codes());
                }
                Frozen::Dense(m) => digest.update(&**m.data()),
            }
        }
    }
}

fn floats_into(digest: &mut Sha256, values: &[f32]) {
    for piece in values.chunks(1 << 16) {
        digest.update(piece.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>());
    }
}

#[cfg(test)]
pub(super) mod tests;
