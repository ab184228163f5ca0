//! AVX-512 VNNI: unsigned codes times signed activations, four products a lane, by `vpdpbusd`.
//!
//! A lane adds at most 4 * 2 * 128 a step; 32 bits hold that for two million columns.

use crate::Isa;
use crate::layout::{Block, TILE};
use std::arch::x86_64::*;
use std::cell::RefCell;

/// How far ahead of the product memory is asked for. Measured: one core streams two to three times as fast with it.
const PREFETCH_BLOCKS: usize = 64;
/// Tokens of the register tile: with two tiles of rows it fills 24 of the 32 registers.
const TOKENS: usize = 12;

thread_local! {
    /// Two tiles of rows, unpacked: `[width][4][tiles]` vectors of codes.
    static CODES: RefCell<Vec<__m512i>> = const { RefCell::new(Vec::new()) };
}

/// The four fields of a block: field `f` holds columns `4f..4f + 4` of sixteen rows.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn unpack(block: &Block) -> [__m512i; 4] {
    let mask = _mm512_set1_epi8(3);
    // SAFETY: a block is 64 bytes, aligned to 64.
    let packed = unsafe { _mm512_load_si512(block.0.as_ptr().cast()) };
    [
        _mm512_and_si512(packed, mask),
        _mm512_and_si512(_mm512_srli_epi16::<2>(packed), mask),
        _mm512_and_si512(_mm512_srli_epi16::<4>(packed), mask),
        _mm512_and_si512(_mm512_srli_epi16::<6>(packed), mask),
    ]
}

#[inline]
#[target_feature(enable = "avx512f")]
fn broadcast(q: &[i8; 4]) -> __m512i {
    _mm512_set1_epi32(i32::from_le_bytes(q.map(|q| q as u8)))
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store(x: __m512i, out: &mut [i32; TILE]) {
    // SAFETY: `out` is 64 writable bytes.
    unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), x) };
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn gemv_tiles(blocks: &[Block], width: usize, q: &[i8], out: &mut [[i32; TILE]]) {
    for (tile, out) in blocks.chunks_exact(width).zip(out) {
        let mut sum = [_mm512_setzero_si512(); 4];
        for (block, q) in tile.iter().zip(q.as_chunks::<TILE>().0) {
            // A prefetch of an address outside the weights does nothing.
            _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(block).wrapping_add(PREFETCH_BLOCKS).cast());
            for ((sum, codes), q) in sum.iter_mut().zip(unpack(block)).zip(q.as_chunks::<4>().0) {
                *sum = _mm512_dpbusd_epi32(*sum, codes, broadcast(q));
            }
        }
        let [a, b, c, d] = sum;
        store(_mm512_add_epi32(_mm512_add_epi32(a, b), _mm512_add_epi32(c, d)), out);
    }
}

/// `TILES` tiles of unpacked rows times `T` tokens; sums go to `out[tile * m + token]`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn register_tile<const TILES: usize, const T: usize>(
    codes: &[[__m512i; TILES]],
    q: &[i8],
    stride: usize,
    out: &mut [[i32; TILE]],
    m: usize,
) {
    let tokens: [&[[i8; 4]]; T] = std::array::from_fn(|t| &q[t * stride..].as_chunks().0[..codes.len()]);
    let mut sum = [[_mm512_setzero_si512(); T]; TILES];
    for (k, codes) in codes.iter().enumerate() {
        for t in 0..T {
            // SAFETY: every slice of `tokens` is as long as `codes`.
            let q = broadcast(unsafe { tokens[t].get_unchecked(k) });
            for i in 0..TILES {
                sum[i][t] = _mm512_dpbusd_epi32(sum[i][t], codes[i], q);
            }
        }
    }
    for (i, sum) in sum.iter().enumerate() {
        for (t, sum) in sum.iter().enumerate() {
            store(*sum, &mut out[i * m + t]);
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn gemm_tiles<const TILES: usize>(
    blocks: &[Block],
    width: usize,
    q: &[i8],
    stride: usize,
    out: &mut [[i32; TILE]],
) {
    let m = q.len() / stride;
    CODES.with_borrow_mut(|scratch| {
        scratch.clear();
        for k in 0..width {
            let fields: [[__m512i; 4]; TILES] = std::array::from_fn(|i| unpack(&blocks[i * width + k]));
            for f in 0..4 {
                scratch.extend(fields.map(|fields| fields[f]));
            }
        }
        let codes = scratch.as_chunks::<TILES>().0;
        let mut t = 0;
        while t < m {
            let (q, out) = (&q[t * stride..], &mut out[t..]);
            t += match m - t {
                TOKENS.. => {
                    register_tile::<TILES, TOKENS>(codes, q, stride, out, m);
                    TOKENS
                }
                4.. => {
                    register_tile::<TILES, 4>(codes, q, stride, out, m);
                    4
                }
                _ => {
                    register_tile::<TILES, 1>(codes, q, stride, out, m);
                    1
                }
            };
        }
    });
}

pub(super) fn gemv(blocks: &[Block], width: usize, q: &[i8], out: &mut [[i32; TILE]]) {
    assert!(Isa::Avx512.is_available());
    // SAFETY: the assertion has seen the instruction set.
    unsafe { gemv_tiles(blocks, width, q, out) };
}

pub(super) fn gemm(blocks: &[Block], width: usize, q: &[i8], stride: usize, out: &mut [[i32; TILE]]) {
    assert!(Isa::Avx512.is_available());
    // SAFETY: the assertion has seen the instruction set.
    unsafe {
        match blocks.len() / width {
            2 => gemm_tiles::<2>(blocks, width, q, stride, out),
            _ => gemm_tiles::<1>(blocks, width, q, stride, out),
        }
    }
}
