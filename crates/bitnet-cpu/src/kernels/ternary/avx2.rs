//! AVX2: unsigned codes times signed activations by `vpmaddubsw`.
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
pub(super) const STEPS: usize = 64;
/// Tokens of the register tile: sixteen rows of them fill eight of the sixteen registers.
pub(super) const TOKENS: usize = 4;

/// Half `half` of a line.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn load(line: &[u8; 64], half: usize) -> __m256i {
    // SAFETY: a line is 64 bytes and `half` is made 0 or 1, so 32 bytes lie there; `loadu` accepts any alignment.
    unsafe { _mm256_loadu_si256(line.as_ptr().cast::<__m256i>().add(half & 1)) }
}

#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn broadcast(x: &[i8; 4]) -> __m256i {
    _mm256_set1_epi32(i32::from_le_bytes(x.map(|x| x as u8)))
}

/// Adds the pairs of 16-bit sums to 32-bit sums.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn widen(narrow: __m256i, sum: __m256i) -> __m256i {
    _mm256_add_epi32(sum, _mm256_madd_epi16(narrow, _mm256_set1_epi16(1)))
}

#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn store(sum: [__m256i; 2], out: &mut [i32; TILE]) {
    // SAFETY: `out` is 64 writable bytes.
    unsafe {
        _mm256_storeu_si256(out.as_mut_ptr().cast(), sum[0]);
        _mm256_storeu_si256(out.as_mut_ptr().cast::<__m256i>().add(1), sum[1]);
    }
}

/// The four fields of half a block.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn fields(block: &[u8; BLOCK], half: usize) -> [__m256i; 4] {
    let (packed, mask) = (load(block, half), _mm256_set1_epi8(3));
    [
        _mm256_and_si256(packed, mask),
        _mm256_and_si256(_mm256_srli_epi16::<2>(packed), mask),
        _mm256_and_si256(_mm256_srli_epi16::<4>(packed), mask),
        _mm256_and_si256(_mm256_srli_epi16::<6>(packed), mask),
    ]
}

#[target_feature(enable = "avx2")]
fn gemv_tile(tile: &[u8], x: &[i8], out: &mut [i32; TILE]) {
    let mut sum = [_mm256_setzero_si256(); 2];
    let blocks = tile.as_chunks::<BLOCK>().0.chunks(STEPS / 4);
    for (blocks, x) in blocks.zip(x.as_chunks::<COLUMNS>().0.chunks(STEPS / 4)) {
        let mut narrow = [_mm256_setzero_si256(); 2];
        for (block, x) in blocks.iter().zip(x) {
            prefetch(block);
            let x = x.as_chunks::<4>().0;
            for (half, narrow) in narrow.iter_mut().enumerate() {
                for (codes, x) in fields(block, half).into_iter().zip(x) {
                    let pairs = _mm256_maddubs_epi16(codes, broadcast(x));
                    *narrow = _mm256_add_epi16(*narrow, pairs);
                }
            }
        }
        sum = [widen(narrow[0], sum[0]), widen(narrow[1], sum[1])];
    }
    store(sum, out);
}

#[target_feature(enable = "avx2")]
pub(super) fn unpack_tile(tiles: &[u8], panel: &mut [Line]) {
    for (block, lines) in tiles.as_chunks::<BLOCK>().0.iter().zip(panel.as_chunks_mut::<4>().0) {
        let (low, high) = (fields(block, 0), fields(block, 1));
        for ((low, high), line) in low.into_iter().zip(high).zip(lines) {
            // SAFETY: a line is 64 bytes, aligned to 64.
            unsafe {
                _mm256_store_si256(line.0.as_mut_ptr().cast(), low);
                _mm256_store_si256(line.0.as_mut_ptr().cast::<__m256i>().add(1), high);
            }
        }
    }
}

#[target_feature(enable = "avx2")]
fn register_tile<const T: usize>(panel: &[Line], x: &[i8], out: &mut [[i32; TILE]; T]) {
    let mut sum = [[_mm256_setzero_si256(); 2]; T];
    let x = x.as_chunks::<4>().0.as_chunks::<T>().0;
    for (lines, x) in panel.chunks(STEPS).zip(x.chunks(STEPS)) {
        let mut narrow = [[_mm256_setzero_si256(); 2]; T];
        for (line, x) in lines.iter().zip(x) {
            let codes = [load(&line.0, 0), load(&line.0, 1)];
            for t in 0..T {
                let x = broadcast(&x[t]);
                for half in 0..2 {
                    let pairs = _mm256_maddubs_epi16(codes[half], x);
                    narrow[t][half] = _mm256_add_epi16(narrow[t][half], pairs);
                }
            }
        }
        for t in 0..T {
            sum[t] = [widen(narrow[t][0], sum[t][0]), widen(narrow[t][1], sum[t][1])];
        }
    }
    for (sum, out) in sum.into_iter().zip(out) {
        store(sum, out);
    }
}

#[target_feature(enable = "avx2")]
fn tokens(panel: &[Line], x: &[i8], out: &mut [[i32; TILE]]) {
    fn exact<const T: usize>(out: &mut [[i32; TILE]]) -> &mut [[i32; TILE]; T] {
        out.try_into().expect("the length was matched")
    }
    match out.len() {
        1 => register_tile::<1>(panel, x, exact(out)),
        2 => register_tile::<2>(panel, x, exact(out)),
        3 => register_tile::<3>(panel, x, exact(out)),
        4 => register_tile::<4>(panel, x, exact(out)),
        n => unreachable!("{n} tokens"),
    }
}

pub(super) fn gemv(tiles: &[u8], tile_bytes: usize, x: &[i8], out: &mut [[i32; TILE]]) {
    assert!(Isa::Avx2.is_available());
    for (tile, out) in tiles.chunks_exact(tile_bytes).zip(out) {
        // SAFETY: the assertion has seen AVX2.
        unsafe { gemv_tile(tile, x, out) };
    }
}

pub(super) fn unpack(tiles: &[u8], _tile_bytes: usize, panel: &mut [Line]) {
    assert!(Isa::Avx2.is_available());
    // SAFETY: the assertion has seen AVX2.
    unsafe { unpack_tile(tiles, panel) };
}

fn multiply(panel: &[Line], x: &[i8], out: &mut [[i32; TILE]], _tokens: usize) {
    assert!(Isa::Avx2.is_available());
    // SAFETY: the assertion has seen AVX2.
    unsafe { tokens(panel, x, out) };
}
