//! Hugging Face's packed uint8: byte `[r, c]` of `[rows/4, cols]` holds rows `r`, `r + rows/4`, `r + 2 rows/4` and
//! `r + 3 rows/4` of column `c`, lowest bits first. The scale is a tensor of its own.

use super::codes::{ZEROS, find_reserved, transpose};
use super::{Packing, PackingError, check};
use bitnet_core::{DenseType, Scale, TernaryMatrix};

/// Hugging Face's packed uint8.
pub static HF: Packing = Packing { name: "HF", scale: DenseType::F32, bytes, unpack, pack };

const NEED: &str = "rows must be a multiple of 4";

fn bytes(rows: usize, cols: usize) -> Option<usize> {
    rows.is_multiple_of(4).then(|| (rows / 4).checked_mul(cols))?
}

fn unpack(rows: usize, cols: usize, data: &[u8]) -> Result<TernaryMatrix, PackingError> {
    check(&HF, rows, cols, data.len(), NEED)?;
    let (quarter, stride) = (rows / 4, TernaryMatrix::row_bytes(cols));
    let mut canonical = vec![ZEROS; rows * stride];
    for (r, packed) in data.chunks_exact(cols.max(1)).enumerate() {
        for (j, four) in packed.chunks(4).enumerate() {
            let mut word = [ZEROS; 4];
            word[..four.len()].copy_from_slice(four);
            for (i, byte) in transpose(u32::from_le_bytes(word)).to_le_bytes().into_iter().enumerate() {
                canonical[(i * quarter + r) * stride + j] = byte;
            }
        }
    }
    find_reserved(HF.name, cols, &canonical)?;
    Ok(TernaryMatrix::new(rows, cols, canonical.into(), Scale::Tensor(1.0))?)
}

fn pack(m: &TernaryMatrix, out: &mut Vec<u8>) -> Result<(), PackingError> {
    if !m.rows().is_multiple_of(4) {
        return Err(PackingError::Shape { packing: HF.name, rows: m.rows(), cols: m.cols(), need: NEED });
    }
    let quarter = m.rows() / 4;
    for r in 0..quarter {
        let rows: [&[u8]; 4] = std::array::from_fn(|i| m.row_codes(i * quarter + r));
        for col in (0..m.cols()).step_by(4) {
            let word = transpose(u32::from_le_bytes(rows.map(|row| row[col / 4])));
            out.extend(&word.to_le_bytes()[..(m.cols() - col).min(4)]);
        }
    }
    Ok(())
}
