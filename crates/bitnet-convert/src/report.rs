//! What a conversion did.

use crate::LayerError;
use bitnet_model::{Role, Slot};
use std::collections::BTreeMap;

/// Weights and bytes of the tensors of one class and type.
#[derive(Clone, Debug, PartialEq)]
pub struct ClassSize {
    /// `embedding`, `head`, `projections` or `norms`.
    pub class: &'static str,
    /// Their type in the output.
    pub kind: &'static str,
    /// Tensors.
    pub tensors: usize,
    /// Weights.
    pub weights: u64,
    /// Bytes in the output, scales included.
    pub bytes: u64,
}

impl ClassSize {
    /// Bits for each weight.
    pub fn bits(&self) -> f64 {
        self.bytes as f64 * 8.0 / self.weights.max(1) as f64
    }
}

/// Numbers that the target holds only nearly.
#[derive(Clone, Debug, PartialEq)]
pub struct Inexact {
    /// The tensor.
    pub tensor: String,
    /// What was rounded: `scale`, `master weights` or `values`.
    pub what: &'static str,
    /// The largest error, relative to the largest magnitude: of the scale, or in the tensor.
    pub error: f64,
}

/// What a conversion did.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Sizes, by class of tensors.
    pub classes: Vec<ClassSize>,
    /// What was rounded, one entry a tensor.
    pub inexact: Vec<Inexact>,
    /// What quantizing did, one entry a projection that was not ternary.
    pub layers: Vec<LayerError>,
    /// What of the input the output has no place for, in words.
    pub left_out: Vec<String>,
    /// Bytes of tensors that were read.
    pub input_bytes: u64,
}

pub(crate) fn class(role: Role) -> &'static str {
    match role {
        Role::Embedding => "embedding",
        Role::Head => "head",
        role if role.is_projection() => "projections",
        _ => "norms",
    }
}

/// Counts what is written.
#[derive(Default)]
pub(crate) struct Sizes(BTreeMap<(&'static str, &'static str), ClassSize>);

impl Sizes {
    /// A tensor of the model in its type.
    pub(crate) fn tensor(&mut self, slot: &Slot, kind: &'static str, bytes: u64) {
        let class = class(slot.role);
        let empty = ClassSize { class, kind, tensors: 0, weights: 0, bytes: 0 };
        let size = self.0.entry((class, kind)).or_insert(empty);
        (size.tensors, size.weights, size.bytes) =
            (size.tensors + 1, size.weights + slot.weights(), size.bytes + bytes);
    }

    pub(crate) fn list(self) -> Vec<ClassSize> {
        self.0.into_values().collect()
    }
}
