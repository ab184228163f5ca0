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
fn unpack(tiles: &[u8], _tile_bytes: usize, panel: &mut Vec<Line>) {
    panel.clear();
    unpack_blocks(tiles, panel);
}

/// Appends the lines of whole blocks.
pub(super) fn unpack_blocks(blocks: &[u8], panel: &mut Vec<Line>) {
    for block in blocks.as_chunks::<BLOCK>().0 {
        panel.extend((0..4).map(|field| Line(block.map(|codes| (codes >> (2 * field)) & 3))));
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
