//! Two bits a trit, an index into a table of sixteen for every two columns.
//!
//! Four columns of a tile are sixteen bytes, and they follow each other. Byte `r` belongs to row `r`: its low nibble is the code
//! of the first column plus four times that of the second, its high nibble the same of the third and fourth. Thus sixteen rows
//! look their products up with one `tbl` or `vpshufb` for every two columns.

use super::{Layout, TILE};

/// Columns of sixteen bytes.
pub(crate) const COLUMNS: usize = 4;

/// Four zero trits of a row.
const ZERO_TRITS: u8 = 0x55;

/// Sixteen rows by four columns in sixteen bytes.
pub(crate) static TL1: Layout =
    Layout { name: "tl1", columns: 4 * COLUMNS, bytes: 64, packing: None, pack, code };

fn pack(rows: &[&[u8]], _cols: usize, tile: &mut [u8]) {
    tile.fill(ZERO_TRITS);
    for (r, codes) in rows.iter().enumerate() {
        // A canonical byte is four columns, lowest bits first: the two indices as they are needed.
        for (columns, codes) in tile.as_chunks_mut::<TILE>().0.iter_mut().zip(*codes) {
            columns[r] = *codes;
        }
    }
}

fn code(tile: &[u8], row: usize, col: usize) -> u8 {
    (tile[col / COLUMNS * TILE + row] >> (2 * (col % COLUMNS))) & 3
}
