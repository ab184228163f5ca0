//! What is trained on: files become examples, those become tokens in a mapped file, and those rows of batches.

mod batch;
mod corpus;
mod encode;
mod pair;
mod read;
mod rows;
#[cfg(test)]
mod tests;
mod texts;

pub use batch::Batch;
pub use corpus::DataSet;
pub(crate) use corpus::{Corpus, Maker};
pub use read::Skipped;
pub(crate) use rows::{Rows, Split};
pub use texts::texts;
