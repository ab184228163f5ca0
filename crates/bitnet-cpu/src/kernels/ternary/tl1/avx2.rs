//! AVX2: `vpshufb` looks two pairs of columns up for sixteen rows, one in either half of a register.
//!
//! A table holds 16-bit numbers as one vector of low bytes and one of high bytes. Here they are from -512 to 508. In sums of 64
//! low bytes make at most 64 * 255 in 16 bits, high bytes from -2 to 1 at least -128 in 8 bits, and both together -32768 to 32512,
//! which 16 bits hold. Then they are widened to 32.

use crate::Isa;
use crate::layout::tl1::COLUMNS;
use crate::layout::{Line, TILE};
use std::arch::x86_64::*;

/// Lookups whose sums [`Sums`] holds.
pub(in super::super) const LOOKUPS: usize = 64;
/// Tiles between what is multiplied and what is asked for: the columns of a step are some two kilobytes of each tile.
pub(in super::super) const AHEAD: usize = 2;
/// Columns of a step: every eight of them are two lookups.
const STEP: usize = LOOKUPS * COLUMNS;

/// What two groups of columns give, one in either half: low bytes and high bytes of sixteen numbers.
#[derive(Clone, Copy)]
pub(in super::super) struct Table {
    pub(in super::super) low: __m256i,
    pub(in super::super) high: __m256i,
}

impl Table {
    #[inline]
    #[target_feature(enable = "avx2")]
    pub(in super::super) fn zero() -> Self {
        Self { low: _mm256_setzero_si256(), high: _mm256_setzero_si256() }
    }

    /// From the sixteen numbers of either half.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub(in super::super) fn new(numbers: [__m256i; 2]) -> Self {
        let byte = _mm256_set1_epi16(0xFF);
        let [a, b] = numbers;
        let low = _mm256_packus_epi16(_mm256_and_si256(a, byte), _mm256_and_si256(b, byte));
        let high = _mm256_packs_epi16(_mm256_srai_epi16::<8>(a), _mm256_srai_epi16::<8>(b));
        // Packing goes by 128-bit lanes.
        Self { low: _mm256_permute4x64_epi64::<0xD8>(low), high: _mm256_permute4x64_epi64::<0xD8>(high) }
    }
}

/// Sums of looked up numbers: low bytes of even and of odd rows in 16 bits, high bytes in 8 bits. Either half of the registers
/// has sixteen rows.
pub(in super::super) struct Sums {
    even: __m256i,
    odd: __m256i,
    high: __m256i,
}

impl Sums {
    #[inline]
    #[target_feature(enable = "avx2")]
    pub(in super::super) fn new() -> Self {
        let zero = _mm256_setzero_si256();
        Self { even: zero, odd: zero, high: zero }
    }

    /// Adds low bytes and high bytes of sixteen rows in either half.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub(in super::super) fn add(&mut self, low: __m256i, high: __m256i) {
        self.even = _mm256_add_epi16(self.even, _mm256_and_si256(low, _mm256_set1_epi16(0xFF)));
        self.odd = _mm256_add_epi16(self.odd, _mm256_srli_epi16::<8>(low));
        self.high = _mm256_add_epi8(self.high, high);
    }

    /// Adds both halves to the sums of sixteen rows. Each half's own fit in 16 bits, whatever wraps on the way.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub(in super::super) fn widen(self, out: &mut [i32; TILE]) {
        let even = _mm256_add_epi16(self.even, _mm256_slli_epi16::<8>(self.high));
        let odd = _mm256_add_epi16(self.odd, _mm256_andnot_si256(_mm256_set1_epi16(0xFF), self.high));
        let rows = [_mm256_unpacklo_epi16(even, odd), _mm256_unpackhi_epi16(even, odd)];
        for (rows, out) in rows.into_iter().zip(out.as_chunks_mut::<8>().0) {
            let first = _mm256_cvtepi16_epi32(_mm256_castsi256_si128(rows));
            let second = _mm256_cvtepi16_epi32(_mm256_extracti128_si256::<1>(rows));
            // SAFETY: `out` is eight readable and writable numbers.
            unsafe {
                let before = _mm256_loadu_si256(out.as_ptr().cast());
                let sum = _mm256_add_epi32(before, _mm256_add_epi32(first, second));
                _mm256_storeu_si256(out.as_mut_ptr().cast(), sum);
            }
        }
    }
}

/// Asks for what lies `ahead` bytes away; an address outside the weights does nothing.
#[inline]
#[target_feature(enable = "sse")]
pub(in super::super) fn prefetch<const N: usize>(bytes: &[u8; N], ahead: usize) {
    _mm_prefetch::<_MM_HINT_T1>(bytes.as_ptr().wrapping_add(ahead).cast());
}

/// Sixteen numbers in a register.
#[inline]
#[target_feature(enable = "avx2")]
pub(in super::super) fn numbers(numbers: &[i16; 16]) -> __m256i {
    // SAFETY: `numbers` is 32 readable bytes; `loadu` accepts any alignment.
    unsafe { _mm256_loadu_si256(numbers.as_ptr().cast()) }
}

/// Two groups of columns of sixteen rows.
#[inline]
#[target_feature(enable = "avx2")]
fn load(bytes: &[u8; 2 * TILE]) -> __m256i {
    // SAFETY: `bytes` is 32 readable bytes; `loadu` accepts any alignment.
    unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
}

/// The products of two activations with every pair of codes, `code + 4 * code'`.
#[inline]
#[target_feature(enable = "avx2")]
fn pair(x: [i8; 2]) -> __m256i {
    const FIRST: [i16; 16] = [0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3];
    const SECOND: [i16; 16] = [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3];
    let [a, b] = x.map(|x| _mm256_set1_epi16(x.into()));
    let (a, b) = (_mm256_mullo_epi16(numbers(&FIRST), a), _mm256_mullo_epi16(numbers(&SECOND), b));
    _mm256_add_epi16(a, b)
}

/// Tables for every eight columns: of the pairs that low nibbles stand for, then of the others.
#[target_feature(enable = "avx2")]
fn fill(x: &[i8], tables: &mut [Table; LOOKUPS]) {
    for (x, tables) in x.as_chunks::<8>().0.iter().zip(tables.as_chunks_mut::<2>().0) {
        tables[0] = Table::new([pair([x[0], x[1]]), pair([x[4], x[5]])]);
        tables[1] = Table::new([pair([x[2], x[3]]), pair([x[6], x[7]])]);
    }
}

/// Adds the products of a step's columns of one tile, and asks for the same columns of the tile `ahead` bytes away.
#[inline]
#[target_feature(enable = "avx2")]
fn add(columns: &[[u8; 2 * TILE]], ahead: usize, tables: &[Table; LOOKUPS], out: &mut [i32; TILE]) {
    let (mut sums, nibble) = (Sums::new(), _mm256_set1_epi8(15));
    for (codes, tables) in columns.iter().zip(tables.as_chunks::<2>().0) {
        prefetch(codes, ahead);
        let codes = load(codes);
        let indices =
            [_mm256_and_si256(codes, nibble), _mm256_and_si256(_mm256_srli_epi16::<4>(codes), nibble)];
        for (index, table) in indices.into_iter().zip(tables) {
            sums.add(_mm256_shuffle_epi8(table.low, index), _mm256_shuffle_epi8(table.high, index));
        }
    }
    sums.widen(out);
}

#[target_feature(enable = "avx2")]
fn gemv_tiles(tiles: &[u8], tile_bytes: usize, x: &[i8], out: &mut [[i32; TILE]]) {
    out.fill([0; TILE]);
    let mut tables = [Table::zero(); LOOKUPS];
    // A step's tables serve all tiles while they are in the first-level cache.
    let columns = tile_bytes / TILE * COLUMNS;
    for (step, x) in x[..columns].chunks(STEP).enumerate() {
        fill(x, &mut tables);
        for (tile, out) in tiles.chunks_exact(tile_bytes).zip(&mut *out) {
            let columns = tile.as_chunks::<{ 2 * TILE }>().0;
            add(&columns[step * STEP / 8..][..x.len() / 8], AHEAD * tile_bytes, &tables, out);
        }
    }
}

/// Four columns of sixteen rows, row by row.
#[inline]
#[target_feature(enable = "avx2")]
pub(in super::super) fn interleave(columns: [__m128i; 4]) -> Line {
    let [a, b, c, d] = columns;
    let (ab, cd) = (_mm_unpacklo_epi8(a, b), _mm_unpacklo_epi8(c, d));
    let (ab_high, cd_high) = (_mm_unpackhi_epi8(a, b), _mm_unpackhi_epi8(c, d));
    let rows = [
        _mm_unpacklo_epi16(ab, cd),
        _mm_unpackhi_epi16(ab, cd),
        _mm_unpacklo_epi16(ab_high, cd_high),
        _mm_unpackhi_epi16(ab_high, cd_high),
    ];
    let mut line = Line([0; 64]);
    for (rows, out) in rows.into_iter().zip(line.0.as_chunks_mut::<16>().0) {
        // SAFETY: `out` is sixteen writable bytes.
        unsafe { _mm_storeu_si128(out.as_mut_ptr().cast(), rows) };
    }
    line
}

/// The panel of [`avx2`](super::super::avx2): one line for every four columns.
#[target_feature(enable = "avx2")]
fn unpack_columns(tiles: &[u8], panel: &mut [Line]) {
    let mask = _mm_set1_epi8(3);
    for (codes, line) in tiles.as_chunks::<TILE>().0.iter().zip(panel) {
        // SAFETY: `codes` is sixteen readable bytes.
        let codes = unsafe { _mm_loadu_si128(codes.as_ptr().cast()) };
        *line = interleave([
            _mm_and_si128(codes, mask),
            _mm_and_si128(_mm_srli_epi16::<2>(codes), mask),
            _mm_and_si128(_mm_srli_epi16::<4>(codes), mask),
            _mm_and_si128(_mm_srli_epi16::<6>(codes), mask),
        ]);
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
    unsafe { unpack_columns(tiles, panel) };
}
