//! SSSE3 and SSE4.1, 128 bits wide: unsigned codes times signed activations by `pmaddubsw`.
//!
//! A pair of products is at most 2 * 2 * 128 = 512 in magnitude, so a 16-bit lane holds 64 of them: 32768 below zero and
//! 64 * 508 = 32512 above. Sums are widened then.

use super::avx512::prefetch;
use super::table::Gemm;
use crate::Isa;
use crate::layout::tile2::{BLOCK, COLUMNS};
use crate::layout::{Line, TILE};
use std::arch::x86_64::*;

/// The product of several tokens.
pub(super) const GEMM: Gemm = Gemm { tiles: 1, tokens: TOKENS, columns: 4, unpack, multiply };

/// Products of four columns whose 16-bit sums cannot overflow.
const STEPS: usize = 64;
/// Tokens of the register tile: sixteen rows of them fill eight of the sixteen registers.
const TOKENS: usize = 2;

/// Quarter `i` of a line.
#[inline]
#[target_feature(enable = "sse4.1")]
fn load(line: &[u8; 64], i: usize) -> __m128i {
    // SAFETY: a quarter of a line is 16 bytes; `loadu` accepts any alignment.
    unsafe { _mm_loadu_si128(line.as_chunks::<16>().0[i].as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "sse4.1")]
fn broadcast(x: &[i8; 4]) -> __m128i {
    _mm_set1_epi32(i32::from_le_bytes(x.map(|x| x as u8)))
}

/// Adds the pairs of 16-bit sums to 32-bit sums.
#[inline]
#[target_feature(enable = "sse4.1")]
fn widen(narrow: __m128i, sum: __m128i) -> __m128i {
    _mm_add_epi32(sum, _mm_madd_epi16(narrow, _mm_set1_epi16(1)))
}

#[inline]
#[target_feature(enable = "sse4.1")]
fn store(sum: [__m128i; 4], out: &mut [i32; TILE]) {
    for (sum, out) in sum.into_iter().zip(out.as_chunks_mut::<4>().0) {
        // SAFETY: `out` is 16 writable bytes.
        unsafe { _mm_storeu_si128(out.as_mut_ptr().cast(), sum) };
    }
}

/// The four fields of a quarter of a block.
#[inline]
#[target_feature(enable = "sse4.1")]
fn fields(packed: __m128i) -> [__m128i; 4] {
    let mask = _mm_set1_epi8(3);
    [
        _mm_and_si128(packed, mask),
        _mm_and_si128(_mm_srli_epi16::<2>(packed), mask),
        _mm_and_si128(_mm_srli_epi16::<4>(packed), mask),
        _mm_and_si128(_mm_srli_epi16::<6>(packed), mask),
    ]
}

#[target_feature(enable = "ssse3,sse4.1")]
fn gemv_tile(tile: &[u8], x: &[i8], out: &mut [i32; TILE]) {
    let mut sum = [_mm_setzero_si128(); 4];
    let blocks = tile.as_chunks::<BLOCK>().0.chunks(STEPS / 4);
    for (blocks, x) in blocks.zip(x.as_chunks::<COLUMNS>().0.chunks(STEPS / 4)) {
        let mut narrow = [_mm_setzero_si128(); 4];
        for (block, x) in blocks.iter().zip(x) {
            prefetch(block);
            let x = x.as_chunks::<4>().0;
            let x = [broadcast(&x[0]), broadcast(&x[1]), broadcast(&x[2]), broadcast(&x[3])];
            for (quarter, narrow) in narrow.iter_mut().enumerate() {
                for (codes, x) in fields(load(block, quarter)).into_iter().zip(x) {
                    *narrow = _mm_add_epi16(*narrow, _mm_maddubs_epi16(codes, x));
                }
            }
        }
        for (sum, narrow) in sum.iter_mut().zip(narrow) {
            *sum = widen(narrow, *sum);
        }
    }
    store(sum, out);
}

#[inline]
#[target_feature(enable = "ssse3,sse4.1")]
fn register_tile<const T: usize>(panel: &[Line], x: &[i8], out: &mut [[i32; TILE]]) {
    // `[quarters][tokens]`
    let mut sum = [[_mm_setzero_si128(); T]; 4];
    let x = x.as_chunks::<4>().0.as_chunks::<T>().0;
    for (lines, x) in panel.chunks(STEPS).zip(x.chunks(STEPS)) {
        let mut narrow = [[_mm_setzero_si128(); T]; 4];
        for (line, x) in lines.iter().zip(x) {
            let x = x.each_ref().map(|x| broadcast(x));
            for (quarter, narrow) in narrow.iter_mut().enumerate() {
                let codes = load(&line.0, quarter);
                for (narrow, x) in narrow.iter_mut().zip(x) {
                    *narrow = _mm_add_epi16(*narrow, _mm_maddubs_epi16(codes, x));
                }
            }
        }
        for (sum, narrow) in sum.as_flattened_mut().iter_mut().zip(narrow.as_flattened()) {
            *sum = widen(*narrow, *sum);
        }
    }
    for (t, out) in out.iter_mut().enumerate().take(T) {
        store(sum.map(|quarter| quarter[t]), out);
    }
}

#[target_feature(enable = "sse4.1")]
fn unpack_tile(tiles: &[u8], panel: &mut [Line]) {
    for (block, lines) in tiles.as_chunks::<BLOCK>().0.iter().zip(panel.as_chunks_mut::<4>().0) {
        for quarter in 0..4 {
            for (codes, line) in fields(load(block, quarter)).into_iter().zip(&mut *lines) {
                // SAFETY: a quarter of a line is 16 writable bytes.
                unsafe {
                    _mm_storeu_si128(line.0.as_chunks_mut::<16>().0[quarter].as_mut_ptr().cast(), codes)
                };
            }
        }
    }
}

pub(super) fn gemv(tiles: &[u8], tile_bytes: usize, x: &[i8], out: &mut [[i32; TILE]]) {
    assert!(Isa::Sse.is_available());
    for (tile, out) in tiles.chunks_exact(tile_bytes).zip(out) {
        // SAFETY: the assertion has seen the instruction set.
        unsafe { gemv_tile(tile, x, out) };
    }
}

fn unpack(tiles: &[u8], _tile_bytes: usize, panel: &mut [Line]) {
    assert!(Isa::Sse.is_available());
    // SAFETY: the assertion has seen the instruction set.
    unsafe { unpack_tile(tiles, panel) };
}

fn multiply(panel: &[Line], x: &[i8], out: &mut [[i32; TILE]], tokens: usize) {
    assert!(Isa::Sse.is_available());
    // SAFETY: the assertion has seen the instruction set.
    unsafe {
        match tokens {
            2 => register_tile::<2>(panel, x, out),
            _ => register_tile::<1>(panel, x, out),
        }
    }
}
