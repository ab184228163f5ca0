//! AVX2: unsigned codes times signed activations by `vpmaddubsw`.
//!
//! A pair of products is at most 2 * 2 * 128 = 512 in magnitude. A block adds four of them to a 16-bit lane, so sixteen
//! blocks reach at most 64 * 512 = 32768 below zero and 64 * 508 = 32512 above: both fit, and sums are widened then.

use crate::Isa;
use crate::layout::{Block, TILE};
use std::arch::x86_64::*;

/// Blocks whose 16-bit sums cannot overflow.
const BLOCKS: usize = 16;

/// Rows `8 * half ..` of a tile times `T` tokens.
#[inline]
#[target_feature(enable = "avx2")]
fn half_tile<const T: usize>(blocks: &[Block], half: usize, q: [&[i8]; T]) -> [__m256i; T] {
    let mut sum = [_mm256_setzero_si256(); T];
    let (mask, ones) = (_mm256_set1_epi8(3), _mm256_set1_epi16(1));
    let mut q: [std::slice::Iter<'_, [i8; TILE]>; T] = q.map(|q| q.as_chunks().0.iter());
    for blocks in blocks.chunks(BLOCKS) {
        let mut narrow = [_mm256_setzero_si256(); T];
        for block in blocks {
            // SAFETY: a block is 64 bytes and `half` is 0 or 1, so 32 bytes lie there.
            let packed = unsafe { _mm256_loadu_si256(block.0.as_ptr().cast::<__m256i>().add(half & 1)) };
            let codes = [
                _mm256_and_si256(packed, mask),
                _mm256_and_si256(_mm256_srli_epi16::<2>(packed), mask),
                _mm256_and_si256(_mm256_srli_epi16::<4>(packed), mask),
                _mm256_and_si256(_mm256_srli_epi16::<6>(packed), mask),
            ];
            for t in 0..T {
                let Some(q) = q[t].next() else { continue };
                for (codes, q) in codes.iter().zip(q.as_chunks::<4>().0) {
                    let q = _mm256_set1_epi32(i32::from_le_bytes(q.map(|q| q as u8)));
                    narrow[t] = _mm256_add_epi16(narrow[t], _mm256_maddubs_epi16(*codes, q));
                }
            }
        }
        for t in 0..T {
            sum[t] = _mm256_add_epi32(sum[t], _mm256_madd_epi16(narrow[t], ones));
        }
    }
    sum
}

#[target_feature(enable = "avx2")]
fn tile<const T: usize>(blocks: &[Block], q: [&[i8]; T], out: &mut [[i32; TILE]]) {
    for half in 0..2 {
        for (sum, out) in half_tile(blocks, half, q).into_iter().zip(&mut *out) {
            // SAFETY: `out` is sixteen lanes, and `half` is 0 or 1, so eight lie there.
            unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast::<__m256i>().add(half), sum) };
        }
    }
}

pub(super) fn gemv(blocks: &[Block], width: usize, q: &[i8], out: &mut [[i32; TILE]]) {
    assert!(Isa::Avx2.is_available());
    for (blocks, out) in blocks.chunks_exact(width).zip(out.chunks_exact_mut(1)) {
        // SAFETY: the assertion has seen AVX2.
        unsafe { tile(blocks, [q], out) };
    }
}

pub(super) fn gemm(blocks: &[Block], width: usize, q: &[i8], stride: usize, out: &mut [[i32; TILE]]) {
    assert!(Isa::Avx2.is_available());
    let m = q.len() / stride;
    for (blocks, out) in blocks.chunks_exact(width).zip(out.chunks_exact_mut(m)) {
        for (q, out) in q.chunks(4 * stride).zip(out.chunks_mut(4)) {
            let mut tokens = q.chunks_exact(stride);
            if out.len() == 4 {
                let q: [&[i8]; 4] = std::array::from_fn(|_| tokens.next().unwrap_or_default());
                // SAFETY: the assertion has seen AVX2.
                unsafe { tile(blocks, q, out) };
            } else {
                for (q, out) in tokens.zip(out.chunks_exact_mut(1)) {
                    // SAFETY: the assertion has seen AVX2.
                    unsafe { tile(blocks, [q], out) };
                }
            }
        }
    }
}
