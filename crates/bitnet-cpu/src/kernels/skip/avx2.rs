//! AVX2: pairs of products in 16 bits, at most 512 in magnitude, so that 64 of them fit before they are widened.

use super::Picked;
use crate::Isa;
use crate::layout::{Line, STRIPE_TILES, TILE};
use std::arch::x86_64::*;

/// Pairs of products whose 16-bit sums cannot overflow.
const STEPS: usize = 64;

#[inline]
#[target_feature(enable = "avx2")]
fn load(line: &Line, half: usize) -> __m256i {
    // SAFETY: a line is 64 bytes, aligned to 64, and `half` is made 0 or 1.
    unsafe { _mm256_load_si256(line.0.as_ptr().cast::<__m256i>().add(half & 1)) }
}

/// The four fields of 32 bytes.
#[inline]
#[target_feature(enable = "avx2")]
fn fields(packed: __m256i) -> [__m256i; 4] {
    let mask = _mm256_set1_epi8(3);
    [
        _mm256_and_si256(packed, mask),
        _mm256_and_si256(_mm256_srli_epi16::<2>(packed), mask),
        _mm256_and_si256(_mm256_srli_epi16::<4>(packed), mask),
        _mm256_and_si256(_mm256_srli_epi16::<6>(packed), mask),
    ]
}

/// Adds the pairs of 16-bit sums to 32-bit sums.
#[inline]
#[target_feature(enable = "avx2")]
fn widen(narrow: __m256i, sum: __m256i) -> __m256i {
    _mm256_add_epi32(sum, _mm256_madd_epi16(narrow, _mm256_set1_epi16(1)))
}

#[target_feature(enable = "avx2")]
fn row_sum(row: &[Line], ahead: &[Line], x: &[i8]) -> i32 {
    let mut sum = _mm256_setzero_si256();
    for ((line, ahead), x) in row.iter().zip(ahead).zip(x.as_chunks::<256>().0) {
        _mm_prefetch::<_MM_HINT_T1>(std::ptr::from_ref(ahead).cast());
        let mut narrow = _mm256_setzero_si256();
        for half in 0..2 {
            for (codes, x) in fields(load(line, half)).into_iter().zip(x.as_chunks::<64>().0) {
                // SAFETY: the halves of 64 bytes; `loadu` accepts any alignment.
                let x = unsafe { _mm256_loadu_si256(x.as_ptr().cast::<__m256i>().add(half)) };
                narrow = _mm256_add_epi16(narrow, _mm256_maddubs_epi16(codes, x));
            }
        }
        sum = widen(narrow, sum);
    }
    let mut lanes = [0i32; 8];
    // SAFETY: 32 writable bytes.
    unsafe { _mm256_storeu_si256(lanes.as_mut_ptr().cast(), sum) };
    lanes.iter().sum()
}

/// Sums of half a stripe's rows: `sum[4v + f]` has eight rows of tile `4v + f`.
#[inline]
#[target_feature(enable = "avx2")]
fn half_sums(stripe: &[Line], picked: Picked<'_>, half: usize) -> [__m256i; STRIPE_TILES] {
    let mut sum = [_mm256_setzero_si256(); STRIPE_TILES];
    let columns = picked.columns.as_chunks::<4>().0.chunks(STEPS);
    for (columns, q) in columns.zip(picked.values.as_chunks::<4>().0.chunks(STEPS)) {
        let mut narrow = [_mm256_setzero_si256(); STRIPE_TILES];
        for (columns, q) in columns.iter().zip(q) {
            let [a, b, c, d] = columns.map(|column| load(&stripe[column as usize], half));
            let q = _mm256_set1_epi32(i32::from_le_bytes(q.map(|q| q as u8)));
            let (ab, cd) = (_mm256_unpacklo_epi8(a, b), _mm256_unpacklo_epi8(c, d));
            let (ab_high, cd_high) = (_mm256_unpackhi_epi8(a, b), _mm256_unpackhi_epi8(c, d));
            let bytes = [
                _mm256_unpacklo_epi16(ab, cd),
                _mm256_unpackhi_epi16(ab, cd),
                _mm256_unpacklo_epi16(ab_high, cd_high),
                _mm256_unpackhi_epi16(ab_high, cd_high),
            ];
            for (narrow, bytes) in narrow.as_chunks_mut::<4>().0.iter_mut().zip(bytes) {
                for (narrow, codes) in narrow.iter_mut().zip(fields(bytes)) {
                    *narrow = _mm256_add_epi16(*narrow, _mm256_maddubs_epi16(codes, q));
                }
            }
        }
        for (sum, narrow) in sum.iter_mut().zip(narrow) {
            *sum = widen(narrow, *sum);
        }
    }
    sum
}

#[target_feature(enable = "avx2")]
fn column_sums(stripe: &[Line], picked: Picked<'_>, out: &mut [[i32; TILE]; STRIPE_TILES]) {
    for half in 0..2 {
        for (sum, out) in half_sums(stripe, picked, half).into_iter().zip(&mut *out) {
            // SAFETY: half of 64 writable bytes.
            unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast::<__m256i>().add(half), sum) };
        }
    }
}

pub(super) fn row(row: &[Line], ahead: &[Line], x: &[i8]) -> i32 {
    assert!(Isa::Avx2.is_available());
    // SAFETY: the assertion has seen AVX2.
    unsafe { row_sum(row, ahead, x) }
}

pub(super) fn columns(stripe: &[Line], picked: Picked<'_>, out: &mut [[i32; TILE]; STRIPE_TILES]) {
    assert!(Isa::Avx2.is_available());
    // SAFETY: the assertion has seen AVX2.
    unsafe { column_sums(stripe, picked, out) };
}
