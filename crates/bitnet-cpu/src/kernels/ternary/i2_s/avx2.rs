//! AVX2: four rows at a time, so that activations are loaded once for them.
//!
//! A block adds four pairs of products to a 16-bit lane, as many as four steps of [`avx2`](super::super::avx2) do; so sixteen
//! blocks make -32768 to 32512 at most, and then sums are widened.

use super::super::avx2::{STEPS, unpack_tile, widen};
use super::super::avx512::prefetch;
use super::{TILE2_BLOCKS, to_tile2};
use crate::Isa;
use crate::layout::i2_s::{BLOCK, COLUMNS};
use crate::layout::{Line, TILE, bytes};
use std::arch::x86_64::*;

/// Rows side by side.
const ROWS: usize = 4;
/// Blocks whose sums 16 bits hold.
const STEP: usize = STEPS / 4;

#[inline]
#[target_feature(enable = "avx2")]
fn load<T>(bytes: &[T; BLOCK]) -> __m256i {
    const { assert!(size_of::<T>() == 1) };
    // SAFETY: `bytes` is 32 readable bytes; `loadu` accepts any alignment.
    unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
}

/// Adds the products of one row's block.
#[inline]
#[target_feature(enable = "avx2")]
fn add(block: &[u8; BLOCK], x: &[__m256i; 4], sum: __m256i) -> __m256i {
    let (packed, mask) = (load(block), _mm256_set1_epi8(3));
    let codes = [
        _mm256_and_si256(_mm256_srli_epi16::<6>(packed), mask),
        _mm256_and_si256(_mm256_srli_epi16::<4>(packed), mask),
        _mm256_and_si256(_mm256_srli_epi16::<2>(packed), mask),
        _mm256_and_si256(packed, mask),
    ];
    let mut sum = sum;
    for (codes, x) in codes.into_iter().zip(x) {
        sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(codes, *x));
    }
    sum
}

/// Four rows of blocks.
#[target_feature(enable = "avx2")]
fn gemv_rows(rows: [&[[u8; BLOCK]]; ROWS], x: &[[i8; COLUMNS]], out: &mut [i32; ROWS]) {
    let mut sum = [_mm256_setzero_si256(); ROWS];
    let [a, b, c, d] = rows.map(|row| row.chunks(STEP));
    for ((((a, b), c), d), x) in a.zip(b).zip(c).zip(d).zip(x.chunks(STEP)) {
        let mut narrow = [_mm256_setzero_si256(); ROWS];
        for ((((a, b), c), d), x) in a.iter().zip(b).zip(c).zip(d).zip(x) {
            let mut fields = [_mm256_setzero_si256(); 4];
            for (field, x) in fields.iter_mut().zip(x.as_chunks::<BLOCK>().0) {
                *field = load(x);
            }
            for (block, narrow) in [a, b, c, d].into_iter().zip(&mut narrow) {
                prefetch(block);
                *narrow = add(block, &fields, *narrow);
            }
        }
        for (narrow, sum) in narrow.into_iter().zip(&mut sum) {
            *sum = widen(narrow, *sum);
        }
    }
    let [a, b, c, d] = sum;
    let sum = _mm256_hadd_epi32(_mm256_hadd_epi32(a, b), _mm256_hadd_epi32(c, d));
    let sum = _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256::<1>(sum));
    // SAFETY: `out` is sixteen writable bytes.
    unsafe { _mm_storeu_si128(out.as_mut_ptr().cast(), sum) };
}

/// The panel of [`avx2`](super::super::avx2).
#[target_feature(enable = "avx2")]
fn unpack_blocks(tile: &[u8], panel: &mut [Line]) {
    let mut room = [Line([0; 64]); TILE2_BLOCKS];
    for (block, lines) in panel.chunks_exact_mut(4 * TILE2_BLOCKS).enumerate() {
        to_tile2(tile, block, &mut room);
        unpack_tile(bytes(&room), lines);
    }
}

pub(in super::super) fn gemv(tiles: &[u8], tile_bytes: usize, x: &[i8], out: &mut [[i32; TILE]]) {
    assert!(Isa::Avx2.is_available());
    let row_bytes = tile_bytes / TILE;
    for (tile, out) in tiles.chunks_exact(tile_bytes).zip(out) {
        for (four, out) in tile.chunks_exact(row_bytes * ROWS).zip(out.as_chunks_mut::<ROWS>().0) {
            let rows = [0, 1, 2, 3].map(|r| four[r * row_bytes..][..row_bytes].as_chunks().0);
            // SAFETY: the assertion has seen AVX2.
            unsafe { gemv_rows(rows, x.as_chunks().0, out) };
        }
    }
}

pub(in super::super) fn unpack(tiles: &[u8], _tile_bytes: usize, panel: &mut [Line]) {
    assert!(Isa::Avx2.is_available());
    // SAFETY: the assertion has seen AVX2.
    unsafe { unpack_blocks(tiles, panel) };
}
