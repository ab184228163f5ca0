//! Two bits a trit.
//!
//! Columns come in blocks of sixteen; a block of 256 codes is 64 bytes, and the blocks of a tile follow each other. Word `r`
//! of a block belongs to row `r` of the tile; field `f` (bits `2f..2f + 2`) of its byte `j` is the code of column `4f + j`.
//! Thus one load, three shifts and four masks give four vectors whose 32-bit lane `r` holds four neighbouring codes of row
//! `r`: what `vpdpbusd` and its relatives multiply with four broadcast activations, one row a lane, no horizontal sum.

use super::Layout;

/// Columns of a block.
pub(crate) const COLUMNS: usize = 16;

/// Bytes of a block.
pub(crate) const BLOCK: usize = 64;

/// Sixteen rows by sixteen columns in 64 bytes.
pub(crate) static TILE2: Layout =
    Layout { name: "tile2", columns: COLUMNS, bytes: BLOCK, packing: None, pack, code };

/// Sixteen zero trits of a row.
pub(crate) const ZERO_TRITS: u32 = 0x5555_5555;

/// Transposes the 4 x 4 two-bit fields of sixteen sequential codes.
#[inline]
pub(crate) fn interleave(mut x: u32) -> u32 {
    let t = ((x >> 6) ^ x) & 0x00CC_00CC;
    x ^= t ^ (t << 6);
    let t = ((x >> 12) ^ x) & 0x0000_F0F0;
    x ^ t ^ (t << 12)
}

fn pack(rows: &[&[u8]], _cols: usize, tile: &mut [u8]) {
    let blocks = tile.as_chunks_mut::<BLOCK>().0;
    if rows.len() < super::TILE {
        blocks.as_flattened_mut().as_chunks_mut::<4>().0.fill(ZERO_TRITS.to_le_bytes());
    }
    for (r, codes) in rows.iter().enumerate() {
        for (block, word) in blocks.iter_mut().zip(codes.as_chunks::<4>().0) {
            block.as_chunks_mut::<4>().0[r] = interleave(u32::from_le_bytes(*word)).to_le_bytes();
        }
    }
}

fn code(tile: &[u8], row: usize, col: usize) -> u8 {
    let (block, c) = (col / COLUMNS, col % COLUMNS);
    (tile[block * BLOCK + row * 4 + c % 4] >> (2 * (c / 4))) & 3
}
