//! AVX-512 VBMI: `vpermi2b` looks 64 numbers below 81 up at once.
//!
//! In the product of one token fields stay where they are in their bytes and are summed up multiplied by 1, 4, 16 and 64, the
//! fifth digit by 81: what that saves is a shift a field.

use super::super::amx;
use super::super::avx512::{broadcast, store};
use crate::Isa;
use crate::layout::base3::{BLOCK, COLUMNS, FIELDS, FIFTH};
use crate::layout::{Line, TILE};
use std::arch::x86_64::*;

/// How far ahead of the product memory is asked for.
const PREFETCH_BLOCKS: usize = 128;

/// Blocks whose sums 32 bits hold: each adds at most 4 * 2 * 81 * 128 to a lane, the most of all being the fifth digit's.
const STEP: usize = 1 << 14;

/// What multiples of 81 are multiplied with to divide them: `81 * FIFTH_INVERSE = 1` modulo 2^32.
const FIFTH_INVERSE: i32 = {
    let fifth = FIFTH as i32;
    // Newton's steps: each doubles the bits that are right, of which an odd number has three to begin with.
    let mut inverse = fifth;
    let mut bits = 3;
    while bits < 32 {
        inverse = inverse.wrapping_mul(2i32.wrapping_sub(fifth.wrapping_mul(inverse)));
        bits *= 2;
    }
    assert!(fifth.wrapping_mul(inverse) == 1);
    inverse
};

/// [`FIELDS`] in two registers.
#[inline]
#[target_feature(enable = "avx512f")]
fn table() -> [__m512i; 2] {
    const PADDED: [u8; 128] = {
        let mut padded = [0; 128];
        let mut i = 0;
        while i < FIELDS.len() {
            padded[i] = FIELDS[i];
            i += 1;
        }
        padded
    };
    let halves = PADDED.as_chunks::<64>().0;
    // SAFETY: a half is 64 bytes; `loadu` accepts any alignment.
    [0, 1].map(|i: usize| unsafe { _mm512_loadu_si512(halves[i].as_ptr().cast()) })
}

/// The four low digits of every byte as fields of two bits, and 81 times the fifth.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
fn split(block: &[u8; BLOCK], table: [__m512i; 2]) -> (__m512i, __m512i) {
    let fifth = _mm512_set1_epi8(FIFTH as i8);
    // SAFETY: a block is 64 bytes; `loadu` accepts any alignment.
    let bytes = unsafe { _mm512_loadu_si512(block.as_ptr().cast()) };
    // A difference below zero wraps to a large number.
    let low = _mm512_min_epu8(bytes, _mm512_sub_epi8(bytes, fifth));
    let low = _mm512_min_epu8(low, _mm512_sub_epi8(low, fifth));
    (_mm512_permutex2var_epi8(table[0], low, table[1]), _mm512_sub_epi8(bytes, low))
}

#[target_feature(enable = "avx512f,avx512bw,avx512vbmi,avx512vnni")]
fn gemv_tiles(tiles: &[u8], tile_bytes: usize, x: &[i8], out: &mut [[i32; TILE]]) {
    let (table, masks) = (table(), [3, 12, 48, -64].map(|mask| _mm512_set1_epi8(mask)));
    for (tile, out) in tiles.chunks_exact(tile_bytes).zip(out) {
        let mut total = _mm512_setzero_si512();
        let blocks = tile.as_chunks::<BLOCK>().0.chunks(STEP);
        for (blocks, x) in blocks.zip(x.as_chunks::<COLUMNS>().0.chunks(STEP)) {
            let mut sum = [_mm512_setzero_si512(); 5];
            for (block, x) in blocks.iter().zip(x) {
                // A prefetch of an address outside the weights does nothing.
                _mm_prefetch::<_MM_HINT_T1>(std::ptr::from_ref(block).wrapping_add(PREFETCH_BLOCKS).cast());
                let x = x.as_chunks::<4>().0;
                let (fields, fifth) = split(block, table);
                for f in 0..4 {
                    let codes = _mm512_and_si512(fields, masks[f]);
                    sum[f] = _mm512_dpbusd_epi32(sum[f], codes, broadcast(&x[f]));
                }
                sum[4] = _mm512_dpbusd_epi32(sum[4], fifth, broadcast(&x[4]));
            }
            let [a, b, c, d, e] = sum;
            let low = _mm512_add_epi32(a, _mm512_srai_epi32::<2>(b));
            let high = _mm512_add_epi32(_mm512_srai_epi32::<4>(c), _mm512_srai_epi32::<6>(d));
            let fifth = _mm512_mullo_epi32(e, _mm512_set1_epi32(FIFTH_INVERSE));
            total = _mm512_add_epi32(total, _mm512_add_epi32(fifth, _mm512_add_epi32(low, high)));
        }
        store(total, out);
    }
}

/// The panel of [`avx512`](super::super::avx512): for every four columns one line of each tile.
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
fn unpack_tiles(tiles: &[u8], tile_bytes: usize, panel: &mut [Line]) {
    let (table, mask) = (table(), _mm512_set1_epi8(3));
    let count = tiles.len() / tile_bytes;
    for (i, tile) in tiles.chunks_exact(tile_bytes).enumerate() {
        for (block, lines) in tile.as_chunks::<BLOCK>().0.iter().zip(panel.chunks_exact_mut(5 * count)) {
            // The next panel arrives while this one is multiplied.
            let ahead = std::ptr::from_ref(block).cast::<u8>().wrapping_add(amx::TILES * tile_bytes);
            _mm_prefetch::<_MM_HINT_T1>(ahead.cast());
            let (fields, fifth) = split(block, table);
            let one = _mm512_min_epu8(fifth, _mm512_set1_epi8(1));
            let two = _mm512_and_si512(_mm512_srli_epi16::<7>(fifth), _mm512_set1_epi8(1));
            let codes = [
                _mm512_and_si512(fields, mask),
                _mm512_and_si512(_mm512_srli_epi16::<2>(fields), mask),
                _mm512_and_si512(_mm512_srli_epi16::<4>(fields), mask),
                _mm512_and_si512(_mm512_srli_epi16::<6>(fields), mask),
                // 0, 81 or 162, which has the highest bit.
                _mm512_add_epi8(one, two),
            ];
            for (codes, line) in codes.into_iter().zip(lines[i..].iter_mut().step_by(count)) {
                // SAFETY: a line is 64 writable bytes, aligned to 64.
                unsafe { _mm512_store_si512(line.0.as_mut_ptr().cast(), codes) };
            }
        }
    }
}

pub(in super::super) fn gemv(tiles: &[u8], tile_bytes: usize, x: &[i8], out: &mut [[i32; TILE]]) {
    assert!(Isa::Avx512Vbmi.is_available());
    // SAFETY: the assertion has seen the instruction set.
    unsafe { gemv_tiles(tiles, tile_bytes, x, out) };
}

/// The panel of [`amx`].
pub(in super::super) fn unpack_amx(tiles: &[u8], tile_bytes: usize, panel: &mut [Line]) {
    amx::unpack_pairs(tiles, tile_bytes, panel, tile_bytes / BLOCK * 5, unpack);
}

pub(in super::super) fn unpack(tiles: &[u8], tile_bytes: usize, panel: &mut [Line]) {
    assert!(Isa::Avx512Vbmi.is_available());
    // SAFETY: the assertion has seen the instruction set.
    unsafe { unpack_tiles(tiles, tile_bytes, panel) };
}
