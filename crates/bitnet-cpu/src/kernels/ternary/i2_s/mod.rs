//! Products of weights in bitnet.cpp's `I2_S`, where files have them: nothing is repacked, and rows are summed up one by one.

#[cfg(target_arch = "x86_64")]
pub(super) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(super) mod avx512;

use super::scalar;
use crate::layout::i2_s::{BLOCK, COLUMNS};
use crate::layout::{Line, TILE, bytes};

/// Blocks of [`tile2`](crate::layout::tile2) that 128 columns are.
const TILE2_BLOCKS: usize = COLUMNS / crate::layout::tile2::COLUMNS;

/// Block `block` of sixteen rows as [`tile2`](crate::layout::tile2) has it, so that its unpacking serves here too.
#[inline(always)]
fn to_tile2(tile: &[u8], block: usize, out: &mut [Line; TILE2_BLOCKS]) {
    let row_bytes = tile.len() / TILE;
    // `[words of a row][rows]`: field `f` from above of word `w` has columns `32f + 4w..`.
    let mut words = [[0u32; TILE]; BLOCK / 4];
    for (r, row) in tile.chunks_exact(row_bytes).enumerate() {
        for (word, bytes) in words.iter_mut().zip(row.as_chunks::<BLOCK>().0[block].as_chunks::<4>().0) {
            word[r] = u32::from_le_bytes(*bytes);
        }
    }
    for (i, line) in out.iter_mut().enumerate() {
        for (r, out) in line.0.as_chunks_mut::<4>().0.iter_mut().enumerate() {
            let field = |f: usize| (words[4 * (i % 2) + f][r] >> (6 - 2 * (i / 2))) & 0x0303_0303;
            *out = (field(0) | field(1) << 2 | field(2) << 4 | field(3) << 6).to_le_bytes();
        }
    }
}

pub(super) fn gemv(tiles: &[u8], tile_bytes: usize, x: &[i8], out: &mut [[i32; TILE]]) {
    for (tile, out) in tiles.chunks_exact(tile_bytes).zip(out) {
        for (row, sum) in tile.chunks_exact(tile_bytes / TILE).zip(out) {
            *sum = 0;
            for (block, x) in row.as_chunks::<BLOCK>().0.iter().zip(x.as_chunks::<COLUMNS>().0) {
                for (j, byte) in block.iter().enumerate() {
                    for f in 0..4 {
                        *sum += i32::from((byte >> (6 - 2 * f)) & 3) * i32::from(x[BLOCK * f + j]);
                    }
                }
            }
        }
    }
}

/// The panel of [`scalar`].
pub(super) fn unpack(tiles: &[u8], _tile_bytes: usize, panel: &mut [Line]) {
    let mut room = [Line([0; 64]); TILE2_BLOCKS];
    for (block, lines) in panel.chunks_exact_mut(4 * TILE2_BLOCKS).enumerate() {
        to_tile2(tiles, block, &mut room);
        scalar::unpack_blocks(bytes(&room), lines);
    }
}
