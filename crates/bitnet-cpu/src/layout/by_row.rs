//! Two bits a trit, one row after the other, for products that leave out rows.
//!
//! A row is padded to whole lines of 256 codes. Word `w` of a line (32 bits) holds columns `16w..16w + 16`, its fields in the
//! order of [`tile2`](super::tile2); so sixteen rows become a tile by transposing words.

use super::{BLOCK, COLUMNS, Line, TILE, tile2};

/// Columns of a line.
pub(crate) const LINE_COLUMNS: usize = 256;

/// Lines that a row of `cols` columns takes.
pub(super) fn row_lines(cols: usize) -> usize {
    cols.div_ceil(LINE_COLUMNS)
}

/// Packs one canonical row.
pub(super) fn pack(codes: &[u8], row: &mut [u8]) {
    let (words, row) = (codes.as_chunks::<4>().0, row.as_chunks_mut::<4>().0);
    row.fill(tile2::ZERO_TRITS.to_le_bytes());
    for (out, word) in row.iter_mut().zip(words) {
        *out = tile2::interleave(u32::from_le_bytes(*word)).to_le_bytes();
    }
}

/// The tile of up to sixteen rows of `lines` lines each.
pub(super) fn tile(rows: &[Line], lines: usize, cols: usize, tile: &mut [u8]) {
    let blocks = &mut tile.as_chunks_mut::<BLOCK>().0[..cols.div_ceil(COLUMNS)];
    if rows.len() < TILE * lines {
        blocks.as_flattened_mut().as_chunks_mut::<4>().0.fill(tile2::ZERO_TRITS.to_le_bytes());
    }
    for (r, row) in rows.chunks_exact(lines).enumerate() {
        for (block, word) in blocks.iter_mut().zip(super::bytes(row).as_chunks::<4>().0) {
            block.as_chunks_mut::<4>().0[r] = *word;
        }
    }
}
