//! Plain Rust.

use crate::layout::{Block, TILE};

pub(super) fn gemv(blocks: &[Block], width: usize, q: &[i8], out: &mut [[i32; TILE]]) {
    for (tile, out) in blocks.chunks_exact(width).zip(out) {
        *out = [0; TILE];
        for (block, q) in tile.iter().zip(q.as_chunks::<TILE>().0) {
            for (sum, word) in out.iter_mut().zip(&block.0) {
                for (c, q) in q.iter().enumerate() {
                    let code = (word >> (8 * (c % 4) + 2 * (c / 4))) & 3;
                    *sum += code as i32 * i32::from(*q);
                }
            }
        }
    }
}

pub(super) fn gemm(blocks: &[Block], width: usize, q: &[i8], stride: usize, out: &mut [[i32; TILE]]) {
    let m = q.len() / stride;
    for (tile, out) in blocks.chunks_exact(width).zip(out.chunks_exact_mut(m)) {
        for (q, out) in q.chunks_exact(stride).zip(out.chunks_exact_mut(1)) {
            gemv(tile, width, q, out);
        }
    }
}
