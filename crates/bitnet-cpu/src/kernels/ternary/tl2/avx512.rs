//! AVX-512 VBMI: `vpermi2b` looks 64 triples up at once, signs included: four tables of fourteen sums and their negatives.
//!
//! Sums are split into low and high bytes as [`tl1`](super::super::tl1::avx2) has them, with the same bounds: of numbers from
//! -384 to 384, 64 are added before they are widened.

use super::super::tl1::avx2::{AHEAD, LOOKUPS, prefetch};
use super::super::{amx, total};
use super::{TRITS, columns};
use crate::Isa;
use crate::layout::tl2::{BLOCK, COLUMNS, SIGNS, TRIPLES, UNIT, UNITS};
use crate::layout::{Line, TILE};
use std::arch::x86_64::*;

/// Blocks of a step: each of their units is a lookup.
const STEP: usize = LOOKUPS / UNITS;

/// What the triples of a unit give: low bytes and high bytes of 32 numbers for each of the four.
#[derive(Clone, Copy)]
struct Table {
    low: [Line; 2],
    high: [Line; 2],
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load(line: &[u8; 64]) -> __m512i {
    // SAFETY: a line is 64 readable bytes; `loadu` accepts any alignment.
    unsafe { _mm512_loadu_si512(line.as_ptr().cast()) }
}

/// Indices of a unit in bits 0 to 3 of every byte and the signs in bit 4; the bits above are those of `above`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn indices(block: &[u8; BLOCK], signs: __m512i, u: usize, above: __m512i) -> __m512i {
    const A: i32 = 0xF0;
    const B: i32 = 0xCC;
    const C: i32 = 0xAA;
    let codes = load(&block.as_chunks::<64>().0[u / 2]);
    let codes = if u.is_multiple_of(2) { codes } else { _mm512_srli_epi16::<4>(codes) };
    let index = _mm512_ternarylogic_epi32::<{ A & B | C }>(codes, _mm512_set1_epi8(15), above);
    // Shifts of 16-bit words: what crosses into the other byte is masked away.
    let signs = match u {
        ..4 => _mm512_sll_epi16(signs, _mm_cvtsi32_si128(4 - u as i32)),
        _ => _mm512_srl_epi16(signs, _mm_cvtsi32_si128(u as i32 - 4)),
    };
    _mm512_ternarylogic_epi32::<{ A & B | C }>(signs, _mm512_set1_epi8(16), index)
}

/// `TRITS` of all indices and, with the other sign, once more.
const SIGNED_TRITS: [[i16; 32]; 3] = {
    let mut trits = [[0; 32]; 3];
    let mut i = 0;
    while i < 96 {
        let trit = TRITS[i / 32][i % 16];
        trits[i / 32][i % 32] = if i % 32 < 16 { trit } else { -trit };
        i += 1;
    }
    trits
};

/// A table for every unit.
#[target_feature(enable = "avx512f,avx512bw")]
fn fill(x: &[i8], tables: &mut [Table; LOOKUPS]) {
    for (x, table) in x.as_chunks::<UNIT>().0.iter().zip(tables) {
        let mut low = table.low.iter_mut().flat_map(|line| line.0.as_chunks_mut::<32>().0);
        let mut high = table.high.iter_mut().flat_map(|line| line.0.as_chunks_mut::<32>().0);
        for t in 0..4 {
            let mut sum = _mm512_setzero_si512();
            for (i, trits) in SIGNED_TRITS.iter().enumerate() {
                // SAFETY: `trits` is 64 readable bytes; `loadu` accepts any alignment.
                let trits = unsafe { _mm512_loadu_si512(trits.as_ptr().cast()) };
                let x = _mm512_set1_epi16(x[4 * i + t].into());
                sum = _mm512_add_epi16(sum, _mm512_mullo_epi16(trits, x));
            }
            let bytes = [_mm512_cvtepi16_epi8(sum), _mm512_cvtepi16_epi8(_mm512_srli_epi16::<8>(sum))];
            for (bytes, out) in bytes.into_iter().zip([low.next(), high.next()].into_iter().flatten()) {
                // SAFETY: `out` is 32 writable bytes.
                unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), bytes) };
            }
        }
    }
}

/// Which of four tables the sixteen bytes of a lane look into.
#[inline]
#[target_feature(enable = "avx512f")]
fn tables_of_lanes() -> __m512i {
    let [a, b, c, d] = [0, 0x2020_2020, 0x4040_4040, 0x6060_6060];
    _mm512_setr_epi32(a, a, a, a, b, b, b, b, c, c, c, c, d, d, d, d)
}

/// Adds the products of a step's columns of one tile, and asks for the same columns of the tile `ahead` bytes away.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
fn add(blocks: &[[u8; BLOCK]], ahead: usize, tables: &[Table; LOOKUPS], out: &mut [i32; TILE]) {
    let (zero, byte) = (_mm512_setzero_si512(), _mm512_set1_epi16(0xFF));
    let (mut even, mut odd, mut high) = (zero, zero, zero);
    let lanes = tables_of_lanes();
    for (block, tables) in blocks.iter().zip(tables.as_chunks::<UNITS>().0) {
        let lines = block.as_chunks::<64>().0;
        lines.iter().for_each(|line| prefetch(line, ahead));
        let signs = load(&lines[SIGNS / 64]);
        for_each_unit!(u, {
            let (table, index) = (&tables[u], indices(block, signs, u, lanes));
            let [low, high_bytes] = [&table.low, &table.high]
                .map(|table| _mm512_permutex2var_epi8(load(&table[0].0), index, load(&table[1].0)));
            even = _mm512_add_epi16(even, _mm512_and_si512(low, byte));
            odd = _mm512_add_epi16(odd, _mm512_srli_epi16::<8>(low));
            high = _mm512_add_epi8(high, high_bytes);
        });
    }
    let even = _mm512_add_epi16(even, _mm512_slli_epi16::<8>(high));
    let odd = _mm512_add_epi16(odd, _mm512_andnot_si512(byte, high));
    let rows = [_mm512_unpacklo_epi16(even, odd), _mm512_unpackhi_epi16(even, odd)];
    for (rows, out) in rows.into_iter().zip(out.as_chunks_mut::<8>().0) {
        // Four lanes of eight rows: two and two are added, then both.
        let two = _mm512_cvtepi16_epi32(_mm512_castsi512_si256(rows));
        let four = _mm512_add_epi32(two, _mm512_cvtepi16_epi32(_mm512_extracti64x4_epi64::<1>(rows)));
        let sum = _mm256_add_epi32(_mm512_castsi512_si256(four), _mm512_extracti64x4_epi64::<1>(four));
        // SAFETY: `out` is eight readable and writable numbers.
        unsafe {
            let before = _mm256_loadu_si256(out.as_ptr().cast());
            _mm256_storeu_si256(out.as_mut_ptr().cast(), _mm256_add_epi32(before, sum));
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
fn gemv_tiles(tiles: &[u8], tile_bytes: usize, x: &[i8], out: &mut [[i32; TILE]]) {
    let x = &x[..columns(tile_bytes)];
    out.fill([total(x); TILE]);
    let mut tables = [Table { low: [Line([0; 64]); 2], high: [Line([0; 64]); 2] }; LOOKUPS];
    // A step's tables serve all tiles while they are in the first-level cache.
    for (step, x) in x.chunks(STEP * COLUMNS).enumerate() {
        fill(x, &mut tables);
        for (tile, out) in tiles.chunks_exact(tile_bytes).zip(&mut *out) {
            let blocks = tile.as_chunks::<BLOCK>().0;
            add(&blocks[step * STEP..][..x.len() / COLUMNS], AHEAD * tile_bytes, &tables, out);
        }
    }
}

/// The panel of [`avx512`](super::super::avx512): for every four columns one line of each tile.
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
fn unpack_tiles(tiles: &[u8], tile_bytes: usize, panel: &mut [Line]) {
    /// The codes of every index and sign.
    const CODES: [[u8; 64]; 3] = {
        let mut codes = [[0; 64]; 3];
        let mut i = 0;
        while i < 96 {
            codes[i / 32][i % 32] = TRIPLES[i % 32][i / 32];
            i += 1;
        }
        codes
    };
    /// Where row `r`, triple `t` is, in the order of rows.
    const BY_ROW: [u8; 64] = {
        let mut order = [0; 64];
        let mut i = 0;
        while i < 64 {
            order[i] = (16 * (i % 4) + i / 4) as u8;
            i += 1;
        }
        order
    };
    let (codes, by_row) = ([load(&CODES[0]), load(&CODES[1]), load(&CODES[2])], load(&BY_ROW));
    let count = tiles.len() / tile_bytes;
    for (i, tile) in tiles.chunks_exact(tile_bytes).enumerate() {
        let panel = panel.chunks_exact_mut(COLUMNS / 4 * count);
        for (block, lines) in tile.as_chunks::<BLOCK>().0.iter().zip(panel) {
            let signs = load(&block.as_chunks::<64>().0[SIGNS / 64]);
            for (u, lines) in lines.chunks_exact_mut(UNIT / 4 * count).enumerate() {
                let index = indices(block, signs, u, _mm512_setzero_si512());
                let index = _mm512_permutexvar_epi8(by_row, index);
                for (codes, line) in codes.iter().zip(lines[i..].iter_mut().step_by(count)) {
                    let codes = _mm512_permutexvar_epi8(index, *codes);
                    // SAFETY: a line is 64 writable bytes, aligned to 64.
                    unsafe { _mm512_store_si512(line.0.as_mut_ptr().cast(), codes) };
                }
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
    amx::unpack_pairs(tiles, tile_bytes, panel, columns(tile_bytes) / 4, unpack);
}

pub(in super::super) fn unpack(tiles: &[u8], tile_bytes: usize, panel: &mut [Line]) {
    assert!(Isa::Avx512Vbmi.is_available());
    // SAFETY: the assertion has seen the instruction set.
    unsafe { unpack_tiles(tiles, tile_bytes, panel) };
}
