//! Tensors of a checkpoint by what the model wants them for. Every tensor is taken once, and none is left over.

use super::matrix::{
    dense_matrix, dense_values, one_magnitude, reorder, scalar_values, ternary_values, to_f32,
};
use crate::ModelError;
use crate::config::{Masters, ModelConfig, ScaleMeaning};
use bitnet_core::{Matrix, Scale, TernaryMatrix};
use bitnet_formats::{Checkpoint, Tensor, TensorType};
use bitnet_quant::{absmean, packing};
use std::collections::HashSet;

pub(super) struct Source<'a> {
    checkpoint: &'a Checkpoint,
    config: &'a ModelConfig,
    taken: HashSet<String>,
}

impl<'a> Source<'a> {
    pub(super) fn new(checkpoint: &'a Checkpoint, config: &'a ModelConfig) -> Self {
        let taken = HashSet::from(["rope_freqs.weight".to_owned()]);
        Self { checkpoint, config, taken }
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.checkpoint.tensor(name).is_some()
    }

    /// Says that a tensor is known and not needed.
    pub(super) fn ignore(&mut self, name: &str) {
        self.taken.insert(name.to_owned());
    }

    fn take(&mut self, name: &str) -> Result<&'a Tensor, ModelError> {
        self.taken.insert(name.to_owned());
        self.checkpoint.tensor(name).ok_or_else(|| ModelError::MissingTensor { name: name.to_owned() })
    }

    /// A norm weight, `[len]`.
    pub(super) fn vector(&mut self, name: &str, len: usize) -> Result<Vec<f32>, ModelError> {
        dense_values(self.take(name)?, &[len])
    }

    /// Embedding or head, `[rows, cols]`: as the file has it, never made ternary here.
    pub(super) fn table(&mut self, name: &str, rows: usize, cols: usize) -> Result<Matrix, ModelError> {
        let tensor = self.take(name)?;
        shape(tensor, &[rows, cols])?;
        match tensor.ttype {
            TensorType::Dense(dtype) => Ok(Matrix::Dense(dense_matrix(tensor, rows, cols, dtype)?)),
            TensorType::Ternary(packing) => unpack(tensor, packing, rows, cols).map(Matrix::Ternary),
            _ => {
                Err(wrong_type(tensor, "embedding and head must be floats, quantized blocks or packed trits"))
            }
        }
    }

    /// The rows of q or k, in the order of half-split rotation.
    pub(super) fn rotated(&mut self, name: &str, heads: usize, cols: usize) -> Result<Matrix, ModelError> {
        let d = self.config.shape.head_dim;
        let matrix = self.projection(name, heads * d, cols)?;
        if !self.config.arch.interleaved {
            return Ok(matrix);
        }
        // Row `2i + a` of a head in the file is row `a * d/2 + i` of the model.
        reorder(&matrix, |row| {
            let (head, a, i) = (row / d, row % d / (d / 2), row % (d / 2));
            head * d + 2 * i + a
        })
    }

    /// A projection `[rows, cols]`.
    pub(super) fn projection(&mut self, name: &str, rows: usize, cols: usize) -> Result<Matrix, ModelError> {
        let tensor = self.take(name)?;
        if let TensorType::U8 = tensor.ttype {
            return self.packed(tensor, rows, cols).map(Matrix::Ternary);
        }
        shape(tensor, &[rows, cols])?;
        let factor = self.gguf_factor(name)?;
        match tensor.ttype {
            TensorType::Ternary(packing) => {
                let m = unpack(tensor, packing, rows, cols)?;
                times(m, factor).map(Matrix::Ternary)
            }
            TensorType::Dense(dtype) => {
                if dtype.block().0 > 1 || self.stays_dense(name) {
                    if factor.is_some() {
                        return Err(wrong_type(tensor, "a scale beside it goes with trits only"));
                    }
                    return Ok(Matrix::Dense(dense_matrix(tensor, rows, cols, dtype)?));
                }
                match self.masters(tensor, rows, cols)? {
                    Some(m) => times(m, factor).map(Matrix::Ternary),
                    None if factor.is_some() => {
                        Err(wrong_type(tensor, "a scale beside it goes with trits only"))
                    }
                    None => Ok(Matrix::Dense(dense_matrix(tensor, rows, cols, dtype)?)),
                }
            }
            _ => Err(wrong_type(tensor, "projections must be floats, quantized blocks or packed trits")),
        }
    }

    /// Float projections: trits already, or master weights; `None` where they are to stay dense.
    fn masters(
        &mut self,
        tensor: &Tensor,
        rows: usize,
        cols: usize,
    ) -> Result<Option<TernaryMatrix>, ModelError> {
        let values = to_f32(tensor)?;
        if let Some(value) = values.iter().find(|v| !v.is_finite()) {
            let source = bitnet_core::BackendError::NotFinite { value: *value };
            return Err(ModelError::Prepare { name: tensor.name.clone(), source });
        }
        if let Some(scale) = self.stored_scale(&tensor.name, rows)? {
            // Transformers' offline mode also takes trits that are not packed.
            let m = ternary_values(&values, rows, cols, 1.0).ok_or_else(|| {
                wrong_type(tensor, "with a weight_scale beside it, its values must be -1, 0 and 1")
            })?;
            tensor.data.release();
            return Ok(Some(m.with_scale(scale)?));
        }
        let m = match (self.config.masters, one_magnitude(&values)) {
            (Masters::Absmean | Masters::Dense, Some(magnitude)) => {
                ternary_values(&values, rows, cols, magnitude)
            }
            (Masters::Dense, None) => return Ok(None),
            (Masters::Online | Masters::Absmean, _) => Some(absmean::absmean(&values, rows, cols)?),
        };
        tensor.data.release();
        Ok(m)
    }

    /// Hugging Face's packed bytes, `[rows/4, cols]`, with their scale beside them.
    fn packed(&mut self, tensor: &Tensor, rows: usize, cols: usize) -> Result<TernaryMatrix, ModelError> {
        if !rows.is_multiple_of(4) {
            return Err(wrong_type(tensor, "packed projections need a multiple of 4 rows"));
        }
        shape(tensor, &[rows / 4, cols])?;
        let name = format!("{}_scale", tensor.name);
        let scale = self.stored_scale(&tensor.name, rows)?.ok_or(ModelError::MissingTensor { name })?;
        Ok(unpack(tensor, &packing::HF, rows, cols)?.with_scale(scale)?)
    }

    /// The `weight_scale` beside a Hugging Face projection, as a multiplier.
    fn stored_scale(&mut self, name: &str, rows: usize) -> Result<Option<Scale>, ModelError> {
        let name = format!("{name}_scale");
        let Some(tensor) = self.checkpoint.tensor(&name) else { return Ok(None) };
        self.ignore(&name);
        let values = scalar_values(tensor)?;
        let multipliers: Vec<f32> = values
            .iter()
            .map(|v| match self.config.scale_meaning {
                ScaleMeaning::Multiplier => *v,
                ScaleMeaning::Divisor => 1.0 / v,
            })
            .collect();
        if let Some((_, value)) = multipliers.iter().zip(&values).find(|(m, _)| !(m.is_finite() && **m > 0.0))
        {
            return Err(ModelError::BadScale { name, value: *value });
        }
        match multipliers.as_slice() {
            [scale] => Ok(Some(Scale::Tensor(*scale))),
            scales if scales.len() == rows => Ok(Some(Scale::Rows(scales.into()))),
            _ => Err(ModelError::TensorShape { name, got: tensor.shape.clone(), need: vec![1] }),
        }
    }

    /// The optional `blk.N.<projection>.scale` of GGUF, which multiplies the product.
    fn gguf_factor(&mut self, name: &str) -> Result<Option<f32>, ModelError> {
        let Some(stem) = name.strip_suffix(".weight").filter(|s| s.starts_with("blk.")) else {
            return Ok(None);
        };
        let name = format!("{stem}.scale");
        let Some(tensor) = self.checkpoint.tensor(&name) else { return Ok(None) };
        self.ignore(&name);
        match scalar_values(tensor)?.as_slice() {
            [v] if v.is_finite() && *v > 0.0 => Ok(Some(*v)),
            [value] => Err(ModelError::BadScale { name, value: *value }),
            _ => Err(ModelError::TensorShape { name, got: tensor.shape.clone(), need: vec![1] }),
        }
    }

    /// Whether the configuration names a projection's module among those that are not converted.
    fn stays_dense(&self, name: &str) -> bool {
        let module = name.strip_suffix(".weight").unwrap_or(name);
        self.config
            .dense_modules
            .iter()
            .any(|m| module == m || module.strip_suffix(m.as_str()).is_some_and(|head| head.ends_with('.')))
    }

    /// Refuses a checkpoint with tensors that nothing asked for.
    pub(super) fn finish(&self) -> Result<(), ModelError> {
        let left = self.checkpoint.tensors().iter().find(|t| {
            // Frequencies that old exports carry along; they follow from the configuration.
            !self.taken.contains(&t.name) && !t.name.ends_with(".rotary_emb.inv_freq")
        });
        match left {
            Some(t) => Err(ModelError::UnknownTensor { name: t.name.clone(), arch: self.config.arch.name }),
            None => Ok(()),
        }
    }
}

/// Unpacks a tensor and gives its pages back: the canonical form is a copy.
fn unpack(
    tensor: &Tensor,
    packing: &packing::Packing,
    rows: usize,
    cols: usize,
) -> Result<TernaryMatrix, ModelError> {
    let m = (packing.unpack)(rows, cols, &tensor.data)
        .map_err(|source| ModelError::Packing { name: tensor.name.clone(), source })?;
    tensor.data.release();
    Ok(m)
}

fn times(m: TernaryMatrix, factor: Option<f32>) -> Result<TernaryMatrix, ModelError> {
    let Some(factor) = factor else { return Ok(m) };
    let scale = match m.scale() {
        Scale::Tensor(s) => Scale::Tensor(s * factor),
        Scale::Rows(v) => Scale::Rows(v.iter().map(|s| s * factor).collect()),
        Scale::Groups { size, values } => {
            Scale::Groups { size: *size, values: values.iter().map(|s| s * factor).collect() }
        }
    };
    Ok(m.with_scale(scale)?)
}

fn shape(tensor: &Tensor, need: &[usize]) -> Result<(), ModelError> {
    if tensor.shape == need {
        return Ok(());
    }
    Err(ModelError::TensorShape { name: tensor.name.clone(), got: tensor.shape.clone(), need: need.to_vec() })
}

fn wrong_type(tensor: &Tensor, need: &'static str) -> ModelError {
    ModelError::TensorType { name: tensor.name.clone(), got: tensor.ttype.name().to_owned(), need }
}
