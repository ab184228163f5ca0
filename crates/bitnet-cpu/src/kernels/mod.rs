//! One folder an operation.

pub(crate) mod attend;
pub(crate) mod dense;
pub(crate) mod gate;
pub(crate) mod low_rank;
pub(crate) mod norm;
pub(crate) mod quantize;
pub(crate) mod rope;
pub(crate) mod screen;
pub(crate) mod skip;
pub(crate) mod ternary;
pub(crate) mod training;
