//! What every crate of the toolkit shares, and nothing else.
//!
//! This crate knows [`Bytes`] (heap or memory-mapped), the [`TernaryMatrix`] that every ternary file format becomes, the
//! [`DenseMatrix`] for everything that is not ternary, and the small [`Backend`] trait that the model is written over.
//! It does no I/O, starts no threads and knows no file format, no model and no instruction set.
//!
//! ```
//! use bitnet_core::{TernaryMatrix, Scale};
//! let m = TernaryMatrix::from_trits(2, 3, &[1, 0, -1, -1, -1, 1], Scale::Tensor(0.5)).unwrap();
//! assert_eq!(m.trit(1, 2), 1);
//! ```
#![forbid(unsafe_code)]

mod backend;
mod bytes;
mod cache;
mod logits;
mod matrix;
mod profile;
mod training;

pub use backend::{Activation, ActivationPrecision, Backend, BackendError, Purpose, RopeRows};
pub use bytes::{Bytes, Storage};
pub use cache::{AttentionShape, KV_BLOCK, KvSpan, KvSpec, KvType};
pub use logits::{Logits, LogitsNeed, LogitsRow};
pub use matrix::{DenseMatrix, DenseType, Matrix, Packed, ROW_ALIGN, Scale, ShapeError, TernaryMatrix};
pub use profile::OperationTime;
pub use training::{
    AdamStep, At, ColumnsOf, DeviceNorm, DeviceSide, DeviceStore, DeviceValues, Factor, Memory, Product,
    Sequences, SgdStep, Terms, TrainingDevice,
};
