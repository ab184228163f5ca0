//! How files pack trits: one file and one row of [`PACKINGS`] each.
//!
//! All of them store `code = trit + 1` in two bits, five codes a byte (`TQ1_0`) or one sign bit (`Q1_0`); they differ in
//! which codes share a byte and where the scale lies. Layouts are those of transformers (`HF`), bitnet.cpp (`I2_S`, `I2_S_ARM`), ggml
//! (`TQ1_0`, `TQ2_0`, `Q1_0`, `Q2_0` with groups of 64) and Prism's first files (`Q2_0` with groups of 128).

mod blocks;
mod codes;
mod hf;
mod i2_s;
mod i8;
mod q1_0;
mod q2_0;
mod tiles;
mod tq1_0;
mod tq2_0;

use bitnet_core::{Bytes, DenseType, ShapeError, TernaryMatrix};

pub use hf::HF;
pub use i2_s::{I2_S, I2_S_ARM};
pub use i8::I8;
pub use q1_0::Q1_0;
pub use q2_0::{Q2_0_G64, Q2_0_G128};
pub use tiles::{Tile, TileTable, Tiled};
pub use tq1_0::TQ1_0;
pub use tq2_0::TQ2_0;

/// A way to store trits.
#[derive(Debug)]
pub struct Packing {
    /// The name of the type in GGUF tools (`I2_S`, `TQ1_0`, ...); `HF` for Hugging Face's packed uint8, `I8` for one signed byte a trit.
    pub name: &'static str,
    /// Type of the scales in the data; F32, which holds any, where they stand outside.
    pub scale: DenseType,
    /// Bytes that `[rows, cols]` take, scales inside the data included; `None` where the packing cannot hold the shape.
    pub bytes: fn(rows: usize, cols: usize) -> Option<usize>,
    /// Reads a matrix. Scales outside the data (HF, I8) are left at `Scale::Tensor(1.0)`.
    pub unpack: fn(rows: usize, cols: usize, data: &[u8]) -> Result<TernaryMatrix, PackingError>,
    /// Appends a matrix to `out`; refuses what the packing cannot hold exactly.
    pub pack: fn(&TernaryMatrix, out: &mut Vec<u8>) -> Result<(), PackingError>,
}

impl Packing {
    /// Reads a matrix from a file's own bytes. Where a backend may multiply by them as they are, they stay where they are (see
    /// [`TernaryMatrix::in_file`]); otherwise the file's pages are given back.
    pub fn read(&self, rows: usize, cols: usize, data: &Bytes) -> Result<TernaryMatrix, PackingError> {
        if self.name == I2_S.name && cols.is_multiple_of(i2_s::BLOCK) {
            return i2_s::in_place(rows, cols, data);
        }
        let m = (self.unpack)(rows, cols, data)?;
        data.release();
        Ok(m)
    }
}

/// Every packing.
pub static PACKINGS: &[&Packing] =
    &[&HF, &I8, &I2_S, &I2_S_ARM, &TQ1_0, &TQ2_0, &Q1_0, &Q2_0_G64, &Q2_0_G128];

/// Why data is not of a packing, or a matrix does not fit one.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum PackingError {
    /// The packing has no room for such a shape.
    #[error("{packing} cannot hold {rows} x {cols}: {need}")]
    Shape {
        /// Name of the packing.
        packing: &'static str,
        /// Rows of the matrix.
        rows: usize,
        /// Columns of the matrix.
        cols: usize,
        /// What it can hold.
        need: &'static str,
    },
    /// There is more or less data than the shape needs.
    #[error("{rows} x {cols} in {packing} takes {need} bytes, there are {got}")]
    Length {
        /// Name of the packing.
        packing: &'static str,
        /// Rows of the matrix.
        rows: usize,
        /// Columns of the matrix.
        cols: usize,
        /// Bytes that the shape needs.
        need: usize,
        /// Bytes that are there.
        got: usize,
    },
    /// A code of 3, which stands for no trit.
    #[error("the code at row {row}, column {col} is 3, which {packing} reserves")]
    ReservedCode {
        /// Name of the packing.
        packing: &'static str,
        /// Row of the code.
        row: usize,
        /// Column of the code.
        col: usize,
    },
    /// A scale is NaN or infinite.
    #[error("a scale in {packing} data is {value}")]
    ScaleNotFinite {
        /// Name of the packing.
        packing: &'static str,
        /// The scale.
        value: f32,
    },
    /// A scale would be rounded.
    #[error("{packing} stores scales in f16, which cannot hold {scale:e}; the nearest is {nearest:e}")]
    ScaleNotExact {
        /// Name of the packing.
        packing: &'static str,
        /// The scale.
        scale: f32,
        /// What f16 would make of it.
        nearest: f32,
    },
    /// Scales are finer than the packing has room for.
    #[error("{packing} has one scale for {room}, the matrix has finer ones")]
    ScaleKind {
        /// Name of the packing.
        packing: &'static str,
        /// What shares a scale.
        room: &'static str,
    },
    /// A zero in a packing of signs.
    #[error("the trit at row {row}, column {col} is 0, which {packing} cannot hold")]
    Zero {
        /// Name of the packing.
        packing: &'static str,
        /// Row of the trit.
        row: usize,
        /// Column of the trit.
        col: usize,
    },
    /// Shape and data disagree.
    #[error(transparent)]
    Matrix(#[from] ShapeError),
}

/// Checks a length against a packing's own size of a shape.
fn check(
    packing: &Packing,
    rows: usize,
    cols: usize,
    got: usize,
    need: &'static str,
) -> Result<(), PackingError> {
    match (packing.bytes)(rows, cols) {
        None => Err(PackingError::Shape { packing: packing.name, rows, cols, need }),
        Some(need) if need != got => {
            Err(PackingError::Length { packing: packing.name, rows, cols, need, got })
        }
        Some(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests;
