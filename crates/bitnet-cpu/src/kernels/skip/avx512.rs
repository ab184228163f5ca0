//! AVX-512 VNNI. A field is not shifted down before it is multiplied: field `f` gives `4^f` times its sum, which is taken off
//! the finished sum.

use super::Picked;
use crate::Isa;
use crate::layout::{Line, STRIPE_TILES, TILE};
use std::arch::x86_64::*;

/// Columns that are asked for ahead of the product.
const COLUMNS_AHEAD: usize = 32;

#[inline]
#[target_feature(enable = "avx512f")]
fn load(line: &Line) -> __m512i {
    // SAFETY: a line is 64 bytes, aligned to 64.
    unsafe { _mm512_load_si512(line.0.as_ptr().cast()) }
}

/// The bits of each field.
#[inline]
#[target_feature(enable = "avx512f")]
fn masks() -> [__m512i; 4] {
    [0x03, 0x0C, 0x30, 0xC0u8].map(|mask| _mm512_set1_epi8(mask as i8))
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn row_sum(row: &[Line], ahead: &[Line], x: &[i8]) -> i32 {
    let (masks, mut sum) = (masks(), [_mm512_setzero_si512(); 4]);
    for ((line, ahead), x) in row.iter().zip(ahead).zip(x.as_chunks::<256>().0) {
        _mm_prefetch::<_MM_HINT_T1>(std::ptr::from_ref(ahead).cast());
        let codes = load(line);
        for (f, x) in x.as_chunks::<64>().0.iter().enumerate() {
            // SAFETY: 64 bytes; `loadu` accepts any alignment.
            let x = unsafe { _mm512_loadu_si512(x.as_ptr().cast()) };
            sum[f] = _mm512_dpbusd_epi32(sum[f], _mm512_and_si512(codes, masks[f]), x);
        }
    }
    let low = _mm512_add_epi32(sum[0], _mm512_srai_epi32::<2>(sum[1]));
    let high = _mm512_add_epi32(_mm512_srai_epi32::<4>(sum[2]), _mm512_srai_epi32::<6>(sum[3]));
    _mm512_reduce_add_epi32(_mm512_add_epi32(low, high))
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn column_sums(stripe: &[Line], picked: Picked<'_>, out: &mut [[i32; TILE]; STRIPE_TILES]) {
    let (masks, mut sum) = (masks(), [[_mm512_setzero_si512(); 4]; 4]);
    let ahead = picked.columns.iter().skip(COLUMNS_AHEAD).map(|column| *column as usize);
    let mut ahead = ahead.chain(std::iter::repeat(0));
    for (columns, q) in picked.columns.as_chunks::<4>().0.iter().zip(picked.values.as_chunks::<4>().0) {
        for column in ahead.by_ref().take(4) {
            _mm_prefetch::<_MM_HINT_T1>(stripe.as_ptr().wrapping_add(column).cast());
        }
        let [a, b, c, d] = columns.map(|column| load(&stripe[column as usize]));
        let q = _mm512_set1_epi32(i32::from_le_bytes(q.map(|q| q as u8)));
        let (ab, cd) = (_mm512_unpacklo_epi8(a, b), _mm512_unpacklo_epi8(c, d));
        let (ab_high, cd_high) = (_mm512_unpackhi_epi8(a, b), _mm512_unpackhi_epi8(c, d));
        let bytes = [
            _mm512_unpacklo_epi16(ab, cd),
            _mm512_unpackhi_epi16(ab, cd),
            _mm512_unpacklo_epi16(ab_high, cd_high),
            _mm512_unpackhi_epi16(ab_high, cd_high),
        ];
        for v in 0..4 {
            for f in 0..4 {
                sum[v][f] = _mm512_dpbusd_epi32(sum[v][f], _mm512_and_si512(bytes[v], masks[f]), q);
            }
        }
    }
    for (sum, out) in sum.into_iter().zip(out.as_chunks_mut::<4>().0) {
        let [a, b, c, d] = sum;
        let sums = [a, _mm512_srai_epi32::<2>(b), _mm512_srai_epi32::<4>(c), _mm512_srai_epi32::<6>(d)];
        for (sum, out) in sums.into_iter().zip(out) {
            // SAFETY: `out` is 64 writable bytes.
            unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), sum) };
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn picked(q: &[i8], columns: &mut [u32], values: &mut [i8]) -> usize {
    let (blocks, tail) = q.as_chunks::<16>();
    let (mut found, mut at) = (0, _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
    for block in blocks {
        // SAFETY: sixteen bytes; `loadu` accepts any alignment.
        let q = unsafe { _mm_loadu_si128(block.as_ptr().cast()) };
        let some = _mm_test_epi8_mask(q, q);
        let wide = _mm512_maskz_compress_epi32(some, _mm512_cvtepi8_epi32(q));
        let (columns, values) = (&mut columns[found..found + 16], &mut values[found..found + 16]);
        // SAFETY: both slices have room for sixteen.
        unsafe {
            _mm512_storeu_si512(columns.as_mut_ptr().cast(), _mm512_maskz_compress_epi32(some, at));
            _mm_storeu_si128(values.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(wide));
        }
        found += some.count_ones() as usize;
        at = _mm512_add_epi32(at, _mm512_set1_epi32(16));
    }
    for (i, q) in tail.iter().enumerate().filter(|(_, q)| **q != 0) {
        (columns[found], values[found]) = ((blocks.len() * 16 + i) as u32, *q);
        found += 1;
    }
    found
}

pub(super) fn row(row: &[Line], ahead: &[Line], x: &[i8]) -> i32 {
    assert!(Isa::Avx512.is_available());
    // SAFETY: the assertion has seen the instruction set.
    unsafe { row_sum(row, ahead, x) }
}

pub(super) fn columns(stripe: &[Line], picked: Picked<'_>, out: &mut [[i32; TILE]; STRIPE_TILES]) {
    assert!(Isa::Avx512.is_available());
    // SAFETY: the assertion has seen the instruction set.
    unsafe { column_sums(stripe, picked, out) };
}

pub(super) fn pick(q: &[i8], columns: &mut [u32], values: &mut [i8]) -> usize {
    assert!(Isa::Avx512.is_available());
    // SAFETY: the assertion has seen the instruction set.
    unsafe { picked(q, columns, values) }
}
