//! AVX2: digits by comparing, one multiplication and `vpshufb`.

use super::super::avx2::{STEPS, broadcast, load, store, widen};
use super::super::avx512::prefetch;
use crate::Isa;
use crate::layout::base3::{BLOCK, COLUMNS, FIFTH};
use crate::layout::{Line, TILE};
use std::arch::x86_64::*;

/// Blocks whose sums 16 bits hold.
const STEP: usize = STEPS / 5;

/// Numbers below nine, as their digits `/ 1` and `/ 3`.
const ONES: [i8; 16] = [0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 0, 0, 0, 0, 0, 0];
const THREES: [i8; 16] = [0, 0, 0, 1, 1, 1, 2, 2, 2, 0, 0, 0, 0, 0, 0, 0];

/// A table in both halves of a register.
#[inline]
#[target_feature(enable = "avx2")]
fn table(table: &[i8; 16]) -> __m256i {
    // SAFETY: a table is sixteen bytes; `loadu` accepts any alignment.
    _mm256_broadcastsi128_si256(unsafe { _mm_loadu_si128(table.as_ptr().cast()) })
}

/// The five digits of half a block.
#[inline]
#[target_feature(enable = "avx2")]
fn digits(block: &[u8; BLOCK], half: usize) -> [__m256i; 5] {
    let fifth = _mm256_set1_epi8(FIFTH as i8);
    let bytes = load(block, half);
    // A difference below zero wraps to a large number, and then the smaller one is what was there.
    let first = _mm256_min_epu8(bytes, _mm256_sub_epi8(bytes, fifth));
    let low = _mm256_min_epu8(first, _mm256_sub_epi8(first, fifth));
    let kept = _mm256_add_epi8(_mm256_cmpeq_epi8(bytes, first), _mm256_cmpeq_epi8(first, low));
    // Ninths: 57 / 512 is exact below 81. Products of single bytes, because those of words are taken apart by the compiler.
    let even = _mm256_srli_epi16::<9>(_mm256_maddubs_epi16(low, _mm256_set1_epi16(57)));
    let odd = _mm256_srli_epi16::<1>(_mm256_maddubs_epi16(low, _mm256_set1_epi16(57 << 8)));
    let high = _mm256_or_si256(even, _mm256_and_si256(odd, _mm256_set1_epi16(0xFF00u16 as i16)));
    let nine = _mm256_add_epi8(_mm256_slli_epi16::<3>(high), high);
    let rest = _mm256_sub_epi8(low, nine);
    let (ones, threes) = (table(&ONES), table(&THREES));
    [
        _mm256_shuffle_epi8(ones, rest),
        _mm256_shuffle_epi8(threes, rest),
        _mm256_shuffle_epi8(ones, high),
        _mm256_shuffle_epi8(threes, high),
        _mm256_add_epi8(_mm256_set1_epi8(2), kept),
    ]
}

#[target_feature(enable = "avx2")]
fn gemv_tile(tile: &[u8], x: &[i8], out: &mut [i32; TILE]) {
    let mut sum = [_mm256_setzero_si256(); 2];
    let blocks = tile.as_chunks::<BLOCK>().0.chunks(STEP);
    for (blocks, x) in blocks.zip(x.as_chunks::<COLUMNS>().0.chunks(STEP)) {
        let mut narrow = [_mm256_setzero_si256(); 2];
        for (block, x) in blocks.iter().zip(x) {
            prefetch(block);
            let x = x.as_chunks::<4>().0;
            for (half, narrow) in narrow.iter_mut().enumerate() {
                for (codes, x) in digits(block, half).into_iter().zip(x) {
                    *narrow = _mm256_add_epi16(*narrow, _mm256_maddubs_epi16(codes, broadcast(x)));
                }
            }
        }
        sum = [widen(narrow[0], sum[0]), widen(narrow[1], sum[1])];
    }
    store(sum, out);
}

/// The panel of [`avx2`](super::super::avx2): one line for every four columns.
#[target_feature(enable = "avx2")]
fn unpack_tile(tiles: &[u8], panel: &mut [Line]) {
    for (block, lines) in tiles.as_chunks::<BLOCK>().0.iter().zip(panel.as_chunks_mut::<5>().0) {
        for ((low, high), line) in digits(block, 0).into_iter().zip(digits(block, 1)).zip(lines) {
            // SAFETY: a line is 64 bytes, aligned to 64.
            unsafe {
                _mm256_store_si256(line.0.as_mut_ptr().cast(), low);
                _mm256_store_si256(line.0.as_mut_ptr().cast::<__m256i>().add(1), high);
            }
        }
    }
}

pub(in super::super) fn gemv(tiles: &[u8], tile_bytes: usize, x: &[i8], out: &mut [[i32; TILE]]) {
    assert!(Isa::Avx2.is_available());
    for (tile, out) in tiles.chunks_exact(tile_bytes).zip(out) {
        // SAFETY: the assertion has seen AVX2.
        unsafe { gemv_tile(tile, x, out) };
    }
}

pub(in super::super) fn unpack(tiles: &[u8], _tile_bytes: usize, panel: &mut [Line]) {
    assert!(Isa::Avx2.is_available());
    // SAFETY: the assertion has seen AVX2.
    unsafe { unpack_tile(tiles, panel) };
}
