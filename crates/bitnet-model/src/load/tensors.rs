//! Tensors of a checkpoint by what the model wants them for, in canonical form.

use super::masters::{self, Floats};
use super::matrix::{dense_matrix, dense_values, reorder, scalar_values};
use crate::config::{Masters, ModelConfig, ScaleMeaning};
use crate::{ModelError, Role, Slot};
use bitnet_core::{Bytes, DenseMatrix, Matrix, Scale, TernaryMatrix};
use bitnet_formats::{Checkpoint, Tensor, TensorType};
use bitnet_quant::packing;
use std::collections::HashSet;
use std::ops::Range;

/// The tensors of a model, whatever its file calls them and however it packs them.
///
/// Every ternary format becomes a [`TernaryMatrix`], scales become multipliers, rows of q and k come in the order of
/// half-split rotation, and float projections are made ternary where the file says that they are master weights.
/// Everything else stays in the file's memory map, if it lies there row after row. Reading is stateless, so several threads may share one of these.
pub struct ModelTensors<'a> {
    checkpoint: &'a Checkpoint,
    config: &'a ModelConfig,
}

impl<'a> ModelTensors<'a> {
    /// The tensors of a checkpoint with its configuration.
    pub fn new(checkpoint: &'a Checkpoint, config: &'a ModelConfig) -> Self {
        Self { checkpoint, config }
    }

    /// Whether the head is a tensor of its own, and not the embedding.
    pub fn own_head(&self) -> bool {
        match self.config.tied {
            Some(tied) => !tied,
            None => self.has(self.config.arch.names.head),
        }
    }

    /// Every tensor that the model has, in the order of a file.
    pub fn slots(&self) -> Vec<Slot> {
        let c = self.config;
        let mut slots = vec![c.slot(Role::Embedding, 0)];
        for layer in 0..c.layers {
            let present = |role: &Role| match role {
                Role::AttnSubNorm | Role::FfnSubNorm => c.arch.sub_norms,
                Role::QNorm | Role::KNorm => c.arch.qk_norms,
                Role::AttnPostNorm | Role::FfnPostNorm => c.arch.post_norms,
                role if role.normed().is_some() => c.projection_norms.is_some(),
                _ => true,
            };
            slots.extend(Role::LAYER.into_iter().filter(present).map(|role| c.slot(role, layer)));
        }
        slots.push(c.slot(Role::FinalNorm, 0));
        if self.own_head() {
            slots.push(c.slot(Role::Head, 0));
        }
        slots
    }

    fn has(&self, name: &str) -> bool {
        self.checkpoint.tensor(name).is_some()
    }

    fn take(&self, name: &str) -> Result<&'a Tensor, ModelError> {
        self.checkpoint.tensor(name).ok_or_else(|| ModelError::MissingTensor { name: name.to_owned() })
    }

    /// The tensor of the file behind a slot.
    pub fn stored(&self, slot: &Slot) -> Result<&'a Tensor, ModelError> {
        self.take(&self.config.arch.tensor_name(slot.role, slot.layer))
    }

    /// A norm weight, `[cols]`, as the norm multiplies with it.
    pub fn vector(&self, slot: &Slot) -> Result<Vec<f32>, ModelError> {
        let mut values = dense_values(self.stored(slot)?, &[slot.cols])?;
        if self.config.norms_less_one && slot.role.normed().is_none() {
            values.iter_mut().for_each(|w| *w += 1.0);
        }
        Ok(values)
    }

    /// A projection, the embedding or the head, `[rows, cols]`.
    pub fn matrix(&self, slot: &Slot) -> Result<Matrix, ModelError> {
        let tensor = self.stored(slot)?;
        if slot.role.is_table() {
            return table(tensor, slot.rows, slot.cols);
        }
        let matrix = self.projection(tensor, slot.rows, slot.cols)?;
        if !self.config.arch.interleaved || !matches!(slot.role, Role::Q | Role::K) {
            return Ok(matrix);
        }
        let d = self.config.shape.head_dim;
        // Row `2i + a` of a head in the file is row `a * d/2 + i` of the model.
        reorder(&matrix, |row| {
            let (head, a, i) = (row / d, row % d / (d / 2), row % (d / 2));
            head * d + 2 * i + a
        })
    }

    /// A matrix with some rows of the embedding or the head, and which of its rows they are. Only whole tables can be read where
    /// a packing has something behind the last row.
    pub fn table_rows(&self, slot: &Slot, rows: Range<usize>) -> Result<(Matrix, Range<usize>), ModelError> {
        let tensor = self.stored(slot)?;
        shape(tensor, &[slot.rows, slot.cols])?;
        let (count, part) = (rows.len(), tensor.rows(rows.clone()));
        let matrix = match (tensor.ttype, part) {
            (TensorType::Dense(dtype), Some(part)) => {
                Matrix::Dense(DenseMatrix::new(count, slot.cols, dtype, part)?)
            }
            (TensorType::Ternary(packing), Some(part))
                if (packing.bytes)(count, slot.cols) == Some(part.len()) =>
            {
                unpack(tensor, packing, count, slot.cols, &part).map(Matrix::Ternary)?
            }
            _ => return Ok((table(tensor, slot.rows, slot.cols)?, rows)),
        };
        Ok((matrix, 0..count))
    }

    /// The floats behind a projection that [`ModelTensors::matrix`] makes ternary by absmean; `None` for all others.
    pub fn masters(&self, slot: &Slot) -> Result<Option<DenseMatrix>, ModelError> {
        let tensor = self.stored(slot)?;
        let TensorType::Dense(dtype) = tensor.ttype else { return Ok(None) };
        if !slot.role.is_projection() || dtype.block().0 > 1 || self.stays_dense(&tensor.name) {
            return Ok(None);
        }
        let scaled = self.has(&format!("{}_scale", tensor.name));
        match self.config.masters {
            Masters::Online if !scaled => dense_matrix(tensor, slot.rows, slot.cols, dtype).map(Some),
            Masters::Absmean if !scaled => {
                let m = dense_matrix(tensor, slot.rows, slot.cols, dtype)?;
                let several = Floats::read(&tensor.name, &m)?.magnitude().is_none();
                Ok(several.then_some(m))
            }
            _ => Ok(None),
        }
    }

    /// A projection in the file's order of rows.
    fn projection(&self, tensor: &'a Tensor, rows: usize, cols: usize) -> Result<Matrix, ModelError> {
        if let TensorType::U8 = tensor.ttype {
            return self.packed(tensor, rows, cols).map(Matrix::Ternary);
        }
        shape(tensor, &[rows, cols])?;
        let factor = self.gguf_factor(&tensor.name)?;
        let only_trits = || wrong_type(tensor, "a scale beside it goes with trits only");
        match tensor.ttype {
            TensorType::Ternary(packing) => {
                let mut m = unpack(tensor, packing, rows, cols, &tensor.bytes())?;
                if packing.name == packing::I8.name {
                    let name = format!("{}_scale", tensor.name);
                    let scale = self.stored_scale(&tensor.name, rows)?;
                    m = m.with_scale(scale.ok_or(ModelError::MissingTensor { name })?)?;
                }
                times(m, factor).map(Matrix::Ternary)
            }
            TensorType::Tiled(kind, tile) => {
                let m = kind
                    .unpack(&tile, &tensor.bytes())
                    .map_err(|source| ModelError::Packing { name: tensor.name.clone(), source })?;
                tensor.data.release();
                let name = format!("{}_scale", tensor.name);
                let scale = self.stored_scale(&tensor.name, rows)?;
                let m = m.with_scale(scale.ok_or(ModelError::MissingTensor { name })?)?;
                times(m, factor).map(Matrix::Ternary)
            }
            TensorType::Dense(dtype) => {
                let dense = dense_matrix(tensor, rows, cols, dtype)?;
                let ternary = match dtype.block().0 > 1 || self.stays_dense(&tensor.name) {
                    true => None,
                    false => self.ternary_floats(tensor, &dense)?,
                };
                match ternary {
                    Some(m) => times(m, factor).map(Matrix::Ternary),
                    None if factor.is_some() => Err(only_trits()),
                    None => Ok(Matrix::Dense(dense)),
                }
            }
            _ => Err(wrong_type(tensor, "projections must be floats, quantized blocks or packed trits")),
        }
    }

    /// Float projections: trits already, or master weights; `None` where they are to stay dense.
    fn ternary_floats(
        &self,
        tensor: &Tensor,
        dense: &DenseMatrix,
    ) -> Result<Option<TernaryMatrix>, ModelError> {
        let floats = Floats::read(&tensor.name, dense)?;
        if let Some(scale) = self.stored_scale(&tensor.name, dense.rows())? {
            // Transformers' offline mode also takes trits that are not packed.
            let m = floats.trits(1.0).ok_or_else(|| {
                wrong_type(tensor, "with a weight_scale beside it, its values must be -1, 0 and 1")
            })?;
            tensor.data.release();
            return Ok(Some(m.with_scale(scale)?));
        }
        let m = match (self.config.masters, floats.magnitude()) {
            (Masters::Absmean | Masters::Dense, Some(magnitude)) => floats.trits(magnitude),
            (Masters::Dense, None) => return Ok(None),
            (Masters::Online | Masters::Absmean, _) => Some(masters::absmean(dense, &floats)?),
        };
        tensor.data.release();
        Ok(m)
    }

    /// Hugging Face's packed bytes, `[rows/4, cols]`, with their scale beside them.
    fn packed(&self, tensor: &Tensor, rows: usize, cols: usize) -> Result<TernaryMatrix, ModelError> {
        if !rows.is_multiple_of(4) {
            return Err(wrong_type(tensor, "packed projections need a multiple of 4 rows"));
        }
        shape(tensor, &[rows / 4, cols])?;
        let name = format!("{}_scale", tensor.name);
        let scale = self.stored_scale(&tensor.name, rows)?.ok_or(ModelError::MissingTensor { name })?;
        Ok(unpack(tensor, &packing::HF, rows, cols, &tensor.bytes())?.with_scale(scale)?)
    }

    /// The `weight_scale` beside a Hugging Face projection, as a multiplier.
    fn stored_scale(&self, name: &str, rows: usize) -> Result<Option<Scale>, ModelError> {
        let name = format!("{name}_scale");
        let Some(tensor) = self.checkpoint.tensor(&name) else { return Ok(None) };
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
    fn gguf_factor(&self, name: &str) -> Result<Option<f32>, ModelError> {
        let Some(name) = factor_name(name) else { return Ok(None) };
        let Some(tensor) = self.checkpoint.tensor(&name) else { return Ok(None) };
        match scalar_values(tensor)?.as_slice() {
            [v] if v.is_finite() && *v > 0.0 => Ok(Some(*v)),
            [value] => Err(ModelError::BadScale { name, value: *value }),
            _ => Err(ModelError::TensorShape { name, got: tensor.shape.clone(), need: vec![1] }),
        }
    }

    /// Whether the configuration names a projection among those that are never made ternary.
    pub fn is_kept_dense(&self, slot: &Slot) -> bool {
        self.stays_dense(&self.config.arch.tensor_name(slot.role, slot.layer))
    }

    /// Whether the configuration names a projection's module among those that are not converted.
    fn stays_dense(&self, name: &str) -> bool {
        let module = name.strip_suffix(".weight").unwrap_or(name);
        self.config
            .dense_modules
            .iter()
            .any(|m| module == m || module.strip_suffix(m.as_str()).is_some_and(|head| head.ends_with('.')))
    }

    /// Refuses a checkpoint with tensors that nothing asks for: to leave one out would change what the model computes.
    pub fn check(&self) -> Result<(), ModelError> {
        let mut known =
            HashSet::from(["rope_freqs.weight".to_owned(), self.config.arch.names.head.to_owned()]);
        for slot in self.slots() {
            let name = self.config.arch.tensor_name(slot.role, slot.layer);
            if let (true, Some(t)) = (slot.role.is_projection(), self.checkpoint.tensor(&name)) {
                match t.ttype {
                    TensorType::U8 | TensorType::Tiled(..) => known.insert(format!("{name}_scale")),
                    TensorType::Ternary(p) if p.name == packing::I8.name => {
                        known.insert(format!("{name}_scale"))
                    }
                    TensorType::Dense(d) if d.block().0 == 1 && !self.stays_dense(&name) => {
                        known.insert(format!("{name}_scale"))
                    }
                    _ => false,
                };
                known.extend(factor_name(&name).filter(|_| !matches!(t.ttype, TensorType::U8)));
            }
            known.insert(name);
        }
        let left = self.checkpoint.tensors().iter().find(|t| {
            // Frequencies that old exports carry along; they follow from the configuration.
            !known.contains(&t.name) && !t.name.ends_with(".rotary_emb.inv_freq")
        });
        match left {
            Some(t) => Err(ModelError::UnknownTensor { name: t.name.clone(), arch: self.config.arch.name }),
            None => Ok(()),
        }
    }
}

/// Embedding or head: as the file has it, never made ternary here.
fn table(tensor: &Tensor, rows: usize, cols: usize) -> Result<Matrix, ModelError> {
    shape(tensor, &[rows, cols])?;
    match tensor.ttype {
        TensorType::Dense(dtype) => Ok(Matrix::Dense(dense_matrix(tensor, rows, cols, dtype)?)),
        TensorType::Ternary(packing) => {
            unpack(tensor, packing, rows, cols, &tensor.bytes()).map(Matrix::Ternary)
        }
        _ => Err(wrong_type(tensor, "embedding and head must be floats, quantized blocks or packed trits")),
    }
}

/// Where GGUF keeps the factor of a projection.
fn factor_name(name: &str) -> Option<String> {
    let stem = name.strip_suffix(".weight").filter(|s| s.starts_with("blk."))?;
    Some(format!("{stem}.scale"))
}

/// Trits of a tensor, or of some of its rows; their pages are given back where they become a copy.
fn unpack(
    tensor: &Tensor,
    packing: &packing::Packing,
    rows: usize,
    cols: usize,
    data: &Bytes,
) -> Result<TernaryMatrix, ModelError> {
    packing.read(rows, cols, data).map_err(|source| ModelError::Packing { name: tensor.name.clone(), source })
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
