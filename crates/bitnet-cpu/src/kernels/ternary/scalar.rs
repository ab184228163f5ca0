//! Plain Rust.

use super::table::Gemm;
use crate::layout::tile2::{BLOCK, COLUMNS};
use crate::layout::{Line, TILE};

/// The product of several tokens.
pub(super) const GEMM: Gemm = Gemm { tiles: 1, tokens: 1, columns: 4, unpack, multiply };

pub(super) fn gemv(tiles: &[u8], tile_bytes: usize, x: &[i8], out: &mut [[i32; TILE]]) {
    for (tile, out) in tiles.chunks_exact(tile_bytes).zip(out) {
        *out = [0; TILE];
        for (block, x) in tile.as_chunks::<BLOCK>().0.iter().zip(x.as_chunks::<COLUMNS>().0) {
            for (sum, word) in out.iter_mut().zip(block.as_chunks::<4>().0) {
                for (c, x) in x.iter().enumerate() {
                    *sum += i32::from((word[c % 4] >> (2 * (c / 4))) & 3) * i32::from(*x);
                }
            }
        }
    }
}

/// One line for every four columns: byte `4r + j` is the code of row `r`, column `j`.
fn unpack(tiles: &[u8], _tile_bytes: usize, panel: &mut [Line]) {
    unpack_blocks(tiles, panel);
}

/// The lines of whole blocks.
pub(super) fn unpack_blocks(blocks: &[u8], panel: &mut [Line]) {
    for (block, lines) in blocks.as_chunks::<BLOCK>().0.iter().zip(panel.as_chunks_mut::<4>().0) {
        *lines = [0, 2, 4, 6].map(|shift| Line(block.map(|codes| (codes >> shift) & 3)));
    }
}

fn multiply(panel: &[Line], x: &[i8], out: &mut [[i32; TILE]], _tokens: usize) {
    for out in out {
        *out = [0; TILE];
        for (line, x) in panel.iter().zip(x.as_chunks::<4>().0) {
            for (sum, codes) in out.iter_mut().zip(line.0.as_chunks::<4>().0) {
                for (code, x) in codes.iter().zip(x) {
                    *sum += i32::from(*code) * i32::from(*x);
                }
            }
        }
    }
}
