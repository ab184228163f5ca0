//! Two-bit codes: transposition of four by four, detection of the reserved code, rows that begin inside a byte.

use super::PackingError;
use bitnet_core::TernaryMatrix;

/// A byte of zero trits.
pub(super) const ZEROS: u8 = 0b0101_0101;

/// Transposes the 4 x 4 two-bit fields of a word: field `f` of byte `b` becomes field `b` of byte `f`.
#[inline]
pub(super) fn transpose(mut x: u32) -> u32 {
    let t = ((x >> 6) ^ x) & 0x00CC_00CC;
    x ^= t ^ (t << 6);
    let t = ((x >> 12) ^ x) & 0x0000_F0F0;
    x ^ t ^ (t << 12)
}

/// Not zero when one of the sixteen codes is 3.
#[inline]
pub(super) fn reserved(x: u32) -> u32 {
    x & (x >> 1) & 0x5555_5555
}

/// The error for the first reserved code of canonical rows, if there is one.
pub(super) fn find_reserved(
    packing: &'static str,
    cols: usize,
    canonical: &[u8],
) -> Result<(), PackingError> {
    // Rows are whole words.
    let words = canonical.as_chunks::<4>().0;
    if words.iter().fold(0, |found, word| found | reserved(u32::from_le_bytes(*word))) == 0 {
        return Ok(());
    }
    let stride = TernaryMatrix::row_bytes(cols);
    for (i, byte) in canonical.iter().enumerate() {
        if let Some(field) = (0..4).find(|field| (byte >> (2 * field)) & 3 == 3) {
            return Err(PackingError::ReservedCode {
                packing,
                row: i / stride,
                col: (i % stride) * 4 + field,
            });
        }
    }
    Ok(())
}

/// Cuts codes that follow each other without padding, four a byte, into canonical rows.
pub(super) fn rows_from_flat(rows: usize, cols: usize, flat: Vec<u8>) -> Vec<u8> {
    let stride = TernaryMatrix::row_bytes(cols);
    if cols == stride * 4 {
        return flat;
    }
    let mut out = vec![ZEROS; rows * stride];
    for (row, out) in out.chunks_exact_mut(stride.max(1)).enumerate() {
        for col in 0..cols {
            let i = row * cols + col;
            let code = (flat[i / 4] >> (2 * (i % 4))) & 3;
            let shift = 2 * (col % 4);
            out[col / 4] = out[col / 4] & !(3 << shift) | (code << shift);
        }
    }
    out
}

/// Codes of a whole matrix without padding between rows, four a byte.
pub(super) fn flat_from_rows(m: &TernaryMatrix) -> Vec<u8> {
    if m.cols() == TernaryMatrix::row_bytes(m.cols()) * 4 {
        return m.codes().to_vec();
    }
    let mut out = vec![0; (m.rows() * m.cols()).div_ceil(4)];
    for row in 0..m.rows() {
        let codes = m.row_codes(row);
        for col in 0..m.cols() {
            let i = row * m.cols() + col;
            out[i / 4] |= ((codes[col / 4] >> (2 * (col % 4))) & 3) << (2 * (i % 4));
        }
    }
    out
}
