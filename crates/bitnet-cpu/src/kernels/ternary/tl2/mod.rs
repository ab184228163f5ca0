//! Products by table lookup: every three activations become a table of their fourteen sums with signs that do not begin with a
//! minus, and one instruction finds what sixteen rows make of them, but for the sign.
//!
//! What is looked up are sums of trits times activations, so the sum of the activations is added to each row: codes are one
//! more than trits.

/// Repeats a block for the units of a block of weights, each time with the unit's number as a constant.
#[cfg(target_arch = "x86_64")]
macro_rules! for_each_unit {
    ($u:ident, $body:block) => {
        for_each_unit!(@ $u, $body, 0 1 2 3 4 5 6 7)
    };
    (@ $u:ident, $body:block, $($number:literal)*) => {
        $({
            let $u: usize = $number;
            $body
        })*
    };
}

#[cfg(target_arch = "x86_64")]
pub(super) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(super) mod avx512;

use super::total;
use crate::layout::tl2::{BLOCK, COLUMNS, TRIPLES, UNIT, triple};
use crate::layout::{Line, TILE};

/// The trits of each index, those of indices that do not occur being zero; `[trits of a triple][indices]`.
#[cfg(target_arch = "x86_64")]
const TRITS: [[i16; 16]; 3] = {
    let mut trits = [[0; 16]; 3];
    let mut i = 0;
    while i < 48 {
        trits[i / 16][i % 16] = TRIPLES[i % 16][i / 16] as i16 - 1;
        i += 1;
    }
    trits
};

/// Columns of a tile, those of padding included.
fn columns(tile_bytes: usize) -> usize {
    tile_bytes / BLOCK * COLUMNS
}

pub(super) fn gemv(tiles: &[u8], tile_bytes: usize, x: &[i8], out: &mut [[i32; TILE]]) {
    let zero = total(&x[..columns(tile_bytes)]);
    for (tile, out) in tiles.chunks_exact(tile_bytes).zip(out) {
        *out = [zero; TILE];
        for (block, x) in tile.as_chunks::<BLOCK>().0.iter().zip(x.as_chunks::<COLUMNS>().0) {
            for (u, x) in x.as_chunks::<UNIT>().0.iter().enumerate() {
                for (row, sum) in out.iter_mut().enumerate() {
                    for t in 0..4 {
                        let codes = TRIPLES[triple(block, row, u, t)];
                        for (i, code) in codes.into_iter().enumerate() {
                            *sum += (i32::from(code) - 1) * i32::from(x[4 * i + t]);
                        }
                    }
                }
            }
        }
    }
}

/// The panel of [`scalar`](super::scalar): one line for every four columns.
pub(super) fn unpack(tiles: &[u8], _tile_bytes: usize, panel: &mut [Line]) {
    for (block, lines) in tiles.as_chunks::<BLOCK>().0.iter().zip(panel.chunks_exact_mut(COLUMNS / 4)) {
        for (u, lines) in lines.chunks_exact_mut(UNIT / 4).enumerate() {
            let code = |at: usize, i: usize| TRIPLES[triple(block, at / 4, u, at % 4)][i];
            for (i, line) in lines.iter_mut().enumerate() {
                *line = Line(std::array::from_fn(|at| code(at, i)));
            }
        }
    }
}
