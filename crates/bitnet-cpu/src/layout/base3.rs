//! Five trits a byte, 1.6 bits a trit.
//!
//! Columns come in blocks of twenty; a block of 320 codes is 64 bytes, and the blocks of a tile follow each other. Word `r` of a
//! block belongs to row `r` of the tile; its byte `j` is a number in base 3 whose digit `f` is the code of column `4f + j`. The
//! four low digits, looked up in [`FIELDS`], are thus a block of [`tile2`](super::tile2), and the fifth is four more columns.

use super::{Layout, TILE};

/// Columns of a block.
pub(crate) const COLUMNS: usize = 20;

/// Bytes of a block.
pub(crate) const BLOCK: usize = 64;

/// What the fifth digit is worth: the number of values of the four below it.
pub(crate) const FIFTH: u8 = 81;

/// Sixteen rows by twenty columns in 64 bytes.
pub(crate) static BASE3: Layout =
    Layout { name: "base3", columns: COLUMNS, bytes: BLOCK, packing: None, pack, code };

/// The four low digits of a number in base 3 as fields of two bits, the lowest first.
pub(crate) const FIELDS: [u8; FIFTH as usize] = {
    let mut fields = [0; FIFTH as usize];
    let mut n = 0;
    while n < FIFTH {
        let pairs = [n % 9, n / 9];
        fields[n as usize] =
            (pairs[0] % 3) | ((pairs[0] / 3) << 2) | ((pairs[1] % 3) << 4) | ((pairs[1] / 3) << 6);
        n += 1;
    }
    fields
};

/// The four codes of a canonical byte as the bytes of a word, in the same order.
pub(super) static SPREAD: [u32; 256] = {
    let mut spread = [0; 256];
    let mut n = 0;
    while n < 256 {
        let byte = n as u32;
        spread[n] = byte & 3 | (byte & 12) << 6 | (byte & 48) << 12 | (byte & 192) << 18;
        n += 1;
    }
    spread
};

fn pack(rows: &[&[u8]], _cols: usize, tile: &mut [u8]) {
    const ZERO_TRITS: u8 = 0x55;
    let blocks = tile.as_chunks_mut::<BLOCK>().0;
    for r in 0..TILE {
        let codes = rows.get(r).copied().unwrap_or_default();
        let (five, rest) = codes.as_chunks::<5>();
        let mut last = [ZERO_TRITS; 5];
        last[..rest.len()].copy_from_slice(rest);
        let five = five.iter().chain([&last]).chain(std::iter::repeat(&[ZERO_TRITS; 5]));
        for (block, codes) in blocks.iter_mut().zip(five) {
            // A canonical byte is the same digit of four neighbouring numbers, and no number exceeds 2 * 121.
            let numbers = codes.iter().rev().fold(0, |n, byte| 3 * n + SPREAD[usize::from(*byte)]);
            block.as_chunks_mut::<4>().0[r] = numbers.to_le_bytes();
        }
    }
}

fn code(tile: &[u8], row: usize, col: usize) -> u8 {
    let (block, c) = (col / COLUMNS, col % COLUMNS);
    tile[block * BLOCK + row * 4 + c % 4] / 3u8.pow(c as u32 / 4) % 3
}
