//! Scores on AVX-512 VNNI.

use super::query::{BLOCK, Query};
use super::streams::{BYTES, Row, side_by_side};
use crate::Isa;
use crate::layout::Line;
use std::arch::x86_64::*;

/// How far ahead of the scores of int8 codes memory is asked for.
const PREFETCH_BYTES: usize = 4096;

#[inline]
#[target_feature(enable = "avx512f")]
fn load(bytes: &[u8; 64]) -> __m512i {
    // SAFETY: `bytes` is 64 readable bytes.
    unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load_i8(z: &[i8; 64]) -> __m512i {
    // SAFETY: `z` is 64 readable bytes.
    unsafe { _mm512_loadu_si512(z.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn prefetch(bytes: *const u8) {
    // A prefetch of an address outside the weights does nothing.
    _mm_prefetch::<_MM_HINT_T1>(bytes.wrapping_add(PREFETCH_BYTES).cast());
}

/// Sum over one block of `code * scale * z`, in sixteen lanes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni,avx2")]
fn block(raw: &[u8; BYTES], z: &[i8; BLOCK], sums: &[i16; BLOCK / 16]) -> __m512i {
    let (nibble, pair) = (_mm512_set1_epi8(15), _mm512_set1_epi8(0x30));
    let ups = _mm512_inserti64x4::<1>(_mm512_set1_epi16(4), _mm256_set1_epi16(2));
    let downs = _mm512_inserti64x4::<1>(_mm512_setzero_si512(), _mm256_set1_epi16(2));
    // SAFETY: `raw` has sixteen scales from byte 192 on.
    let levels = _mm256_cvtepi8_epi16(unsafe { _mm_loadu_si128(raw.as_ptr().add(192).cast()) });
    // SAFETY: `sums` is 32 readable bytes.
    let sums = unsafe { _mm256_loadu_si256(sums.as_ptr().cast()) };
    // Codes are 32 too large: what that makes is taken off for all sixteen that share a scale at once.
    let excess = _mm256_slli_epi32::<5>(_mm256_madd_epi16(levels, sums));
    let levels = _mm512_castsi256_si512(levels);
    // Word `i` of a vector of pairs belongs to the sixteen numbers `i / 8`.
    let eighth = _mm512_set_epi16(
        3, 3, 3, 3, 3, 3, 3, 3, 2, 2, 2, 2, 2, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0,
    );
    let mut sum = [_mm512_zextsi256_si512(excess), _mm512_setzero_si512()];
    for half in 0..2 {
        let low = load(raw[64 * half..][..64].as_array().expect("64 bytes"));
        let high: &[u8; 32] = raw[128 + 32 * half..][..32].as_array().expect("32 bytes");
        // SAFETY: `high` is 32 readable bytes.
        let high = _mm512_broadcast_i64x4(unsafe { _mm256_loadu_si256(high.as_ptr().cast()) });
        // Shifts of 16-bit words: what crosses into the other byte is masked away.
        let up = _mm512_and_si512(_mm512_sllv_epi16(high, ups), pair);
        let down = _mm512_and_si512(_mm512_srlv_epi16(high, downs), pair);
        let first = _mm512_or_si512(_mm512_and_si512(low, nibble), up);
        let second = _mm512_or_si512(_mm512_and_si512(_mm512_srli_epi16::<4>(low), nibble), down);
        for (i, codes) in [first, second].into_iter().enumerate() {
            let part = 2 * half + i;
            let z = load_i8(z[64 * part..][..64].as_array().expect("64 elements"));
            let level = _mm512_permutexvar_epi16(
                _mm512_add_epi16(eighth, _mm512_set1_epi16(4 * part as i16)),
                levels,
            );
            // Codes up to 63 make at most 63 * 127 * 2 in 16 bits; times a scale, eight make 2^14 * 2^7 * 8.
            sum[i] = _mm512_dpwssd_epi32(sum[i], _mm512_maddubs_epi16(codes, z), level);
        }
    }
    _mm512_add_epi32(sum[0], sum[1])
}

/// Scores of rows side by side.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni,avx2,f16c")]
fn q6_k_scores<const N: usize>(mut rows: [Row<'_>; N], query: Query<'_>) -> [f32; N] {
    let mut sum = [_mm512_setzero_ps(); N];
    let blocks = query.z.as_chunks::<BLOCK>().0.iter().zip(query.sums).zip(query.scales);
    for (b, ((z, sums), scale)) in blocks.enumerate() {
        for (row, sum) in rows.iter_mut().zip(&mut sum) {
            row.ask();
            let raw = &row.blocks[b];
            let integers = _mm512_cvtepi32_ps(block(raw, z, sums));
            let d = i32::from(u16::from_le_bytes([raw[208], raw[209]]));
            let d = _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(d))) * scale;
            *sum = _mm512_fmadd_ps(integers, _mm512_set1_ps(d), *sum);
        }
    }
    let mut scores = [0.0; N];
    for (score, sum) in scores.iter_mut().zip(sum) {
        *score = _mm512_reduce_add_ps(sum);
    }
    scores
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni,avx2,f16c")]
fn q6_k_rows(rows: &[u8], row_bytes: usize, query: Query<'_>, out: &mut [f32]) {
    side_by_side(rows, row_bytes, out, |rows| q6_k_scores(rows, query), |rows| q6_k_scores(rows, query));
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn int8_rows(rows: &[Line], width: usize, query: Query<'_>, out: &mut [f32]) {
    let z = query.z.as_chunks::<64>().0.as_chunks::<4>().0;
    for (row, out) in rows.chunks_exact(width).zip(out) {
        let mut sum = _mm512_setzero_ps();
        let blocks = row.as_chunks::<4>().0;
        for (((codes, z), lanes), scale) in blocks.iter().zip(z).zip(query.lanes).zip(query.scales) {
            // SAFETY: `lanes` is 64 readable bytes.
            let excess = unsafe { _mm512_loadu_si512(lanes.as_ptr().cast()) };
            let mut integers = _mm512_sub_epi32(_mm512_setzero_si512(), excess);
            for (codes, z) in codes.iter().zip(z) {
                prefetch(codes.0.as_ptr());
                integers = _mm512_dpbusd_epi32(integers, load(&codes.0), load_i8(z));
            }
            sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(integers), _mm512_set1_ps(*scale), sum);
        }
        *out = _mm512_reduce_add_ps(sum);
    }
}

pub(super) fn q6_k(rows: &[u8], row_bytes: usize, query: Query<'_>, out: &mut [f32]) {
    assert!(Isa::Avx512.is_available());
    // SAFETY: the assertion has seen the instruction set.
    unsafe { q6_k_rows(rows, row_bytes, query, out) };
}

pub(super) fn int8(rows: &[Line], width: usize, query: Query<'_>, out: &mut [f32]) {
    assert!(Isa::Avx512.is_available());
    // SAFETY: the assertion has seen the instruction set.
    unsafe { int8_rows(rows, width, query, out) };
}
