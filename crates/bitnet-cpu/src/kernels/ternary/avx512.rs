//! AVX-512 VNNI: unsigned codes times signed activations, four products a lane, by `vpdpbusd`.
//!
//! A lane adds at most 4 * 2 * 128 a step; 32 bits hold that for two million columns.

use super::table::Gemm;
use crate::Isa;
use crate::layout::tile2::{BLOCK, COLUMNS};
use crate::layout::{Line, TILE};
use std::arch::x86_64::*;

/// The product of several tokens.
pub(super) const GEMM: Gemm = Gemm { tiles: 2, tokens: TOKENS, columns: 4, unpack, multiply };

/// How far ahead of the product memory is asked for. Measured: one core streams two to three times as fast with it.
const PREFETCH_BLOCKS: usize = 128;
/// Tokens of the register tile: with two tiles of rows it fills 24 of the 32 registers.
pub(super) const TOKENS: usize = 12;

/// The four fields of a block: field `f` holds columns `4f..4f + 4` of sixteen rows.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn fields(block: &[u8; BLOCK]) -> [__m512i; 4] {
    let mask = _mm512_set1_epi8(3);
    // SAFETY: a block is 64 bytes; `loadu` accepts any alignment.
    let packed = unsafe { _mm512_loadu_si512(block.as_ptr().cast()) };
    [
        _mm512_and_si512(packed, mask),
        _mm512_and_si512(_mm512_srli_epi16::<2>(packed), mask),
        _mm512_and_si512(_mm512_srli_epi16::<4>(packed), mask),
        _mm512_and_si512(_mm512_srli_epi16::<6>(packed), mask),
    ]
}

#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn broadcast(x: &[i8; 4]) -> __m512i {
    _mm512_set1_epi32(i32::from_le_bytes(x.map(|x| x as u8)))
}

#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn store(x: __m512i, out: &mut [i32; TILE]) {
    // SAFETY: `out` is 64 writable bytes.
    unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), x) };
}

/// Asks for what comes behind a block; an address outside the weights does nothing.
#[inline(always)]
pub(super) fn prefetch<const N: usize>(block: &[u8; N]) {
    // SAFETY: SSE is part of the architecture, and a prefetch reads nothing.
    unsafe { _mm_prefetch::<_MM_HINT_T1>(block.as_ptr().wrapping_add(PREFETCH_BLOCKS * BLOCK).cast()) };
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn gemv_tiles(tiles: &[u8], tile_bytes: usize, x: &[i8], out: &mut [[i32; TILE]]) {
    for (tile, out) in tiles.chunks_exact(tile_bytes).zip(out) {
        let mut sum = [_mm512_setzero_si512(); 4];
        for (block, x) in tile.as_chunks::<BLOCK>().0.iter().zip(x.as_chunks::<COLUMNS>().0) {
            prefetch(block);
            for ((sum, codes), x) in sum.iter_mut().zip(fields(block)).zip(x.as_chunks::<4>().0) {
                *sum = _mm512_dpbusd_epi32(*sum, codes, broadcast(x));
            }
        }
        let [a, b, c, d] = sum;
        store(_mm512_add_epi32(_mm512_add_epi32(a, b), _mm512_add_epi32(c, d)), out);
    }
}

/// For every four columns one line of each tile.
#[target_feature(enable = "avx512f,avx512bw")]
fn unpack_tiles(tiles: &[u8], tile_bytes: usize, panel: &mut [Line]) {
    let count = tiles.len() / tile_bytes;
    for (i, tile) in tiles.chunks_exact(tile_bytes).enumerate() {
        for (block, lines) in tile.as_chunks::<BLOCK>().0.iter().zip(panel.chunks_exact_mut(4 * count)) {
            for (codes, line) in fields(block).into_iter().zip(lines[i..].iter_mut().step_by(count)) {
                // SAFETY: a line is 64 writable bytes, aligned to 64.
                unsafe { _mm512_store_si512(line.0.as_mut_ptr().cast(), codes) };
            }
        }
    }
}

/// `TILES` tiles of unpacked rows times `T` tokens; sums go to `out[tile * T + token]`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn register_tile<const TILES: usize, const T: usize>(panel: &[Line], x: &[i8], out: &mut [[i32; TILE]]) {
    let mut sum = [[_mm512_setzero_si512(); T]; TILES];
    for (lines, x) in panel.as_chunks::<TILES>().0.iter().zip(x.as_chunks::<4>().0.as_chunks::<T>().0) {
        // SAFETY: a line is 64 bytes, aligned to 64.
        let codes = lines.each_ref().map(|line| unsafe { _mm512_load_si512(line.0.as_ptr().cast()) });
        for t in 0..T {
            let x = broadcast(&x[t]);
            for i in 0..TILES {
                sum[i][t] = _mm512_dpbusd_epi32(sum[i][t], codes[i], x);
            }
        }
    }
    for (sum, out) in sum.iter().zip(out.as_chunks_mut::<T>().0) {
        for (sum, out) in sum.iter().zip(out) {
            store(*sum, out);
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn tokens<const TILES: usize>(panel: &[Line], x: &[i8], out: &mut [[i32; TILE]], tokens: usize) {
    macro_rules! match_tokens {
        ($($t:literal)*) => {
            match tokens {
                $($t => register_tile::<TILES, $t>(panel, x, out),)*
                n => unreachable!("{n} tokens"),
            }
        };
    }
    match_tokens!(1 2 3 4 5 6 7 8 9 10 11 12);
}

pub(super) fn gemv(tiles: &[u8], tile_bytes: usize, x: &[i8], out: &mut [[i32; TILE]]) {
    assert!(Isa::Avx512.is_available());
    // SAFETY: the assertion has seen the instruction set.
    unsafe { gemv_tiles(tiles, tile_bytes, x, out) };
}

pub(super) fn unpack(tiles: &[u8], tile_bytes: usize, panel: &mut [Line]) {
    assert!(Isa::Avx512Bw.is_available());
    // SAFETY: the assertion has seen the instruction set.
    unsafe { unpack_tiles(tiles, tile_bytes, panel) };
}

fn multiply(panel: &[Line], x: &[i8], out: &mut [[i32; TILE]], count: usize) {
    assert!(Isa::Avx512.is_available());
    // SAFETY: the assertion has seen the instruction set.
    unsafe {
        match out.len() / count {
            2 => tokens::<2>(panel, x, out, count),
            _ => tokens::<1>(panel, x, out, count),
        }
    }
}
