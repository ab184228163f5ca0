//! What is to be written, tensor by tensor, before anything is.

use crate::encode::pack;
use crate::ordered::ordered;
use crate::scale::{Stored, narrowest};
use crate::{Container, ConvertError, ConvertOptions, Method, Target, Weights};
use bitnet_core::{DenseType, Matrix, Scale, TernaryMatrix};
use bitnet_formats::{Checkpoint, TensorType};
use bitnet_model::{
    Architecture, ModelConfig, ModelError, ModelTensors, Origin, Role, Slot, absmean_of, trits_of,
};
use bitnet_quant::packing::{HF, I8, Packing, Tile, Tiled};
use std::collections::BTreeMap;
use std::ops::Range;

/// What is read.
pub(crate) struct Source<'a> {
    pub(crate) checkpoint: &'a Checkpoint,
    pub(crate) config: &'a ModelConfig,
    pub(crate) tensors: ModelTensors<'a>,
    /// How projections that are not ternary become so.
    pub(crate) method: Option<Method>,
}

impl<'a> Source<'a> {
    pub(crate) fn new(checkpoint: &'a Checkpoint, config: &'a ModelConfig, method: Option<Method>) -> Self {
        Self { checkpoint, config, tensors: ModelTensors::new(checkpoint, config), method }
    }

    /// A projection in trits, if it is one: as the model reads it, or floats and blocks of one magnitude, in all or in each
    /// group of columns. What is to be made ternary gets one scale.
    pub(crate) fn trits(&self, slot: &Slot) -> Result<Option<TernaryMatrix>, ModelError> {
        match self.tensors.matrix(slot)? {
            Matrix::Ternary(m) => Ok(Some(m)),
            Matrix::Dense(_) if self.tensors.is_kept_dense(slot) => Ok(None),
            Matrix::Dense(m) => {
                let name = &self.tensors.stored(slot)?.name;
                match (trits_of(name, &m)?, self.method) {
                    (Some(found), Some(_)) if matches!(found.scale(), Scale::Tensor(_)) => Ok(Some(found)),
                    (_, Some(Method::Absmean)) => absmean_of(name, &m).map(Some),
                    (found, None) => Ok(found),
                }
            }
        }
    }

    /// Tensors of the input that are no part of the model, in words.
    pub(crate) fn left_out(&self) -> Vec<String> {
        let head = self.config.arch.tensor_name(Role::Head, 0);
        let tensors = self.checkpoint.tensors().iter().map(|t| &t.name);
        let word = |name: &String| match name {
            name if *name == head && !self.tensors.own_head() => {
                Some(format!("tensor {name:?}: the head is the embedding"))
            }
            name if name.ends_with(".rotary_emb.inv_freq") => {
                Some(format!("tensor {name:?}: it follows from the configuration"))
            }
            _ => None,
        };
        // Optimizer state has hundreds of them; `inspect --tensors` lists them.
        let others = match &self.checkpoint.others[..] {
            [] => None,
            [one] => Some(format!("tensor {:?}: it is no part of the model", one.name)),
            [first, rest @ ..] => Some(format!(
                "tensor {:?} and {} more: they are no part of the model",
                first.name,
                rest.len()
            )),
        };
        tensors.filter_map(word).chain(others).collect()
    }
}

/// A tensor of the output.
#[derive(Clone, Debug)]
pub(crate) struct Piece {
    pub(crate) name: String,
    /// Rows first.
    pub(crate) shape: Vec<usize>,
    pub(crate) ttype: TensorType,
}

/// How the bytes of a slot, or of some of its rows, are made.
#[derive(Clone, Debug)]
pub(crate) enum Make {
    Norm(DenseType),
    /// Rows of embedding or head.
    Rows(DenseType, Range<usize>),
    /// Trits and their scales.
    Packed(&'static Packing),
    /// Trits without their scale, and the scale beside them.
    Beside(&'static Packing, Stored),
    /// Trits in tiles, and the scale beside them.
    Tiled(Tiled, Tile),
    /// -1, 0 and 1 in a float type, and the scale beside them.
    Trits(DenseType, Stored),
    /// Real weights.
    Real(DenseType),
    /// Master weights.
    Masters(DenseType),
}

/// One step of the work.
#[derive(Clone, Debug)]
pub(crate) struct Job {
    pub(crate) slot: Slot,
    pub(crate) make: Make,
    /// The last one of its slot.
    pub(crate) last: bool,
}

/// Everything that is to be written.
pub(crate) struct Plan {
    /// The architecture whose names the output has.
    pub(crate) arch: &'static Architecture,
    pub(crate) pieces: Vec<Piece>,
    pub(crate) jobs: Vec<Job>,
    /// Projections that are dense in the output.
    pub(crate) dense: Vec<Slot>,
    /// Projections are master weights.
    pub(crate) online: bool,
    /// The one type of all floats, where the output must have one.
    float: Option<DenseType>,
}

/// Values of embedding or head that are converted at a time.
const CHUNK: usize = 1 << 20;

impl Plan {
    pub(crate) fn new(source: &Source<'_>, options: &ConvertOptions) -> Result<Self, ConvertError> {
        let container = options.target.container;
        let here = source.config.arch;
        let origin = match container {
            Container::Gguf => Origin::Gguf,
            _ => Origin::HuggingFace,
        };
        let arch = if here.origin == origin { Some(here) } else { here.in_other_files() };
        let arch =
            arch.ok_or(ConvertError::NoCounterpart { arch: here.name, container: container.name() })?;
        let mut plan = Self {
            arch,
            pieces: Vec::new(),
            jobs: Vec::new(),
            dense: Vec::new(),
            online: false,
            float: None,
        };
        let slots = source.tensors.slots();
        let scales = match container {
            Container::Gguf => BTreeMap::new(),
            _ => plan.survey(source, &slots, options)?,
        };
        if container == Container::Mlx {
            plan.float = Some(one_type(source, &slots, options, scales.values())?);
        }
        for slot in slots {
            let name = arch.tensor_name(slot.role, slot.layer);
            if slot.role.is_norm() {
                plan.norm(source, slot, name, container)?;
            } else if slot.role.is_table() {
                plan.table(source, slot, name, options)?;
            } else if container == Container::Gguf {
                plan.gguf_projection(source, slot, name, options)?;
            } else {
                plan.huggingface_projection(source, slot, name, options, &scales)?;
            }
        }
        Ok(plan)
    }

    fn piece(&mut self, name: String, shape: Vec<usize>, ttype: TensorType) {
        self.pieces.push(Piece { name, shape, ttype });
    }

    fn whole(&mut self, slot: Slot, make: Make) {
        self.jobs.push(Job { slot, make, last: true });
    }

    fn norm(
        &mut self,
        source: &Source<'_>,
        slot: Slot,
        name: String,
        container: Container,
    ) -> Result<(), ConvertError> {
        let dtype = match (self.float, container) {
            (Some(dtype), _) => dtype,
            (None, Container::Gguf | Container::Onnx) => DenseType::F32,
            (None, _) => narrowest(&source.tensors.vector(&slot)?),
        };
        self.piece(name, slot.shape(), TensorType::Dense(dtype));
        self.whole(slot, Make::Norm(dtype));
        Ok(())
    }

    /// Embedding or head.
    fn table(
        &mut self,
        source: &Source<'_>,
        slot: Slot,
        name: String,
        options: &ConvertOptions,
    ) -> Result<(), ConvertError> {
        let target = options.target;
        let stored = source.tensors.stored(&slot)?.ttype;
        let asked = self.float.or(options.embedding).or(match target.weights {
            Weights::Dense(dtype) if dtype.block().0 == 1 => Some(dtype),
            _ => None,
        });
        let dtype = match (asked, stored, target.weights) {
            (Some(dtype), ..) => dtype,
            (None, TensorType::Ternary(_), Weights::Packed(packing)) => {
                self.piece(name, slot.shape(), TensorType::Ternary(packing));
                self.whole(slot, Make::Packed(packing));
                return Ok(());
            }
            (None, TensorType::Dense(dtype), _)
                if target.container == Container::Gguf || dtype.block().0 == 1 =>
            {
                dtype
            }
            // Trits times their scales have the scales' type.
            (None, TensorType::Ternary(packing), _) => packing.scale,
            _ => DenseType::F32,
        };
        if target.container != Container::Gguf && dtype.block().0 > 1 {
            return Err(ConvertError::Type { container: target.container.name(), dtype: dtype.name() });
        }
        check_blocks(&name, slot.cols, dtype)?;
        self.piece(name, slot.shape(), TensorType::Dense(dtype));
        let step = (CHUNK / slot.cols).max(1);
        for first in (0..slot.rows).step_by(step) {
            let end = (first + step).min(slot.rows);
            self.jobs.push(Job { slot, make: Make::Rows(dtype, first..end), last: end == slot.rows });
        }
        Ok(())
    }

    fn gguf_projection(
        &mut self,
        source: &Source<'_>,
        slot: Slot,
        name: String,
        options: &ConvertOptions,
    ) -> Result<(), ConvertError> {
        let stored = source.tensors.stored(&slot)?;
        if source.tensors.is_kept_dense(&slot) {
            if self.arch.ternary {
                return Err(ConvertError::NoPlace {
                    container: options.target.container.name(),
                    what: format!("{:?} of the architecture {} stays dense", stored.name, self.arch.name),
                });
            }
            self.dense.push(slot);
        }
        let dtype = match (options.target.weights, stored.ttype) {
            (Weights::Packed(_) | Weights::Tiled(_), TensorType::Dense(dtype))
                if source.tensors.is_kept_dense(&slot) =>
            {
                dtype
            }
            (Weights::Tiled(kind), _) => {
                let (rows, cols) = (slot.rows, slot.cols);
                let tile = options.tiles.find(rows, cols);
                let tile = tile.ok_or_else(|| ConvertError::NoTile { tensor: name.clone(), rows, cols })?;
                if kind.bytes(&tile).is_none() {
                    let source = kind.misfit(&tile);
                    return Err(ConvertError::Packing { tensor: name, source });
                }
                self.piece(name.clone(), slot.shape(), TensorType::Tiled(kind, tile));
                self.piece(format!("{name}_scale"), vec![1], TensorType::Dense(DenseType::F32));
                self.whole(slot, Make::Tiled(kind, tile));
                return Ok(());
            }
            (Weights::Dense(dtype), _) => dtype,
            (Weights::Packed(packing), _) => {
                if (packing.bytes)(slot.rows, slot.cols).is_none() {
                    fits(source, &slot, &name, packing, options.target)?;
                }
                self.piece(name, slot.shape(), TensorType::Ternary(packing));
                self.whole(slot, Make::Packed(packing));
                return Ok(());
            }
            (Weights::AutoBitLinear | Weights::BitLinear | Weights::Int8, _) => {
                unreachable!("targets of another container")
            }
        };
        check_blocks(&name, slot.cols, dtype)?;
        self.piece(name, slot.shape(), TensorType::Dense(dtype));
        self.whole(slot, Make::Real(dtype));
        Ok(())
    }

    fn huggingface_projection(
        &mut self,
        source: &Source<'_>,
        slot: Slot,
        name: String,
        options: &ConvertOptions,
        scales: &BTreeMap<(usize, Role), Stored>,
    ) -> Result<(), ConvertError> {
        let float = match options.target.weights {
            Weights::Dense(dtype) => Some(dtype),
            _ => None,
        };
        if let (true, Some(dtype)) = (self.online, float) {
            self.piece(name, slot.shape(), TensorType::Dense(dtype));
            self.whole(slot, Make::Masters(dtype));
            return Ok(());
        }
        let Some(scale) = scales.get(&(slot.layer, slot.role)) else {
            let kept = match source.tensors.stored(&slot)?.ttype {
                TensorType::Dense(dtype) if dtype.block().0 == 1 => dtype,
                _ => DenseType::F32,
            };
            let dtype = float.unwrap_or(kept);
            self.dense.push(slot);
            self.piece(name, slot.shape(), TensorType::Dense(dtype));
            self.whole(slot, Make::Real(dtype));
            return Ok(());
        };
        let int8 = matches!(options.target.weights, Weights::Int8);
        let scale = match self.float {
            Some(DenseType::F32) => scale.widened(),
            _ if int8 => scale.widened(),
            _ => scale.clone(),
        };
        let scale_type = TensorType::Dense(scale.dtype);
        let (rows, ttype, make) = match float {
            Some(dtype) => (slot.rows, TensorType::Dense(dtype), Make::Trits(dtype, scale)),
            None if int8 => (slot.rows, TensorType::Ternary(&I8), Make::Beside(&I8, scale)),
            None => (slot.rows / 4, TensorType::U8, Make::Beside(&HF, scale)),
        };
        self.piece(name.clone(), vec![rows, slot.cols], ttype);
        self.piece(format!("{name}_scale"), vec![1], scale_type);
        self.whole(slot, make);
        Ok(())
    }

    /// Scales of a model's projections as Hugging Face files have them; projections without one stay dense.
    fn survey(
        &mut self,
        source: &Source<'_>,
        slots: &[Slot],
        options: &ConvertOptions,
    ) -> Result<BTreeMap<(usize, Role), Stored>, ConvertError> {
        let target = options.target;
        let projections: Vec<&Slot> = slots.iter().filter(|s| s.role.is_projection()).collect();
        if let (Weights::Dense(_), None) = (target.weights, options.quantize) {
            self.online = true;
            for slot in &projections {
                self.online = source.tensors.is_kept_dense(slot) || source.tensors.masters(slot)?.is_some();
                source.tensors.stored(slot)?.data.release();
                if !self.online {
                    break;
                }
            }
            if self.online {
                return Ok(BTreeMap::new());
            }
        }
        let mut scales = BTreeMap::new();
        ordered(
            projections.len(),
            options.threads,
            |i| {
                let found = source.trits(projections[i])?;
                source.tensors.stored(projections[i])?.data.release();
                Ok(found.map(|m| m.scale().clone()))
            },
            |i, scale| {
                let slot = projections[i];
                let tensor = || source.config.arch.tensor_name(slot.role, slot.layer);
                let scale = match scale {
                    None if source.tensors.is_kept_dense(slot)
                        || matches!(target.weights, Weights::Dense(_)) =>
                    {
                        return Ok(());
                    }
                    None => return Err(ConvertError::NotTernary { tensor: tensor(), target: target.name }),
                    Some(Scale::Tensor(s)) => s,
                    // Multiplied in, scales are no matter of their own.
                    Some(_) if matches!(target.weights, Weights::Dense(_)) && !self.arch.ternary => {
                        return Ok(());
                    }
                    Some(Scale::Rows(_)) => {
                        return Err(ConvertError::Groups {
                            tensor: tensor(),
                            size: slot.cols,
                            target: target.name,
                        });
                    }
                    Some(Scale::Groups { size, .. }) => {
                        return Err(ConvertError::Groups { tensor: tensor(), size, target: target.name });
                    }
                };
                if !slot.rows.is_multiple_of(4)
                    && !matches!(target.weights, Weights::Dense(_) | Weights::Int8)
                {
                    fits(source, slot, &tensor(), &HF, target)?;
                }
                let stored = match target.weights {
                    Weights::BitLinear => Stored::divisor(scale),
                    _ => Stored::multiplier(scale),
                };
                scales.insert((slot.layer, slot.role), stored);
                Ok(())
            },
        )?;
        Ok(scales)
    }
}

/// BF16 where that changes nothing, else F32.
fn one_type<'a>(
    source: &Source<'_>,
    slots: &[Slot],
    options: &ConvertOptions,
    mut scales: impl Iterator<Item = &'a Stored>,
) -> Result<DenseType, ConvertError> {
    match options.embedding {
        None | Some(DenseType::BF16) => {}
        Some(DenseType::F32) => return Ok(DenseType::F32),
        Some(dtype) => {
            let container = options.target.container.name();
            return Err(ConvertError::Type { container, dtype: dtype.name() });
        }
    }
    let mut narrow = scales.all(|s| s.dtype == DenseType::BF16);
    for slot in slots.iter().filter(|s| !s.role.is_projection()) {
        narrow &= match slot.role.is_norm() {
            true => narrowest(&source.tensors.vector(slot)?) == DenseType::BF16,
            false => {
                let stored = source.tensors.stored(slot)?.ttype;
                options.embedding.is_some() || matches!(stored, TensorType::Dense(DenseType::BF16))
            }
        };
    }
    Ok(if narrow { DenseType::BF16 } else { DenseType::F32 })
}

/// Packs a projection whose shape a packing has no room for: the packing says best why.
fn fits(
    source: &Source<'_>,
    slot: &Slot,
    name: &str,
    packing: &Packing,
    target: &Target,
) -> Result<(), ConvertError> {
    let not_ternary = || ConvertError::NotTernary { tensor: name.to_owned(), target: target.name };
    pack(name, packing, &source.trits(slot)?.ok_or_else(not_ternary)?).map(|_| ())
}

fn check_blocks(tensor: &str, cols: usize, dtype: DenseType) -> Result<(), ConvertError> {
    match dtype.row_bytes(cols) {
        Some(_) => Ok(()),
        None => Err(ConvertError::Blocks { tensor: tensor.to_owned(), cols, dtype: dtype.name() }),
    }
}
