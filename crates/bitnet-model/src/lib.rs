//! Configuration, architectures and the transformer, written once over `bitnet_core::Backend`.
//!
//! [`ModelConfig::read`] finds the architecture's row in [`ARCHS`] and translates the file's configuration; [`load`]
//! prepares one tensor after the other; [`Transformer`] runs steps behind the [`Decoder`] trait, below which everything is
//! static and above which everything is host data. A [`Pipeline`] is the same [`Decoder`] with its layers on several backends.
#![forbid(unsafe_code)]

mod adapter;
mod arch;
mod config;
mod decoder;
mod error;
mod load;
mod low_rank;
mod pipeline;
mod rope_table;
mod transformer;

pub use adapter::{Adapter, LowRank, TRITS};
pub use arch::{ARCHS, Architecture, Origin, Role, Slot, Windows};
pub use config::{Llama3Scaling, LocalLayers, ModelConfig, Rope, RopeScaling, YarnScaling};
pub use decoder::{Decoder, Rows, Span, StepOutput};
pub use error::ModelError;
pub use load::{
    LoadOptions, LoadReport, ModelTensors, Sizes, absmean_of, in_file_order, load, load_as, load_stage,
    trits_of,
};
pub use low_rank::AdapterUse;
pub use pipeline::{Pipeline, Stage};
pub use transformer::Transformer;
