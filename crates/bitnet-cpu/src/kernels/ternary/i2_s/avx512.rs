//! AVX-512 VNNI: 256 columns of four rows at a time.
//!
//! Fields stay where they are in their bytes and are summed up multiplied by 64, 16, 4 and 1, so a lane adds at most
//! 4 * 128 * 128 a step; 32 bits hold that for eight million columns.

use super::super::amx;
use super::super::avx512::{prefetch, unpack as unpack_tile2};
use super::{TILE2_BLOCKS, to_tile2};
use crate::Isa;
use crate::layout::i2_s::{BLOCK, COLUMNS};
use crate::layout::{Line, TILE, bytes};
use std::arch::x86_64::*;

/// Rows side by side.
const ROWS: usize = 4;
/// Two blocks.
const PAIR: usize = 2 * BLOCK;

/// Field `f` of the activations of two blocks.
#[inline]
#[target_feature(enable = "avx512f")]
fn field(x: &[i8; 2 * COLUMNS], f: usize) -> __m512i {
    let parts = x.as_chunks::<BLOCK>().0;
    // SAFETY: a part is 32 readable bytes; `loadu` accepts any alignment.
    let [low, high] = [f, 4 + f].map(|i| unsafe { _mm256_loadu_si256(parts[i].as_ptr().cast()) });
    _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), high)
}

/// Adds the products of two blocks of a row.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn add(packed: __m512i, x: [__m512i; 4], sum: &mut [__m512i; 4]) {
    for (f, mask) in [-64, 48, 12, 3].into_iter().enumerate() {
        sum[f] = _mm512_dpbusd_epi32(sum[f], _mm512_and_si512(packed, _mm512_set1_epi8(mask)), x[f]);
    }
}

/// Four rows: pairs of blocks, and the block that may be left over.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn gemv_rows(rows: [&[u8]; ROWS], x: &[i8], out: &mut [i32; ROWS]) {
    let mut sum = [[_mm512_setzero_si512(); 4]; ROWS];
    let [(a, last), (b, last_b), (c, last_c), (d, last_d)] = rows.map(|row| row.as_chunks::<PAIR>());
    let columns = x.as_chunks::<{ 2 * COLUMNS }>().0;
    for ((((a, b), c), d), x) in a.iter().zip(b).zip(c).zip(d).zip(columns) {
        let x = [field(x, 0), field(x, 1), field(x, 2), field(x, 3)];
        for (pair, sum) in [a, b, c, d].into_iter().zip(&mut sum) {
            prefetch(pair);
            // SAFETY: a pair is 64 readable bytes; `loadu` accepts any alignment.
            add(unsafe { _mm512_loadu_si512(pair.as_ptr().cast()) }, x, sum);
        }
    }
    if !last.is_empty() {
        let mut padded = [0; 2 * COLUMNS];
        padded[..COLUMNS].copy_from_slice(&x[a.len() * 2 * COLUMNS..][..COLUMNS]);
        let x = [field(&padded, 0), field(&padded, 1), field(&padded, 2), field(&padded, 3)];
        for (block, sum) in [last, last_b, last_c, last_d].into_iter().zip(&mut sum) {
            let mut pair = [0; PAIR];
            pair[..BLOCK].copy_from_slice(block);
            // SAFETY: a pair is 64 readable bytes; `loadu` accepts any alignment.
            add(unsafe { _mm512_loadu_si512(pair.as_ptr().cast()) }, x, sum);
        }
    }
    for ([a, b, c, d], out) in sum.into_iter().zip(out) {
        // Each sum is a multiple of what it was multiplied by.
        let high = _mm512_add_epi32(_mm512_srai_epi32::<6>(a), _mm512_srai_epi32::<4>(b));
        let low = _mm512_add_epi32(_mm512_srai_epi32::<2>(c), d);
        *out = _mm512_reduce_add_epi32(_mm512_add_epi32(high, low));
    }
}

/// The panel of [`avx512`](super::super::avx512) for two tiles at most.
#[target_feature(enable = "avx512f,avx512bw")]
fn unpack_blocks(tiles: &[u8], tile_bytes: usize, panel: &mut [Line]) {
    let count = tiles.len() / tile_bytes;
    let mut room = [[Line([0; 64]); TILE2_BLOCKS]; 2];
    for (block, lines) in panel.chunks_exact_mut(count * COLUMNS / 4).enumerate() {
        for (tile, room) in tiles.chunks_exact(tile_bytes).zip(&mut room) {
            to_tile2(tile, block, room);
        }
        let room = room[..count].as_flattened();
        unpack_tile2(bytes(room), size_of_val(room) / count, lines);
    }
}

pub(in super::super) fn gemv(tiles: &[u8], tile_bytes: usize, x: &[i8], out: &mut [[i32; TILE]]) {
    assert!(Isa::Avx512.is_available());
    let row_bytes = tile_bytes / TILE;
    for (tile, out) in tiles.chunks_exact(tile_bytes).zip(out) {
        for (four, out) in tile.chunks_exact(row_bytes * ROWS).zip(out.as_chunks_mut::<ROWS>().0) {
            let rows = [0, 1, 2, 3].map(|r| &four[r * row_bytes..][..row_bytes]);
            // SAFETY: the assertion has seen the instruction set.
            unsafe { gemv_rows(rows, x, out) };
        }
    }
}

/// The panel of [`amx`].
pub(in super::super) fn unpack_amx(tiles: &[u8], tile_bytes: usize, panel: &mut [Line]) {
    let tile_lines = tile_bytes / (TILE * BLOCK) * COLUMNS / 4;
    amx::unpack_pairs(tiles, tile_bytes, panel, tile_lines, unpack);
}

pub(in super::super) fn unpack(tiles: &[u8], tile_bytes: usize, panel: &mut [Line]) {
    assert!(Isa::Avx512Bw.is_available());
    // SAFETY: the assertion has seen the instruction set.
    unsafe { unpack_blocks(tiles, tile_bytes, panel) };
}
