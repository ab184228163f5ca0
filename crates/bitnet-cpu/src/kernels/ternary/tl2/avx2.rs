//! AVX2: `vpshufb` looks two triples up for sixteen rows, one in either half of a register.
//!
//! A number is negated by flipping all bits of its two bytes and adding one; how many ones is counted. Numbers are from -384 to
//! 384, so high bytes are from -2 to 1, flipped or not: sums of 64 fit as [`tl1`](super::super::tl1::avx2) says.

use super::super::tl1::avx2::{AHEAD, LOOKUPS, Sums, Table, interleave, numbers, prefetch};
use super::super::total;
use super::{TRITS, columns};
use crate::Isa;
use crate::layout::tl2::{BLOCK, COLUMNS, SIGNS, TRIPLES, UNIT, UNITS};
use crate::layout::{Line, TILE};
use std::arch::x86_64::*;

/// Blocks of a step: each of their units is two lookups.
const STEP: usize = LOOKUPS / UNITS / 2;

/// Half `half` of line `line` of a block: two triples of sixteen rows.
#[inline]
#[target_feature(enable = "avx2")]
fn load(block: &[u8; BLOCK], line: usize, half: usize) -> __m256i {
    let half = &block.as_chunks::<32>().0[2 * line + half];
    // SAFETY: `half` is 32 readable bytes; `loadu` accepts any alignment.
    unsafe { _mm256_loadu_si256(half.as_ptr().cast()) }
}

/// The indices of unit `u`, of what [`load`] gave of its line.
#[inline]
#[target_feature(enable = "avx2")]
fn indices(codes: __m256i, u: usize) -> __m256i {
    let codes = if u.is_multiple_of(2) { codes } else { _mm256_srli_epi16::<4>(codes) };
    _mm256_and_si256(codes, _mm256_set1_epi8(15))
}

/// All ones where the sign of unit `u` is a minus.
#[inline]
#[target_feature(enable = "avx2")]
fn negative(signs: __m256i, u: usize) -> __m256i {
    let bit = _mm256_set1_epi8((1u8 << u) as i8);
    _mm256_cmpeq_epi8(_mm256_and_si256(signs, bit), bit)
}

/// The sums of three activations that indices stand for.
#[inline]
#[target_feature(enable = "avx2")]
fn sums(x: [i8; 3]) -> __m256i {
    let [a, b, c] = x.map(|x| _mm256_set1_epi16(x.into()));
    let [a, b, c] = [(&TRITS[0], a), (&TRITS[1], b), (&TRITS[2], c)]
        .map(|(trits, x)| _mm256_mullo_epi16(numbers(trits), x));
    _mm256_add_epi16(_mm256_add_epi16(a, b), c)
}

/// Two tables for every unit.
#[target_feature(enable = "avx2")]
fn fill(x: &[i8], tables: &mut [Table; LOOKUPS]) {
    for (x, tables) in x.as_chunks::<UNIT>().0.iter().zip(tables.as_chunks_mut::<2>().0) {
        for (half, table) in tables.iter_mut().enumerate() {
            let [a, b] = [2 * half, 2 * half + 1].map(|t| sums([x[t], x[4 + t], x[8 + t]]));
            *table = Table::new([a, b]);
        }
    }
}

/// Adds the products of a step's columns of one tile, and asks for the same columns of the tile `ahead` bytes away.
#[inline]
#[target_feature(enable = "avx2")]
fn add(blocks: &[[u8; BLOCK]], ahead: usize, tables: &[Table; LOOKUPS], out: &mut [i32; TILE]) {
    let (mut sum, mut negatives) = (Sums::new(), _mm256_setzero_si256());
    for (block, tables) in blocks.iter().zip(tables.as_chunks::<{ 2 * UNITS }>().0) {
        block.as_chunks::<64>().0.iter().for_each(|line| prefetch(line, ahead));
        for half in 0..2 {
            let signs = load(block, SIGNS / 64, half);
            for_each_unit!(u, {
                let index = indices(load(block, u / 2, half), u);
                let negative = negative(signs, u);
                let table = &tables[2 * u + half];
                let low = _mm256_xor_si256(_mm256_shuffle_epi8(table.low, index), negative);
                let high = _mm256_xor_si256(_mm256_shuffle_epi8(table.high, index), negative);
                sum.add(low, high);
                negatives = _mm256_sub_epi8(negatives, negative);
            });
        }
    }
    // One for each, of 64 at most.
    sum.add(negatives, _mm256_setzero_si256());
    sum.widen(out);
}

#[target_feature(enable = "avx2")]
fn gemv_tiles(tiles: &[u8], tile_bytes: usize, x: &[i8], out: &mut [[i32; TILE]]) {
    let x = &x[..columns(tile_bytes)];
    out.fill([total(x); TILE]);
    let mut tables = [Table::zero(); LOOKUPS];
    // A step's tables serve all tiles while they are in the first-level cache.
    for (step, x) in x.chunks(STEP * COLUMNS).enumerate() {
        fill(x, &mut tables);
        for (tile, out) in tiles.chunks_exact(tile_bytes).zip(&mut *out) {
            let blocks = tile.as_chunks::<BLOCK>().0;
            add(&blocks[step * STEP..][..x.len() / COLUMNS], AHEAD * tile_bytes, &tables, out);
        }
    }
}

/// The panel of [`avx2`](super::super::avx2): one line for every four columns.
#[target_feature(enable = "avx2")]
fn unpack_blocks(tiles: &[u8], panel: &mut [Line]) {
    const CODES: [[i8; 16]; 3] = {
        let mut codes = [[0; 16]; 3];
        let mut i = 0;
        while i < 48 {
            codes[i / 16][i % 16] = TRIPLES[i % 16][i / 16] as i8;
            i += 1;
        }
        codes
    };
    let mut panel = panel.iter_mut();
    for block in tiles.as_chunks::<BLOCK>().0 {
        let signs = [load(block, SIGNS / 64, 0), load(block, SIGNS / 64, 1)];
        for u in 0..UNITS {
            let index = [0, 1].map(|half| indices(load(block, u / 2, half), u));
            let negative = [0, 1].map(|half| negative(signs[half], u));
            for (codes, line) in CODES.iter().zip(&mut panel) {
                // SAFETY: `codes` is sixteen readable bytes.
                let codes = _mm256_broadcastsi128_si256(unsafe { _mm_loadu_si128(codes.as_ptr().cast()) });
                let halves = [0, 1].map(|half| {
                    let codes = _mm256_shuffle_epi8(codes, index[half]);
                    // The code of the other sign is two less this one.
                    let other = _mm256_sub_epi8(_mm256_set1_epi8(2), codes);
                    _mm256_blendv_epi8(codes, other, negative[half])
                });
                *line = interleave([
                    _mm256_castsi256_si128(halves[0]),
                    _mm256_extracti128_si256::<1>(halves[0]),
                    _mm256_castsi256_si128(halves[1]),
                    _mm256_extracti128_si256::<1>(halves[1]),
                ]);
            }
        }
    }
}

pub(in super::super) fn gemv(tiles: &[u8], tile_bytes: usize, x: &[i8], out: &mut [[i32; TILE]]) {
    assert!(Isa::Avx2.is_available());
    // SAFETY: the assertion has seen AVX2.
    unsafe { gemv_tiles(tiles, tile_bytes, x, out) };
}

pub(in super::super) fn unpack(tiles: &[u8], _tile_bytes: usize, panel: &mut [Line]) {
    assert!(Isa::Avx2.is_available());
    // SAFETY: the assertion has seen AVX2.
    unsafe { unpack_blocks(tiles, panel) };
}
