//! What training needs besides the operations of a decoder: products of any two matrices, attention without a cache, and the way
//! back through both.

pub(crate) mod attention;
pub(crate) mod bf16;
pub(crate) mod divergence;
pub(crate) mod gate;
pub(crate) mod loss;
pub(crate) mod norm;
pub(crate) mod product;
mod trits;
