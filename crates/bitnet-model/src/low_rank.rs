//! Adapters that a model holds, and those that the tokens of a step go through.

use crate::config::bad;
use crate::{Adapter, ModelError, Role};
use bitnet_core::{ActivationPrecision, Backend, Matrix, Purpose};
use std::collections::BTreeMap;
use std::ops::Range;

/// An adapter that a sequence goes through.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdapterUse {
    /// The number that it was given to [`crate::Decoder::load_adapter`] with.
    pub id: u32,
    /// What it adds is multiplied with this.
    pub scale: f32,
}

/// What an adapter adds to one projection.
struct Part<B: Backend> {
    role: Role,
    a: B::Weight,
    b: B::Weight,
    scale: f64,
}

/// The parts of an adapter by layer, of which only those have any that are here.
type Layers<B> = Vec<Vec<Part<B>>>;

/// Adapters by their numbers.
pub(crate) struct Adapters<B: Backend> {
    held: BTreeMap<u32, Layers<B>>,
}

impl<B: Backend> Default for Adapters<B> {
    fn default() -> Self {
        Self { held: BTreeMap::new() }
    }
}

impl<B: Backend> Adapters<B> {
    pub(crate) fn load(
        &mut self,
        b: &B,
        id: u32,
        adapter: &Adapter,
        layers: Range<usize>,
    ) -> Result<(), ModelError> {
        if adapter.parts.iter().any(|part| part.magnitude.is_some()) {
            let need = "DoRA rescales rows of the sum, which is not done beside the weights; `bitnet merge` makes it a part of them";
            return Err(bad("use_dora", true, need));
        }
        let mut held: Layers<B> = (0..layers.end).map(|_| Vec::new()).collect();
        for part in adapter.parts.iter().filter(|part| layers.contains(&part.layer)) {
            let prepare = |m: &bitnet_core::DenseMatrix| {
                b.prepare(&[Matrix::Dense(m.clone())], ActivationPrecision::Float, Purpose::Adapter)
            };
            held[part.layer].push(Part {
                role: part.role,
                a: prepare(&part.a)?,
                b: prepare(&part.b)?,
                scale: part.scale,
            });
        }
        self.held.insert(id, held);
        Ok(())
    }

    pub(crate) fn unload(&mut self, id: u32) {
        self.held.remove(&id);
    }

    /// What the rows of a step go through: `spans` are their numbers and adapters, in their order.
    pub(crate) fn step<'s>(
        &self,
        spans: impl Iterator<Item = (usize, &'s [AdapterUse])>,
    ) -> Result<Step<'_, B>, ModelError> {
        let mut runs: Vec<(Range<usize>, &[AdapterUse])> = Vec::new();
        let mut row = 0;
        for (len, adapters) in spans {
            match runs.last_mut().filter(|(rows, uses)| rows.end == row && *uses == adapters) {
                Some((rows, _)) => rows.end += len,
                None if adapters.is_empty() => {}
                None => runs.push((row..row + len, adapters)),
            }
            row += len;
        }
        let mut uses = Vec::new();
        for (rows, adapters) in runs {
            for AdapterUse { id, scale } in adapters {
                let layers = self.held.get(id).ok_or(ModelError::UnknownAdapter { id: *id })?;
                uses.push(Use { rows: rows.clone(), layers, scale: f64::from(*scale) });
            }
        }
        Ok(Step { uses })
    }
}

/// Rows of a step, and an adapter that they go through.
struct Use<'a, B: Backend> {
    rows: Range<usize>,
    layers: &'a Layers<B>,
    scale: f64,
}

/// All of them, in the order in which they add.
pub(crate) struct Step<'a, B: Backend> {
    uses: Vec<Use<'a, B>>,
}

impl<B: Backend> Step<'_, B> {
    /// Whether any adapter adds to one of these projections.
    pub(crate) fn adds_to(&self, layer: usize, roles: &[Role]) -> bool {
        self.uses.iter().any(|u| u.layers[layer].iter().any(|part| roles.contains(&part.role)))
    }

    /// Adds to the products `y` of some projections, each with the column where its part of `y` begins, what adapters make of
    /// their input `x`.
    pub(crate) fn add(
        &self,
        b: &B,
        layer: usize,
        projections: &[(Role, usize)],
        x: &B::Tensor,
        y: &mut B::Tensor,
    ) {
        for Use { rows, layers, scale } in &self.uses {
            for part in &layers[layer] {
                let Some((_, first)) = projections.iter().find(|(role, _)| *role == part.role) else {
                    continue;
                };
                let scale = (part.scale * scale) as f32;
                b.add_low_rank(x, rows.clone(), (&part.a, &part.b), scale, y, *first);
            }
        }
    }
}
