//! Products by table lookup: every two activations become a table of what the sixteen possible pairs of codes give, and one
//! instruction finds sixteen rows' products in it.

#[cfg(target_arch = "x86_64")]
pub(super) mod avx2;
#[cfg(target_arch = "aarch64")]
pub(super) mod neon;

use crate::layout::tl1::COLUMNS;
use crate::layout::{Line, TILE};

/// The four codes of a byte, which are those of four neighbouring columns.
fn codes(byte: u8) -> [u8; COLUMNS] {
    [byte & 3, (byte >> 2) & 3, (byte >> 4) & 3, byte >> 6]
}

pub(super) fn gemv(tiles: &[u8], tile_bytes: usize, x: &[i8], out: &mut [[i32; TILE]]) {
    for (tile, out) in tiles.chunks_exact(tile_bytes).zip(out) {
        *out = [0; TILE];
        for (rows, x) in tile.as_chunks::<TILE>().0.iter().zip(x.as_chunks::<COLUMNS>().0) {
            for (sum, byte) in out.iter_mut().zip(rows) {
                *sum += codes(*byte).iter().zip(x).map(|(c, x)| i32::from(*c) * i32::from(*x)).sum::<i32>();
            }
        }
    }
}

/// The panel of [`scalar`](super::scalar): one line for every four columns.
pub(super) fn unpack(tiles: &[u8], _tile_bytes: usize, panel: &mut [Line]) {
    for (rows, line) in tiles.as_chunks::<TILE>().0.iter().zip(panel) {
        line.0.as_chunks_mut::<COLUMNS>().0.copy_from_slice(&rows.map(codes));
    }
}
