//! What each tensor of a model is for, whatever a file calls it.

use super::{Architecture, Names};

/// What a tensor is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs, reason = "the names are those of the architecture")]
pub enum Role {
    Embedding,
    AttnNorm,
    Q,
    K,
    V,
    QNorm,
    KNorm,
    AttnSubNorm,
    O,
    FfnNorm,
    Gate,
    Up,
    FfnSubNorm,
    Down,
    AttnPostNorm,
    FfnPostNorm,
    /// The norm of a projection's own input, and so the next ones.
    QIn,
    KIn,
    VIn,
    OIn,
    GateIn,
    UpIn,
    DownIn,
    FinalNorm,
    Head,
}

impl Role {
    /// The tensors of a layer, in the order of a file.
    pub(crate) const LAYER: [Self; 22] = [
        Self::AttnNorm,
        Self::QIn,
        Self::Q,
        Self::KIn,
        Self::K,
        Self::VIn,
        Self::V,
        Self::QNorm,
        Self::KNorm,
        Self::AttnSubNorm,
        Self::OIn,
        Self::O,
        Self::AttnPostNorm,
        Self::FfnNorm,
        Self::GateIn,
        Self::Gate,
        Self::UpIn,
        Self::Up,
        Self::FfnSubNorm,
        Self::DownIn,
        Self::Down,
        Self::FfnPostNorm,
    ];

    /// A matrix that ternary models have in trits.
    pub fn is_projection(self) -> bool {
        matches!(self, Self::Q | Self::K | Self::V | Self::O | Self::Gate | Self::Up | Self::Down)
    }

    /// The norm of a projection's own input.
    pub fn input_norm(self) -> Option<Self> {
        Some(match self {
            Self::Q => Self::QIn,
            Self::K => Self::KIn,
            Self::V => Self::VIn,
            Self::O => Self::OIn,
            Self::Gate => Self::GateIn,
            Self::Up => Self::UpIn,
            Self::Down => Self::DownIn,
            _ => return None,
        })
    }

    /// The projection whose input a norm is for.
    pub(crate) fn normed(self) -> Option<Self> {
        let projections = Self::LAYER.into_iter().filter(|role| role.is_projection());
        projections.into_iter().find(|role| role.input_norm() == Some(self))
    }

    /// The embedding or the head.
    pub fn is_table(self) -> bool {
        matches!(self, Self::Embedding | Self::Head)
    }

    /// The weight of a norm.
    pub fn is_norm(self) -> bool {
        !self.is_projection() && !self.is_table()
    }
}

/// One tensor of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// What it is for.
    pub role: Role,
    /// Its layer; 0 for those that belong to none.
    pub layer: usize,
    /// Output features, `n`; 1 for norms.
    pub rows: usize,
    /// Input features, `k`; the elements of a norm.
    pub cols: usize,
}

impl Slot {
    /// `[rows, cols]`, or `[cols]` for a norm.
    pub fn shape(&self) -> Vec<usize> {
        if self.role.is_norm() { vec![self.cols] } else { vec![self.rows, self.cols] }
    }

    /// Weights of the tensor.
    pub fn weights(&self) -> u64 {
        self.rows as u64 * self.cols as u64
    }
}

impl Names {
    fn template(&self, role: Role) -> &'static str {
        match role {
            Role::Embedding => self.embedding,
            Role::AttnNorm => self.attn_norm,
            Role::Q => self.q,
            Role::K => self.k,
            Role::V => self.v,
            Role::QNorm => self.q_norm,
            Role::KNorm => self.k_norm,
            Role::AttnSubNorm => self.attn_sub_norm,
            Role::O => self.o,
            Role::FfnNorm => self.ffn_norm,
            Role::Gate => self.gate,
            Role::Up => self.up,
            Role::FfnSubNorm => self.ffn_sub_norm,
            Role::Down => self.down,
            Role::AttnPostNorm => self.attn_post_norm,
            Role::FfnPostNorm => self.ffn_post_norm,
            Role::FinalNorm => self.final_norm,
            Role::Head => self.head,
            Role::QIn | Role::KIn | Role::VIn | Role::OIn | Role::GateIn | Role::UpIn | Role::DownIn => {
                self.template(role.normed().expect("it is the norm of a projection"))
            }
        }
    }
}

impl Architecture {
    /// What files of this architecture call a tensor.
    ///
    /// ```
    /// use bitnet_model::{Architecture, Origin, Role};
    /// let arch = Architecture::find(Origin::Gguf, "bitnet-b1.58").unwrap();
    /// assert_eq!(arch.tensor_name(Role::Q, 3), "blk.3.attn_q.weight");
    /// ```
    pub fn tensor_name(&self, role: Role, layer: usize) -> String {
        let name = Names::of(self.names.template(role), layer);
        match (role.normed(), name.strip_suffix(".weight")) {
            (Some(_), Some(stem)) => format!("{stem}{}", self.names.input_norm),
            _ => name,
        }
    }

    /// The same architecture in the other kind of checkpoint.
    pub fn in_other_files(&self) -> Option<&'static Self> {
        let other = super::ARCHS.iter().find(|a| a.origin != self.origin && a.name == self.counterpart);
        other.filter(|a| {
            (a.sub_norms, a.qk_norms, a.post_norms) == (self.sub_norms, self.qk_norms, self.post_norms)
        })
    }
}
