//! Training of ternary models, on the CPU or a GPU: quantization-aware from the first step.
//!
//! Master weights are f32. Every forward pass makes them ternary (by absmean, or another quantizer) and activations int8, in the order of
//! operations in which inference computes, so a model in training gives the states that it will give when it is run. The backward pass goes
//! straight through quantizers, but for those that learn their steps. On the CPU every result is the same bits with any number of threads and on any instruction set, and a run that was killed goes
//! on from its last checkpoint to the same bits as one that was not.
//!
//! This crate knows models, data and files; it knows no instruction set and no GPU, which are the affair of [`bitnet_cpu::CpuTraining`] and of
//! [`bitnet_core::TrainingDevice`]s ([`Ops`]).
#![forbid(unsafe_code)]

mod checkpoint;
mod config;
mod data;
mod error;
mod example;
mod export;
mod hash;
mod memory;
mod merge;
mod model;
mod ops;
mod optimizer;
mod parameters;
mod pattern;
mod preference;
mod quantizer;
mod random;
mod run;
mod sample;
mod schedule;
mod source;
mod teacher;
mod trits;

pub use config::{DataConfig, DistillConfig, LoraConfig, ModelSource, RunConfig, SampleConfig, TrainConfig};
pub use data::{Batch, DataSet, Skipped, texts};
pub use error::TrainError;
pub use example::{KINDS, example};
pub use memory::{ProcessMemory, process_memory};
pub use merge::{Merged, merge};
pub use model::{Activations, Distillation, ExtraNorms, Losses, Model, Objectives, Precision, Ramp, Totals};
pub use ops::{Array, Ops, memory};
pub use optimizer::{Adam, Optimizer, Rates, clip, norm};
pub use parameters::{Parameter, Parameters, Part};
pub use preference::{Dpo, Preferred};
pub use quantizer::{Bits, Quantized, Rounding, WeightQuantizer};
pub use run::{Event, Kind, Outcome, Preferences, Start, Stopped, run};
pub use sample::Sample;
pub use schedule::{Schedule, Shape};
