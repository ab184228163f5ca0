//! Three trits in five bits, 1.67 bits a trit: an index into a table of fourteen sums, and a sign.
//!
//! A block is 96 columns in five lines. Columns come in units of twelve, and unit `u` of a block has four triples: triple `t` is
//! columns `t`, `4 + t` and `8 + t` of the unit, with trits `a`, `b`, `c`. Byte `16t + r` belongs to triple `t` of row `r`: in
//! line `u / 2` its low nibble (its high one for odd `u`) is the index, the magnitude of `9a + 3b + c`; in the last line its
//! bit `u` is the sign. Thus sixteen rows look a triple up with one `vpshufb`, and 64 triples with one `vpermi2b`.

use super::base3::SPREAD;
use super::{Layout, TILE};

/// Columns of a block.
pub(crate) const COLUMNS: usize = 96;

/// Bytes of a block.
pub(crate) const BLOCK: usize = 320;

/// Columns of a unit.
pub(crate) const UNIT: usize = 12;

/// Units of a block.
pub(crate) const UNITS: usize = COLUMNS / UNIT;

/// Where the signs of a block begin.
pub(crate) const SIGNS: usize = BLOCK - 64;

/// Sixteen rows by 96 columns in 320 bytes.
pub(crate) static TL2: Layout =
    Layout { name: "tl2", columns: COLUMNS, bytes: BLOCK, packing: None, pack, code };

/// The codes of a triple by its index and, as bit 4, its sign: those of `a`, `b` and `c`. Indices 14 and 15 do not occur.
pub(crate) const TRIPLES: [[u8; 3]; 32] = {
    let mut triples = [[1; 3]; 32];
    let mut i = 0;
    while i < 32 {
        let index = i % 16;
        if index < 14 {
            // All codes one less are the digits of 13 more.
            let n = if i < 16 { 13 + index } else { 13 - index };
            triples[i as usize] = [n / 9, n / 3 % 3, n % 3];
        }
        i += 1;
    }
    triples
};

fn pack(rows: &[&[u8]], _cols: usize, tile: &mut [u8]) {
    const ZERO_TRITS: u8 = 0x55;
    tile.fill(0);
    for (r, codes) in rows.iter().enumerate() {
        let byte = |i: usize| SPREAD[usize::from(codes.get(i).copied().unwrap_or(ZERO_TRITS))];
        for (k, block) in tile.as_chunks_mut::<BLOCK>().0.iter_mut().enumerate() {
            for u in 0..UNITS {
                // A canonical byte is the same trit of four triples; no sum exceeds 26.
                let first = (COLUMNS * k + UNIT * u) / 4;
                let sums = 9 * byte(first) + 3 * byte(first + 1) + byte(first + 2);
                for (t, sum) in sums.to_le_bytes().into_iter().enumerate() {
                    block[64 * (u / 2) + 16 * t + r] |= sum.abs_diff(13) << (4 * (u % 2));
                    block[SIGNS + 16 * t + r] |= u8::from(sum < 13) << u;
                }
            }
        }
    }
}

/// Triple `t` of a unit and row of a block, as an index of [`TRIPLES`].
pub(crate) fn triple(block: &[u8; BLOCK], row: usize, u: usize, t: usize) -> usize {
    let at = TILE * t + row;
    let index = (block[64 * (u / 2) + at] >> (4 * (u % 2))) & 15;
    let sign = (block[SIGNS + at] >> u) & 1;
    usize::from(sign << 4 | index)
}

fn code(tile: &[u8], row: usize, col: usize) -> u8 {
    let (block, u, c) = (col / COLUMNS, col % COLUMNS / UNIT, col % UNIT);
    TRIPLES[triple(&tile.as_chunks::<BLOCK>().0[block], row, u, c % 4)][c / 4]
}
