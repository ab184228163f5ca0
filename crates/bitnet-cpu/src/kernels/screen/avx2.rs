//! Scores on AVX2.

use super::query::{BLOCK, Query};
use super::streams::{BYTES, Row, side_by_side};
use crate::Isa;
use crate::layout::Line;
use std::arch::x86_64::*;

/// How far ahead of the scores of int8 codes memory is asked for.
const PREFETCH_BYTES: usize = 4096;

/// A number of one byte.
trait Byte {}
impl Byte for u8 {}
impl Byte for i8 {}

#[inline]
#[target_feature(enable = "avx2")]
fn load<T: Byte>(x: &[T; 32]) -> __m256i {
    // SAFETY: `x` is 32 readable bytes.
    unsafe { _mm256_loadu_si256(x.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn prefetch(bytes: *const u8) {
    // A prefetch of an address outside the weights does nothing.
    _mm_prefetch::<_MM_HINT_T1>(bytes.wrapping_add(PREFETCH_BYTES).cast());
}

#[inline]
#[target_feature(enable = "avx2")]
fn fold(x: __m256) -> f32 {
    let mut lanes = [0.0; 8];
    // SAFETY: `lanes` is 32 writable bytes.
    unsafe { _mm256_storeu_ps(lanes.as_mut_ptr(), x) };
    lanes.iter().sum()
}

/// For every 32 codes of a block, which byte of its scales goes into the upper byte of each word.
static LEVELS: [[u8; 32]; 8] = {
    let mut levels = [[0x80; 32]; 8];
    let mut i = 0;
    while i < 8 * 16 {
        let (part, word) = (i / 16, i % 16);
        levels[part][2 * word + 1] = (2 * part + word / 8) as u8;
        i += 1;
    }
    levels
};

/// Sum over one block of `code * scale * z`, in eight lanes.
#[inline]
#[target_feature(enable = "avx2")]
fn block(raw: &[u8; BYTES], z: &[[i8; 32]; 8], sums: &[i16; BLOCK / 16]) -> __m256i {
    let (nibble, pair) = (_mm256_set1_epi8(15), _mm256_set1_epi8(0x30));
    // SAFETY: `raw` has sixteen scales from byte 192 on.
    let levels = unsafe { _mm_loadu_si128(raw.as_ptr().add(192).cast()) };
    // SAFETY: `sums` is 32 readable bytes.
    let sums = unsafe { _mm256_loadu_si256(sums.as_ptr().cast()) };
    // Codes are 32 too large: what that makes is taken off for all sixteen that share a scale at once.
    let mut sum = _mm256_slli_epi32::<5>(_mm256_madd_epi16(_mm256_cvtepi8_epi16(levels), sums));
    let levels = _mm256_broadcastsi128_si256(levels);
    for half in 0..2 {
        let low = |i: usize| load(raw[64 * half + 32 * i..][..32].as_array().expect("32 bytes"));
        let high = load(raw[128 + 32 * half..][..32].as_array().expect("32 bytes"));
        // Shifts of 16-bit words: what crosses into the other byte is masked away.
        let codes = [
            _mm256_or_si256(
                _mm256_and_si256(low(0), nibble),
                _mm256_and_si256(_mm256_slli_epi16::<4>(high), pair),
            ),
            _mm256_or_si256(
                _mm256_and_si256(low(1), nibble),
                _mm256_and_si256(_mm256_slli_epi16::<2>(high), pair),
            ),
            _mm256_or_si256(
                _mm256_and_si256(_mm256_srli_epi16::<4>(low(0)), nibble),
                _mm256_and_si256(high, pair),
            ),
            _mm256_or_si256(
                _mm256_and_si256(_mm256_srli_epi16::<4>(low(1)), nibble),
                _mm256_and_si256(_mm256_srli_epi16::<2>(high), pair),
            ),
        ];
        for (i, codes) in codes.into_iter().enumerate() {
            let part = 4 * half + i;
            // The scale of each lane's sixteen codes as the upper byte of all words, which a shift gives its sign.
            let level = _mm256_srai_epi16::<8>(_mm256_shuffle_epi8(levels, load(&LEVELS[part])));
            // Codes up to 63 make at most 63 * 127 * 2 in 16 bits; times a scale, sixteen make 2^14 * 2^7 * 16.
            let products = _mm256_maddubs_epi16(codes, load(&z[part]));
            sum = _mm256_add_epi32(sum, _mm256_madd_epi16(products, level));
        }
    }
    sum
}

/// Scores of rows side by side.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn q6_k_scores<const N: usize>(mut rows: [Row<'_>; N], query: Query<'_>) -> [f32; N] {
    let mut sum = [_mm256_setzero_ps(); N];
    let blocks = query.z.as_chunks::<BLOCK>().0.iter().zip(query.sums).zip(query.scales);
    for (b, ((z, sums), scale)) in blocks.enumerate() {
        let z = z.as_chunks::<32>().0.as_array().expect("eight times 32");
        for (row, sum) in rows.iter_mut().zip(&mut sum) {
            row.ask();
            let raw = &row.blocks[b];
            let integers = _mm256_cvtepi32_ps(block(raw, z, sums));
            let d = i32::from(u16::from_le_bytes([raw[208], raw[209]]));
            let d = _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(d))) * scale;
            *sum = _mm256_fmadd_ps(integers, _mm256_set1_ps(d), *sum);
        }
    }
    let mut scores = [0.0; N];
    for (score, sum) in scores.iter_mut().zip(sum) {
        *score = fold(sum);
    }
    scores
}

#[target_feature(enable = "avx2,fma,f16c")]
fn q6_k_rows(rows: &[u8], row_bytes: usize, query: Query<'_>, out: &mut [f32]) {
    side_by_side(rows, row_bytes, out, |rows| q6_k_scores(rows, query), |rows| q6_k_scores(rows, query));
}

#[target_feature(enable = "avx2,fma")]
fn int8_rows(rows: &[Line], width: usize, query: Query<'_>, out: &mut [f32]) {
    for (row, out) in rows.chunks_exact(width).zip(out) {
        let mut sum = _mm256_setzero_ps();
        let blocks = row.as_chunks::<4>().0.iter().zip(query.z.as_chunks::<BLOCK>().0);
        for ((codes, z), scale) in blocks.zip(query.scales) {
            let mut integers = _mm256_setzero_si256();
            for (line, z) in codes.iter().zip(z.as_chunks::<64>().0) {
                prefetch(line.0.as_ptr());
                for (codes, z) in line.0.as_chunks::<32>().0.iter().zip(z.as_chunks::<32>().0) {
                    // Signed again, and widened: products of bytes with a sign fit 16 bits only one by one.
                    let codes = _mm256_xor_si256(load(codes), _mm256_set1_epi8(-128));
                    let z = load(z);
                    let (magnitude, z) = (_mm256_abs_epi8(codes), _mm256_sign_epi8(z, codes));
                    // |code| <= 127 and |z| <= 127: a pair makes at most 32,258.
                    let products = _mm256_maddubs_epi16(magnitude, z);
                    integers = _mm256_add_epi32(integers, _mm256_madd_epi16(products, _mm256_set1_epi16(1)));
                }
            }
            sum = _mm256_fmadd_ps(_mm256_cvtepi32_ps(integers), _mm256_set1_ps(*scale), sum);
        }
        *out = fold(sum);
    }
}

pub(super) fn q6_k(rows: &[u8], row_bytes: usize, query: Query<'_>, out: &mut [f32]) {
    assert!(Isa::Avx2.is_available());
    // SAFETY: the assertion has seen the instruction set.
    unsafe { q6_k_rows(rows, row_bytes, query, out) };
}

pub(super) fn int8(rows: &[Line], width: usize, query: Query<'_>, out: &mut [f32]) {
    assert!(Isa::Avx2.is_available());
    // SAFETY: the assertion has seen the instruction set.
    unsafe { int8_rows(rows, width, query, out) };
}
