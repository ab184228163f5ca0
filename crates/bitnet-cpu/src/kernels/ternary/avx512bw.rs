//! AVX-512 without VNNI: unsigned codes times signed activations by `vpmaddubsw`, as in [`avx2`](super::avx2).
//!
//! A pair of products is at most 2 * 2 * 128 = 512 in magnitude, so a 16-bit lane holds 64 of them: 32768 below zero and
//! 64 * 508 = 32512 above. Sums are widened then.

use super::avx512::{self, broadcast, fields, prefetch, store};
use super::table::Gemm;
use crate::Isa;
use crate::layout::tile2::{BLOCK, COLUMNS};
use crate::layout::{Line, TILE};
use std::arch::x86_64::*;

/// The product of several tokens.
pub(super) const GEMM: Gemm = Gemm { tiles: 2, tokens: TOKENS, columns: 4, unpack: avx512::unpack, multiply };

/// Products of four columns whose 16-bit sums cannot overflow.
const STEPS: usize = 64;
/// Tokens of the register tile: with two tiles of rows it fills 16 of the 32 registers, and 16 are for what is added to them.
const TOKENS: usize = 8;

/// Adds the pairs of 16-bit sums to 32-bit sums.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn widen(narrow: __m512i, sum: __m512i) -> __m512i {
    _mm512_add_epi32(sum, _mm512_madd_epi16(narrow, _mm512_set1_epi16(1)))
}

#[target_feature(enable = "avx512f,avx512bw")]
fn gemv_tiles(tiles: &[u8], tile_bytes: usize, x: &[i8], out: &mut [[i32; TILE]]) {
    for (tile, out) in tiles.chunks_exact(tile_bytes).zip(out) {
        let mut sum = _mm512_setzero_si512();
        let blocks = tile.as_chunks::<BLOCK>().0.chunks(STEPS / 4);
        for (blocks, x) in blocks.zip(x.as_chunks::<COLUMNS>().0.chunks(STEPS / 4)) {
            let mut narrow = [_mm512_setzero_si512(); 2];
            for (block, x) in blocks.iter().zip(x) {
                prefetch(block);
                for (i, (codes, x)) in fields(block).into_iter().zip(x.as_chunks::<4>().0).enumerate() {
                    let pairs = _mm512_maddubs_epi16(codes, broadcast(x));
                    narrow[i % 2] = _mm512_add_epi16(narrow[i % 2], pairs);
                }
            }
            // Each of the two holds half of the products.
            sum = widen(_mm512_add_epi16(narrow[0], narrow[1]), sum);
        }
        store(sum, out);
    }
}

/// `TILES` tiles of unpacked rows times `T` tokens; sums go to `out[tile * T + token]`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn register_tile<const TILES: usize, const T: usize>(panel: &[Line], x: &[i8], out: &mut [[i32; TILE]]) {
    let mut sum = [[_mm512_setzero_si512(); T]; TILES];
    let (panel, x) = (panel.as_chunks::<TILES>().0, x.as_chunks::<4>().0.as_chunks::<T>().0);
    for (panel, x) in panel.chunks(STEPS).zip(x.chunks(STEPS)) {
        let mut narrow = [[_mm512_setzero_si512(); T]; TILES];
        for (lines, x) in panel.iter().zip(x) {
            // SAFETY: a line is 64 bytes, aligned to 64.
            let codes = lines.each_ref().map(|line| unsafe { _mm512_load_si512(line.0.as_ptr().cast()) });
            for t in 0..T {
                let x = broadcast(&x[t]);
                for i in 0..TILES {
                    narrow[i][t] = _mm512_add_epi16(narrow[i][t], _mm512_maddubs_epi16(codes[i], x));
                }
            }
        }
        for (sum, narrow) in sum.as_flattened_mut().iter_mut().zip(narrow.as_flattened()) {
            *sum = widen(*narrow, *sum);
        }
    }
    for (sum, out) in sum.as_flattened().iter().zip(out) {
        store(*sum, out);
    }
}

#[target_feature(enable = "avx512f,avx512bw")]
fn tokens<const TILES: usize>(panel: &[Line], x: &[i8], out: &mut [[i32; TILE]], tokens: usize) {
    macro_rules! match_tokens {
        ($($t:literal)*) => {
            match tokens {
                $($t => register_tile::<TILES, $t>(panel, x, out),)*
                n => unreachable!("{n} tokens"),
            }
        };
    }
    match_tokens!(1 2 3 4 5 6 7 8);
}

pub(super) fn gemv(tiles: &[u8], tile_bytes: usize, x: &[i8], out: &mut [[i32; TILE]]) {
    assert!(Isa::Avx512Bw.is_available());
    // SAFETY: the assertion has seen the instruction set.
    unsafe { gemv_tiles(tiles, tile_bytes, x, out) };
}

fn multiply(panel: &[Line], x: &[i8], out: &mut [[i32; TILE]], count: usize) {
    assert!(Isa::Avx512Bw.is_available());
    // SAFETY: the assertion has seen the instruction set.
    unsafe {
        match out.len() / count {
            2 => tokens::<2>(panel, x, out, count),
            _ => tokens::<1>(panel, x, out, count),
        }
    }
}
