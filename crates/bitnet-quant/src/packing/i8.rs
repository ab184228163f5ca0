//! Signed bytes -1, 0 and 1, row-major, as graphs of integer products have them. The scale is a tensor of its own.

use super::{Packing, PackingError, check};
use bitnet_core::{DenseType, Scale, TernaryMatrix};

/// One signed byte a trit.
pub static I8: Packing = Packing { name: "I8", scale: DenseType::F32, bytes, unpack, pack };

const NEED: &str = "rows times columns must not overflow";

fn bytes(rows: usize, cols: usize) -> Option<usize> {
    rows.checked_mul(cols)
}

fn unpack(rows: usize, cols: usize, data: &[u8]) -> Result<TernaryMatrix, PackingError> {
    check(&I8, rows, cols, data.len(), NEED)?;
    let stride = TernaryMatrix::row_bytes(cols);
    let mut canonical = vec![super::codes::ZEROS; rows * stride];
    for (r, (row, out)) in
        data.chunks_exact(cols.max(1)).zip(canonical.chunks_exact_mut(stride.max(1))).enumerate()
    {
        for (c, byte) in row.iter().enumerate() {
            let code = byte.wrapping_add(1);
            if code > 2 {
                return Err(PackingError::ReservedCode { packing: I8.name, row: r, col: c });
            }
            let shift = 2 * (c % 4);
            out[c / 4] = out[c / 4] & !(3 << shift) | code << shift;
        }
    }
    Ok(TernaryMatrix::new(rows, cols, canonical.into(), Scale::Tensor(1.0))?)
}

fn pack(m: &TernaryMatrix, out: &mut Vec<u8>) -> Result<(), PackingError> {
    for row in 0..m.rows() {
        let codes = m.row_codes(row);
        out.extend((0..m.cols()).map(|c| ((codes[c / 4] >> (2 * (c % 4))) & 3).wrapping_sub(1)));
    }
    Ok(())
}
