//! Two bits a trit, one column after the other, for products that leave out columns.
//!
//! Rows come in stripes of 256; a stripe's column is one line, and the columns of a stripe follow each other. Row `16t + i` of
//! a stripe is field `t % 4` of byte `16 (i / 4) + 4 (t / 4) + i % 4`: interleaving the bytes of four columns within 128-bit
//! lanes gives four vectors whose field `f` is, in vector `v`, four columns of the sixteen rows of tile `4v + f`, one row a
//! 32-bit lane: the operand of `vpdpbusd`.

use super::{BLOCK, COLUMNS, Line, TILE, tile2};

/// Rows of a stripe.
pub(crate) const STRIPE: usize = 256;
/// Tiles of a stripe.
pub(crate) const STRIPE_TILES: usize = STRIPE / TILE;

/// The byte of a line that has row `i` of tiles `4v..4v + 4`.
const fn byte(v: usize, i: usize) -> usize {
    16 * (i / 4) + 4 * v + i % 4
}

/// Packs up to 256 canonical rows; rows that are missing become zero trits.
pub(super) fn pack(rows: &[&[u8]], stripe: &mut [u8]) {
    const ZEROS: [u8; 4] = tile2::ZERO_TRITS.to_le_bytes();
    let lines = stripe.as_chunks_mut::<BLOCK>().0;
    // Sixteen columns a step: one word of every row.
    for (w, lines) in lines.chunks_mut(16).enumerate() {
        let word = |row: usize| {
            rows.get(row).map_or(ZEROS, |codes| codes.as_chunks::<4>().0.get(w).copied().unwrap_or(ZEROS))
        };
        for v in 0..4 {
            for i in 0..TILE {
                let [a, b, c, d] = [0, 1, 2, 3].map(|f| word(64 * v + 16 * f + i));
                for (j, lines) in lines.chunks_mut(4).enumerate() {
                    // Byte `f` holds four columns of one row; transposed, byte `c` holds four rows of one column.
                    let columns = tile2::interleave(u32::from_le_bytes([a[j], b[j], c[j], d[j]]));
                    for (line, column) in lines.iter_mut().zip(columns.to_le_bytes()) {
                        line[byte(v, i)] = column;
                    }
                }
            }
        }
    }
}

/// Tile `t` of a stripe.
pub(super) fn tile(stripe: &[Line], t: usize, tile: &mut [u8]) {
    let (v, f) = (t / 4, t % 4);
    for (columns, block) in stripe.chunks(COLUMNS).zip(tile.as_chunks_mut::<BLOCK>().0) {
        let mut words = [0u32; TILE];
        for (q, columns) in columns.chunks(4).enumerate() {
            let mut bytes = [[tile2::ZERO_TRITS as u8; 4]; TILE];
            for (j, column) in columns.iter().enumerate() {
                for lane in 0..4 {
                    for i in 0..4 {
                        bytes[4 * lane + i][j] = column.0[16 * lane + 4 * v + i];
                    }
                }
            }
            for (word, bytes) in words.iter_mut().zip(bytes) {
                *word |= ((u32::from_le_bytes(bytes) >> (2 * f)) & 0x0303_0303) << (2 * q);
            }
        }
        for (out, word) in block.as_chunks_mut::<4>().0.iter_mut().zip(words) {
            *out = word.to_le_bytes();
        }
    }
}
