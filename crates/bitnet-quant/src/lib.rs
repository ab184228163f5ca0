//! Quantizers, packings, and the readable specification that every kernel equals bit for bit.
//!
//! This crate knows how real weights become trits ([`absmean`]), how files pack trits ([`packing`]) and dense blocks
//! ([`dense`]), and the order of every float operation of the model ([`spec`]). It does no I/O, starts no threads and uses
//! no instruction-set intrinsics.
#![forbid(unsafe_code)]

pub mod absmean;
pub mod dense;
pub mod packing;
pub mod spec;
