//! bitnet.cpp's `I2_S` on x86, as its files have it: rows one after the other, so what a file maps is multiplied where it lies.
//!
//! A row is blocks of 128 columns, 32 bytes each: byte `j` holds columns `j`, `32 + j`, `64 + j` and `96 + j`, highest bits
//! first. A tile is sixteen such rows.

use super::{Layout, TILE, tile2};

/// Columns of a block.
pub(crate) const COLUMNS: usize = 128;

/// Bytes of one row's block.
pub(crate) const BLOCK: usize = 32;

/// Sixteen rows, one after the other.
pub(crate) static I2_S: Layout = Layout {
    name: "i2_s",
    columns: COLUMNS,
    bytes: TILE * BLOCK,
    packing: Some(bitnet_quant::packing::I2_S.name),
    pack,
    code,
};

fn pack(rows: &[&[u8]], _cols: usize, tile: &mut [u8]) {
    const ZERO_TRITS: u8 = 0x55;
    if rows.len() < TILE {
        tile.fill(ZERO_TRITS);
    }
    let row_bytes = tile.len() / TILE;
    for (codes, out) in rows.iter().zip(tile.chunks_exact_mut(row_bytes.max(1))) {
        // Canonical rows are whole blocks, too.
        for (block, out) in codes.as_chunks::<BLOCK>().0.iter().zip(out.as_chunks_mut::<BLOCK>().0) {
            for (i, out) in out.as_chunks_mut::<4>().0.iter_mut().enumerate() {
                let word = [block[24 + i], block[16 + i], block[8 + i], block[i]];
                *out = tile2::interleave(u32::from_le_bytes(word)).to_le_bytes();
            }
        }
    }
}

fn code(tile: &[u8], row: usize, col: usize) -> u8 {
    let (block, c) = (col / COLUMNS, col % COLUMNS);
    (tile[tile.len() / TILE * row + BLOCK * block + c % 32] >> (6 - 2 * (c / 32))) & 3
}
