//! What memory is for.

use std::fmt;

/// What memory is for; what is tracked is told apart by it.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum Tag {
    /// Parameters of a model.
    Weights,
    /// Keys and values of attention.
    Kv,
    /// What operations of a step hand on to each other.
    Activations,
    /// What an operation needs while it runs.
    Scratch,
    /// Gradients of parameters.
    Gradients,
    /// What an optimizer keeps from step to step.
    Optimizer,
    /// Anything else.
    #[default]
    Other,
}

impl Tag {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 7] = [
        Self::Weights,
        Self::Kv,
        Self::Activations,
        Self::Scratch,
        Self::Gradients,
        Self::Optimizer,
        Self::Other,
    ];

    /// As metrics name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Weights => "weights",
            Self::Kv => "kv",
            Self::Activations => "activations",
            Self::Scratch => "scratch",
            Self::Gradients => "gradients",
            Self::Optimizer => "optimizer",
            Self::Other => "other",
        }
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
